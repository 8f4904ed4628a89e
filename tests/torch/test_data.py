from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from nas.errors import ConfigError, DataError
from nas.torch.data import Data, Split, load
from nas.torch.data.cifar import unpickle
from nas.torch.data.folder import CHUNK
from nas.torch.data.parts import Part, Subset

FASHION = Path(__file__).parents[2] / "../shared/data/fashion-mnist/fashion_mnist.npz"


def make(count: int = 60, shape: tuple[int, ...] = (8, 6), classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Random images, no two alike, and labels in turn."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), np.uint8), np.arange(count) % classes


def content(*splits: Split) -> Counter[tuple[int, bytes]]:
    """What is in the splits, whatever the order."""
    pairs = ((x, y) for split in splits for x, y in zip(split.images, split.labels.tolist(), strict=True))
    return Counter((y, x.numpy().tobytes()) for x, y in pairs)


def all_of(data: Data) -> Counter[tuple[int, bytes]]:
    return content(data.train, data.validation, data.test)


def expected(x: Any, y: Any) -> Counter[tuple[int, bytes]]:
    """The same for images (N, H, W) or (N, H, W, C)."""
    x = x[:, None] if x.ndim == 3 else np.moveaxis(x, 3, 1)
    return Counter((int(label), image.tobytes()) for image, label in zip(x, y, strict=True))


def write_folder(root: Path, x: Any, y: Any, suffix: str = "png", **options: Any) -> Path:
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        path = root / f"class{label}" / f"{index:05}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)
    return root


def write_idx(path: Path, array: Any) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, x: Any, y: Any, part: str = "train", end: str = ".gz", prefix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    write_idx(folder / f"{prefix}{part}-images-idx3-ubyte{end}", x)
    write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte{end}", y)
    return folder


def python2(value: object) -> bytes:
    """Write the opcodes that Python 2's cPickle wrote for CIFAR: byte strings, lists, ints, arrays of bytes."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value  # BINSTRING
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2(item) for pair in value.items() for item in pair) + b"u"
    assert isinstance(value, np.ndarray)
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    order = b"\x89"  # False: C order
    shape = b"(" + b"".join(python2(side) for side in value.shape) + b"t"
    return reconstruct + b"(K\x01" + shape + dtype + order + python2(value.tobytes()) + b"tb"


def as_python2(value: dict[bytes, Any]) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def as_python3(value: dict[bytes, Any], protocol: int) -> bytes:
    return pickle.dumps({key.decode(): item for key, item in value.items()}, protocol)


def cifar10_files(x: Any, y: Any, dump: Callable[[dict[bytes, Any]], bytes] = as_python2) -> dict[str, bytes]:
    """Six files of the images (N, 32, 32, 3): five of training and one of test."""
    flat = np.moveaxis(x, 3, 1).reshape(len(x), -1)
    batches = zip(np.array_split(flat, 6), np.array_split(y, 6), strict=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = {
        name: dump({b"batch_label": b"some", b"labels": [int(v) for v in labels], b"data": data})
        for name, (data, labels) in zip(names, batches, strict=True)
    }
    return files | {"batches.meta": dump({b"label_names": [b"cat", b"dog", b"owl"], b"num_vis": 3072})}


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


# --- what every source gives ---------------------------------------------------------------------


def test_digits() -> None:
    data = load("digits")
    assert data.input_shape == (1, 8, 8)
    assert data.classes == 10
    assert data.class_names == tuple("0123456789")
    assert sum(all_of(data).values()) == 1797
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert int(data.train.images.max()) == 255  # 16 in the original
    assert len(data.test) == pytest.approx(1797 / 6, abs=5)
    assert len(data.validation) == pytest.approx(1797 * 5 / 6 / 5, abs=5)
    assert data.describe().startswith("digits: 10 classes, images of 1x8x8: 1,199 train")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_folder_of_grey_images(tmp_path: Path, suffix: str) -> None:
    x, y = make()
    data = load(write_folder(tmp_path, x, y, suffix))
    assert data.class_names == ("class0", "class1", "class2")
    assert data.note == ""
    assert all_of(data) == expected(x, y)


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("webp", {"lossless": True}), ("GIF", {})])
def test_folder_of_colour_images(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    x, y = make(shape=(8, 6, 3))
    assert all_of(load(write_folder(tmp_path, x, y, suffix, **options))) == expected(x, y)


def test_folder_of_jpegs(tmp_path: Path) -> None:
    x = np.repeat(np.arange(0, 240, 4, dtype=np.uint8), 64).reshape(60, 8, 8)  # flat: nothing lost
    data = load(write_folder(tmp_path, x, np.arange(60) % 3, "JPG"))
    assert all_of(data) == expected(x, np.arange(60) % 3)


def test_folder_with_its_own_splits(tmp_path: Path) -> None:
    x, y = make(90)
    for name, part in (("train", slice(60)), ("valid", slice(60, 75)), ("test", slice(75, None))):
        write_folder(tmp_path / name, x[part], y[part])
    (tmp_path / "notes").mkdir()
    data = load(tmp_path)
    assert content(data.train) == expected(x[:60], y[:60])
    assert content(data.validation) == expected(x[60:75], y[60:75])
    assert content(data.test) == expected(x[75:], y[75:])


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    x, y = make()
    write_folder(tmp_path, x, y)
    (tmp_path / "class0").rename(tmp_path / "train")
    assert load(tmp_path).class_names == ("class1", "class2", "train")


def test_folder_skips_what_is_no_image_and_finds_nested_ones(tmp_path: Path) -> None:
    x, y = make()
    write_folder(tmp_path, x, y)
    nested = tmp_path / "class0" / "monday"
    nested.mkdir()
    (tmp_path / "class0" / "00000.png").rename(nested / "00000.png")
    for name in (".hidden.png", "Thumbs.db", "labels.csv"):
        (tmp_path / "class1" / name).write_bytes(b"no image")
    for cache in (tmp_path / ".cache", nested / ".cache"):
        cache.mkdir()
        Image.fromarray(x[0]).save(cache / "copy.png")
    (tmp_path / "README.md").write_text("text")
    assert all_of(load(tmp_path)) == expected(x, y)


def test_npz_with_and_without_parts(tmp_path: Path) -> None:
    (x, y), (v, w), (t, u) = make(60), make(12, seed=1), make(9, seed=2)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    assert all_of(load(tmp_path / "a.npz")) == expected(x, y)
    np.savez_compressed(tmp_path / "b.npz", x_train=x, y_train=y, x_val=v, y_val=w, x_test=t, y_test=u)
    data = load(tmp_path / "b.npz")
    assert content(data.train) == expected(x, y)
    assert content(data.validation) == expected(v, w)
    assert content(data.test) == expected(t, u)


LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "NHWC": lambda x: x,
    "NCHW": lambda x: np.moveaxis(x, 3, 1),
    "int64": lambda x: x.astype(np.int64),
    "0..1": lambda x: x.astype(np.float32) / 255,
    "0..1 in half precision": lambda x: (x / 255).astype(np.float16),
    "0..255": lambda x: x.astype(np.float64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_npz_layouts_and_types(tmp_path: Path, layout: str) -> None:
    x, y = make(shape=(8, 6, 3))
    np.savez(tmp_path / "a.npz", x=LAYOUTS[layout](x), y=y.astype(np.uint8)[:, None])
    assert all_of(load(tmp_path / "a.npz")) == expected(x, y)


@pytest.mark.parametrize("axis", [1, 3])
def test_npz_of_grey_images_with_a_channel_axis(tmp_path: Path, axis: int) -> None:
    x, y = make()
    np.savez(tmp_path / "a.npz", x=np.expand_dims(x, axis), y=y)
    assert all_of(load(tmp_path / "a.npz")) == expected(x, y)


def test_labels_need_not_start_at_zero(tmp_path: Path) -> None:
    x, y = make()
    np.savez(tmp_path / "a.npz", x=x, y=10 * y + 1)
    data = load(tmp_path / "a.npz")
    assert data.class_names == ("1", "11", "21")
    assert all_of(data) == expected(x, y)


def test_boolean_pictures_are_black_and_white(tmp_path: Path) -> None:
    x, y = make()
    np.savez(tmp_path / "a.npz", x=x > 127, y=y)
    assert load(tmp_path / "a.npz").train.images.unique().tolist() == [0, 255]


@pytest.mark.parametrize("end", [".gz", ""])
def test_idx_files(tmp_path: Path, end: str) -> None:
    (x, y), (t, u) = make(60), make(9, seed=2)
    write_mnist(tmp_path, x, y, "train", end)
    assert all_of(load(tmp_path)) == expected(x, y)
    write_mnist(tmp_path, t, u, "t10k", end)
    for source in (tmp_path, tmp_path / f"train-images-idx3-ubyte{end}", tmp_path / f"t10k-labels-idx1-ubyte{end}"):
        data = load(source)
        assert content(data.train, data.validation) == expected(x, y)
        assert content(data.test) == expected(t, u)


def test_idx_sets_side_by_side_are_told_apart_by_a_file(tmp_path: Path) -> None:
    (x, y), (t, u) = make(60), make(66, seed=2)
    write_mnist(tmp_path, x, y, prefix="emnist-digits-")
    write_mnist(tmp_path, t, u, prefix="emnist-letters-")
    assert all_of(load(tmp_path / "emnist-letters-train-images-idx3-ubyte.gz")) == expected(t, u)
    with pytest.raises(DataError, match=r"several data sets \('emnist-digits-', 'emnist-letters-'\)"):
        load(tmp_path)


DUMPS: dict[str, Callable[[dict[bytes, Any]], bytes]] = {
    "Python 2": as_python2,
    "Python 3, protocol 2": lambda value: as_python3(value, 2),
    "Python 3, protocol 4": lambda value: as_python3(value, 4),
}


@pytest.mark.parametrize("dump", DUMPS)
def test_cifar10(tmp_path: Path, dump: str) -> None:
    x, y = make(60, (32, 32, 3))
    files = cifar10_files(x, y, DUMPS[dump])
    data = load(write_files(tmp_path / "cifar-10-batches-py", files))
    assert data.class_names == ("cat", "dog", "owl")
    assert content(data.train, data.validation) == expected(x[:50], y[:50])
    assert content(data.test) == expected(x[50:], y[50:])
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
    again = load(tmp_path / "cifar-10-python.tar.gz")
    assert all_of(again) == all_of(data)


def test_our_python_2_pickles_are_what_python_reads() -> None:
    x, _ = make(5)
    value = pickle.loads(as_python2({b"data": x, b"labels": [1, 2], b"name": b"\xff"}), encoding="bytes")
    assert np.array_equal(value.pop(b"data"), x)
    assert value == {b"labels": [1, 2], b"name": b"\xff"}


def test_cifar100(tmp_path: Path) -> None:
    x, y = make(60, (32, 32, 3))
    flat = np.moveaxis(x, 3, 1).reshape(60, -1)
    names = ("train", slice(45)), ("test", slice(45, None))
    files = {
        name: as_python3({b"fine_labels": y[part].tolist(), b"data": np.asfortranarray(flat[part])}, 2)
        for name, part in names
    }
    files["meta"] = as_python2({b"fine_label_names": [b"cat", b"dog", b"owl"]})
    data = load(write_files(tmp_path / "cifar-100-python", files))
    assert content(data.train, data.validation) == expected(x[:45], y[:45])
    assert content(data.test) == expected(x[45:], y[45:])


@pytest.mark.skipif(not FASHION.exists(), reason="Fashion-MNIST is not beside the repository")
def test_fashion_mnist() -> None:
    data = load(FASHION)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [48000, 12000, 10000]
    assert data.mean == pytest.approx((0.2860,), abs=2e-3)  # the published 0.2860 and 0.3530, of all 60,000
    assert data.std == pytest.approx((0.3530,), abs=2e-3)
    assert torch.bincount(data.validation.labels).tolist() == [1200] * 10


# --- splits --------------------------------------------------------------------------------------


def test_splits_are_disjoint_stratified_and_reproducible(tmp_path: Path) -> None:
    x, y = make(600, classes=6)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    first, same, other = (load(tmp_path / "a.npz", seed=seed, validation=0.3) for seed in (0, 0, 1))
    assert all_of(first) == expected(x, y)  # every image once
    for name, size in (("train", 350), ("validation", 150), ("test", 100)):
        split = getattr(first, name)
        counts = torch.bincount(split.labels)
        assert int(counts.max()) - int(counts.min()) <= 1
        assert int(counts.sum()) == pytest.approx(size, abs=6)
        assert torch.equal(split.images, getattr(same, name).images)
    assert torch.equal(first.test.images, other.test.images)
    assert content(first.validation) != content(other.validation)


def test_test_images_never_reach_a_search(tmp_path: Path) -> None:
    x, y = make(60)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    test = content(load(tmp_path / "a.npz").test)
    for seed in range(8):
        data = load(tmp_path / "a.npz", seed=seed, limit=20 + seed, validation=0.1 * (seed + 1))
        assert not test & content(data.train, data.validation)


def test_the_file_system_order_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, *make())
    for path in sorted((tmp_path / "class0").iterdir()):  # a folder for each of these
        path.with_suffix("").mkdir()
        path.rename(path.with_suffix("") / path.name)
    forward = load(tmp_path)
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: Any) -> None:
            with scandir(path) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> Reversed:
            return self

        def __exit__(self, *exc: object) -> None:
            pass

        def __iter__(self) -> Iterator[Any]:
            return self.entries

        def __next__(self) -> Any:
            return next(self.entries)

        def close(self) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert [entry.name for entry in os.scandir(tmp_path)] == ["class2", "class1", "class0"]
    backward = load(tmp_path)
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(forward, name).images, getattr(backward, name).images)


def test_limit_keeps_classes_in_proportion() -> None:
    full, data = load("digits"), load("digits", limit=200)
    assert len(data.train) + len(data.validation) == 200
    assert len(data.validation) == 40
    assert torch.equal(data.test.images, full.test.images)
    assert not content(data.train) - content(full.train)
    assert not content(data.validation) - content(full.validation)
    for kept, whole in ((data.train, full.train), (data.validation, full.validation)):
        share = len(kept) / len(whole)
        difference = torch.bincount(kept.labels) - share * torch.bincount(whole.labels)
        assert float(difference.abs().max()) <= 1
    assert all_of(load("digits", limit=10_000)) == all_of(full)


def test_limit_with_a_validation_set_of_its_own(tmp_path: Path) -> None:
    (x, y), (v, w) = make(60), make(30, seed=1)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_val=v, y_val=w, x_test=v, y_test=w)
    data = load(tmp_path / "a.npz", limit=30)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 30)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0.01, 0.99), st.integers(0, 9))
def test_hold_out_takes_its_share_of_each_class(labels: list[int], share: float, seed: int) -> None:
    subset = Subset.whole(Part(np.empty(0), np.array(labels)))
    rest, held = subset.hold_out(share, np.random.default_rng(seed))
    assert sorted([*rest.indices, *held.indices]) == list(range(len(labels)))
    assert all((np.diff(part.indices) > 0).all() for part in (rest, held))  # in the part's order
    counts, taken = Counter(labels), Counter(held.labels.tolist())
    for label, count in counts.items():
        assert taken[label] == (1 if count == 1 else min(max(round(count * share), 1), count - 1))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=200), st.data())
def test_thin_keeps_the_count_and_the_proportions(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))
    thin = Subset.whole(Part(np.empty(0), np.array(labels))).thin(count, np.random.default_rng(0))
    assert len(set(thin.indices.tolist())) == count
    kept = Counter(thin.labels.tolist())
    for label, whole in Counter(labels).items():
        assert abs(kept[label] - whole * count / len(labels)) <= 1


# --- reading folders -----------------------------------------------------------------------------


def test_mixed_sizes_are_resized_to_the_median_and_it_says_so(tmp_path: Path) -> None:
    for index, (height, width) in enumerate([(8, 20), (10, 30), (12, 10)] * 6):
        path = tmp_path / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (width, height), 40 + index).save(path)
    data = load(tmp_path)
    assert data.input_shape == (1, 10, 20)
    assert data.note == "images of 8x10 to 12x30 resized to 10x20"
    assert sorted(key[1][0] for key in all_of(data)) == list(range(40, 58))
    square = load(tmp_path, size=9)
    assert square.input_shape == (1, 9, 9)
    assert square.note == "images of 8x10 to 12x30 resized to 9x9"


def test_large_images_are_shrunk_unless_a_size_is_given(tmp_path: Path) -> None:
    for index in range(8):
        path = tmp_path / f"class{index % 2}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        half = np.zeros((300, 1000, 3), np.uint8)
        half[:, 500:] = 255
        Image.fromarray(half).save(path)
    data = load(tmp_path)
    assert data.input_shape == (3, 67, 224)
    assert data.note == "images of 300x1000 resized to 67x224"
    columns = data.train.images.float().mean(dim=(0, 1, 2))
    assert float(columns[:105].max()) < 5
    assert float(columns[-105:].min()) > 250
    assert load(tmp_path, size=300).input_shape == (3, 300, 300)


def test_resizing_is_bilinear_and_antialiased(tmp_path: Path) -> None:
    x, y = make(12, (40, 40), classes=2)
    data = load(write_folder(tmp_path, x, y), size=10)
    resized = [np.asarray(Image.fromarray(image).resize((10, 10), Image.Resampling.BILINEAR)) for image in x]
    assert all_of(data) == expected(np.stack(resized), y)


def test_arrays_are_resized_only_when_asked(tmp_path: Path) -> None:
    data = load("digits", size=16)
    assert data.input_shape == (1, 16, 16)
    assert data.note == "images of 8x8 resized to 16x16"
    assert data.test.images.shape[2:] == data.validation.images.shape[2:] == (16, 16)
    exact = functional.interpolate(load("digits").test.images.float(), 16, mode="bilinear")
    assert float((data.test.images - exact).abs().max()) <= 1
    assert load("digits", size=8).note == ""


def test_one_image_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    x, y = make(12, classes=2)
    write_folder(tmp_path, x, y)
    Image.new("RGB", (6, 8), (10, 20, 30)).save(tmp_path / "class0" / "colour.png")
    data = load(tmp_path)
    assert data.input_shape == (3, 8, 6)
    assert data.note == "grey images read as RGB among the others"
    rgb = np.repeat(x[..., None], 3, axis=3)
    colour = np.broadcast_to(np.array([10, 20, 30], np.uint8), (1, 8, 6, 3))
    assert all_of(data) == expected(np.concatenate([rgb, colour]), [*y, 0])


def pixel(image: Image.Image, tmp_path: Path, suffix: str = "png", **options: Any) -> list[int]:
    """Load a data set of copies of one image, and return the upper left pixel."""
    for index in range(6):
        path = tmp_path / f"class{index % 2}" / f"{index}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
    data = load(tmp_path)
    assert data.input_shape[1:] == (4, 4)
    return data.train.images[0, :, 0, 0].tolist()


def test_unusual_modes(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 0x8012, np.uint16))
    assert pixel(deep, tmp_path / "deep") == [0x80]
    assert pixel(Image.new("1", (4, 4), 1), tmp_path / "bits") == [255]
    assert pixel(Image.new("LA", (4, 4), (90, 10)), tmp_path / "alpha") == [90]
    assert pixel(Image.new("RGBA", (4, 4), (1, 2, 3, 9)), tmp_path / "rgba") == [1, 2, 3]
    assert pixel(Image.new("CMYK", (4, 4), (0, 0, 0, 0)), tmp_path / "cmyk", "jpg") == [255, 255, 255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 7, 8, 9])
    assert pixel(palette, tmp_path / "palette", transparency=b"\x00\x80") == [7, 8, 9]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_cameras_held_upright(tmp_path: Path, suffix: str) -> None:
    """The EXIF tag 6 asks to turn right: the lower left comes to the upper left."""
    image = np.zeros((16, 32), np.uint8)
    image[8:, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"lossless": True} if suffix == "webp" else {}
    data = load(write_folder(tmp_path, [image] * 6, [0, 1] * 3, suffix, exif=exif, **options))
    assert data.input_shape[1:] == (32, 16)
    assert data.note == ""
    assert torch.equal(data.train.images[0, 0], torch.from_numpy(np.rot90(image, -1).copy()))


def test_each_file_is_opened_twice_and_decoded_only_if_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 2 * CHUNK + 10
    write_folder(tmp_path / "set", *make(count, classes=2))
    opened: list[str] = []
    original = PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda file: opened.append(file.name) or original(file))
    load(tmp_path / "set")
    assert set(Counter(opened).values()) == {2}
    assert len(opened) == 2 * count
    opened.clear()
    data = load(tmp_path / "set", limit=20)
    assert len(opened) == count + 20 + len(data.test)


# --- moments -------------------------------------------------------------------------------------


def test_mean_and_std_are_those_of_the_training_images() -> None:
    x, _ = make(50, (3, 8, 6))
    x[:, 2] = 77
    split = Split(torch.from_numpy(x), torch.zeros(50, dtype=torch.int64))
    other = Split(split.images // 2, split.labels)
    data = Data("here", split, other, other, ("a", "b"))
    pixels = x[:, :2] / 255
    assert data.mean == pytest.approx([*pixels.mean(axis=(0, 2, 3)), 77 / 255], abs=1e-12)
    assert data.std == pytest.approx([*pixels.std(axis=(0, 2, 3)), 1.0], abs=1e-9)


# --- bad input -----------------------------------------------------------------------------------


def npz(tmp_path: Path, **arrays: Any) -> Path:
    x, y = make()
    np.savez(tmp_path / "bad.npz", **({"x": x, "y": y} | arrays))
    return tmp_path / "bad.npz"


def with_nan(tmp_path: Path) -> Path:
    x = make()[0] / 255
    x[3, 2, 1] = np.nan
    return npz(tmp_path, x=x)


def one_class(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", make()[0], [7] * 60)


def bad_image(tmp_path: Path, damage: Callable[[bytes], bytes]) -> Path:
    root = write_folder(tmp_path / "set", *make(shape=(30, 30)))
    for name in ("00005.png", "00035.png"):  # the first by name is reported, if the header is damaged
        path = root / "class2" / name
        path.write_bytes(damage(path.read_bytes()))
    return root


def empty_class(tmp_path: Path) -> Path:
    root = write_folder(tmp_path / "set", *make())
    (root / "class1b").mkdir()
    (root / "class1b" / "notes.txt").write_text("text")
    return root


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set").mkdir(exist_ok=True)
    return tmp_path / "set"


def strange_test_class(tmp_path: Path) -> Path:
    write_folder(tmp_path / "set" / "train", *make())
    write_folder(tmp_path / "set" / "test", make(8)[0], [1] * 4 + [8] * 4)
    return tmp_path / "set"


def flat_test(tmp_path: Path) -> Path:
    write_folder(tmp_path / "set" / "train", *make())
    return folder(tmp_path, "test")


def file(tmp_path: Path, name: str, data: bytes = b"text") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def idx(tmp_path: Path, damage: Callable[[bytes], bytes], end: str = "") -> Path:
    root = write_mnist(tmp_path / "set", *make(), end=end)
    path = root / f"train-images-idx3-ubyte{end}"
    path.write_bytes(damage(path.read_bytes()))
    return root


def idx_without(tmp_path: Path, kind: str) -> Path:
    root = write_mnist(tmp_path / "set", *make())
    next(root.glob(f"*{kind}*")).unlink()
    return root


def truncated_npz(tmp_path: Path) -> Path:
    """The archive is whole, and an array in it is not."""
    whole = io.BytesIO()
    np.save(whole, make()[0])
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", whole.getvalue()[:-100])
        archive.writestr("y.npy", whole.getvalue())
    return tmp_path / "bad.npz"


def cifar(tmp_path: Path, **changed: bytes | None) -> Path:
    files = cifar10_files(*make(60, (32, 32, 3)))
    return write_files(tmp_path / "set", {k: v for k, v in (files | changed).items() if v is not None})


def cut_tar(tmp_path: Path) -> Path:
    folder = cifar(tmp_path)
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(folder, "c")
    return file(tmp_path, "c.tar.gz", (tmp_path / "c.tar.gz").read_bytes()[:50_000])


BAD: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "missing": (lambda p: p / "nowhere", r"nowhere: no such file or folder; .*'digits'"),
    "unknown format": (lambda p: file(p, "a.csv"), r"a\.csv: unknown format; expected 'digits', a folder"),
    "empty folder": (lambda p: folder(p), r"set: expected a folder of images per class, found no folders"),
    "only empty classes": (lambda p: folder(p, "a", "b"), r"set/a: expected images \(\.png .*found none"),
    "empty class": (empty_class, r"set/class1b: expected images"),
    "val without train": (lambda p: folder(p, "val", "test"), r"expected a train folder .*\['test', 'val'\]"),
    "train without classes": (lambda p: folder(p, "train", "test"), r"expected a train folder with a folder"),
    "test without classes": (flat_test, r"set/test: found no images"),
    "strange class in test": (strange_test_class, r"set/test/class8: labels out of range"),
    "one class": (one_class, r"set: one class only \('class7'\)"),
    "one class in an array": (lambda p: npz(p, y=np.full(60, 4)), r"one class only \('4'\)"),
    "not an image": (lambda p: bad_image(p, lambda b: b"text"), r"cannot read image .*/class2/00005\.png: cannot"),
    "cut image": (lambda p: bad_image(p, lambda b: b[:400]), r"cannot read image .*/class2/000\d5\.png: .*trunc"),
    "empty image": (lambda p: bad_image(p, lambda b: b""), r"cannot read image .*/class2/00005\.png"),
    "few images": (lambda p: npz(p, x=make(7)[0], y=np.arange(7) % 3), r"class '1' has 2, .* at least 3"),
    "negative labels": (lambda p: npz(p, y=np.arange(60) % 3 - 1), r"train labels out of range: .*got -1"),
    "labels beyond": (
        lambda p: npz(p, x_test=make(4)[0], y_test=np.array([0, 1, 2, 3])),
        r"test labels out of range: expected .* 0 to 2, got 3",
    ),
    "cifar labels beyond": (
        lambda p: cifar(p, test_batch=as_python2({b"labels": [9], b"data": np.zeros((1, 3072), np.uint8)})),
        r"test labels out of range: expected .* 0 to 2, got 9",
    ),
    "float labels": (lambda p: npz(p, y=make()[1] / 2), r"train labels: expected integers, got float64"),
    "one-hot labels": (lambda p: npz(p, y=np.eye(3)[make()[1]]), r"labels: expected one integer .*got \(60, 3\)"),
    "labels too few": (lambda p: npz(p, y=make(59)[1]), r"labels: expected as many as images, 60, got 59"),
    "flat images": (lambda p: npz(p, x=make(60, (48,))[0]), r"images: expected \(N, H, W\), .*got \(60, 48\)"),
    "volumes": (lambda p: npz(p, x=make(60, (4, 4, 4, 3))[0]), r"images: expected .*got \(60, 4, 4, 4, 3\)"),
    "five channels": (lambda p: npz(p, x=make(60, (4, 4, 5))[0]), r"1 or 3 channels, got \(60, 4, 4, 5\)"),
    "no images": (lambda p: npz(p, x=make(0)[0], y=make(0)[1]), r"expected at least one image"),
    "other size in test": (
        lambda p: npz(p, x_test=make(4, (9, 9))[0], y_test=np.arange(4) % 3),
        r"test images: expected \(1, 8, 6\) as in training, got \(1, 9, 9\)",
    ),
    "NaN": (with_nan, r"NaN or infinite pixels"),
    "infinite": (lambda p: npz(p, x=np.full((60, 4, 4), np.inf)), r"NaN or infinite pixels"),
    "standardised": (lambda p: npz(p, x=make()[0] / 64 - 2), r"expected pixels in 0\.\.1 or 0\.\.255, got -2 to"),
    "16 bits": (lambda p: npz(p, x=make()[0].astype(np.uint16) * 257), r"expected pixels in .* to 65535"),
    "complex": (lambda p: npz(p, x=make()[0] * 1j), r"expected numbers, got complex128"),
    "text labels": (lambda p: npz(p, y=np.array(["a"] * 60)), r"labels: expected integers, got <U1"),
    "object arrays": (lambda p: npz(p, y=np.array([{}] * 60)), r"bad\.npz: refused: .*pickled objects"),
    "other keys": (lambda p: npz(p, x=1, inputs=2, y_train=3) and _renamed(p), r"x and y; found inputs, y_train"),
    "not a zip": (lambda p: file(p, "a.npz", pickle.dumps([1])), r"a\.npz: damaged, or not an \.npz"),
    "truncated npz": (lambda p: file(p, "a.npz", npz(p).read_bytes()[:500]), r"a\.npz: damaged, or not"),
    "truncated array": (truncated_npz, r"bad\.npz: damaged: "),
    "damaged npz": (lambda p: _flipped(npz(p)), r"bad\.npz: damaged: "),
    "truncated idx": (lambda p: idx(p, lambda b: b[:-1]), r"idx3-ubyte: truncated .*expected \(60, 8, 6\)"),
    "idx with a tail": (lambda p: idx(p, lambda b: b + b"x"), r"idx3-ubyte: truncated or damaged"),
    "idx header only": (lambda p: idx(p, lambda b: b[:9]), r"idx3-ubyte: truncated or damaged"),
    "idx of floats": (lambda p: idx(p, lambda b: b"\0\0\x0d\3" + b[4:]), r"not an IDX file .*starts 00000d03"),
    "truncated gz": (lambda p: idx(p, lambda b: b[:-50], ".gz"), r"ubyte\.gz: truncated or damaged"),
    "not a gz": (lambda p: idx(p, lambda b: b"text", ".gz"), r"ubyte\.gz: truncated or damaged"),
    "idx without labels": (lambda p: idx_without(p, "labels"), r"IDX file of the train labels is missing"),
    "idx without images": (lambda p: idx_without(p, "images"), r"IDX file of the train images is missing"),
    "cifar incomplete": (lambda p: cifar(p, data_batch_4=None), r"the file data_batch_4 is missing"),
    "cifar without meta": (lambda p: cifar(p, **{"batches.meta": None}), r"with a file batches\.meta or meta"),
    "cifar without names": (lambda p: cifar(p, **{"batches.meta": as_python2({})}), r"a list label_names, got None"),
    "cifar cut": (lambda p: cifar(p, data_batch_2=as_python2({b"labels": [1]})[:-3]), r"data_batch_2: not a CIFAR"),
    "cifar other": (lambda p: cifar(p, data_batch_2=as_python2({b"labels": [1]})), r"expected data of shape"),
    "cifar of floats": (
        lambda p: cifar(p, test_batch=as_python3({b"labels": [1], b"data": np.zeros((1, 3072))}, 2)),
        r"test_batch: not a CIFAR batch.*expected bytes, got",
    ),
    "cifar of another width": (
        lambda p: cifar(p, test_batch=as_python2({b"labels": [1], b"data": np.zeros((1, 99), np.uint8)})),
        r"test: expected data of shape",
    ),
    "tar of something": (lambda p: _tar_of_text(p), r"expected CIFAR's python batches"),
    "cut tar": (cut_tar, r"c\.tar\.gz: truncated or damaged"),
    "no tar": (lambda p: file(p, "c.tar.gz"), r"c\.tar\.gz: truncated or damaged"),
}


def _renamed(tmp_path: Path) -> Path:
    np.savez(tmp_path / "other.npz", inputs=1, y_train=2)
    return tmp_path / "other.npz"


def _flipped(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[1000] ^= 255
    return file(path.parent, path.name, bytes(data))


def _tar_of_text(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        archive.add(file(tmp_path, "notes.txt"), "notes.txt")
    return tmp_path / "c.tar.gz"


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_clear_line(kind: str, tmp_path: Path) -> None:
    build, message = BAD[kind]
    source = build(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: expected a whole number of at least 1, got 0"),
        ({"size": 8.5}, "size: expected a whole number of at least 1, got 8.5"),
        ({"limit": 1}, "limit: expected a whole number of at least 2, got 1"),
        ({"limit": "abc"}, "limit: expected a whole number of at least 2, got 'abc'"),
        ({"seed": -1}, "seed: expected a whole number of at least 0, got -1"),
        ({"seed": None}, "seed: expected a whole number of at least 0, got None"),
        ({"validation": "x"}, "validation: expected a share between 0 and 1, got 'x'"),
        ({"validation": 0.0}, "validation: expected a share between 0 and 1"),
        ({"validation": 1.0}, "validation: expected a share between 0 and 1"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("digits", **options)


def test_a_limit_below_the_number_of_classes() -> None:
    with pytest.raises(DataError, match=r"digits limited to 6 images: too few images: class '\d' has 0"):
        load("digits", limit=6)


# --- pickles that want code ----------------------------------------------------------------------


class Call:
    """A pickle of this calls a function when it is loaded."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.mkdir, ("made",)), (eval, ("__import__('os').mkdir('made')",)), (np.load, ("made",)), (getattr, ("a", "b"))],
)
def test_a_pickle_that_wants_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, arguments: tuple[str, ...], protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps({"data": Call(function, *arguments), "labels": [1]}, protocol)
    source = cifar(tmp_path, data_batch_1=evil)
    with pytest.raises(DataError, match=r"data_batch_1: refused: it asks for \w+\.\w+, which is not part"):
        load(source)
    assert not (tmp_path / "made").exists()
    if function is os.mkdir:
        pickle.loads(evil)  # the attack itself works
        assert (tmp_path / "made").exists()


@pytest.mark.parametrize("name", [b"numpy\ndtype.type.mro", b"numpy.core.multiarray\nfromfile", b"os\nsystem"])
def test_names_near_the_known_ones_are_refused(name: bytes) -> None:
    with pytest.raises(DataError, match="refused"):
        unpickle("here", b"\x80\x04c" + name + b"\n.")


@given(st.binary(max_size=200), st.integers(0, 400))
def test_damaged_pickles_give_a_data_error_or_a_batch(noise: bytes, place: int) -> None:
    whole = as_python2({b"labels": [1, 2], b"data": np.zeros((2, 6), np.uint8)})
    place %= len(whole)
    with contextlib.suppress(DataError):
        assert isinstance(unpickle("here", whole[:place] + noise + whole[place + len(noise) :]), dict)

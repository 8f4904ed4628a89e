from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nas.errors import ConfigError
from nas.torch import loader
from nas.torch.data import Split
from nas.torch.loader import Augment, Batches, place

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def make(count: int = 50, channels: int = 3, height: int = 12, width: int = 10) -> Split:
    """Random pixels; labels number the images, so that a batch says where it came from."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count))


def batches(split: Split, batch: int = 16, **options: object) -> Batches:
    channels = split.images.shape[1]
    return Batches(split, mean=MEAN[:channels], std=STD[:channels], batch=batch, **options)


def normalised(images: Tensor) -> Tensor:
    channels = images.shape[1]
    mean, std = (torch.tensor(v[:channels]).view(1, -1, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def epoch(source: Batches, number: int = 0) -> tuple[Tensor, Tensor]:
    x, y = zip(*source.epoch(number), strict=True)
    return torch.cat(x), torch.cat(y)


def test_evaluation_yields_every_image_in_order_normalised() -> None:
    split = make(50)
    source = batches(split)
    sizes = [len(y) for _, y in source.epoch(0)]
    assert sizes == [16, 16, 16, 2]
    assert len(source) == 4
    x, y = epoch(source)
    torch.testing.assert_close(x, normalised(split.images))
    assert torch.equal(y, split.labels)
    assert x.dtype == torch.float32


@pytest.mark.parametrize(("count", "batch", "expected"), [(50, 16, [16] * 3), (48, 16, [16] * 3), (5, 16, [5])])
def test_training_drops_the_last_incomplete_batch_but_never_the_only_one(
    count: int, batch: int, expected: list[int]
) -> None:
    source = batches(make(count), batch, augment=Augment(1, False))
    assert [len(y) for _, y in source.epoch(0)] == expected
    assert len(source) == len(expected)


def test_training_without_crop_and_flip_is_a_permutation_of_the_images() -> None:
    split = make(48)
    x, y = epoch(batches(split, augment=Augment(0, False)))
    assert sorted(y.tolist()) == list(range(48))
    assert y.tolist() != list(range(48))
    torch.testing.assert_close(x, normalised(split.images[y]))


def test_crop_shifts_by_up_to_the_padding_over_black() -> None:
    split, pad = make(400), 2
    x, y = epoch(batches(split, augment=Augment(pad, False)))
    padded = functional.pad(split.images, (pad,) * 4)
    windows = {
        (top, left): normalised(padded[:, :, top : top + 12, left : left + 10])
        for top in range(2 * pad + 1)
        for left in range(2 * pad + 1)
    }
    found: Counter[tuple[int, int]] = Counter()
    for image, label in zip(x, y.tolist(), strict=True):
        places = [place for place, all_ in windows.items() if torch.allclose(all_[label], image, atol=1e-5)]
        assert len(places) == 1
        found[places[0]] += 1
    assert set(found) == set(windows)  # 400 images over 25 places: a missing one has chance 2e-6


def test_flip_mirrors_half_of_the_images() -> None:
    split = make(320)
    x, y = epoch(batches(split, augment=Augment(0, True)))
    plain = normalised(split.images[y])
    same = (x - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    mirrored = (x - plain.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((same ^ mirrored).all())
    assert 100 < int(mirrored.sum()) < 220


def test_default_augmentation_crops_an_eighth_and_flips_only_colour() -> None:
    assert Augment.default((3, 32, 32)) == Augment(crop=4, flip=True)
    assert Augment.default((1, 28, 28)) == Augment(crop=4, flip=False)
    assert Augment.default((1, 8, 8)) == Augment(crop=1, flip=False)
    assert Augment.default((3, 4, 90)) == Augment(crop=1, flip=True)


def test_an_epoch_depends_on_seed_and_number_alone() -> None:
    augment = Augment(2, True)
    split = make(48)
    whole = batches(split, augment=augment, seed=3)
    epochs = [epoch(whole, number) for number in range(3)]
    torch.manual_seed(99)
    continued = epoch(batches(split, augment=augment, seed=3), 2)
    assert torch.equal(epochs[2][0], continued[0])
    assert torch.equal(epochs[2][1], continued[1])
    orders = [y.tolist() for _, y in epochs] + [epoch(batches(split, augment=augment, seed=4), 0)[1].tolist()]
    assert len({tuple(order) for order in orders}) == 4


def test_epochs_may_be_read_side_by_side_and_leave_the_global_generator_alone() -> None:
    source = batches(make(48), augment=Augment(2, True))
    expected = [epoch(source, 0)[1], epoch(source, 1)[1]]
    before = torch.get_rng_state()
    pairs = list(zip(source.epoch(0), source.epoch(1), strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    for side in (0, 1):
        assert torch.equal(torch.cat([pair[side][1] for pair in pairs]), expected[side])


@pytest.mark.parametrize("size", [(6, 5), (24, 20), (12, 16)])
def test_resolution_is_an_antialiased_bilinear_resize(size: tuple[int, int]) -> None:
    split = make(20)
    x, _ = epoch(batches(split, resolution=size))
    exact = functional.interpolate(split.images.float(), size, mode="bilinear", antialias=True)
    assert x.shape == (20, 3, *size)
    # to the byte below or above
    assert float((x - normalised(exact)).abs().max()) <= 1.5 / 255 / min(STD)


@pytest.mark.parametrize("augment", [None, Augment(2, True)])
def test_resizing_once_by_chunks_or_batch_by_batch_gives_the_same(
    augment: Augment | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = make(48)

    def result() -> tuple[Tensor, torch.Size]:
        source = batches(split, resolution=(18, 20), augment=augment)
        return epoch(source)[0], source.images.shape

    once, shape = result()
    assert shape[2:] == (18, 20)
    monkeypatch.setattr(loader, "CHUNK_BYTES", 5_000)
    chunked, shape = result()
    assert shape[2:] == (18, 20)
    monkeypatch.setattr(loader, "RESIZED_BYTES", 0)
    late, shape = result()
    assert shape[2:] == (12, 10)
    assert torch.equal(once, chunked)
    assert torch.equal(once, late)


def test_a_split_is_always_shrunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "RESIZED_BYTES", 0)
    assert batches(make(20), resolution=(6, 5)).images.shape[2:] == (6, 5)


def test_padding_grows_with_the_resolution() -> None:
    """White images show the black border that a crop brings in: twice as wide at twice the size."""
    split = Split(torch.full((300, 1, 8, 8), 255, dtype=torch.uint8), torch.arange(300))
    widest = []
    for size in (8, 16):
        x, _ = epoch(batches(split, resolution=(size, size), augment=Augment(1, False)))
        black = (x < 0).all(dim=2).squeeze(1)  # columns
        widest.append(int(black.sum(dim=1).max()))
    assert widest == [1, 2]


def test_a_placed_split_is_used_as_it_is() -> None:
    split = make(20)
    placed = place(split, "cpu", (24, 20))
    source = batches(placed, resolution=(24, 20))
    assert source.images.data_ptr() == placed.images.data_ptr()
    assert torch.equal(epoch(source)[0], epoch(batches(split, resolution=(24, 20)))[0])
    assert place(split, "cpu").images.data_ptr() == split.images.data_ptr()


@pytest.mark.parametrize("augment", [None, Augment(1, True)])
def test_memory_format_and_dtype(augment: Augment | None) -> None:
    split = make(20)
    plain = batches(split, augment=augment)
    special = batches(split, augment=augment, channels_last=True, dtype=torch.bfloat16)
    for (x, _), (z, _) in zip(plain.epoch(0), special.epoch(0), strict=True):
        assert x.is_contiguous()
        assert z.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x.to(torch.bfloat16), z)


def test_the_bytes_of_the_split_stay_untouched() -> None:
    split = make(40)
    before = split.images.clone()
    for augment in (None, Augment(2, True)):
        epoch(batches(split, augment=augment))
    assert torch.equal(split.images, before)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_work_per_batch_does_not_depend_on_its_size() -> None:
    counts = []
    for batch in (4, 64):
        source = batches(make(256), batch, augment=Augment(2, True))
        with Operations() as operations:
            for _ in source.epoch(0):
                pass
        counts.append(operations.count / len(source))
    assert counts[1] < 40
    assert counts[1] <= 2 * counts[0]  # what is drawn once per epoch weighs more on few batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: expected at least 1"),
        ({"mean": MEAN[:2]}, "expected 3 values"),
        ({"std": (0.1, 0.0, 0.1)}, "std > 0"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Batches(make(20), **({"mean": MEAN, "std": STD, "batch": 4} | options))
    with pytest.raises(ConfigError, match="without images"):
        batches(make(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_everything_stays_there() -> None:
    split = make(64)
    augment = Augment(2, True)
    source = batches(split, device="cuda", resolution=(24, 20), augment=augment, channels_last=True)
    first, again = epoch(source, 1), epoch(source, 1)
    assert first[0].is_cuda
    assert first[1].is_cuda
    assert torch.equal(first[0], again[0])
    x, _ = epoch(batches(split, device="cuda", resolution=(24, 20)))
    y, _ = epoch(batches(split, resolution=(24, 20)))
    assert float((x.cpu() - y).abs().max()) <= 1.01 / 255 / min(STD)

"""Data sets that are arrays in a file: scikit-learn's digits, .npz archives, MNIST's IDX files."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError
from nas.torch.data.parts import Bytes, Part, Raw, first_line

Array = NDArray[Any]
NPZ_KEYS = {
    "train": (("x_train", "y_train"), ("x", "y")),
    "validation": (("x_val", "y_val"), ("x_valid", "y_valid")),
    "test": (("x_test", "y_test"),),
}
IDX_NAME = re.compile(  # EMNIST puts the name of one of its sets before
    r"(?P<set>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)


def read_digits() -> Raw:
    """Read scikit-learn's digits: 1,797 grey images of 8 x 8, ten classes (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return from_arrays("digits", {"train": (digits.images / 16, digits.target)})


def read_npz(path: Path) -> Raw:
    """Read x_train, y_train[, x_test, y_test][, x_val, y_val], or x, y. Pickled objects are refused."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: damaged, or not an .npz archive; write it with numpy.savez_compressed")
    parts = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for part, choices in NPZ_KEYS.items():
                for keys in choices:
                    if part not in parts and set(keys) <= set(archive):
                        parts[part] = archive[keys[0]], archive[keys[1]]
            found = ", ".join(archive) or "nothing"
    except (ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            reason = "refused: it holds pickled objects, which can run code; save plain arrays of numbers"
        else:
            reason = f"damaged: {first_line(error)}"
        raise DataError(f"{path}: {reason}") from error
    if "train" not in parts:
        raise DataError(f"{path}: expected arrays x_train and y_train, or x and y; found {found}")
    return from_arrays(str(path), parts)


def is_idx(folder: Path) -> bool:
    """Whether a folder holds files that are named like MNIST's."""
    return any(IDX_NAME.fullmatch(path.name) for path in folder.iterdir())


def read_idx(path: Path) -> Raw:
    """Read MNIST's four files (or the two of training) from their folder, or given one of them."""
    folder = path if path.is_dir() else path.parent
    matches = [match for file in sorted(folder.iterdir()) if (match := IDX_NAME.fullmatch(file.name))]
    sets = sorted({match["set"] for match in matches})
    if path.is_dir():
        if len(sets) > 1:
            names = ", ".join(map(repr, sets))
            raise DataError(f"{path}: holds several data sets ({names}); give the path of one file")
        chosen = sets[0]
    else:
        chosen = next(match["set"] for match in matches if match.string == path.name)
    files = {
        ("train" if match["part"] == "train" else "test", match["kind"]): folder / match.string
        for match in matches
        if match["set"] == chosen
    }
    parts = {}
    for part in ("train", "test"):
        missing = [kind for kind in ("images", "labels") if (part, kind) not in files]
        if len(missing) == 1 or (missing and part == "train"):
            raise DataError(f"{path}: the IDX file of the {part} {missing[0]} is missing in {folder}")
        if not missing:
            parts[part] = _read_idx_file(files[part, "images"], 3), _read_idx_file(files[part, "labels"], 1)
    return from_arrays(str(path), parts)


def _read_idx_file(path: Path, dimensions: int) -> Bytes:
    """Read one file: two zeros, the type (8: bytes), the number of dimensions, each in 4 bytes, the data."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if magic != bytes((0, 0, 8, dimensions)):
                raise DataError(f"{path}: not an IDX file of {dimensions}-d bytes (it starts {magic.hex()})")
            sides = file.read(4 * dimensions)
            shape = struct.unpack(f">{dimensions}I", sides) if len(sides) == 4 * dimensions else ()
            content = file.read(math.prod(shape) + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged: {first_line(error)}; fetch it again") from error
    if not shape or len(content) != math.prod(shape):
        raise DataError(f"{path}: truncated or damaged: expected {shape} bytes by its header; fetch it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def from_arrays(where: str, parts: Mapping[str, tuple[Array, Array]], class_names: Sequence[str] | None = None) -> Raw:
    """Check images and labels as they come, and bring them to bytes (N, C, H, W) and classes 0..K-1.

    Without `class_names`, the classes are the distinct training labels in order: 1..26 is as good as 0..25.
    """
    images, labels = {}, {}
    for name, (x, y) in parts.items():
        images[name] = _channels_first(f"{where}: {name} images", x)
        labels[name] = _integers(f"{where}: {name} labels", y, len(x))
    expected = images["train"].shape[1:]
    for name, x in images.items():
        if x.shape[1:] != expected:
            raise DataError(f"{where}: {name} images: expected {expected} as in training, got {x.shape[1:]}")
    known = np.unique(labels["train"]) if class_names is None else np.arange(len(class_names))
    for name, y in labels.items():
        if not np.isin(y, known).all():
            strange = y[~np.isin(y, known)][0]
            span = f"a class of the training labels, {known[0]} to {known[-1]}"
            raise DataError(f"{where}: {name} labels out of range: expected {span}, got {strange}")
    ready = dict(zip(images, _to_bytes(where, list(images.values())), strict=True))
    names = tuple(class_names) if class_names is not None else tuple(map(str, known))
    found = {name: Part(ready[name], np.searchsorted(known, y)) for name, y in labels.items()}
    return Raw(names, found["train"], found.get("validation"), found.get("test"))


def _channels_first(where: str, x: Array) -> Array:
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = np.moveaxis(x, 3, 1)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        expected = "(N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels"
        raise DataError(f"{where}: expected {expected}, got {x.shape}")
    if x.size == 0:
        raise DataError(f"{where}: expected at least one image and one pixel, got {x.shape}")
    return x


def _integers(where: str, y: Array, count: int) -> NDArray[np.int64]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(f"{where}: expected one integer per image, shape ({count},), got {y.shape}")
    if y.dtype.kind not in "iu":
        raise DataError(f"{where}: expected integers, got {y.dtype}; number the classes from 0")
    if len(y) != count:
        raise DataError(f"{where}: expected as many as images, {count}, got {len(y)}")
    y = y.astype(np.int64)
    if y.min() < 0:
        raise DataError(f"{where} out of range: expected 0 or more, got {y.min()}; remove unlabelled images")
    return y


def _to_bytes(where: str, images: list[Array]) -> list[Bytes]:
    """Scale 0..1 or 0..255 to bytes, by what all parts together span."""
    for x in images:
        if x.dtype.kind not in "biuf":
            raise DataError(f"{where}: images: expected numbers, got {x.dtype}")
    low, high = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: images hold NaN or infinite pixels; remove or repair them")
    if low < 0 or high > 255:
        raise DataError(f"{where}: images: expected pixels in 0..1 or 0..255, got {low:g} to {high:g}")
    scale = 255 if high <= 1 else 1
    return [_scaled(x, scale) for x in images]


def _scaled(x: Array, scale: int) -> Bytes:
    if x.dtype == np.uint8 and scale == 1:
        return np.ascontiguousarray(x)
    result = np.empty(x.shape, np.uint8)
    for source, target in zip(x, result, strict=True):  # one by one: no second copy of everything as floats
        target[...] = np.rint(source * np.float64(scale))
    return result

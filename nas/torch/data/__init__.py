"""Labelled images for classification: one `load` for every source, as bytes, split three ways."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.errors import ConfigError, DataError
from nas.torch.data import arrays, cifar, folder
from nas.torch.data.parts import Raw, Subset, first_line
from nas.torch.loader import resize

FORMATS = "'digits', a folder of class folders of images, .npz, MNIST's IDX files or CIFAR's python batches"
TEST_SHARE = 1 / 6
TEST_SEED = 1998  # never the user's seed: a test image must not turn up in another run's search


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64 in 0..classes-1; not to be written to, they may be shared."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays, which pickle can hand over without a copy: Ray's workers then share one copy per machine.
        return _of_arrays, (self.images.cpu().numpy(), self.labels.cpu().numpy())


def _of_arrays(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Split:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor does anybody write
        return Split(torch.from_numpy(images), torch.from_numpy(labels))


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: `train` fits weights, `validation` guides a search, `test` is for the final report alone.

    `note` says what was done to the images on reading them (resized, turned to RGB), or is empty.
    """

    source: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    note: str = ""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.class_names)

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the training images, per channel, in 0..1."""
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Of the training images, per channel, in 0..1; 1 for a channel that is constant."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        levels = torch.arange(256, dtype=torch.float64) / 255
        means, stds = [], []
        for channel in self.train.images.unbind(1):
            share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
            means.append(float(share @ levels))
            stds.append(float(share @ (levels - means[-1]) ** 2) ** 0.5 or 1.0)
        return tuple(means), tuple(stds)

    def describe(self) -> str:
        """One line: shape, classes, sizes of the splits, and the note."""
        shape = "x".join(map(str, self.input_shape))
        splits = ((name, len(getattr(self, name))) for name in ("train", "validation", "test"))
        sizes = ", ".join(f"{count:,} {name}" for name, count in splits)
        note = f"; {self.note}" if self.note else ""
        return f"{self.source}: {self.classes} classes, images of {shape}: {sizes}{note}"


def load(
    source: str | Path,
    *,
    size: int | None = None,
    validation: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> Data:
    """Read a data set and split it; the same arguments give the same splits, whatever the file system.

    A source's own test and validation sets are kept. If it has no test set, a sixth of each class is
    held out, the same whatever the seed; if it has no validation set, a share of each class of the rest.

    Arguments:
        source: 'digits' (scikit-learn's, 1,797 images of 8 x 8) or a path to: a folder of class folders
            of images, perhaps under train/, val/ and test/; an .npz with x_train, y_train and so on;
            MNIST's IDX files; CIFAR's python batches (a folder or the .tar.gz).
        size: height and width in pixels to resize to. By default arrays keep theirs, and folders get the
            median size of their images, at most 224.
        validation: share of the images left after the test set.
        seed: of the validation split and of `limit`.
        limit: training and validation images to keep, over all classes in proportion.

    Raises DataError if the source cannot be read or learned from, ConfigError on a wrong option.
    """
    for name, value, least in (("size", size, 1), ("limit", limit, 2), ("seed", seed, 0)):
        if (value is None and name != "seed") or (isinstance(value, Integral) and value is not True and value >= least):
            continue
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    if not isinstance(validation, int | float) or not 0 < validation < 1:
        raise ConfigError(f"validation: expected a share between 0 and 1, got {validation!r}")
    try:
        raw = _read(source, size)
    except OSError as error:
        raise DataError(f"cannot read {source}: {first_line(error)}") from error
    if len(raw.class_names) < 2:
        raise DataError(f"{source}: one class only ({raw.class_names[0]!r}); expected at least two")

    rng = np.random.default_rng(seed)
    train = Subset.whole(raw.train)
    train.check_counts(str(source), raw.class_names, 1 + (raw.test is None) + (raw.validation is None))
    if raw.test is None:
        train, test = train.hold_out(TEST_SHARE, np.random.default_rng(TEST_SEED))
    else:
        test = Subset.whole(raw.test)
    if raw.validation is None:
        train, held = train.hold_out(validation, rng)
    else:
        held = Subset.whole(raw.validation)
    total = len(train) + len(held)
    if limit is not None and limit < total:
        share = max(1, round(limit * len(held) / total))
        train, held = train.thin(limit - share, rng), held.thin(share, rng)
        train.check_counts(f"{source} limited to {limit} images", raw.class_names, 1)

    splits = {"train": _decode(train), "validation": _decode(held), "test": _decode(test)}
    note = raw.note
    height, width = splits["train"].images.shape[2:]
    if size is not None and (height, width) != (size, size):  # arrays: a folder has done so while decoding
        splits = {name: _resized(split, size) for name, split in splits.items()}
        note = f"images of {height}x{width} resized to {size}x{size}"
    return Data(str(source), class_names=raw.class_names, note=note, **splits)


def _read(source: str | Path, size: int | None) -> Raw:
    if source == "digits":
        return arrays.read_digits()
    path = Path(source).expanduser()
    name = path.name.lower()
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; expected {FORMATS}; 'digits' needs no file")
    if path.is_dir():
        if arrays.is_idx(path):
            return arrays.read_idx(path)
        return cifar.read_cifar(path) if cifar.is_cifar(path) else folder.read_folder(path, size)
    if name.endswith(".npz"):
        return arrays.read_npz(path)
    if arrays.IDX_NAME.fullmatch(path.name):
        return arrays.read_idx(path)
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return cifar.read_cifar(path)
    raise DataError(f"{path}: unknown format; expected {FORMATS}")


def _decode(subset: Subset) -> Split:
    images = torch.from_numpy(subset.part.images[subset.indices])
    return Split(images, torch.from_numpy(subset.labels))


def _resized(split: Split, size: int) -> Split:
    chunks = [resize(chunk, (size, size)) for chunk in torch.split(split.images, 1024)]
    return Split(torch.cat(chunks), split.labels)

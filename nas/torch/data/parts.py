"""What every reader returns, and how images are held out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError

Bytes = NDArray[np.uint8]
Indices = NDArray[np.intp]


class Images(Protocol):
    """An array (N, C, H, W), or files that are decoded when they are asked for."""

    def __getitem__(self, indices: Indices, /) -> Bytes:
        """Return the images at `indices`, (len(indices), C, H, W)."""
        ...


class Part(NamedTuple):
    """The images of one folder or file, and their labels (N,) in 0..classes-1."""

    images: Images
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Raw:
    """A source as it was found: which parts it has, and what reading did to the images."""

    class_names: tuple[str, ...]
    train: Part
    validation: Part | None = None
    test: Part | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of a part, in the part's order."""

    part: Part
    indices: Indices

    @classmethod
    def whole(cls, part: Part) -> Subset:
        """All of a part."""
        return cls(part, np.arange(len(part.labels)))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of these images."""
        return self.part.labels[self.indices]

    def hold_out(self, share: float, rng: np.random.Generator) -> tuple[Subset, Subset]:
        """Split into (rest, held out): the share of each class, at least one image and never all of them."""
        order = self._by_class(rng)
        labels = self.labels[order]
        counts = np.bincount(labels)
        quota = np.clip(np.rint(counts * share), 1, np.maximum(counts - 1, 1))
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[labels]
        held = rank < quota[labels]
        return self._pick(order[~held]), self._pick(order[held])

    def thin(self, count: int, rng: np.random.Generator) -> Subset:
        """Keep `count` images, over the classes in proportion: every n-th of a list sorted by class."""
        places = (2 * np.arange(count) + 1) * len(self) // (2 * count)
        return self._pick(self._by_class(rng)[places])

    def check_counts(self, where: str, class_names: Sequence[str], least: int) -> None:
        """Raise DataError unless each class has at least so many images."""
        counts = np.bincount(self.labels, minlength=len(class_names))
        rarest = int(counts.argmin())
        if counts[rarest] < least:
            raise DataError(
                f"{where}: too few images: class {class_names[rarest]!r} has {counts[rarest]}, and training "
                f"and the sets held out need at least {least} of each class"
            )

    def _by_class(self, rng: np.random.Generator) -> Indices:
        order = rng.permutation(len(self))
        return order[np.argsort(self.labels[order], kind="stable")]

    def _pick(self, positions: Indices) -> Subset:
        return Subset(self.part, np.sort(self.indices[positions]))


def first_line(error: BaseException) -> str:
    """What an error from elsewhere says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]

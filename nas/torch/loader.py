"""Mini-batches cut from a data set that lives on the device: no loader processes, no copy per batch.

The images stay there as bytes. A batch is one gather (which crops and flips), one cast and one
normalisation, so that even on a CPU feeding a network costs a small part of its forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nas.errors import ConfigError
from nas.torch.augment import color_jitter, mix, rand_augment, resized_crop

if TYPE_CHECKING:
    from nas.torch.data import Split
    from nas.torch.recipe import Recipe

RESIZED_BYTES = 4 << 30  # a split grown beyond this is kept at its own size and resized batch by batch
CHUNK_BYTES = 64 << 20  # of output, when a whole split is resized


@dataclass(frozen=True)
class Augment:
    """Random translation and mirroring, as used for CIFAR since He et al. (2016).

    `crop` is the padding on each side, in pixels of the split's own images; at another resolution it
    is scaled, so that the same share of the picture is lost. The border is black. `Augment(0, False)`
    trains on the images as they are, shuffled. The others are as in `nas.torch.recipe.Recipe`.
    """

    crop: int
    flip: bool
    resized_crop: float = 1.0
    jitter: float = 0.0
    hue: float = 0.0
    randaugment: int = 0
    magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def default(cls, input_shape: tuple[int, int, int]) -> Augment:
        """An eighth of the shorter side; mirrored only in colour: mirrored digits and letters are wrong."""
        channels, height, width = input_shape
        return cls(crop=max(1, round(min(height, width) / 8)), flip=channels == 3)

    @classmethod
    def of(cls, recipe: Recipe, input_shape: tuple[int, int, int]) -> Augment:
        """What a recipe asks for, on images of a shape."""
        moved = cls.default(input_shape) if recipe.augment else cls(0, flip=False)
        return replace(
            moved, crop=moved.crop if recipe.resized_crop == 1 else 0, flip=moved.flip or recipe.flip,
            resized_crop=recipe.resized_crop, jitter=recipe.jitter, hue=recipe.hue,
            randaugment=recipe.randaugment, magnitude=recipe.magnitude, mixup=recipe.mixup, cutmix=recipe.cutmix,
        )  # fmt: skip


class Batches:
    """The mini-batches of a split, epoch by epoch.

    With `augment`, for training: shuffled, and the last batch is dropped if incomplete and not the only
    one. Without, for evaluation: all images in order. What an epoch yields depends on (seed, epoch,
    device type) alone, so training continued at epoch k sees what uninterrupted training would have seen.

    Arguments:
        split: images (N, C, H, W) of bytes and labels (N,).
        mean, std: of the training images, per channel, in 0..1.
        batch: images per batch.
        resolution: (height, width) of what comes out; None keeps the split's own. Bilinear, antialiased.
        channels_last: memory format of what comes out.
        dtype: of what comes out.
        classes: how many there are, for targets of mixed images.
        shard: (rank, of how many): of each training batch only that share of the images, of all batches of an
            evaluation only every so many-th.

    Raises ConfigError on an empty split, a batch below 1 or that cannot be shared out, or moments that do not fit the
    channels.
    """

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch: int,
        device: str | torch.device = "cpu",
        resolution: tuple[int, int] | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
        classes: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        count, channels, height, width = split.images.shape
        if count == 0:
            raise ConfigError("cannot make batches of a split without images")
        if batch < 1:
            raise ConfigError(f"batch: expected at least 1 image, got {batch}")
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise ConfigError(f"mean and std: expected {channels} values, std > 0, got {mean} and {std}")
        if augment is not None and (min(batch, count) % shard[1] or batch // shard[1] < 1):
            raise ConfigError(
                f"batch: {min(batch, count)} images cannot be shared by {shard[1]} workers alike; expected a multiple"
            )
        self.resolution, self.classes, self.shard = resolution or (height, width), classes, shard
        self.augment, self.batch, self.seed, self.dtype = augment, batch, seed, dtype
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        placed = place(split, self.device, self.resolution)
        self.images, self.labels = placed.images, placed.labels
        crop = augment.crop if augment else 0
        self._pad = round(crop * self.resolution[0] / height), round(crop * self.resolution[1] / width)
        moments = torch.tensor([list(mean), list(std)], device=self.device).view(2, channels, 1, 1)
        self._scale, self._shift = 1 / (255 * moments[1]), -moments[0] / moments[1]

    def __len__(self) -> int:
        """Batches per epoch."""
        count = len(self.labels)
        return max(1, count // self.batch) if self.augment else -(-count // self.batch)

    def epoch(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (x, y): x (B, C, *resolution) normalised, y (B,) int64, both on the device.

        Where images are mixed, y is (B, classes): the share of each class.
        """
        rank, world = self.shard
        if self.augment is None:
            for start in range(rank * self.batch, len(self.labels), world * self.batch):
                part = slice(start, start + self.batch)
                yield self._normalise(resize(self.images[part], self.resolution)), self.labels[part]
            return
        count = len(self.labels)
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator(self.device).manual_seed(int(state[0]))
        order = torch.randperm(count, generator=generator, device=self.device)
        top, left = (torch.randint(2 * pad + 1, (count,), generator=generator, device=self.device) for pad in self._pad)
        flip = torch.rand(count, generator=generator, device=self.device) < (0.5 if self.augment.flip else 0)
        own = np.random.SeedSequence((self.seed, epoch, 2, rank)).generate_state(1, np.uint64)
        draws = torch.Generator().manual_seed(int(own[0]))
        share = min(self.batch, count) // world
        for start in range(0, len(self) * self.batch, self.batch):
            part = slice(start + rank * share, start + (rank + 1) * share)
            images = resize(self.images.index_select(0, order[part]), self.resolution)
            x = self._normalise(self._distort(_crop(images, self._pad, top[part], left[part], flip[part]), draws))
            yield self._mixed(x, self.labels[order[part]], draws)

    def _distort(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """What is done to pixels in 0..1; bytes in, 0..255 out."""
        augment = self.augment
        if augment is None:
            return images
        is_cropped = augment.resized_crop < 1
        if not (is_cropped or augment.randaugment or augment.jitter or augment.hue):
            return images
        x = images.float().div_(255)
        if is_cropped:
            x = resized_crop(x, augment.resized_crop, draws)
        if augment.randaugment:
            x = rand_augment(x, augment.randaugment, augment.magnitude, draws)
        if augment.jitter or augment.hue:
            x = color_jitter(x, augment.jitter, draws, turn=augment.hue)
        return x.mul(255)

    def _mixed(self, x: Tensor, y: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        augment = self.augment
        if augment is None or not (augment.mixup or augment.cutmix):
            return x, y
        return mix(x, y, self.classes, mixup=augment.mixup, cutmix=augment.cutmix, generator=draws)

    def _normalise(self, images: Tensor) -> Tensor:
        x = images.float().mul_(self._scale).add_(self._shift)
        return x.to(self.dtype, memory_format=self.memory_format)


def _crop(images: Tensor, pad: tuple[int, int], top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Cut image i of the padded batch at (top[i], left[i]), mirrored where flip[i], in one gather."""
    count, channels, height, width = images.shape
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    index = rows[:, :, None] * (width + 2 * pad[1]) + columns[:, None, :]
    padded = functional.pad(images, (pad[1], pad[1], pad[0], pad[0]))
    pixels = padded.flatten(2).gather(2, index.view(count, 1, -1).expand(-1, channels, -1))
    return pixels.view(images.shape)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bytes to bytes, bilinear; antialiasing matters only when shrinking."""
    if images.shape[2:] == size:
        return images
    on_cpu = images.device.type == "cpu"  # where torch resizes bytes directly, three times faster
    pixels = images if on_cpu else images.float()
    resized = functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    return resized if on_cpu else resized.round_().clamp_(0, 255).to(torch.uint8)


def place(split: Split, device: str | torch.device, resolution: tuple[int, int] | None = None) -> Split:
    """The split on the device, resized once and for all unless that takes too much memory.

    `Batches` does this itself; a caller that makes many of them (one per trial) places each split once
    per resolution and hands that over. Then `Augment.crop` counts pixels of the placed images.
    """
    count, channels, height, width = split.images.shape
    size = resolution or (height, width)
    bytes_each = channels * size[0] * size[1]
    if size == (height, width) or count * bytes_each > max(split.images.numel(), RESIZED_BYTES):
        return replace(split, images=split.images.to(device), labels=split.labels.to(device))
    images = torch.empty((count, channels, *size), dtype=torch.uint8, device=device)
    step = max(1, CHUNK_BYTES // bytes_each)
    for start in range(0, count, step):
        part = slice(start, start + step)
        images[part] = resize(split.images[part].to(device), size)
    return replace(split, images=images, labels=split.labels.to(device))

"""A network and images on which a training takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.torch.data import Split
from nas.torch.init import initialise
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.train import fit

RECIPE = Recipe(epochs=3, batch=16, lr=0.05, warmup=0.5)


class Fixed:
    """Batches given as they are, the same in every epoch, counting how many were taken."""

    def __init__(self, *pairs: tuple[Tensor, Tensor]) -> None:
        self.pairs, self.taken = pairs, 0

    def __len__(self) -> int:
        return len(self.pairs)

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for pair in self.pairs:
            self.taken += 1
            yield pair


class Scale(nn.Module):
    """Logits that are one weight times the pixels' means, at quadrants: as little as can be trained."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * functional.adaptive_avg_pool2d(x, 2).mean(1).flatten(1)


def network(channels: int = 1, seed: int = 0, dropout: float = 0.2) -> nn.Module:
    module = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 16, 1),
        nn.GroupNorm(4, 16),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(16, 4),
    )
    initialise(module, seed)
    return module


def images(count: int, channels: int = 1, seed: int = 0) -> Split:
    """Noise with one bright quadrant, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 150, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
    for quadrant in range(4):
        row, column = 4 * (quadrant // 2), 4 * (quadrant % 2)
        pixels[labels == quadrant, :, row : row + 4, column : column + 4] += 60
    return Split(pixels, labels)


def batches(split: Split, batch: int = 16, **options: Any) -> Batches:
    channels = split.images.shape[1]
    moments = {"mean": [0.3] * channels, "std": [0.2] * channels}
    return Batches(split, **moments, batch=batch, channels_last=True, **options)


def run(module: nn.Module | None = None, recipe: Recipe = RECIPE, **options: Any) -> tuple[dict[str, float], nn.Module]:
    """Train on 64 images; what differs from the defaults is in `options`."""
    module = module or network()
    device = options.setdefault("device", "cpu")
    options.setdefault("train", batches(images(64), augment=Augment(0, False), device=device))
    options.setdefault("validation", batches(images(40, seed=1), 32, device=device))
    options.setdefault("seed", 0)
    return fit(module, options.pop("train"), options.pop("validation"), recipe, **options), module


def pair(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    (result,) = batches(images(count, seed=seed), count).epoch(0)
    return result


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, yours = one.state_dict(), other.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)

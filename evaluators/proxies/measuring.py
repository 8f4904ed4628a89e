"""Scores of architectures, by a function: nothing about them depends on what was scored before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.architecture import Architecture
from nas.errors import ConfigError, EvaluationError
from nas.ops import Shape
from nas.torch.train import own_randomness, trial_errors

from .base import Proxies
from .names import named
from .passes import Passes, Use
from .ranking import Table

BATCH = 16
"""Images, where the caller brings none."""


def measure(
    arch: Architecture, proxies: str | Iterable[str] | Proxies, *, images: Tensor | None = None,
    labels: Tensor | None = None, seed: int = 0, initialisations: int = 1, batch: int = BATCH,
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
) -> dict[str, float]:  # fmt: skip
    """Scores of one architecture, by the name of the proxy. NaN or infinite where one is not defined for it.

    Args:
        proxies: names (see `names.named`), or proxies by name.
        images: batch (N, C, H, W) of four or more, normalised; resized to what the architecture reads. By default
            `batch` of Gaussian noise.
        labels: (N,) class numbers; by default the classes in turn.
        seed: of weights and noise.
        initialisations: how many times weights are drawn; scores are averaged.
        dtype: float32, or float64 to compare with.

    Raises ConfigError for a wrong option, EvaluationError (OutOfMemory among them) where the network cannot be run.
    """
    chosen = proxies if isinstance(proxies, Mapping) else named(proxies)
    place = torch.device(device)
    if initialisations < 1:
        raise ConfigError(f"initialisations: expected at least 1, got {initialisations}")
    if images is None:
        images = noise(arch.input_shape, batch, seed)
    if labels is None:
        labels = torch.arange(len(images)) % arch.classes
    if images.dim() != 4 or images.shape[1] != arch.input_shape[0] or len(images) < 4 or len(labels) != len(images):
        raise ConfigError(
            f"images: expected four or more of {arch.input_shape[0]} channels with a label each, got the shape "
            f"{tuple(images.shape)} and {len(labels)} labels"
        )
    images, labels = images.to(place), labels.to(place)
    if images.shape[2:] != arch.input_shape[1:]:
        images = F.interpolate(images, arch.input_shape[1:], mode="bilinear", antialias=True)
    seeds = np.random.SeedSequence(seed).generate_state(initialisations)
    every = [_scored(arch, chosen, images, labels, int(one), dtype) for one in seeds]
    return {name: float(np.mean([scores[name] for scores in every])) for name in chosen}


@trial_errors
def _scored(
    arch: Architecture, proxies: Proxies, images: Tensor, labels: Tensor, seed: int, dtype: torch.dtype
) -> dict[str, float]:
    uses = frozenset[Use]().union(*[proxy.uses for proxy in proxies.values()])
    with own_randomness((seed, 0), images.device):  # a wrapped module may draw
        passes = Passes(arch, images, labels, seed=seed, uses=uses, dtype=dtype)
        return {name: proxy.score(passes) for name, proxy in proxies.items()}


def noise(shape: Shape, batch: int, seed: int) -> Tensor:
    """Gaussian images (batch, C, H, W)."""
    return torch.randn((batch, *shape), generator=torch.Generator().manual_seed(seed))


def scores(
    architectures: Iterable[Architecture], proxies: str | Iterable[str] | Proxies = "default",
    *, on_scored: Callable[[int], None] | None = None, **options: Any,
) -> Table:  # fmt: skip
    """A table of the scores of several architectures, in their order; see `measure`, which takes the same options.

    A network that cannot be run (out of memory, say) has NaN. `on_scored` is told how many are done, after each.
    """
    chosen = proxies if isinstance(proxies, Mapping) else named(proxies)
    rows: list[Mapping[str, float]] = []
    for arch in architectures:
        try:
            rows.append(measure(arch, chosen, **options))
        except EvaluationError:
            rows.append(dict.fromkeys(chosen, nan))
        if on_scored is not None:
            on_scored(len(rows))
    return {name: np.array([row[name] for row in rows], dtype=float) for name in chosen}

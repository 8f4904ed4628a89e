"""The lecture space: one layer after the other, each any of the classic blocks with its own activation and width.

Skip connections (He et al. 2015), bottlenecks, dense connections (Huang et al. 2017), inception branches (Szegedy
et al. 2014), separable convolutions (Howard et al. 2017) and inverted residuals (Sandler et al. 2018) stand beside
plain convolutions and the identity, so one search compares them on one's own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas import blocks
from nas.blocks import Chain, Conv, Head, make_divisible
from nas.choices import OneOf, Repeat
from nas.errors import SpaceError
from nas.ops import ACTIVATIONS, Shape
from nas.space import Space

from .sizes import halvings


def lecture(
    input_shape: Shape, classes: int, *, width: int | None = None, depths: Sequence[int] = (1, 2, 3),
    kernels: Sequence[int] = (3, 5), activations: Sequence[str] = ACTIVATIONS,
) -> Space:  # fmt: skip
    """Stages that halve the feature map and double the channels.

    Args:
        input_shape: (channels, height, width) of the data; sets the number of stages.
        classes: number of classes.
        width: channels of the stem; by default 16, and 32 for 112 pixels and more.
        depths: layers per stage to choose from.
        kernels, activations: what a layer chooses from.

    Raises SpaceError for a width below 8.
    """
    strides = halvings(input_shape)
    large = strides > 4
    stem = (32 if large else 16) if width is None else width
    if stem < 8:
        raise SpaceError(f"lecture: width must be at least 8, got {stem}")
    stages: dict[str, Repeat] = {}
    # A large input is halved by the stem and by every stage, a small one by every stage but the first.
    for i in range(strides - 1 if large else strides + 1):
        stride = 2 if large or i else 1
        widths = dict.fromkeys(make_divisible(stem * 2 ** (i + large) * factor) for factor in (0.5, 1, 1.5))
        block = layer(tuple(widths), kernels, activations)
        stages[f"stage{i + 1}"] = Repeat(block, OneOf(*depths), first={"stride": stride})
    template = Chain(
        stem=Conv(stem, stride=2 if large else 1, activation=OneOf(*activations)), **stages, head=Head(classes)
    )
    return Space(template, input_shape=input_shape, classes=classes, name="lecture")


def layer(widths: Sequence[int], kernels: Sequence[int], activations: Sequence[str]) -> Any:
    """Which block a layer is; all but the identity choose a width, a kernel and an activation."""
    options = {
        "width": OneOf(*widths, name="width"),
        "kernel": OneOf(*kernels, name="kernel"),
        "activation": OneOf(*activations, name="activation"),
    }
    return OneOf(
        blocks.Residual(**options),
        blocks.Bottleneck(**options),
        blocks.Dense(**options),
        blocks.Inception(**options),
        blocks.Separable(**options),
        blocks.InvertedResidual(**options),
        blocks.Conv(**options),
        blocks.Skip(),
        name="block",
    )

"""The mobile space: stages of inverted residuals as in MobileNetV2/V3, MnasNet and EfficientNet.

At 224 pixels it contains MobileNetV2 (Sandler et al. 2018) and the layers of EfficientNet-B0 (Tan & Le 2019). Smaller
images get the first stages of the same table with fewer strides, so the space spans more than a factor of ten in
FLOPs at every size.

This file is also the example of how to write a space: blocks whose fields hold an open choice (`OneOf`), repeated
(`Repeat`) and put one after the other (`Chain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.blocks import Chain, Conv, Head, InvertedResidual, Separable, Skip, SqueezeExcite, make_divisible
from nas.choices import OneOf, Repeat
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space

from .sizes import halvings

STAGES = (  # widths to choose from, depths to choose from, stride
    ((16, 24), (1, 2), 1),
    ((24, 32), (1, 2, 3), 2),
    ((32, 40, 48), (1, 2, 3, 4), 2),
    ((64, 80, 96), (1, 2, 3, 4), 2),
    ((96, 112, 128), (1, 2, 3, 4), 1),
    ((160, 192, 224), (1, 2, 3, 4), 2),
    ((256, 320), (1, 2), 1),
)


def mobile(
    input_shape: Shape, classes: int, *, width: float = 1.0, stages: int | None = None,
    kernels: Sequence[int] = (3, 5, 7), expansions: Sequence[float] = (3, 4, 6),
    activations: Sequence[str] = ("relu", "relu6", "hard_swish", "silu"),
    resolutions: Sequence[float] = (0.75, 1.0, 1.25),
) -> Space:  # fmt: skip
    """Stages of layers, each with its own block, kernel, expansion, squeeze-and-excitation and activation.

    Args:
        input_shape: (channels, height, width) of the data; sets the number of stages and strides.
        classes: number of classes.
        width: multiplies the channels of all stages.
        stages: how many stages of the table, if not as many as the input size allows.
        kernels, expansions, activations: what a layer chooses from.
        resolutions: input sizes to choose from, relative to the data's.

    Raises SpaceError for a width that is not positive, or more stages than there are.
    """
    if width <= 0:
        raise SpaceError(f"mobile: width must be positive, got {width}")
    strides = halvings(input_shape)
    stem_stride = 2 if strides > 3 else 1  # small images keep their resolution in the stem
    table = _stages(strides - (stem_stride == 2), stages)

    def scaled(widths: Sequence[int]) -> Any:
        return OneOf(*dict.fromkeys(make_divisible(w * width) for w in widths))

    # One object in two places is one decision: the stem and the head have the same activation.
    activation = OneOf(*activations, name="activation")
    block = layer(kernels, expansions, activations)
    body = {
        f"stage{i}": Repeat(block, OneOf(*depths), each={"width": scaled(widths)}, first={"stride": stride})
        for i, (widths, depths, stride) in enumerate(table, 1)
    }
    last = table[-1][0][-1]
    template = Chain(
        stem=Conv(scaled((16, 24, 32)), stride=stem_stride, activation=activation),
        **body,
        features=Conv(scaled((2 * last, 4 * last)), kernel=1, activation=activation),
        head=Head(classes),
    )
    resolution = OneOf(*resolutions)
    return Space(template, input_shape=input_shape, classes=classes, name="mobile", resolution=resolution)


def layer(kernels: Sequence[int], expansions: Sequence[float], activations: Sequence[str]) -> Any:
    """One layer: which block it is, and what that block leaves open. Options that share a choice share its name."""
    kernel = OneOf(*kernels, name="kernel")
    activation = OneOf(*activations, name="activation")
    se = OneOf(None, SqueezeExcite(of="input", activation=activation), name="se")
    return OneOf(
        InvertedResidual(kernel=kernel, expansion=OneOf(*expansions), se=se, activation=activation),
        Separable(kernel=kernel, se=se, activation=activation, residual=True, linear=True),
        Skip(),
        name="block",
    )


def _stages(strides: int, wanted: int | None) -> tuple[tuple[tuple[int, ...], tuple[int, ...], int], ...]:
    """The first stages of the table: as many as keep to `strides` halvings, or as are `wanted`, without stride then."""
    used = [sum(stride == 2 for _, _, stride in STAGES[: i + 1]) for i in range(len(STAGES))]
    count = sum(n <= strides for n in used) if wanted is None else wanted
    if not 1 <= count <= len(STAGES):
        raise SpaceError(f"mobile: stages must be 1 to {len(STAGES)}, got {count}")
    return tuple((w, d, s if n <= strides else 1) for (w, d, s), n in zip(STAGES[:count], used, strict=False))

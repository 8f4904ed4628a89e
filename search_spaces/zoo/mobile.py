"""MobileNets: V1, V2, V3 and V4."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from nas.blocks import (
    Block,
    Branches,
    Chain,
    Conv,
    FusedInvertedResidual,
    GlobalPool,
    Head,
    InvertedResidual,
    Separable,
    Skip,
    SqueezeExcite,
    Stage,
    make_divisible,
)
from nas.choices import Repeat

from .entry import Entry

Rows = tuple[tuple[Any, ...], ...]


def staged(block: Callable[..., Block], before: int, stages: Iterable[Rows]) -> dict[str, Stage]:
    """Stages from tables with a row per block, output channels first.

    A block is made by `block(channels before it, *row)`; `before`: channels before the first one.
    """
    made: dict[str, Stage] = {}
    for i, rows in enumerate(stages, 1):
        blocks = []
        for row in rows:
            blocks.append(block(before, *row))
            before = row[0]
        made[f"stage{i}"] = Stage(tuple(blocks))
    return made


def mobilenet_v1(classes: int, multiplier: float = 1.0) -> Block:
    """MobileNet (Howard et al. 2017)."""
    rows = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, stride
    stages = {
        f"stage{i}": Repeat(Separable(make_divisible(width * multiplier)), times, first={"stride": stride})
        for i, (width, times, stride) in enumerate(rows, 1)
    }
    return Chain(stem=Conv(make_divisible(32 * multiplier), stride=2), **stages, head=Head(classes))


def mobilenet_v2(classes: int, multiplier: float = 1.0) -> Block:
    """MobileNetV2 (Sandler et al. 2018); the last convolution keeps its 1,280 channels for multipliers below 1."""
    rows = (  # channels, expansion, blocks, stride
        (16, 1, 1, 1), (24, 6, 2, 2), (32, 6, 3, 2), (64, 6, 4, 2), (96, 6, 3, 1), (160, 6, 3, 2), (320, 6, 1, 1),
    )  # fmt: skip
    stages = {
        f"stage{i}": Repeat(
            InvertedResidual(make_divisible(width * multiplier), expansion=expansion), times, first={"stride": stride}
        )
        for i, (width, expansion, times, stride) in enumerate(rows, 1)
    }
    return Chain(
        stem=Conv(make_divisible(32 * multiplier), stride=2, activation="relu6"),
        **stages,
        last=Conv(make_divisible(1280 * max(1.0, multiplier)), 1, activation="relu6"),
        head=Head(classes, dropout=0.2),
    )


# -- MobileNetV3 -------------------------------------------------------------------------------------------------------

RE, HS = "relu", "hard_swish"
V3_LARGE: tuple[Rows, ...] = (  # channels, hidden channels, kernel, stride, squeeze-excitation, activation
    ((16, 16, 3, 1, False, RE),),
    ((24, 64, 3, 2, False, RE), (24, 72, 3, 1, False, RE)),
    ((40, 72, 5, 2, True, RE), (40, 120, 5, 1, True, RE), (40, 120, 5, 1, True, RE)),
    ((80, 240, 3, 2, False, HS), (80, 200, 3, 1, False, HS), *[(80, 184, 3, 1, False, HS)] * 2),
    ((112, 480, 3, 1, True, HS), (112, 672, 3, 1, True, HS)),
    ((160, 672, 5, 2, True, HS), (160, 960, 5, 1, True, HS), (160, 960, 5, 1, True, HS)),
)
V3_SMALL: tuple[Rows, ...] = (
    ((16, 16, 3, 2, True, RE),),
    ((24, 72, 3, 2, False, RE), (24, 88, 3, 1, False, RE)),
    ((40, 96, 5, 2, True, HS), (40, 240, 5, 1, True, HS), (40, 240, 5, 1, True, HS)),
    ((48, 120, 5, 1, True, HS), (48, 144, 5, 1, True, HS)),
    ((96, 288, 5, 2, True, HS), (96, 576, 5, 1, True, HS), (96, 576, 5, 1, True, HS)),
)


def mobilenet_v3(classes: int, small: bool = False, multiplier: float = 1.0) -> Block:
    """MobileNetV3 (Howard et al. 2019).

    With a multiplier, a block expands by its ratio at multiplier 1, rounded to multiples of 8; the layer before the
    classifier keeps its width.
    """
    excite = SqueezeExcite(divisor=8, gate="hard_sigmoid")

    def block(before: int, width: int, hidden: int, kernel: int, stride: int, se: bool, activation: str) -> Block:
        narrow = make_divisible(before * multiplier)
        expansion = make_divisible(narrow * hidden / before) / narrow
        width = make_divisible(width * multiplier)
        return InvertedResidual(width, kernel, stride, expansion, excite if se else None, activation)

    last, hidden = (576, 1024) if small else (960, 1280)
    return Chain(
        stem=Conv(make_divisible(16 * multiplier), stride=2, activation=HS),
        **staged(block, 16, V3_SMALL if small else V3_LARGE),
        last=Conv(make_divisible(last * multiplier), 1, activation=HS),
        head=Head(classes, hidden, activation=HS, dropout=0.2),
    )


# -- MobileNetV4 -------------------------------------------------------------------------------------------------------

V4_SMALL: tuple[Rows, ...] = (  # channels, expansion, kernel before it, kernel after it, stride
    ((96, 3, 5, 5, 2), *[(96, 2, 0, 3, 1)] * 4, (96, 4, 3, 0, 1)),
    ((128, 6, 3, 3, 2), (128, 4, 5, 5, 1), (128, 4, 0, 5, 1), (128, 3, 0, 5, 1), *[(128, 4, 0, 3, 1)] * 2),
)
V4_MEDIUM: tuple[Rows, ...] = (
    ((80, 4, 3, 5, 2), (80, 2, 3, 3, 1)),
    (
        (160, 6, 3, 5, 2), *[(160, 4, 3, 3, 1)] * 2, (160, 4, 3, 5, 1), (160, 4, 3, 3, 1), (160, 4, 3, 0, 1),
        (160, 2, 0, 0, 1), (160, 4, 3, 0, 1),
    ),
    (
        (256, 6, 5, 5, 2), (256, 4, 5, 5, 1), *[(256, 4, 3, 5, 1)] * 2, (256, 4, 0, 0, 1), (256, 4, 3, 0, 1),
        (256, 2, 3, 5, 1), (256, 4, 5, 5, 1), *[(256, 4, 0, 0, 1)] * 2, (256, 2, 5, 0, 1),
    ),
)  # fmt: skip


def universal(before: int, width: int, expansion: float, start: int, kernel: int, stride: int) -> Block:
    """The universal inverted bottleneck (Qin et al. 2024).

    Depthwise convolutions of kernel `start` before the expansion and of `kernel` after it; 0 leaves one out, the last
    one takes the stride.
    """
    body = Chain(
        start=Conv(kernel=start, stride=1 if kernel else stride, groups=None, activation="identity") if start else None,
        expand=Conv(make_divisible(before * expansion), 1),
        depthwise=Conv(kernel=kernel, stride=stride, groups=None) if kernel else None,
        project=Conv(width, 1, activation="identity"),
    )
    if stride > 1 or before != width:
        return body
    return Branches((body, Skip()), join="add", names=("body", "skip"))


def mobilenet_v4(classes: int, medium: bool = False) -> Block:
    """MobileNetV4-Conv, small or medium (Qin et al. 2024)."""
    if medium:
        early: Block = FusedInvertedResidual(48, stride=2, activation=RE)
    else:
        early = Chain(Conv(32, stride=2), Conv(32, 1), Conv(96, stride=2), Conv(64, 1))
    return Chain(
        stem=Conv(32, stride=2),
        early=early,
        **(staged(universal, 48, V4_MEDIUM) if medium else staged(universal, 64, V4_SMALL)),
        last=Conv(960, 1),
        pool=GlobalPool(),
        hidden=Conv(1280, 1),
        head=Head(classes),
    )


MODELS = {
    "mobilenet_v1": Entry(mobilenet_v1),
    **{f"mobilenet_v1_{m:03d}": Entry(partial(mobilenet_v1, multiplier=m / 100)) for m in (25, 50, 75)},
    "mobilenet_v2": Entry(mobilenet_v2),
    **{f"mobilenet_v2_{m:03d}": Entry(partial(mobilenet_v2, multiplier=m / 100)) for m in (35, 50, 75, 130, 140)},
    "mobilenet_v3_large": Entry(mobilenet_v3),
    "mobilenet_v3_large_075": Entry(partial(mobilenet_v3, multiplier=0.75)),
    "mobilenet_v3_small": Entry(partial(mobilenet_v3, small=True)),
    "mobilenet_v3_small_075": Entry(partial(mobilenet_v3, small=True, multiplier=0.75)),
    "mobilenet_v4_conv_small": Entry(mobilenet_v4),
    "mobilenet_v4_conv_medium": Entry(partial(mobilenet_v4, medium=True), 256),
}

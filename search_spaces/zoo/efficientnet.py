"""EfficientNet: B0, what compound scaling makes of it, TinyNet, and EfficientNetV2."""

from __future__ import annotations

from functools import partial

from nas.architecture import Architecture
from nas.blocks import (
    Block,
    Chain,
    Conv,
    FusedInvertedResidual,
    Head,
    InvertedResidual,
    SqueezeExcite,
    make_divisible,
)
from nas.choices import Repeat

from .entry import Entry

B0 = (  # channels, kernel, expansion, blocks, stride
    (16, 3, 1, 1, 1), (24, 3, 6, 2, 2), (40, 5, 6, 2, 2), (80, 3, 6, 3, 2), (112, 5, 6, 3, 1), (192, 5, 6, 4, 2),
    (320, 3, 6, 1, 1),
)  # fmt: skip
SCALING = {  # width, depth, resolution, dropout: rounded by hand in the paper's released models, not powers
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
    "b8": (2.2, 3.6, 672, 0.5),
}
EXCITE = SqueezeExcite(of="input", activation="silu")


def _mbconv(width: int, kernel: int, expansion: float, times: int, stride: int) -> Repeat:
    block = InvertedResidual(width, kernel, expansion=expansion, se=EXCITE, activation="silu")
    return Repeat(block, times, first={"stride": stride})


def efficientnet_b0(classes: int, dropout: float = 0.2) -> Block:
    """EfficientNet-B0 (Tan & Le 2019), the network that a search found and compound scaling starts from."""
    return Chain(
        stem=Conv(32, stride=2, activation="silu"),
        **{f"stage{i}": _mbconv(*row) for i, row in enumerate(B0, 1)},
        last=Conv(1280, 1, activation="silu"),
        head=Head(classes, dropout=dropout),
    )


def efficientnet(classes: int, width: float, depth: float, dropout: float) -> Block:
    """EfficientNet-B1 to B8: B0 scaled."""
    base = Architecture(efficientnet_b0(classes, dropout), (3, 224, 224), classes)
    return base.scale(width=width, depth=depth).body


def tinynet(classes: int, width: float, depth: float) -> Block:
    """TinyNet (Han et al. 2020): B0 shrunk; the stem stays, the last layer never has less than 1,280 channels."""
    rows = [(make_divisible(w * width), k, e, max(1, round(times * depth)), s) for w, k, e, times, s in B0]
    return Chain(
        stem=Conv(32, stride=2, activation="silu"),
        **{f"stage{i}": _mbconv(*row) for i, row in enumerate(rows, 1)},
        last=Conv(1280, 1, activation="silu"),
        head=Head(classes, dropout=0.2),
    )


V2Rows = tuple[tuple[int, int, int, int], ...]  # channels, expansion, blocks, stride
V2: dict[str, tuple[int, float, V2Rows, V2Rows]] = {  # resolution, dropout, fused stages, stages
    "s": (
        384, 0.2,
        ((24, 1, 2, 1), (48, 4, 4, 2), (64, 4, 4, 2)),
        ((128, 4, 6, 2), (160, 6, 9, 1), (256, 6, 15, 2)),
    ),
    "m": (
        480, 0.3,
        ((24, 1, 3, 1), (48, 4, 5, 2), (80, 4, 5, 2)),
        ((160, 4, 7, 2), (176, 6, 14, 1), (304, 6, 18, 2), (512, 6, 5, 1)),
    ),
    "l": (
        480, 0.4,
        ((32, 1, 4, 1), (64, 4, 7, 2), (96, 4, 7, 2)),
        ((192, 4, 10, 2), (224, 6, 19, 1), (384, 6, 25, 2), (640, 6, 7, 1)),
    ),
}  # fmt: skip


def efficientnet_v2(classes: int, fused: V2Rows, rows: V2Rows, dropout: float) -> Block:
    """EfficientNetV2 (Tan & Le 2021): early stages expand by a full 3x3 convolution."""
    stages = {
        f"stage{i}": Repeat(FusedInvertedResidual(width, expansion=expansion), times, first={"stride": stride})
        for i, (width, expansion, times, stride) in enumerate(fused, 1)
    }
    for i, (width, expansion, times, stride) in enumerate(rows, len(fused) + 1):
        stages[f"stage{i}"] = _mbconv(width, 3, expansion, times, stride)
    return Chain(
        stem=Conv(fused[0][0], stride=2, activation="silu"),
        **stages,
        last=Conv(1280, 1, activation="silu"),
        head=Head(classes, dropout=dropout),
    )


MODELS = {
    "efficientnet_b0": Entry(efficientnet_b0),
    **{
        f"efficientnet_{name}": Entry(partial(efficientnet, width=width, depth=depth, dropout=dropout), size)
        for name, (width, depth, size, dropout) in SCALING.items()
    },
    "tinynet_a": Entry(partial(tinynet, width=1.0, depth=1.2), 192),
    "tinynet_b": Entry(partial(tinynet, width=0.75, depth=1.1), 188),
    "tinynet_c": Entry(partial(tinynet, width=0.54, depth=0.85), 184),
    "tinynet_d": Entry(partial(tinynet, width=0.54, depth=0.695), 152),
    "tinynet_e": Entry(partial(tinynet, width=0.51, depth=0.6), 106),
    **{
        f"efficientnet_v2_{name}": Entry(partial(efficientnet_v2, fused=fused, rows=rows, dropout=dropout), size)
        for name, (size, dropout, fused, rows) in V2.items()
    },
}

"""Networks that a search found: MnasNet, Single-Path NAS, FBNet, and EfficientNet with what was scaled from it."""

from __future__ import annotations

from functools import partial

from nas.architecture import Architecture
from nas.blocks import (
    Block,
    Chain,
    Conv,
    FusedInvertedResidual,
    GlobalPool,
    Head,
    InvertedResidual,
    SqueezeExcite,
    Stage,
    make_divisible,
)
from nas.choices import Repeat

from .entry import Entry
from .mobile import universal

INPUT_SE = SqueezeExcite(of="input")

# -- MnasNet, Single-Path NAS, FBNet ----------------------------------------------------------------------------------


def _inverted(*rows: tuple[int, int, float], first: int = 2, se: SqueezeExcite | None = None, act: str = "relu") -> Stage:
    """A stage of inverted residuals: (channels, kernel, expansion) of each block; `first` is the first one's stride."""
    return Stage(tuple(InvertedResidual(w, k, 1, e, se, act) for w, k, e in rows), (("stride", first),))


def mnasnet(classes: int, multiplier: float = 1.0) -> Block:
    """MnasNet-B1, the network without squeeze-and-excitation (Tan et al. 2018)."""
    rows = (  # channels, kernel, expansion, blocks, stride
        (16, 3, 1, 1, 1), (24, 3, 3, 3, 2), (40, 5, 3, 3, 2), (80, 5, 6, 3, 2), (96, 3, 6, 2, 1), (192, 5, 6, 4, 2),
        (320, 3, 6, 1, 1),
    )  # fmt: skip
    stages = {
        f"stage{i}": _inverted(*[(make_divisible(w * multiplier), k, e)] * times, first=stride)
        for i, (w, k, e, times, stride) in enumerate(rows, 1)
    }
    stem = Conv(make_divisible(32 * multiplier), stride=2)
    return Chain(stem=stem, **stages, last=Conv(1280, 1), head=Head(classes, dropout=0.2))


def mnasnet_a1(classes: int) -> Block:
    """MnasNet-A1 (Tan et al. 2018)."""
    return Chain(
        stem=Conv(32, stride=2),
        stage1=_inverted((16, 3, 1), first=1),
        stage2=_inverted(*[(24, 3, 6)] * 2),
        stage3=_inverted(*[(40, 5, 3)] * 3, se=INPUT_SE),
        stage4=_inverted(*[(80, 3, 6)] * 4),
        stage5=_inverted(*[(112, 3, 6)] * 2, first=1, se=INPUT_SE),
        stage6=_inverted(*[(160, 5, 6)] * 3, se=INPUT_SE),
        stage7=_inverted((320, 3, 6), first=1),
        last=Conv(1280, 1),
        head=Head(classes, dropout=0.2),
    )


def spnasnet(classes: int) -> Block:
    """Single-Path NAS for the Pixel 1 phone (Stamoulis et al. 2019)."""
    return Chain(
        stem=Conv(32, stride=2),
        stage1=_inverted((16, 3, 1), first=1),
        stage2=_inverted(*[(24, 3, 3)] * 3),
        stage3=_inverted((40, 5, 6), *[(40, 3, 3)] * 3),
        stage4=_inverted((80, 5, 6), *[(80, 3, 3)] * 3),
        stage5=_inverted((96, 5, 6), *[(96, 5, 3)] * 3, first=1),
        stage6=_inverted(*[(192, 5, 6)] * 4),
        stage7=_inverted((320, 3, 6), first=1),
        last=Conv(1280, 1),
        head=Head(classes),
    )


def fbnet_c(classes: int) -> Block:
    """FBNet-C (Wu et al. 2018); its blocks keep the expanding convolution at expansion 1."""
    rows = (  # channels, stride, then kernel and expansion of each block
        (16, 1, (3, 1)),
        (24, 2, (3, 6), (3, 1), (3, 1)),
        (32, 2, (5, 6), (5, 3), (5, 6), (3, 6)),
        (64, 2, (5, 6), (5, 3), (5, 6), (5, 6)),
        (112, 1, (5, 6), (5, 6), (5, 6), (5, 3)),
        (184, 2, (5, 6), (5, 6), (5, 6), (5, 6)),
        (352, 1, (3, 6)),
    )
    stages, before = {}, 16
    for i, (width, stride, *blocks) in enumerate(rows, 1):
        made = []
        for kernel, expansion in blocks:
            made.append(universal(before, width, expansion, 0, kernel, 1 if made else stride))
            before = width
        stages[f"stage{i}"] = Stage(tuple(made))
    return Chain(stem=Conv(16, stride=2), **stages, last=Conv(1984, 1), head=Head(classes))


def fbnet_v3_b(classes: int) -> Block:
    """FBNetV3-B (Dai et al. 2020)."""
    act = "hard_swish"
    stage = partial(_inverted, act=act)
    se = SqueezeExcite(of="input", divisor=8, activation=act, gate="hard_sigmoid")
    return Chain(
        stem=Conv(16, stride=2, activation=act),
        stage1=stage(*[(16, 3, 1)] * 2, first=1),
        stage2=stage((24, 5, 4), *[(24, 5, 2)] * 3),
        stage3=stage((40, 5, 5), *[(40, 5, 3)] * 4, se=se),
        stage4=stage((72, 5, 5), *[(72, 3, 3)] * 4),
        stage5=stage((120, 3, 5), *[(120, 5, 3)] * 5, first=1, se=se),
        stage6=stage((184, 3, 6), *[(184, 5, 4)] * 5, (224, 5, 6), se=se),
        last=Conv(1344, 1, activation=act),
        pool=GlobalPool(),
        hidden=Conv(1984, 1, activation=act, norm="none", bias=False),
        head=Head(classes),
    )


# -- EfficientNet -----------------------------------------------------------------------------------------------------

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
EXCITE_SILU = SqueezeExcite(of="input", activation="silu")


def _mbconv(width: int, kernel: int, expansion: float, times: int, stride: int) -> Repeat:
    block = InvertedResidual(width, kernel, expansion=expansion, se=EXCITE_SILU, activation="silu")
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
    **{
        f"mnasnet{multiplier}".replace(".", "_"): Entry(partial(mnasnet, multiplier=multiplier))
        for multiplier in (0.5, 0.75, 1.0, 1.3)
    },
    "mnasnet_a1": Entry(mnasnet_a1),
    "spnasnet": Entry(spnasnet),
    "fbnet_c": Entry(fbnet_c),
    "fbnet_v3_b": Entry(fbnet_v3_b, 256),
    "efficientnet_b0": Entry(efficientnet_b0),
    **{
        f"efficientnet_{name}": Entry(partial(efficientnet, width=width, depth=depth, dropout=dropout), size)
        for name, (width, depth, size, dropout) in SCALING.items()
    },
    **{
        f"efficientnet_v2_{name}": Entry(partial(efficientnet_v2, fused=fused, rows=rows, dropout=dropout), size)
        for name, (size, dropout, fused, rows) in V2.items()
    },
    "tinynet_a": Entry(partial(tinynet, width=1.0, depth=1.2), 192),
    "tinynet_b": Entry(partial(tinynet, width=0.75, depth=1.1), 188),
    "tinynet_c": Entry(partial(tinynet, width=0.54, depth=0.85), 184),
    "tinynet_d": Entry(partial(tinynet, width=0.54, depth=0.695), 152),
    "tinynet_e": Entry(partial(tinynet, width=0.51, depth=0.6), 106),
}

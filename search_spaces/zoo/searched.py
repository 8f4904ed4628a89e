"""Networks that a search found for phones: MnasNet, Single-Path NAS, FBNet. (EfficientNet has a module of its own.)"""

from __future__ import annotations

from functools import partial

from nas.blocks import Block, Chain, Conv, GlobalPool, Head, InvertedResidual, SqueezeExcite, Stage, make_divisible

from .entry import Entry
from .mobile import Rows, staged, universal

Row = tuple[int, int, float]  # channels, kernel, expansion


def _stage(*rows: Row, stride: int = 2, se: SqueezeExcite | None = None, activation: str = "relu") -> Stage:
    """A stage of inverted residuals, a row for each; `stride` is the first one's."""
    blocks = [InvertedResidual(width, kernel, 1, expansion, se, activation) for width, kernel, expansion in rows]
    return Stage(tuple(blocks), (("stride", stride),))


def mnasnet(classes: int, multiplier: float = 1.0) -> Block:
    """MnasNet-B1, the network without squeeze-and-excitation (Tan et al. 2018)."""
    rows = (  # channels, kernel, expansion, blocks, stride
        (16, 3, 1, 1, 1), (24, 3, 3, 3, 2), (40, 5, 3, 3, 2), (80, 5, 6, 3, 2), (96, 3, 6, 2, 1), (192, 5, 6, 4, 2),
        (320, 3, 6, 1, 1),
    )  # fmt: skip
    stages = {
        f"stage{i}": _stage(*[(make_divisible(w * multiplier), k, e)] * times, stride=stride)
        for i, (w, k, e, times, stride) in enumerate(rows, 1)
    }
    stem = Conv(make_divisible(32 * multiplier), stride=2)
    return Chain(stem=stem, **stages, last=Conv(1280, 1), head=Head(classes, dropout=0.2))


def mnasnet_a1(classes: int) -> Block:
    """MnasNet-A1 (Tan et al. 2018)."""
    se = SqueezeExcite(of="input")
    return Chain(
        stem=Conv(32, stride=2),
        stage1=_stage((16, 3, 1), stride=1),
        stage2=_stage(*[(24, 3, 6)] * 2),
        stage3=_stage(*[(40, 5, 3)] * 3, se=se),
        stage4=_stage(*[(80, 3, 6)] * 4),
        stage5=_stage(*[(112, 3, 6)] * 2, stride=1, se=se),
        stage6=_stage(*[(160, 5, 6)] * 3, se=se),
        stage7=_stage((320, 3, 6), stride=1),
        last=Conv(1280, 1),
        head=Head(classes, dropout=0.2),
    )


def spnasnet(classes: int) -> Block:
    """Single-Path NAS for the Pixel 1 phone (Stamoulis et al. 2019)."""
    return Chain(
        stem=Conv(32, stride=2),
        stage1=_stage((16, 3, 1), stride=1),
        stage2=_stage(*[(24, 3, 3)] * 3),
        stage3=_stage((40, 5, 6), *[(40, 3, 3)] * 3),
        stage4=_stage((80, 5, 6), *[(80, 3, 3)] * 3),
        stage5=_stage((96, 5, 6), *[(96, 5, 3)] * 3, stride=1),
        stage6=_stage(*[(192, 5, 6)] * 4),
        stage7=_stage((320, 3, 6), stride=1),
        last=Conv(1280, 1),
        head=Head(classes),
    )


FBNET_C: tuple[Rows, ...] = (  # channels, expansion, 0, kernel, stride
    ((16, 1, 0, 3, 1),),
    ((24, 6, 0, 3, 2), (24, 1, 0, 3, 1), (24, 1, 0, 3, 1)),
    ((32, 6, 0, 5, 2), (32, 3, 0, 5, 1), (32, 6, 0, 5, 1), (32, 6, 0, 3, 1)),
    ((64, 6, 0, 5, 2), (64, 3, 0, 5, 1), (64, 6, 0, 5, 1), (64, 6, 0, 5, 1)),
    (*[(112, 6, 0, 5, 1)] * 3, (112, 3, 0, 5, 1)),
    ((184, 6, 0, 5, 2), *[(184, 6, 0, 5, 1)] * 3),
    ((352, 6, 0, 3, 1),),
)


def fbnet_c(classes: int) -> Block:
    """FBNet-C (Wu et al. 2018); its blocks keep the expanding convolution at expansion 1."""
    stages = staged(universal, 16, FBNET_C)
    return Chain(stem=Conv(16, stride=2), **stages, last=Conv(1984, 1), head=Head(classes))


def fbnet_v3_b(classes: int) -> Block:
    """FBNetV3-B (Dai et al. 2020)."""
    act = "hard_swish"
    stage = partial(_stage, activation=act)
    se = SqueezeExcite(of="input", divisor=8, activation=act, gate="hard_sigmoid")
    return Chain(
        stem=Conv(16, stride=2, activation=act),
        stage1=stage(*[(16, 3, 1)] * 2, stride=1),
        stage2=stage((24, 5, 4), *[(24, 5, 2)] * 3),
        stage3=stage((40, 5, 5), *[(40, 5, 3)] * 4, se=se),
        stage4=stage((72, 5, 5), *[(72, 3, 3)] * 4),
        stage5=stage((120, 3, 5), *[(120, 5, 3)] * 5, stride=1, se=se),
        stage6=stage((184, 3, 6), *[(184, 5, 4)] * 5, (224, 5, 6), se=se),
        last=Conv(1344, 1, activation=act),
        pool=GlobalPool(),
        hidden=Conv(1984, 1, activation=act, norm="none", bias=False),
        head=Head(classes),
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
}

"""Other small networks: ShuffleNetV2, GhostNet, PP-LCNet."""

from __future__ import annotations

from functools import partial

from nas.blocks import (
    Block,
    Branches,
    Chain,
    Conv,
    Ghost,
    Head,
    MaxPool,
    Separable,
    ShuffleUnit,
    Skip,
    SqueezeExcite,
    Stage,
)
from nas.choices import Repeat

from .entry import Entry
from .mobile import Rows, staged


def shufflenet_v2(classes: int, widths: tuple[int, int, int], last: int = 1024) -> Block:
    """ShuffleNetV2 (Ma et al. 2018)."""
    stages = {
        f"stage{i}": Repeat(ShuffleUnit(width), times, first={"stride": 2})
        for i, (width, times) in enumerate(zip(widths, (4, 8, 4), strict=True), 1)
    }
    return Chain(stem=Conv(24, stride=2), pool=MaxPool(3, 2, 1), **stages, last=Conv(last, 1), head=Head(classes))


GHOST: tuple[Rows, ...] = (  # channels, hidden channels, kernel, stride, squeeze-excitation
    ((16, 16, 3, 1, False),),
    ((24, 48, 3, 2, False), (24, 72, 3, 1, False)),
    ((40, 72, 5, 2, True), (40, 120, 5, 1, True)),
    ((80, 240, 3, 2, False), (80, 200, 3, 1, False), *[(80, 184, 3, 1, False)] * 2),
    ((112, 480, 3, 1, True), (112, 672, 3, 1, True)),
    ((160, 672, 5, 2, True), *[(160, 960, 5, 1, False), (160, 960, 5, 1, True)] * 2),
)


def _ghost_bottleneck(before: int, width: int, hidden: int, kernel: int, stride: int, se: bool) -> Block:
    depthwise = Conv(kernel=kernel, stride=stride, groups=None, activation="identity")
    body = Chain(
        expand=Ghost(hidden),
        depthwise=depthwise if stride > 1 else None,
        se=SqueezeExcite(divisor=4, gate="hard_sigmoid") if se else None,
        project=Ghost(width, activation="identity"),
    )
    same = stride == 1 and before == width
    skip = Skip() if same else Chain(depthwise=depthwise, project=Conv(width, 1, activation="identity"))
    return Branches((body, skip), join="add", names=("body", "skip"))


def ghostnet(classes: int) -> Block:
    """GhostNet (Han et al. 2020)."""
    stages = staged(_ghost_bottleneck, 16, GHOST)
    return Chain(stem=Conv(16, stride=2), **stages, last=Conv(960, 1), head=Head(classes, 1280, dropout=0.2))


def lcnet(classes: int) -> Block:
    """PP-LCNet (Cui et al. 2021)."""

    def stage(width: int, *kernels: int, stride: int = 2, se: SqueezeExcite | None = None) -> Block:
        return Stage(tuple(Separable(width, k, 1, se, "hard_swish") for k in kernels), (("stride", stride),))

    return Chain(
        stem=Conv(16, stride=2, activation="hard_swish"),
        stage1=stage(32, 3, stride=1),
        stage2=stage(64, 3, 3),
        stage3=stage(128, 3, 3),
        stage4=stage(256, 3, 5, 5, 5, 5, 5),
        stage5=stage(512, 5, 5, se=SqueezeExcite(gate="hard_sigmoid")),
        head=Head(classes, 1280, activation="hard_swish", dropout=0.2),
    )


MODELS = {
    "shufflenet_v2_x0_5": Entry(partial(shufflenet_v2, widths=(48, 96, 192))),
    "shufflenet_v2_x1_0": Entry(partial(shufflenet_v2, widths=(116, 232, 464))),
    "shufflenet_v2_x1_5": Entry(partial(shufflenet_v2, widths=(176, 352, 704))),
    "shufflenet_v2_x2_0": Entry(partial(shufflenet_v2, widths=(244, 488, 976), last=2048)),
    "ghostnet": Entry(ghostnet),
    "lcnet": Entry(lcnet),
}

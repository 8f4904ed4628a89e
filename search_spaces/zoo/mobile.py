"""Networks for phones, designed by hand: MobileNets, ShuffleNetV2, GhostNet, PP-LCNet."""

from __future__ import annotations

from functools import partial

from nas.blocks import (
    Block,
    Branches,
    Chain,
    Conv,
    FusedInvertedResidual,
    GlobalPool,
    Head,
    InvertedResidual,
    MaxPool,
    Separable,
    ShuffleUnit,
    Skip,
    SqueezeExcite,
    Stage,
    make_divisible,
)
from nas.choices import Repeat

from .entry import Entry

HARD_SE = SqueezeExcite(divisor=8, gate="hard_sigmoid")


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
    rows = (  # expansion, channels, blocks, stride
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    stages = {
        f"stage{i}": Repeat(
            InvertedResidual(make_divisible(width * multiplier), expansion=expansion), times, first={"stride": stride}
        )
        for i, (expansion, width, times, stride) in enumerate(rows, 1)
    }
    return Chain(
        stem=Conv(make_divisible(32 * multiplier), stride=2, activation="relu6"),
        **stages,
        last=Conv(make_divisible(1280 * max(1.0, multiplier)), 1, activation="relu6"),
        head=Head(classes, dropout=0.2),
    )


V3Row = tuple[int, int, int, bool, str, int]  # kernel, hidden channels, channels, squeeze-excitation, activation, stride
V3_LARGE: tuple[tuple[V3Row, ...], ...] = (
    ((3, 16, 16, False, "relu", 1),),
    ((3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1)),
    ((5, 72, 40, True, "relu", 2), (5, 120, 40, True, "relu", 1), (5, 120, 40, True, "relu", 1)),
    (
        (3, 240, 80, False, "hard_swish", 2), (3, 200, 80, False, "hard_swish", 1), (3, 184, 80, False, "hard_swish", 1),
        (3, 184, 80, False, "hard_swish", 1),
    ),
    ((3, 480, 112, True, "hard_swish", 1), (3, 672, 112, True, "hard_swish", 1)),
    ((5, 672, 160, True, "hard_swish", 2), (5, 960, 160, True, "hard_swish", 1), (5, 960, 160, True, "hard_swish", 1)),
)  # fmt: skip
V3_SMALL: tuple[tuple[V3Row, ...], ...] = (
    ((3, 16, 16, True, "relu", 2),),
    ((3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1)),
    ((5, 96, 40, True, "hard_swish", 2), (5, 240, 40, True, "hard_swish", 1), (5, 240, 40, True, "hard_swish", 1)),
    ((5, 120, 48, True, "hard_swish", 1), (5, 144, 48, True, "hard_swish", 1)),
    ((5, 288, 96, True, "hard_swish", 2), (5, 576, 96, True, "hard_swish", 1), (5, 576, 96, True, "hard_swish", 1)),
)


def mobilenet_v3(classes: int, rows: tuple[tuple[V3Row, ...], ...], hidden: int, multiplier: float = 1.0) -> Block:
    """MobileNetV3 (Howard et al. 2019); `hidden`: features of the layer before the classifier, not multiplied.

    With a multiplier a block expands by its ratio at multiplier 1, rounded to multiples of 8.
    """
    stages, before, narrow = {}, 16, make_divisible(16 * multiplier)
    for i, stage in enumerate(rows, 1):
        blocks = []
        for kernel, expanded, width, excite, activation, stride in stage:
            expansion = make_divisible(narrow * expanded / before) / narrow
            before, narrow = width, make_divisible(width * multiplier)
            se = HARD_SE if excite else None
            blocks.append(InvertedResidual(narrow, kernel, stride, expansion, se, activation))
        stages[f"stage{i}"] = Stage(tuple(blocks))
    return Chain(
        stem=Conv(make_divisible(16 * multiplier), stride=2, activation="hard_swish"),
        **stages,
        last=Conv(make_divisible(6 * before * multiplier), 1, activation="hard_swish"),
        head=Head(classes, hidden, activation="hard_swish", dropout=0.2),
    )


def universal(before: int, width: int, expansion: float, start: int, kernel: int, stride: int = 1) -> Block:
    """The universal inverted bottleneck (MobileNetV4, Qin et al. 2024).

    Depthwise convolutions of kernel `start` before the expansion and of `kernel` after it, 0 leaves one out; the
    last of them takes the stride.
    """
    steps = Chain(
        start=Conv(kernel=start, stride=1 if kernel else stride, groups=None, activation="identity") if start else None,
        expand=Conv(make_divisible(before * expansion), 1),
        depthwise=Conv(kernel=kernel, stride=stride, groups=None) if kernel else None,
        project=Conv(width, 1, activation="identity"),
    )
    if stride > 1 or before != width:
        return steps
    return Branches((steps, Skip()), join="add", names=("body", "skip"))


V4Row = tuple[int, float, int, int, int]  # channels, expansion, start kernel, kernel, stride
V4_SMALL: tuple[tuple[V4Row, ...], ...] = (
    ((96, 3, 5, 5, 2), *[(96, 2, 0, 3, 1)] * 4, (96, 4, 3, 0, 1)),
    ((128, 6, 3, 3, 2), (128, 4, 5, 5, 1), (128, 4, 0, 5, 1), (128, 3, 0, 5, 1), *[(128, 4, 0, 3, 1)] * 2),
)
V4_MEDIUM: tuple[tuple[V4Row, ...], ...] = (
    ((80, 4, 3, 5, 2), (80, 2, 3, 3, 1)),
    (
        (160, 6, 3, 5, 2), (160, 4, 3, 3, 1), (160, 4, 3, 3, 1), (160, 4, 3, 5, 1), (160, 4, 3, 3, 1), (160, 4, 3, 0, 1),
        (160, 2, 0, 0, 1), (160, 4, 3, 0, 1),
    ),
    (
        (256, 6, 5, 5, 2), (256, 4, 5, 5, 1), (256, 4, 3, 5, 1), (256, 4, 3, 5, 1), (256, 4, 0, 0, 1), (256, 4, 3, 0, 1),
        (256, 2, 3, 5, 1), (256, 4, 5, 5, 1), (256, 4, 0, 0, 1), (256, 4, 0, 0, 1), (256, 2, 5, 0, 1),
    ),
)  # fmt: skip


def mobilenet_v4(classes: int, medium: bool = False) -> Block:
    """MobileNetV4-Conv small and medium (Qin et al. 2024)."""
    if medium:
        rows, before = V4_MEDIUM, 48
        early: dict[str, Block] = {"fused": FusedInvertedResidual(48, stride=2, activation="relu")}
    else:
        rows, before = V4_SMALL, 64
        early = {"conv1": Conv(32, stride=2), "conv2": Conv(32, 1), "conv3": Conv(96, stride=2), "conv4": Conv(64, 1)}
    stages = {}
    for i, stage in enumerate(rows, 1):
        blocks = []
        for width, expansion, start, kernel, stride in stage:
            blocks.append(universal(before, width, expansion, start, kernel, stride))
            before = width
        stages[f"stage{i}"] = Stage(tuple(blocks))
    tail = {"last": Conv(960, 1), "pool": GlobalPool(), "hidden": Conv(1280, 1), "head": Head(classes)}
    return Chain(stem=Conv(32, stride=2), **early, **stages, **tail)


def shufflenet_v2(classes: int, widths: tuple[int, int, int], last: int = 1024) -> Block:
    """ShuffleNetV2 (Ma et al. 2018)."""
    stages = {
        f"stage{i}": Repeat(ShuffleUnit(width), times, first={"stride": 2})
        for i, (width, times) in enumerate(zip(widths, (4, 8, 4), strict=True), 2)
    }
    return Chain(stem=Conv(24, stride=2), pool=MaxPool(3, 2, 1), **stages, last=Conv(last, 1), head=Head(classes))


def _ghost(width: int, activation: str = "relu") -> Block:
    """Half the channels by a 1x1 convolution, the other half from those by a cheap depthwise one."""
    cheap = Branches((Skip(), Conv(groups=None, activation=activation)), names=("same", "cheap"))
    return Chain(primary=Conv(width // 2, 1, activation=activation), ghosts=cheap)


def _ghost_bottleneck(before: int, kernel: int, hidden: int, width: int, excite: bool, stride: int) -> Block:
    down = Conv(kernel=kernel, stride=stride, groups=None, activation="identity")
    body = Chain(
        expand=_ghost(hidden),
        depthwise=down if stride > 1 else None,
        se=SqueezeExcite(divisor=4, gate="hard_sigmoid") if excite else None,
        project=_ghost(width, "identity"),
    )
    same = stride == 1 and before == width
    skip = Skip() if same else Chain(depthwise=down, project=Conv(width, 1, activation="identity"))
    return Branches((body, skip), join="add", names=("body", "skip"))


def ghostnet(classes: int) -> Block:
    """GhostNet (Han et al. 2020)."""
    rows = (  # kernel, hidden channels, channels, squeeze-excitation, stride
        ((3, 16, 16, False, 1),),
        ((3, 48, 24, False, 2), (3, 72, 24, False, 1)),
        ((5, 72, 40, True, 2), (5, 120, 40, True, 1)),
        (
            (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
            (3, 480, 112, True, 1), (3, 672, 112, True, 1),
        ),
        (
            (5, 672, 160, True, 2), (5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1),
            (5, 960, 160, True, 1),
        ),
    )  # fmt: skip
    stages, before = {}, 16
    for i, stage in enumerate(rows, 1):
        blocks = []
        for kernel, hidden, width, excite, stride in stage:
            blocks.append(_ghost_bottleneck(before, kernel, hidden, width, excite, stride))
            before = width
        stages[f"stage{i}"] = Stage(tuple(blocks))
    return Chain(stem=Conv(16, stride=2), **stages, last=Conv(960, 1), head=Head(classes, 1280, dropout=0.2))


def lcnet(classes: int) -> Block:
    """PP-LCNet (Cui et al. 2021)."""

    def stage(width: int, kernels: tuple[int, ...], stride: int = 2, se: SqueezeExcite | None = None) -> Block:
        return Stage(tuple(Separable(width, k, 1, se, "hard_swish") for k in kernels), (("stride", stride),))

    return Chain(
        stem=Conv(16, stride=2, activation="hard_swish"),
        stage1=stage(32, (3,), 1),
        stage2=stage(64, (3, 3)),
        stage3=stage(128, (3, 3)),
        stage4=stage(256, (3, 5, 5, 5, 5, 5)),
        stage5=stage(512, (5, 5), se=SqueezeExcite(gate="hard_sigmoid")),
        head=Head(classes, 1280, activation="hard_swish", dropout=0.2),
    )


MODELS = {
    "mobilenet_v1": Entry(mobilenet_v1),
    **{f"mobilenet_v1_0{m}": Entry(partial(mobilenet_v1, multiplier=m / 100)) for m in (25, 50, 75)},
    "mobilenet_v2": Entry(mobilenet_v2),
    **{f"mobilenet_v2_{m:03d}": Entry(partial(mobilenet_v2, multiplier=m / 100)) for m in (35, 50, 75, 130, 140)},
    "mobilenet_v3_large": Entry(partial(mobilenet_v3, rows=V3_LARGE, hidden=1280)),
    "mobilenet_v3_large_075": Entry(partial(mobilenet_v3, rows=V3_LARGE, hidden=1280, multiplier=0.75)),
    "mobilenet_v3_small": Entry(partial(mobilenet_v3, rows=V3_SMALL, hidden=1024)),
    "mobilenet_v3_small_075": Entry(partial(mobilenet_v3, rows=V3_SMALL, hidden=1024, multiplier=0.75)),
    "mobilenet_v4_conv_small": Entry(mobilenet_v4),
    "mobilenet_v4_conv_medium": Entry(partial(mobilenet_v4, medium=True), 256),
    "shufflenet_v2_x0_5": Entry(partial(shufflenet_v2, widths=(48, 96, 192))),
    "shufflenet_v2_x1_0": Entry(partial(shufflenet_v2, widths=(116, 232, 464))),
    "shufflenet_v2_x1_5": Entry(partial(shufflenet_v2, widths=(176, 352, 704))),
    "shufflenet_v2_x2_0": Entry(partial(shufflenet_v2, widths=(244, 488, 976), last=2048)),
    "ghostnet": Entry(ghostnet),
    "lcnet": Entry(lcnet),
}

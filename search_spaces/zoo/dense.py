"""DenseNet and FractalNet: deep without residuals."""

from __future__ import annotations

from functools import partial

from nas.blocks import Block, Chain, Conv, DenseBlock, Fractal, Head, MaxPool, Norm, Transition

from .entry import Entry

REPEATS = {
    121: (6, 12, 24, 16),
    161: (6, 12, 36, 24),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
    264: (6, 12, 64, 48),
}


def _dense(repeats: tuple[int, ...], block: DenseBlock, compression: float) -> dict[str, Block]:
    """Dense blocks with transitions between them."""
    parts: dict[str, Block] = {}
    for i, layers in enumerate(repeats, 1):
        if i > 1:
            parts[f"transition{i - 1}"] = Transition(compression)
        parts[f"dense{i}"] = block.with_children({"layers": layers})
    return parts


def densenet(classes: int, depth: int = 121, growth: int = 32, deep: bool = False) -> Block:
    """DenseNet-BC for ImageNet (Huang et al. 2017); `deep`: three 3x3 convolutions instead of a 7x7 as stem."""
    width = 2 * growth
    stem = Chain(Conv(growth, stride=2), Conv(growth), Conv(width)) if deep else Conv(width, 7, stride=2)
    return Chain(
        stem=stem,
        pool=MaxPool(3, 2, 1),
        **_dense(REPEATS[depth], DenseBlock(growth=growth), 0.5),
        norm=Norm(),
        head=Head(classes),
    )


def densenet_cifar(classes: int, depth: int, growth: int, bottleneck: bool = False) -> Block:
    """DenseNet for CIFAR (Huang et al. 2017); `bottleneck`: DenseNet-BC, half as many layers of two convolutions."""
    layers = (depth - 4) // (6 if bottleneck else 3)
    return Chain(
        stem=Conv(2 * growth if bottleneck else 16, norm="none", activation="identity", bias=False),
        **_dense((layers,) * 3, DenseBlock(growth=growth, bottleneck=4 if bottleneck else 0), 0.5 if bottleneck else 1),
        norm=Norm(),
        head=Head(classes),
    )


def fractalnet_cifar(classes: int, columns: int) -> Block:
    """FractalNet for CIFAR (Larsson et al. 2016): five blocks of `columns` columns, depth 5 * 2^(columns - 1)."""
    parts: dict[str, Block] = {}
    for i, width in enumerate((64, 128, 256, 512, 512), 1):
        parts[f"fractal{i}"] = Fractal(width, columns)
        parts[f"pool{i}"] = MaxPool(2)
    return Chain(**parts, head=Head(classes))


MODELS = {
    "densenet121": Entry(densenet),
    "densenet161": Entry(partial(densenet, depth=161, growth=48)),
    "densenet169": Entry(partial(densenet, depth=169)),
    "densenet201": Entry(partial(densenet, depth=201)),
    "densenet264": Entry(partial(densenet, depth=264)),
    "densenet264_k48": Entry(partial(densenet, depth=264, growth=48)),
    "densenet264d": Entry(partial(densenet, depth=264, growth=48, deep=True)),
    **{
        f"densenet_{depth}_{growth}_cifar": Entry(partial(densenet_cifar, depth=depth, growth=growth), 32, 10)
        for depth, growth in ((40, 12), (100, 12))
    },
    **{
        f"densenet_bc_{depth}_{growth}_cifar": Entry(
            partial(densenet_cifar, depth=depth, growth=growth, bottleneck=True), 32, 10
        )
        for depth, growth in ((100, 12), (250, 24), (190, 40))
    },
    "fractalnet20_cifar": Entry(partial(fractalnet_cifar, columns=3), 32, 10),
    "fractalnet40_cifar": Entry(partial(fractalnet_cifar, columns=4), 32, 10),
}

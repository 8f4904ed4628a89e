"""Residual networks: ResNet, wide ResNet, ResNeXt, SE-ResNet, pre-activation networks, and those for CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nas.blocks import Block, Bottleneck, Chain, Conv, Head, MaxPool, Norm, Residual, SqueezeExcite
from nas.choices import Repeat

from .entry import Entry

REPEATS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
SE = SqueezeExcite(ratio=1 / 16)


def _stages(
    block: Callable[..., Block], widths: tuple[int, ...], repeats: tuple[int, ...], **style: Any
) -> dict[str, Repeat]:
    """Stages of one kind of block; every stage but the first begins with stride 2."""
    return {
        f"stage{i}": Repeat(block(width=width, **style), times, first={"stride": 2} if i > 1 else {})
        for i, (width, times) in enumerate(zip(widths, repeats, strict=True), 1)
    }


def resnet(classes: int, depth: int = 50, **style: Any) -> Block:
    """ResNet (He et al. 2015) with the stride on the 3x3 convolution, as everywhere today ("v1.5").

    `style` goes to the blocks: `reduction` 2 makes wide ResNets (Zagoruyko & Komodakis 2016), with `groups` ResNeXt
    (Xie et al. 2017), `se` SE-ResNet (Hu et al. 2018), `stride_first` the original Caffe models.
    """
    if depth < 50:
        stages = _stages(Residual, (64, 128, 256, 512), REPEATS[depth], **style)
    else:
        stages = _stages(Bottleneck, (256, 512, 1024, 2048), REPEATS[depth], **style)
    return Chain(stem=Conv(64, 7, stride=2), pool=MaxPool(3, 2, 1), **stages, head=Head(classes))


def resnet_small_images(classes: int, depth: int) -> Block:
    """The ResNet of ImageNet with a stem for small images: 3x3, stride 1, no pooling after it (as in DeVries 2017)."""
    return Chain(stem=Conv(64), **_stages(Residual, (64, 128, 256, 512), REPEATS[depth]), head=Head(classes))


def preact_resnet(classes: int, depth: int) -> Block:
    """Pre-activation ResNet for ImageNet (He et al. 2016), the stride on the 3x3 convolution."""
    return Chain(
        stem=Conv(64, 7, stride=2, norm="none", activation="identity", bias=False),
        pool=MaxPool(3, 2, 1),
        **_stages(Bottleneck, (256, 512, 1024, 2048), REPEATS[depth], pre_activation=True),
        norm=Norm(),
        head=Head(classes),
    )


def resnet_cifar(classes: int, depth: int, projection: str = "pad") -> Block:
    """ResNet for CIFAR, depth 6n + 2 (He et al. 2015, section 4.2).

    `projection` "pad": parameter-free shortcuts (the paper's option A); "project": 1x1 convolutions (option B).
    """
    n = (depth - 2) // 6
    return Chain(stem=Conv(16), **_stages(Residual, (16, 32, 64), (n, n, n), projection=projection), head=Head(classes))


def preact_resnet_cifar(classes: int, depth: int) -> Block:
    """Pre-activation bottleneck ResNet for CIFAR, depth 9n + 2 (He et al. 2016)."""
    n = (depth - 2) // 9
    return Chain(
        stem=Conv(16, norm="none", activation="identity", bias=False),
        **_stages(Bottleneck, (64, 128, 256), (n, n, n), pre_activation=True),
        norm=Norm(),
        head=Head(classes),
    )


def wrn_cifar(classes: int, depth: int, factor: int) -> Block:
    """Wide ResNet for CIFAR, depth 6n + 4, `factor` times as wide (Zagoruyko & Komodakis 2016)."""
    n = (depth - 4) // 6
    return Chain(
        stem=Conv(16, norm="none", activation="identity", bias=False),
        **_stages(Residual, (16 * factor, 32 * factor, 64 * factor), (n, n, n), pre_activation=True),
        norm=Norm(),
        head=Head(classes),
    )


MODELS = {
    **{f"resnet{depth}": Entry(partial(resnet, depth=depth)) for depth in REPEATS},
    **{f"resnet{depth}_v1": Entry(partial(resnet, depth=depth, stride_first=True)) for depth in (50, 101, 152)},
    "wide_resnet50_2": Entry(partial(resnet, depth=50, reduction=2)),
    "wide_resnet101_2": Entry(partial(resnet, depth=101, reduction=2)),
    # "32x4d": 32 groups of 4 channels in the first stage, where the block's output has 256.
    "resnext50_32x4d": Entry(partial(resnet, depth=50, reduction=2, groups=32)),
    "resnext101_32x4d": Entry(partial(resnet, depth=101, reduction=2, groups=32)),
    "resnext101_32x8d": Entry(partial(resnet, depth=101, reduction=1, groups=32)),
    "resnext101_64x4d": Entry(partial(resnet, depth=101, reduction=1, groups=64)),
    "resnext152_32x4d": Entry(partial(resnet, depth=152, reduction=2, groups=32)),
    **{f"se_resnet{depth}": Entry(partial(resnet, depth=depth, se=SE)) for depth in (50, 101, 152)},
    **{
        f"se_resnet{depth}_v1": Entry(partial(resnet, depth=depth, se=SE, stride_first=True))
        for depth in (50, 101, 152)
    },
    "se_resnext50_32x4d": Entry(partial(resnet, depth=50, reduction=2, groups=32, se=SE)),
    **{f"preact_resnet{depth}": Entry(partial(preact_resnet, depth=depth)) for depth in (50, 101, 152)},
    "resnet18_cifar": Entry(partial(resnet_small_images, depth=18), 32, 10),
    **{
        f"resnet{depth}_cifar": Entry(partial(resnet_cifar, depth=depth), 32, 10)
        for depth in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"resnet{depth}_cifar_projected": Entry(partial(resnet_cifar, depth=depth, projection="project"), 32, 10)
        for depth in (56, 110)
    },
    **{
        f"preact_resnet{depth}_cifar": Entry(partial(preact_resnet_cifar, depth=depth), 32, 10) for depth in (164, 1001)
    },
    **{
        f"wrn_{depth}_{factor}_cifar": Entry(partial(wrn_cifar, depth=depth, factor=factor), 32, 10)
        for depth, factor in ((16, 8), (22, 8), (28, 10), (40, 4))
    },
}

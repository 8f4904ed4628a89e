"""Networks without shortcuts: AlexNet, VGG, Network in Network, SqueezeNet.

AlexNet's and GoogLeNet's local response normalisation has no weights, and later work found it useless (Simonyan &
Zisserman 2014, section 4.1): it is left out, as in every modern version of these networks.
"""

from __future__ import annotations

from functools import partial

from nas.blocks import AvgPool, Block, Chain, Conv, DenseHead, Dropout, Fire, MaxPool, MlpConv, PoolHead
from nas.choices import Repeat

from .entry import Entry


def alexnet(
    classes: int, widths: tuple[int, ...] = (64, 192, 384, 256, 256), groups: int = 1, padding: int = 2
) -> Block:
    """AlexNet on one GPU (Krizhevsky 2014), torchvision's sizes.

    With the widths (96, 256, 384, 384, 256), `groups` 2 in the layers that did not cross the two GPUs, and no padding
    it is the network of Krizhevsky et al. 2012 as Caffe has it.
    """
    a, b, c, d, e = widths
    return Chain(
        conv1=Conv(a, 11, stride=4, padding=padding, norm="none"),
        pool1=MaxPool(3, 2),
        conv2=Conv(b, 5, groups=groups, norm="none"),
        pool2=MaxPool(3, 2),
        conv3=Conv(c, 3, norm="none"),
        conv4=Conv(d, 3, groups=groups, norm="none"),
        conv5=Conv(e, 3, groups=groups, norm="none"),
        pool5=MaxPool(3, 2),
        head=DenseHead(classes, size=6, dropout_first=True),
    )


def vgg(classes: int, depth: int = 16, norm: str = "none") -> Block:
    """VGG (Simonyan & Zisserman 2014), configurations A, B, D and E; `norm` "batch" for the later BN versions."""
    repeats = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}[depth]
    parts: dict[str, Block | Repeat] = {}
    for i, (width, times) in enumerate(zip((64, 128, 256, 512, 512), repeats, strict=True), 1):
        parts[f"stage{i}"] = Repeat(Conv(width, norm=norm, bias=True), times)
        parts[f"pool{i}"] = MaxPool(2)
    return Chain(**parts, head=DenseHead(classes))


def nin(classes: int) -> Block:
    """Network in Network for ImageNet (Lin et al. 2013), the authors' Caffe model.

    Windows that reach over the border are dropped; Caffe keeps them (27 instead of 26 positions after `pool1`).
    """
    return Chain(
        mlp1=MlpConv(96, (96, 96), kernel=11, stride=4, padding=0),
        pool1=MaxPool(3, 2),
        mlp2=MlpConv(256, (256, 256), kernel=5),
        pool2=MaxPool(3, 2),
        mlp3=MlpConv(384, (384, 384)),
        pool3=MaxPool(3, 2),
        dropout=Dropout(0.5),
        mlp4=MlpConv(1024, (1024,)),
        head=PoolHead(classes),
    )


def nin_cifar(classes: int) -> Block:
    """Network in Network for CIFAR (Lin et al. 2013), the authors' Caffe model."""
    return Chain(
        mlp1=MlpConv(192, (160, 96), kernel=5),
        pool1=MaxPool(3, 2, ceil=True),
        dropout1=Dropout(0.5),
        mlp2=MlpConv(192, (192, 192), kernel=5),
        pool2=AvgPool(3, 2, ceil=True),
        dropout2=Dropout(0.5),
        mlp3=MlpConv(192, (192,)),
        head=PoolHead(classes),
    )


def squeezenet(classes: int, early: bool = False) -> Block:
    """SqueezeNet 1.0 (Iandola et al. 2016); `early`: 1.1, which pools earlier and costs 2.4 times less."""
    stem = Conv(64, 3, stride=2, padding=0, norm="none") if early else Conv(96, 7, stride=2, padding=0, norm="none")
    pool = MaxPool(3, 2, ceil=True)
    parts: dict[str, Block] = {"stem": stem, "pool1": pool}
    for i, width in enumerate((128, 128, 256, 256, 384, 384, 512, 512), 2):
        parts[f"fire{i}"] = Fire(width)
        if i in ((3, 5) if early else (4, 8)):
            parts[f"pool{i}"] = pool
    return Chain(**parts, dropout=Dropout(0.5), head=PoolHead(classes))


CAFFE = (96, 256, 384, 384, 256)
MODELS = {
    "alexnet": Entry(alexnet),
    "alexnet_caffe": Entry(partial(alexnet, widths=CAFFE, groups=2, padding=0), 227),
    "alexnet_caffe_ungrouped": Entry(partial(alexnet, widths=CAFFE, padding=0), 227),
    **{f"vgg{depth}": Entry(partial(vgg, depth=depth)) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": Entry(partial(vgg, depth=depth, norm="batch")) for depth in (11, 13, 16, 19)},
    "nin": Entry(nin),
    "nin_cifar": Entry(nin_cifar, 32, 10),
    "squeezenet1_0": Entry(squeezenet),
    "squeezenet1_1": Entry(partial(squeezenet, early=True)),
}

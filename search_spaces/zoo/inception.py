"""The Inception family: GoogLeNet, Inception-v3, Inception-v4, Xception."""

from __future__ import annotations

from functools import partial

from nas.blocks import (
    AvgPool,
    Block,
    Branches,
    Chain,
    Conv,
    Head,
    InceptionModule,
    MaxPool,
    Norm,
    Separable,
    Skip,
)
from nas.choices import Repeat

from .entry import Entry


def googlenet(classes: int, original: bool = False) -> Block:
    """GoogLeNet (Szegedy et al. 2014) without its auxiliary heads.

    As torchvision has it: batch norm, and 3x3 in place of 5x5 kernels; `original`: the paper's, without norm.
    """
    norm = "none" if original else "batch"
    module = partial(InceptionModule, five_kernel=5 if original else 3, norm=norm)
    pool = MaxPool(3, 2, ceil=True)
    return Chain(
        conv1=Conv(64, 7, stride=2, norm=norm),
        pool1=pool,
        conv2=Conv(64, 1, norm=norm),
        conv3=Conv(192, norm=norm),
        pool3=pool,
        mixed3a=module(64, 96, 128, 16, 32, 32),
        mixed3b=module(128, 128, 192, 32, 96, 64),
        pool3b=pool,
        mixed4a=module(192, 96, 208, 16, 48, 64),
        mixed4b=module(160, 112, 224, 24, 64, 64),
        mixed4c=module(128, 128, 256, 24, 64, 64),
        mixed4d=module(112, 144, 288, 32, 64, 64),
        mixed4e=module(256, 160, 320, 32, 128, 128),
        pool4=pool,
        mixed5a=module(256, 160, 320, 32, 128, 128),
        mixed5b=module(384, 192, 384, 48, 128, 128),
        head=Head(classes, dropout=0.4),
    )


# -- Inception-v3 and v4: modules are branches of convolution towers --------------------------------------------------

ROW, COLUMN = (1, 7), (7, 1)


def _split(width: int) -> Block:
    """1x3 and 3x1 side by side: the widened end of a tower in the last, 8x8 stage."""
    return Branches((Conv(width, (1, 3)), Conv(width, (3, 1))), names=("row", "column"))


def _reduce(width: int) -> Block:
    """The 3x3 convolution without padding that halves a map."""
    return Conv(width, 3, stride=2, padding=0)


def _pooled(width: int, count_padding: bool = True) -> Block:
    return Chain(pool=AvgPool(3, 1, 1, count_padding=count_padding), project=Conv(width, 1))


def _mixed(**towers: Block | tuple[Block, ...]) -> Block:
    """Towers side by side, concatenated."""
    blocks = tuple(Chain(*tower) if isinstance(tower, tuple) else tower for tower in towers.values())
    return Branches(blocks, names=tuple(towers))


def inception_v3(classes: int) -> Block:
    """Inception-v3 (Szegedy et al. 2015) without its auxiliary head."""

    def mixed_a(pool: int) -> Block:
        return _mixed(
            one=Conv(64, 1),
            five=(Conv(48, 1), Conv(64, 5)),
            double=(Conv(64, 1), Conv(96), Conv(96)),
            pool=_pooled(pool),
        )

    def mixed_b(width: int) -> Block:
        return _mixed(
            one=Conv(192, 1),
            seven=(Conv(width, 1), Conv(width, ROW), Conv(192, COLUMN)),
            double=(Conv(width, 1), Conv(width, COLUMN), Conv(width, ROW), Conv(width, COLUMN), Conv(192, ROW)),
            pool=_pooled(192),
        )

    mixed_c = _mixed(
        one=Conv(320, 1),
        three=(Conv(384, 1), _split(384)),
        double=(Conv(448, 1), Conv(384), _split(384)),
        pool=_pooled(192),
    )
    return Chain(
        conv1=Conv(32, stride=2, padding=0),
        conv2=Conv(32, padding=0),
        conv3=Conv(64),
        pool1=MaxPool(3, 2),
        conv4=Conv(80, 1),
        conv5=Conv(192, padding=0),
        pool2=MaxPool(3, 2),
        mixed5b=mixed_a(32),
        mixed5c=mixed_a(64),
        mixed5d=mixed_a(64),
        mixed6a=_mixed(three=_reduce(384), double=(Conv(64, 1), Conv(96), _reduce(96)), pool=MaxPool(3, 2)),
        mixed6b=mixed_b(128),
        mixed6c=mixed_b(160),
        mixed6d=mixed_b(160),
        mixed6e=mixed_b(192),
        mixed7a=_mixed(
            three=(Conv(192, 1), _reduce(320)),
            seven=(Conv(192, 1), Conv(192, ROW), Conv(192, COLUMN), _reduce(192)),
            pool=MaxPool(3, 2),
        ),
        mixed7b=mixed_c,
        mixed7c=mixed_c,
        head=Head(classes, dropout=0.5),
    )


def inception_v4(classes: int) -> Block:
    """Inception-v4 (Szegedy et al. 2016)."""
    mixed_a = _mixed(
        one=Conv(96, 1),
        three=(Conv(64, 1), Conv(96)),
        double=(Conv(64, 1), Conv(96), Conv(96)),
        pool=_pooled(96, count_padding=False),
    )
    mixed_b = _mixed(
        one=Conv(384, 1),
        seven=(Conv(192, 1), Conv(224, ROW), Conv(256, COLUMN)),
        double=(Conv(192, 1), Conv(192, COLUMN), Conv(224, ROW), Conv(224, COLUMN), Conv(256, ROW)),
        pool=_pooled(128, count_padding=False),
    )
    mixed_c = _mixed(
        one=Conv(256, 1),
        three=(Conv(384, 1), _split(256)),
        double=(Conv(384, 1), Conv(448, (3, 1)), Conv(512, (1, 3)), _split(256)),
        pool=_pooled(256, count_padding=False),
    )
    return Chain(
        conv1=Conv(32, stride=2, padding=0),
        conv2=Conv(32, padding=0),
        conv3=Conv(64),
        mixed3=_mixed(pool=MaxPool(3, 2), conv=_reduce(96)),
        mixed4=_mixed(
            three=(Conv(64, 1), Conv(96, padding=0)),
            seven=(Conv(64, 1), Conv(64, ROW), Conv(64, COLUMN), Conv(96, padding=0)),
        ),
        mixed5=_mixed(conv=_reduce(192), pool=MaxPool(3, 2)),
        stage_a=Repeat(mixed_a, 4),
        reduction_a=_mixed(three=_reduce(384), double=(Conv(192, 1), Conv(224), _reduce(256)), pool=MaxPool(3, 2)),
        stage_b=Repeat(mixed_b, 7),
        reduction_b=_mixed(
            three=(Conv(192, 1), _reduce(192)),
            seven=(Conv(256, 1), Conv(256, ROW), Conv(320, COLUMN), _reduce(320)),
            pool=MaxPool(3, 2),
        ),
        stage_c=Repeat(mixed_c, 3),
        head=Head(classes, dropout=0.2),
    )


# -- Xception --------------------------------------------------------------------------------------------------------


def _separables(*widths: int, activation: str = "relu") -> dict[str, Block]:
    """Separable convolutions with the activation in front; `activation` is the first one's."""
    return {
        f"separable{i}": Separable(w, activation=activation if i == 1 else "relu", pre_activation=True)
        for i, w in enumerate(widths, 1)
    }


def xception(classes: int) -> Block:
    """Xception (Chollet 2016)."""

    def down(first: int, width: int, activation: str = "relu") -> Block:
        body = Chain(**_separables(first, width, activation=activation), pool=MaxPool(3, 2, 1))
        return Branches((body, Skip(width, stride=2)), join="add", names=("body", "skip"))

    middle = Branches((Chain(**_separables(728, 728, 728)), Skip()), join="add", names=("body", "skip"))
    return Chain(
        conv1=Conv(32, stride=2, padding=0),
        conv2=Conv(64, padding=0),
        entry1=down(128, 128, activation="identity"),  # conv2 has just activated it
        entry2=down(256, 256),
        entry3=down(728, 728),
        middle=Repeat(middle, 8),
        exit1=down(728, 1024),
        exit2=Chain(**_separables(1536, 2048, activation="identity"), act=Norm("none")),
        head=Head(classes),
    )


MODELS = {
    "googlenet": Entry(googlenet),
    "googlenet_original": Entry(partial(googlenet, original=True)),
    "inception_v3": Entry(inception_v3, 299),
    "inception_v4": Entry(inception_v4, 299),
    "xception": Entry(xception, 299),
}

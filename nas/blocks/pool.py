"""Pooling, dropout, heads, and any `nn.Module` as a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class MaxPool(Block):
    """Max pooling."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.max_pool("pool", x[0], self.kernel, self.stride, self.padding, self.ceil)


@dataclass(frozen=True)
class AvgPool(Block):
    """Average pooling; `count_padding`: zeros at the border count in the average."""

    kernel: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False
    count_padding: bool = True

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.avg_pool("pool", x[0], self.kernel, self.stride, self.padding, self.ceil, self.count_padding)


@dataclass(frozen=True)
class GlobalPool(Block):
    """Average pooling to one position; the result is still a feature map."""

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.global_pool("pool", x[0])


@dataclass(frozen=True)
class Norm(Block):
    """Norm and activation alone, as before the head of pre-activation networks."""

    norm: str = "batch"
    activation: str = "relu"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.activation("act", g.norm("norm", x[0], self.norm), self.activation)


@dataclass(frozen=True)
class Dropout(Block):
    """Dropout."""

    rate: float = 0.5

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.dropout("dropout", x[0], self.rate)


@dataclass(frozen=True)
class Head(Block):
    """Global average pooling, hidden layers, dropout, linear classifier.

    `hidden`: channels of a fully connected layer with `activation` before the classifier (MobileNetV3), or None.
    """

    classes: int
    hidden: int | None = channels(None)
    activation: str = "relu"
    dropout: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.flatten("flatten", g.global_pool("pool", x[0]))
        if self.hidden:
            y = g.activation("act", g.linear("hidden", y, self.hidden), self.activation)
        return g.linear("classifier", g.dropout("dropout", y, self.dropout), self.classes)


@dataclass(frozen=True)
class DenseHead(Block):
    """Pooling to `size` x `size`, then fully connected layers with dropout (AlexNet, VGG).

    `dropout_first`: dropout before each hidden layer (AlexNet) instead of after (VGG).
    """

    classes: int
    widths: tuple[int, ...] = (4096, 4096)
    size: int = 7
    activation: str = "relu"
    dropout: float = 0.5
    dropout_first: bool = False

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.flatten("flatten", g.global_pool("pool", x[0], self.size))
        for i, width in enumerate(self.widths):
            if self.dropout_first:
                y = g.dropout(f"dropout{i}", y, self.dropout)
            y = g.activation(f"act{i}", g.linear(f"hidden{i}", y, width), self.activation)
            if not self.dropout_first:
                y = g.dropout(f"dropout{i}", y, self.dropout)
        return g.linear("classifier", y, self.classes)


@dataclass(frozen=True)
class PoolHead(Block):
    """Global average pooling of one feature map per class (NiN).

    `classes`: a 1x1 convolution with activation makes those maps; None: they are there already.
    """

    classes: int | None = None
    activation: str = "relu"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = x[0]
        if self.classes is not None:
            y = g.conv_norm_act("classifier", y, self.classes, 1, norm="none", activation=self.activation)
        return g.flatten("flatten", g.global_pool("pool", y))


@dataclass(frozen=True)
class Wrap(Block):
    """Any `nn.Module` class as a block: `Wrap("package.module:Class", (("channels", 64),))`.

    Its output shape and cost are traced once on meta tensors. `target` may also be the class itself.
    """

    target: Any
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.target, type):
            object.__setattr__(self, "target", f"{self.target.__module__}:{self.target.__qualname__}")

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.module("module", self.target, *x, **dict(self.options))

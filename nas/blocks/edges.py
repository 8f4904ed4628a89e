"""What the edges of a cell do in NASNet, DARTS and NAS-Bench-201: the activation always comes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels
from nas.blocks.mobile import Separable

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class PreConv(Block):
    """Activation, convolution, norm."""

    label = "nor_conv"

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.activation("act", x[0], self.activation)
        y = g.conv("conv", y, self.width_for(g, x[0]), self.kernel, stride=self.stride, bias=self.norm == "none")
        return g.norm("norm", y, self.norm)


@dataclass(frozen=True)
class SepConv(Block):
    """Activation, depthwise convolution, 1x1 convolution and norm, all of it twice; the stride is the first one's."""

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        style: dict[str, Any] = {"activation": self.activation, "norm": self.norm}
        first = Separable(None, self.kernel, self.stride, pre_activation=True, **style)
        second = Separable(self.width, self.kernel, pre_activation=True, **style)
        return g.block("second", second, g.block("first", first, x[0]))


@dataclass(frozen=True)
class DilConv(Block):
    """Activation, dilated depthwise convolution, 1x1 convolution, norm."""

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    dilation: int = 2
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return Separable(
            self.width, self.kernel, self.stride, None, self.activation, self.norm, pre_activation=True,
            dilation=self.dilation,
        ).wire(g, *x)  # fmt: skip


@dataclass(frozen=True)
class RowColumnConv(Block):
    """Activation, 1x7 and 7x1 convolution, norm."""

    label = "conv_7x1_1x7"

    width: int | None = channels(None)
    stride: int = 1
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = self.width_for(g, x[0])
        y = g.activation("act", x[0], self.activation)
        y = g.conv("row", y, g.channels(x[0]), (1, 7), stride=(1, self.stride))
        y = g.conv("column", y, width, (7, 1), stride=(self.stride, 1), bias=self.norm == "none")
        return g.norm("norm", y, self.norm)


@dataclass(frozen=True)
class FactorizedSkip(Block):
    """Identity; with stride 2, half of the channels from the even and half from the odd positions.

    That is activation, a 1x1 convolution with stride 2 on either, norm (Zoph et al. 2017). Where only the width
    differs, one 1x1 convolution does.
    """

    label = "skip_connect"

    width: int | None = channels(None)
    stride: int = 1
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width, bias = self.width_for(g, x[0]), self.norm == "none"
        if self.stride == 1 and width == g.channels(x[0]):
            return x[0]
        y = g.activation("act", x[0], self.activation)
        if self.stride == 1:
            return g.norm("norm", g.conv("conv", y, width, 1, bias=bias), self.norm)
        even = g.conv("even", y, width - width // 2, 1, stride=self.stride, bias=bias)
        odd = g.conv("odd", g.shift("shift", y), width // 2, 1, stride=self.stride, bias=bias)
        return g.norm("norm", g.concat("concat", even, odd), self.norm)

"""Convolutional blocks: plain, NiN, identity, squeeze-and-excitation, fire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.blocks.base import Block, channels, make_divisible

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class Conv(Block):
    """Plain convolution, norm, activation.

    Args:
        width: output channels; None: as many as the input has.
        kernel, padding: one number, or (height, width); padding None keeps the size at stride 1.
        groups: None: one per input channel (depthwise).
        bias: None: only where no norm follows.
    """

    width: int | None = channels(None)
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    groups: int | None = 1
    padding: int | tuple[int, int] | None = None
    activation: str = "relu"
    norm: str = "batch"
    bias: bool | None = None

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        groups = g.channels(x[0]) if self.groups is None else self.groups
        bias = self.norm == "none" if self.bias is None else self.bias
        y = g.conv(
            "conv", x[0], self.width_for(g, x[0]), self.kernel, stride=self.stride, padding=self.padding,
            groups=groups, bias=bias,
        )  # fmt: skip
        return g.activation("act", g.norm("norm", y, self.norm), self.activation)


@dataclass(frozen=True)
class MlpConv(Block):
    """Convolution, then 1x1 convolutions: a small network at every position (Network in Network, Lin et al. 2013).

    `widths`: channels of the 1x1 convolutions.
    """

    width: int | None = channels(None)
    widths: tuple[int, ...] = ()
    kernel: int = 3
    stride: int = 1
    padding: int | None = None
    activation: str = "relu"
    norm: str = "none"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.conv_norm_act(
            "conv", x[0], self.width_for(g, x[0]), self.kernel, stride=self.stride, padding=self.padding,
            norm=self.norm, activation=self.activation,
        )  # fmt: skip
        for i, width in enumerate(self.widths):
            y = g.conv_norm_act(f"mlp{i}", y, width, 1, norm=self.norm, activation=self.activation)
        return y


@dataclass(frozen=True)
class Skip(Block):
    """Identity; where width or stride differ, a 1x1 convolution and a norm (a projection shortcut)."""

    label = "identity"

    width: int | None = channels(None)
    stride: int = 1
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = self.width_for(g, x[0])
        if width == g.channels(x[0]) and self.stride == 1:
            return x[0]
        y = g.conv("conv", x[0], width, 1, stride=self.stride, bias=self.norm == "none")
        return g.norm("norm", y, self.norm)


@dataclass(frozen=True)
class SqueezeExcite(Block):
    """Channel gate from globally pooled features (Hu et al. 2018).

    Args:
        ratio: squeezed channels relative to those of `of`.
        of: `hidden`, the gated map itself, or `input`, the map that the surrounding block reads (EfficientNet).
        divisor: squeezed channels are rounded to its multiples (MobileNetV3: 8).
        activation, gate: non-linearities after the first and the second layer.
    """

    ratio: float = 0.25
    of: str = "hidden"
    divisor: int = 1
    activation: str = "relu"
    gate: str = "sigmoid"

    def squeezed(self, width: int) -> int:
        """Channels of the hidden layer for a base of `width` channels."""
        exact = width * self.ratio
        return make_divisible(exact, self.divisor) if self.divisor > 1 else max(1, int(exact))

    def gated(self, g: GraphBuilder, x: Ref, base: int) -> Ref:
        """Wire under the current scope, squeezing to a share of `base` channels."""
        width = g.channels(x)
        y = g.global_pool("pool", x)
        y = g.conv("reduce", y, self.squeezed(base), 1, bias=True)
        y = g.activation("act", y, self.activation)
        y = g.conv("expand", y, width, 1, bias=True)
        y = g.activation("gate", y, self.gate)
        return g.mul("scale", x, y)

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return self.gated(g, x[0], g.channels(x[0]))


def squeeze(g: GraphBuilder, se: SqueezeExcite | None, x: Ref, base: int) -> Ref:
    """Apply an optional squeeze-and-excitation; `base` is the channel count of the surrounding block's input."""
    if se is None:
        return x
    with g.scope("se", SqueezeExcite.label):
        return se.gated(g, x, base if se.of == "input" else g.channels(x))


@dataclass(frozen=True)
class Fire(Block):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side (SqueezeNet, Iandola et al. 2016).

    `width`: output channels, half from each branch; `squeeze`: channels of the squeezing layer, an eighth by default.
    """

    width: int | None = channels(None)
    squeeze: int | None = channels(None)
    activation: str = "relu"
    norm: str = "none"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = self.width_for(g, x[0])
        half, squeezed = width // 2, self.squeeze or max(1, width // 8)
        y = g.conv_norm_act("squeeze", x[0], squeezed, 1, norm=self.norm, activation=self.activation)
        a = g.conv_norm_act("expand1", y, half, 1, norm=self.norm, activation=self.activation)
        b = g.conv_norm_act("expand3", y, width - half, 3, norm=self.norm, activation=self.activation)
        return g.concat("concat", a, b)

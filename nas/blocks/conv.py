"""Convolutional blocks: plain, NiN, separable, inverted residual, squeeze-and-excitation, fire, shuffle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels, make_divisible

if TYPE_CHECKING:
    from nas.graph import GraphBuilder, Ref


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
class Separable(Block):
    """Depthwise convolution, then a 1x1 convolution (MobileNet, Howard et al. 2017).

    Args:
        residual: add the input where shapes allow.
        linear: no activation at the end.
        pre_activation: the activation comes first, and nothing stands between the two convolutions (Xception,
            Chollet 2016; cell spaces).
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    se: Any = None
    activation: str = "relu"
    norm: str = "batch"
    residual: bool = False
    linear: bool = False
    pre_activation: bool = False

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = g.channels(x[0])
        if self.pre_activation:
            y = g.activation("act", x[0], self.activation)
            y = g.conv("depthwise.conv", y, width, self.kernel, stride=self.stride, groups=width)
            y = g.conv("pointwise.conv", squeeze(g, self.se, y, width), self.width_for(g, x[0]), 1)
            y = g.norm("pointwise.norm", y, self.norm)
        else:
            y = g.conv_norm_act(
                "depthwise", x[0], width, self.kernel, stride=self.stride, groups=width, norm=self.norm,
                activation=self.activation,
            )  # fmt: skip
            y = squeeze(g, self.se, y, width)
            last = "identity" if self.linear else self.activation
            y = g.conv_norm_act("pointwise", y, self.width_for(g, x[0]), 1, norm=self.norm, activation=last)
        return g.add("add", x[0], y) if self.residual and g.shape(x[0]) == g.shape(y) else y


@dataclass(frozen=True)
class InvertedResidual(Block):
    """Expand, depthwise, project without activation (MobileNetV2, Sandler et al. 2018; V3, Howard et al. 2019).

    Args:
        expansion: hidden channels relative to the input's; 1 leaves the expanding convolution out.
        se: `SqueezeExcite` after the depthwise convolution, or None.
        drop_path: stochastic depth on the residual branch.
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    expansion: float = 6
    se: Any = None
    activation: str = "relu6"
    norm: str = "batch"
    drop_path: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = g.channels(x[0])
        hidden = round(width * self.expansion)
        y = x[0]
        if hidden != width:
            y = g.conv_norm_act("expand", y, hidden, 1, norm=self.norm, activation=self.activation)
        y = g.conv_norm_act(
            "depthwise", y, hidden, self.kernel, stride=self.stride, groups=hidden, norm=self.norm,
            activation=self.activation,
        )  # fmt: skip
        y = squeeze(g, self.se, y, width)
        y = g.conv_norm_act("project", y, self.width_for(g, x[0]), 1, norm=self.norm, activation="identity")
        if g.shape(x[0]) != g.shape(y):
            return y
        return g.add("add", x[0], g.drop_path("drop", y, self.drop_path))


@dataclass(frozen=True)
class FusedInvertedResidual(Block):
    """An inverted residual that expands by the `kernel` x `kernel` convolution itself (EfficientNetV2, Tan & Le 2021).

    `expansion` 1 leaves the projection out: one convolution with activation, and the shortcut.
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    expansion: float = 4
    activation: str = "silu"
    norm: str = "batch"
    drop_path: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width, out = g.channels(x[0]), self.width_for(g, x[0])
        hidden = round(width * self.expansion)
        y = g.conv_norm_act(
            "expand", x[0], out if hidden == width else hidden, self.kernel, stride=self.stride, norm=self.norm,
            activation=self.activation,
        )  # fmt: skip
        if hidden != width:
            y = g.conv_norm_act("project", y, out, 1, norm=self.norm, activation="identity")
        if g.shape(x[0]) != g.shape(y):
            return y
        return g.add("add", x[0], g.drop_path("drop", y, self.drop_path))


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


@dataclass(frozen=True)
class ShuffleUnit(Block):
    """Half the channels through a separable branch, then a channel shuffle (ShuffleNetV2, Ma et al. 2018).

    With stride 2 both halves are computed from the whole input. Stride 1 keeps the width.
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = g.channels(x[0])
        half = self.width_for(g, x[0]) // 2
        plain: dict[str, Any] = {"norm": self.norm, "activation": "identity"}
        active: dict[str, Any] = {"norm": self.norm, "activation": self.activation}
        if self.stride == 1 and width == 2 * half:
            left = g.slice("left", x[0], 0, half)
            y = g.slice("right", x[0], half, width)
        else:
            left = g.conv_norm_act(
                "shortcut_depthwise", x[0], width, self.kernel, stride=self.stride, groups=width, **plain
            )
            left = g.conv_norm_act("shortcut", left, half, 1, **active)
            y = x[0]
        y = g.conv_norm_act("reduce", y, half, 1, **active)
        y = g.conv_norm_act("depthwise", y, half, self.kernel, stride=self.stride, groups=half, **plain)
        y = g.conv_norm_act("pointwise", y, half, 1, **active)
        return g.shuffle("shuffle", g.concat("concat", left, y), 2)

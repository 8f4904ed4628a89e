"""Blocks for phones, built on depthwise convolutions: separable, inverted residual, shuffle unit, ghost module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels
from nas.blocks.conv import squeeze

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class Separable(Block):
    """Depthwise convolution, then a 1x1 convolution (MobileNet, Howard et al. 2017).

    Args:
        residual: add the input where shapes allow.
        linear: no activation at the end.
        pre_activation: the activation comes first, and nothing stands between the two convolutions (Xception,
            Chollet 2016; cell spaces).
        dilation: of the depthwise convolution.
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
    dilation: int = 1

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = g.channels(x[0])
        if self.pre_activation:
            y = g.activation("act", x[0], self.activation)
            y = g.conv(
                "depthwise.conv", y, width, self.kernel, stride=self.stride, groups=width, dilation=self.dilation
            )
            y = g.conv("pointwise.conv", squeeze(g, self.se, y, width), self.width_for(g, x[0]), 1)
            y = g.norm("pointwise.norm", y, self.norm)
        else:
            y = g.conv_norm_act(
                "depthwise", x[0], width, self.kernel, stride=self.stride, groups=width, dilation=self.dilation,
                norm=self.norm, activation=self.activation,
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


@dataclass(frozen=True)
class Ghost(Block):
    """Half the channels by a 1x1 convolution, the others from those by a depthwise one (GhostNet, Han et al. 2020)."""

    width: int | None = channels(None)
    kernel: int = 3
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation}
        width = self.width_for(g, x[0])
        half = (width + 1) // 2
        y = g.conv_norm_act("primary", x[0], half, 1, **style)
        y = g.concat("concat", y, g.conv_norm_act("cheap", y, half, self.kernel, groups=half, **style))
        return y if width == 2 * half else g.slice("slice", y, 0, width)

"""Residual blocks: basic and bottleneck, after- and pre-activation (He et al. 2015, 2016), groups (Xie et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels
from nas.blocks.conv import squeeze

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


def shortcut(g: GraphBuilder, x: Ref, y: Ref, stride: int, kind: str, norm: str) -> Ref:
    """What is added to `y`: `x` itself, or its projection where shapes differ.

    `kind`: `project` (1x1 convolution and norm), `conv` (without norm, pre-activation networks), `pad` (subsampling
    and zero channels: option A of He et al. 2015).
    """
    if g.shape(x) == g.shape(y) and stride == 1:
        return x
    width = g.channels(y)
    if kind == "pad":
        from nas import ops

        if stride > 1:
            x = g.op("shortcut.pool", ops.Pool("avg", (1, 1), (stride, stride)), x)
        return g.op("shortcut.pad", ops.PadChannels(width), x) if width != g.channels(x) else x
    if kind == "conv":
        return g.conv("shortcut.conv", x, width, 1, stride=stride)
    return g.conv_norm_act("shortcut", x, width, 1, stride=stride, norm=norm, activation="identity")


@dataclass(frozen=True)
class Residual(Block):
    """Two convolutions and a shortcut. `pre_activation`: norm and activation come before each convolution."""

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    se: Any = None
    activation: str = "relu"
    norm: str = "batch"
    pre_activation: bool = False
    projection: str = "project"
    dropout: float = 0.0
    drop_path: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        if self.pre_activation:
            return self._pre_activation(g, x[0])
        width = self.width_for(g, x[0])
        y = g.conv_norm_act(
            "conv1", x[0], width, self.kernel, stride=self.stride, norm=self.norm, activation=self.activation
        )
        y = g.dropout("dropout", y, self.dropout)
        y = g.conv_norm_act("conv2", y, width, self.kernel, norm=self.norm, activation="identity")
        y = squeeze(g, self.se, y, g.channels(x[0]))
        y = g.drop_path("drop", y, self.drop_path)
        y = g.add("add", shortcut(g, x[0], y, self.stride, self.projection, self.norm), y)
        return g.activation("act", y, self.activation)

    def _pre_activation(self, g: GraphBuilder, x: Ref) -> Ref:
        a = g.activation("act1", g.norm("norm1", x, self.norm), self.activation)
        y = g.conv("conv1", a, self.width_for(g, x), self.kernel, stride=self.stride)
        y = g.activation("act2", g.norm("norm2", y, self.norm), self.activation)
        y = g.dropout("dropout", y, self.dropout)
        y = g.conv("conv2", y, self.width_for(g, x), self.kernel)
        y = squeeze(g, self.se, y, g.channels(x))
        y = g.drop_path("drop", y, self.drop_path)
        same = g.shape(x) == g.shape(y)
        # A projection reads the activated input, as in the authors' networks; an identity reads the raw one.
        return g.add("add", x if same else shortcut(g, a, y, self.stride, "conv", self.norm), y)


@dataclass(frozen=True)
class Bottleneck(Block):
    """1x1 reduce, 3x3 (in `groups`), 1x1 expand, and a shortcut.

    Args:
        width: output channels.
        reduction: output channels / channels of the 3x3 convolution.
        groups: groups of the 3x3 convolution (ResNeXt: 32); `group_width` gives channels per group instead (RegNet).
        stride_first: stride on the first 1x1 instead of on the 3x3 (the original Caffe models).
        pre_activation: norm and activation before each convolution.
        se_of_hidden: squeeze-and-excitation after the 3x3 (RegNetY) instead of at the end (SE-ResNet).
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    reduction: float = 4
    groups: int = 1
    group_width: int | None = None
    se: Any = None
    activation: str = "relu"
    norm: str = "batch"
    pre_activation: bool = False
    stride_first: bool = False
    se_of_hidden: bool = False
    drop_path: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = self.width_for(g, x[0])
        hidden = max(1, round(width / self.reduction))
        groups = max(1, hidden // self.group_width) if self.group_width else self.groups
        hidden = max(groups, hidden // groups * groups)
        first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
        if self.pre_activation:
            return self._pre_activation(g, x[0], hidden, groups, first, second)
        act, norm = self.activation, self.norm
        y = g.conv_norm_act("reduce", x[0], hidden, 1, stride=first, norm=norm, activation=act)
        y = g.conv_norm_act("conv", y, hidden, self.kernel, stride=second, groups=groups, norm=norm, activation=act)
        if self.se_of_hidden:
            y = squeeze(g, self.se, y, g.channels(x[0]))
        y = g.conv_norm_act("expand", y, width, 1, norm=norm, activation="identity")
        if not self.se_of_hidden:
            y = squeeze(g, self.se, y, g.channels(x[0]))
        y = g.drop_path("drop", y, self.drop_path)
        y = g.add("add", shortcut(g, x[0], y, self.stride, "project", norm), y)
        return g.activation("act", y, act)

    def _pre_activation(self, g: GraphBuilder, x: Ref, hidden: int, groups: int, first: int, second: int) -> Ref:
        act, norm = self.activation, self.norm
        a = g.activation("act1", g.norm("norm1", x, norm), act)
        y = g.conv("reduce", a, hidden, 1, stride=first)
        y = g.activation("act2", g.norm("norm2", y, norm), act)
        y = g.conv("conv", y, hidden, self.kernel, stride=second, groups=groups)
        y = g.activation("act3", g.norm("norm3", y, norm), act)
        y = g.conv("expand", y, self.width_for(g, x), 1)
        y = squeeze(g, self.se, y, g.channels(x))
        y = g.drop_path("drop", y, self.drop_path)
        same = g.shape(x) == g.shape(y)
        return g.add("add", x if same else shortcut(g, a, y, self.stride, "conv", norm), y)

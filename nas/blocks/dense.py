"""Densely connected blocks (Huang et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nas.blocks.base import Block, channels

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class DenseBlock(Block):
    """`layers` layers, each reading all outputs before it; the output has `input + layers * growth` channels.

    Args:
        growth: channels that each layer adds.
        bottleneck: a 1x1 convolution to `bottleneck * growth` channels before each 3x3 (DenseNet-B); 0 leaves it out.
    """

    layers: int = 1
    growth: int = channels(32)
    kernel: int = 3
    bottleneck: int = 4
    activation: str = "relu"
    norm: str = "batch"
    dropout: float = 0.0

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        outputs = [x[0]]
        for i in range(self.layers):
            y = g.concat(f"concat{i}", *outputs)
            with g.scope(f"layer{i}", "dense_layer"):
                if self.bottleneck:
                    y = g.activation("act1", g.norm("norm1", y, self.norm), self.activation)
                    y = g.conv("conv1", y, self.bottleneck * self.growth, 1)
                y = g.activation("act2", g.norm("norm2", y, self.norm), self.activation)
                y = g.conv("conv2", y, self.growth, self.kernel)
                outputs.append(g.dropout("dropout", y, self.dropout))
        return g.concat("concat", *outputs)


@dataclass(frozen=True)
class Dense(Block):
    """A dense block that ends at a given width and stride.

    Layers of `width / (2 * layers)` channels are concatenated to the input, then a 1x1 convolution goes to `width`.
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    layers: int = 2
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = self.width_for(g, x[0])
        growth = max(1, width // (2 * self.layers))
        outputs = [x[0]]
        for i in range(self.layers):
            y = g.concat(f"concat{i}", *outputs)
            outputs.append(
                g.conv_norm_act(f"layer{i}", y, growth, self.kernel, norm=self.norm, activation=self.activation)
            )
        y = g.concat("concat", *outputs)
        y = g.conv_norm_act("transition", y, width, 1, norm=self.norm, activation=self.activation)
        return g.max_pool("pool", y, self.stride) if self.stride > 1 else y


@dataclass(frozen=True)
class Transition(Block):
    """1x1 convolution to `compression` times the channels, then 2x2 average pooling."""

    compression: float = 0.5
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.activation("act", g.norm("norm", x[0], self.norm), self.activation)
        y = g.conv("conv", y, int(g.channels(x[0]) * self.compression), 1)
        return g.avg_pool("pool", y, 2)

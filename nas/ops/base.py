"""What an operation is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nas.errors import GraphError

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. Subclasses are frozen and hashable; equal operations compute the same function."""

    commutative: ClassVar[bool] = False  # the order of the inputs does not matter
    own: ClassVar[bool] = False  # has weights, state or randomness: two equal nodes are two different functions
    inplace: ClassVar[bool] = False  # elementwise: the output may take the input's memory
    layer: ClassVar[bool] = False  # a weight layer, counted in the depth of a network

    def shape(self, *inputs: Shape) -> Shape:
        """Output shape for the given input shapes; raises GraphError where they do not fit."""
        (x,) = inputs
        return x

    def params(self, *inputs: Shape) -> int:
        """Number of trainable parameters."""
        return 0

    def flops(self, *inputs: Shape) -> int:
        """Multiply-adds of one forward pass of one sample."""
        return 0

    @property
    def window(self) -> tuple[Pair, Pair]:
        """Spatial reach and stride, each (height, width), for the receptive field."""
        return (1, 1), (1, 1)


def feature_map(op: Op, x: Shape) -> Shape:
    """`x` if it is a feature map; raises GraphError for a vector."""
    if len(x) != 3:
        raise GraphError(f"{type(op).__name__} needs a feature map (channels, height, width), got the shape {x}")
    return x

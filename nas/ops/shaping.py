"""Operations without weights: pooling, joining and cutting feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from nas.errors import GraphError
from nas.ops.base import Op, Pair, Shape, feature_map


def _reach(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    free = size + 2 * padding - dilation * (kernel - 1) - 1
    if free < 0:
        return 0
    if not ceil:
        return free // stride + 1
    out = -(-free // stride) + 1
    # PyTorch drops a last window that would start in the padding on the right.
    return out - 1 if (out - 1) * stride >= size + padding else out


@dataclass(frozen=True, slots=True)
class Pool(Op):
    """Max or average pooling (`kind` is `max` or `avg`)."""

    kind: str
    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    ceil: bool = False
    count_padding: bool = True  # average pooling: divide by the whole window at the border

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = feature_map(self, inputs[0])
        oh = _reach(h, self.kernel[0], self.stride[0], self.padding[0], 1, self.ceil)
        ow = _reach(w, self.kernel[1], self.stride[1], self.padding[1], 1, self.ceil)
        if oh < 1 or ow < 1:
            raise GraphError(f"Pool: window {self.kernel} does not fit into the {h}x{w} input; use a larger resolution")
        return c, oh, ow

    @property
    def window(self) -> tuple[Pair, Pair]:
        return self.kernel, self.stride


@dataclass(frozen=True, slots=True)
class AdaptivePool(Op):
    """Average pooling to a fixed (height, width); (1, 1) is global average pooling (Lin et al. 2013)."""

    size: Pair = (1, 1)

    def shape(self, *inputs: Shape) -> Shape:
        return feature_map(self, inputs[0])[0], *self.size


@dataclass(frozen=True, slots=True)
class Add(Op):
    """Sum of equal shapes."""

    commutative: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs) < 2 or any(x != inputs[0] for x in inputs):
            raise GraphError(f"{type(self).__name__} needs two or more equal shapes, got {', '.join(map(str, inputs))}")
        return inputs[0]


@dataclass(frozen=True, slots=True)
class Mean(Add):
    """Average of equal shapes (the join of FractalNet)."""


@dataclass(frozen=True, slots=True)
class Mul(Op):
    """Product of a feature map and a gate that has its channels (and one position, or all)."""

    commutative: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        if len(inputs) != 2 or any(len(x) != 3 for x in inputs):
            raise GraphError(f"Mul needs two feature maps, got {', '.join(map(str, inputs))}")
        a, b = sorted(inputs, key=lambda x: x[1] * x[2])
        if a[0] != b[0] or (a[1:] != (1, 1) and a[1:] != b[1:]):
            raise GraphError(f"Mul: the gate {a} fits neither per channel nor per position to the feature map {b}")
        return b


@dataclass(frozen=True, slots=True)
class Concat(Op):
    """Concatenation along the channels."""

    def shape(self, *inputs: Shape) -> Shape:
        if not inputs or any(x[1:] != inputs[0][1:] for x in inputs):
            raise GraphError(f"Concat needs equal heights and widths, got {', '.join(map(str, inputs))}")
        return sum(x[0] for x in inputs), *inputs[0][1:]


@dataclass(frozen=True, slots=True)
class Slice(Op):
    """Channels `start` to `stop` (exclusive)."""

    start: int
    stop: int

    def shape(self, *inputs: Shape) -> Shape:
        x = inputs[0]
        if not 0 <= self.start < self.stop <= x[0]:
            raise GraphError(f"Slice: channels {self.start} to {self.stop} are outside the {x[0]} there are")
        return self.stop - self.start, *x[1:]


@dataclass(frozen=True, slots=True)
class Shuffle(Op):
    """Channel shuffle over `groups` (ShuffleNet, Zhang et al. 2018)."""

    groups: int

    def shape(self, *inputs: Shape) -> Shape:
        x = feature_map(self, inputs[0])
        if x[0] % self.groups:
            raise GraphError(f"Shuffle: {x[0]} channels are not divisible into {self.groups} groups")
        return x


@dataclass(frozen=True, slots=True)
class Shift(Op):
    """Every position takes the value of the one below and to the right, the last row and column zeros.

    A stride of 2 afterwards meets the odd positions instead of the even ones (factorised reduction, Zoph et al. 2017).
    """

    def shape(self, *inputs: Shape) -> Shape:
        return feature_map(self, inputs[0])

    @property
    def window(self) -> tuple[Pair, Pair]:
        return (2, 2), (1, 1)  # beside what is not shifted


@dataclass(frozen=True, slots=True)
class PadChannels(Op):
    """Zero channels added behind the given ones, to `width` in all (the option A shortcut of He et al. 2015)."""

    width: int

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = feature_map(self, inputs[0])
        if self.width < c:
            raise GraphError(f"PadChannels: cannot pad {c} channels to {self.width}")
        return self.width, h, w


@dataclass(frozen=True, slots=True)
class Zero(Op):
    """Zeros of the input's shape, subsampled by `stride`: the `none` operation of cell spaces."""

    stride: int = 1

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = feature_map(self, inputs[0])
        return c, -(-h // self.stride), -(-w // self.stride)


@dataclass(frozen=True, slots=True)
class Flatten(Op):
    """Feature map to vector."""

    def shape(self, *inputs: Shape) -> Shape:
        return (prod(inputs[0]),)

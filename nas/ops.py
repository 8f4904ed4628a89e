"""Primitive operations: what a graph is made of, each with its shape rule and its cost rule.

Shapes are without the batch dimension: `(channels, height, width)` for feature maps, `(features,)` for
vectors. Costs follow the field's papers: one multiply-add of a convolution or linear layer counts 1,
everything else (norms, activations, pooling, biases) counts 0.

An operation knows nothing of torch: `nas.torch.build` and `nas.export.source` hold one table each that says
what an operation is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

from nas.errors import GraphError

Shape = tuple[int, ...]
Pair = tuple[int, int]

ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "silu", "hard_swish", "gelu", "mish",
    "sigmoid", "hard_sigmoid", "tanh", "identity",
)  # fmt: skip
NORMS = ("batch", "layer", "instance", "group", "none")


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


def _map(op: Op, x: Shape) -> Shape:
    if len(x) != 3:
        raise GraphError(f"{type(op).__name__} needs a feature map (channels, height, width), got the shape {x}")
    return x


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
class Input(Op):
    """The network's input; `dims` is its shape."""

    dims: Shape
    own: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        return self.dims


@dataclass(frozen=True, slots=True)
class Conv(Op):
    """2-d convolution with `width` output channels; pairs are (height, width)."""

    width: int
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    bias: bool = False
    own: ClassVar[bool] = True
    layer: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = _map(self, inputs[0])
        if c % self.groups or self.width % self.groups:
            raise GraphError(
                f"Conv: {c} input and {self.width} output channels must both be divisible by groups={self.groups}"
            )
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        oh = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        ow = (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        if oh < 1 or ow < 1:
            raise GraphError(f"Conv: kernel {kh}x{kw} does not fit into the {h}x{w} input; use a larger resolution")
        return self.width, oh, ow

    def params(self, *inputs: Shape) -> int:
        weights = self.width * (inputs[0][0] // self.groups) * self.kernel[0] * self.kernel[1]
        return weights + self.width if self.bias else weights

    def flops(self, *inputs: Shape) -> int:
        _, h, w = self.shape(*inputs)
        return self.width * (inputs[0][0] // self.groups) * self.kernel[0] * self.kernel[1] * h * w

    @property
    def window(self) -> tuple[Pair, Pair]:
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (dh * (kh - 1) + 1, dw * (kw - 1) + 1), self.stride


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """Fully connected layer on a vector."""

    width: int
    bias: bool = True
    own: ClassVar[bool] = True
    layer: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if len(x) != 1:
            raise GraphError(f"Linear needs a vector (features,), got the shape {x}; flatten or pool first")
        return (self.width,)

    def params(self, *inputs: Shape) -> int:
        return inputs[0][0] * self.width + (self.width if self.bias else 0)

    def flops(self, *inputs: Shape) -> int:
        return inputs[0][0] * self.width


@dataclass(frozen=True, slots=True)
class Norm(Op):
    """Normalisation with a scale and a shift per channel.

    `kind`: `batch` (Ioffe & Szegedy 2015), `layer` (all channels and positions of a sample, Ba et al. 2016),
    `instance` (each channel of a sample, Ulyanov et al. 2016), `group` (`groups` groups of channels, Wu & He 2018).
    """

    kind: str = "batch"
    groups: int = 1
    eps: float = 1e-5
    momentum: float = 0.1  # of the running statistics, batch norm only
    own: ClassVar[bool] = True
    inplace: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        x = inputs[0]
        if self.kind == "group" and x[0] % self.groups:
            raise GraphError(f"Norm: {x[0]} channels are not divisible into {self.groups} groups")
        if self.kind == "instance" and (len(x) != 3 or x[1:] == (1, 1)):
            # Of a single position nothing would be left but the shift; PyTorch refuses it too.
            raise GraphError(f"Norm: instance normalisation needs a map of two or more positions, got the shape {x}")
        return x

    def params(self, *inputs: Shape) -> int:
        return 2 * inputs[0][0]


@dataclass(frozen=True, slots=True)
class Activation(Op):
    """Elementwise non-linearity without weights: one of `ACTIVATIONS` but `prelu` and `identity`."""

    kind: str
    inplace: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PReLU(Op):
    """Leaky ReLU with one learned slope per channel (He et al. 2015)."""

    own: ClassVar[bool] = True
    inplace: ClassVar[bool] = True

    def params(self, *inputs: Shape) -> int:
        return inputs[0][0]


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
        c, h, w = _map(self, inputs[0])
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
        return _map(self, inputs[0])[0], *self.size


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
        x = _map(self, inputs[0])
        if x[0] % self.groups:
            raise GraphError(f"Shuffle: {x[0]} channels are not divisible into {self.groups} groups")
        return x


@dataclass(frozen=True, slots=True)
class PadChannels(Op):
    """Zero channels added behind the given ones, to `width` in all (the option A shortcut of He et al. 2015)."""

    width: int

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = _map(self, inputs[0])
        if self.width < c:
            raise GraphError(f"PadChannels: cannot pad {c} channels to {self.width}")
        return self.width, h, w


@dataclass(frozen=True, slots=True)
class Zero(Op):
    """Zeros of the input's shape, subsampled by `stride`: the `none` operation of cell spaces."""

    stride: int = 1

    def shape(self, *inputs: Shape) -> Shape:
        c, h, w = _map(self, inputs[0])
        return c, -(-h // self.stride), -(-w // self.stride)


@dataclass(frozen=True, slots=True)
class Flatten(Op):
    """Feature map to vector."""

    def shape(self, *inputs: Shape) -> Shape:
        return (prod(inputs[0]),)


@dataclass(frozen=True, slots=True)
class Dropout(Op):
    """Elements set to zero with probability `rate` while training."""

    rate: float
    own: ClassVar[bool] = True
    inplace: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class DropPath(Op):
    """The whole input of a sample set to zero with probability `rate` while training (Huang et al. 2016)."""

    rate: float
    own: ClassVar[bool] = True
    inplace: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Module(Op):
    """Any `nn.Module` class: `target` is `package.module:Class`, `options` its keyword arguments as sorted pairs.

    Shape and cost are traced once on meta tensors, so nothing is allocated; this needs torch.
    """

    target: str
    options: tuple[tuple[str, Any], ...] = ()
    own: ClassVar[bool] = True
    layer: ClassVar[bool] = True

    def shape(self, *inputs: Shape) -> Shape:
        return _trace(self, inputs)[0]

    def params(self, *inputs: Shape) -> int:
        return _trace(self, inputs)[1]

    def flops(self, *inputs: Shape) -> int:
        return _trace(self, inputs)[2]


@lru_cache(maxsize=4096)
def _trace(op: Module, inputs: tuple[Shape, ...]) -> tuple[Shape, int, int]:
    from nas.torch.build import trace

    return trace(op, inputs)


OPS: Mapping[str, type[Op]] = {
    cls.__name__: cls
    for cls in (
        Input, Conv, Linear, Norm, Activation, PReLU, Pool, AdaptivePool, Add, Mean, Mul, Concat, Slice, Shuffle,
        PadChannels, Zero, Flatten, Dropout, DropPath, Module,
    )
}  # fmt: skip


def to_json(op: Op) -> dict[str, Any]:
    """The operation as JSON data: its class name under `op`, then its fields."""
    return {"op": type(op).__name__, **{f.name: getattr(op, f.name) for f in fields(op)}}


def from_json(data: Mapping[str, Any]) -> Op:
    """The inverse of `to_json`; raises GraphError for an unknown operation or field."""
    values = dict(data)
    name = values.pop("op", None)
    if name not in OPS:
        raise GraphError(f"unknown operation {name!r}; known: {', '.join(OPS)}")
    try:
        return OPS[name](**{k: _tuples(v) for k, v in values.items()})
    except TypeError as error:
        raise GraphError(f"operation {name}: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value

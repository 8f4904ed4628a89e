"""Operations with weights or randomness of their own, and activations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from nas.errors import GraphError
from nas.ops.base import Op, Pair, Shape, feature_map

ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "silu", "hard_swish", "gelu", "mish",
    "sigmoid", "hard_sigmoid", "tanh", "identity",
)  # fmt: skip
NORMS = ("batch", "layer", "instance", "group", "none")


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
        c, h, w = feature_map(self, inputs[0])
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

"""What an operation is in the file: a call of `torch.nn`, or of a small class that the file brings along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from nas import ops
from nas.errors import ExportError
from nas.ops import Op, Shape
from nas.torch.activations import ACTIVATIONS

if TYPE_CHECKING:
    from nas.export.classes import Class

REQUIRED = object()  # an argument without default
BY_NAME = object()  # one that is always written, by its name


@dataclass(frozen=True)
class Slot:
    """A value in a call. `kind`: what it means; only values of one kind can be the same constructor argument.

    `reads`: it is the number of channels of what the module reads.
    """

    value: Any
    kind: str
    reads: bool = False


@dataclass(frozen=True)
class Argument:
    """An argument of a call; one with a default is written by name, and left out where it has that value."""

    name: str
    value: Slot | Make
    default: Any = REQUIRED


@dataclass(frozen=True)
class Make:
    """A call that makes a module. `head`: what is called."""

    head: str | Class
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Name:
    """A value written as it is, such as `nn.ReLU`."""

    text: str

    def __repr__(self) -> str:
        return self.text


IDENTITY = Name("nn.Identity")
PRELU = Name("nn.PReLU")


def _channels(name: str, value: int, *, reads: bool = False) -> Argument:
    return Argument(name, Slot(value, "channels", reads))


def _option(name: str, value: Any, default: Any, kind: str | None = None) -> Argument:
    return Argument(name, Slot(value, kind or name), default)


def _plain(pair: tuple[int, int]) -> int | tuple[int, int]:
    return pair[0] if pair[0] == pair[1] else pair


def _conv(op: ops.Conv, x: Shape) -> Make:
    return Make(
        "nn.Conv2d",
        (
            _channels("in_channels", x[0], reads=True),
            _channels("out_channels", op.width),
            Argument("kernel_size", Slot(_plain(op.kernel), "kernel_size")),
            _option("stride", _plain(op.stride), 1),
            _option("padding", _plain(op.padding), 0),
            _option("dilation", _plain(op.dilation), 1),
            _option("groups", op.groups, 1),
            _option("bias", op.bias, True, "flag"),
        ),
    )


def _linear(op: ops.Linear, x: Shape) -> Make:
    inputs, outputs = _channels("in_features", x[0], reads=True), _channels("out_features", op.width)
    return Make("nn.Linear", (inputs, outputs, _option("bias", op.bias, True, "flag")))


def _norm(op: ops.Norm, x: Shape) -> Make:
    width = _channels("num_features", x[0], reads=True)
    eps = _option("eps", op.eps, 1e-5)
    if op.kind == "batch":
        momentum = _option("momentum", op.momentum, 0.1)
        return Make("nn.BatchNorm2d" if len(x) == 3 else "nn.BatchNorm1d", (width, eps, momentum))
    if op.kind == "instance":
        return Make("nn.InstanceNorm2d", (width, eps, _option("affine", True, False, "flag")))
    return Make("nn.GroupNorm", (Argument("groups", Slot(op.groups, "groups")), width, eps))


def _activation(op: ops.Activation | ops.PReLU, x: Shape) -> Make:
    kind = PRELU if isinstance(op, ops.PReLU) else Name(f"nn.{ACTIVATIONS[op.kind].__name__}")
    return activation(kind, x[0])


def activation(kind: Name, channels: int) -> Make:
    """`kind()`, or `nn.PReLU(channels)`."""
    return Make("activation", (Argument("kind", Slot(kind, "activation")), _channels("channels", channels, reads=True)))


def _pool(op: ops.Pool, x: Shape) -> Make:
    window = (
        Argument("kernel_size", Slot(_plain(op.kernel), "kernel_size")),
        Argument("stride", Slot(_plain(op.stride), "stride"), BY_NAME),
        _option("padding", _plain(op.padding), 0),
        _option("ceil_mode", op.ceil, False, "flag"),
    )
    if op.kind == "max":
        return Make("nn.MaxPool2d", window)
    return Make("nn.AvgPool2d", (*window, _option("count_include_pad", op.count_padding, True, "flag")))


def _one(head: str, kind: str) -> Callable[..., Make]:
    """A call with the operation's only field."""

    def rule(op: Op, x: Shape) -> Make:
        return Make(head, (Argument(kind, Slot(getattr(op, kind), kind)),))

    return rule


def _wrapped(op: ops.Module, *x: Shape) -> Make:
    for name, value in op.options:
        if not _is_plain(value):
            raise ExportError(f"{op.target}: the option {name}={value!r} cannot be written in a file; use plain values")
    module, _, name = op.target.partition(":")
    if module.partition(".")[0] == "torch" and hasattr(nn, name):
        head = f"nn.{name}"
    elif "<locals>" in name or module == "__main__":
        raise ExportError(f"{op.target} cannot be imported by a file; define the class at the top of a module")
    else:
        head = op.target  # `package.module:Name`, imported under its name
    return Make(head, tuple(Argument(k, Slot(v, f"option {k}"), BY_NAME) for k, v in op.options))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)


RULES: Mapping[type[Op], Callable[..., Make]] = {
    ops.Conv: _conv,
    ops.Linear: _linear,
    ops.Norm: _norm,
    ops.Activation: _activation,
    ops.PReLU: _activation,
    ops.Pool: _pool,
    ops.AdaptivePool: lambda op, x: Make(
        "nn.AdaptiveAvgPool2d", (Argument("output_size", Slot(_plain(op.size), "size")),)
    ),
    ops.Dropout: _one("nn.Dropout", "rate"),
    ops.DropPath: _one("DropPath", "rate"),
    ops.Shuffle: _one("nn.ChannelShuffle", "groups"),
    ops.Zero: _one("Zero", "stride"),
    ops.Shift: lambda op, x: Make("nn.ZeroPad2d", (Argument("padding", Slot((-1, 1, -1, 1), "shift")),)),
    ops.PadChannels: lambda op, x: Make("PadChannels", (Argument("extra_channels", Slot(op.width - x[0], "extra")),)),
    ops.Slice: lambda op, x: Make(
        "Slice", (Argument("start", Slot(op.start, "start")), Argument("stop", Slot(op.stop, "stop")))
    ),
    ops.Flatten: lambda op, x: Make("nn.Flatten"),
    ops.Module: _wrapped,
}

HELPERS: Mapping[str, str] = {  # classes and functions that a file defines where it calls them
    "activation": '''
def make_activation(kind: type[nn.Module], channels: int) -> nn.Module:
    """PReLU learns a slope per channel, the others have nothing to set."""
    return nn.PReLU(channels) if kind is nn.PReLU else kind()
''',
    "DropPath": '''
class DropPath(nn.Module):
    """Sets a sample's whole input to zero with probability `rate` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(keep)
        return x * mask / keep
''',
    "PadChannels": '''
class PadChannels(nn.Module):
    """Adds `extra` channels of zeros behind the given ones."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.extra))
''',
    "Slice": '''
class Slice(nn.Module):
    """Channels `start` to `stop`, without the last."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start = start
        self.stop = stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]
''',
    "Zero": '''
class Zero(nn.Module):
    """Zeros of the input's shape, subsampled by `stride`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])
''',
}

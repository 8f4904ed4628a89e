"""Weighted sums of activations of one tensor: most of a relaxed step could be spent here.

A few are computed one after the other, in pieces that stay in a core's cache. Many are one function of one number,
and that is tabulated: a table costs as much to read whatever was added up to make it. Neither can be differentiated
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.torch.supernet.mixing import flat, layout

CHUNK = 1 << 16
"""Elements that are computed before the next: they stay in a core's cache."""

FEW = 6
"""Activations up to which computing them takes less time than reading a table."""

_aten = torch.ops.aten


class _Kind(NamedTuple):
    """An activation, and its gradient from that of its output, its input and its output."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


SELU = 1.6732632423543772, 1.0507009873554805

# Faster on a CPU than torch's own, which are exact to the last bit: these are to a few of the last. All are made of the
# sigmoid s, which takes a third of the time of an exponential: e^x = s / (1 - s).


def _tanh(x: Tensor) -> Tensor:
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


def _exp_minus_1(x: Tensor) -> Tensor:
    """e^x - 1 = (2 s - 1) / (1 - s) where x is below 0, else 0."""
    s = torch.sigmoid(x.clamp_max(0))
    return (2 * s).sub_(1).div_(1 - s)


def _mish(x: Tensor) -> Tensor:
    return _gate_of_mish(torch.sigmoid(x)).mul_(x)


def _gate_of_mish(s: Tensor) -> Tensor:
    """tanh(softplus(x)) = (1 - q) / (1 + q) with q = (1 - s)^2."""
    q = (1 - s).square_()
    return (1 - q).div_(q.add_(1))


def _mish_backward(g: Tensor, x: Tensor, y: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    gate = _gate_of_mish(s)
    slope = (1 - gate.square()).mul_(s).mul_(x)
    return slope.add_(gate).mul_(g)


KINDS: Mapping[str, _Kind] = {
    "identity": _Kind(lambda x: x, lambda g, x, y: g),
    "relu": _Kind(F.relu, lambda g, x, y: _aten.threshold_backward(g, x, 0)),
    "relu6": _Kind(F.relu6, lambda g, x, y: _aten.hardtanh_backward(g, x, 0, 6)),
    "leaky_relu": _Kind(F.leaky_relu, lambda g, x, y: _aten.leaky_relu_backward(g, x, 0.01, False)),
    "elu": _Kind(lambda x: _exp_minus_1(x).add_(F.relu(x)), lambda g, x, y: _aten.elu_backward(g, 1, 1, 1, False, x)),
    "selu": _Kind(
        lambda x: _exp_minus_1(x).mul_(SELU[0]).add_(F.relu(x)).mul_(SELU[1]),
        lambda g, x, y: _aten.elu_backward(g, SELU[0], SELU[1], 1, False, x),
    ),
    "silu": _Kind(F.silu, lambda g, x, y: _aten.silu_backward(g, x)),
    "hard_swish": _Kind(F.hardswish, lambda g, x, y: _aten.hardswish_backward(g, x)),
    "gelu": _Kind(F.gelu, lambda g, x, y: _aten.gelu_backward(g, x)),
    "mish": _Kind(_mish, _mish_backward),
    "sigmoid": _Kind(torch.sigmoid, lambda g, x, y: _aten.sigmoid_backward(g, y)),
    "hard_sigmoid": _Kind(F.hardsigmoid, lambda g, x, y: _aten.hardsigmoid_backward(g, x)),
    "tanh": _Kind(_tanh, lambda g, x, y: _aten.tanh_backward(g, y)),
}


def mixed_activation(x: Tensor, kinds: Sequence[str], weights: Tensor, slope: Tensor | None = None) -> Tensor:
    """Sum of activations of one tensor, each times a number.

    Args:
        x: (N, C, ...).
        kinds: of `KINDS`.
        weights: (kinds,).
        slope: (C,); what to add, times the channel's slope, where x is below 0 (a PReLU is this and a ReLU).
    """
    result: Tensor = _MixedActivation.apply(x, weights.to(x.dtype), slope, tuple(kinds))  # type: ignore[no-untyped-call]
    return result


class _Mixture(Protocol):
    """A sum of activations. Both methods write to the last argument; the gradients of the weights add up."""

    def values(self, x: Tensor, out: Tensor) -> None: ...
    def backward(self, x: Tensor, grad: Tensor, out: Tensor) -> None: ...
    def of_weights(self) -> Tensor: ...


class _Computed:
    """Each activation by itself."""

    def __init__(self, kinds: Sequence[str], weights: Tensor) -> None:
        self._kinds, self._weights, self._total = [KINDS[kind] for kind in kinds], weights, torch.zeros_like(weights)

    def values(self, x: Tensor, out: Tensor) -> None:
        torch.mul(self._kinds[0].forward(x), self._weights[0], out=out)
        for kind, weight in zip(self._kinds[1:], self._weights[1:], strict=True):
            out.addcmul_(kind.forward(x), weight)

    def backward(self, x: Tensor, grad: Tensor, out: Tensor) -> None:
        out.zero_()
        for k, kind in enumerate(self._kinds):
            y = kind.forward(x)
            self._total[k] += torch.dot(flat(grad), flat(y))
            out.addcmul_(kind.backward(grad, x, y), self._weights[k])

    def of_weights(self) -> Tensor:
        return self._total


REACH, STEPS = 16, 1024
"""A table goes from -REACH to REACH in steps of 1 / STEPS. All kinks are at whole numbers; beyond the table all
activations are straight lines but for 2e-6, and between two entries but for 1e-7, which is single precision."""


@lru_cache(maxsize=16)
def _basis(kinds: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Every activation where each step starts and how far it rises there, both (kinds, steps)."""
    x = torch.linspace(-REACH, REACH, 2 * REACH * STEPS + 1, dtype=torch.float64)
    table = torch.stack([KINDS[kind].forward(x) for kind in kinds])
    return table[:, :-1].float(), table.diff().float()


class _Tabulated:
    """The sum at equal steps, straight lines in between; gradients are exactly those of these lines."""

    def __init__(self, kinds: Sequence[str], weights: Tensor) -> None:
        self._basis = _basis(tuple(kinds))
        self._starts, self._rises = (weights @ basis for basis in self._basis)
        self._slopes = self._rises * STEPS
        self._at_starts, self._at_rises = torch.zeros_like(self._starts), torch.zeros_like(self._rises)

    def _find(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The step that each number is in, and how far in it; beyond the table, the last one goes on."""
        u = torch.add(REACH * STEPS, flat(x), alpha=STEPS)
        step = u.clamp(0, len(self._rises) - 1).floor_()
        u -= step
        at = step.to(torch.int32).clamp_(0, len(self._rises) - 1)  # not a number is no entry
        return at.to(torch.int64), u  # indices of 64 bits are found faster than those of 32

    def values(self, x: Tensor, out: Tensor) -> None:
        at, along = self._find(x)
        torch.addcmul(self._starts.index_select(0, at), self._rises.index_select(0, at), along, out=flat(out))

    def backward(self, x: Tensor, grad: Tensor, out: Tensor) -> None:
        at, along = self._find(x)
        g = flat(grad)
        self._at_starts.scatter_add_(0, at, g)
        self._at_rises.scatter_add_(0, at, along.mul_(g))
        torch.mul(self._slopes.index_select(0, at), g, out=flat(out))

    def of_weights(self) -> Tensor:
        starts, rises = self._basis
        return starts @ self._at_starts + rises @ self._at_rises


def _mixture(kinds: Sequence[str], weights: Tensor, x: Tensor) -> _Mixture:
    # A GPU adds up a table's gradients in another order each time, and is not short of arithmetic.
    is_tabulated = len(kinds) > FEW and x.dtype is torch.float32 and not x.is_cuda and x.numel() >= CHUNK
    return (_Tabulated if is_tabulated else _Computed)(kinds, weights)


class _MixedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, slope: Tensor | None, kinds: tuple[str, ...]) -> Tensor:
        x = x.contiguous(memory_format=layout(x))  # a part of a tensor is neither: pieces would be copies
        slope = None if slope is None else slope.view(1, -1, *[1] * (x.dim() - 2))
        ctx.save_for_backward(x, weights, slope)
        ctx.kinds = kinds
        mixture, total = _mixture(kinds, weights, x), torch.empty_like(x)
        for at, out in _pieces(x, total):
            mixture.values(at, out)
            if slope is not None:
                out.addcmul_(at.clamp_max(0), slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weights, slope = ctx.saved_tensors
        grad = grad.contiguous(memory_format=layout(x))
        mixture, of_x = _mixture(ctx.kinds, weights, x), torch.empty_like(x)
        of_slope = None if slope is None else torch.zeros_like(slope)
        for at, g, out in _pieces(x, grad, of_x):
            mixture.backward(at, g, out)
            if of_slope is not None:
                below = g - _aten.threshold_backward(g, at, 0)  # faster than a mask
                out.addcmul_(below, slope)
                of_slope += below.mul_(at).sum_to_size(of_slope.shape)
        return of_x, mixture.of_weights(), None if of_slope is None else of_slope.view(-1), None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some samples after the other; on a GPU all at once."""
    first = tensors[0]
    samples = first.shape[0] if first.is_cuda else max(1, CHUNK * first.shape[0] // max(1, first.numel()))
    return zip(*[torch.split(x, samples) for x in tensors], strict=True)

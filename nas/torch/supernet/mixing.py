"""Weighted sums of tensors and of activations, whose gradients make no copies: most of a relaxed step is spent here.

Neither can be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (as everywhere)

CHUNK = 1 << 16
"""Elements for which all activations are computed before the next: they stay in a core's cache."""

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


def weighted_sum(weights: Sequence[Tensor], xs: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape, each times a number."""
    result: Tensor = _WeightedSum.apply(torch.stack(list(weights)).to(xs[0].dtype), *xs)  # type: ignore[no-untyped-call]
    return result


def mixed_activation(x: Tensor, kinds: Sequence[str], weights: Sequence[Tensor]) -> Tensor:
    """Sum of activations of one tensor, each times a number; `kinds` are of `KINDS`."""
    p = torch.stack(list(weights)).to(x.dtype)
    result: Tensor = _MixedActivation.apply(x, p, tuple(kinds))  # type: ignore[no-untyped-call]
    return result


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *xs: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *xs)
        total = xs[0] * weights[0]
        for weight, x in zip(weights[1:], xs[1:], strict=True):
            total.addcmul_(x, weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, *xs = ctx.saved_tensors
        needs_weights, *needs = ctx.needs_input_grad
        of_weights = torch.stack([_dot(grad, x) for x in xs]) if needs_weights else None
        return of_weights, *[grad * w if need else None for w, need in zip(weights, needs, strict=True)]


class _MixedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, kinds: tuple[str, ...]) -> Tensor:
        x = x.contiguous(memory_format=_format(x))  # a part of a tensor is neither: chunks would be copies
        ctx.save_for_backward(x, weights)
        ctx.kinds = kinds
        total = torch.empty_like(x)
        for at, out in zip(_chunks(x), _chunks(total), strict=True):
            out.copy_(KINDS[kinds[0]].forward(at)).mul_(weights[0])
            for kind, weight in zip(kinds[1:], weights[1:], strict=True):
                out.addcmul_(KINDS[kind].forward(at), weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weights = ctx.saved_tensors
        grad = grad.contiguous(memory_format=_format(x))
        of_weights, of_x = torch.zeros_like(weights), torch.zeros_like(x)
        for at, g, out in zip(_chunks(x), _chunks(grad), _chunks(of_x), strict=True):
            for k, kind in enumerate(ctx.kinds):
                y = KINDS[kind].forward(at)
                of_weights[k] += torch.dot(g, y)
                out.addcmul_(KINDS[kind].backward(g, at, y), weights[k])
        return of_x, of_weights, None


def _format(x: Tensor) -> torch.memory_format:
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _flat(x: Tensor) -> Tensor:
    """All elements in the order in which they lie in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1) if _format(x) is torch.channels_last else x.reshape(-1)


def _chunks(x: Tensor) -> Sequence[Tensor]:
    """Pieces of a tensor that are computed one after the other; on a GPU there is but one."""
    flat = _flat(x)
    return (flat,) if x.is_cuda else torch.split(flat, CHUNK)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products."""
    if _format(a) is not _format(b):
        return (a * b).sum()
    return torch.dot(_flat(a), _flat(b))

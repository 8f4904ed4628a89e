"""Weighted sums of tensors, whose gradients make no copies. They cannot be differentiated twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def weighted_sum(weights: Tensor, xs: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape, each times one of the weights (n,)."""
    result: Tensor = _WeightedSum.apply(weights.to(xs[0].dtype), *xs)  # type: ignore[no-untyped-call]
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


def layout(x: Tensor) -> torch.memory_format:
    """How a tensor lies in memory."""
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def flat(x: Tensor) -> Tensor:
    """All elements in the order in which they lie in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1) if layout(x) is torch.channels_last else x.reshape(-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products."""
    if layout(a) is not layout(b):
        return (a * b).sum()
    return torch.dot(flat(a), flat(b))

"""Data parallel training: each process has a share of every batch, and all have the same weights.

On a GPU this has not been run yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

PATIENCE = timedelta(minutes=10)
"""For which a process waits for the others before it gives up."""


@dataclass(frozen=True)
class Group:
    """The processes of a training: `rank` of `world`. Alone, nothing is exchanged."""

    rank: int = 0
    world: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        return value if self.world == 1 else self.sum(value.clone()) / self.world

    def average_gradients(self, module: nn.Module) -> None:
        """Replace every gradient by its mean: with equal shares, that of the whole batch.

        All of them travel together, which for networks of some million parameters costs less than hooks that send
        each as soon as it is there, and does not mind layers that are frozen for a while.
        """
        if self.world == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = self.mean(torch.cat([g.flatten() for g in gradients]))
        for own, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            own.copy_(part.view(own.shape))


ALONE = Group()


def synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch norms that take the statistics of the whole batch; keys and weights stay."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for layer in module.modules():  # PyTorch's own know GPUs alone
        kind = _SYNCHRONISED.get(type(layer))
        if kind is not None:
            layer.__class__ = kind
    return module


class _Sum(torch.autograd.Function):
    """Over all processes. Every process's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


class _Synchronised(_BatchNorm):
    """Batch norm whose mean and variance are those of all processes' images together."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes, view = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        world = distributed.get_world_size()
        exact = x.float()  # statistics too, whatever the precision, as in PyTorch's own
        mean = _Sum.apply(exact.mean(axes)) / world  # type: ignore[no-untyped-call]
        centred = exact - mean.view(view)
        variance = _Sum.apply(centred.square().mean(axes)) / world  # type: ignore[no-untyped-call]
        self._remember(mean.detach(), variance.detach(), world * x.numel() // x.shape[1])
        normal = centred * (variance + self.eps).rsqrt().view(view)
        if self.affine:
            normal = normal * self.weight.view(view) + self.bias.view(view)
        result: Tensor = normal.to(x.dtype)
        return result

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / max(1, count - 1), share)


class _Synchronised1d(_Synchronised, nn.BatchNorm1d):
    pass


class _Synchronised2d(_Synchronised, nn.BatchNorm2d):
    pass


_SYNCHRONISED: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: _Synchronised1d, nn.BatchNorm2d: _Synchronised2d,
}  # fmt: skip


@contextmanager
def joined(rank: int, world: int, meeting: str, device: torch.device) -> Iterator[Group]:
    """Meet the other processes at `meeting` (a `file://` or `tcp://` address), and part at the end."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=world, timeout=PATIENCE)
    try:
        yield Group(rank, world)
    finally:
        distributed.destroy_process_group()

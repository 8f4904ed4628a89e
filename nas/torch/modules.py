"""The operations that `torch.nn` has no module for. None of them has weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)


@torch.fx.wrap  # fx cannot look at a device
def _trained_mean(x: Tensor) -> Tensor:
    """Mean over positions, with a gradient laid out as x.

    That of `mean` is (N, C, H, W) whatever x was, and the layers before it then pay for mixed layouts.
    """
    # On a GPU a window of the whole map occupies few cores.
    return F.avg_pool2d(x, x.shape[2:]) if x.device.type == "cpu" else x.mean((2, 3), keepdim=True)


class Add(nn.Module):
    """Sum of the inputs."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        for x in others:
            first = first + x
        return first


class Mean(Add):
    """Average of the inputs."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return super().forward(first, *others) / (1 + len(others))


class Mul(nn.Module):
    """Product of two inputs; either may be a gate with one position."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class Concat(nn.Module):
    """The channels of all inputs, one after the other."""

    def forward(self, *x: Tensor) -> Tensor:
        return torch.cat(x, dim=1)


class Slice(nn.Module):
    """Channels `start` to `stop` (exclusive)."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]

    def extra_repr(self) -> str:
        return f"{self.start}, {self.stop}"


class PadChannels(nn.Module):
    """`extra` zero channels behind the given ones."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))

    def extra_repr(self) -> str:
        return str(self.extra)


class Zero(nn.Module):
    """Zeros of the input's shape, subsampled by `stride`."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])

    def extra_repr(self) -> str:
        return str(self.stride)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """The mean over all positions, (N, C, H, W) to (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        return _trained_mean(x) if self.training else super().forward(x)


class DropPath(nn.Module):
    """The whole input of a sample set to zero with probability `rate` while training (Huang et al. 2016).

    What is kept is divided by the probability of keeping it, so that evaluation needs no correction. `axes`: how many
    the input has behind the batch's.
    """

    def __init__(self, rate: float, axes: int = 3) -> None:
        super().__init__()
        self.rate, self.axes = rate, axes

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0], *[1] * self.axes)).bernoulli_(keep)
        return x * (mask / keep) if keep else x * mask

    def extra_repr(self) -> str:
        return str(self.rate)

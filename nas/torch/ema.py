"""An exponential moving average of a network's weights, which generalises better than the last ones."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a module's parameters and of the statistics of its norms.

    The first steps count for more, so that the random start is forgotten: after t steps the decay is at most
    (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage.

    Arguments:
        module: whose weights are followed; on its device already.
        decay: per step.

    Attributes:
        module: a copy that has the average; for evaluation.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._own, self._followed = _tensors(self.module), _tensors(module)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        floating = [i for i, tensor in enumerate(self._own) if tensor.is_floating_point()]
        torch._foreach_lerp_([self._own[i] for i in floating], [self._followed[i] for i in floating], weight)
        for own, followed in zip(self._own, self._followed, strict=True):
            if not own.is_floating_point():  # norms count their batches
                own.copy_(followed)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

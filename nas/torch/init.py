"""Initial weights that depend on a seed alone: not on torch's global generator, the device or the layout."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, *, gain: float = math.sqrt(2)) -> None:
    """Draw the weights of `module` anew, in place.

    Convolutions: normal with standard deviation gain / sqrt(fan out) (He et al. 2015), where the fan out
    of a grouped convolution counts one group, as in EfficientNet. Linear layers: normal with .01.
    Biases 0. Every other layer, norms and PReLU included, does what its own `reset_parameters` does;
    parameters that belong to no such layer keep their values.

    Arguments:
        seed: at least 0.
        gain: 1 / sqrt(E f(z)^2) of the activation f that follows, z ~ N(0, 1); sqrt(2) for ReLU.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # a user's layer may draw from it
        for layer in module.modules():
            if isinstance(layer, CONVOLUTIONS):
                fan_out = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
                _fill(layer, gain / math.sqrt(fan_out), generator)
            elif isinstance(layer, nn.Linear):
                _fill(layer, 0.01, generator)
            elif callable(reset := getattr(layer, "reset_parameters", None)):
                reset()


def _fill(layer: nn.Module, std: float, generator: torch.Generator) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    if isinstance(bias, Tensor):
        bias.zero_()

"""Initial weights that depend on a seed alone: not on torch's global generator, the device or the layout."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nas.torch.initialisation import NORMED, SMALL_NORMED, Initial

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NOTHING: Mapping[str, Initial] = {}


@torch.no_grad()
def initialise(module: nn.Module, seed: int, layers: Mapping[str, Initial] = NOTHING) -> None:
    """Draw the weights of `module` anew, in place.

    Convolutions and linear layers: normal, as `layers` says by their paths, else as in a network with norms.
    Biases 0. Every other layer, norms and PReLU included, does what its own `reset_parameters` does;
    parameters that belong to no such layer keep their values.

    Arguments:
        seed: at least 0.
        layers: see `nas.torch.initialisation.initialisation`.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # a user's layer may draw from it
        for path, layer in module.named_modules():
            if isinstance(layer, CONVOLUTIONS):
                receptive = math.prod(layer.kernel_size)
                fans = layer.in_channels // layer.groups * receptive, layer.out_channels // layer.groups * receptive
                _fill(layer, layers.get(path, NORMED).std(*fans), generator)
            elif isinstance(layer, nn.Linear):
                _fill(layer, layers.get(path, SMALL_NORMED).std(layer.in_features, layer.out_features), generator)
            elif callable(reset := getattr(layer, "reset_parameters", None)):
                reset()


def _fill(layer: nn.Module, std: float, generator: torch.Generator) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    if isinstance(bias, Tensor):
        bias.zero_()

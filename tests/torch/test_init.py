from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nas.torch.init import initialise
from nas.torch.initialisation import Initial


class Custom(nn.Module):
    """A user's layer that draws from torch's global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(5, 3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 256, 3),
        nn.BatchNorm2d(256),
        nn.PReLU(256, init=0.1),
        nn.Conv2d(256, 512, 3, groups=256, bias=False),
        nn.LayerNorm([512, 4, 4]),
        nn.Linear(300, 200),
        Custom(),
    )


def weights(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def test_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = network()
    initialise(one, 3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = network().to(memory_format=torch.channels_last)
    drawn = torch.get_rng_state()
    initialise(other, 3)
    assert not torch.equal(before, drawn)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(map(torch.equal, weights(one), weights(other)))
    initialise(other, 4)
    assert not torch.equal(one[0].weight, other[0].weight)
    assert not torch.equal(one[6].table, other[6].table)


def test_standard_deviations_of_a_network_with_norms() -> None:
    module = network()
    with torch.no_grad():
        for value in module.parameters():
            value.fill_(7)
    initialise(module, 0)
    conv, norm, prelu, depthwise, layer_norm, linear = module[:6]
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(2 / (256 * 9)), rel=0.02)
    assert float(depthwise.weight.detach().std()) == pytest.approx(math.sqrt(2 / (2 * 9)), rel=0.05)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    for layer, value in ((norm, 1), (layer_norm, 1), (prelu, 0.1)):
        assert torch.equal(layer.weight, torch.full_like(layer.weight, value))
    for layer in (conv, norm, layer_norm, linear):
        assert not layer.bias.any()


def test_standard_deviations_as_told() -> None:
    module = network()
    layers = {
        "0": Initial("he", 1.5, "in", ""), "3": Initial("lecun", 1.0, "in", ""), "5": Initial("xavier", 2.0, "mean", "")
    }  # fmt: skip
    initialise(module, 0, layers)
    conv, depthwise, linear = module[0], module[3], module[5]
    assert float(conv.weight.detach().std()) == pytest.approx(1.5 / math.sqrt(16 * 9), rel=0.02)
    assert float(depthwise.weight.detach().std()) == pytest.approx(1 / math.sqrt(9), rel=0.05)
    assert float(linear.weight.detach().std()) == pytest.approx(2 / math.sqrt(250), rel=0.02)


def test_running_statistics_start_anew() -> None:
    module = network()
    module[1](torch.randn(4, 256, 2, 2) + 3)
    initialise(module, 0)
    assert not module[1].running_mean.any()
    assert int(module[1].num_batches_tracked) == 0

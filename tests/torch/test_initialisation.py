"""Initialisation by activation: the gains, which layer gets what, and that signals keep their size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nas import ops
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, DenseHead, Head, MaxPool, Residual
from nas.plugins import reference
from nas.torch.activations import gain
from nas.torch.build import build
from nas.torch.init import initialise
from nas.torch.initialisation import NORMED, SMALL_NORMED, initialisation

# By 5e7 samples of a normal distribution.
GAINS = {"leaky_relu": 1.4141, "prelu": 1.372, "elu": 1.245, "selu": 1, "silu": 1.677, "hard_swish": 1.737,
         "gelu": 1.534, "mish": 1.487, "sigmoid": 1.846, "tanh": 1.593}  # fmt: skip


@pytest.mark.parametrize(("kind", "expected"), GAINS.items())
def test_gains_by_sampling(kind: str, expected: float) -> None:
    assert gain(kind) == pytest.approx(expected, abs=0.0006)


def test_gains_in_closed_form() -> None:
    assert gain("relu") == pytest.approx(math.sqrt(2), abs=1e-7)
    assert gain("leaky_relu") == pytest.approx(math.sqrt(2 / (1 + 0.01**2)), abs=1e-7)
    assert gain("prelu") == pytest.approx(math.sqrt(2 / (1 + 0.25**2)), abs=1e-7)
    assert gain("identity") == pytest.approx(1, abs=1e-12)


def plain(activation: str, layers: int = 30, *, norm: str = "none") -> Architecture:
    convs: dict[str, Any] = {f"conv{i}": Conv(32, activation=activation, norm=norm) for i in range(layers)}
    return Architecture(Chain(**convs, head=Head(10)), (3, 12, 12), 10)


@pytest.mark.parametrize("kind", ops.ACTIVATIONS[:-1])
def test_with_a_norm_nothing_depends_on_the_activation(kind: str) -> None:
    chosen = initialisation(plain(kind, 2, norm="layer").graph())
    assert chosen == {"conv0.conv": NORMED, "conv1.conv": NORMED, "head.classifier": SMALL_NORMED}
    assert NORMED.std(7, 64) == math.sqrt(2) / math.sqrt(64)
    assert SMALL_NORMED.std(7, 64) == 0.01


@pytest.mark.parametrize(
    ("kind", "scheme", "size", "fan"),
    [
        ("relu", "he", math.sqrt(2), "in"),
        ("gelu", "he", 1.534, "in"),
        ("prelu", "he", 1.372, "in"),
        ("selu", "lecun", 1, "in"),
        ("tanh", "xavier", 1.593, "mean"),
        ("sigmoid", "xavier", 1.846, "mean"),
        ("identity", "lecun", 1, "in"),
    ],
)
def test_without_norms_the_activation_that_follows_decides(kind: str, scheme: str, size: float, fan: str) -> None:
    body = Chain(a=Conv(8, activation=kind, norm="none"), pool=MaxPool(), b=Conv(4, norm="none"), head=Head(10))
    chosen = initialisation(Architecture(body, (3, 8, 8), 10).graph())
    first = chosen["a.conv"]
    assert (first.scheme, first.fan) == (scheme, fan)
    assert first.gain == pytest.approx(size, abs=0.001)
    assert chosen["b.conv"].gain == pytest.approx(math.sqrt(2), abs=1e-6)
    assert (chosen["head.classifier"].scheme, chosen["head.classifier"].std(8, 10)) == ("small", 0.01)


def test_what_follows_is_found_through_additions_and_dropout() -> None:
    body = Chain(
        stem=Conv(8, norm="none", activation="tanh"),
        block=Residual(8, norm="none", activation="gelu"),
        head=DenseHead(10, (16,), size=2, activation="elu", dropout_first=True),
    )
    chosen = initialisation(Architecture(body, (3, 8, 8), 10).graph())
    gains = {name: layer.gain for name, layer in chosen.items()}
    assert gains == {
        "stem.conv": gain("tanh"), "block.conv1.conv": gain("gelu"), "block.conv2.conv": gain("gelu"),
        "head.hidden0": gain("elu"), "head.classifier": 1,
    }  # fmt: skip


def test_every_weight_layer_of_the_zoo_is_drawn_as_told() -> None:
    graph = reference("alexnet").graph()
    module, chosen = build(graph, seed=0), initialisation(graph)
    layers = {path: m for path, m in module.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    assert layers.keys() == chosen.keys()
    for name, layer in layers.items():
        fan_in = layer.weight[0].numel()
        expected = chosen[name].std(fan_in, layer.weight.numel() // fan_in)
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("kind", ["elu", "selu", "mish", "tanh", "sigmoid", "relu"])
def test_a_signal_keeps_its_size_through_30_layers(kind: str) -> None:
    """Drawn for ReLU instead, ELU and SELU multiply its second moment by more than ten, and Mish divides it so."""
    graph = plain(kind).graph()
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    at = {node.name: i for i, node in enumerate(graph.nodes)}

    def decades(fitting: bool) -> float:
        module: Any = build(graph, seed=1)
        if not fitting:
            initialise(module, 1)
        with torch.no_grad():
            values = module.values(x)
        first, last = (float(values[at[f"conv{i}.act"]].square().mean()) for i in (0, 29))
        return math.log10(last / first)

    assert abs(decades(fitting=True)) < 2  # 15 % a layer: the zeros at the border, and chance
    if kind in ("elu", "selu", "mish"):
        assert abs(decades(fitting=False)) > max(1, 2 * abs(decades(fitting=True)))

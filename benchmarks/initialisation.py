"""What the initialisation by activation is worth in networks without norms.

    python benchmarks/initialisation.py

Plain networks of 3x3 convolutions, once as `nas.torch.initialisation` draws them, once as if they had norms (He with
the gain of ReLU and the fan out): the second moment after 30 layers relative to that after the first, and the accuracy
on digits after two epochs with 10 layers.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import mean

import torch
from torch import nn

from nas import ops
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, MaxPool
from nas.errors import Diverged
from nas.torch.build import build
from nas.torch.data import Data, load
from nas.torch.init import initialise
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.runtime import prepare
from nas.torch.train import fit

SEEDS = range(3)


def plain(activation: str, layers: int, width: int) -> Architecture:
    """A network of `layers` convolutions without norms; the map is halved after a third and two thirds."""
    parts: dict[str, object] = {}
    for i in range(layers):
        parts[f"conv{i}"] = Conv(width, activation=activation, norm="none")
        if layers < 30 and i in (layers // 3, 2 * layers // 3):
            parts[f"pool{i}"] = MaxPool()
    return Architecture(Chain(**parts, head=Head(10)), (1, 8, 8) if layers < 30 else (3, 16, 16), 10)


def made(architecture: Architecture, seed: int, fitting: bool) -> nn.Module:
    """The module, initialised by its activations or as if norms followed."""
    module = build(architecture.graph(), seed=seed)
    if not fitting:
        initialise(module, seed)
    return module


def growth(activation: str, seed: int, fitting: bool) -> float:
    """Decimal logarithm of the second moment after 30 layers relative to that after the first."""
    architecture = plain(activation, 30, 64)
    module = made(architecture, seed, fitting)
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        values = module.values(x)
    at = {node.name: i for i, node in enumerate(architecture.graph().nodes)}
    first, last = (float(values[at[f"conv{i}.act"]].square().mean()) for i in (0, 29))
    return math.log10(last / first)


def accuracy(data: Data, activation: str, seed: int, fitting: bool) -> float:
    """On validation images after two epochs; chance where the training diverges."""
    recipe = Recipe(epochs=2)
    batches = partial(Batches, mean=data.mean, std=data.std, channels_last=True)
    train = batches(data.train, batch=recipe.batch, augment=Augment(0, flip=False), seed=seed)
    module = made(plain(activation, 10, 32), seed, fitting)
    try:
        metrics = fit(module, train, batches(data.validation, batch=256), recipe, seed=seed, device="cpu")
    except Diverged:
        return 0.1
    return metrics["accuracy"]


def main() -> None:
    prepare(torch.device("cpu"), 1)
    data = load("digits")
    print(f"mean of {len(SEEDS)} seeds; as if normed / by activation")
    print(f"{'':14}{'log10 of growth':>18}{'accuracy':>18}")
    for activation in ops.ACTIVATIONS[:-1]:
        grown = [mean(growth(activation, seed, fitting) for seed in SEEDS) for fitting in (False, True)]
        learned = [mean(accuracy(data, activation, seed, fitting) for seed in SEEDS) for fitting in (False, True)]
        print(f"{activation:14}{grown[0]:9.2f}{grown[1]:9.2f}{learned[0]:9.3f}{learned[1]:9.3f}", flush=True)


if __name__ == "__main__":
    main()

"""The questions of a first lecture answered for one network: does its gradient vanish or explode, which units are dead,
what does it see?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.architecture import Architecture
from nas.errors import ConfigError
from nas.torch.initialisation import Initial, initialisation
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.snapshot import Snapshot, snapshot
from nas.torch.train import make_optimizer, own_randomness, trial_errors

if TYPE_CHECKING:
    from nas.torch.data import Data

VANISHED = 1e-6
"""Sensitivity below which a layer does not learn: other weights would change the loss by less than its rounding."""

EXPLODED = 1e6
"""Sensitivity above which no learning rate is small enough: float32's rounding of the weights alone moves the loss. Of
142 reference architectures at initialisation none comes nearer to either bound than a factor of 26
(`benchmarks/diagnose.py`)."""

DEAD = 0.5
"""Share of dead units of an activation that is worth a word."""

ALIKE = 1e-3
"""Spread over the images / size of an activation's output below which a network cannot tell images apart."""

OnStep = Callable[[int, float], None]


class Finding(NamedTuple):
    """Something wrong: what kind, at which node, when, and a sentence."""

    kind: str
    node: str
    when: str
    text: str


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """A network before and after some steps of training.

    Attributes:
        architecture: the network.
        initial: how each layer started.
        images: how many were looked at.
        start: at initialisation.
        end: after `steps` steps; None if there were none, or the training diverged.
        steps: of training that were done.
        diverged: whether the loss stopped being a number in the last of them.
    """

    architecture: Architecture
    initial: Mapping[str, Initial]
    images: int
    start: Snapshot
    end: Snapshot | None
    steps: int
    diverged: bool

    @property
    def moments(self) -> Mapping[str, Snapshot]:
        """The snapshots by when they were taken."""
        end = {} if self.end is None else {f"after {self.steps} steps": self.end}
        return {"at initialisation": self.start, **end}

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, in words; empty for a sound network. One of a kind per moment, at the worst node."""
        found = [finding for when, moment in self.moments.items() for finding in judge(moment, when)]
        if self.diverged:
            when = f"at step {self.steps}"
            found.append(Finding("diverged", "", when, f"the training diverges {when}: the loss is not a number"))
        return found


def judge(moment: Snapshot, when: str) -> list[Finding]:
    """What is wrong with a network at one moment."""
    found = []
    sizes = {name: math.inf if math.isnan(size) else size for name, size in moment.sensitivities.items()}
    middle = median(sizes.values()) if sizes else 0.0
    for kind, verb, chosen, worst in (
        ("vanishing", "vanishes", [name for name, size in sizes.items() if size < VANISHED], min),
        ("exploding", "explodes", [name for name, size in sizes.items() if size > EXPLODED], max),
    ):
        if chosen:
            name = worst(chosen, key=sizes.__getitem__)
            relative = f", {sizes[name] / middle:.2g} times the median" if 0 < middle < math.inf else ""
            count = f"{len(chosen)} of {len(sizes)} layers"
            text = f"the gradient {verb} {when} at {name}: times the weights {sizes[name]:.0e}{relative} ({count})"
            found.append(Finding(kind, name, when, text))
    dead = {name: share for name, share in moment.dead.items() if share > DEAD}
    if dead:
        name = max(dead, key=dead.__getitem__)
        count = f"{len(dead)} of {len(moment.dead)} activations have more than {DEAD:.0%}"
        found.append(Finding("dead", name, when, f"{dead[name]:.0%} of the units of {name} are dead {when} ({count})"))
    alike = [name for name in moment.dead if moment.spreads[name] < ALIKE * moment.sizes[name]]
    if alike:
        count = f"{len(alike)} of {len(moment.dead)} activations"
        found.append(Finding("alike", alike[0], when, f"from {alike[0]} on all images look alike {when} ({count})"))
    return found


def diagnose(
    architecture: Architecture, data: Data, *, steps: int = 50, batch: int = 32, seed: int = 0,
    device: str | torch.device = "cpu", on_step: OnStep | None = None,
) -> Diagnosis:  # fmt: skip
    """Look into a network at initialisation, and again after `steps` steps of the training that evaluator `train` does.

    Args:
        data: images to look at it with, resized to its input; grey ones are taken for each of its channels.
        steps: 0 looks once.
        batch: images per step, and that are looked at (the same before and after, and for every network and seed).
        seed: of the weights.
        device: where to; a GPU has not been tried yet.
        on_step: called with (steps done, loss).

    Raises ConfigError for data that do not fit the network, or a value out of range; EvaluationError where the network
    cannot be run.
    """
    if steps < 0:
        raise ConfigError(f"steps: expected a whole number of at least 0, got {steps}")
    train = batches(architecture, data, batch=batch, count=batch * (steps + 1), device=device)
    graph = architecture.graph()
    module = architecture.module(seed=seed).to(device)
    x, y = next(iter(train.epoch(0)))
    start = snapshot(module, graph, x, y, seed=seed)
    done, loss = 0, 0.0
    if steps:
        done, loss = _train(module, train, len(data.train), steps, seed, on_step)
    is_finite = math.isfinite(loss)
    end = snapshot(module, graph, x, y, seed=seed) if steps and is_finite else None
    return Diagnosis(architecture, initialisation(graph), len(y), start, end, done, not is_finite)


def batches(architecture: Architecture, data: Data, *, batch: int, count: int, device: str | torch.device) -> Batches:
    """Shuffled batches of `count` training images, always the same, as the network reads them. Raises ConfigError."""
    from nas.torch.data import Split

    channels, height, width = architecture.input_shape
    if batch < 2:
        raise ConfigError(f"batch: expected at least 2 images, which norms and spreads need, got {batch}")
    if data.input_shape[0] not in (1, channels):
        raise ConfigError(
            f"{architecture.name!r} reads images of {channels} channels, {data.source} has {data.input_shape[0]}; "
            "name other data with --data"
        )
    if data.classes > architecture.classes:
        raise ConfigError(
            f"{architecture.name!r} tells {architecture.classes} classes apart, {data.source} has {data.classes}; "
            "name other data with --data"
        )
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(data.train))[:count])
    images = data.train.images[chosen]
    times = channels // images.shape[1]
    return Batches(
        Split(images.repeat(1, times, 1, 1), data.train.labels[chosen]), mean=data.mean * times, std=data.std * times,
        batch=batch, device=device, resolution=(height, width), augment=Augment(0, flip=False),
    )  # fmt: skip


@trial_errors
def _train(
    module: nn.Module, train: Batches, images: int, steps: int, seed: int, on_step: OnStep | None
) -> tuple[int, float]:
    """Steps of the default recipe as if all `images` were trained on; returns how many were done, and the last loss."""
    recipe = Recipe(batch=train.batch)
    optimizer = make_optimizer(module, recipe, fused=True)
    per_epoch = max(1, images // recipe.batch)
    module.train()
    done, loss = 0, 0.0
    with own_randomness((seed, 1), train.device):
        for epoch in range(steps):
            for x, y in train.epoch(epoch):
                if done == steps:
                    return done, loss
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr_at(min((done + 1) / per_epoch, recipe.epochs))
                loss = _step(module, optimizer, x, y, recipe)
                done += 1
                if on_step:
                    on_step(done, loss)
                if not math.isfinite(loss):
                    return done, loss
    return done, loss


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, recipe: Recipe) -> float:
    loss = functional.cross_entropy(module(x).float(), y, label_smoothing=recipe.label_smoothing)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
    optimizer.step()
    return float(loss.detach())

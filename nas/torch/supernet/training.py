"""Training of a supernet, one step of a few networks at a time, that can be stopped and continued."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.choices import Genotype
from nas.errors import EvaluationError, GraphError
from nas.torch.checkpoint import Checkpoint
from nas.torch.recipe import Recipe
from nas.torch.train import autocast, autocast_type, finite, make_optimizer, own_randomness, trial_errors

if TYPE_CHECKING:
    from nas.space import Space
    from nas.torch.loader import Batches
    from nas.torch.supernet.path import Path
    from nas.torch.supernet.store import Supernet

Scheme = Literal["uniform", "sandwich"]

RANDOM = 2
"""Networks of a sandwich beside the largest and the smallest."""

TRIES = 100
"""Samples until one can be built."""


def fit(
    supernet: Supernet,
    train: Batches,
    recipe: Recipe,
    *,
    scheme: Scheme,
    seed: int,
    device: str | torch.device,
    checkpoint: File | None = None,
    report: Callable[[float, Mapping[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train the weights in place, on `device`; returns the metrics of each epoch, of which there is "train_loss".

    - `uniform`: each step trains one network, drawn uniformly decision by decision (SPOS, Guo et al. 2019).
    - `sandwich`: each step trains the largest network on the labels, and two random ones and the smallest on what the
      largest says (BigNAS, Yu et al. 2020); gradients add up. Only the largest has dropout.

    What happens in epoch e depends on (seed, e) alone, so a training continued from its checkpoint is the
    uninterrupted one, on the same device.

    Args:
        train: batches on `device` at the data's own size; each network gets them resized to its resolution.
        recipe: optimiser, schedule and precision.
        checkpoint: a file to continue from if it exists.
        report: called with (epochs done, metrics) after every epoch, those that the checkpoint remembers included.

    Raises Diverged or OutOfMemory; EvaluationError if the checkpoint belongs to another training.
    """
    training = _Training(supernet, recipe, scheme, len(train), seed, torch.device(device))
    file = Checkpoint(checkpoint, {"seed": seed, "scheme": scheme, "steps per epoch": len(train), **asdict(recipe)})
    file.load(training.restore)
    history = training.history
    for epoch in range(recipe.epochs):
        if epoch == len(history):
            history.append(training.epoch(epoch, train))
            file.save(len(history), training.state, now=epoch + 1 == recipe.epochs)
        if report:
            report(epoch + 1.0, history[epoch])
    return history


def extremes(space: Space) -> tuple[Genotype, Genotype]:
    """The largest and the smallest network of a space by FLOPs, as far as single changes of decisions lead there."""
    largest, smallest = (_climbed(space, sign) for sign in (-1, 1))
    return largest, smallest


def _climbed(space: Space, sign: int) -> Genotype:
    def cost(genotype: Genotype) -> float:
        try:
            costs = space.costs(genotype)
        except GraphError:
            return math.inf
        return sign * (costs["flops"] + costs["params"] * 1e-6)  # among equals, the one with more parameters

    # Begin where numbers are at their end: a depth that is not there hides what its layers could be.
    rng = np.random.default_rng(0)
    starts = [space.sample(rng) for _ in range(TRIES)]
    best = min(starts, key=cost)
    while True:
        better = min(space.neighbours(best, rng), key=cost, default=best)
        if cost(better) >= cost(best):
            return best
        best = better


class _Training:
    @trial_errors
    def __init__(
        self, supernet: Supernet, recipe: Recipe, scheme: Scheme, steps: int, seed: int, device: torch.device
    ) -> None:
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.supernet: Supernet = supernet.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.recipe, self.steps, self.seed, self.device = recipe, steps, seed, device
        is_half = autocast_type(recipe.precision, device) is torch.float16
        self.optimizer = make_optimizer(supernet, recipe, fused=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.history: list[dict[str, float]] = []
        self.ends: Sequence[Path] = ()
        if scheme == "sandwich":
            self.ends = [self._path(genotype) for genotype in extremes(supernet.space)]
            for small in self.ends[1:]:
                small.regularised = False

    def state(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = list(state["history"])

    @trial_errors
    def epoch(self, epoch: int, train: Batches) -> dict[str, float]:
        """Train epoch number `epoch`, counted from 0."""
        total, steps = torch.zeros((), device=self.device), 0
        with own_randomness((self.seed, epoch), self.device):
            for index, (x, y) in enumerate(train.epoch(epoch)):
                if len(y) == 1:
                    continue  # batch norm cannot take the variance of one image
                rng = np.random.default_rng([self.seed, epoch, index])
                for group in self.optimizer.param_groups:
                    group["lr"] = self.recipe.lr_at(epoch + (index + 1) / self.steps)
                total += self._step(x, y, rng)
                steps += 1
        if steps == 0:
            raise EvaluationError("nothing to train on: expected batches of at least two images")
        return {"train_loss": finite(total / steps, "training loss")}

    def _step(self, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """One update; returns the loss of the network that learns from the labels."""
        self.optimizer.zero_grad()
        if not self.ends:
            loss, _ = self._backward(self._random(rng), x, y)
        else:
            largest, smallest = self.ends
            loss, scores = self._backward(largest, x, y)
            soft = scores.softmax(1)  # in-place distillation
            for small in (*[self._random(rng, regularised=False) for _ in range(RANDOM)], smallest):
                self._backward(small, x, soft)
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _backward(self, path: Path, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Add a network's gradient to the shared weights'. Returns its loss and scores (N, classes)."""
        with autocast(self.recipe.precision, self.device):
            scores = path(resized(x, path.resolution)).float()
        smoothing = self.recipe.label_smoothing if target.dim() == 1 else 0.0
        loss = functional.cross_entropy(scores, target, label_smoothing=smoothing)
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach(), scores.detach()

    def _random(self, rng: np.random.Generator, *, regularised: bool = True) -> Path:
        for _ in range(TRIES):
            try:
                path = self._path(self.supernet.space.sample(rng))
            except GraphError:  # not every combination of a space can be built
                continue
            path.regularised = regularised
            return path
        raise GraphError(f"none of {TRIES} random networks of the space {self.supernet.space.name!r} can be built")

    def _path(self, genotype: Genotype) -> Path:
        return self.supernet.path(self.supernet.space.architecture(genotype))


def resized(x: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) at another resolution, bilinear."""
    if x.shape[2:] == resolution:
        return x
    return functional.interpolate(x, resolution, mode="bilinear", antialias=True)

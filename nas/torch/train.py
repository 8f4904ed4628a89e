"""Short trainings of a classifier that can be stopped after any epoch and continued as if they had not been.

Everything random about epoch e depends on (seed, e) alone, and the learning rate on the step alone. So a
checkpoint holds weights and optimiser, and a training continued from it is the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.errors import ConfigError, Diverged, EvaluationError, NasError, OutOfMemory, Stop, TimedOut
from nas.torch.checkpoint import ADVICE, Checkpoint
from nas.torch.recipe import Precision, Recipe
from nas.torch.runtime import is_out_of_memory

if TYPE_CHECKING:
    from nas.torch.loader import Batches

P = ParamSpec("P")
T = TypeVar("T")
Metrics = dict[str, float]
Pairs = Iterable[tuple[Tensor, Tensor]]

STEPS_PER_LOOK = 50  # at the loss: on a GPU each look waits for the device


def fit(
    module: nn.Module,
    train: Batches,
    validation: Batches,
    recipe: Recipe,
    *,
    seed: int,
    device: str | torch.device,
    epochs: int | None = None,
    checkpoint: Path | None = None,
    report: Callable[[float, Mapping[str, float]], None] | None = None,
    deadline: float | None = None,
) -> Metrics:
    """Train `module` in place, on `device`, and return the metrics of the last epoch.

    They are "accuracy" (0..1) and "loss" (cross entropy) on `validation`, and "train_loss", the mean of
    what was minimised. A CPU repeats them bit for bit, given the same number of threads.

    Arguments:
        module: maps images (N, C, H, W) to logits (N, classes); initialised by the caller.
        train, validation: batches on `device`, made with the recipe's `batch` and `channels_last`.
        seed: of dropout, at least 0. The order of the images is the batches' own.
        epochs: where to stop; by default, and at most, after `recipe.epochs`, which the learning rate
            is planned for in any case.
        checkpoint: a file to continue from if it exists, written every few epochs, at the end, and
            before Stop leaves this function.
        report: called with (epochs done, metrics) after every epoch, those that the checkpoint
            remembers included, so that it hears the same after an interruption. It may raise Stop.
        deadline: seconds from now; looked at before every batch.

    Raises Diverged, OutOfMemory or TimedOut; EvaluationError if the module raises anything else, or the
    checkpoint belongs to another training; ConfigError if `epochs` is out of range.
    """
    last = recipe.epochs if epochs is None else epochs
    if not 1 <= last <= recipe.epochs:
        raise ConfigError(f"epochs: expected 1 to the recipe's {recipe.epochs}, got {last}")
    end = math.inf if deadline is None else time.monotonic() + deadline
    training = _Training(module, recipe, len(train), seed, torch.device(device))
    file = Checkpoint(checkpoint, {"seed": seed, "steps per epoch": len(train), **asdict(recipe)})
    file.load(training.restore)
    history = training.history
    if len(history) > last:
        raise EvaluationError(f"{checkpoint}: is at epoch {len(history)}, past {last}; {ADVICE}")
    for epoch in range(last):
        if epoch == len(history):
            history.append(training.epoch(epoch, train, validation, end))
            file.save(len(history), training.state, now=epoch + 1 == last)
        if report:
            try:
                report(epoch + 1.0, history[epoch])
            except Stop:
                file.save(len(history), training.state, now=True)
                raise
    return history[-1]


def evaluate(
    module: nn.Module, batches: Batches, *, device: str | torch.device, precision: Precision = "auto"
) -> Metrics:
    """Return the "accuracy" (0..1) and "loss" (mean cross entropy) of `module`, all on `device`.

    Raises Diverged if the loss is not finite, OutOfMemory, and EvaluationError if the module raises.
    """
    return _evaluate(module, batches.epoch(0), torch.device(device), precision)


def trial_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Turn whatever torch or a user's layer raises into a trial state and one line."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except NasError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if not is_out_of_memory(error):
                raise EvaluationError(reason) from error
        # Only out here are the frames gone that the error held on to, and their tensors with them.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise OutOfMemory(f"{reason}; a smaller network or batch needs less")

    return wrapper


class _Training:
    """A module, and what its training carries from one step to the next."""

    @trial_errors
    def __init__(self, module: nn.Module, recipe: Recipe, steps: int, seed: int, device: torch.device) -> None:
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.recipe, self.steps, self.seed, self.device = recipe, steps, seed, device
        is_half = autocast_type(recipe.precision, device) is torch.float16
        # Fused SGD breaks its momentum in the steps that the scaler skips.
        self.optimizer = make_optimizer(module, recipe, fused=not is_half)
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.history: list[Metrics] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = list(state["history"])

    @trial_errors
    def epoch(self, epoch: int, train: Batches, validation: Batches, end: float) -> Metrics:
        """Train epoch number `epoch`, counted from 0, and measure."""
        self.module.train()
        total, steps = torch.zeros((), device=self.device), 0
        with own_randomness((self.seed, epoch), self.device):
            for index, (x, y) in enumerate(until(end, train.epoch(epoch))):
                if len(y) == 1:
                    continue  # batch norm cannot take the variance of one image
                total += self._step(x, y, self.recipe.lr_at(epoch + (index + 1) / self.steps))
                steps += 1
                if steps % STEPS_PER_LOOK == 0:
                    finite(total, "training loss")
        if steps == 0:
            raise EvaluationError("nothing to train on: expected batches of at least two images")
        train_loss = finite(total / steps, "training loss")
        batches = until(end, validation.epoch(0))
        metrics = _evaluate(self.module, batches, self.device, self.recipe.precision)
        return {**metrics, "train_loss": train_loss}

    def _step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with autocast(self.recipe.precision, self.device):
            logits = self.module(x)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


@trial_errors
def _evaluate(module: nn.Module, batches: Pairs, device: torch.device, precision: Precision) -> Metrics:
    was_training = module.training
    module.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    total, count = torch.zeros((), device=device), 0
    with torch.no_grad(), autocast(precision, device):
        for x, y in batches:
            logits = module(x).float()
            total += functional.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
            count += len(y)
    module.train(was_training)
    return {"accuracy": int(correct) / count, "loss": finite(total / count, "validation loss")}


def make_optimizer(module: nn.Module, recipe: Recipe, *, fused: bool) -> torch.optim.Optimizer:
    norms = (nn.LayerNorm, nn.RMSNorm)  # the ones whose weights may have more than one dimension
    exempt = {p for layer in module.modules() if isinstance(layer, norms) for p in layer.parameters()}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (others if parameter.ndim <= 1 or parameter in exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype:
    if precision != "auto":
        named: torch.dtype = getattr(torch, precision)
        return named
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    dtype = autocast_type(precision, device)
    is_mixed = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if is_mixed else None, enabled=is_mixed)


@contextmanager
def own_randomness(seed: tuple[int, int], device: torch.device) -> Iterator[None]:
    """Dropout draws from torch's global generators only: seed them, and give them back as they were."""
    # The third number keeps dropout's stream apart from that of the batches.
    value = int(np.random.SeedSequence((*seed, 1)).generate_state(1, np.uint64)[0])
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(value)
        if gpus:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield


def until(end: float, batches: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        if time.monotonic() > end:
            raise TimedOut("the time for this trial is used up; allow more, or train for fewer epochs")
        yield batch


def finite(value: Tensor, name: str) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise Diverged(f"the {name} became {number}; a lower learning rate or clipping may help")
    return number

"""Trainings of a classifier that can be stopped after any epoch and continued as if they had not been.

Everything random about epoch e depends on (seed, e) alone, and the learning rate on the step alone. So a
checkpoint holds weights and optimiser, and a training continued from it is the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.errors import ConfigError, Diverged, EvaluationError, NasError, OutOfMemory, Stop, TimedOut
from nas.torch.checkpoint import ADVICE, Checkpoint
from nas.torch.ema import Average
from nas.torch.parallel import ALONE, Group
from nas.torch.recipe import Precision, Recipe
from nas.torch.runtime import is_out_of_memory
from nas.torch.step import Captured

if TYPE_CHECKING:
    from nas.torch.distill import Teacher
    from nas.torch.loader import Batches
    from nas.torch.transfer import Layers

P = ParamSpec("P")
T = TypeVar("T")
Metrics = dict[str, float]
Pairs = Iterable[tuple[Tensor, Tensor]]

OnLook = Callable[[float, float], None]

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
    layers: Layers | None = None,
    teacher: Teacher | None = None,
    group: Group = ALONE,
    every_epoch: bool = False,
    on_look: OnLook | None = None,
) -> Metrics:
    """Train `module` in place, on `device`, and return the metrics of the last epoch.

    They are "accuracy" (0..1) and "loss" (cross entropy) on `validation`, and "train_loss", the mean of
    what was minimised. A CPU repeats them bit for bit, given the same number of threads. With `recipe.ema` it is the
    averaged weights that are measured, and that the module ends with.

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
        layers: which of them are trained when, and how fast; all by default.
        teacher: whose outputs are learned too.
        group: the processes that train this module together, all with this call, and batches that are their shards.
        every_epoch: write the checkpoint after each epoch, whatever it costs.
        on_look: called now and then with the epochs done, and the mean training loss of this one so far.

    Raises Diverged, OutOfMemory or TimedOut; EvaluationError if the module raises anything else, or the
    checkpoint belongs to another training; ConfigError if `epochs` is out of range.
    """
    last = recipe.epochs if epochs is None else epochs
    if not 1 <= last <= recipe.epochs:
        raise ConfigError(f"epochs: expected 1 to the recipe's {recipe.epochs}, got {last}")
    end = math.inf if deadline is None else time.monotonic() + deadline
    training = _Training(module, recipe, len(train), seed, torch.device(device), layers, teacher, group)
    identity = {"seed": seed, "steps per epoch": len(train), **asdict(recipe)}
    file = Checkpoint(checkpoint, identity, {field.name: field.default for field in fields(recipe)})
    file.load(training.restore)
    history = training.history
    if len(history) > last:
        raise EvaluationError(f"{checkpoint}: is at epoch {len(history)}, past {last}; {ADVICE}")
    try:
        for epoch in range(last):
            if epoch == len(history):
                history.append(training.epoch(epoch, train, validation, end, on_look))
                if group.rank == 0:
                    file.save(len(history), training.state, now=every_epoch or epoch + 1 == last)
            if report:
                try:
                    report(epoch + 1.0, history[epoch])
                except Stop:
                    if group.rank == 0:
                        file.save(len(history), training.state, now=True)
                    raise
    finally:
        training.captured = None  # it refers to the training: a GPU's memory would wait for a collection
    training.finish()
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
    def __init__(
        self, module: nn.Module, recipe: Recipe, steps: int, seed: int, device: torch.device,
        layers: Layers | None = None, teacher: Teacher | None = None, group: Group = ALONE,
    ) -> None:  # fmt: skip
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.module = module.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.recipe, self.steps, self.seed, self.device = recipe, steps, seed, device
        self.layers, self.teacher, self.group = layers, teacher, group
        is_half = autocast_type(recipe.precision, device) is torch.float16
        # Neither layers that thaw, a scaler that looks, nor other processes can be in a recorded step.
        is_alone = layers is None and group.world == 1
        is_graph = recipe.graph and device.type == "cuda" and is_alone and not (is_half or recipe.compile)
        # Fused SGD breaks its momentum in the steps that the scaler skips, and with layers that thaw.
        self.optimizer = make_optimizer(
            module,
            recipe,
            fused=not is_half and layers is None,
            rate=layers.rate if layers else None,
            capturable=is_graph,
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=is_half)
        self.average = None if recipe.ema is None else Average(module, recipe.ema)
        self.captured = Captured(self._compute, device) if is_graph else None
        self.forward: Callable[[Tensor], Tensor] = torch.compile(module) if recipe.compile else module
        self.history: list[Metrics] = []

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        average = self.average
        averaged = {} if average is None else {"average": average.module.state_dict(), "averaged": average.steps}
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            **averaged,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up where `state` was."""
        self.module.load_state_dict(state["module"])
        # How its steps are computed is this device's business, not that of the one where the training began.
        ways: list[dict[str, Any]] = [
            {way: group[way] for way in ("fused", "capturable") if way in group}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, way in zip(self.optimizer.param_groups, ways, strict=True):
            group.update(way)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
            self.average.steps = int(state["averaged"])
        self.history = list(state["history"])

    def finish(self) -> None:
        """Leave in the module what is to be used."""
        if self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())

    @trial_errors
    def epoch(
        self, epoch: int, train: Batches, validation: Batches, end: float, on_look: OnLook | None = None
    ) -> Metrics:
        """Train epoch number `epoch`, counted from 0, and measure."""
        self.module.train()
        if self.layers is not None:
            self.layers.settle(epoch)
        total, steps = torch.zeros((), device=self.device), 0
        seed = (self.seed, epoch) if self.group.world == 1 else (self.seed, epoch, 3, self.group.rank)
        with own_randomness(seed, self.device):
            for index, (x, y) in enumerate(until(end, train.epoch(epoch))):
                if len(y) == 1:
                    continue  # batch norm cannot take the variance of one image
                total += self._step(x, y, self.recipe.lr_at(epoch + (index + 1) / self.steps))
                steps += 1
                if steps % STEPS_PER_LOOK == 0:
                    seen = finite(total, "training loss")
                    if on_look:
                        on_look(epoch + (index + 1) / self.steps, seen / steps)
        if steps == 0:
            raise EvaluationError("nothing to train on: expected batches of at least two images")
        train_loss = finite(self.group.mean(total / steps), "training loss")
        batches = until(end, validation.epoch(0))
        judged = self.module if self.average is None else self.average.module
        metrics = _evaluate(judged, batches, self.device, self.recipe.precision, self.group)
        return {**metrics, "train_loss": train_loss}

    def _step(self, x: Tensor, y: Tensor, lr: float) -> Tensor:
        for group in self.optimizer.param_groups:
            rate = lr * group.get("rate", 1.0)
            if self.captured is None:
                group["lr"] = rate
            elif isinstance(group["lr"], Tensor) and group["lr"].device == x.device:
                group["lr"].fill_(rate)  # where the graph reads it
            else:
                group["lr"] = torch.tensor(rate, device=x.device)
        inputs = (x, y) if self.teacher is None else (x, y, self.teacher(x))
        loss = (self.captured or self._compute)(*inputs)
        if self.average is not None:
            self.average.update()
        return loss

    def _compute(self, x: Tensor, y: Tensor, taught: Tensor | None = None) -> Tensor:
        """Forward, backward and the optimiser's step."""
        with autocast(self.recipe.precision, self.device, cached=self.captured is None):
            logits = self.forward(x)
        loss = functional.cross_entropy(logits.float(), y, label_smoothing=self.recipe.label_smoothing)
        if self.teacher is not None and taught is not None:
            loss = self.teacher.loss(loss, logits.float(), taught)
        for parameter in self.parameters:  # `zero_grad` and `clip_grad_norm_` take longer than small networks have
            parameter.grad = None
        torch.autograd.backward(self.scaler.scale(loss))
        self.group.average_gradients(self.module)
        if self.recipe.clip is not None:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.parameters, self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


@trial_errors
def _evaluate(
    module: nn.Module, batches: Pairs, device: torch.device, precision: Precision, group: Group = ALONE
) -> Metrics:
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
    if group.world > 1:
        seen = group.sum(torch.tensor([float(total), int(correct), count], dtype=torch.float64, device=device))
        total, correct, count = seen[0], seen[1], int(seen[2])
    return {"accuracy": int(correct) / count, "loss": finite(total / count, "validation loss")}


def make_optimizer(
    module: nn.Module, recipe: Recipe, *, fused: bool, rate: Callable[[str], float] | None = None,
    capturable: bool = False,
) -> torch.optim.Optimizer:  # fmt: skip
    """The recipe's optimiser for all parameters of a module that require gradients.

    `rate`: what the learning rate of a parameter is multiplied by, given its name; its group has it as "rate".
    `capturable`: its steps can be recorded in a CUDA graph.
    """
    norms = (nn.LayerNorm, nn.RMSNorm)  # the ones whose weights may have more than one dimension
    exempt = {p for layer in module.modules() if isinstance(layer, norms) for p in layer.parameters()}
    found: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed, others = found.setdefault(1.0 if rate is None else rate(name), ([], []))
            (others if parameter.ndim <= 1 or parameter in exempt else decayed).append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, **({} if rate is None else {"rate": share})}
        for share, both in found.items()
        for parameters, decay in zip(both, (recipe.weight_decay, 0.0), strict=True)
    ]
    if recipe.optimizer == "adamw":
        adamw = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused, capturable=capturable
        )
        adamw._warned_capturable_if_run_uncaptured = True  # the first steps are on purpose
        return adamw
    nesterov = recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale the gradients so that their common norm is at most `largest`: as `clip_grad_norm_`, on one device."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp_(max=1))


def autocast_type(precision: Precision, device: torch.device) -> torch.dtype:
    if precision != "auto":
        named: torch.dtype = getattr(torch, precision)
        return named
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(precision: Precision, device: torch.device, *, cached: bool = True) -> torch.autocast:
    dtype = autocast_type(precision, device)
    is_mixed = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if is_mixed else None, enabled=is_mixed, cache_enabled=cached)


@contextmanager
def own_randomness(seed: tuple[int, ...], device: torch.device) -> Iterator[None]:
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

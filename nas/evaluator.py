"""The contract of an evaluator, the task it works on, and users' own functions as evaluators."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nas.architecture import Architecture
from nas.errors import Diverged, PluginError, TimedOut
from nas.ops import Shape
from nas.trial import Metric

if TYPE_CHECKING:
    from nas.torch.data import Data


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Args:
        data: where the images are (see `nas.torch.data.load`), None if the evaluator reads none.
        input_shape: native (channels, height, width).
        classes: number of classes.
        options: keyword arguments for loading (`size`, `limit`, `validation`, `seed`).
        loss: name of the loss.
    """

    data: str | None
    input_shape: Shape
    classes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    loaded: Data | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, source: str, **options: Any) -> Task:
        """The task of classifying the images at `source`; raises DataError."""
        from nas.torch.data import load

        data = load(source, **options)
        return cls(source, data.input_shape, data.classes, options, loaded=data)

    def load(self) -> Data:
        """The images; read only once where this task was made by `Task.of`."""
        if self.loaded is not None:
            return self.loaded
        from nas.torch.data import load

        return load(self.data or "digits", **self.options)


class Report:
    """What an evaluator calls after each epoch: `report(epoch, metrics)`.

    Feeds curves and early stopping, so a call may raise `Stop`; raises TimedOut when the trial's time is up.
    """

    def __init__(self, send: Callable[[float, Mapping[str, float]], None], timeout: float | None = None) -> None:
        self._send = send
        self._end = None if timeout is None else time.monotonic() + timeout
        self.timeout = timeout
        self.budget: float | None = None
        self.metrics: Mapping[str, float] = {}
        self.known: Mapping[str, float] = {}
        """What was measured before, and is part of every report."""

    def __call__(self, epoch: float, metrics: Mapping[str, float]) -> None:
        own = {name: float(value) for name, value in metrics.items()}
        self.budget, self.metrics = float(epoch), {**self.known, **own}
        wild = [name for name, value in self.metrics.items() if not isfinite(value)]
        if wild:
            raise Diverged(f"the metric {wild[0]!r} became {self.metrics[wild[0]]} at epoch {epoch:g}")
        self._send(self.budget, self.metrics)
        if self.remaining is not None and self.remaining <= 0:
            raise TimedOut(f"the time limit of {self.timeout:g} s was reached after {epoch:g} epochs")

    @property
    def remaining(self) -> float | None:
        """Seconds left to the trial, None if unlimited. Evaluators look at it between batches."""
        return None if self._end is None else self._end - time.monotonic()


class Evaluator(ABC):
    """Scores an architecture.

    A subclass's `__init__` takes its options as keyword arguments with defaults; they are what
    `--set evaluator.NAME=VALUE` sets.

    Three methods more are called on an evaluator that has them:

    - `use(space)`: called once, before any job, with the space whose architectures will come. It may raise
      ConfigError, and then there is no run.
    - `prices(space)`: a `nas.pricing.Price` for each of its metrics that is `exact`, known before anything is
      evaluated. Called before `use`, and before there is a strategy. It may raise ConfigError.
    - `prepare`, with `recall` and `keep`: a long job before the first trial, as `Strategy` says. What it gives is the
      evaluator's attribute `prepared` before `open`, on every worker; numpy arrays in it are held once per machine, to
      be read only.
    """

    metrics: tuple[Metric, ...] = ()
    """What `evaluate` returns."""

    needs_data: bool = True
    """Whether `open` reads the task's images."""

    needs_device: bool = False
    """Whether it computes with torch although it reads no images."""

    budget: float | None = None
    """Full budget of a trial (epochs), None if there is no such thing."""

    beside: ClassVar[bool] = False
    """Whether it may give its metrics beside another evaluator's, before a training, when an objective or a limit names
    one of them (`nas.beside`). Its `__init__` is then called without options too, reads no file, and sets `metrics`."""

    files: ClassVar[tuple[str, ...]] = ()
    """Options that name files: a run keeps their absolute paths, so that it can be resumed from anywhere."""

    about: str = ""
    """How it measures, in a line that the user sees and the run folder keeps."""

    def parts(self) -> Mapping[str, Evaluator]:
        """The evaluators of which it consists, by name: itself, unless others stand beside it."""
        return {"evaluator": self}

    @abstractmethod
    def open(self, task: Task, *, device: str, threads: int) -> None:
        """Called once per worker: load the data, make buffers."""

    @abstractmethod
    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        """Metrics of one architecture.

        Args:
            seed: all randomness comes from it; the same seed gives the same result on the same device.
            budget: epochs to spend in all, None for the full budget.
            workdir: the trial's own folder; what is found there is from an earlier, interrupted evaluation of it.
            report: to be called with (epochs so far, metrics so far).

        Raises EvaluationError (Diverged, OutOfMemory, TimedOut) for a trial that fails, and lets `Stop` pass.
        """


class Function(Evaluator):
    """A user's function `f(module, task) -> metrics` as an evaluator: any training, loss or metric.

    `f` gets the network as an initialised `nn.Module` on the device and the `Task` (whose `load()` gives the
    images), and returns a number per metric. Attributes it may have: `metrics` (a sequence of `Metric`) and
    `needs_data`.
    """

    def __init__(self, function: Callable[..., Mapping[str, float]]) -> None:
        self.function = function
        self.metrics = tuple(getattr(function, "metrics", (Metric("accuracy"), Metric("loss", "min"))))
        self.needs_data = bool(getattr(function, "needs_data", True))

    def open(self, task: Task, *, device: str, threads: int) -> None:
        from nas.torch.runtime import pick_device, prepare

        self.task, self.device = task, pick_device(device)
        prepare(self.device, threads)

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        import torch

        module = arch.module(seed=seed).to(self.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the user's training may draw from the global generator
            metrics = self.function(module, self.task)
        if not isinstance(metrics, Mapping):
            name = getattr(self.function, "__qualname__", str(self.function))
            raise PluginError(f"{name}(module, task) must return a mapping of metrics, got {type(metrics).__name__}")
        return metrics

"""Evaluators that the tests name on the command line as `toys:Name`."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas.architecture import Architecture
from nas.errors import ConfigError, Diverged, EvaluationError, OutOfMemory, Stop
from nas.evaluator import Evaluator, Report, Task
from nas.ops import Shape
from nas.space import Space
from nas.testing import toy_metrics
from nas.testing import toy_space as _toy_space
from nas.trial import Metric


def toy_space(input_shape: Shape = (3, 16, 16), classes: int = 10) -> Space:
    """The conformance tests' space under a name."""
    return _toy_space()


class Toy(Evaluator):
    """Three epochs of waiting, a checkpoint after each, metrics from the architecture's costs and the seed."""

    needs_data = False
    metrics = (Metric("accuracy"),)
    budget = 3.0

    def __init__(self, *, delay: float = 0.0, fail: str = "") -> None:
        self.delay, self.fail = delay, fail

    def open(self, task: Task, *, device: str, threads: int) -> None:
        self.evaluated = 0

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        self.evaluated += 1
        if self.fail:
            self._fail(self.evaluated)
        checkpoint = workdir / "checkpoint.json"
        done = json.loads(checkpoint.read_text())["epoch"] if checkpoint.exists() else 0
        accuracy = toy_metrics(arch)["accuracy"] + seed % 1000 / 1e6
        for epoch in range(1, int(budget or 3) + 1):
            if epoch > done:
                time.sleep(self.delay)
                temporary = workdir / "new.json"
                temporary.write_text(json.dumps({"epoch": epoch}))
                temporary.replace(checkpoint)
            report(epoch, {"accuracy": accuracy * epoch / 3})
        (workdir / "weights.safetensors").write_text(f"weights of {seed}")
        return {"accuracy": accuracy}

    def _fail(self, number: int) -> None:
        kind = self.fail.split(",")[(number - 1) % len(self.fail.split(","))]
        errors = {"diverged": Diverged("NaN"), "out_of_memory": OutOfMemory("too large"), "memory": MemoryError(),
                  "failed": EvaluationError("no"), "bug": ZeroDivisionError("a bug\nin two lines"),
                  "stop": Stop()}  # fmt: skip
        if kind in errors:
            raise errors[kind]


class Sized(Toy):
    """For the images of the digits, without reading them."""

    needs_data = True  # so that the space is made for them


class Missing(Toy):
    """Forgets its metric."""

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        return {"acuracy": 0.5}


class Accident(Toy):
    """Lets its process come to harm: `fault` befalls the trials whose number is in `on`, the first `times` times.

    How often it has happened is counted in files beside the trials' folders, since nothing else survives.
    """

    def __init__(self, *, fault: str, on: str | int = "1", times: int = 1, delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.fault, self.on, self.times = fault, {int(n) for n in str(on).split(",")}, times

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        number = int(workdir.name)
        counter = workdir.parent.parent / f"accidents-{number}"
        so_far = len(counter.read_text()) if counter.exists() else 0
        if number in self.on and so_far < self.times:
            counter.write_text("x" * (so_far + 1))
            self._befall(number)
        return super().evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=report)

    def _befall(self, number: int) -> None:
        time.sleep(0.5)  # what was said before is heard: a result lost with its worker would be one retry more
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "segfault":
            ctypes.string_at(0)
        elif self.fault == "hang":
            time.sleep(3600)
        elif self.fault == "memory":  # until somebody puts an end to it
            hoard = []
            while True:
                hoard.append(b"x" * 200_000_000)
                time.sleep(0.02)
        elif self.fault == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")


class Looks(Toy):
    """What a worker sees of its surroundings, as metrics."""

    metrics = (Metric("accuracy"), Metric("threads"), Metric("gpu"), Metric("pid"))

    def open(self, task: Task, *, device: str, threads: int) -> None:
        super().open(task, device=device, threads=threads)
        self.threads = threads

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        found = super().evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=report)
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
        return {**found, "threads": self.threads, "gpu": int(gpu) if gpu.isdecimal() else -1, "pid": os.getpid()}


class Proxies(Toy):
    """A number for each name that it is given."""

    def __init__(self, *, proxies: str = "nwot") -> None:
        super().__init__()
        self.metrics = tuple(map(Metric, proxies.split(",")))

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        return {metric.name: toy_metrics(arch)["accuracy"] for metric in self.metrics}


CALLS: list[str] = []
"""What was called on a `Long`, in order."""


class Long(Toy):
    """Prepares in three steps; `fail` says at which call to fail, and how."""

    def __init__(self, *, fail: str = "", steps: int = 3) -> None:
        super().__init__()
        self.trouble, self.steps = fail, steps

    def _at(self, call: str) -> None:
        CALLS.append(call)
        name, _, kind = self.trouble.partition(" ")
        if name == call:
            raise {
                "wrong": ConfigError("a wrong option"),
                "bug": ZeroDivisionError("a bug"),
                "stop": KeyboardInterrupt(),
            }[kind]

    def use(self, space: Space) -> None:
        self._at("use")

    def recall(self, workdir: Path) -> Any:
        self._at("recall")
        file = workdir / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def prepare(
        self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]
    ) -> dict[str, int]:
        self._at("prepare")
        for step in range(1, self.steps + 1):
            report(step, {"loss": 1 / step}, self.steps)
            self._at(f"step{step}")
        return {"seed": seed}

    def keep(self, prepared: Any, workdir: Path) -> None:
        self._at("keep")
        (workdir / "result.json").write_text(json.dumps(prepared))

    def open(self, task: Task, *, device: str, threads: int) -> None:
        assert self.prepared == {"seed": 5}  # type: ignore[attr-defined]
        self._at("open")
        super().open(task, device=device, threads=threads)


def broken(module: object, task: object) -> dict[str, float]:
    """An evaluator whose every trial fails."""
    raise ValueError("broken on purpose")


broken.needs_data = False  # type: ignore[attr-defined]

"""Evaluations as Ray Tune's trials: what runs on its workers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import ray
from ray import cloudpickle, tune

from nas.errors import NasError, Stop, plugin_errors
from nas.evaluator import Evaluator
from nas.executors.base import Job, run_job
from nas.executors.cluster import settle
from nas.storage import Storage, staged
from nas.trial import Result

ENDING = 10.0
"""Seconds that an evaluator may take to end after `report` has raised Stop, before its worker is replaced."""


class Stepwise(tune.Trainable):
    """Evaluates in a thread, because Tune fetches results: each `step` is the next report, the last one the result."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Open `given["evaluator"]` for the task, device and threads that are given too."""
        self._evaluator: Evaluator = given["evaluator"]
        self._files = Storage(given["storage"]) if given.get("storage") else None
        self._evaluating: threading.Thread | None = None
        with plugin_errors(self._evaluator):
            self._evaluator.open(given["task"], device=given["device"], threads=given["threads"])

    def job(self) -> Job:
        """What to evaluate, according to `self.config`."""
        raise NotImplementedError

    def reported(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any] | None:
        """What to tell Tune of a report, None for nothing."""
        raise NotImplementedError

    def finished(self, result: Result) -> dict[str, Any]:
        """What to tell Tune of the end."""
        raise NotImplementedError

    def step(self) -> dict[str, Any]:
        if self._evaluating is None:
            self._said: SimpleQueue[dict[str, Any] | BaseException] = SimpleQueue()
            self._go: SimpleQueue[bool] = SimpleQueue()
            self._evaluating = threading.Thread(target=self._evaluate, args=(self.job(),), daemon=True)
            self._evaluating.start()
        else:
            self._go.put(True)
        said = self._said.get()
        if isinstance(said, BaseException):
            raise said
        return said

    def _evaluate(self, job: Job) -> None:
        try:
            with staged(self._files, job, self._on_report) as (here, report):
                result = run_job(self._evaluator, here, report)
            self._said.put({**self.finished(result), "done": True})
        except BaseException as error:  # raised where it can be seen
            self._said.put(error)

    def _on_report(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        said = self.reported(job, epoch, metrics)
        if said is not None:
            self._said.put(said)
            if not self._go.get():
                raise Stop

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what is running, if the driver has lost interest; whether the worker is free for another trial."""
        if self._evaluating is not None:
            self._go.put(False)
            self._evaluating.join(ENDING)
            if self._evaluating.is_alive():
                return False
        self._evaluating = None
        return True

    def cleanup(self) -> None:
        self.reset_config({})


@dataclass(frozen=True, repr=False)
class Parcel:
    """A job in bytes: Tune copies a configuration often, and prints it."""

    data: bytes


class Worker(Stepwise):
    """A worker of the executor."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        settle(given.pop("place"))  # before the parts are fetched: they may be of classes that are found only then
        evaluator, task = ray.get(given.pop("parts"))
        self._broken: NasError | None = None
        try:
            super().setup(config, evaluator=evaluator, task=task, **given)
        except NasError as error:  # for the user to see, once
            self._broken = error

    def job(self) -> Job:
        job: Job = cloudpickle.loads(self.config["job"].data)
        return job

    def reported(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {"report": (epoch, metrics)}

    def finished(self, result: Result) -> dict[str, Any]:
        return {"result": result}

    def step(self) -> dict[str, Any]:
        try:
            if self._broken is not None:
                raise self._broken
            return super().step()
        except (NasError, OSError) as error:  # no fault of the network: the search ends, to be resumed
            return {"error": error, "done": True}

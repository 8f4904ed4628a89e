"""A worker process of the Ray pool: one evaluator, a queue of jobs, a mailbox of what came of them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import ray

from nas.errors import PluginError, Stop, plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Job, run_job
from nas.executors.cluster import Place, settle
from nas.storage import Storage, staged
from nas.trial import Result


@dataclass(frozen=True)
class Ready:
    """The evaluator is open. `name`: host and process; `node`: Ray's name of the machine; `version` of this package."""

    name: str
    node: str
    version: str


@dataclass(frozen=True)
class Reported:
    """An epoch of a job; `waits` for `answer`."""

    number: int
    epoch: float
    metrics: Mapping[str, float]
    waits: bool


@dataclass(frozen=True)
class Done:
    """A job and what came of it."""

    number: int
    result: Result


@dataclass(frozen=True)
class Broken:
    """The worker can do no more: the evaluator does not open, or the run folder cannot be written."""

    error: BaseException


Event = Ready | Reported | Done | Broken


MAIL = "mail"
"""Ray's thread for `events`, which waits most of the time."""


class Worker:
    """The actor. Evaluates in a thread of its own, so that the driver can always reach it.

    Args:
        parts: references to the evaluator and the task in Ray's object store.
        device, threads: for `Evaluator.open`.
        place: where the driver is.
        storage: URL through which the files of trials travel; None if all machines see the run folder.

    Ray runs `events` in a thread of its own, and the other calls one after the other in the order of sending.

    The driver calls `take` with jobs and keeps one `events` call outstanding, which returns as soon as there is
    something: so a call carries as many results as have come together, one of a long evaluation, dozens of short ones.
    """

    def __init__(
        self, parts: Sequence[Any], *, device: str, threads: int, place: Place, storage: str | None = None
    ) -> None:
        settle(place)  # before the parts are fetched: they may be of classes that are found only then
        self._parts, self._device, self._threads = parts, device, threads
        self._storage = None if storage is None else Storage(storage)
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._answers: SimpleQueue[bool] = SimpleQueue()
        self._dropped: set[int] = set()
        self._lock = Lock()
        self._passed: dict[int, float] = {}  # epoch last reported, of the running job
        Thread(target=self._run, daemon=True).start()

    def take(self, jobs: list[Job]) -> None:
        """Queue jobs."""
        for job in jobs:
            self._jobs.put(job)

    def drop(self, number: int) -> None:
        """Forget a queued job; one that runs goes on to its end."""
        with self._lock:
            self._dropped.add(number)

    def answer(self, go_on: bool) -> None:
        """Tell the job that waits at a rung whether to go on."""
        self._answers.put(go_on)

    @ray.method(concurrency_group=MAIL)
    def events(self) -> list[Event]:
        """All that has happened since the last call, and at least one event."""
        found = [self._events.get()]
        while not self._events.empty():
            found.append(self._events.get())
        return found

    def _run(self) -> None:
        try:
            evaluator, task = self._fetch()
            if self._device == "cuda":
                _keep_to_its_share()
            with plugin_errors(evaluator):
                evaluator.open(task, device=self._device, threads=self._threads)
            self._events.put(Ready(_name(), ray.get_runtime_context().get_node_id(), package_version()))
            while True:
                job = self._jobs.get()
                with self._lock:
                    if job.number in self._dropped:
                        self._dropped.discard(job.number)
                        continue
                self._passed = {}
                with staged(self._storage, job, self._report) as (here, report):
                    result = run_job(evaluator, here, report)
                self._events.put(Done(job.number, replace(result, worker=_name())))
        except BaseException as error:  # the thread has no caller: the driver is to know
            self._events.put(Broken(error))

    def _fetch(self) -> tuple[Evaluator, Task]:
        """Evaluator and task from the object store: on this machine, images are there once for all workers."""
        try:
            evaluator, task = ray.get(list(self._parts))
        except ray.exceptions.RayError as error:
            missing = re.search(r"No module named '[^']+'", str(error))
            why = missing[0] if missing else " ".join(str(error).split())[:300]
            raise PluginError(
                f"worker {_name()} cannot load the evaluator: {why}; install it there, or ship it with --runtime-env"
            ) from None
        return evaluator, task

    def _report(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        before = self._passed.get(job.number, 0.0)
        waits = any(before < rung <= epoch for rung in job.rungs)
        self._passed[job.number] = epoch
        self._events.put(Reported(job.number, epoch, dict(metrics), waits))
        if waits and not self._answers.get():
            raise Stop(f"ended at epoch {epoch:g}")


def _keep_to_its_share() -> None:
    """Let a worker with a fraction of a GPU take no more of the memory, so that who takes too much is who fails.

    Not run on a GPU yet.
    """
    import torch

    context: Any = ray.get_runtime_context()
    share = context.get_assigned_resources().get("GPU", 1.0)
    if share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def _name() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def package_version() -> str:
    """Of this package, "unknown" where it is not installed."""
    try:
        return version("nas")
    except PackageNotFoundError:
        return "unknown"

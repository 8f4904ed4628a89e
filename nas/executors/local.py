"""One worker in this process, one job at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from nas.errors import plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Executor, Hear, Job, OnReport, Outcome, run_job
from nas.storage import Storage, staged


class Local(Executor):
    """Evaluates in `wait`, in the order of submission.

    Args:
        evaluator, task, device, threads: the evaluator is opened once with the others.
        on_report: called for each report of the running job.
        storage: URL at which the files of trials are kept, None for the run folder.
    """

    def __init__(
        self, evaluator: Evaluator, task: Task, *, device: str, threads: int, on_report: OnReport,
        storage: str | None = None,
    ) -> None:  # fmt: skip
        self._evaluator, self._task, self._device, self._threads = evaluator, task, device, threads
        self._on_report = on_report
        self._storage = None if storage is None else Storage(storage)
        self._jobs: deque[Job] = deque()

    def start(self) -> None:
        with plugin_errors(self._evaluator):
            self._evaluator.open(self._task, device=self._device, threads=self._threads)

    @property
    def capacity(self) -> int:
        return 1

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        if not self._jobs:
            return []
        job = self._jobs.popleft()
        with staged(self._storage, job, self._on_report) as (here, report):
            return [Outcome(job, run_job(self._evaluator, here, report))]

    def cancel(self, job: Job) -> None:
        self._jobs.remove(job)

    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function() if hear is None else function(hear))
        return future

    def close(self, now: bool = False) -> None:
        self._jobs.clear()

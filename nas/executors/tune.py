"""The search's jobs as trials of Ray Tune: `nas search --executor tune`.

The loop, the journal and the strategies stay those of `nas.search`; Tune only places the trials. It asks its searcher
for the next trial, which is the next job, and every report passes its stopper, which asks the search. For our spaces
inside a `tune.Tuner` of your own see `nas.executors.tuner`.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune import Callback, Stopper
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from nas.errors import PluginError, RunError, Stop, plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Executor, Hear, Job, OnReport, Outcome
from nas.executors.cluster import Cluster, Place
from nas.executors.stepwise import Parcel, Worker
from nas.trial import Result

GRACE = 5.0
"""Seconds that a trial may go on after its time limit, which evaluators keep themselves, before its worker is ended."""

SETTINGS = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_PRINT_ALL_TRIAL_ERRORS": "0"}
"""What Tune can be told by its environment only: no log files, workers stay in their folder; print nothing."""


class Tune(Executor):
    """Runs jobs as trials of one `tune.Tuner`, on workers that are kept from trial to trial.

    A worker that is lost gives an outcome to retry; one that hangs is ended `GRACE` seconds after the job's time limit.
    What keeps workers from opening is raised by `wait`, as they open with the first trials. Tune's own storage is a
    temporary folder, and it prints nothing.

    Args:
        cluster: where; opened here and closed by `close`.
        evaluator, task: sent to each worker once, through Ray's object store.
        device, threads: for `Evaluator.open`; `threads` 0 for as many as a worker has CPUs.
        on_report: called in `wait` for each report of a job, which waits meanwhile; may raise Stop.
        storage: URL through which the files of trials travel; None if all machines see the run folder.
    """

    def __init__(
        self, cluster: Cluster, evaluator: Evaluator, task: Task, *, device: str, threads: int, on_report: OnReport,
        storage: str | None = None,
    ) -> None:  # fmt: skip
        self._cluster, self._evaluator, self._task, self._on_report = cluster, evaluator, task, on_report
        self._given = {"device": device, "threads": threads or cluster.threads, "storage": storage}
        self._desk = _Desk()
        self._thread: threading.Thread | None = None
        cluster.open()

    @property
    def about(self) -> str:
        return f"{self._cluster.about}, in Ray Tune"

    @property
    def capacity(self) -> int:
        return self._cluster.workers

    def start(self) -> None:
        """Start Tune, in a thread of its own. Raises PluginError for an evaluator that cannot be sent to a worker."""
        with plugin_errors(self._evaluator):
            parts = [ray.put(self._evaluator), ray.put(self._task)]
        worker = tune.with_parameters(Worker, parts=parts, place=Place.here(self._cluster.gpus), **self._given)
        worker = tune.with_resources(worker, {"cpu": self._cluster.cpus, "gpu": self._cluster.gpus})
        self._thread = threading.Thread(target=self._fit, args=(worker,), name="tune", daemon=True)
        self._thread.start()

    def _fit(self, worker: type[tune.Trainable]) -> None:
        config = tune.TuneConfig(
            search_alg=_Feed(self._desk), scheduler=_Newest(),  # type: ignore[no-untyped-call]
             num_samples=-1,
            max_concurrent_trials=self._cluster.workers, reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        )  # fmt: skip
        try:
            with _quiet(self._cluster.verbose), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                run = tune.RunConfig(
                    name="search", storage_path=folder, callbacks=[self._desk], stop=self._desk, verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                )  # fmt: skip
                tune.Tuner(worker, tune_config=config, run_config=run).fit()
        except Exception as error:  # whatever it is, the search must not wait for ever
            self._desk.post(RunError(f"Ray Tune ended: {' '.join(str(error).split())[:200]}; the run can be resumed"))

    def submit(self, job: Job) -> None:
        with self._desk.changed:
            self._desk.jobs.append(job)
            self._desk.changed.notify_all()

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """At least one outcome, or none after `timeout` seconds or with no job left. Raises NasError if Tune ended."""
        desk, outcomes = self._desk, list[Outcome]()
        end = None if timeout is None else time.monotonic() + timeout
        with desk.changed:
            desk.waiting = True
            desk.changed.notify_all()
            try:
                while not outcomes and (desk.jobs or desk.running or desk.events):
                    left = None if end is None else max(0.0, end - time.monotonic())
                    if not desk.changed.wait_for(lambda: desk.events or not (desk.jobs or desk.running), left):
                        break
                    while desk.events:
                        event = desk.events.popleft()
                        if isinstance(event, Outcome):
                            outcomes.append(event)
                        elif isinstance(event, _Question):
                            event.ask(self._on_report)
                            desk.changed.notify_all()
                        else:
                            raise event
            finally:
                desk.waiting = False
        return outcomes

    def cancel(self, job: Job) -> None:
        with self._desk.changed:
            self._desk.jobs = deque(waiting for waiting in self._desk.jobs if waiting.number != job.number)
            for trial in self._desk.running.values():
                if trial.job.number == job.number:
                    trial.cancelled, trial.deadline = True, 0.0

    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        return self._cluster.run_once(function, resources, hear)

    def close(self, now: bool = False) -> None:
        with self._desk.changed:
            self._desk.jobs.clear()
            self._desk.closed, self._desk.now = True, now
            self._desk.changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._cluster.close()


# -- between the thread of the search and that of Tune ---------------------------------------------------------


@dataclass
class _Running:
    """A job that is a trial. `deadline`: when its worker is ended (monotonic clock, s)."""

    job: Job
    actor: Any = None
    deadline: float = inf
    cancelled: bool = False
    ended: bool = False


@dataclass
class _Question:
    """A report for the thread of the search, and its answer: whether the trial goes on."""

    job: Job
    epoch: float
    metrics: Mapping[str, float]
    go: bool | None = None

    def ask(self, on_report: OnReport) -> None:
        try:
            on_report(self.job, self.epoch, self.metrics)
            self.go = True
        except Stop:
            self.go = False


class _Desk(Callback, Stopper):
    """Jobs go one way over it, reports and outcomes the other; the methods that Tune calls run in Tune's thread."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: deque[Job] = deque()
        self.running: dict[str, _Running] = {}
        self.events: deque[Outcome | _Question | Exception] = deque()
        self.waiting = self.closed = self.now = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _Desk, ()  # Tune saves its parts; what is on this one is in the journal

    @property
    def _idle(self) -> bool:
        """Whether the search has seen everything and waits for more."""
        return self.waiting and not self.events

    def next(self, trial_id: str) -> Job | None:
        """The next job, None if the search has none. Waits while the search may still bring one."""
        with self.changed:
            self.changed.wait_for(lambda: self.jobs or self.closed or (self.running and self._idle))
            if not self.jobs:
                return None
            job = self.jobs.popleft()
            self.running[trial_id] = _Running(job)
            return job

    def post(self, event: Outcome | _Question | Exception) -> None:
        """Hand something to the thread of the search."""
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        running = self.running[trial.trial_id]
        running.actor = trial.temporary_state.ray_actor
        if running.job.timeout is not None:
            running.deadline = min(running.deadline, time.monotonic() + running.job.timeout + GRACE)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether to end the trial, which has reported."""
        with self.changed:
            running = self.running[trial_id]
            if "report" not in result or running.cancelled:
                return True
            question = _Question(running.job, *result["report"])
            self.post(question)
            self.changed.wait_for(lambda: question.go is not None or self.closed)
            return question.go is False

    def stop_all(self) -> bool:
        """Called all the time: ends workers whose time is up, and everything when closed in a hurry."""
        with self.changed:
            for running in self.running.values():
                if running.actor is not None and (self.now or time.monotonic() > running.deadline):
                    ray.kill(running.actor)
                    running.actor, running.ended = None, True
            return self.now

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self.changed:
            running, last = self.running.pop(trial.trial_id), trial.last_result
            self.changed.notify_all()
            if "error" in last:
                self.post(last["error"])
            elif not running.cancelled:
                worker = f"{last['hostname']}:{last['pid']}"
                if "result" in last:
                    result = replace(last["result"], worker=worker)
                else:
                    epoch, metrics = last["report"]
                    result = Result("stopped", metrics, epoch, last["time_total_s"], worker)
                self.post(Outcome(running.job, result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self.changed:
            running = self.running.pop(trial.trial_id)
            self.changed.notify_all()
            if running.cancelled:
                return
            if running.ended:
                error = f"it did not end {GRACE:g} s after its time limit of {running.job.timeout:g} s"
                self.post(Outcome(running.job, Result("timed_out", error=error)))
                return
            lines = [line for line in Path(trial.error_file).read_text().splitlines()[1:] if line.strip()]
            reason = lines[-1] if "ray::" in lines[0] else lines[0]  # a traceback, or the fate of the process
            if "creation task" in lines[0]:  # what the evaluator needs cannot be imported there
                self.post(PluginError(f"no worker can be started: {reason}"))
            else:
                error = f"the worker was lost: {reason}"
                self.post(Outcome(running.job, Result("failed", error=error), retry=True))


class _Feed(Searcher):
    """Gives Tune the jobs."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk
        self._given = 0

    def suggest(self, trial_id: str) -> Any:
        job = self._desk.next(trial_id)
        if job is None:
            return Searcher.FINISHED if self._desk.closed else None
        data: Any = cloudpickle.dumps(replace(job, workdir=job.workdir.absolute()))  # type: ignore[no-untyped-call]
        self._given += 1
        return {"job": Parcel(data), "number": self._given}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the desk hears of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal remembers."""


class _Newest(FIFOScheduler):
    """Lets a free worker take the newest trial: older ones that wait have a worker of their own starting.

    In order of submission they would take the free one, and Tune would give the starting one up: evaluations shorter
    than the start of a worker would all run on the first.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        pending = [trial for trial in tune_controller.get_live_trials() if trial.status == trial.PENDING]
        return max(pending, key=lambda trial: trial.config["number"], default=None)


@contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Tune's settings, and unless `verbose` silence, while it runs."""
    settings = SETTINGS if verbose else SETTINGS | QUIET
    before = {name: os.environ.get(name) for name in settings}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(settings)
    if not verbose:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

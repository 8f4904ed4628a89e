"""The contract of an executor, and what happens to one job wherever it runs."""

from __future__ import annotations

import errno
import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nas.architecture import Architecture
from nas.errors import EvaluationError, Infeasible, NasError, RunError, Stop
from nas.evaluator import Evaluator, Report
from nas.trial import Result, State


@dataclass(frozen=True)
class Job:
    """One evaluation: trial number, architecture, seed, budget (epochs), the trial's folder, time limit (s).

    `rungs` are the epochs at which `on_report` may end it; a worker elsewhere waits for the answer
    there, and only there.
    """

    number: int
    architecture: Architecture
    seed: int
    budget: float | None
    workdir: Path
    timeout: float | None = None
    rungs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job; `retry` says that the worker was lost, not that the evaluation failed."""

    job: Job
    result: Result
    retry: bool = False


OnReport = Callable[[Job, float, Mapping[str, float]], None]
"""Called for each report of a running job; may raise Stop to end it."""

Hear = Callable[[float, Mapping[str, float], float | None], None]
"""Called while a long job runs: epochs done, metrics, epochs in all if that is known."""


class Executor(ABC):
    """Runs jobs. `submit` never waits; `wait` returns what has finished.

    Called in this order: `run_once` as often as wanted, `start`, any `submit`, `wait` and `cancel`, `close`.
    """

    def start(self) -> None:  # noqa: B027  (not every executor has something to open)
        """Open the workers; returns when one can take a job. Raises NasError for what keeps them all from opening."""

    @property
    def about(self) -> str:
        """One line on who does the work, for the user; empty if there is nothing to say."""
        return ""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many jobs it can hold now, at least one; changes while workers come and go."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a job."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> list[Outcome]:
        """At least one outcome; none after `timeout` seconds, or when the capacity has changed."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Drop a job; it has no outcome."""

    @abstractmethod
    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        """Run one long job (a strategy's `prepare`) on a worker.

        Where there is a `hear`, the function gets one as its argument; what it says there, on whatever machine, is
        said to `hear` here while the job runs.
        """

    @abstractmethod
    def close(self, now: bool = False) -> None:
        """Release the workers; `now` does not wait for running jobs."""


def run_job(evaluator: Evaluator, job: Job, on_report: OnReport) -> Result:
    """Evaluate a job. Whatever the evaluator raises becomes a trial state; KeyboardInterrupt passes."""
    started = time.perf_counter()
    report = Report(lambda epoch, metrics: on_report(job, epoch, metrics), job.timeout)

    def result(state: State, metrics: Mapping[str, float], error: str | None = None) -> Result:
        budget = report.budget if report.budget is not None else (job.budget if state == "ok" else None)
        return Result(state, dict(metrics), budget, time.perf_counter() - started, error=error)

    job.workdir.mkdir(parents=True, exist_ok=True)
    try:
        metrics = evaluator.evaluate(
            job.architecture, seed=job.seed, budget=job.budget, workdir=job.workdir, report=report
        )
        values = {name: float(value) for name, value in metrics.items()}
    except Stop:
        return result("stopped", report.metrics)
    except Infeasible as error:
        return result("infeasible", error.metrics)
    except EvaluationError as error:
        return result(cast(State, error.state), {}, str(error))
    except RunError:  # the run folder cannot be written: no fault of the network, which stays to be evaluated
        raise
    except NasError as error:
        return result("failed", {}, str(error))
    except MemoryError as error:
        return result("out_of_memory", {}, str(error) or "the process is out of memory")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        return result("failed", {}, f"{type(error).__name__}: {error}")
    except Exception as error:  # a plug-in may raise anything; one bad network must not end the search
        (job.workdir / "error.txt").write_text(traceback.format_exc())
        return result("failed", {}, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    missing = [m.name for m in evaluator.metrics if m.name not in values]
    if missing:
        given = ", ".join(values) or "nothing"
        return result("failed", {}, f"the evaluator returned no {missing[0]!r}; it returned {given}")
    wild = [name for name, value in values.items() if not math.isfinite(value)]
    if wild:
        return result("diverged", {}, f"the metric {wild[0]!r} is {values[wild[0]]}")
    return result("ok", values)

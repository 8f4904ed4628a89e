"""What one driver can do: the real loop, journal and strategies with 1 to 10,000 simulated workers.

    python benchmarks/scale.py [strategy ...] [--workers 1 10 100 1000 10000] [--history 100 1000 10000]

Only the workers are simulated. Their clock is virtual and jumps from one completion to the next; an evaluation takes
time in proportion to the FLOPs, times log-normal noise (sigma 0.3), and one in a hundred takes five times as long. The
space is `mobile` at 32 pixels with a synthetic accuracy, because 10,000 evaluations need a large space.

1. Asynchronous (a worker gets its next job at once) against generational (the next ones are handed out when all are
   back): the share of workers busy until the last job is handed out, and the virtual time to a hypervolume.
2. CPU time of the driver per evaluation (ask, tell, and the loop with its journal) by trials in the history. Ends with
   1 if that is more than 2 ms anywhere.
3. From that, how many workers one driver can feed.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf, log
from pathlib import Path
from typing import Any

import numpy as np

from nas import pareto
from nas.architecture import Architecture
from nas.cli import COLLECTIONS
from nas.evaluator import Evaluator, Report, Task
from nas.executors.base import Executor, Hear, Job, Outcome
from nas.plugins import make_space, make_strategy
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, toy_metrics
from nas.trial import Metric, Proposal, Result, Trial

SIGMA, STRAGGLERS, SLOWER = 0.3, 0.01, 5.0
TYPICAL = 1.0  # virtual time of an evaluation of typical FLOPs: the unit of all times
MOST = 2e-3  # seconds of the driver per evaluation
SHARE = 0.9  # of the best hypervolume with the fewest workers


class Toy(Evaluator):
    """The synthetic accuracy of `nas.testing`."""

    metrics = (Metric("accuracy"),)
    needs_data = False

    def open(self, task: Task, *, device: str, threads: int) -> None:
        """Nothing to load."""

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        return {"accuracy": toy_metrics(arch)["accuracy"]}


class Simulated(Executor):
    """Workers on a virtual clock.

    Args:
        evaluator: gives the results, at once.
        workers: how many there are.
        duration: virtual time of a job.
        generational: `wait` returns when all workers are done, with all outcomes.
    """

    def __init__(
        self, evaluator: Evaluator, workers: int, duration: Callable[[Job], float], *, generational: bool = False
    ) -> None:
        self.clock = self.cpu = 0.0  # virtual time, and seconds spent here
        self.spans: list[tuple[float, float]] = []  # begin and end of each job
        self._evaluator, self._workers, self._duration = evaluator, workers, duration
        self._generational = generational
        self._running: list[tuple[float, int, Job]] = []

    @property
    def capacity(self) -> int:
        return self._workers

    @property
    def utilisation(self) -> float:
        """Share of workers that were busy until the last job was handed out."""
        begin, end = np.array(self.spans).T
        return float((np.minimum(end, begin[-1]) - begin).sum() / (self._workers * begin[-1]))

    def submit(self, job: Job) -> None:
        started = time.process_time()
        end = self.clock + self._duration(job)
        self.spans.append((self.clock, end))
        heapq.heappush(self._running, (end, job.number, job))
        self.cpu += time.process_time() - started

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        while self._running and (self._generational or not outcomes):
            self.clock, _, job = heapq.heappop(self._running)
            outcomes.append(Outcome(job, self._result(job)))
        return outcomes

    def _result(self, job: Job) -> Result:
        started = time.process_time()
        report = Report(lambda epoch, metrics: None)
        metrics = self._evaluator.evaluate(
            job.architecture, seed=job.seed, budget=None, workdir=job.workdir, report=report
        )
        self.cpu += time.process_time() - started
        return Result("ok", metrics)

    def cancel(self, job: Job) -> None:
        self._running = [entry for entry in self._running if entry[2] is not job]
        heapq.heapify(self._running)

    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function() if hear is None else function(hear))
        return future

    def close(self, now: bool = False) -> None:
        self._running.clear()


class Timed(Strategy):
    """A strategy, and the CPU seconds spent in it."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__(strategy.space, strategy.objectives, strategy.limits)
        self._strategy = strategy
        self.asking = self.telling = 0.0

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        started = time.process_time()
        proposals = self._strategy.ask(n, rng, pending)
        self.asking += time.process_time() - started
        return proposals

    def tell(self, trial: Trial) -> None:
        started = time.process_time()
        self._strategy.tell(trial)
        self.telling += time.process_time() - started


@dataclass
class Outcomes:
    """What was seen of one search, after each trial: virtual time, values, and CPU seconds (ask, tell, loop)."""

    utilisation: float = 0.0
    times: list[float] = field(default_factory=list)
    values: list[tuple[float, float]] = field(default_factory=list)
    cpu: list[tuple[float, float, float]] = field(default_factory=list)

    def reached(self, volumes: np.ndarray, target: float) -> float:
        """Virtual time at which the hypervolume was reached, infinite if it was not."""
        return next((t for t, volume in zip(self.times, volumes, strict=True) if volume >= target), inf)


class Problem:
    """The space, how long an evaluation takes, and how good a front is."""

    def __init__(self, pixels: int, seed: int = 0) -> None:
        self.space: Space = make_space("mobile", (3, pixels, pixels), 10, {})
        rng = np.random.default_rng(seed)
        metrics = [toy_metrics(self.space.architecture(self.space.sample(rng))) for _ in range(300)]
        self.typical = float(np.median([m["flops"] for m in metrics]))
        values = np.array([_values(m) for m in metrics])
        self.low, self.span = values.min(0), np.ptp(values, axis=0)

    def duration(self, job: Job) -> float:
        rng = np.random.default_rng(job.seed)
        noise = rng.lognormal(0, SIGMA) * (SLOWER if rng.random() < STRAGGLERS else 1)
        return float(TYPICAL * noise * job.architecture.analysis.flops / self.typical)

    def volumes(self, values: Sequence[tuple[float, float]]) -> np.ndarray:
        """Hypervolume after each trial; error and log-FLOPs scaled by those of random architectures, reference 1.1."""
        front, volume, out = np.empty((0, 2)), 0.0, []
        for point in (np.array(values) - self.low) / self.span:
            gain = pareto.gains(front, point[None], [1.1, 1.1])[0]
            if gain > 0:
                front, volume = np.vstack([front, point]), volume + gain
                front = front[pareto.ranks(front) == 0]
            out.append(volume)
        return np.array(out)


def _values(metrics: Mapping[str, float]) -> tuple[float, float]:
    return 1 - metrics["accuracy"], log(metrics["flops"])


def search(problem: Problem, name: str, workers: int, trials: int, *, generational: bool = False) -> Outcomes:
    """One search in a run folder of its own, which is deleted afterwards."""
    strategy = Timed(make_strategy(name, problem.space, [ACCURACY, FLOPS], (), options={}))
    simulated = Simulated(Toy(), workers, problem.duration, generational=generational)
    seen = Outcomes()
    started = time.process_time()

    def on_trial(_: Search, trial: Trial) -> None:
        spent = time.process_time() - started - simulated.cpu - strategy.asking - strategy.telling
        seen.cpu.append((strategy.asking, strategy.telling, spent))
        if trial.evaluated:
            seen.times.append(simulated.clock)
            seen.values.append(_values(trial.metrics))

    with tempfile.TemporaryDirectory() as folder:
        plan = Plan((ACCURACY, FLOPS), trials=trials)
        run = Run.create(Path(folder) / "run", {})
        Search(run, problem.space, strategy, Toy(), plan, lambda _: simulated, on_trial=on_trial).run()
    seen.utilisation = simulated.utilisation
    return seen


def compare(problem: Problem, names: Sequence[str], workers: Sequence[int], least: int) -> None:
    """Asynchronous against generational: utilisation and virtual time to a hypervolume."""
    found: dict[tuple[str, int, bool], tuple[Outcomes, np.ndarray]] = {}
    print(f"evaluations: {least:,}, or twice the workers if that is more; time unit: a typical evaluation")
    print(f"{'':22}{'':>9}{'asynchronous':>30}{'generational':>30}")
    print(f"{'strategy':22}{'workers':>9}" + f"{'busy':>9}{'time':>10}{'volume':>11}" * 2)
    for name in names:
        for n in workers:
            cells = ""
            for generational in (False, True):
                seen = search(problem, name, n, max(least, 2 * n), generational=generational)
                volumes = problem.volumes(seen.values)
                found[name, n, generational] = seen, volumes
                cells += f"{seen.utilisation:>9.1%}{seen.times[-1]:>10,.1f}{volumes[-1]:>11.4f}"
            print(f"{name:22}{n:>9,}{cells}", flush=True)
    few = min(workers)
    target = SHARE * max(volumes[-1] for (_, n, _), (_, volumes) in found.items() if n == few)
    print(f"\nvirtual time to a hypervolume of {target:.4f} ({SHARE:.0%} of the best with {few:,} workers)")
    print(f"{'strategy':22}{'workers':>9}{'asynchronous':>16}{'generational':>16}{'ratio':>9}")
    for name in names:
        for n in workers:
            now, later = (seen.reached(v, target) for seen, v in (found[name, n, g] for g in (False, True)))
            ratio = f"{later / now:>9.2f}" if now < inf and later < inf else f"{'-':>9}"
            print(f"{name:22}{n:>9,}{_time(now):>16}{_time(later):>16}{ratio}")


def _time(value: float) -> str:
    return f"{value:,.1f}" if value < inf else "not reached"


def driver(problem: Problem, names: Sequence[str], history: Sequence[int], workers: int) -> dict[str, float]:
    """CPU time of the driver per evaluation; returns the most of each strategy in seconds."""
    windows = {n: max(20, min(500, n // 2)) for n in history}
    most: dict[str, float] = {}
    print(f"\nCPU time of the driver per evaluation, ms, {workers} workers, mean of up to 500 evaluations")
    print(f"{'strategy':22}{'history':>9}{'ask':>9}{'tell':>9}{'loop':>9}{'all':>9}")
    for name in names:
        gc.collect()
        gc.freeze()  # or the collector looks through what earlier searches have left
        gc.set_threshold(*COLLECTIONS)  # as the command line does
        cpu = np.array(search(problem, name, workers, max(history) + max(windows.values()) + workers).cpu)
        for n, window in windows.items():
            spent = (cpu[n + window - 1] - cpu[n - 1]) / window
            most[name] = max(most.get(name, 0.0), spent.sum())
            print(
                f"{name:22}{n:>9,}" + "".join(f"{ms:>9.3f}" for ms in 1e3 * np.append(spent, spent.sum())), flush=True
            )
    return most


def limits(most: Mapping[str, float]) -> None:
    """Where one driver becomes the limit, and what then."""
    print("\nworkers that one driver can feed, by the time of an evaluation")
    print(
        f"{'strategy':22}{'evaluations/s':>15}"
        + "".join(f"{label:>12}" for label in ("0.1 s", "1 s", "10 s", "10 min"))
    )
    for name, seconds in most.items():
        cells = "".join(f"{each / seconds:>12,.0f}" for each in (0.1, 1, 10, 600))
        print(f"{name:22}{1 / seconds:>15,.0f}{cells}")
    rate = 1 / max(most.values())
    print(
        f"Beyond {rate:,.0f} evaluations a second the driver is the limit. Evaluations so short are sent in batches.\n"
        f"For more workers, k runs with seeds of their own take k times as many ({10 * rate:,.0f} a second with 10),\n"
        "and their fronts are merged."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strategies", nargs="*", default=["random", "evolution", "regularized-evolution"])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 10, 100, 1000, 10000])
    parser.add_argument("--trials", type=int, default=1000, help="evaluations in the first part, at least")
    parser.add_argument("--history", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--feeding", type=int, default=100, help="workers in the second part")
    parser.add_argument("--pixels", type=int, default=32)
    given = parser.parse_args(arguments)
    problem = Problem(given.pixels)
    if given.workers:
        compare(problem, given.strategies, given.workers, given.trials)
    if not given.history:
        return 0
    most = driver(problem, given.strategies, given.history, given.feeding)
    limits(most)
    good = max(most.values()) <= MOST
    print(f"at most {1e3 * MOST:g} ms per evaluation: {'yes' if good else 'NO'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

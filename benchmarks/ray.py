"""What the executors cost: evaluations a second, the share of time that workers are busy, threads, start-up.

    python benchmarks/ray.py [--rounds 3] [--pairs 7] [--trainings 40] [--skip rates|bare|threads ...]

1. Evaluations a second: a plain loop, `Local`, the Ray pool and Ray Tune with our executor through the real search
   (strategy, journal, everything), the pool without the search, and a bare `tune.Tuner` with its defaults. The
   work: 1 ms and 100 ms of CPU time in a busy loop, which like a training needs a core of its own; and a training of
   one epoch of digits, one thread, each time another network of much the same FLOPs. Counted from the moment when
   each worker has finished its first evaluation, so that nobody's start-up is in it. Median of the rounds, in which
   everything is interleaved; one round of the slow ones.
2. The same trainings on the pool through the real search and on two bare processes that share nothing but a counter,
   alternately, all of them timed from when both workers are ready until the last result is there. While the bare ones
   run there is no Ray. What counts is the time of all rounds: single ones differ by a tenth on a shared machine.
3. The same trainings on two workers with one thread of torch each, and with torch's default, a thread for each core:
   as our workers are set up, and as libgomp is unless told otherwise (threads that wait spin for much longer).

Ends with 1 unless the pool reaches 95 % of the two bare processes, and its workers are busy for 95 % of their time at
100 ms. Five to ten minutes on two cores with nothing else to do.
"""

from __future__ import annotations

# ruff: noqa: E402  (the path comes before the imports)
import sys
from pathlib import Path

# Python puts the folder of a script first on its path, and there this file has the name of the library.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log
from statistics import median
from typing import Any

import numpy as np

from nas.architecture import Architecture
from nas.evaluator import Evaluator, Report, Task
from nas.executors.base import Executor, Job, OnReport, run_job
from nas.executors.cluster import Cluster, cores
from nas.executors.local import Local
from nas.executors.ray import Pool
from nas.executors.tune import Tune
from nas.plugins import make_evaluator, make_space
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS
from nas.trial import Metric, Proposal, Trial

WORKERS = 2
SHARE = 0.95
SPINS = "300000"
"""Turns of libgomp's waiting threads unless told otherwise."""


class Work(Evaluator):
    """So many seconds of CPU time."""

    metrics = (Metric("accuracy"),)
    needs_data = False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def open(self, task: Task, *, device: str, threads: int) -> None:
        """Nothing to load."""

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return {"accuracy": 0.5}


class Training(Evaluator):
    """One epoch; a worker has trained once before it counts as open."""

    metrics = (Metric("accuracy"), Metric("loss", "min"))

    def __init__(self, warm: Architecture | None) -> None:
        self.warm = warm

    def open(self, task: Task, *, device: str, threads: int) -> None:
        self.train = make_evaluator("train", {"epochs": 1})
        self.train.open(task, device=device, threads=threads)
        if self.warm is not None:
            with tempfile.TemporaryDirectory() as folder:
                run_job(self.train, Job(0, self.warm, 0, 1.0, Path(folder)), nothing)

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        return self.train.evaluate(arch, seed=seed, budget=1.0, workdir=workdir, report=report)


class Listed(Strategy):
    """Proposes what it was given, in that order."""

    def __init__(self, space: Space, genotypes: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(space, (ACCURACY, FLOPS))
        self._genotypes, self._told = genotypes, 0

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        first = self._told + len(pending)
        return [Proposal(genotype) for genotype in self._genotypes[first : first + n]]

    def tell(self, trial: Trial) -> None:
        self._told += 1


class Problem:
    """Digits, and distinct networks of a `mobile` space, those nearest to the median FLOPs first."""

    def __init__(self, networks: int) -> None:
        self.task = Task.of("digits")
        self.space = make_space("mobile", self.task.input_shape, self.task.classes, {})
        rng = np.random.default_rng(0)
        drawn = [self.space.architecture(self.space.sample(rng)) for _ in range(networks)]
        self.drawn = list({architecture.key(): architecture for architecture in drawn}.values())
        middle = log(median(architecture.analysis.flops for architecture in self.drawn))
        self.drawn.sort(key=lambda architecture: abs(log(architecture.analysis.flops) - middle))

    def jobs(self, n: int, folder: Path) -> list[Job]:
        return [Job(i, self.drawn[i], i, None, folder / f"{i:05d}") for i in range(n)]

    def training(self, *, warm: bool = True) -> Training:
        return Training(self.drawn[0] if warm else None)


def nothing(job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
    """What comes of a report."""


def rate(times: Sequence[float], workers: int) -> float:
    """Evaluations a second after each worker's first, from the times at which they were done."""
    return (len(times) - workers) / (times[-1] - times[workers - 1])


def ready(executor: Executor) -> None:
    """Wait until all workers are open; `start` waits for one."""
    while isinstance(executor, Pool) and executor.capacity < WORKERS:
        executor.wait(0.1)


Make = Callable[[Problem, Evaluator, OnReport], Executor]


def local(problem: Problem, evaluator: Evaluator, on_report: OnReport) -> Executor:
    return Local(evaluator, problem.task, device="cpu", threads=1, on_report=on_report)


def pool(problem: Problem, evaluator: Evaluator, on_report: OnReport, threads: int = 1) -> Executor:
    return Pool(cluster(), evaluator, problem.task, device="cpu", threads=threads, on_report=on_report)


def tune(problem: Problem, evaluator: Evaluator, on_report: OnReport) -> Executor:
    return Tune(cluster(), evaluator, problem.task, device="cpu", threads=1, on_report=on_report)


def cluster(**options: Any) -> Cluster:
    return Cluster(workers=WORKERS, cpus=cores() / WORKERS, **options)


@contextmanager
def opened(**options: Any) -> Iterator[float]:
    """Ray running; the seconds that its start took."""
    here, started = cluster(**options), time.perf_counter()
    here.open()
    try:
        yield time.perf_counter() - started
    finally:
        here.close()


# -- ways to evaluate; most return the times at which evaluations were done ------------------------------------------


def plain(problem: Problem, evaluator: Evaluator, n: int) -> list[float]:
    """A loop in this process, without executor or search."""
    evaluator.open(problem.task, device="cpu", threads=1)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for job in problem.jobs(n, Path(folder)):
            assert run_job(evaluator, job, nothing).state == "ok"
            times.append(time.perf_counter())
    return times


def searched(problem: Problem, evaluator: Evaluator, n: int, make: Make) -> tuple[float, list[float], list[Trial]]:
    """Through the real search; also when its workers were ready."""
    times: list[float] = []
    made: list[Executor] = []

    def executor(on_report: OnReport) -> Executor:
        made.append(make(problem, evaluator, on_report))
        return made[0]

    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", {})
        strategy = Listed(problem.space, [architecture.genotype for architecture in problem.drawn])
        plan = Plan((ACCURACY, FLOPS), trials=n)
        search = Search(
            run, problem.space, strategy, evaluator, plan, executor,
            on_trial=lambda *_: times.append(time.perf_counter()),
        )  # fmt: skip
        search.prepare(problem.task, device="cpu")
        ready(made[0])
        started = time.perf_counter()
        search.run()
        assert [trial.state for trial in run.trials] == ["ok"] * n
        return started, times, run.trials


def jobs_only(problem: Problem, evaluator: Evaluator, n: int, threads: int = 1) -> list[float]:
    """The pool without the search."""
    executor, times = pool(problem, evaluator, nothing, threads), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        executor.start()
        ready(executor)
        waiting, running = problem.jobs(n, Path(folder)), 0
        while waiting or running:
            while waiting and running < executor.capacity:
                executor.submit(waiting.pop(0))
                running += 1
            for outcome in executor.wait():
                assert outcome.result.state == "ok", outcome.result
                running -= 1
                times.append(time.perf_counter())
        executor.close()
    return times


def tuner(problem: Problem, evaluator: Evaluator, n: int) -> list[float]:
    """A bare `tune.Tuner`: its defaults, but for what it prints."""
    from ray import tune as ray_tune

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # which `verbose` does not silence
    times: list[float] = []

    class Clock(ray_tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        jobs, task = problem.jobs(n, Path(folder)), problem.task

        def trial(config: dict[str, Any]) -> None:
            evaluator.open(task, device="cpu", threads=1)
            ray_tune.report({"accuracy": run_job(evaluator, jobs[config["number"]], nothing).metrics["accuracy"]})

        trainable = ray_tune.with_resources(trial, {"cpu": cores() / WORKERS})
        config = ray_tune.RunConfig(storage_path=folder, verbose=0, callbacks=[Clock()])
        space = {"number": ray_tune.grid_search(list(range(n)))}
        results = ray_tune.Tuner(trainable, param_space=space, run_config=config).fit()
        assert not results.errors
    return times


def bare(problem: Problem, evaluator: Evaluator, n: int) -> float:
    """Evaluations a second of two plain processes."""
    context = multiprocessing.get_context("spawn")
    barrier, counter = context.Barrier(WORKERS + 1), context.Value("i", 0)
    jobs = [(i, problem.drawn[i].genotype) for i in range(n)]
    given = (problem.task, problem.space, evaluator, jobs, barrier, counter)
    processes = [context.Process(target=_bare, args=given) for _ in range(WORKERS)]
    for process in processes:
        process.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return n / seconds


def _bare(
    task: Task, space: Space, evaluator: Evaluator, jobs: Sequence[tuple[int, Any]], barrier: Any, counter: Any
) -> None:
    evaluator.open(task, device="cpu", threads=1)
    barrier.wait()
    with tempfile.TemporaryDirectory() as folder:
        while True:
            with counter.get_lock():
                number = counter.value
                counter.value += 1
            if number >= len(jobs):
                break
            job = Job(number, space.architecture(jobs[number][1]), number, None, Path(folder) / str(number))
            assert run_job(evaluator, job, nothing).state == "ok"
    barrier.wait()


# -- the three parts -----------------------------------------------------------------------------------------------


def rates(problem: Problem, rounds: int, scale: float) -> bool:
    """Evaluations a second of each way and work; whether workers are busy."""
    works: dict[str, Evaluator] = {"1 ms": Work(1e-3), "100 ms": Work(0.1), "training": problem.training()}
    counts = {"1 ms": 1000, "100 ms": 60, "training": 20}
    quick = ("plain loop", "Local, search", "pool, search", "pool, jobs only")
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    busy: defaultdict[str, list[float]] = defaultdict(list)

    def note(way: str, name: str, value: float) -> None:
        found[way, name].append(value)
        print(f"  {way}, {name}: {value:.2f}", file=sys.stderr, flush=True)

    with opened():
        for _ in range(rounds):
            for name, work in works.items():
                n = max(8, int(scale * counts[name]))
                note("plain loop", name, rate(plain(problem, work, n), 1))
                note("Local, search", name, rate(searched(problem, work, n, local)[1], 1))
                started, times, trials = searched(problem, work, 2 * n, pool)
                note("pool, search", name, rate(times, WORKERS))
                busy[name].append(sum(trial.seconds for trial in trials) / (WORKERS * (times[-1] - started)))
                note("pool, jobs only", name, rate(jobs_only(problem, work, 2 * n), WORKERS))
        for name, work in works.items():
            n = max(8, int(scale * 40))
            note("Tune, search", name, rate(searched(problem, work, n, tune)[1], WORKERS))
            unwarmed = problem.training(warm=False) if name == "training" else work
            note("bare Tuner", name, rate(tuner(problem, unwarmed, max(4, int(scale * 8))), WORKERS))
    print(f"evaluations/s; pool and Tune: {WORKERS} workers on {cores()} cores")
    print(f"{'':18}" + "".join(f"{name:>12}" for name in works))
    for way in (*quick, "Tune, search", "bare Tuner"):
        print(f"{way:18}" + "".join(f"{median(found[way, name]):>12,.2f}" for name in works))
    print(f"{'pool busy':18}" + "".join(f"{median(busy[name]):>12.1%}" for name in works))
    good = median(busy["100 ms"]) >= SHARE
    print(f"workers busy for at least {SHARE:.0%} of their time at 100 ms: {'yes' if good else 'NO'}")
    return good


def against_bare(problem: Problem, rounds: int, n: int) -> bool:
    """The pool through the search, and two bare processes, in turns."""
    spent = np.zeros((rounds, 2))
    print(f"\n{n} trainings, trainings/s\n{'round':>6}{'pool, search':>16}{'2 processes':>16}{'ratio':>9}")
    for number in range(rounds):
        with opened():
            started, times, _ = searched(problem, problem.training(), n, pool)
        spent[number] = times[-1] - started, n / bare(problem, problem.training(), n)
        ours, theirs = n / spent[number]
        print(f"{number:>6}{ours:>16.3f}{theirs:>16.3f}{ours / theirs:>9.3f}", flush=True)
    ours, theirs = n * rounds / spent.sum(axis=0)
    good = bool(ours >= SHARE * theirs)
    print(f"{'all':>6}{ours:>16.3f}{theirs:>16.3f}{ours / theirs:>9.3f}")
    print(f"the pool at least {SHARE:.0%} of two bare processes: {'yes' if good else 'NO'}")
    return good


def threads(problem: Problem, n: int) -> None:
    """What torch's threads do to each other."""
    print(f"\n{WORKERS} workers on {cores()} cores, {n} trainings, trainings/s")
    found = []
    for label, count, spins in (
        ("1 thread each", 1, "2000"),
        (f"{cores()} threads each, as our workers are", cores(), "2000"),
        (f"{cores()} threads each, libgomp as it is", cores(), SPINS),
    ):
        with opened(runtime_env={"env_vars": {"GOMP_SPINCOUNT": spins}}):
            found.append(rate(jobs_only(problem, problem.training(), n, count), WORKERS))
        slower = f"{found[0] / found[-1]:>9.1f} x slower" if len(found) > 1 else ""
        print(f"{label:40}{found[-1]:>10.3f}{slower}", flush=True)


def start_up(problem: Problem) -> None:
    """What Ray costs before the first evaluation, and two workers that train."""
    with opened() as seconds:
        alone = memory()
        started = time.perf_counter()
        executor = pool(problem, problem.training(), nothing)
        executor.start()
        ready(executor)
        workers, both = time.perf_counter() - started, memory()
        executor.close()
        started = time.perf_counter()
    ended = time.perf_counter() - started
    print(
        f"start of Ray {seconds:.1f} s, {alone:.2f} GB; {WORKERS} workers with "
        f"torch, digits and one training behind them {workers:.1f} s, {both - alone:.2f} GB; end {ended:.1f} s\n",
        flush=True,
    )


def memory() -> float:
    """GB of all processes below this one; what they share is counted once (proportional set size)."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended meanwhile
            continue
    found, below = 0, {os.getpid()}
    while below := {pid for pid, parent in parents.items() if parent in below}:
        for pid in below:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            found += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return found / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=7, help="rounds of the second part")
    parser.add_argument("--trainings", type=int, default=40, help="of a round of the second part")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of evaluations in the first part")
    parser.add_argument("--skip", nargs="*", choices=("rates", "bare", "threads"), default=())
    given = parser.parse_args(arguments)
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as `nas.cli` does, before torch is loaded
    problem = Problem(max(2500, 2 * given.trainings))
    start_up(problem)
    good = True
    if "rates" not in given.skip:
        good &= rates(problem, given.rounds, given.scale)
    if "bare" not in given.skip:
        good &= against_bare(problem, given.pairs, given.trainings)
    if "threads" not in given.skip:
        threads(problem, 8)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Jobs as trials of Ray Tune, and our spaces and strategies inside a user's own Tuner."""

from __future__ import annotations

import json
import logging
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nas.strategies.random import Random
from toys import Accident, Toy

from nas.errors import ConfigError, NasError, PluginError, RunError, SpaceError, Stop
from nas.evaluator import Evaluator, Report, Task
from nas.executors.base import Hear, Job, OnReport, Outcome
from nas.executors.local import Local
from nas.search import Plan, Search
from nas.store import Run
from nas.testing import ACCURACY, FLOPS, toy_metrics, toy_space
from nas.trial import Limit

ray = pytest.importorskip("ray", reason="Ray is not installed")

from ray import cloudpickle, tune  # noqa: E402
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler, PopulationBasedTraining  # noqa: E402

import nas.executors.tune as module  # noqa: E402
import nas.executors.tuner as user_side  # noqa: E402
from nas.executors.cluster import Cluster  # noqa: E402
from nas.executors.tune import Tune  # noqa: E402
from nas.executors.tuner import NasSearch, trainable  # noqa: E402

# Ray's own code leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TASK = Task(None, (3, 16, 16), 10)
WORKERS = 2


@pytest.fixture(scope="module")
def here() -> Iterator[None]:
    """One Ray for all tests of this file; its workers find `toys`, and get what is defined here by value."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    tests = str(Path(__file__).parents[1])
    ray.init(
        address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": tests}},
    )  # fmt: skip
    yield
    ray.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As in a run: the trials' folders are two levels down."""
    return tmp_path / "run"


def nothing(job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
    pass


def start(evaluator: Evaluator, on_report: OnReport = nothing) -> Tune:
    executor = Tune(Cluster(workers=WORKERS, cpus=1), evaluator, TASK, device="cpu", threads=0, on_report=on_report)
    executor.start()
    return executor


def jobs(folder: Path, n: int, timeout: float | None = None) -> list[Job]:
    space, rng = toy_space(), np.random.default_rng(0)
    return [
        Job(i, space.architecture(space.sample(rng)), i, 3.0, folder / "trials" / f"{i:05d}", timeout)
        for i in range(n)
    ]  # fmt: skip


def finish(executor: Tune, todo: list[Job]) -> dict[int, Outcome]:
    """Run jobs as the search does, lost ones again; outcomes by number."""
    waiting, running, found = list(todo), 0, dict[int, Outcome]()
    while waiting or running:
        while waiting and running < executor.capacity:
            executor.submit(waiting.pop(0))
            running += 1
        for outcome in executor.wait():
            running -= 1
            if outcome.retry:
                waiting.insert(0, outcome.job)
            found[outcome.job.number] = outcome
    return found


# -- the executor ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_jobs_are_evaluated_as_they_are_here(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reports: list[tuple[int, float]] = []
    temporary = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("tmp*/search"))
    executor = start(Toy(), lambda job, epoch, metrics: reports.append((job.number, epoch)))
    todo = jobs(folder, 24)
    found = finish(executor, todo)
    executor.close()
    here = Local(Toy(), TASK, device="cpu", threads=1, on_report=nothing)
    here.start()
    for job in todo:
        here.submit(replace(job, workdir=folder / "here" / job.workdir.name))
        expected = here.wait()[0].result
        result = found[job.number].result
        assert (result.state, result.metrics, result.budget) == ("ok", expected.metrics, 3.0)
        assert (job.workdir / "weights.safetensors").exists()
        assert [epoch for number, epoch in reports if number == job.number] == [1, 2, 3]
    assert len({outcome.result.worker for outcome in found.values()}) == WORKERS  # each kept from trial to trial
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("tmp*/search")) <= temporary
    assert capfd.readouterr() == ("", "")
    assert "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" not in os.environ
    assert logging.getLogger("ray.tune").level != logging.CRITICAL


@pytest.mark.usefixtures("here")
def test_a_report_can_end_a_trial(folder: Path) -> None:
    def on_report(job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        if job.number % 2 and epoch == 2:
            raise Stop

    executor = start(Toy(), on_report)
    found = finish(executor, jobs(folder, 6))
    executor.close()
    for number, outcome in found.items():
        result = outcome.result
        assert (result.state, result.budget) == (("stopped", 2.0) if number % 2 else ("ok", 3.0))
        if number % 2:
            accuracy = toy_metrics(outcome.job.architecture)["accuracy"] + number / 1e6
            assert result.metrics == {"accuracy": pytest.approx(accuracy * 2 / 3)}


@pytest.mark.usefixtures("here")
def test_a_lost_worker_is_replaced_and_its_job_comes_back(folder: Path) -> None:
    executor = start(Accident(fault="kill", on="1,4"))
    lost: list[Outcome] = []
    wait = executor.wait

    def watched(timeout: float | None = None) -> list[Outcome]:
        outcomes = wait(timeout)
        lost.extend(outcome for outcome in outcomes if outcome.retry)
        return outcomes

    executor.wait = watched  # type: ignore[method-assign]
    found = finish(executor, jobs(folder, 6))
    executor.close()
    assert sorted(outcome.job.number for outcome in lost) == [1, 4]
    assert all("the worker was lost" in (outcome.result.error or "") for outcome in lost)
    assert [found[i].result.state for i in range(6)] == ["ok"] * 6


@pytest.mark.usefixtures("here")
def test_a_hang_is_ended_and_a_running_job_can_be_cancelled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE", 0.2)
    executor = start(Accident(fault="hang", on="0,2", times=9))
    todo = [*jobs(folder, 2, timeout=5.0), *jobs(folder, 4)[2:]]  # the first has a time limit, the third has none
    found = finish(executor, todo[:2])
    assert [found[i].result.state for i in (0, 1)] == ["timed_out", "ok"]
    assert "time limit of 5 s" in (found[0].result.error or "")
    executor.submit(todo[2])
    executor.submit(todo[3])
    assert [outcome.job.number for outcome in executor.wait()] == [3]
    assert executor.wait(0.0) == []
    executor.cancel(todo[2])
    assert executor.wait() == []  # there is nothing left to wait for
    executor.submit(todo[3])
    assert executor.wait()[0].result.state == "ok"  # and the worker is free
    executor.close()


@pytest.mark.usefixtures("here")
def test_closing_now_waits_for_nothing(folder: Path) -> None:
    class Slow(Toy):
        def evaluate(self, *args: Any, workdir: Path, **named: Any) -> Mapping[str, float]:
            (workdir / "pid").write_text(str(os.getpid()))
            time.sleep(3600)
            return {}

    executor = start(Slow())
    todo = jobs(folder, 1)
    executor.submit(todo[0])
    while not (pid := todo[0].workdir / "pid").exists() or not pid.read_text():
        assert executor.wait(0.1) == []
    executor.close(now=True)
    end = time.monotonic() + 30
    while (process := Path("/proc") / pid.read_text()).exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert not process.exists()


class Shut(Toy):
    def open(self, task: Task, *, device: str, threads: int) -> None:
        raise ConfigError("it does not open")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("evaluator", "error"),
    [
        (Shut(), ConfigError("it does not open")),
        (Accident(fault="full", on="0"), OSError("No space left on device")),
    ],
)
def test_what_is_no_networks_fault_ends_the_search(folder: Path, evaluator: Evaluator, error: Exception) -> None:
    executor = start(evaluator)
    executor.submit(jobs(folder, 1)[0])
    with pytest.raises(type(error), match=str(error)):
        executor.wait()
    executor.close(now=True)


@pytest.mark.usefixtures("here")
def test_an_evaluator_that_cannot_travel() -> None:
    evaluator = Toy()
    evaluator.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"toys:Toy failed: .*cannot pickle"):
        start(evaluator)


@pytest.mark.usefixtures("here")
def test_one_long_job() -> None:
    executor = Tune(Cluster(workers=1, cpus=1), Toy(), TASK, device="cpu", threads=0, on_report=nothing)
    assert executor.run_once(os.getpid, {}).result() != os.getpid()
    heard: list[tuple[float, object, float | None]] = []

    def work(hear: Hear) -> int:
        hear(1.0, {"loss": 0.5}, 2)
        return os.getpid()

    assert executor.run_once(work, {}, lambda *words: heard.append(words)).result() != os.getpid()
    assert heard == [(1.0, {"loss": 0.5}, 2)]

    def wrong() -> None:
        raise ConfigError("a mistake")

    with pytest.raises(ConfigError, match=r"^a mistake$"):
        executor.run_once(wrong, {}).result()
    executor.close()


@pytest.mark.usefixtures("here")
def test_a_search_with_halving_goes_on_where_it_was(tmp_path: Path) -> None:
    def search(trials: int) -> Search:
        path = tmp_path / "run"
        run = Run.open(path, write=True) if path.exists() else Run.create(path, {})
        space, evaluator = toy_space(), Toy()
        plan = Plan((ACCURACY,), trials=trials, rungs=(1.0,))
        found = Search(
            run, space, Random(space, plan.objectives), evaluator, plan,
            lambda report: Tune(
                Cluster(workers=WORKERS, cpus=1), evaluator, TASK, device="cpu", threads=0, on_report=report
            ),
        )  # fmt: skip
        found.prepare(TASK, device="cpu")
        return found

    search(5).run()
    search(12).run()
    trials = Run.open(tmp_path / "run").trials
    states = [trial.state for trial in trials if trial.evaluated]
    assert len(states) == 12
    assert set(states) == {"ok", "stopped"}
    assert {trial.budget for trial in trials if trial.state == "stopped"} == {1.0}
    assert len({trial.number for trial in trials}) == len(trials)


# -- NasSearch -------------------------------------------------------------------------------------------------


def searcher(limits: tuple[Limit, ...] = (), seed: int = 0) -> NasSearch:
    return NasSearch(toy_space(), "evolution", (ACCURACY, FLOPS), limits, options={"population": 4}, seed=seed)


def answer(search: NasSearch, name: str, config: Mapping[str, Any], **other: Any) -> None:
    metrics = toy_metrics(toy_space().architecture(config["genotype"]))
    search.on_trial_complete(name, {**metrics, "epoch": 3.0, "state": "ok", **other})


def test_forbidden_networks_and_known_ones_are_not_run() -> None:
    search = searcher((Limit("flops", 4e5, exact=True),))
    for number in range(60):
        config = search.suggest(f"t{number}")
        assert toy_space().architecture(config["genotype"]).analysis.flops <= 4e5
        answer(search, f"t{number}", config)
    ran = [trial for trial in search.trials if trial.evaluated]
    assert len({trial.key for trial in ran}) == len(ran) == 60
    numbers = [trial.number for trial in search.trials]
    assert numbers == list(range(len(numbers)))


def test_a_network_that_is_running_is_told_when_it_is_done() -> None:
    class Same(Random):
        def ask(self, n: int, rng: np.random.Generator, pending: Any) -> Any:
            return super().ask(1, np.random.default_rng(len(pending) > 1 and len(self.told)), pending)

        told: list[Any] = []  # noqa: RUF012

        def tell(self, trial: Any) -> None:
            self.told.append(trial)

    search = searcher()
    search._strategy = Same(toy_space(), (ACCURACY,))
    config = search.suggest("a")
    assert search.suggest("b") is None  # all it proposes is being evaluated
    answer(search, "a", config)
    first, *copies = search.trials
    assert len(copies) == 8
    assert {trial.duplicate_of for trial in copies} == {first.number}


@pytest.mark.parametrize(
    ("result", "error", "state"),
    [
        ({"accuracy": 0.5, "epoch": 3.0, "state": "ok"}, False, "ok"),
        ({"accuracy": 0.5, "epoch": 1.0, "state": "running"}, False, "stopped"),
        ({"accuracy": 0.5, "epoch": 1.0}, False, "stopped"),
        ({"accuracy": nan, "epoch": 1.0, "state": "diverged"}, False, "diverged"),
        ({"loss": 0.5, "epoch": 3.0, "state": "ok"}, False, "failed"),
        ({"accuracy": 0.5, "epoch": 3.0, "state": "ok"}, True, "failed"),
        (None, False, "failed"),
    ],
)
def test_what_the_strategy_is_told(result: dict[str, Any] | None, error: bool, state: str) -> None:
    search = searcher()
    search.suggest("a")
    search.on_trial_complete(trial_id="a", result=result, error=error)
    trial = search.trials[0]
    assert (trial.state, trial.budget) == (state, (result.get("epoch") if result and not error else None))
    assert ("accuracy" in trial.metrics) == (state in ("ok", "stopped"))
    search.on_trial_complete(trial_id="a", result=result, error=error)  # run again, by a restored Tuner
    assert len(search.trials) == 1


def test_a_restored_search_proposes_the_same(tmp_path: Path) -> None:
    search, again = searcher(), searcher()
    configs = {f"t{i}": search.suggest(f"t{i}") for i in range(8)}
    for name in list(configs)[:6]:
        answer(search, name, configs[name])
    search.save(str(tmp_path / "state.pkl"))
    json.loads((tmp_path / "state.pkl").read_text())
    again.suggest("x")  # it has a past of its own, which is forgotten
    again.restore(str(tmp_path / "state.pkl"))
    for name in ("t6", "t7"):
        for each in (search, again):
            answer(each, name, configs[name])
    assert again.trials == search.trials
    assert [again.suggest(f"u{i}") for i in range(3)] == [search.suggest(f"u{i}") for i in range(3)]
    with pytest.raises(RunError, match="expected format 1, seed 1"):
        searcher(seed=1).restore(str(tmp_path / "state.pkl"))


def test_limits_that_nothing_keeps() -> None:
    with pytest.raises(SpaceError, match="loosen the limits"):
        NasSearch(toy_space(), "random", (ACCURACY,), (Limit("flops", 1.0, exact=True),)).suggest("a")


# -- a Tuner of one's own --------------------------------------------------------------------------------------


class Moody(Toy):
    """Diverges, fails or works, according to the seed."""

    def evaluate(self, *args: Any, seed: int, report: Report, **named: Any) -> Mapping[str, float]:
        if seed % 4 == 0:
            report(1, {"accuracy": nan})
        if seed % 4 == 1:
            raise ZeroDivisionError("a bug")
        return super().evaluate(*args, seed=seed, report=report, **named)


def tuner(folder: Path, evaluator: Evaluator, search: NasSearch, *, trials: int, **settings: Any) -> tune.Tuner:
    run = {"callbacks": settings.pop("callbacks", None), "checkpoint_config": settings.pop("checkpoints", None)}
    return tune.Tuner(
        trainable(evaluator, TASK, search._space, device="cpu"),
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", num_samples=trials, search_alg=search, max_concurrent_trials=WORKERS,
            reuse_actors=True, **settings,
        ),
        run_config=tune.RunConfig(name="mine", storage_path=str(folder), verbose=0, **run),
    )  # fmt: skip


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, here: None) -> None:
    """Tune without output, and its state saved at every step."""
    for name, value in {**module.SETTINGS, **module.QUIET, "TUNE_GLOBAL_CHECKPOINT_S": "0"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("quiet")
def test_asha_stops_trials_and_the_strategy_knows(tmp_path: Path) -> None:
    search = searcher()
    scheduler = ASHAScheduler(max_t=3, grace_period=1, reduction_factor=2)
    grid = tuner(tmp_path, Toy(), search, trials=12, scheduler=scheduler).fit()
    assert len(grid) == 12
    told = {trial.key: trial for trial in search.trials if trial.evaluated}
    assert {trial.state for trial in told.values()} == {"ok", "stopped"}
    for result in grid:
        metrics = result.metrics
        trial = told[metrics["key"]]
        assert (trial.state == "ok") == (metrics["state"] == "ok") == (metrics["epoch"] == 3)
        assert metrics["training_iteration"] == trial.budget == metrics["epoch"]
        assert trial.metrics["accuracy"] == metrics["accuracy"]
        assert metrics["flops"] == search._space.architecture(result.config["genotype"]).analysis.flops
    best = grid.get_best_result()
    assert best.metrics["state"] == "ok"


@pytest.mark.usefixtures("quiet")
def test_errors_and_nan_end_trials_and_nothing_else(tmp_path: Path) -> None:
    search = searcher()
    grid = tuner(tmp_path, Moody(), search, trials=10).fit()
    expected = {0: "diverged", 1: "failed", 2: "ok", 3: "ok"}
    told = [trial for trial in search.trials if trial.evaluated]
    assert [trial.state for trial in told] == [expected[trial.seed % 4] for trial in told]
    assert {trial.state for trial in told} == {"diverged", "failed", "ok"}
    assert len(grid.errors) == sum(trial.state == "failed" for trial in told)
    assert any("failed: ZeroDivisionError: a bug" in str(error) for error in grid.errors)


class Interrupt(tune.Callback):
    """Breaks off once, in mid experiment."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        running = [trial for trial in trials if trial.status == "RUNNING" and trial.checkpoint]
        if not self.marker.exists() and running and sum(trial.status == "TERMINATED" for trial in trials) >= 3:
            self.marker.touch()
            raise NasError("interrupted")


class Counting(Toy):
    """Counts the epochs that it trains."""

    def __init__(self, log: Path) -> None:
        super().__init__(delay=0.05)
        self.log = log

    def evaluate(self, *args: Any, seed: int, workdir: Path, **named: Any) -> Mapping[str, float]:
        found = workdir / "checkpoint.json"
        with self.log.open("a") as log:
            log.write(f"{seed} {json.loads(found.read_text())['epoch'] if found.exists() else 0}\n")
        return super().evaluate(*args, seed=seed, workdir=workdir, **named)


@pytest.mark.usefixtures("quiet")
def test_a_restored_experiment_loses_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    every = tune.CheckpointConfig(checkpoint_frequency=1)
    callbacks = [Interrupt(tmp_path / "marker")]
    first = tuner(tmp_path, Counting(log), searcher(), trials=8, callbacks=callbacks, checkpoints=every)
    with pytest.raises(Exception, match="interrupted"):
        first.fit()
    began = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    restored = tune.Tuner.restore(
        str(tmp_path / "mine"), trainable=trainable(Counting(log), TASK, toy_space(), device="cpu")
    )
    grid = restored.fit()
    assert len(grid) == 8
    assert all(result.metrics["state"] == "ok" for result in grid)
    assert len({result.metrics["key"] for result in grid}) == 8
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    again = lines[len(began) :]
    assert any(epoch > 0 for _, epoch in again)  # went on from its checkpoint
    done = {result.config["seed"] for result in grid}
    assert {seed for seed, _ in lines} == done  # what was proposed before was not proposed again
    assert len(lines) - len({seed for seed, _ in lines}) <= WORKERS  # only what had been cut off ran twice


@pytest.mark.usefixtures("quiet")
def test_hyperband_pauses_trials_and_goes_on(tmp_path: Path) -> None:
    search = searcher()
    scheduler = HyperBandScheduler(max_t=3, reduction_factor=3)
    grid = tuner(tmp_path, Toy(), search, trials=6, scheduler=scheduler).fit()
    told = {trial.key: trial for trial in search.trials if trial.evaluated}
    assert len(grid) == len(told) == 6
    assert {trial.state for trial in told.values()} <= {"ok", "stopped"}
    for result in grid:
        assert told[result.metrics["key"]].budget == result.metrics["epoch"]


@pytest.mark.usefixtures("quiet")
def test_population_based_training_sets_the_evaluators_attributes(tmp_path: Path) -> None:
    space, rng = toy_space(), np.random.default_rng(0)
    genotypes = [space.sample(rng) for _ in range(4)]
    delays = [0.001, 0.002]
    scheduler = PopulationBasedTraining(
        perturbation_interval=1,
        quantile_fraction=0.5,
        synch=True,
        hyperparam_mutations={"evaluator": {"delay": delays}},
    )
    grid = tune.Tuner(
        trainable(Toy(), TASK, space, device="cpu"),
        param_space={"genotype": tune.grid_search(genotypes), "evaluator": {"delay": tune.choice(delays)}},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", scheduler=scheduler, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert len(grid) == 4
    assert not grid.errors
    for result in grid:
        assert result.config["evaluator"]["delay"] in delays
        assert result.metrics["epoch"] == result.metrics["training_iteration"] == 3
        network = space.architecture(result.config["genotype"])
        assert result.metrics["accuracy"] == toy_metrics(network)["accuracy"]


@pytest.mark.usefixtures("quiet")
def test_the_example_runs(tmp_path: Path) -> None:
    text = (user_side.__doc__ or "").partition("\n")[2]
    smaller = {
        '{"epochs": 9}': '{"epochs": 1}', "num_samples=50": "num_samples=2", "max_t=9": "max_t=1",
        "max_concurrent_trials=4": "max_concurrent_trials=1", 'Task.of("digits")': 'Task.of("digits", limit=200)',
        "tune.RunConfig(": f"tune.RunConfig(storage_path={str(tmp_path)!r}, verbose=0, ",
    }  # fmt: skip
    for part, other in smaller.items():
        assert part in text
        text = text.replace(part, other)
    found: dict[str, Any] = {}
    exec(compile(textwrap.dedent(text), "example", "exec"), found)
    assert found["network"].analysis.params <= 200e3
    assert found["best"].checkpoint is not None
    assert 0 <= found["best"].metrics["accuracy"] <= 1

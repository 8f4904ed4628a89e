"""The loop: journal, duplicates, infeasible proposals, failures, resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from nas.strategies.evolution import Evolution
from nas.strategies.random import Random
from toys import Missing, Toy

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, Skip
from nas.choices import OneOf
from nas.errors import NasError, PluginError, SpaceError, Stop
from nas.evaluator import Evaluator, Report, Task
from nas.executors.base import Executor, Job, OnReport, Outcome, run_job
from nas.executors.local import Local
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, toy_space
from nas.trial import Limit, Proposal, Result, Trial, parse_objectives

TASK = Task(None, (3, 16, 16), 10)
BOTH = (ACCURACY, FLOPS)


def make(
    folder: Path, *, space: Space | None = None, strategy: type[Strategy] = Random, evaluator: Evaluator | None = None,
    executor: object = None, **plan: object,
) -> Search:  # fmt: skip
    """A search in `folder`, new or resumed."""
    space = space or toy_space()
    settings = Plan(**{"objectives": BOTH, "trials": 12, **plan})  # type: ignore[arg-type]
    run = Run.open(folder, write=True) if (folder / "run.json").exists() else Run.create(folder, {})
    judge = evaluator or Toy()

    def local(report: OnReport) -> Executor:
        return Local(judge, TASK, device="cpu", threads=1, on_report=report)

    made = executor if callable(executor) else local
    search = Search(run, space, strategy(space, BOTH, settings.limits), judge, settings, made)
    search.prepare(TASK, device="cpu")
    return search


def finish(search: Search) -> list[Trial]:
    search.run()
    return search.store.trials


def fails(search: Search, error: type[BaseException], match: str | None = None) -> None:
    with pytest.raises(error, match=match) as caught:
        search.run()
    assert "\n" not in str(caught.value)


def same(a: Sequence[Trial], b: Sequence[Trial]) -> bool:
    """Equal but for the time they took."""
    return [{**vars(t), "seconds": 0, "elapsed": 0} for t in a] == [{**vars(t), "seconds": 0, "elapsed": 0} for t in b]


class Scripted(Strategy):
    """Proposes a fixed list of genotypes, one after the other; `told` and `pendings` show what it was given."""

    script: Sequence[Mapping[str, object]] = ()

    def __init__(self, space: Space, objectives: object, limits: object = ()) -> None:
        super().__init__(space, BOTH)
        self.told: list[Trial] = []
        self.pendings: list[int] = []

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        self.pendings.append(len(pending))
        at = len(self.told) + len(pending)
        return [Proposal(g, {"step": at + i}) for i, g in enumerate(self.script[at : at + n])]  # type: ignore[arg-type]

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


def script(*genotypes: Mapping[str, object]) -> type[Strategy]:
    return type("Scripted", (Scripted,), {"script": genotypes})


WIDTHS = Space(
    Chain(stem=Conv(8), a=OneOf(Conv(8), Skip()), b=OneOf(Conv(8), Skip()), head=Head(10)),
    input_shape=(3, 8, 8), classes=10,
)  # fmt: skip


def test_a_search_fills_its_journal_and_its_front(tmp_path: Path) -> None:
    search = make(tmp_path / "run")
    trials = finish(search)
    assert sum(t.evaluated for t in trials) == 12
    assert [t.number for t in trials] == list(range(len(trials)))
    read = Run.open(tmp_path / "run")
    assert read.trials == trials
    assert not read.asked
    assert all(len(read.curves[t.number]) == 3 for t in trials if t.evaluated)
    values = [(t.metrics["accuracy"], t.metrics["flops"]) for t in search.front]
    assert values == sorted(values, reverse=True)
    for t in trials:
        beaten = t.metrics["accuracy"] < max(a for a, f in values if f <= t.metrics["flops"])
        assert beaten or (t.metrics["accuracy"], t.metrics["flops"]) in values


def test_only_the_front_keeps_weights(tmp_path: Path) -> None:
    search = make(tmp_path / "run")
    finish(search)
    kept = sorted(int(f.stem) for f in (tmp_path / "run/weights").iterdir())
    assert kept == sorted(t.number for t in search.front)
    assert not list((tmp_path / "run/trials").iterdir())


def test_a_duplicate_is_told_the_known_result_and_does_not_count(tmp_path: Path) -> None:
    one, other = {"a": "conv", "b": "identity"}, {"a": "identity", "b": "conv"}  # the same network
    both = {"a": "conv", "b": "conv"}
    evaluator = Toy()
    search = make(tmp_path / "run", space=WIDTHS, strategy=script(one, other, both), evaluator=evaluator, trials=2)
    trials = finish(search)
    assert evaluator.evaluated == 2
    assert [t.duplicate_of for t in trials] == [None, 0, None]
    assert trials[1].metrics == trials[0].metrics
    assert [t.note["step"] for t in search.strategy.told] == [0, 1, 2]  # type: ignore[attr-defined]


def test_infeasible_proposals_are_told_with_their_violations(tmp_path: Path) -> None:
    small, large = {"a": "identity", "b": "identity"}, {"a": "conv", "b": "conv"}
    bound = WIDTHS.architecture({"a": "conv", "b": "identity"}).analysis.flops
    limits = (Limit("flops", bound, exact=True),)
    search = make(tmp_path / "run", space=WIDTHS, strategy=script(large, small), trials=1, limits=limits)
    trials = finish(search)
    assert [t.state for t in trials] == ["infeasible", "ok"]
    assert trials[0].violations["flops"] == pytest.approx(trials[0].metrics["flops"] / bound - 1)
    assert [event["event"] for _, event in Run.open(tmp_path / "run").events()][:2] == ["told", "asked"]


def test_a_network_that_cannot_be_built_is_infeasible(tmp_path: Path) -> None:
    space = Space(
        Chain(stem=OneOf(Conv(8, kernel=9, padding=0), Conv(8), labels=("wide", "plain")), head=Head(10)),
        input_shape=(3, 8, 8), classes=10,
    )  # fmt: skip
    trials = finish(make(tmp_path / "run", space=space, strategy=script({"stem": "wide"}, {"stem": "plain"}), trials=1))
    assert [t.state for t in trials] == ["infeasible", "ok"]
    assert "does not fit" in (trials[0].error or "")


def test_limits_that_nothing_meets_end_with_the_range(tmp_path: Path) -> None:
    search = make(tmp_path / "run", limits=(Limit("flops", 10, exact=True),))
    fails(search, SpaceError, r"1000 proposals in a row .* flops is .* to .*limit 10")


def test_a_space_that_is_exhausted_ends_the_search(tmp_path: Path) -> None:
    search = make(tmp_path / "run", space=WIDTHS, trials=50)
    trials = finish(search)
    assert sum(t.evaluated for t in trials) == 3  # conv+identity and identity+conv are one network
    assert "every feasible architecture" in (search.stopped or "")


@pytest.mark.parametrize(
    ("kind", "state"),
    [("diverged", "diverged"), ("out_of_memory", "out_of_memory"), ("memory", "out_of_memory"), ("failed", "failed"),
     ("bug", "failed"), ("stop", "stopped")],
)  # fmt: skip
def test_what_goes_wrong_is_a_state(tmp_path: Path, kind: str, state: str) -> None:
    search = make(tmp_path / "run", evaluator=Toy(fail=f"{kind},none"), trials=4)
    trials = finish(search)
    assert [t.state for t in trials if t.evaluated] == [state, "ok"] * 2
    assert all(t.ok for t in search.front)
    assert all("\n" not in (t.error or "") for t in trials)
    if kind == "bug":
        assert trials[0].error == "ZeroDivisionError: a bug in two lines"
        assert "ZeroDivisionError" in (tmp_path / "run/trials/00000/error.txt").read_text()


def test_a_missing_metric_is_named(tmp_path: Path) -> None:
    trials = finish(make(tmp_path / "run", evaluator=Missing(), trials=1))
    assert trials[0].error == "the evaluator returned no 'accuracy'; it returned acuracy"


def test_stop_ends_a_trial_with_what_it_reported(tmp_path: Path) -> None:
    def stop_at_two(job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        if epoch == 2:
            raise Stop

    space = toy_space()
    evaluator = Toy()
    evaluator.open(TASK, device="cpu", threads=1)
    architecture = space.architecture(space.sample(np.random.default_rng(0)))
    result = run_job(evaluator, Job(0, architecture, 1, 3, tmp_path / "w"), stop_at_two)
    assert (result.state, result.budget) == ("stopped", 2)
    assert result.metrics["accuracy"] > 0


def test_a_trial_that_takes_too_long_is_timed_out(tmp_path: Path) -> None:
    trials = finish(make(tmp_path / "run", evaluator=Toy(delay=0.02), trials=2, trial_timeout=0.01))
    assert [t.state for t in trials] == ["timed_out"] * 2


def test_time_ends_a_search(tmp_path: Path) -> None:
    search = make(tmp_path / "run", evaluator=Toy(delay=0.02), trials=1000, seconds=0.5)
    assert 0 < len(finish(search)) < 1000
    assert search.stopped == "the time is up"


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the loop may catch it."""


class Dying(Toy):
    """Dies at the given report."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.reports = at, 0

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        def counting(epoch: float, metrics: Mapping[str, float]) -> None:
            self.reports += 1
            report(epoch, metrics)
            if self.reports == self.at:
                raise Killed

        return super().evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=counting)  # type: ignore[arg-type]


@pytest.mark.parametrize("at", [1, 5, 17, 30])
def test_resuming_equals_the_uninterrupted_run(tmp_path: Path, at: int) -> None:
    whole = finish(make(tmp_path / "whole"))
    fails(make(tmp_path / "cut", evaluator=Dying(at)), Killed)
    evaluator = Toy()
    resumed = finish(make(tmp_path / "cut", evaluator=evaluator))
    assert same(resumed, whole)
    assert evaluator.evaluated == 12 - (at - 1) // 3  # what was finished is not evaluated again


def test_extending_a_finished_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    finish(make(tmp_path / "run", trials=5))
    assert same(finish(make(tmp_path / "run", trials=12)), finish(make(tmp_path / "whole", trials=12)))


class Parallel(Executor):
    """Holds several jobs and finishes the newest first: outcomes out of order, as from real workers."""

    def __init__(self, evaluator: Evaluator, on_report: OnReport, lost: Sequence[int] = ()) -> None:
        self.evaluator, self.on_report, self.lost = evaluator, on_report, list(lost)
        self.jobs: list[Job] = []
        evaluator.open(TASK, device="cpu", threads=1)

    @property
    def capacity(self) -> int:
        return 4

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        assert len(self.jobs) <= 4

    def wait(self, timeout: float | None = None) -> list[Outcome]:
        job = self.jobs.pop()
        if job.number in self.lost:
            self.lost.remove(job.number)
            return [Outcome(job, Result("failed", error="worker killed"), retry=True)]
        return [Outcome(job, run_job(self.evaluator, job, self.on_report))]

    def cancel(self, job: Job) -> None:
        self.jobs.remove(job)

    def run_once(self, function: object, resources: object, hear: object = None) -> object:  # type: ignore[override]
        raise AssertionError("nothing to prepare here")

    def close(self, now: bool = False) -> None:
        self.jobs.clear()


def test_parallel_workers_lose_nothing(tmp_path: Path) -> None:
    search = make(tmp_path / "run", executor=lambda report: Parallel(Toy(), report), trials=20)
    trials = finish(search)
    assert sum(t.evaluated for t in trials) == 20
    assert sorted(t.number for t in trials) == list(range(len(trials)))


def test_the_same_network_asked_twice_at_once_is_evaluated_once(tmp_path: Path) -> None:
    one, other = {"a": "conv", "b": "identity"}, {"a": "identity", "b": "conv"}
    evaluator = Toy()
    search = make(
        tmp_path / "run", space=WIDTHS, strategy=script(one, other, {"a": "conv", "b": "conv"}), trials=2,
        executor=lambda report: Parallel(evaluator, report),
    )  # fmt: skip
    trials = finish(search)
    assert evaluator.evaluated == 2
    assert {t.number: t.duplicate_of for t in trials} == {0: None, 1: 0, 2: None}


def test_workers_without_work_wait_for_the_others(tmp_path: Path) -> None:
    evaluator = Toy()
    search = make(tmp_path / "run", space=WIDTHS, trials=50, executor=lambda report: Parallel(evaluator, report))
    trials = finish(search)
    assert evaluator.evaluated == 3
    assert sum(t.evaluated for t in trials) == 3
    assert "every feasible architecture" in (search.stopped or "")


def test_a_lost_worker_is_retried_twice_and_then_recorded(tmp_path: Path) -> None:
    search = make(tmp_path / "run", executor=lambda report: Parallel(Toy(), report, [1, 2, 2, 2]), trials=6)
    trials = {t.number: t for t in finish(search)}
    assert trials[1].state == "ok"
    assert trials[2].state == "failed"
    assert trials[2].error == "worker killed (3 times)"
    retries = [e["number"] for _, e in Run.open(tmp_path / "run").events() if e["event"] == "retry"]
    assert sorted(retries) == [1, 2, 2]


def test_prepare_runs_once_in_the_run_folder(tmp_path: Path) -> None:
    seen = []

    class Prepared(Toy):
        def prepare(self, task: Task, workdir: Path, *, seed: int, device: str, report: object) -> None:
            seen.append((task, workdir.relative_to(tmp_path), seed, device))

    make(tmp_path / "run", evaluator=Prepared(), seed=3).store.close()
    assert [(str(folder), seed, device) for _, folder, seed, device in seen] == [("run/prepare/evaluator", 3, "cpu")]


def test_a_strategy_that_proposes_nothing_is_named(tmp_path: Path) -> None:
    fails(make(tmp_path / "run", strategy=script(), trials=1), NasError, "Scripted proposed nothing")


def test_the_journal_is_plain_json_lines(tmp_path: Path) -> None:
    finish(make(tmp_path / "run", trials=2))
    lines = (tmp_path / "run/trials.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["event"] for e in events] == ["asked", "report", "report", "report", "told"] * 2


def test_an_objective_that_nobody_measures_fails_the_trial_and_not_the_search(tmp_path: Path) -> None:
    objectives = (ACCURACY, parse_objectives("speed:max", [])[0])
    trials = finish(make(tmp_path / "run", objectives=objectives, trials=2))
    assert [t.state for t in trials] == ["failed"] * 2
    assert trials[0].error == "there is no metric 'speed'; the evaluator gave accuracy"


def test_evolution_gives_up_too_where_nothing_is_feasible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.search.FUTILE", 200)
    search = make(tmp_path / "run", strategy=Evolution, limits=(Limit("flops", 10, exact=True),))
    fails(search, SpaceError, r"200 proposals in a row")


def test_a_full_disk_leaves_the_trial_to_be_evaluated_again(tmp_path: Path) -> None:
    class Full(Toy):
        def evaluate(self, *arguments: object, **keywords: object) -> Mapping[str, float]:
            raise OSError(28, "No space left on device", "checkpoint")

    fails(make(tmp_path / "run", evaluator=Full(), trials=1), OSError, "No space left")
    assert len(Run.open(tmp_path / "run").asked) == 1
    assert [t.state for t in finish(make(tmp_path / "run", trials=1))] == ["ok"]


def test_what_a_strategy_raises_is_one_line(tmp_path: Path) -> None:
    class Broken(Random):
        def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
            raise KeyError("mine")

    fails(make(tmp_path / "run", strategy=Broken), PluginError, r"Broken failed: KeyError: 'mine'")


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    class Numpy(Random):
        def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
            return [Proposal(p.genotype, {"drawn": np.int64(3)}) for p in super().ask(n, rng, pending)]

    finish(make(tmp_path / "run", strategy=Numpy, trials=2))
    assert [t.note for t in Run.open(tmp_path / "run").trials if t.evaluated] == [{"drawn": 3}] * 2


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    finish(make(tmp_path / "run", trials=2))
    stray = tmp_path / "run/trials/.DS_Store"
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("x")
    finish(make(tmp_path / "run", trials=3))
    assert stray.exists()

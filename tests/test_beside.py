"""Evaluators beside another one: what they measure, what their limits end, and how a configuration asks for them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nas.evaluators.latency import Latency
from nas.strategies.predictor import Predictor
from test_search import BOTH, TASK, fails, finish, make, same, script
from toys import Toy

from nas import beside, search
from nas.architecture import Architecture
from nas.bench.runs import Runs
from nas.beside import Beside, composed
from nas.config import Config
from nas.errors import ConfigError, Infeasible, PluginError, RunError
from nas.evaluator import Evaluator, Report, Task
from nas.session import load, start
from nas.store import Run
from nas.testing import toy_space
from nas.trial import Limit, Metric, Trial


class Size(Evaluator):
    """Thousands of FLOPs, as if they could only be measured."""

    beside = True
    needs_data = False
    metrics = (Metric("size", "min"),)

    def __init__(self) -> None:
        self.seen: list[str] = []

    def open(self, task: Task, *, device: str, threads: int) -> None:
        self.opened = True

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        self.seen.append(arch.key())
        report(0, {"size": -1.0})  # its own affair: no curve of the training
        return {"size": arch.analysis.flops / 1e3}


class Prepared(Size):
    """Has a long job of its own."""

    prepared: Any = None

    def prepare(
        self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]
    ) -> dict[str, str]:
        (workdir / "left").write_text("here")
        return {"folder": workdir.name}


def bound(share: float) -> Limit:
    """A size that about this share of the toy space keeps."""
    space, rng = toy_space(), np.random.default_rng(0)
    sizes = [space.costs(space.sample(rng))["flops"] / 1e3 for _ in range(100)]
    return Limit("size", float(np.quantile(sizes, share)))


def both(limit: Limit | None = None) -> Beside:
    made = Beside(Toy(), {"size": Size()})
    made.limits = [limit] if limit else []
    return made


def test_metrics_of_both_are_in_every_trial_and_in_every_report(tmp_path: Path) -> None:
    made = make(tmp_path / "run", evaluator=both(), trials=4)
    trials = [t for t in finish(made) if t.evaluated]
    for trial in trials:
        assert trial.metrics["size"] == trial.metrics["flops"] / 1e3
        curve = Run.open(tmp_path / "run").curves[trial.number]
        assert [epoch for epoch, _ in curve] == [1, 2, 3]
        assert all(metrics["size"] == trial.metrics["size"] for _, metrics in curve)
    assert all(t.ok for t in trials)


def test_a_broken_limit_ends_a_trial_before_its_training(tmp_path: Path) -> None:
    limit, judge = bound(0.5), both(bound(0.5))
    made = make(tmp_path / "run", evaluator=judge, trials=12, limits=(limit,))
    trials = finish(made)
    outside = [t for t in trials if t.state == "infeasible" and t.duplicate_of is None]
    assert outside
    for trial in outside:
        assert trial.violations["size"] == pytest.approx(trial.metrics["size"] / limit.bound - 1)
        assert "accuracy" not in trial.metrics
        assert trial.number not in made.store.curves
        assert not made.store.workdir(trial.number).exists()
    assert sum(t.evaluated for t in trials) == judge.main.evaluated == 12  # type: ignore[attr-defined]
    assert all(t.metrics["size"] <= limit.bound for t in trials if t.evaluated)
    seen = judge.others["size"].seen  # type: ignore[attr-defined]
    assert len(set(seen)) == len(seen) == 12 + len(outside)


def test_a_network_outside_is_not_measured_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genotypes = [toy_space().sample(rng) for _ in range(2)]
    judge = both(Limit("size", 1e-3))
    made = make(
        tmp_path / "run", strategy=script(genotypes[0], genotypes[1], genotypes[0]), evaluator=judge,
        limits=(Limit("size", 1e-3),),
    )  # fmt: skip
    trials = finish(made)
    assert [t.duplicate_of for t in trials] == [None, None, 0]
    assert trials[2].state == "infeasible"
    assert trials[2].violations == trials[0].violations
    assert len(judge.others["size"].seen) == 2  # type: ignore[attr-defined]


def test_a_search_that_finds_nothing_inside_says_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "REJECTED", 5)
    limit = Limit("size", 1e-3)
    made = make(tmp_path / "run", evaluator=both(limit), limits=(limit,))
    fails(made, search.SpaceError, r"5 networks in a row .* size is [\d.]+K? to [\d.]+K? \(limit 0.001\)")
    assert [t.state for t in made.store.trials] == ["infeasible"] * 5


def test_cut_and_resumed_it_is_as_if_never_cut(tmp_path: Path) -> None:
    limit = bound(0.6)
    whole = finish(make(tmp_path / "whole", evaluator=both(limit), limits=(limit,)))
    cut = make(tmp_path / "cut", evaluator=both(limit), limits=(limit,))
    cut._on_trial = lambda search, trial: search.stop("cut") if trial.number == 5 else None
    finish(cut)
    assert same(finish(make(tmp_path / "cut", evaluator=both(limit), limits=(limit,))), whole)


def test_every_part_prepares_in_a_folder_of_its_own(tmp_path: Path) -> None:
    judge = Beside(Prepared(), {"other": Prepared()})
    finish(make(tmp_path / "run", evaluator=judge, trials=1))
    assert judge.main.prepared == {"folder": "evaluator"}  # type: ignore[attr-defined]
    assert judge.others["other"].prepared == {"folder": "other"}  # type: ignore[attr-defined]
    assert all(part.opened for part in judge.parts().values())  # type: ignore[attr-defined]


def test_the_main_evaluator_has_the_last_word_on_its_metrics(tmp_path: Path) -> None:
    class Large(Size):
        metrics = (Metric("size", "max"), Metric("accuracy"))

        def evaluate(self, *args: Any, **given: Any) -> Mapping[str, float]:
            return {"size": -7.0, "accuracy": 0.5}

    judge: Beside = pickle.loads(pickle.dumps(Beside(Size(), {"toy": Toy()})))
    assert [m.name for m in judge.metrics] == ["size", "accuracy"]
    made = Beside(Large(), {"size": Size()})
    arch = toy_space().architecture(toy_space().sample(np.random.default_rng(0)))
    made.limits = [Limit("size", 1e-3)]  # of the main evaluator's, so nothing is ended by it
    found = made.evaluate(arch, seed=0, budget=None, workdir=tmp_path, report=Report(lambda *_: None))
    assert found == {"size": -7.0, "accuracy": 0.5}
    made = Beside(Toy(), {"size": Size()})
    made.limits = [Limit("size", 1e-3)]
    with pytest.raises(Infeasible) as caught:
        made.evaluate(arch, seed=0, budget=None, workdir=tmp_path, report=Report(lambda *_: None))
    assert caught.value.metrics == {"size": arch.analysis.flops / 1e3}


def test_the_predictor_learns_from_what_was_measured_outside() -> None:
    space, rng = toy_space(), np.random.default_rng(0)
    limit = bound(0.5)
    strategy = Predictor(space, BOTH, (limit,), initial=4)
    for number in range(12):
        genotype = space.sample(rng)
        costs = space.costs(genotype)
        metrics = {**costs, "size": costs["flops"] / 1e3}
        over = limit.violation(metrics)
        accuracy = {} if over else {"accuracy": 0.5 + number / 100}
        told = Trial(
            number, genotype, str(number), "infeasible" if over else "ok", {**metrics, **accuracy}, seconds=1.0
        )
        strategy.tell(replace(told, violations={"size": over} if over else {}))
    points = strategy._points
    assert len(points) == 12
    targets = strategy._targets(points)
    assert "" not in targets  # nothing has failed
    assert np.isfinite(targets[str(limit)]).all()
    proposed = strategy.ask(4, rng, [])
    sizes = [space.costs(p.genotype)["flops"] / 1e3 for p in proposed]
    assert np.mean([size <= limit.bound for size in sizes]) >= 0.5


# -- what a configuration asks for -----------------------------------------------------------------------------------


def asked(**given: Any) -> Evaluator:
    return composed(Config(evaluator="toys:Toy", **given))[0]


def test_what_an_objective_or_a_limit_names_is_found() -> None:
    assert isinstance(asked(), Toy)
    for given in (
        {"objectives": "accuracy,latency"}, {"objectives": "accuracy,latency:min"}, {"limits": "latency=20ms"},
        {"limits": "peak_memory<=8MB"}, {"options": {"latency": {"batch": 8}}},
    ):  # fmt: skip
        made = asked(**given)
        assert isinstance(made, Beside)
        latency = made.others["latency"]
        assert isinstance(latency, Latency)
        assert latency.settings.batch == (8 if "options" in given else 1)
        assert made.budget == 3.0
        assert not made.needs_data
        assert made.needs_device


def test_what_is_asked_wrongly_is_one_line() -> None:
    for options, expected in (
        ({"table": {}}, "cannot stand beside"), ({"latncy": {}}, "unknown section"),
        ({"latency": {"bach": 1}}, "latency.batch"),
    ):  # fmt: skip
        with pytest.raises((ConfigError, PluginError), match=expected):
            asked(options=options)
    with pytest.raises(ConfigError, match="it is the evaluator itself"):
        composed(Config(evaluator="latency", options={"latency": {"batch": 2}}))
    with pytest.raises(ConfigError, match=r"'latncy' is not a metric .* latency, throughput, peak_memory"):
        start(Config(evaluator="toys:Toy", space="toys:toy_space", objectives=("accuracy", "latncy")))


def test_a_metric_of_two_evaluators_is_an_error_and_a_broken_one_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twin(Latency):
        pass

    installed: dict[str, Any] = {"latency": Latency, "broken": None, "other": Size}

    def find(kind: str, name: str) -> Any:
        if installed[name] is None:
            raise PluginError("cannot be imported")
        return installed[name]

    monkeypatch.setattr(beside, "available", lambda kind: installed)
    monkeypatch.setattr(beside, "find", find)
    made = beside.make_evaluator
    monkeypatch.setattr(
        beside, "make_evaluator", lambda name, *rest: installed[name]() if name in installed else made(name, *rest)
    )
    assert list(asked(objectives="accuracy,latency").parts()) == ["evaluator", "latency"]
    assert list(asked(objectives="accuracy,size", limits="latency=1s").parts()) == ["evaluator", "latency", "other"]
    installed["twin"] = Twin
    with pytest.raises(ConfigError, match="'latency' and 'twin' both give 'latency'"):
        asked(objectives="accuracy,latency")


def test_a_run_with_latency_is_read_without_the_device(tmp_path: Path) -> None:
    given: dict[str, Any] = {"evaluator": "toys:Toy", "space": "toys:toy_space", "strategy": "random"}
    for batch in (1, 2):
        config = Config(**given, objectives=("accuracy", "latency"), trials=3, out=str(tmp_path / f"run{batch}"),
                        options={"latency": {"batch": batch, "repeats": 1, "seconds": 0.01}})  # fmt: skip
        start(config).run()
    with pytest.raises(RunError, match=r"how of .*batch 1.* it is .*batch 2"):
        Runs([tmp_path / "run1", tmp_path / "run2"])
    results = load(tmp_path / "run1")
    assert [(o.metric, o.direction) for o in results.objectives] == [("accuracy", "max"), ("latency", "min")]
    assert all(t.metrics["latency"] > 0 for t in results.front)
    assert results.metrics["latency"].unit == "s"
    assert results.run.config["about"] == {"latency": "latency measured: batch 1, 1 thread, torch"}
    assert TASK.data is None

"""Asynchronous successive halving: decisions, and runs that are cut and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nas.strategies.random import Random
from toys import Toy

from nas.errors import ConfigError
from nas.evaluator import Task
from nas.executors.base import Executor, OnReport
from nas.executors.local import Local
from nas.fidelity import Halving, check_rungs
from nas.search import Plan, Search
from nas.store import Run
from nas.testing import ACCURACY, FLOPS, toy_space
from nas.trial import Objective, Trial

ONE = (Objective("accuracy", "max"),)
TASK = Task(None, (3, 16, 16), 10)


def test_with_one_objective_the_best_of_eta_go_on() -> None:
    halving = Halving((1,), 2, ONE)
    accuracies = [0.5, 0.4, 0.6, 0.45, 0.55, 0.7, 0.1]
    went_on = [halving.report(i, 1, {"accuracy": a}) for i, a in enumerate(accuracies)]
    # Position among those so far, counted from 0, against half of their number: 0<.5, 1<1, 0<1.5, 2<2, 1<2.5, ...
    assert went_on == [True, False, True, False, True, True, False]


def test_without_stragglers_the_share_that_goes_on_is_one_in_eta() -> None:
    rng = np.random.default_rng(0)
    halving = Halving((1, 3), 3, ONE)
    passed = [0, 0]
    for number in range(600):
        quality = rng.random()
        for index, epoch in enumerate((1, 3)):
            if not halving.report(number, epoch, {"accuracy": quality}):
                break
            passed[index] += 1
    assert 0.3 < passed[0] / 600 < 0.38
    assert 0.3 < passed[1] / passed[0] < 0.45  # the earlier rung let the better through


def test_a_front_is_never_cut_in_two() -> None:
    halving = Halving((1,), 4, (ACCURACY, FLOPS))
    on_the_front = [halving.report(i, 1, {"accuracy": i / 10, "flops": 10.0 * i}) for i in range(10)]
    assert all(on_the_front)
    assert not halving.report(10, 1, {"accuracy": 0.05, "flops": 500.0})


def test_a_decision_is_made_once() -> None:
    halving = Halving((1,), 2, ONE)
    assert halving.report(0, 1, {"accuracy": 0.1})
    assert halving.report(1, 1, {"accuracy": 0.9})
    assert halving.report(0, 1, {"accuracy": 0.1}), "it was good enough when it came"
    assert not halving.report(2, 1, {"accuracy": 0.05})
    assert not halving.report(2, 2, {"accuracy": 0.99})


def test_a_rung_is_reached_by_the_first_report_at_or_after_it() -> None:
    halving = Halving((1, 3), 2, ONE)
    assert halving.report(0, 2, {"accuracy": 0.5})
    assert halving.report(0, 4, {"accuracy": 0.5})
    assert not halving.report(1, 2.5, {"accuracy": 0.4})


def test_a_noisy_epoch_is_seen_with_those_around_it() -> None:
    halving = Halving((4,), 2, ONE)

    def goes_on(number: int, *curve: float) -> bool:
        return [halving.report(number, epoch, {"accuracy": a}) for epoch, a in enumerate(curve, 1)][-1]

    assert goes_on(0, 0.1, 0.5, 0.6, 0.7)  # .6 since epoch 2
    assert not goes_on(1, 0.9, 0.4, 0.5, 0.8)  # .57: its first epoch is too long ago
    assert goes_on(2, 0.1, 0.7, 0.8, 0.5)  # .67


def test_rungs_are_checked() -> None:
    assert check_rungs((1, 3, 9), 3, 9) == (1, 3)
    assert check_rungs((), 3, None) == ()
    for rungs, eta, budget, message in (
        ((3, 1), 3, 9, "ascending order"),
        ((0, 1), 3, 9, "ascending order"),
        ((1, 3), 1, 9, "at least 2"),
        ((1, 3), 3, None, "leave --rungs away"),
        ((1, 30), 3, 9, "past the full budget of 9 epochs.*evaluator.epochs=30"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_rungs(rungs, eta, budget)


def make(folder: Path, evaluator: Toy) -> Search:
    space = toy_space()
    run = Run.open(folder, write=True) if (folder / "run.json").exists() else Run.create(folder, {})
    plan = Plan((ACCURACY, FLOPS), trials=24, rungs=(1.0, 2.0), eta=3.0)

    def local(report: OnReport) -> Executor:
        return Local(evaluator, TASK, device="cpu", threads=1, on_report=report)

    search = Search(run, space, Random(space, plan.objectives), evaluator, plan, local)
    search.prepare(TASK, device="cpu")
    return search


class Fragile(Toy):
    """Breaks off after so many reports, as a killed process does."""

    def __init__(self, reports: int) -> None:
        super().__init__()
        self.left = reports

    def evaluate(self, arch, *, seed, budget, workdir, report):  # type: ignore[no-untyped-def]
        class Counted:
            def __call__(counted, epoch: float, metrics: dict[str, float]) -> None:  # noqa: N805
                report(epoch, metrics)
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        return super().evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=Counted())  # type: ignore[arg-type]


def comparable(folder: Path) -> list[dict[str, object]]:
    return [{**vars(trial), "seconds": 0, "elapsed": 0} for trial in Run.open(folder).trials]


def test_a_run_that_is_cut_anywhere_and_resumed_equals_the_whole_one(tmp_path: Path) -> None:
    make(tmp_path / "whole", Toy()).run()
    whole = comparable(tmp_path / "whole")
    states = {trial["state"] for trial in whole}
    assert {"ok", "stopped"} <= states
    for reports in (1, 2, 5, 11, 24, 31):
        folder = tmp_path / f"cut{reports}"
        with pytest.raises(KeyboardInterrupt):
            make(folder, Fragile(reports)).run()
        make(folder, Toy()).run()
        assert comparable(folder) == whole


def test_only_trials_of_the_full_budget_are_in_the_front(tmp_path: Path) -> None:
    search = make(tmp_path / "run", Toy())
    search.run()
    assert all(trial.budget == 3 for trial in search.front)
    stopped: list[Trial] = [trial for trial in search.store.trials if trial.state == "stopped"]
    assert {trial.budget for trial in stopped} <= {1.0, 2.0}
    spent = sum(trial.budget or 0 for trial in search.store.trials if trial.evaluated)
    assert spent < 3 * search.evaluated

"""DARTS as a strategy: what it proposes, and the long job before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nas.strategies.darts import Darts

from nas.errors import ConfigError, PluginError, Stop
from nas.evaluator import Task
from nas.plugins import make_space, make_strategy
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, toy_space, toy_trials
from nas.trial import Limit, Objective, Proposal


def points(space: Space, count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    shares = {path: rng.dirichlet(np.ones(len(labels))).tolist() for path, labels in space.paths.items()}
    return [{"preference": i / 2, "genotype": dict(space.sample(rng)), "probabilities": shares} for i in range(count)]


class TestDarts(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        strategy = make_strategy("darts", space, objectives, limits, options={})
        assert isinstance(strategy, Darts)
        strategy.prepared = points(space)
        return strategy


def small() -> tuple[Task, Space]:
    task = Task.of("digits", limit=200)
    return task, make_space("nasbench201", task.input_shape, task.classes, {"channels": 4, "cells": 1})


def quiet(*_: object) -> None: ...


def made(space: Space, **options: Any) -> Darts:
    options = {"epochs": 2, "batch": 32, "points": 3, "alpha_lr": 0.05, **options}
    strategy = make_strategy("darts", space, [ACCURACY, FLOPS], (), options=options)
    assert isinstance(strategy, Darts)
    return strategy


def test_it_derives_an_architecture_for_each_preference_and_proposes_it(tmp_path: Path) -> None:
    task, space = small()
    heard: list[tuple[float, Any, Any]] = []
    strategy = made(space)
    found = strategy.prepare(
        task, tmp_path, seed=1, device="cpu", report=lambda epoch, metrics, of: heard.append((epoch, metrics, of))
    )
    assert [(epoch, of) for epoch, _, of in heard] == [(1, 2), (2, 2)]
    assert heard[-1][1].keys() >= {"train_loss", "loss", "eigenvalue", "flops"}
    assert [point["preference"] for point in found] == [0, 0.5, 1]
    json.dumps(found)
    strategy.prepared = found
    asked = strategy.ask(5, np.random.default_rng(0), [])
    assert [p.genotype for p in asked[:3]] == [point["genotype"] for point in found]
    assert [p.note.get("drawn", False) for p in asked] == [False, False, False, True, True]
    for proposal in asked:
        space.check(proposal.genotype)


def test_interrupted_and_continued_it_finds_the_same(tmp_path: Path) -> None:
    task, space = small()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = made(space).prepare(task, whole, seed=3, device="cpu", report=quiet)

    def stop(epoch: float, *_: object) -> None:
        if epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        made(space).prepare(task, cut, seed=3, device="cpu", report=stop)
    assert made(space).prepare(task, cut, seed=3, device="cpu", report=quiet) == expected
    assert made(space).prepare(task, whole, seed=3, device="cpu", report=quiet) == expected  # it was at its end


def test_what_it_found_is_kept_and_recalled(tmp_path: Path) -> None:
    space = toy_space()
    strategy = made(space)
    assert strategy.recall(tmp_path) is None
    strategy.keep(points(space), tmp_path)
    assert strategy.recall(tmp_path) == points(space)
    (tmp_path / "found.json").write_text('[{"preference": 0, "genotype": {"no": 1}, "probabilities": {}}]')
    with pytest.raises(ConfigError, match=r"found\.json: .*; delete it to search again"):
        strategy.recall(tmp_path)


def test_without_its_long_job_it_says_so() -> None:
    with pytest.raises(PluginError, match="set its `prepared`"):
        made(toy_space()).ask(1, np.random.default_rng(0), [])


def test_with_accuracy_alone_there_is_one_architecture_and_no_penalty() -> None:
    strategy = make_strategy("darts", toy_space(), [ACCURACY], (), options={})
    assert isinstance(strategy, Darts)
    assert (strategy.settings.points, strategy.settings.penalty) == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 3}, "strategy.order: expected 1 or 2, got 3"),
        ({"epochs": 2, "warmup": 2}, "fewer than all 2 epochs"),
        ({"gumbel": 1}, "expected true or false"),
        ({"stop": 0.5}, "strategy.stop"),
        ({"lr": 0}, "a number above 0"),
        ({"points": 1.5}, "a whole number"),
    ],
)
def test_bad_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_strategy("darts", toy_space(), [ACCURACY], (), options=options)


def test_an_unknown_option_is_told() -> None:
    with pytest.raises(PluginError, match=r"did you mean strategy\.penalty"):
        make_strategy("darts", toy_space(), [ACCURACY], (), options={"penaltie": 1})


def test_what_is_drawn_is_new_and_follows_what_was_learned() -> None:
    space = toy_space()
    strategy = made(space)
    sure = points(space, 1)
    sure[0]["probabilities"] = {
        path: [0.97, *[0.03 / (len(labels) - 1)] * (len(labels) - 1)] for path, labels in space.paths.items()
    }
    strategy.prepared = sure
    trials = list(toy_trials(strategy, space, 30))
    assert len({trial.key for trial in trials}) == len(trials)
    firsts = [
        np.mean([label == space.paths[path][0] for path, label in trial.genotype.items()]) for trial in trials[1:]
    ]
    assert np.mean(firsts) > 0.6  # a third and a half of the options of a decision are the first
    again = [Proposal(t.genotype, t.note) for t in toy_trials(_copy(strategy, space), space, 30)]
    assert [p.genotype for p in again] == [t.genotype for t in trials]


def _copy(strategy: Darts, space: Space) -> Darts:
    other = made(space)
    other.prepared = strategy.prepared
    return other

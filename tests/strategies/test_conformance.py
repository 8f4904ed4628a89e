"""Every strategy that is installed passes the conformance suite; one without a class here fails a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from nas.plugins import available, make_space, make_strategy
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, toy_trials
from nas.trial import Limit, Objective


class Named(StrategyConformance):
    """Conformance of an installed strategy, made as the command line makes it."""

    __test__ = False
    name = ""
    options: ClassVar[Mapping[str, Any]] = {}

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return make_strategy(self.name, space, objectives, limits, options=self.options)


class TestRandom(Named):
    __test__ = True
    name = "random"


class TestEvolution(Named):
    __test__ = True
    name = "evolution"


class TestRegularizedEvolution(Named):
    __test__ = True
    name = "regularized-evolution"


class TestLocalSearch(Named):
    __test__ = True
    name = "local-search"


class TestTpe(Named):
    __test__ = True
    name = "tpe"


class TestReinforcement(Named):
    __test__ = True
    name = "rl"


class TestPredictor(Named):
    __test__ = True
    name = "predictor"
    asks = 20
    options: ClassVar[Mapping[str, Any]] = {"initial": 4, "candidates": 40}


OWN_SPACE = {"scaling"}  # searches a space of its own: see test_scaling.py
PREPARES = {"darts"}  # has a long job first: see test_darts.py


def test_every_installed_strategy_is_tested_here() -> None:
    assert set(available("strategies")) == {cls.name for cls in Named.__subclasses__()} | OWN_SPACE | PREPARES


SMALL = {"nasbench201": {"channels": 4, "cells": 1}, "darts": {"channels": 4, "cells": 3}, "mobile": {"width": 0.25}}


@pytest.mark.parametrize("space", sorted(available("search_spaces")))
@pytest.mark.parametrize("strategy", sorted(set(available("strategies")) - OWN_SPACE - PREPARES))
def test_every_strategy_searches_every_space(strategy: str, space: str) -> None:
    searched = make_space(space, (3, 32, 32), 10, SMALL.get(space, {}))
    made = make_strategy(strategy, searched, [ACCURACY, FLOPS], (), options={})
    trials = list(toy_trials(made, searched, 12))
    for trial in trials:
        searched.check(trial.genotype)
    assert len({trial.key for trial in trials}) >= 10

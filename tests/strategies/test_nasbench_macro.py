"""`evolution` on NAS-Bench-Macro: a few seeds of `benchmarks/strategies.py`, against the peers' known means."""

from __future__ import annotations

import numpy as np
import pytest

from nas.bench.cells import Cell, run
from nas.bench.problem import Problem, Source

BUDGETS = (50, 100, 200)
KNOWN = {"pymoo": (0.883, 0.933, 0.973), "Optuna": (0.874, 0.905, 0.945), "random": (0.875, 0.906, 0.931)}
"""Mean relative hypervolume after 50, 100 and 200 evaluations, of NSGA-II (population 20, default) and random."""

SOURCE = Source("nas-bench-macro", None, "accuracy,flops")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return SOURCE.load()


def means(problem: Problem, name: str) -> np.ndarray:
    costs = [run(Cell(SOURCE, name, seed, max(BUDGETS)), problem).costs for seed in range(2000, 2008)]
    return np.mean([[problem.measure.hypervolume(found[:budget]) for budget in BUDGETS] for found in costs], axis=0)


def test_evolution_is_ahead_of_all_at_every_budget(problem: Problem) -> None:
    scores = means(problem, "evolution")
    for name, known in KNOWN.items():
        assert (scores > known).all(), f"{name}: {scores} against {known}"
    random = means(problem, "random")
    assert np.abs(random - KNOWN["random"]).max() < 0.03  # the measure is the one that the known figures are of

"""`evolution` on NAS-Bench-Macro: a few seeds of `benchmarks/strategies.py`, against the peers' known means."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

KNOWN = {"pymoo": (0.883, 0.933, 0.973), "Optuna": (0.874, 0.905, 0.945), "random": (0.875, 0.906, 0.931)}
"""Mean relative hypervolume after 50, 100 and 200 evaluations, of NSGA-II (population 20, default) and random."""


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/strategies.py"
    spec = importlib.util.spec_from_file_location("strategies_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_evolution_is_ahead_of_all_at_every_budget(benchmark: ModuleType) -> None:
    problem = benchmark.Problem()
    seeds = range(2000, 2008)
    scores = np.mean([problem.score(benchmark.METHODS["evolution"](problem, seed)) for seed in seeds], axis=0)
    for name, known in KNOWN.items():
        assert (scores > known).all(), f"{name}: {scores} against {known}"
    random = np.mean([problem.score(benchmark.METHODS["random"](problem, seed)) for seed in seeds], axis=0)
    assert np.abs(random - KNOWN["random"]).max() < 0.03  # the measure is the one that the known figures are of

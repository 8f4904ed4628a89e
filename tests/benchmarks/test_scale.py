"""`benchmarks/scale.py` in small: the simulated workers keep an executor's contract, and the tables are whole."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from nas import pareto


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks/scale.py"
    spec = importlib.util.spec_from_file_location("scale_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scale_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def problem(scale: ModuleType) -> object:
    return scale.Problem(8)


def test_asynchronous_workers_are_always_busy_and_generations_wait(scale: ModuleType, problem: object) -> None:
    now = scale.search(problem, "random", 8, 64)
    later = scale.search(problem, "random", 8, 64, generational=True)
    assert now.utilisation == pytest.approx(1)
    assert later.utilisation < 0.9
    assert now.times[-1] < later.times[-1]
    assert now.times == sorted(now.times)
    assert len(now.times) == len(later.times) == 64
    assert len(set(later.times)) == 8  # each generation is back at once


def test_one_worker_does_the_same_either_way(scale: ModuleType, problem: object) -> None:
    now, later = (scale.search(problem, "evolution", 1, 25, generational=g) for g in (False, True))
    assert now.values == later.values
    assert now.times == later.times


def test_volumes_are_those_of_the_fronts_so_far(scale: ModuleType, problem: object) -> None:
    values = scale.search(problem, "random", 4, 30).values
    volumes = problem.volumes(values)  # type: ignore[attr-defined]
    scaled = (np.array(values) - problem.low) / problem.span  # type: ignore[attr-defined]
    expected = [pareto.hypervolume(scaled[: n + 1], [1.1, 1.1]) for n in range(len(scaled))]
    assert volumes == pytest.approx(expected)


def test_prints_every_table(scale: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["random", "--pixels=8", "--trials=20", "--feeding=5", "--workers", "1", "4", "--history", "40"]
    assert scale.main(arguments) in (0, 1)  # whether it is fast enough is no question for a busy machine
    printed = capsys.readouterr().out
    assert printed.count("random") == 2 + 2 + 1 + 1
    assert "evaluations a second the driver is the limit" in printed

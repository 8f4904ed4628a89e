"""Statistics of decisions on runs made up so that it is known what matters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nas.report.decisions import ABSENT, decisions
from nas.trial import Objective, Trial


def run(trials: list[Trial]) -> Any:
    return SimpleNamespace(trials=trials, objectives=(Objective("accuracy", "max"),))


def planted(count: int = 80) -> list[Trial]:
    """Accuracy depends on `kernel` alone; `width` and `se` are noise, and `se` is there for kernel 3 only."""
    rng = np.random.default_rng(2)
    found = []
    for number in range(count):
        kernel = int(rng.choice([3, 5]))
        genotype: dict[str, Any] = {"kernel": kernel, "width": int(rng.choice([8, 16])), "same": "x"}
        if kernel == 3:
            genotype["se"] = bool(rng.random() < 0.5)
        metrics = {"accuracy": (kernel == 5) * 0.5 + rng.random() * 0.1}
        found.append(Trial(number, genotype, str(number), "ok", metrics))
    return found


def test_what_matters_comes_first() -> None:
    told = decisions(run(planted()))
    assert (told.good, told.trials) == (20, 80)
    shares = {each.path: each for each in told.shares}
    assert set(shares) == {"kernel", "width", "se"}  # what all took alike is left out
    assert told.shares[-1].path == "width"
    assert shares["kernel"].labels == (3, 5)
    assert shares["kernel"].good == (0, 1)
    assert shares["kernel"].chance < 0.001 < 0.05 < shares["width"].chance
    assert shares["se"].labels[-1] == ABSENT
    assert shares["se"].good[-1] == 1
    for each in told.shares:
        assert sum(each.good) == pytest.approx(1)
        assert sum(each.all) == pytest.approx(1)
    kernels = [trial.genotype["kernel"] for trial in planted()]
    others = (kernels.count(5) - 20) / 60
    assert shares["kernel"].distance == pytest.approx(1 - others)


def test_the_chance_is_uniform_where_nothing_matters() -> None:
    """Of many decisions that do not matter, about one in twenty is below .05."""
    rng = np.random.default_rng(1)
    trials = [
        Trial(i, {f"d{k}": int(rng.integers(4)) for k in range(60)}, str(i), "ok", {"accuracy": float(rng.random())})
        for i in range(60)
    ]
    low = sum(each.chance < 0.05 for each in decisions(run(trials)).shares)
    assert low <= 8


def test_few_trials_and_failures() -> None:
    trials = planted()
    assert decisions(run(trials[:3])).shares == ()
    broken = [Trial(100 + i, {"kernel": 7}, "x", "failed", {}) for i in range(5)]
    assert decisions(run([*trials, *broken])) == decisions(run(trials))
    equal = [Trial(i, {"kernel": i % 2}, str(i), "ok", {"accuracy": 0.5}) for i in range(8)]
    assert decisions(run(equal)).good == 0

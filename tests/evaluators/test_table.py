"""The table evaluator against the published figures."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from nas.evaluators.table import Table
from nas.search_spaces.nasbench_macro import genotype, nasbench_macro

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual, Skip
from nas.errors import ConfigError, EvaluationError
from nas.evaluator import Report, Task
from nas.plugins import make_evaluator

TASK = Task(None, (3, 32, 32), 10)


def opened(**options: int) -> Table:
    table = Table(**options)  # type: ignore[arg-type]
    table.open(TASK, device="cpu", threads=1)
    return table


def look_up(table: Table, architecture: Architecture) -> Mapping[str, float]:
    report = Report(lambda epoch, metrics: None)
    return table.evaluate(architecture, seed=0, budget=None, workdir=Path(), report=report)


def test_published_accuracies_are_found(shared: Path) -> None:
    """The mean is that of the rounded accuracies, the published one of the unrounded: 6e-8 apart at most."""
    space, mean, second = nasbench_macro(), opened(), opened(train=1)
    rows = list(csv.DictReader((shared / "nas-bench-macro/nas-bench-macro_cifar10.csv").read_text().splitlines()))
    for i, row in enumerate(rows[::3]):
        architecture = space.architecture(genotype(row["arch"]))
        found = look_up(mean, architecture)
        assert found == {"accuracy": pytest.approx(float(row["mean_acc"]) / 100, abs=1e-7)}
        if i % 50 == 0:
            one = pytest.approx(float(row["acc_seed1"]) / 100, abs=1e-12)
            assert look_up(second, architecture) == {"accuracy": one, "accuracy_mean": found["accuracy"]}


def test_the_best_network() -> None:
    space = nasbench_macro()
    found = [look_up(opened(), space.architecture(genotype(best))) for best in ("22212220", "22212202")]
    assert found[0] == found[1] == {"accuracy": pytest.approx(0.9312667, abs=1e-7)}


def test_a_network_is_known_by_its_structure() -> None:
    """Built by hand, under other names, without genotype or space."""
    layers = [(64, 2, 6), (64, 1, 0), (128, 2, 3), (128, 1, 6), (128, 1, 0), (256, 2, 0), (256, 1, 3), (256, 1, 3)]
    blocks = [
        InvertedResidual(width, {3: 3, 6: 5}[expansion], stride, expansion, activation="relu")
        if expansion
        else Skip(width, stride)
        for width, stride, expansion in layers
    ]
    body = Chain(Conv(32), *blocks, Conv(1280, 1), Head(10))
    table, published = opened(), nasbench_macro().architecture(genotype("20120011"))
    assert look_up(table, Architecture(body, (3, 32, 32), 10, "mine")) == look_up(table, published)


@pytest.mark.parametrize(
    "stranger",
    [
        Architecture(Chain(a=Conv(8), b=Head(10)), (3, 32, 32), 10),
        nasbench_macro((3, 64, 64)).architecture(genotype("01200000")),
        nasbench_macro((3, 32, 32), 100).architecture(genotype("01200000")),
    ],
)
def test_a_network_that_is_not_there_fails_its_trial(stranger: Architecture) -> None:
    with pytest.raises(EvaluationError, match="has no such network; it covers --space=nasbench-macro"):
        look_up(opened(), stranger)


def test_equal_costs_are_not_enough() -> None:
    """Another activation costs the same, and is another network."""
    space = nasbench_macro()
    body = space.architecture(genotype("11100000")).body
    parts = dict(body.parts)  # type: ignore[attr-defined]
    other = Architecture(Chain(**parts | {"stem": Conv(32, activation="silu")}), (3, 32, 32), 10)
    assert other.analysis == space.architecture(genotype("11100000")).analysis
    with pytest.raises(EvaluationError):
        look_up(opened(), other)


def test_metrics_say_what_is_given() -> None:
    assert [metric.name for metric in Table().metrics] == ["accuracy"]
    assert [metric.name for metric in Table(train=0).metrics] == ["accuracy", "accuracy_mean"]
    assert not Table.needs_data
    space, rng = nasbench_macro(), np.random.default_rng(0)
    tables = [opened(train=train) for train in range(3)]
    best = space.architecture(genotype("22212220"))
    assert [round(look_up(table, best)["accuracy"], 6) for table in tables] == [0.9328, 0.9333, 0.9277]
    for _ in range(10):
        architecture = space.architecture(space.sample(rng))
        found = [look_up(table, architecture) for table in tables]
        mean = sum(metrics["accuracy"] for metrics in found) / 3
        assert all(metrics["accuracy_mean"] == pytest.approx(mean) for metrics in found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "imagenet"}, "no table is called 'imagenet'; there are nas-bench-macro"),
        ({"train": 3}, "evaluator.train: expected 0 to 2, or none, got 3"),
        ({"train": -1}, "got -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_evaluator("table", options)


@pytest.mark.parametrize("task", [Task(None, (1, 28, 28), 10), Task(None, (3, 32, 32), 100)])
def test_another_task_is_refused_before_the_first_trial(task: Task) -> None:
    with pytest.raises(ConfigError, match="holds networks for 10 classes of") as caught:
        Table().open(task, device="cpu", threads=1)
    assert "\n" not in str(caught.value)


def test_what_is_shipped_names_its_source_and_licence() -> None:
    folder = Path(__file__).parents[2] / "evaluators/data"
    text = (folder / "README.md").read_text()
    for word in ("Su", "CVPR 2021", "xiusu/NAS-Bench-Macro", "61a2bfc2ca0dce04d0997e6cf498047c27d6acf2", "Apache-2.0"):
        assert word in text
    assert "Apache License" in (folder / "nas-bench-macro.LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 150_000

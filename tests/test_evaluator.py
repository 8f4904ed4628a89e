"""Users' functions as evaluators, and the report that evaluators call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from nas.errors import PluginError, TimedOut
from nas.evaluator import Function, Report, Task
from nas.plugins import reference
from nas.trial import Metric


def evaluate(function: Function, folder: Path, seed: int = 0) -> Mapping[str, float]:
    function.open(Task("digits", (3, 32, 32), 10, {"limit": 100}), device="cpu", threads=1)
    arch = reference("resnet20_cifar")
    return function.evaluate(arch, seed=seed, budget=None, workdir=folder, report=Report(lambda epoch, metrics: None))


def test_a_function_gets_an_initialised_module_and_the_task(tmp_path: Path) -> None:
    def score(module: torch.nn.Module, task: Task) -> dict[str, float]:
        data = task.load()
        assert data.input_shape == (1, 8, 8)
        noise = torch.rand(2, 3, 32, 32)
        return {"accuracy": float(module.eval()(noise).detach().std()), "loss": len(data.train)}

    state = torch.get_rng_state()
    first = evaluate(Function(score), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == evaluate(Function(score), tmp_path)
    assert first != evaluate(Function(score), tmp_path, seed=1)
    assert first["loss"] == 80


def test_a_function_says_what_it_measures_and_needs() -> None:
    def score(module: torch.nn.Module, task: Task) -> dict[str, float]:
        return {"latency": 1.0}

    assert [m.name for m in Function(score).metrics] == ["accuracy", "loss"]
    assert Function(score).needs_data
    score.metrics = (Metric("latency", "min", "s"),)  # type: ignore[attr-defined]
    score.needs_data = False  # type: ignore[attr-defined]
    assert Function(score).metrics == (Metric("latency", "min", "s"),)
    assert not Function(score).needs_data


def test_what_is_no_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"must return a mapping of metrics, got float"):
        evaluate(Function(lambda module, task: 0.5), tmp_path)  # type: ignore[arg-type, return-value]


def test_a_report_knows_the_time() -> None:
    heard = []
    report = Report(lambda epoch, metrics: heard.append((epoch, metrics)))
    assert report.remaining is None
    report(1, {"accuracy": 0.5})
    assert heard == [(1, {"accuracy": 0.5})]
    assert (report.budget, report.metrics) == (1, {"accuracy": 0.5})
    limited = Report(lambda epoch, metrics: heard.append((epoch, metrics)), timeout=0.001)
    time.sleep(0.002)
    assert limited.remaining is not None
    assert limited.remaining < 0
    with pytest.raises(TimedOut, match=r"limit of 0.001 s was reached after 2 epochs"):
        limited(2, {"accuracy": 0.6})
    assert len(heard) == 2  # what was measured is not lost

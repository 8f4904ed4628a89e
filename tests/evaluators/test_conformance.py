"""Every evaluator that is installed passes the conformance suite; one without a class here fails a test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.architecture import Architecture
from nas.evaluator import Evaluator, Task
from nas.plugins import available, make_evaluator, make_space
from nas.testing import EvaluatorConformance


class Named(EvaluatorConformance):
    """Conformance of an installed evaluator."""

    __test__ = False
    name = ""


class TestTrain(Named):
    __test__ = True
    name = "train"

    def make(self) -> Evaluator:
        return make_evaluator("train", {"epochs": 2, "batch": 32})


class TestSupernet(Named):
    __test__ = True
    name = "supernet"

    def make(self) -> Evaluator:
        return make_evaluator("supernet", {"epochs": 1, "warmup": 0, "calibration": 64})


class TestDiagnose(Named):
    __test__ = True
    name = "diagnose"

    def make(self) -> Evaluator:
        return make_evaluator("diagnose", {"steps": 2, "batch": 16})


class TestProxy(Named):
    __test__ = True
    name = "proxy"

    def make(self) -> Evaluator:
        return make_evaluator("proxy", {"reference": 4, "proxies": "default,snip,synflow"})


class TestTable(Named):
    __test__ = True
    name = "table"

    def make(self) -> Evaluator:
        return make_evaluator("table", {"train": 1})

    def task(self) -> Task:
        return Task(None, (3, 32, 32), 10)

    def architectures(self) -> Sequence[Architecture]:
        space = make_space("nasbench-macro", (3, 32, 32), 10, {})
        return [space.architecture(space.sample(np.random.default_rng(seed))) for seed in range(2)]


class TestLatency(Named):
    __test__ = True
    name = "latency"
    clocked = ("latency", "throughput")

    def make(self) -> Evaluator:
        return make_evaluator("latency", {"repeats": 2, "seconds": 0.1})


def test_every_installed_evaluator_is_tested_here() -> None:
    assert set(available("evaluators")) == {cls.name for cls in Named.__subclasses__()}

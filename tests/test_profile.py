"""What a space holds: the same numbers as its networks have, for any evaluator, and for the networks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import nas
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head
from nas.choices import OneOf
from nas.config import Config
from nas.errors import ConfigError, EvaluationError, GraphError, PluginError, RunError
from nas.evaluator import Evaluator, Report, Task
from nas.profile import profile, profile_run, profiles
from nas.scoring import Scorer
from nas.space import Space
from nas.testing import toy_space
from nas.trial import Metric


class Counting(Evaluator):
    """As a proxy: one number per architecture and name, without training; fails for every `fail`-th."""

    needs_data = False

    def __init__(self, *, proxies: str = "nwot", fail: int = 0) -> None:
        self.metrics = tuple(Metric(name, unit="points") for name in proxies.split(","))
        self.fail, self.seen = fail, 0

    def open(self, task: Task, *, device: str, threads: int) -> None:
        assert task.input_shape == (1, 8, 8)

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        assert workdir.is_dir()
        self.seen += 1
        if self.fail and self.seen % self.fail == 0:
            raise EvaluationError("no")
        return {metric.name: arch.analysis.params / (i + 1) + seed for i, metric in enumerate(self.metrics)}


class Broken(Counting):
    """Breaks off."""

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        raise ZeroDivisionError("a bug")


def test_values_are_those_of_the_networks_drawn() -> None:
    space, rng = toy_space(), np.random.default_rng(3)
    counts: list[int] = []
    found = profile(space, samples=60, seed=3, on_sample=counts.append)
    networks = [space.architecture(space.sample(rng)) for _ in range(60)]
    assert counts == list(range(1, 61))
    assert (found.name, found.size, found.samples, found.failed) == ("toy", space.size(), 60, 0)
    assert list(found.values) == ["flops", "params", "memory", "depth", "field"]
    for name in ("flops", "params", "memory", "depth"):
        assert found.values[name].tolist() == sorted(network.metrics()[name] for network in networks)
    assert found.values["field"].tolist() == sorted(max(network.analysis.field) for network in networks)
    quantiles = found.quantiles("flops")
    assert list(quantiles.values())[:-1] == sorted(list(quantiles.values())[:-1])
    assert quantiles["median"] == np.median(found.values["flops"])
    assert quantiles["mean"] == pytest.approx(np.mean([network.metrics()["flops"] for network in networks]))
    assert profile(space, samples=60, seed=4).values["flops"].tolist() != found.values["flops"].tolist()


def test_an_evaluators_metrics_and_what_it_cannot_score(tmp_path: Path) -> None:
    space, evaluator = toy_space(), Counting(proxies="nwot,synflow", fail=4)
    scorer = Scorer(evaluator, space, Task(None, (1, 8, 8), 10), tmp_path, seed=2)
    found = profile(space, samples=40, seed=2, scorer=scorer)
    assert found.failed == 10
    assert len(found.values["params"]) == len(found.values["nwot"]) == 30
    assert found.values["nwot"].tolist() == (found.values["params"] + 2).tolist()
    assert found.values["synflow"].tolist() == (found.values["params"] / 2 + 2).tolist()
    assert found.units["nwot"] == "points"


def test_networks_that_cannot_be_built_are_counted() -> None:
    def space(*strides: int) -> Space:
        body = Chain(a=Conv(8, kernel=5, padding=0, stride=OneOf(*strides)), b=Conv(8, 3, padding=0), head=Head(10))
        return Space(body, input_shape=(3, 8, 8), classes=10)

    found = profile(space(1, 2), samples=40)
    assert 0 < found.failed < 40
    assert len(found.values["flops"]) == 40 - found.failed
    with pytest.raises(GraphError, match=r"none of 5 random networks .* the last: conv: Conv: kernel 3x3"):
        profile(space(2, 3), samples=5)


def test_two_spaces_by_name_with_options_and_an_evaluator() -> None:
    config = Config.load(None, {"seed": 1}, ["space.width=24", 'evaluator.proxies="nwot"', "data.limit=100"])
    counts: list[int] = []
    names = ["lecture", "nas.search_spaces.lecture:lecture"]
    found = profiles(names, config, samples=7, evaluator=f"{__name__}:Counting", on_sample=counts.append)
    assert counts == list(range(1, 15))
    assert found[0].values["nwot"].tolist() == found[1].values["nwot"].tolist()
    plain = profiles(["lecture"], Config(seed=1), samples=7)
    assert plain[0].values["params"].tolist() != found[0].values["params"].tolist()


@pytest.mark.parametrize(
    ("settings", "evaluator", "message"),
    [
        (["strategy.population=3"], None, "--set strategy...: nothing here takes it"),
        (["evaluator.batch=3"], None, "--set evaluator...: nothing here takes it"),
        (["data.limits=3"], None, "has no option 'limits'"),
        (["space.widht=3"], None, "has no option 'widht', did you mean space.width"),
        ([], f"{__name__}:Broken", "Broken failed: ZeroDivisionError: a bug"),
    ],
)
def test_what_cannot_be(settings: list[str], evaluator: str | None, message: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=message):
        profiles(["lecture"], Config.load(None, {}, settings), samples=2, evaluator=evaluator)


def test_a_folder_that_is_called_as_a_space_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lecture").mkdir()
    monkeypatch.chdir(tmp_path)
    assert profiles(["lecture"], Config(), samples=1)[0].random


def test_no_sample_is_too_few() -> None:
    with pytest.raises(ConfigError, match="samples: expected a whole number of at least 1, got 0"):
        profile(toy_space(), samples=0)


def test_a_run_shows_its_error(tmp_path: Path) -> None:
    config = Config(
        space="nasbench-macro", strategy="random", evaluator="table", trials=20, out=str(tmp_path / "run"),
    )  # fmt: skip
    search = nas.start(config)
    with pytest.raises(RunError, match="has no finished trial yet"):
        profile_run(tmp_path / "run")
    search.run()
    found = profile_run(tmp_path / "run")
    trials = [trial for trial in nas.load(tmp_path / "run").trials if trial.evaluated]
    assert (found.size, found.samples, found.random) == (3**8, 20, True)
    assert list(found.values) == ["error", "flops", "params", "memory", "depth"]
    assert found.values["error"].tolist() == sorted(1 - trial.metrics["accuracy"] for trial in trials)

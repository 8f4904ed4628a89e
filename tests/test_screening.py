"""Architectures scored before a search, and what of them is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from nas.architecture import Architecture
from nas.config import Config
from nas.errors import ConfigError, Diverged, RunError
from nas.evaluator import Evaluator, Report, Task
from nas.screening import FILE, PART, Screen, Screening
from nas.session import load, resume, start
from nas.testing import ACCURACY, FLOPS, toy_space
from nas.trial import Limit, Metric, Proposal

TASK = Task(None, (3, 8, 8), 10)


class Scout(Evaluator):
    """The size of a network's parameters, known for most of them."""

    needs_data = False
    metrics = (Metric("other"), Metric("score", "min"))

    def __init__(self, *, stop_after: int = 10**9) -> None:
        self.left = stop_after

    def open(self, task: Task, *, device: str, threads: int) -> None: ...

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        params = arch.metrics()["params"]
        if params % 7 == 0:
            raise Diverged("no score", {"other": 1.0})
        return {"score": params, "other": 0.0}


def screen(plan: str, *, limits: tuple[Limit, ...] = (), single: bool = False, stop_after: int = 10**9) -> Screen:
    objectives = [ACCURACY] if single else [ACCURACY, FLOPS]
    return Screen(Screening.parse(plan), Scout(stop_after=stop_after), toy_space(), objectives, limits)


def run(made: Screen, folder: Path) -> list[Proposal]:
    return made.prepare(TASK, folder, seed=3, device="cpu", report=lambda *_: None)


def costs(picked: list[Proposal]) -> list[Mapping[str, float]]:
    return [toy_space().costs(proposal.genotype) for proposal in picked]


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("proxy:200", Screening("proxy", 200, 20)),
        ("proxy:5", Screening("proxy", 5, 1)),
        ("proxy:200:50", Screening("proxy", 200, 50)),
        ("package.module:Name:30:3", Screening("package.module:Name", 30, 3)),
        ("package.module:Name:30", Screening("package.module:Name", 30, 3)),
    ],
)
def test_what_is_meant(text: str, plan: Screening) -> None:
    assert Screening.parse(text) == plan


@pytest.mark.parametrize("text", ["proxy", "proxy:", ":200", "200", "proxy:-3", "proxy:0", "proxy:10:11", "proxy:10:0"])
def test_what_is_not_a_screening(text: str) -> None:
    with pytest.raises(ConfigError, match="screen: "):
        Config(screen=text)


def test_the_best_of_each_band_of_flops_are_picked(tmp_path: Path) -> None:
    picked = run(screen("scout:60:12"), tmp_path)
    keys = {toy_space().architecture(p.genotype).key() for p in picked}
    assert len(picked) == len(keys) == 12
    everything = [
        (c["flops"], c["params"]) for c in costs(run(screen("scout:60:60"), tmp_path / "all")) if c["params"] % 7
    ]
    everything.sort()
    bands = np.array_split(np.arange(len(everything)), 12)
    best = [min(everything[i][1] for i in band) for band in bands]
    found = [(c["flops"], c["params"]) for c in costs(picked)]
    assert [params for _, params in sorted(found)] == best
    ranks = [sorted(found).index(one) for one in found]
    assert ranks[:4] == [0, 8, 4, 2]  # a search cut short has some of everywhere


def test_without_a_known_cost_the_best_are_picked(tmp_path: Path) -> None:
    picked = run(screen("scout:50:5", single=True), tmp_path)
    everything = sorted(c["params"] for c in costs(run(screen("scout:50:50", single=True), tmp_path / "all")))
    assert [c["params"] for c in costs(picked)] == everything[:5]


def test_only_what_keeps_the_limits_is_scored(tmp_path: Path) -> None:
    flops = np.array([c["flops"] for c in costs(run(screen("scout:50:50"), tmp_path / "all"))])
    limit = Limit("flops", float(np.quantile(flops, 0.1)), exact=True)
    assert all(c["flops"] <= limit.bound for c in costs(run(screen("scout:20:20", limits=(limit,)), tmp_path)))
    with pytest.raises(ConfigError, match=r"no random architecture of 'toy' keeps flops <= 1; loosen"):
        run(screen("scout:2:1", limits=(Limit("flops", 1, exact=True),)), tmp_path)


def test_an_interrupted_screening_goes_on(tmp_path: Path) -> None:
    whole = run(screen("scout:30:6"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(screen("scout:30:6", stop_after=11), tmp_path / "cut")
    part = tmp_path / "cut" / PART
    assert len(part.read_text().splitlines()) == 11
    part.write_text(part.read_text() + '["torn')
    rest = screen("scout:30:6", stop_after=19)
    assert run(rest, tmp_path / "cut") == whole
    rest.keep(whole, tmp_path / "cut")
    assert not part.exists()
    assert rest.recall(tmp_path / "cut") == whole
    (tmp_path / "cut" / FILE).write_text("[3]")
    with pytest.raises(RunError, match="expected what was screened"):
        rest.recall(tmp_path / "cut")


def test_who_scores_nothing_is_of_no_use(tmp_path: Path) -> None:
    made = screen("scout:10:2")
    made.metric = Metric("missing")
    with pytest.raises(ConfigError, match="'scout' gave no architecture a missing"):
        run(made, tmp_path)


def test_a_search_begins_with_what_was_screened(tmp_path: Path) -> None:
    config = Config(
        space="nasbench-macro", strategy="random", evaluator="table", screen="proxy:12:8", trials=10,
        options={"screen": {"noise": True, "reference": 4, "batch": 4}}, out=str(tmp_path / "run"),
    )  # fmt: skip
    search = start(config)
    picked = [proposal.genotype for proposal in search.starts]
    assert len(picked) == 8
    search.run()
    results = load(tmp_path / "run")
    assert [trial.genotype for trial in results.trials[:8]] == picked
    assert all(isinstance(trial.note["screened"], float) for trial in results.trials[:8])
    screened = json.loads((tmp_path / "run" / "prepare" / "screen" / FILE).read_text())
    assert [entry["genotype"] for entry in screened] == picked
    again = resume(tmp_path / "run", trials=11)
    assert [proposal.genotype for proposal in again.starts] == picked
    again.run()
    assert len(load(tmp_path / "run").trials) == 11


def test_options_without_a_screen() -> None:
    with pytest.raises(ConfigError, match="options of 'screen' without a screen"):
        Config(options={"screen": {"batch": 4}})

"""Model-based search: what its models learn, and that limits, failures, pending proposals and scales are handled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nas.evaluators.proxies import measure
from nas.search_spaces.nasbench_macro import nasbench_macro
from nas.strategies.predictor import Predictor, _improvement
from nas.strategies.surrogates import Features, GaussianProcess, Scale, Warp

from nas import pareto
from nas.errors import ConfigError, PluginError
from nas.plugins import make_space
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, answer, toy_metrics, toy_space
from nas.trial import ANALYSIS_METRICS, Limit, Objective, Proposal, Trial


class TestPredictor(StrategyConformance):
    asks = 16

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return small(space, objectives, limits)


def small(space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> Predictor:
    """A predictor that compares fewer candidates: quick, and good enough for the toy problem."""
    return Predictor(space, objectives, limits, candidates=40)


def told(strategy: Strategy, space: Space, n: int, **changes: Any) -> list[Trial]:
    """`n` trials of the toy problem, none of which fails; `changes` go to every trial."""
    trials = []
    for number in range(n):
        proposal = strategy.ask(1, np.random.default_rng([3, number]), [])[0]
        trials.append(replace(answer(space, proposal, 0), number=number, **changes))
        strategy.tell(trials[-1])
    return trials


def front_of(trials: Sequence[Trial]) -> float:
    """Hypervolume of the toy problem: error up to 0.7, FLOPs up to 1.2 M."""
    values = [(1 - t.metrics["accuracy"], t.metrics["flops"] / 1.2e6) for t in trials if t.ok]
    return pareto.hypervolume(np.array(values), [0.7, 1.0])


def test_a_proxy_of_ones_own_is_learnt_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cheap.py").write_text(
        "def luck(architecture):\n    return int(architecture.key()[:6], 16) / 16**6\n"
        "def nothing(architecture):\n    return float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    space = nasbench_macro()

    def best(proxies: str | tuple[str, ...]) -> float:
        """Of 25 networks whose accuracy no feature but the proxy says anything of."""
        strategy, found = Predictor(space, [ACCURACY], candidates=100, proxies=proxies), [0.0]
        for number in range(25):
            genotype = strategy.ask(1, np.random.default_rng([1, number]), [])[0].genotype
            key = space.architecture(genotype).key()
            found.append(int(key[:6], 16) / 16**6)
            strategy.tell(Trial(number, genotype, key, "ok", {"accuracy": found[-1]}))
        return float(np.mean(found[-10:]))

    assert best("cheap:luck") > best(()) + 0.15
    with pytest.raises(PluginError, match="cheap:nothing gave nan, not a finite number"):
        best("cheap:nothing")
    with pytest.raises(PluginError, match="no proxy is called 'naswot'; did you mean 'nwot'"):
        Predictor(space, [ACCURACY], proxies="naswot")


def test_a_zero_cost_proxy_is_a_feature() -> None:
    strategy = Predictor(nasbench_macro(), [ACCURACY], pool=2, initial=2, proxies="synflow, layers")
    code = strategy.ask(1, np.random.default_rng(0), [])[0].genotype
    point = strategy._point(code)
    assert len(point.costs) == len(ANALYSIS_METRICS) + 2
    assert point.costs[-2:] == [measure(point.candidate.architecture, name)[name] for name in ("synflow", "layers")]


def test_it_beats_random_on_a_conditional_space() -> None:
    space = toy_space()
    ours = front_of(told(small(space, [ACCURACY, FLOPS]), space, 30))
    rng = np.random.default_rng(0)
    random = [front_of([answer(space, Proposal(space.sample(rng)), 0) for _ in range(30)]) for _ in range(20)]
    assert ours > np.mean(random) + 1.5 * np.std(random)


def test_one_objective_is_climbed() -> None:
    space = toy_space()
    trials = told(small(space, [ACCURACY]), space, 25)
    accuracies = [t.metrics["accuracy"] for t in trials]
    assert np.mean(accuracies[8:]) > np.max(accuracies[:8]) - 0.02
    rng = np.random.default_rng(0)
    random = [toy_metrics(space.architecture(space.sample(rng)))["accuracy"] for _ in range(300)]
    assert max(accuracies) >= max(random)


def test_no_network_is_proposed_twice_and_known_limits_are_kept() -> None:
    space = toy_space()
    limit = Limit("flops", 1.5e5, exact=True)
    trials = told(small(space, [ACCURACY, FLOPS], [limit]), space, 25)
    assert len({t.key for t in trials}) == 25
    assert all(t.metrics["flops"] <= 1.5e5 for t in trials)


def test_a_measured_limit_is_learnt() -> None:
    """A latency that nobody knows beforehand: once it is learnt, most proposals keep it; left out, few do."""
    space = toy_space()

    def run(limits: Sequence[Limit]) -> float:
        strategy = small(space, [ACCURACY], limits)
        kept = []
        for number in range(30):
            proposal = strategy.ask(1, np.random.default_rng(number), [])[0]
            trial = answer(space, proposal, 0)
            metrics = {**trial.metrics, "latency": 2 + trial.metrics["flops"] / 1e5}
            broken = {li.metric: v for li in limits if (v := li.violation(metrics)) > 0}
            strategy.tell(replace(trial, number=number, metrics=metrics, violations=broken))
            kept.append(metrics["latency"] <= 4)
        return float(np.mean(kept[15:]))

    assert run([Limit("latency", 4.0)]) >= 0.3 > 0.1 >= run([])


def test_networks_that_fail_are_avoided() -> None:
    space = toy_space()
    strategy = small(space, [ACCURACY])
    failed = []
    for number in range(40):
        trial = answer(space, strategy.ask(1, np.random.default_rng(number), [])[0], 0)
        failed.append(trial.metrics["memory"] > 15_000)
        strategy.tell(
            replace(trial, number=number, **({"state": "out_of_memory", "metrics": {}} if failed[-1] else {}))
        )
    assert np.mean(failed[20:]) < 0.45  # 0.55 if failures are not modelled: the best networks are near them


def test_stopped_trials_teach_at_their_budget() -> None:
    """Values of early stops, far below those at full budget, neither enter the front nor spoil the prediction."""
    space = toy_space()
    strategy = small(space, [ACCURACY])
    rng = np.random.default_rng(0)
    for number in range(40):
        trial = answer(space, Proposal(space.sample(rng)), 0)
        if number % 2:
            metrics = {**trial.metrics, "accuracy": trial.metrics["accuracy"] - 0.3}
            strategy.tell(replace(trial, number=number, state="stopped", budget=1.0, metrics=metrics))
        else:
            strategy.tell(replace(trial, number=number, budget=9.0))
    scale, models = strategy._models()
    points = [p for p in strategy._candidates(rng, 60, []) if p.candidate.key not in strategy._told]
    predicted = models["accuracy"].warp.inverse(models["accuracy"].predict(scale(strategy._inputs(points)))[0])
    true = [toy_metrics(space.architecture(p.candidate.genotype))["accuracy"] for p in points]
    assert abs(np.mean(predicted - true)) < 0.08
    assert np.corrcoef(predicted, true)[0, 1] > 0.7


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_the_scale_of_accuracy_does_not_matter(factor: float) -> None:
    space = toy_space()

    def run(factor: float) -> list[Any]:
        strategy = small(space, [ACCURACY, FLOPS])
        proposals = []
        for number in range(14):
            proposals.append(strategy.ask(1, np.random.default_rng(number), [])[0])
            trial = answer(space, proposals[-1], 0)
            accuracy = factor * trial.metrics["accuracy"]
            strategy.tell(replace(trial, number=number, metrics={**trial.metrics, "accuracy": accuracy}))
        return [p.genotype for p in proposals]

    assert run(factor) == run(1.0)


def test_parallel_proposals_differ() -> None:
    space = toy_space()
    strategy = small(space, [ACCURACY, FLOPS])
    told(strategy, space, 12)
    batch = strategy.ask(6, np.random.default_rng(0), [])
    assert len({space.architecture(p.genotype).key() for p in batch}) == 6
    alone = strategy.ask(1, np.random.default_rng(0), [])[0].genotype
    assert batch[0].genotype == alone
    assert strategy.ask(1, np.random.default_rng(0), [Proposal(alone)])[0].genotype != alone


def test_three_objectives_and_none_known_beforehand() -> None:
    space = toy_space()
    for others in ([FLOPS, Objective("params", "min", exact=True)], [Objective("loss", "min")]):
        strategy = small(space, [ACCURACY, *others])
        for number in range(12):
            trial = answer(space, strategy.ask(1, np.random.default_rng(number), [])[0], 0)
            loss = np.exp(-trial.metrics["accuracy"]) + trial.metrics["params"] / 1e4
            strategy.tell(replace(trial, number=number, metrics={**trial.metrics, "loss": loss}))


def test_resumed_equals_uninterrupted_past_the_capacity() -> None:
    """The caches are functions of what was told, also where hyperparameters are old and trials are left out."""
    space = nasbench_macro()
    first, again = (Predictor(space, [ACCURACY, FLOPS], capacity=30, candidates=40) for _ in range(2))
    rng = np.random.default_rng(0)
    for number in range(60):
        trial = answer(space, Proposal(space.sample(rng)), 0)
        trial = replace(trial, number=number)
        first.tell(trial)
        again.tell(replace(trial, note=json.loads(json.dumps(dict(trial.note)))))
        if number % 5 == 4:
            first.ask(1, rng, [])  # fills the caches along the way
    a, b = (s.ask(2, np.random.default_rng(1), []) for s in (first, again))
    assert [p.genotype for p in a] == [p.genotype for p in b]
    assert len(first._chosen(first._points, 30)) == 30


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench-macro"])
def test_features_tell_architectures_apart_on_every_space(name: str) -> None:
    space = make_space(name, (3, 32, 32), 10, {})
    rng = np.random.default_rng(0)
    genotypes = [space.sample(rng) for _ in range(20)]
    codes = np.array([space.encode(g) for g in genotypes])
    blocks = Features(space)(codes, np.ones((20, 4)), np.zeros(20))
    assert len(np.unique(blocks[0], axis=0)) == len(np.unique(codes, axis=0))
    x = Scale(blocks)(blocks)
    assert np.isfinite(x).all()
    assert x.var(0).sum() == pytest.approx(2)  # decisions and counts alike, constant costs and budgets nothing


def test_counts_do_not_see_the_order_of_layers() -> None:
    space = nasbench_macro()
    features = Features(space)
    codes = np.array([[0, 1, 2, 1, 0, 0, 0, 0], [1, 0, 0, 2, 1, 0, 0, 0], [1, 1, 0, 2, 1, 0, 0, 0]])
    _, counts, *_ = features(codes, np.ones((3, 4)), np.zeros(3))
    assert (counts[0] == counts[1]).all()
    assert (counts[0] != counts[2]).any()


@pytest.mark.parametrize("tail", [-1, 1])
def test_a_warp_goes_there_and_back_and_straightens_a_tail(tail: int) -> None:
    values = tail * np.random.default_rng(0).gamma(0.5, size=200) + 50
    warp = Warp(values)
    warped = warp(values)
    assert np.allclose(warp.inverse(warped), values)
    skew = [float(np.mean(((v - v.mean()) / v.std()) ** 3)) for v in (values, warped)]
    assert abs(skew[1]) < abs(skew[0]) / 2
    far = warp.inverse(np.linspace(-30, 30, 100))
    assert np.isfinite(far).all()
    assert (np.diff(far) >= 0).all()


def test_the_process_interpolates_and_knows_where_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = np.sin(x[:, 0]) + 0.05 * rng.normal(size=40)
    model = GaussianProcess(x, y)
    mean, deviation = model.predict(x)
    assert np.abs(mean - np.sin(x[:, 0])).mean() < 0.1
    assert model.predict(np.full((1, 2), 40.0))[1] > 3 * deviation.mean()
    assert np.array_equal(GaussianProcess(x, y, like=model).predict(x)[0], mean)


def test_the_process_is_that_of_scikit_learn() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    rng = np.random.default_rng(1)
    x, y, new = rng.normal(size=(60, 5)), rng.normal(size=60), rng.normal(size=(30, 5))
    model = GaussianProcess(x, y)
    amplitude, length, noise = model._settings
    kernel = ConstantKernel(amplitude) * Matern(length, nu=2.5) + WhiteKernel(noise)
    theirs = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=None).fit(x, y)
    mean, deviation = theirs.predict(new, return_std=True)
    ours = model.predict(new)
    assert ours[0] == pytest.approx(mean, rel=1e-6, abs=1e-6)
    assert ours[1] == pytest.approx(np.sqrt(np.maximum(deviation**2 - noise, 1e-8)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("objectives", [2, 3])
def test_improvement_is_the_added_hypervolume(objectives: int) -> None:
    rng = np.random.default_rng(0)
    front, values = rng.random((6, objectives)), rng.random((2, 5, objectives))
    reference = [1.1] * objectives
    added = [
        [pareto.hypervolume(np.vstack([front, v]), reference) - pareto.hypervolume(front, reference) for v in draw]
        for draw in values
    ]
    assert np.allclose(_improvement(front, values), added)


@pytest.mark.parametrize("option", [{"initial": 1}, {"candidates": 0}, {"fresh": 1.5}, {"capacity": 2.5}])
def test_an_option_out_of_range_is_named(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"strategy.{next(iter(option))}: expected"):
        Predictor(toy_space(), [ACCURACY], **option)

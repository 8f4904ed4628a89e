"""Optuna's samplers behind ask and tell: the same again after an interruption, limits, workers, what Optuna sees."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from nas.search_spaces.nasbench_macro import nasbench_macro
from nas.strategies.tpe import Tpe

from nas.choices import Genotype
from nas.errors import ConfigError
from nas.plugins import make_space
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, answer, toy_space
from nas.trial import Limit, Objective, Proposal, State, Trial

BOTH = (ACCURACY, FLOPS)
one_or_two = pytest.mark.parametrize("objectives", [(ACCURACY,), BOTH], ids=["one", "two"])


class Conformance(StrategyConformance):
    __test__ = False
    sampler = "TPESampler"

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Tpe(space, objectives, limits, sampler=self.sampler, population=8)


class TestTpe(Conformance):
    __test__ = True


class TestNsga2(Conformance):
    __test__ = True
    sampler = "NSGAIISampler"


class TestNsga3(Conformance):
    __test__ = True
    sampler = "NSGAIIISampler"


class TestRandomSampler(Conformance):
    __test__ = True
    sampler = "RandomSampler"


class TestGp(Conformance):
    """A few models only: each takes a tenth of a second."""

    __test__ = True
    asks = 5

    def objectives(self) -> list[Sequence[Objective]]:
        return [[ACCURACY]]

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Tpe(space, objectives, limits, sampler="GPSampler", startup=3, tries=1)


def run(strategy: Strategy, space: Space, n: int, workers: int = 1) -> Iterator[tuple[list[Proposal], Trial]]:
    """What was pending and the trial told next, with several workers of which the first always ends first."""
    pending: list[Proposal] = []
    for number in range(n):
        while len(pending) < workers:
            rng = np.random.default_rng([0, number, len(pending)])
            pending += strategy.ask(workers - len(pending), rng, list(pending))
        trial = answer(space, pending.pop(0), number)
        strategy.tell(trial)
        yield list(pending), trial


def again(trial: Trial) -> Trial:
    """As it comes back from the journal."""
    return replace(trial, note=json.loads(json.dumps(dict(trial.note))))


@one_or_two
@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler", "NSGAIIISampler"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_that_is_cut_goes_on_as_if_it_had_not_been(
    sampler: str, workers: int, objectives: Sequence[Objective]
) -> None:
    space = nasbench_macro()

    def fresh() -> Tpe:
        return Tpe(space, objectives, sampler=sampler, population=8)

    strategy = fresh()
    steps = list(run(strategy, space, 40, workers))
    resumed = fresh()
    for i, (pending, trial) in enumerate(steps[:-1]):
        resumed.tell(again(trial))
        if i % 3 == 2:  # at some only, so that what is resumed has not been asked everything
            pending = [Proposal(p.genotype, json.loads(json.dumps(dict(p.note)))) for p in pending]
            asked = resumed.ask(1, np.random.default_rng([0, i + 1, len(pending)]), pending)
            assert asked[0] == (steps[i + 1][0] or [Proposal(steps[i + 1][1].genotype, steps[i + 1][1].note)])[-1]


def test_generations_follow_each_other() -> None:
    space = nasbench_macro()
    strategy = Tpe(space, BOTH, sampler="NSGAIISampler", population=8)
    trials = [again(trial) for _, trial in run(strategy, space, 40)]
    generations = [trial.note["trial"]["NSGAIISampler:generation"] for trial in trials]
    assert generations == sorted(generations)
    assert set(generations) == set(range(max(generations) + 1))
    assert max(generations) >= 3
    # The parents are noted once for each generation but the first.
    assert sum("study" in trial.note for trial in trials) == max(generations)


@one_or_two
def test_nothing_is_proposed_twice(objectives: Sequence[Objective]) -> None:
    space = nasbench_macro()
    keys = [trial.key for _, trial in run(Tpe(space, objectives), space, 60, workers=4)]
    assert len(set(keys)) == 60


@pytest.mark.parametrize("sampler", ["TPESampler", "NSGAIISampler"])
@pytest.mark.parametrize("space", [toy_space(), make_space("mobile", (3, 32, 32), 10, {})], ids=str)
def test_limits_known_beforehand_are_kept(space: Space, sampler: str) -> None:
    rng = np.random.default_rng(0)
    flops = sorted(space.architecture(space.sample(rng)).metrics()["flops"] for _ in range(50))
    limit = Limit("flops", flops[2], exact=True)
    strategy = Tpe(space, [ACCURACY], [limit], sampler=sampler, population=8)
    for _, trial in run(strategy, space, 20):
        assert not limit.violation(space.architecture(trial.genotype).metrics())


def layers(genotype: Genotype, label: str) -> int:
    return sum(value == label for value in genotype.values())


def learnt(space: Space, state: State, **known: Any) -> float:
    """Mean number of identities proposed, after 60 random trials of which those with more than two ended so."""
    strategy = Tpe(space, [ACCURACY], [Limit("latency", 1.0)])
    rng = np.random.default_rng(0)
    for number in range(60):
        architecture = space.architecture(space.sample(rng))
        trial = Trial(number, architecture.genotype, architecture.key(), "ok", {"accuracy": 0.5, "latency": 0.5})
        if layers(trial.genotype, "identity") > 2:
            trial = replace(trial, state=state, **known)
        strategy.tell(trial)
    asked = [strategy.ask(1, np.random.default_rng(seed), [])[0] for seed in range(30)]
    return float(np.mean([layers(proposal.genotype, "identity") for proposal in asked]))


def test_optuna_learns_from_what_did_not_end_well() -> None:
    space = nasbench_macro()
    nothing = learnt(space, "ok", metrics={"accuracy": 0.5, "latency": 0.5})
    assert learnt(space, "diverged", metrics={}) < nothing - 0.5
    assert learnt(space, "out_of_memory", metrics={}) < nothing - 0.5
    assert learnt(space, "infeasible", metrics={}, violations={"flops": 0.5}) < nothing - 0.5
    assert learnt(space, "ok", metrics={"accuracy": 0.9, "latency": 2.0}, violations={"latency": 1.0}) < nothing - 0.5
    assert learnt(space, "stopped", metrics={"accuracy": 0.1, "latency": 0.5}, budget=1.0) < nothing - 0.5


def test_workers_keep_away_from_what_is_pending() -> None:
    space = nasbench_macro()
    strategy = Tpe(space, [ACCURACY])
    list(run(strategy, space, 20))
    moved = 0
    for seed in range(8):
        alone = strategy.ask(1, np.random.default_rng(seed), [])[0].genotype
        # None is the same network, so that only Optuna, which sees them running, can have a reason to go elsewhere.
        near = [space.mutate(alone, np.random.default_rng(i)) for i in range(12)]
        key = space.architecture(alone).key()
        crowd = [Proposal(g) for g in near if space.architecture(g).key() != key]
        moved += strategy.ask(1, np.random.default_rng(seed), crowd)[0].genotype != alone
    assert moved >= 4


def test_it_finds_more_than_random_samples_do() -> None:
    space = nasbench_macro()

    def late(sampler: str) -> float:
        found: list[float] = []
        for workers in (1, 2, 3, 4):
            trials = [trial for _, trial in run(Tpe(space, [ACCURACY], sampler=sampler), space, 50, workers)]
            found += [trial.metrics["accuracy"] for trial in trials[25:] if trial.ok]
        return float(np.mean(found))

    assert late("TPESampler") > late("RandomSampler")


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    space = toy_space()  # conditional: GPSampler warns of what it cannot model
    for sampler in ("TPESampler", "GPSampler", "NSGAIISampler"):
        list(run(Tpe(space, BOTH, sampler=sampler, startup=4, population=4), space, 6))
    assert capfd.readouterr() == ("", "")


def test_wrong_options_are_told_in_one_line() -> None:
    space = toy_space()
    with pytest.raises(ConfigError, match=r"strategy\.sampler: 'CmaEsSampler' .* categories; .*TPESampler, GPSampler"):
        Tpe(space, [ACCURACY], sampler="CmaEsSampler")
    with pytest.raises(ConfigError, match=r"did you mean NSGAIISampler\?"):
        Tpe(space, [ACCURACY], sampler="NSGA2Sampler")
    for name, value in (("startup", -1), ("candidates", 0), ("population", 1), ("tries", 0), ("tries", 1.5)):
        with pytest.raises(ConfigError, match=rf"strategy\.{name}: expected a whole number of at least"):
            Tpe(space, [ACCURACY], **{name: value})  # type: ignore[arg-type]

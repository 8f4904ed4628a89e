"""`evolution` and `regularized-evolution`: what a proposal costs, what is remembered, and who stands before whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nas.search_spaces.nasbench_macro import nasbench_macro
from nas.strategies.evolution import Evolution, RegularizedEvolution

from nas.architecture import Architecture
from nas.graph import Graph
from nas.plugins import make_strategy
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy, changes
from nas.testing import ACCURACY, FLOPS, answer, toy_metrics, toy_space, toy_trials
from nas.trial import Proposal, Trial

OBJECTIVES = (ACCURACY, FLOPS)


def random_trials(space: Space, n: int) -> Iterator[Trial]:
    rng = np.random.default_rng(0)
    for number in range(n):
        architecture = space.architecture(space.sample(rng))
        yield Trial(number, architecture.genotype, architecture.key(), "ok", toy_metrics(architecture))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every architecture that is put together, and every graph that is lowered or hashed as a whole."""
    calls: list[str] = []
    architecture, key = Space.architecture, Architecture.key

    def made(self: Space, genotype: dict[str, object]) -> Architecture:
        calls.append("architecture")
        return architecture(self, genotype)

    def hashed(self: Architecture) -> str:
        calls.append("key")
        return key(self)

    monkeypatch.setattr(Space, "architecture", made)
    monkeypatch.setattr(Architecture, "key", hashed)
    return calls


@pytest.mark.parametrize("history", [50, 500])
def test_a_proposal_costs_a_few_architectures_and_hardly_a_key_however_long_the_history(
    counted: list[str], history: int
) -> None:
    space = toy_space()
    strategy = Evolution(space, OBJECTIVES)
    for trial in random_trials(space, history):
        strategy.tell(trial)
    counted.clear()
    for seed in range(50):
        strategy.ask(1, np.random.default_rng(seed), [])
    assert counted.count("architecture") <= 50 * 20
    assert counted.count("key") <= 50 * 2


def test_a_proposal_costs_the_same_however_many_are_pending(counted: list[str]) -> None:
    space = nasbench_macro()
    strategy = Evolution(space, OBJECTIVES)
    for trial in random_trials(space, 30):
        strategy.tell(trial)
    pending = strategy.ask(300, np.random.default_rng(0), [])
    counted.clear()
    for seed in range(20):
        pending = [*pending[:7], *pending[8:], *strategy.ask(1, np.random.default_rng(seed), pending)]
    assert len(pending) == 300
    assert counted.count("architecture") <= 20 * 60  # a new candidate each time, none of those that are pending


@pytest.mark.parametrize("cls", [Evolution, RegularizedEvolution])
def test_what_was_asked_before_does_not_matter(cls: type[Strategy]) -> None:
    """With everything remembered from earlier calls, `ask` gives what a strategy gives that was only told."""
    space = toy_space()
    used = cls(space, OBJECTIVES)
    told: list[Trial] = []
    pending: list[Proposal] = []
    rng = np.random.default_rng(7)
    for number in range(60):
        pending += used.ask(1 + number % 3, np.random.default_rng([number, 0]), pending)
        for _ in range(int(rng.integers(len(pending)))):
            trial = answer(space, pending.pop(int(rng.integers(len(pending)))), len(told))
            told.append(trial)
            used.tell(trial)
        fresh = cls(space, OBJECTIVES)
        for trial in told:
            fresh.tell(trial)
        asked = [strategy.ask(2, np.random.default_rng([number, 1]), list(pending)) for strategy in (used, fresh)]
        assert asked[0] == asked[1]


@given(st.lists(st.integers(0, 30), unique=True), st.data())
def test_changes_finds_what_is_gone_and_what_came(numbers: list[int], data: st.DataObject) -> None:
    every = [Proposal({"at": i}) for i in numbers]
    stays = data.draw(st.lists(st.booleans(), min_size=len(every), max_size=len(every)))
    came = [Proposal({"new": i}) for i in range(data.draw(st.integers(0, 5)))]
    now = [p for p, kept in zip(every, stays, strict=True) if kept] + came
    assert changes(every, now) == ([p for p, kept in zip(every, stays, strict=True) if not kept], came)


def test_changes_of_another_order_still_lead_from_one_to_the_other() -> None:
    a, b, c = (Proposal({"at": i}) for i in range(3))
    gone, came = changes([a, b, c], [c, a])
    assert sorted(p.genotype["at"] for p in [a, b, c] if p not in gone) + [p.genotype["at"] for p in came] == [2, 0]


def test_seen_knows_networks_by_whatever_genotype() -> None:
    space = nasbench_macro()
    spellings = [
        {"stage1.0.block": "mb3_k3", "stage1.1.block": "mb3_k3", "stage2.0.block": "mb3_k3", **rest,
         "stage3.0.block": "mb3_k3", "stage3.1.block": "identity", "stage3.2.block": "identity"}
        for rest in ({"stage2.1.block": "identity", "stage2.2.block": "mb6_k5"},
                     {"stage2.1.block": "mb6_k5", "stage2.2.block": "identity"})
    ]  # fmt: skip
    first, second = (Candidate(space, space.check(genotype)) for genotype in spellings)
    other = Candidate(space, {**spellings[0], "stage2.1.block": "mb6_k5"})
    seen = Seen(space)
    assert first not in seen
    seen.follow([Proposal(spellings[0])])
    assert first in seen
    assert second in seen
    assert other not in seen
    seen.follow([])
    assert second not in seen
    seen.tell(Trial(0, spellings[1], second.key or "", "failed"))
    assert first in seen
    assert other not in seen


def tell_stopped(strategy: Strategy, space: Space, states: Sequence[tuple[str, float | None]]) -> list[Trial]:
    """Tell random networks; those that were stopped claim to be better than all others."""
    told = []
    for trial, (state, budget) in zip(random_trials(space, len(states)), states, strict=True):
        better = {"accuracy": trial.metrics["accuracy"] + (1 if state == "stopped" else 0)}
        told.append(replace(trial, state=state, budget=budget, metrics={**trial.metrics, **better}))  # type: ignore[arg-type]
        strategy.tell(told[-1])
    return told


def parents(strategy: Evolution) -> set[int]:
    asked = [strategy.ask(1, np.random.default_rng(seed), [])[0] for seed in range(60)]
    return {number for proposal in asked for number in proposal.note["parents"]}


def test_stopped_trials_stand_behind_full_ones_the_larger_budget_first() -> None:
    space = toy_space()
    states = [("stopped", 1.0)] * 20 + [("stopped", 3.0)] * 20
    strategy = Evolution(space, [ACCURACY], population=4, parents=3)
    tell_stopped(strategy, space, states)
    assert parents(strategy) <= set(range(20, 40))  # nothing better is known yet: they inform it
    strategy = Evolution(space, [ACCURACY], population=4, parents=3)
    told = tell_stopped(strategy, space, [*states, ("ok", 9.0), ("ok", 9.0)])
    best = max(told[20:40], key=lambda trial: trial.metrics["accuracy"])
    assert parents(strategy) == {40, 41, best.number}  # two full ones, and the best of those that came furthest
    strategy = Evolution(space, [ACCURACY], population=4, parents=3)
    tell_stopped(strategy, space, [*states, *[("ok", 9.0)] * 5])
    assert parents(strategy) <= set(range(40, 45))


def test_the_winner_of_a_sample_was_evaluated_in_full() -> None:
    space = nasbench_macro()
    strategy = RegularizedEvolution(space, OBJECTIVES, population=10, sample=200)
    told = tell_stopped(strategy, space, [("stopped", 1.0)] * 9 + [("ok", 9.0)])
    for seed in range(10):
        child = strategy.ask(1, np.random.default_rng(seed), [])[0].genotype
        assert sum(child[path] != label for path, label in told[-1].genotype.items()) == 1


def test_a_stopped_trial_without_all_objectives_is_left_out() -> None:
    space = toy_space()
    for name in ("evolution", "regularized-evolution"):
        strategy = make_strategy(name, space, OBJECTIVES, (), options={"population": 2})
        for trial in toy_trials(strategy, space, 12):
            partial = replace(trial, number=trial.number + 100, state="stopped", metrics={"flops": 1.0}, budget=1.0)
            strategy.tell(partial)
        assert strategy.ask(1, np.random.default_rng(0), [])


def test_the_parents_are_the_first_fronts_of_all_that_was_told() -> None:
    space = toy_space()
    strategy = Evolution(space, OBJECTIVES, parents=5)
    told = list(random_trials(space, 200))
    for trial in told:
        strategy.tell(trial)
    values = np.array([[-t.metrics["accuracy"], t.metrics["flops"]] for t in told])
    front = {
        t.number for t, row in zip(told, values, strict=True)
        if not any((other <= row).all() and (other < row).any() for other in values)
    }  # fmt: skip
    assert len(front) >= 5
    assert parents(strategy) <= front


def test_a_key_is_that_of_the_graph() -> None:
    for space in (toy_space(), nasbench_macro()):
        rng = np.random.default_rng(3)
        for _ in range(60):
            architecture = space.architecture(space.sample(rng))
            graph: Graph = architecture.graph()
            assert architecture.key() == graph.key()

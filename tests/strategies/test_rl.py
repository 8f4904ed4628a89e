"""The reinforcement learner: its gradients, the probabilities in its notes, what it learns, and resuming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from nas.strategies.lstm import Lstm
from nas.strategies.policies import Logits, Policy, Vocabulary
from nas.strategies.rl import Reinforcement

from nas.blocks import Chain, Conv, Head
from nas.choices import Genotype, OneOf
from nas.errors import ConfigError
from nas.plugins import make_space
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, answer, toy_space, toy_trials
from nas.trial import Limit, Objective, Trial

BOTH = (ACCURACY, FLOPS)
SHIPPED = ("mobile", "lecture", "nasbench-macro")


class TestLogits(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Reinforcement(space, objectives, limits)


class TestPpo(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Reinforcement(space, objectives, limits, algorithm="ppo", every=3)


class TestPlain(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Reinforcement(space, objectives, limits, imitation=0)


class TestLstm(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return Reinforcement(space, objectives, limits, policy="lstm", algorithm="ppo", units=8)


def policies(space: Space) -> list[Policy]:
    """Both, with parameters that are not small, in double precision."""
    rng, words = np.random.default_rng(0), Vocabulary(space)
    made: list[Policy] = [Logits(words, 2), Lstm(words, 2, units=6)]
    for policy in made:
        for name, values in policy.parameters.items():
            policy.parameters[name] = values.astype(np.float64) + 0.4 * rng.normal(size=values.shape)
    return made


def encoded(policy: Policy, genotypes: Sequence[Genotype]) -> np.ndarray:
    rows = [policy.vocabulary.encode(genotype) for genotype in genotypes]
    tokens = np.full((len(rows), max(map(len, rows))), -1)
    for row, found in zip(tokens, rows, strict=True):
        row[: len(found)] = found
    return tokens


@pytest.mark.parametrize("i", [0, 1])
def test_gradients_are_those_of_finite_differences(i: int) -> None:
    space, rng = toy_space(), np.random.default_rng(1)
    policy = policies(space)[i]
    tokens = encoded(policy, [space.sample(rng) for _ in range(6)])
    assert (tokens < 0).any()  # sequences of different length
    preferences, weights = rng.dirichlet([1, 1], 6), rng.normal(size=6)

    def value() -> float:
        _, found, entropies = policy.gradient(tokens, preferences, np.zeros_like)
        return float((weights * found).sum() + 0.3 * entropies.sum())

    # Credit held fixed, though it is worked out from the probabilities; entropy as if decisions came as they are.
    gradient, _, _ = policy.gradient(tokens, preferences, lambda found: weights, 0.3)
    assert gradient.keys() == policy.parameters.keys()
    for name, g in gradient.items():
        kept, direction = policy.parameters[name], rng.normal(size=g.shape)
        ends = []
        for step in (1e-5, -1e-5):
            policy.parameters[name] = kept + step * direction
            ends.append(value())
        policy.parameters[name] = kept
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float((g * direction).sum()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", ["toy", *SHIPPED])
def test_a_draw_has_the_probability_of_its_tokens(name: str) -> None:
    space = toy_space() if name == "toy" else make_space(name, (3, 32, 32), 10, {})
    rng = np.random.default_rng(2)
    for policy in policies(space):
        for preference in rng.dirichlet([1, 1], 5):
            genotype, found = policy.draw(preference, 1.0, rng)
            assert len(encoded(policy, [genotype])[0]) == len(genotype)  # every decision is in the vocabulary
            again = policy.log_probability(encoded(policy, [genotype]), preference[None])
            assert found == pytest.approx(float(again[0]), abs=1e-4)


def test_draws_have_the_frequencies_of_the_policy() -> None:
    space, rng, preference = small(2), np.random.default_rng(3), np.array([0.3, 0.7])
    for policy in policies(space):
        genotypes = list(space.enumerate())
        expected = np.exp(policy.log_probability(encoded(policy, genotypes), np.tile(preference, (len(genotypes), 1))))
        assert expected.sum() == pytest.approx(1, abs=1e-5)
        drawn = [policy.draw(preference, 1.0, rng)[0] for _ in range(2000)]
        counts = np.array([drawn.count(genotype) for genotype in genotypes])
        assert np.abs(counts / 2000 - expected).max() < 4.5 * np.sqrt(0.25 / 2000)


@pytest.mark.parametrize("kind", ["logits", "lstm"])
def test_the_note_has_the_probability_of_the_proposal(kind: str) -> None:
    space = toy_space()
    strategy = Reinforcement(space, BOTH, policy=kind)
    for _ in toy_trials(strategy, space, 30):
        pass
    proposals = [strategy.ask(1, np.random.default_rng(seed), [])[0] for seed in range(10)]
    proposals = [p for p in proposals if p.note["temperature"] == 1]  # the others were drawn again, hotter
    assert len(proposals) >= 5
    for proposal in proposals:
        note = json.loads(json.dumps(dict(proposal.note)))
        again = strategy.policy.log_probability(
            encoded(strategy.policy, [proposal.genotype]), np.array([note["preference"]])
        )
        assert note["log_probability"] == pytest.approx(float(again[0]), abs=1e-4)


# -- learning ----------------------------------------------------------------------------------------------------


def small(layers: int = 6) -> Space:
    chain = {f"layer{i}": Conv(width=OneOf(8, 16, 24, 32), kernel=1) for i in range(layers)}
    return Space(Chain(**chain, head=Head(10)), input_shape=(3, 8, 8), classes=10, name="small")


def bandit(genotype: Genotype, best: int = 16) -> float:
    """Share of layers that are right, on a scale of its own."""
    return 1e-4 * sum(width == best for width in genotype.values()) / len(genotype)


def play(strategy: Strategy, space: Space, n: int) -> list[Trial]:
    trials = []
    for number in range(n):
        proposal = strategy.ask(1, np.random.default_rng([4, number]), [])[0]
        trial = answer(space, proposal, number)
        if trial.ok:
            trial = replace(trial, metrics={**trial.metrics, "accuracy": bandit(trial.genotype)})
        trials.append(trial)
        strategy.tell(trial)
    return trials


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"algorithm": "ppo"},
        {"imitation": 0},
        {"imitation": 0, "algorithm": "ppo"},
        {"policy": "lstm"},
        {"policy": "lstm", "algorithm": "ppo", "imitation": 0},
    ],
    ids=str,
)
def test_learns_a_bandit(options: dict[str, object]) -> None:
    space = small()
    trials = play(Reinforcement(space, [ACCURACY], **options), space, 150)  # type: ignore[arg-type]
    right = [np.mean([bandit(t.genotype) for t in part]) for part in (trials[:10], trials[-50:])]
    assert right[1] > 1.6 * right[0]  # a quarter is right by chance


def test_the_preference_says_which_end_of_the_front() -> None:
    space = small()
    strategy = Reinforcement(space, BOTH)
    for number in range(150):
        trial = answer(space, strategy.ask(1, np.random.default_rng([5, number]), [])[0], number)
        if trial.ok:
            trial = replace(trial, metrics={**trial.metrics, "accuracy": bandit(trial.genotype, best=32)})
        strategy.tell(trial)
    rng = np.random.default_rng(6)

    def widths(preference: list[float]) -> float:
        drawn = [strategy.policy.draw(np.array(preference), 1.0, rng)[0] for _ in range(50)]
        return float(np.mean([int(str(w)) for genotype in drawn for w in genotype.values()]))

    assert widths([0.95, 0.05]) > 1.5 * widths([0.05, 0.95])


@pytest.mark.parametrize(
    ("reward", "small_options", "large_options"),
    [
        # MnasNet's target is a factor on all rewards; its exponent makes the trade.
        ("mnasnet", {"target": 5e4, "exponent": -2.0}, {"target": 5e4, "exponent": -0.01}),
        ("tunas", {"target": 2.5e4, "exponent": -1.0}, {"target": 1e5, "exponent": -1.0}),
    ],
)
def test_rewards_with_a_target(reward: str, small_options: dict[str, float], large_options: dict[str, float]) -> None:
    space = small()
    median = []
    for options in (small_options, large_options):
        strategy = Reinforcement(space, BOTH, reward=reward, **options)  # type: ignore[arg-type]
        trials = list(toy_trials(strategy, space, 100))
        assert trials[0].note["preference"] == [1.0]
        median.append(float(np.median([space.architecture(t.genotype).metrics()["flops"] for t in trials[-40:]])))
    assert median[0] < 0.7 * median[1]


def test_finds_its_way_inside_narrow_limits() -> None:
    space = make_space("mobile", (3, 32, 32), 10, {})
    flops = [space.architecture(space.sample(np.random.default_rng(i))).metrics()["flops"] for i in range(200)]
    limit = Limit("flops", min(flops), exact=True)  # hardly any random network is inside
    strategy, inside = Reinforcement(space, [ACCURACY], [limit]), []
    for number in range(60):
        trial = answer(space, strategy.ask(1, np.random.default_rng([7, number]), [])[0], number)
        exact = space.architecture(trial.genotype).metrics()
        excess = limit.violation(exact)
        if excess:
            trial = replace(trial, state="infeasible", metrics=exact, violations={"flops": excess})
        inside.append(not excess)
        strategy.tell(trial)
    assert np.mean(inside[-20:]) > 0.8


# -- the contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", ["logits", "lstm"])
def test_resumes_on_every_space(name: str, kind: str) -> None:
    space = make_space(name, (3, 32, 32), 10, {})
    objectives = (*BOTH, Objective("params", "min", exact=True))
    first, again = (Reinforcement(space, objectives, policy=kind, units=8) for _ in range(2))
    for trial in toy_trials(first, space, 24):
        again.tell(replace(trial, note=json.loads(json.dumps(dict(trial.note)))))
    assert first.ask(3, np.random.default_rng(0), []) == again.ask(3, np.random.default_rng(0), [])
    for name_, values in first.policy.parameters.items():
        assert np.array_equal(values, again.policy.parameters[name_])
        assert values.any()


def test_workers_tell_in_any_order() -> None:
    space, strategy = small(), Reinforcement(small(), [ACCURACY], algorithm="ppo")
    rng = np.random.default_rng(8)
    pending, number, right = [], 0, []
    for _ in range(200):
        while len(pending) < 8:
            fresh = strategy.ask(8 - len(pending), np.random.default_rng([8, number]), [p for _, p in pending])
            pending += [(number + i, proposal) for i, proposal in enumerate(fresh)]
            number += len(fresh)
        done, proposal = pending.pop(int(rng.integers(8)))
        trial = answer(space, proposal, done)
        strategy.tell(replace(trial, state="ok", metrics={"accuracy": bandit(proposal.genotype)}, error=None))
        right.append(bandit(proposal.genotype))
    assert np.mean(right[-50:]) > 1.6 * np.mean(right[:20])


def test_proposes_nothing_twice_and_forgets_the_worst() -> None:
    space = make_space("nasbench-macro", (3, 32, 32), 10, {})
    strategy, keys = Reinforcement(space, BOTH, every=50), set()
    for number in range(1200):  # more than it remembers
        trial = answer(space, strategy.ask(1, np.random.default_rng([9, number]), [])[0], number)
        keys.add(trial.key)
        strategy.tell(trial)
    assert len(keys) == 1200


def test_trials_of_others_are_learnt_from() -> None:
    """Known architectures that start a search have no note."""
    space, told = small(), Reinforcement(small(), [ACCURACY])
    rng = np.random.default_rng(10)
    for number in range(100):
        genotype = space.sample(rng)
        trial = Trial(number, genotype, space.architecture(genotype).key(), "ok", {"accuracy": bandit(genotype)})
        told.tell(trial)
    drawn = [bandit(told.policy.draw(np.ones(1), 1.0, rng)[0]) for _ in range(50)]
    assert np.mean(drawn) > 1.6 * 0.25e-4


@pytest.mark.parametrize(
    "options",
    [
        {"policy": "transformer"},
        {"algorithm": "sarsa"},
        {"reward": "mnasnet"},
        {"reward": "tunas", "target": 0},
        {"imitation": -1},
        {"risk": 0},
        {"warmup": 0},
        {"every": 1.5},
        {"units": "many"},
    ],
    ids=str,
)
def test_wrong_options_are_told(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.{list(options)[-1]}|target") as error:
        Reinforcement(toy_space(), BOTH, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_reward_with_a_target_needs_a_quality_and_a_cost() -> None:
    with pytest.raises(ConfigError, match="quality and a cost"):
        Reinforcement(toy_space(), [ACCURACY], reward="mnasnet", target=1e6)

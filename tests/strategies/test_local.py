"""Local search: what it proposes next, restarts, limits, workers, and the same again after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from nas.strategies.local import LocalSearch

from nas.blocks import Chain, Conv, Head
from nas.choices import Genotype, OneOf
from nas.errors import ConfigError
from nas.plugins import make_space
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS, StrategyConformance, toy_metrics, toy_space
from nas.trial import Limit, Objective, Proposal, Trial

BOTH = (ACCURACY, FLOPS)
either = pytest.mark.parametrize("improvement", ["first", "best"])
one_or_two = pytest.mark.parametrize("objectives", [(ACCURACY,), BOTH], ids=["one", "two"])


class TestFirst(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return LocalSearch(space, objectives, limits)


class TestBest(StrategyConformance):
    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        return LocalSearch(space, objectives, limits, improvement="best", starts=3)


def small() -> Space:
    """64 networks."""
    layers = {f"layer{i}": Conv(width=OneOf(8, 16, 24, 32), kernel=1) for i in range(3)}
    return Space(Chain(**layers, head=Head(10)), input_shape=(3, 8, 8), classes=10, name="small")


def two_peaks(genotype: Genotype) -> float:
    """Best where all widths are 32; where all are 8 no neighbour is better."""
    widths = [float(str(width)) for width in genotype.values()]
    return max(sum(widths), 90 - 2 * sum(width - 8 for width in widths))


def told(space: Space, proposal: Proposal, number: int, accuracy: Callable[[Genotype], float] | None = None) -> Trial:
    architecture = space.architecture(proposal.genotype)
    metrics = toy_metrics(architecture)
    if accuracy is not None:
        metrics["accuracy"] = accuracy(proposal.genotype)
    return Trial(number, architecture.genotype, architecture.key(), "ok", metrics, note=proposal.note)


def run(
    strategy: Strategy, space: Space, n: int, accuracy: Callable[[Genotype], float] | None = None
) -> Iterator[Trial]:
    for number in range(n):
        proposal = strategy.ask(1, np.random.default_rng([0, number]), [])[0]
        trial = told(space, proposal, number, accuracy)
        strategy.tell(trial)
        yield trial


def changed(a: Genotype, b: Genotype) -> list[str]:
    return [path for path in a if path in b and a[path] != b[path]]


@either
@one_or_two
def test_a_run_that_is_cut_anywhere_goes_on_as_if_it_had_not_been(
    improvement: str, objectives: Sequence[Objective]
) -> None:
    space = small()  # small enough that neighbourhoods are exhausted

    def fresh() -> LocalSearch:
        return LocalSearch(space, objectives, improvement=improvement)

    trials = list(run(fresh(), space, 60, two_peaks))
    for cut in range(1, 60):
        strategy = fresh()
        for trial in trials[:cut]:
            strategy.tell(trial)
        assert strategy.ask(1, np.random.default_rng([0, cut]), [])[0] == Proposal(
            trials[cut].genotype, trials[cut].note
        )


@either
@one_or_two
def test_a_small_space_is_seen_whole_without_a_duplicate(improvement: str, objectives: Sequence[Objective]) -> None:
    space = small()
    trials = list(run(LocalSearch(space, objectives, improvement=improvement), space, 64, two_peaks))
    assert len({trial.key for trial in trials}) == 64


def test_first_improvement_goes_on_from_each_better_neighbour_and_restarts_when_none_is_left() -> None:
    space = small()
    trials = list(run(LocalSearch(space, [ACCURACY]), space, 40, two_peaks))
    starts = [trial for trial in trials if "move" not in trial.note]
    assert len(starts) > 1
    for start, restart in pairwise(starts):
        here = start
        for trial in trials[start.number + 1 : restart.number]:
            if trial.note["climb"] != start.number:  # an earlier climb, found to have a neighbour left
                continue
            assert trial.note["from"] == here.number
            assert len(changed(here.genotype, trial.genotype)) == 1
            if trial.metrics["accuracy"] > here.metrics["accuracy"]:
                here = trial
        seen = {trial.key for trial in trials[: restart.number]}
        assert {space.architecture(g).key() for g in space.neighbours(here.genotype)} <= seen


def test_best_improvement_sees_all_neighbours_before_it_moves_to_the_best() -> None:
    space = small()
    first, *rest = run(LocalSearch(space, [ACCURACY], improvement="best"), space, 12, two_peaks)
    around = [trial for trial in rest if trial.note["from"] == first.number]
    assert around == rest[:9]  # three decisions, three other options each
    best = max(around, key=lambda trial: trial.metrics["accuracy"])
    assert best.metrics["accuracy"] > first.metrics["accuracy"]
    assert {trial.note["from"] for trial in rest[9:]} == {best.number}


def test_several_objectives_explore_the_front_evenly() -> None:
    space = make_space("mobile", (3, 32, 32), 10, {})
    strategy = LocalSearch(space, BOTH)
    trials: list[Trial] = []
    explored: dict[int, int] = {}
    for trial in run(strategy, space, 60):
        if "from" in trial.note:
            parent = trials[trial.note["from"]]
            assert not any(
                other.metrics["accuracy"] > parent.metrics["accuracy"]
                and other.metrics["flops"] < parent.metrics["flops"]
                for other in trials
            )
            explored[parent.number] = explored.get(parent.number, 0) + 1
        trials.append(trial)
    assert len(explored) > 10
    assert max(explored.values()) < 10


@one_or_two
def test_every_worker_gets_another_network(objectives: Sequence[Objective]) -> None:
    space = small()
    strategy = LocalSearch(space, objectives)
    trials = list(run(strategy, space, 10, two_peaks))
    pending: list[Proposal] = []
    for step in range(20):
        pending += strategy.ask(2, np.random.default_rng([1, step]), list(pending))
    keys = [space.architecture(proposal.genotype).key() for proposal in pending]
    assert len(set(keys)) == len(keys) == 40
    assert not set(keys) & {trial.key for trial in trials}
    together = strategy.ask(3, np.random.default_rng(5), pending[:4])
    assert strategy.ask(3, np.random.default_rng(5), pending[:4]) == together


@one_or_two
@pytest.mark.parametrize("space", [toy_space(), make_space("mobile", (3, 32, 32), 10, {})], ids=str)
def test_limits_known_beforehand_are_kept(space: Space, objectives: Sequence[Objective]) -> None:
    rng = np.random.default_rng(0)
    flops = sorted(space.architecture(space.sample(rng)).metrics()["flops"] for _ in range(50))
    limit = Limit("flops", flops[2], exact=True)
    for trial in run(LocalSearch(space, objectives, [limit]), space, 40):
        assert not limit.violation(trial.metrics)


def test_a_measured_limit_is_climbed_into() -> None:
    space = small()
    limit = Limit("latency", 40.0)

    def answers(proposal: Proposal, number: int) -> Trial:
        trial = told(space, proposal, number, two_peaks)
        latency = sum(float(str(width)) for width in proposal.genotype.values())
        violation = limit.violation({"latency": latency})
        return Trial(
            number, trial.genotype, trial.key, "ok", {**trial.metrics, "latency": latency},
            violations={"latency": violation} if violation else {}, note=trial.note,
        )  # fmt: skip

    strategy = LocalSearch(space, [ACCURACY], [limit])
    strategy.tell(answers(Proposal(dict.fromkeys(small().paths, 32)), 0))
    trials = []
    for number in range(1, 20):
        trials.append(answers(strategy.ask(1, np.random.default_rng(number), [])[0], number))
        strategy.tell(trials[-1])
    stood = {trial.note["from"] for trial in trials if trial.note.get("climb") == 0} - {0}
    broken = [sum(trial.violations.values()) for trial in trials if trial.number in stood]
    assert broken == sorted(broken, reverse=True)
    assert broken[-1] == 0


def test_neighbours_complete_what_becomes_active_in_one_way_only() -> None:
    space = toy_space()
    strategy = LocalSearch(space, [ACCURACY])
    first = told(space, Proposal(space.sample(np.random.default_rng(3))), 0)
    strategy.tell(first)
    moves: dict[tuple[str, int], Genotype] = {}
    for seed in range(60):
        proposal = strategy.ask(1, np.random.default_rng(seed), [])[0]
        path, index = proposal.note["move"]
        assert proposal.genotype[path]
        assert proposal.genotype[path] != first.genotype[path]
        assert moves.setdefault((path, index), proposal.genotype) == proposal.genotype
    assert any(genotype.keys() != first.genotype.keys() for genotype in moves.values())


def test_wrong_options_are_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.improvement: expected first or best, got 'steepest'"):
        LocalSearch(small(), [ACCURACY], improvement="steepest")
    for starts in (0, 1.5, True):
        with pytest.raises(ConfigError, match=r"strategy\.starts: expected a whole number of at least 1"):
            LocalSearch(small(), [ACCURACY], starts=starts)  # type: ignore[arg-type]

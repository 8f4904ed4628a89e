"""Conformance tests for plug-ins, ours and third parties'. Subclass, define `make`, run with pytest.

from nas.testing import StrategyConformance

class TestMine(StrategyConformance):
    def make(self, space, objectives, limits):
        return Mine(space, objectives, limits)
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from nas.analysis import analyse
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual, Skip
from nas.choices import OneOf, Repeat
from nas.evaluator import Evaluator, Report, Task
from nas.ops import Shape
from nas.preparation import Preparation
from nas.space import Space
from nas.strategy import Strategy
from nas.trial import Limit, Objective, Proposal, State, Trial

ACCURACY = Objective("accuracy", "max")
FLOPS = Objective("flops", "min", exact=True)


def toy_space() -> Space:
    """A small conditional space: open depth, blocks with choices of their own, a shared width."""
    layer = OneOf(
        Conv(kernel=OneOf(1, 3), activation=OneOf("relu", "silu")),
        InvertedResidual(kernel=OneOf(3, 5), expansion=OneOf(2, 4), activation=OneOf("relu", "silu")),
        Skip(),
    )
    stages = {
        f"stage{i}": Repeat(layer, OneOf(1, 2, 3), each={"width": OneOf(8 * i, 12 * i, 16 * i)}, first={"stride": 2})
        for i in (1, 2)
    }
    return Space(
        Chain(stem=Conv(8), **stages, head=Head(10)), input_shape=(3, 16, 16), classes=10, name="toy",
        resolution=OneOf(0.5, 1.0),
    )  # fmt: skip


def toy_metrics(architecture: Architecture) -> dict[str, float]:
    """Metrics that need no training: an accuracy that grows with size, with a little structure of its own."""
    exact = architecture.metrics()
    digest = int(architecture.key()[:8], 16) / 16**8
    accuracy = 1 - 1 / (1 + math.log1p(exact["flops"] / 1e5)) + 0.05 * digest + 0.01 * exact["depth"] / 10
    return {**exact, "accuracy": accuracy}


def toy_trials(strategy: Strategy, space: Space, n: int, seed: int = 0) -> Iterator[Trial]:
    """Ask, answer with `toy_metrics` (every seventh trial fails), tell; yields the trials."""
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        proposal = strategy.ask(1, rng, [])[0]
        trial = answer(space, proposal, number)
        strategy.tell(trial)
        yield trial


def answer(space: Space, proposal: Proposal, number: int) -> Trial:
    """What a proposal becomes in the toy problem."""
    architecture = space.architecture(proposal.genotype)
    metrics = toy_metrics(architecture)
    trial = Trial(number, architecture.genotype, architecture.key(), "ok", metrics, note=proposal.note)
    return replace(trial, state="failed", metrics={}, error="toy") if number % 7 == 6 else trial


class StrategyConformance:
    """What every strategy promises."""

    asks = 40
    """Trials in each test: more than an initial population."""

    def make(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit]) -> Strategy:
        """The strategy under test, with options that suit `asks` trials."""
        raise TypeError("define make(self, space, objectives, limits)")

    def objectives(self) -> list[Sequence[Objective]]:
        """Sets of objectives to run: one, and two where the strategy takes them."""
        probe = self.make(toy_space(), [ACCURACY], ())
        return [[ACCURACY], [ACCURACY, FLOPS]] if probe.multi_objective else [[ACCURACY]]

    def runs(self) -> Iterator[tuple[Space, Strategy, list[Trial]]]:
        for objectives in self.objectives():
            space = toy_space()
            strategy = self.make(space, objectives, ())
            yield space, strategy, list(toy_trials(strategy, space, self.asks))

    def test_proposals_belong_to_the_space(self) -> None:
        for space, _, trials in self.runs():
            for trial in trials:
                space.check(trial.genotype)
                json.dumps(dict(trial.note))

    def test_the_seed_governs_everything(self) -> None:
        first, again = list(self.runs()), list(self.runs())
        for (space, _, a), (_, _, b) in zip(first, again, strict=True):
            assert [t.genotype for t in a] == [t.genotype for t in b]
            other = self.make(space, self.objectives()[0], ())
            assert [t.genotype for t in toy_trials(other, space, self.asks, seed=1)] != [t.genotype for t in a]

    def test_ask_changes_nothing(self) -> None:
        for space, strategy, trials in self.runs():
            pending = [Proposal(trials[0].genotype, trials[0].note)]
            a = strategy.ask(3, np.random.default_rng(5), pending)
            strategy.ask(2, np.random.default_rng(6), [])
            b = strategy.ask(3, np.random.default_rng(5), pending)
            assert [p.genotype for p in a] == [p.genotype for p in b]
            assert 1 <= len(a) <= 3
            for proposal in a:
                space.check(proposal.genotype)

    def test_telling_the_journal_again_restores_it(self) -> None:
        for objectives in self.objectives():
            space = toy_space()
            strategy = self.make(space, objectives, ())
            trials = list(toy_trials(strategy, space, self.asks))
            recovered = self.make(space, objectives, ())
            for trial in trials:
                # As it comes back from JSON.
                recovered.tell(replace(trial, note=json.loads(json.dumps(dict(trial.note)))))
            for seed in range(3):
                a = strategy.ask(2, np.random.default_rng(seed), [])
                b = recovered.ask(2, np.random.default_rng(seed), [])
                assert [p.genotype for p in a] == [p.genotype for p in b]

    def test_survives_every_state(self) -> None:
        for objectives in self.objectives():
            space = toy_space()
            strategy = self.make(space, objectives, (Limit("flops", 1e5, exact=True),))
            states = ("infeasible", "failed", "diverged", "out_of_memory", "timed_out", "stopped", "ok")
            for number in range(self.asks):
                proposal = strategy.ask(1, np.random.default_rng(number), [])[0]
                trial = answer(space, proposal, 0)
                state = cast(State, states[number % len(states)])
                metrics = trial.metrics if state in ("ok", "stopped") else {}
                violations = {"flops": 0.5} if state == "infeasible" else {}
                strategy.tell(replace(trial, number=number, state=state, metrics=metrics, violations=violations))

    def test_trials_that_it_did_not_propose(self) -> None:
        """A search can start from known architectures: their notes are not the strategy's."""
        states: tuple[State, ...] = ("ok", "ok", "stopped", "infeasible", "failed")
        for objectives in self.objectives():
            space = toy_space()
            rng = np.random.default_rng(3)
            known = [Proposal(space.sample(rng), {"start": f"known{i}", "match": "exact"}) for i in range(12)]
            trials: list[Trial] = []
            for number, proposal in enumerate(known[:-2]):
                state = states[number % len(states)]
                trial = replace(answer(space, proposal, 0), number=number, state=state)
                lost = state in ("failed", "infeasible")
                trials.append(replace(trial, metrics={}) if lost else trial)
            strategy, recovered = (self.make(space, objectives, ()) for _ in range(2))
            for trial in trials:
                strategy.tell(trial)
            pending = known[-2:]
            for number in range(len(trials), len(trials) + self.asks):
                asked = strategy.ask(1, np.random.default_rng([1, number]), pending)[0]
                space.check(asked.genotype)
                trials.append(answer(space, asked, number))
                strategy.tell(trials[-1])
            for trial in trials:
                recovered.tell(trial)
            a, b = (s.ask(2, np.random.default_rng(2), pending) for s in (strategy, recovered))
            assert [p.genotype for p in a] == [p.genotype for p in b]

    def test_parallel_asks_are_answered(self) -> None:
        for space, strategy, _ in self.runs():
            pending: list[Proposal] = []
            for step in range(8):
                fresh = strategy.ask(1, np.random.default_rng([9, step]), list(pending))
                pending += fresh
            assert len(pending) == 8
            assert len({space.architecture(p.genotype).key() for p in pending}) > 1

    def test_more_workers_than_were_told_are_answered(self) -> None:
        for objectives in self.objectives():
            space = toy_space()
            strategy, pending = self.make(space, objectives, ()), list[Proposal]()
            for step in range(self.asks):
                fresh = strategy.ask(1, np.random.default_rng([9, step]), list(pending))
                assert fresh or pending, "it proposed nothing to begin with"
                pending += fresh


class SpaceConformance:
    """What every space promises, at every input it says it takes."""

    inputs: Sequence[tuple[Shape, int]] = (((1, 8, 8), 10), ((3, 32, 32), 10), ((1, 28, 28), 3), ((3, 224, 224), 1000))
    """Input shapes and numbers of classes to build it for."""

    samples = 25

    def make(self, input_shape: Shape, classes: int) -> Space:
        """The space under test."""
        raise TypeError("define make(self, input_shape, classes)")

    def spaces(self) -> Iterator[tuple[Space, np.random.Generator]]:
        for shape, classes in self.inputs:
            yield self.make(shape, classes), np.random.default_rng(0)

    def test_random_architectures_are_sound(self) -> None:
        for space, rng in self.spaces():
            for _ in range(self.samples):
                architecture = space.architecture(space.sample(rng))
                graph = architecture.graph()
                graph.verify()
                assert graph.shapes[graph.output] == (space.classes,)
                assert architecture.analysis == analyse(graph)

    def test_genotypes_go_there_and_back(self) -> None:
        for space, rng in self.spaces():
            for _ in range(self.samples):
                genotype = space.sample(rng)
                assert space.check(genotype) == genotype
                assert space.decode(space.encode(genotype)) == genotype
                architecture = space.architecture(json.loads(json.dumps(genotype)))
                again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
                assert again.key() == architecture.key() == space.architecture(genotype).key()

    def test_mutation_and_crossover_stay_inside(self) -> None:
        for space, rng in self.spaces():
            parent = space.sample(rng)
            for _ in range(self.samples):
                child = space.mutate(parent, rng)
                assert child != parent
                parent = space.crossover(space.check(child), space.sample(rng), rng)
                space.check(parent)

    def test_neighbours_are_one_decision_away(self) -> None:
        for space, rng in self.spaces():
            genotype = space.sample(rng)
            for other in islice(space.neighbours(genotype), 50):
                changed = [path for path in genotype if path in other and other[path] != genotype[path]]
                assert len(changed) == 1
                space.check(other)

    def test_it_spans_a_range(self) -> None:
        for space, rng in self.spaces():
            architectures = [space.architecture(space.sample(rng)) for _ in range(self.samples)]
            assert len({a.key() for a in architectures}) > 1
            flops = [a.analysis.flops for a in architectures]
            assert max(flops) > min(flops)


class EvaluatorConformance:
    """What every evaluator promises."""

    clocked: tuple[str, ...] = ()
    """Metrics that a clock gives: no seed governs them."""

    def make(self) -> Evaluator:
        """The evaluator under test, cheap enough to be called a few times."""
        raise TypeError("define make(self)")

    def task(self) -> Task:
        """A task it can work on."""
        return Task.of("digits", limit=300)

    def space(self) -> Space:
        """A space for the task."""
        from nas.plugins import make_space

        task = self.task()
        return make_space("mobile", task.input_shape, task.classes, {})

    def architectures(self) -> Sequence[Architecture]:
        """Two different architectures of the space."""
        space, rng = self.space(), np.random.default_rng(0)
        return [space.architecture(space.sample(rng)) for _ in range(2)]

    @pytest.fixture
    def opened(self, tmp_path: Path) -> Evaluator:
        """The evaluator as a worker has it: it has come from another process."""
        evaluator: Any = self.make()
        if hasattr(evaluator, "use"):
            evaluator.use(self.space())
        if hasattr(evaluator, "prepare"):
            job = Preparation(evaluator, self.task(), tmp_path / "prepare", seed=0, device="cpu", threads=1)
            job.folder.mkdir()
            evaluator.prepared = job(lambda epoch, metrics, of: None)
        travelled: Evaluator = pickle.loads(pickle.dumps(evaluator))
        travelled.open(self.task(), device="cpu", threads=1)
        return travelled

    def _evaluate(self, evaluator: Evaluator, architecture: Architecture, folder: Path) -> dict[str, float]:
        folder.mkdir(exist_ok=True)
        report = Report(lambda epoch, metrics: None)
        return dict(evaluator.evaluate(architecture, seed=0, budget=evaluator.budget, workdir=folder, report=report))

    def test_gives_the_metrics_it_declares(self, opened: Evaluator, tmp_path: Path) -> None:
        assert opened.metrics
        for i, architecture in enumerate(self.architectures()):
            metrics = self._evaluate(opened, architecture, tmp_path / str(i))
            for metric in opened.metrics:
                assert math.isfinite(metrics[metric.name])

    def test_the_seed_governs_everything(self, opened: Evaluator, tmp_path: Path) -> None:
        first, other = self.architectures()
        a = self._evaluate(opened, first, tmp_path / "a")
        self._evaluate(opened, other, tmp_path / "b")  # what was evaluated before must not matter
        again = self._evaluate(opened, first, tmp_path / "c")
        assert again.keys() == a.keys()
        assert all(again[name] == value for name, value in a.items() if name not in self.clocked)

    def test_leaves_global_randomness_alone(self, opened: Evaluator, tmp_path: Path) -> None:
        import torch

        state, numbers = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
        self._evaluate(opened, self.architectures()[0], tmp_path / "a")
        assert torch.equal(torch.get_rng_state(), state)
        assert str(np.random.get_state()) == numbers  # noqa: NPY002

"""Evolution for several objectives, which uses what is known of a network before it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas import pareto
from nas.choices import Genotype
from nas.errors import ConfigError
from nas.space import Space
from nas.strategy import Candidate, Strategy
from nas.trial import Limit, Objective, Proposal, Trial

WORK = 400
"""Architectures that are looked at for one proposal, at most."""

PATIENCE = 20
"""Mutations without progress towards the limits, after which a candidate is given up."""

TRIES = 100
"""Mutations of parents that are drawn for one child that is new."""


@dataclass(frozen=True)
class _Child:
    """A candidate, and the objective values that it is expected to have (to be minimised)."""

    candidate: Candidate
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def genotype(self) -> Genotype:
        return self.candidate.genotype


class Evolution(Strategy):
    """Evolution over the whole archive, for any number of objectives.

    1. Initial design: of `pool` random candidates, the one furthest in the known costs from all others.
    2. A child is the uniform crossover of two members of the front, mutated with probability `mutation`.
    3. Of `offspring` children, the one that would add the most hypervolume if it were as good as its parents:
       objectives known beforehand are exact, measured ones are interpolated between the parents along the known
       costs (fitness inheritance, Smith et al. 1995; hypervolume as in SMS-EMOA, Beume et al. 2007).

    With nothing known beforehand all children tie and the first is taken: plain elitist evolution. Pending proposals
    count as trials with their expected values. No candidate is a duplicate, or outside a limit known beforehand.

    Args:
        population: trials of the initial design.
        offspring: children compared for each proposal.
        pool: candidates compared for each trial of the initial design.
        parents: the least number of parents; further fronts fill up a smaller first one.
        mutation: probability that a crossover is also mutated.

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *, population: int = 20,
        offspring: int = 8, pool: int = 32, parents: int = 5, mutation: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        sizes = {"population": population, "offspring": offspring, "pool": pool, "parents": parents}
        _check(sizes, {"population": 2, "offspring": 1, "pool": 1, "parents": 2})
        if not 0 <= mutation <= 1:
            raise ConfigError(f"strategy.mutation: expected a probability, 0 to 1, got {mutation}")
        self.population, self.offspring, self.pool = population, offspring, pool
        self.parents, self.mutation = parents, mutation
        self._known = np.array([o.exact for o in objectives])
        self._limits = [limit for limit in limits if limit.exact]
        self._archive: list[Genotype] = []
        self._rows: list[list[float]] = []
        self._told: set[str] = set()

    def tell(self, trial: Trial) -> None:
        self._told.add(trial.key)
        if trial.ok and trial.duplicate_of is None:
            # One that breaks a measured limit is worse than all that do not, and better the less it breaks it.
            penalty = 1e9 * sum(trial.violations.values())
            self._archive.append(trial.genotype)
            self._rows.append([o.cost(trial.metrics) + penalty for o in self.objectives])

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        asked: list[Proposal] = []
        for _ in range(n):
            child = self._propose(rng, [*pending, *asked])
            asked.append(Proposal(child.genotype, child.note))
        return asked

    def _propose(self, rng: np.random.Generator, pending: Sequence[Proposal]) -> _Child:
        waiting = [Candidate(self.space, p.genotype) for p in pending]
        taken = self._told.union(c.key for c in waiting if c.key)

        def sample() -> _Child:
            return _Child(Candidate(self.space, self.space.sample(rng)))

        if len(self._archive) + len(pending) < self.population or len(self._archive) < 2:
            candidates = self._candidates(self.pool if self._known.any() else 1, sample, taken, rng)
            scores = self._distances(candidates, waiting)
        else:
            parents = self._parents()
            candidates = self._candidates(self.offspring, lambda: self._child(parents, rng), taken, rng)
            scores = self._gains(candidates, [p.note["expected"] for p in pending if "expected" in p.note])
        if candidates:
            return candidates[int(np.argmax(scores))]
        # Nothing new is near: the search itself knows what to do with a duplicate.
        return next(iter(self._candidates(1, sample, taken, rng)), sample())

    def _candidates(
        self, count: int, make: Callable[[], _Child], taken: set[str], rng: np.random.Generator
    ) -> list[_Child]:
        """Up to `count` candidates that are new and within the limits; those outside are mutated down to them.

        Looks at `WORK` architectures at most: where hardly anything is new or feasible, it returns with what it has.
        """
        found: list[_Child] = []
        left = WORK
        while left > 0 and len(found) < count:
            child = make()
            excess, idle, left = child.candidate.excess(self._limits), 0, left - 1
            while excess and left > 0 and idle < PATIENCE:
                step = Candidate(self.space, self.space.mutate(child.genotype, rng))
                less, left = step.excess(self._limits), left - 1
                idle = 0 if less < excess else idle + 1
                if less <= excess:
                    child, excess = _Child(step, child.note), less
            if not excess and child.candidate.key not in taken:
                found.append(child)
        return found

    def _parents(self) -> NDArray[np.int64]:
        """Indices of the first front, and of the following ones while there are fewer than `parents`."""
        ranks = pareto.ranks(np.array(self._rows))
        last = np.sort(ranks)[min(self.parents, len(ranks)) - 1]
        return np.flatnonzero(ranks <= last)

    def _child(self, parents: NDArray[np.int64], rng: np.random.Generator) -> _Child:
        a, b = (int(i) for i in rng.choice(parents, 2, replace=False))
        genotype = self.space.crossover(self._archive[a], self._archive[b], rng)
        if rng.random() < self.mutation:
            genotype = self.space.mutate(genotype, rng)
        candidate = Candidate(self.space, genotype)
        return _Child(candidate, {"parents": [a, b], "expected": self._inherited(candidate, a, b)})

    def _inherited(self, candidate: Candidate, a: int, b: int) -> list[float]:
        """Known objectives exactly, the others from where the child's costs lie between its parents'."""
        first, second = np.array(self._rows[a]), np.array(self._rows[b])
        exact = self._exact(candidate)
        scale = np.maximum(abs(first), abs(second)) + 1e-12
        line, here = ((second - first) / scale)[self._known], ((exact - first) / scale)[self._known]
        share = np.clip(line @ here / (line @ line), 0, 1) if line.any() else 0.5
        expected: list[float] = np.where(self._known, exact, (1 - share) * first + share * second).tolist()
        return expected

    def _exact(self, candidate: Candidate) -> pareto.Array:
        """Objective values, 0 where they have to be measured."""
        costs = candidate.costs
        return np.array([o.cost(costs) if o.exact and o.metric in costs else 0.0 for o in self.objectives])

    def _gains(self, children: Sequence[_Child], pending: Iterable[Sequence[float]]) -> pareto.Array:
        """Hypervolume with each child, the front scaled to 0..1 and the reference at 1.1."""
        rows = np.array(self._rows)
        front = rows[pareto.ranks(rows) == 0]
        low, span = front.min(0), np.ptp(front, axis=0)
        span[span == 0] = 1
        scaled = (np.array([*front, *pending]) - low) / span
        points = [(np.array(child.note["expected"]) - low) / span for child in children]
        return np.array([pareto.hypervolume(np.vstack([scaled, p]), [1.1] * len(low)) for p in points])

    def _distances(self, children: Sequence[_Child], waiting: Sequence[Candidate]) -> pareto.Array:
        """Distance to the nearest trial in the known costs, scaled to 0..1; zeros where nothing is known."""
        others = [*(np.array(row) for row in self._rows), *(self._exact(c) for c in waiting)]
        if not self._known.any() or not others or not children:
            return np.zeros(max(1, len(children)))
        here = np.array([self._exact(child.candidate) for child in children])[:, self._known]
        there = np.array(others)[:, self._known]
        span = np.ptp(np.vstack([here, there]), axis=0)
        span[span == 0] = 1
        distances: pareto.Array = np.linalg.norm((here[:, None] - there) / span, axis=2).min(1)
        return distances


class RegularizedEvolution(Strategy):
    """Ageing evolution (Real et al. 2019): mutate the best of a sample, and let the oldest die.

    With several objectives the best of a sample is drawn from its first front. A child that has been evaluated
    before is mutated again, which on small spaces halves the evaluations needed.

    Args:
        population: how many live.
        sample: how many compete to be the parent, drawn with replacement.

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *, population: int = 20,
        sample: int = 5,
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        _check({"population": population, "sample": sample}, {"population": 1, "sample": 1})
        self.population, self.sample = population, sample
        self._living: list[Trial] = []
        self._told: set[str] = set()

    def tell(self, trial: Trial) -> None:
        self._told.add(trial.key)
        if trial.ok and trial.duplicate_of is None:
            self._living = [*self._living, trial][-self.population :]

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        return [Proposal(self._propose(rng, len(pending) + i)) for i in range(n)]

    def _propose(self, rng: np.random.Generator, pending: int) -> Genotype:
        genotype: Genotype = {}
        for _ in range(TRIES):
            if len(self._living) + pending < self.population or not self._living:
                genotype = self.space.sample(rng)
            else:
                genotype = self.space.mutate(self._winner(rng), rng)
            candidate = Candidate(self.space, genotype)
            if candidate.key not in self._told and not candidate.excess(self.limits):
                return genotype
        return genotype

    def _winner(self, rng: np.random.Generator) -> Genotype:
        drawn: list[Trial] = [self._living[i] for i in rng.integers(len(self._living), size=self.sample)]
        best = np.flatnonzero(pareto.ranks(pareto.costs(drawn, self.objectives)) == 0)
        return drawn[int(rng.choice(best))].genotype


def _check(values: Mapping[str, int], least: Mapping[str, int]) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < least[name]:
            raise ConfigError(f"strategy.{name}: expected a whole number of at least {least[name]}, got {value!r}")

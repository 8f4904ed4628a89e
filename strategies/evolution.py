"""Evolution for several objectives, which uses what is known of a network before it is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nas import pareto
from nas.choices import Genotype
from nas.errors import ConfigError
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy, informs, tier
from nas.trial import Limit, Objective, Proposal, Trial

WORK = 400
"""Architectures that are looked at for one proposal, at most."""

PATIENCE = 20
"""Mutations without progress towards the limits, after which a candidate is given up."""

LOOKS = 2
"""Architectures that are looked at for each of several candidates before one goes on with fewer."""

TRIES = 100
"""Mutations of parents that are drawn for one child that is new."""


class _Parent(NamedTuple):
    number: int
    genotype: Genotype
    values: list[float]  # of the objectives, to be minimised


class _Child(NamedTuple):
    """A candidate, and where it comes from."""

    candidate: Candidate
    parents: tuple[_Parent, ...] = ()


class Evolution(Strategy):
    """Elitist evolution for any number of objectives.

    1. Initial design: of `pool` random candidates, the one furthest in the known costs from all others.
    2. A child is the uniform crossover of two members of the front, mutated with probability `mutation`.
    3. Of `offspring` children, the one that would add the most hypervolume if it were as good as its parents:
       objectives known beforehand are exact, measured ones are interpolated between the parents along the known
       costs (fitness inheritance, Smith et al. 1995; hypervolume as in SMS-EMOA, Beume et al. 2007).

    With nothing known beforehand all children tie and the first is taken: plain elitist evolution. Pending proposals
    count as trials with their expected values. No candidate is a duplicate, or outside a limit known beforehand.
    Trials that were stopped early stand behind all others.

    Args:
        population: trials of the initial design.
        offspring: children compared for each proposal.
        pool: candidates compared for each trial of the initial design; fewer where more than `population` are pending.
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
        self._known = [i for i, o in enumerate(objectives) if o.exact and o.metric in space.exact]
        self._limits = [limit for limit in limits if limit.exact]
        self._told = 0
        self._design: list[list[float]] = []  # known costs of the first trials
        self._parents: list[_Parent] = []  # the first fronts
        self._values, self._tiers = np.empty((0, len(objectives))), np.empty(0)  # of the parents
        self._front = self._values
        self._seen, self._hopes = Seen(space), _Hopes()

    def tell(self, trial: Trial) -> None:
        self._seen.tell(trial)
        if not informs(trial, self.objectives):
            return
        # One that breaks a measured limit is worse than all that do not, and better the less it breaks it.
        penalty = 1e9 * sum(trial.violations.values())
        values = [o.cost(trial.metrics) + penalty for o in self.objectives]
        self._told += 1
        if self._told <= self.population:
            self._design.append([values[i] for i in self._known])
        self._enter(_Parent(trial.number, trial.genotype, values), tier(trial))

    def _enter(self, parent: _Parent, tier: float) -> None:
        """Parents are the first front, and the following ones while there are fewer than `parents`."""
        parents, values = [*self._parents, parent], np.vstack([self._values, parent.values])
        tiers = np.append(self._tiers, tier)
        ranks = pareto.ranks(values, tiers)
        kept = ranks <= np.sort(ranks)[min(self.parents, len(ranks)) - 1]
        self._parents = [p for p, stays in zip(parents, kept, strict=True) if stays]
        self._values, self._tiers = values[kept], tiers[kept]
        self._front = values[ranks == 0]

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        self._hopes.change(*self._seen.follow(pending))
        asked = []
        for _ in range(n):
            proposal, candidate = self._propose(rng)
            asked.append(proposal)
            self._seen.add(proposal, candidate)
            self._hopes.change([], [proposal])
        return asked

    def _propose(self, rng: np.random.Generator) -> tuple[Proposal, Candidate | None]:
        pending = len(self._seen.pending)

        def sample() -> _Child:
            return _Child(Candidate(self.space, self.space.sample(rng)))

        if self._told < 2 or self._told + pending < self.population:
            count = self.pool * self.population // max(self.population, pending) if self._known else 1
            found = self._candidates(max(1, count), sample, rng)
            scores = self._distances(found)
        else:
            found = self._candidates(self.offspring, lambda: self._child(rng), rng)
            scores = self._gains(found)
        if not found:  # nothing new is near: the search itself knows what to do with a duplicate
            return Proposal(self.space.sample(rng)), None
        best = found[int(np.argmax(scores))]
        return Proposal(best.candidate.genotype, self._note(best) if best.parents else {}), best.candidate

    def _candidates(self, count: int, make: Callable[[], _Child], rng: np.random.Generator) -> list[_Child]:
        """Up to `count` candidates that are new and within the limits; those outside are mutated until they are inside.

        Looks at `LOOKS * count` architectures; if none of them is new, at up to `WORK` more, further and further away.
        """
        found: list[_Child] = []
        looked = 0
        while len(found) < count and looked < (LOOKS * count if found else WORK):
            child, looked, idle = make(), looked + 1, 0
            excess, seen = self._judge(child.candidate)
            lost = not found and looked > count
            while (excess or (seen and lost)) and looked < WORK and idle < PATIENCE:
                change = 1 if excess else 2 + idle
                step = Candidate(self.space, self.space.mutate(child.candidate.genotype, rng, decisions=change))
                (less, again), looked = self._judge(step), looked + 1
                idle = 0 if less < excess else idle + 1
                if less <= excess:
                    child, excess, seen = child._replace(candidate=step), less, again
            if not excess and not seen:
                found.append(child)
                if lost:
                    break
        return found

    def _judge(self, candidate: Candidate) -> tuple[float, bool]:
        """How far it is outside the limits, and whether it was proposed before (then it is inside)."""
        seen = candidate in self._seen
        return 0.0 if seen else candidate.excess(self._limits), seen

    def _child(self, rng: np.random.Generator) -> _Child:
        i, j = _two(len(self._parents), rng)
        a, b = self._parents[i], self._parents[j]
        genotype = self.space.crossover(a.genotype, b.genotype, rng)
        if rng.random() < self.mutation:
            genotype = self.space.mutate(genotype, rng)
        return _Child(Candidate(self.space, genotype), (a, b))

    def _expected(self, child: _Child) -> list[float]:
        """Known objectives exactly, the others from where the child's costs lie between its parents'."""
        first, second = (parent.values for parent in child.parents)
        values = dict(zip(self._known, self._exact(child.candidate), strict=True))
        along = length = 0.0
        for i, value in values.items():
            scale = max(abs(first[i]), abs(second[i])) + 1e-12
            line = (second[i] - first[i]) / scale
            along += line * (value - first[i]) / scale
            length += line * line
        share = min(max(along / length, 0.0), 1.0) if length else 0.5
        return [values.get(i, (1 - share) * a + share * b) for i, (a, b) in enumerate(zip(first, second, strict=True))]

    def _exact(self, candidate: Candidate) -> list[float]:
        return [self.objectives[i].cost(candidate.costs) for i in self._known]

    def _note(self, child: _Child) -> dict[str, Any]:
        return {"parents": [parent.number for parent in child.parents], "expected": self._expected(child)}

    def _gains(self, children: Sequence[_Child]) -> pareto.Array:
        """Hypervolume that each child would add, the front scaled to 0..1 and the reference at 1.1."""
        expected = np.array([self._expected(child) for child in children]).reshape(-1, len(self.objectives))
        low, span = self._front.min(0), np.ptp(self._front, axis=0)
        span[span == 0] = 1
        values = np.vstack([self._front, *self._hopes.front])
        return pareto.gains((values - low) / span, (expected - low) / span, [1.1] * len(low))

    def _distances(self, children: Sequence[_Child]) -> pareto.Array:
        """Distance to the nearest trial in the known costs, scaled to 0..1; zeros where there is nothing to choose."""
        if len(children) < 2 or not (self._design or self._seen.pending):
            return np.zeros(len(children))
        here = np.array([self._exact(child.candidate) for child in children])
        there = np.array([*self._design, *(self._exact(c) for c in self._seen.waiting if c.costs)])
        span = np.ptp(np.vstack([here, there]), axis=0)
        span[span == 0] = 1
        distances: pareto.Array = np.linalg.norm((here[:, None] - there) / span, axis=2).min(1)
        return distances


class _Hopes:
    """Expected values of what is pending; `front` are the non-dominated ones."""

    def __init__(self) -> None:
        self.front: list[tuple[float, ...]] = []
        self._all: Counter[tuple[float, ...]] = Counter()

    def change(self, gone: Sequence[Proposal], came: Sequence[Proposal]) -> None:
        lost, new = (Counter(tuple(p.note["expected"]) for p in ps if "expected" in p.note) for ps in (gone, came))
        self._all.update(new)
        self._all.subtract(lost)
        ended = [values for values in lost if not self._all[values]]
        for values in ended:
            del self._all[values]
        # Only where one of the front is gone can one behind it come forward.
        candidates = self._all if not set(self.front).isdisjoint(ended) else {*self.front, *new}.intersection(self._all)
        rows = sorted(candidates)
        if rows != self.front:
            self.front = [row for row, rank in zip(rows, pareto.ranks(np.array(rows)), strict=True) if rank == 0]


def _two(n: int, rng: np.random.Generator) -> tuple[int, int]:
    """Two different numbers below n."""
    first, second = int(rng.random() * n), int(rng.random() * (n - 1))
    return first, second + (second >= first)


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
        self._seen = Seen(space)

    def tell(self, trial: Trial) -> None:
        self._seen.tell(trial)
        if informs(trial, self.objectives):
            self._living = [*self._living, trial][-self.population :]

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        self._seen.follow(pending)
        for _ in range(n):
            self._seen.add(Proposal(self._propose(rng, len(self._seen.pending))))
        return self._seen.pending[-n:]

    def _propose(self, rng: np.random.Generator, pending: int) -> Genotype:
        genotype: Genotype = {}
        for _ in range(TRIES):
            if len(self._living) + pending < self.population or not self._living:
                genotype = self.space.sample(rng)
            else:
                genotype = self.space.mutate(self._winner(rng), rng)
            candidate = Candidate(self.space, genotype)
            if not candidate.excess(self.limits) and candidate not in self._seen:
                return genotype
        return genotype

    def _winner(self, rng: np.random.Generator) -> Genotype:
        drawn: list[Trial] = [self._living[i] for i in rng.integers(len(self._living), size=self.sample)]
        ranks = pareto.ranks(pareto.costs(drawn, self.objectives), [tier(trial) for trial in drawn])
        best = np.flatnonzero(ranks == 0)
        return drawn[int(rng.choice(best))].genotype


def _check(values: Mapping[str, int], least: Mapping[str, int]) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or value < least[name]:
            raise ConfigError(f"strategy.{name}: expected a whole number of at least {least[name]}, got {value!r}")

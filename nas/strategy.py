"""The contract of a search strategy: ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from math import inf
from typing import ClassVar

import numpy as np

from nas.architecture import Architecture
from nas.choices import Genotype, Label
from nas.errors import GraphError
from nas.space import Space
from nas.trial import ANALYSIS_METRICS, Limit, Objective, Proposal, Trial

COSTS = tuple(metric.name for metric in ANALYSIS_METRICS)
"""What a `Candidate` knows."""

KNOWN = 65536
"""Keys that are remembered by genotype."""


class Strategy(ABC):
    """Proposes architectures and learns from what became of them.

    A subclass's `__init__` takes `(space, objectives, limits)` and its own options as keyword arguments with
    defaults; they are what `--set strategy.NAME=VALUE` sets.

    A strategy that needs a long job before the first proposal (a supernet, say) also has

    - `prepare(task, workdir, *, seed, device, report)`: run as one job, perhaps on another machine, and again only
      after an interruption, when it finds what it has left in `workdir`. `report(epoch, metrics, of)` shows the user
      how far it is; `of` may be left out. The strategy's attribute `prepared` becomes what it returns.
    - `recall(workdir)` and `keep(prepared, workdir)`, optional, called where the search runs: `keep` writes to the run
      folder what `prepare` returned, and `recall` reads it when the run goes on, so that nothing is done twice. None
      says that there is nothing yet.
    """

    multi_objective: ClassVar[bool] = True
    """Whether more than one objective makes sense."""

    def __init__(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> None:
        self.space = space  # one that brings its own puts that here; its `recipe` makes it again
        self.objectives = tuple(objectives)
        self.limits = tuple(limits)

    @abstractmethod
    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        """Up to `n` proposals; none to wait until something pending is told, or to end the search.

        Depends only on what was told, on `pending` (asked and not told yet, in order) and on `rng`; changes
        nothing. So a run can be resumed by telling its journal again.
        """

    @abstractmethod
    def tell(self, trial: Trial) -> None:
        """Learn from a finished proposal, whatever its state; called once per proposal. The only mutator."""


class Candidate:
    """A genotype with what is known of it before any evaluation, worked out when it is first asked for.

    `costs` are empty for an architecture that cannot be built. Costs take microseconds, `key` builds the graph.
    """

    def __init__(self, space: Space, genotype: Genotype) -> None:
        self.genotype = genotype
        self._space = space

    @cached_property
    def architecture(self) -> Architecture:
        """The architecture. Its parts may not fit together: then `costs` are empty."""
        return self._space.architecture(self.genotype)

    @cached_property
    def costs(self) -> Mapping[str, float]:
        """The exact metrics by name."""
        try:
            return self._space.costs(self.genotype)
        except GraphError:
            return {}

    @cached_property
    def key(self) -> str | None:
        """Structural hash, None if the architecture cannot be built."""
        return self.architecture.key() if self.costs else None

    def excess(self, limits: Sequence[Limit]) -> float:
        """How far it is outside the limits, relative to their bounds; infinite if it cannot be built."""
        return sum(limit.violation(self.costs) for limit in limits) if self.costs else inf


class Seen:
    """Networks that were proposed before: told ones, and pending ones.

    `candidate in seen` builds a graph only where a network with the same costs was proposed, and once per genotype.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.pending: list[Proposal] = []
        self._keys: set[str] = set()  # of told networks
        self._costs: set[tuple[float, ...]] = set()
        # Keys by genotype. The labels in reading order say all: each path follows from the labels before it.
        self._known: dict[tuple[Label, ...], str] = {}
        self._waiting: defaultdict[tuple[float, ...], list[Candidate]] = defaultdict(list)  # by their costs
        self._placed: dict[tuple[Label, ...], tuple[float, ...]] = {}  # costs of what is waiting

    def tell(self, trial: Trial) -> None:
        """Remember a told network."""
        known = all(name in trial.metrics for name in COSTS)
        self._costs.add(_costs(trial.metrics if known else Candidate(self.space, trial.genotype).costs))
        self._keys.add(trial.key)
        self._know(trial.genotype, trial.key)

    def _know(self, genotype: Genotype, key: str) -> None:
        if len(self._known) >= KNOWN:
            self._known.clear()
        self._known[tuple(genotype.values())] = key

    def follow(self, pending: Sequence[Proposal]) -> tuple[list[Proposal], list[Proposal]]:
        """Take over what is pending now; returns the proposals that are gone since the last time and those that came.

        Costs grow with what has changed, not with what is pending.
        """
        gone, came = changes(self.pending, pending)
        for proposal in gone:
            labels = tuple(proposal.genotype.values())
            costs = self._placed[labels]
            here = self._waiting[costs]
            del here[[c.genotype for c in here].index(proposal.genotype)]
            if not here:
                del self._waiting[costs]
            if all(c.genotype != proposal.genotype for c in here):
                del self._placed[labels]
        self.pending = list(pending)
        for proposal in came:
            self._wait(Candidate(self.space, proposal.genotype))
        return gone, came

    def add(self, proposal: Proposal, candidate: Candidate | None = None) -> None:
        """One more is pending; `candidate` is the same if there is one whose costs are known."""
        self.pending.append(proposal)
        self._wait(candidate or Candidate(self.space, proposal.genotype))

    @property
    def waiting(self) -> Iterator[Candidate]:
        """What is pending, as candidates."""
        for here in self._waiting.values():
            yield from here

    def _wait(self, candidate: Candidate) -> None:
        costs = self._placed[tuple(candidate.genotype.values())] = _costs(candidate.costs)
        self._waiting[costs].append(candidate)

    def __contains__(self, candidate: Candidate) -> bool:
        key = self._known.get(tuple(candidate.genotype.values()))
        if key is None:
            costs = _costs(candidate.costs)
            if costs not in self._costs and costs not in self._waiting:
                return False
            key = candidate.key or ""
            self._know(candidate.genotype, key)
        if key in self._keys or not self._waiting:
            return key in self._keys
        return any(key == other.key for other in self._waiting.get(_costs(candidate.costs), ()))


def _costs(costs: Mapping[str, float]) -> tuple[float, ...]:
    return tuple([costs.get(name, inf) for name in COSTS])


def changes(before: Sequence[Proposal], now: Sequence[Proposal]) -> tuple[list[Proposal], list[Proposal]]:
    """What is gone from the proposals `before`, and what came behind them; whole stretches are compared at once."""
    before, now = list(before), list(now)
    gone: list[Proposal] = []
    i = j = 0
    while i < len(before):
        step, grows = 1, True
        while step and i < len(before):
            if before[i : i + step] == now[j : j + step]:
                i, j, step = i + step, j + step, step * 2 if grows else step
            else:
                step, grows = step // 2, False
        if i < len(before):
            gone.append(before[i])
            i += 1
    return gone, now[j:]


def tier(trial: Trial) -> float:
    """Strategies rank by (budget, value): a smaller tier stands before a larger one, full evaluations before all."""
    return -inf if trial.ok else -(trial.budget or 0.0)


def informs(trial: Trial, objectives: Sequence[Objective]) -> bool:
    """Whether a trial was evaluated, if only in part, and says something of all objectives."""
    evaluated = trial.state in ("ok", "stopped") and trial.duplicate_of is None
    return evaluated and all(o.metric in trial.metrics for o in objectives)

"""The contract of a search strategy: ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from math import inf
from typing import ClassVar

import numpy as np

from nas.choices import Genotype
from nas.errors import GraphError
from nas.space import Space
from nas.trial import Limit, Objective, Proposal, Trial


class Strategy(ABC):
    """Proposes architectures and learns from what became of them.

    A subclass's `__init__` takes `(space, objectives, limits)` and its own options as keyword arguments with
    defaults; they are what `--set strategy.NAME=VALUE` sets.

    A strategy that needs a long job before the first proposal (a supernet, say) also has
    `prepare(task, workdir, *, seed, device, report)`; it is run once, and again only after an interruption.
    """

    multi_objective: ClassVar[bool] = True
    """Whether more than one objective makes sense."""

    def __init__(self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> None:
        self.space = space
        self.objectives = tuple(objectives)
        self.limits = tuple(limits)

    @abstractmethod
    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        """Up to `n` proposals (at least one).

        Depends only on what was told, on `pending` (asked and not told yet, in order) and on `rng`; changes
        nothing. So a run can be resumed by telling its journal again.
        """

    @abstractmethod
    def tell(self, trial: Trial) -> None:
        """Learn from a finished proposal, whatever its state; called once per proposal. The only mutator."""


class Candidate:
    """A genotype with what is known of it before any evaluation.

    `costs` are empty for an architecture that cannot be built. Costs take microseconds; `key` builds the graph, and is
    computed when first asked for.
    """

    def __init__(self, space: Space, genotype: Genotype) -> None:
        self.genotype = genotype
        self._architecture = space.architecture(genotype)
        self.costs: Mapping[str, float] = {}
        with suppress(GraphError):
            self.costs = self._architecture.metrics()

    @cached_property
    def key(self) -> str | None:
        """Structural hash, None if the architecture cannot be built."""
        return self._architecture.key() if self.costs else None

    def excess(self, limits: Sequence[Limit]) -> float:
        """How far it is outside the limits, relative to their bounds; infinite if it cannot be built."""
        return sum(limit.violation(self.costs) for limit in limits) if self.costs else inf

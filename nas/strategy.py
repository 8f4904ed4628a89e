"""The contract of a search strategy: ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Candidate:
    """A genotype with what is known of it before any evaluation.

    `key` is None, and `costs` empty, for an architecture that cannot be built.
    """

    genotype: Genotype
    key: str | None
    costs: Mapping[str, float]

    @classmethod
    def of(cls, space: Space, genotype: Genotype) -> Candidate:
        """Build the architecture's graph and count."""
        architecture = space.architecture(genotype)
        try:
            return cls(genotype, architecture.key(), architecture.metrics())
        except GraphError:
            return cls(genotype, None, {})

    def excess(self, limits: Sequence[Limit]) -> float:
        """How far it is outside the limits, relative to their bounds; infinite if it cannot be built."""
        return inf if self.key is None else sum(limit.violation(self.costs) for limit in limits)

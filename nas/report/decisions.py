"""Which decisions the good architectures of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from nas import pareto
from nas.choices import Label

if TYPE_CHECKING:
    from nas.session import Results

GOOD = 0.25  # of the trials, at least the front
SHUFFLES = 2000
ABSENT = "not there"


@dataclass(frozen=True)
class Shares:
    """How often each label of a decision was taken.

    Attributes:
        path: of the decision.
        labels: in the order of the space, or of first appearance; `ABSENT` where the decision was not active.
        good, all: share (0..1) of the good trials, and of all, with each label.
        distance: half the sum of the differences of the shares of the good and of the others (total variation, 0..1).
        chance: how often a random choice of as many good trials has at least that distance.
    """

    path: str
    labels: tuple[Label, ...]
    good: tuple[float, ...]
    all: tuple[float, ...]
    distance: float
    chance: float

    @property
    def names(self) -> list[str]:
        """The labels as text."""
        return ["none" if label is None else str(label) for label in self.labels]


@dataclass(frozen=True)
class Decisions:
    """The statistics of a run: `good` of `trials` architectures by rank, and each decision, the most telling first."""

    good: int
    trials: int
    shares: tuple[Shares, ...]


def decisions(results: Results, *, seed: int = 0) -> Decisions:
    """Compare the good architectures with the others.

    Good are the first quarter by non-dominated rank, where ranks are taken whole. Decisions that all took alike say
    nothing and are left out. The chance of each is by permutation; of twenty decisions one is below .05 by chance.
    """
    trials = [t for t in results.trials if t.ok and t.duplicate_of is None and not t.violations]
    if len(trials) < 4:
        return Decisions(0, len(trials), ())
    ranks = pareto.ranks(pareto.costs(trials, results.objectives))
    cut = np.sort(ranks)[ceil(GOOD * len(trials)) - 1]
    good = ranks <= cut
    if good.all():
        good = ranks < cut
    count = int(good.sum())
    rng = np.random.default_rng(seed)
    shuffled = np.array([rng.permutation(good) for _ in range(SHUFFLES)], dtype=np.float64)
    found = []
    for path in dict.fromkeys(path for trial in trials for path in trial.genotype):
        taken = [trial.genotype.get(path, ABSENT) for trial in trials]
        labels = _ordered(taken)
        if len(labels) < 2:
            continue
        one_hot = np.array([[label == other for other in labels] for label in taken], dtype=np.float64)
        distance = _distance(good[None].astype(np.float64), one_hot)[0]
        chance = float((_distance(shuffled, one_hot) >= distance - 1e-12).mean()) if count else 1.0
        shares = one_hot[good].mean(axis=0) if count else np.zeros(len(labels))
        found.append(
            Shares(path, labels, tuple(shares.tolist()), tuple(one_hot.mean(axis=0).tolist()), float(distance), chance)
        )
    found.sort(key=lambda each: (each.chance, -each.distance))
    return Decisions(count, len(trials), tuple(found))


def _ordered(taken: list[Label]) -> tuple[Label, ...]:
    """Numbers by size, other labels as they come, `ABSENT` last."""
    labels: Mapping[Label, None] = dict.fromkeys(label for label in taken if label != ABSENT)
    numbers = all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels)
    ordered = sorted(labels, key=lambda label: float(label or 0)) if numbers else list(labels)
    return (*ordered, *([ABSENT] if ABSENT in taken else []))


def _distance(good: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """Total variation between the good and the others, for each row of `good` (rows, trials)."""
    counts = good @ one_hot
    sizes = good.sum(axis=1, keepdims=True)
    others = one_hot.sum(axis=0) - counts
    total: np.ndarray = np.abs(counts / np.maximum(sizes, 1) - others / np.maximum(len(one_hot) - sizes, 1)).sum(axis=1)
    return total / 2

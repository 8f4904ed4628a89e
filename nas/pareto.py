"""Pareto fronts, non-dominated ranks, crowding and hypervolume. All objectives are minimised here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.trial import Objective, Trial

Array = NDArray[np.float64]


def costs(trials: Sequence[Trial], objectives: Sequence[Objective]) -> Array:
    """Objective values (trials, objectives), negated where larger is better."""
    values = [[o.cost(trial.metrics) for o in objectives] for trial in trials]
    return np.array(values, dtype=np.float64).reshape(len(trials), len(objectives))


def ranks(values: Array, tiers: Sequence[float] | Array | None = None) -> NDArray[np.int64]:
    """Non-dominated rank of each row, 0 for the front (Deb et al. 2002). Equal rows share a rank.

    With `tiers` (one number per row), all rows of a smaller tier stand before those of a larger one.
    """
    import moocore

    found = np.zeros(len(values), np.int64)
    if len(values) < 2:
        return found
    levels = np.zeros(1) if tiers is None else np.unique(tiers)
    if len(levels) == 1:
        return np.asarray(moocore.pareto_rank(values), np.int64)
    offset = 0
    for level in levels:
        here = np.asarray(tiers) == level
        found[here] = moocore.pareto_rank(values[here]) + offset
        offset = int(found[here].max()) + 1
    return found


def crowding(values: Array) -> Array:
    """Crowding distance of each row (Deb et al. 2002), infinite at the ends; objectives scaled to 0..1."""
    n, m = values.shape
    out = np.zeros(n)
    for j in range(m):
        order = np.argsort(values[:, j], kind="stable")
        column = values[order, j]
        span = column[-1] - column[0] if n else 0.0
        if span <= 0:
            continue
        out[order[[0, -1]]] = np.inf
        out[order[1:-1]] += (column[2:] - column[:-2]) / span
    return out


def front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The non-dominated trials among those that are `ok` and break no limit; best first objective first."""
    names = {o.metric for o in objectives}
    complete = [t for t in trials if t.ok and t.duplicate_of is None and not t.violations and names <= t.metrics.keys()]
    if not complete:
        return []
    values = costs(complete, objectives)
    best: dict[tuple[float, ...], Trial] = {}
    for trial, row, rank in zip(complete, values, ranks(values), strict=True):
        if rank == 0:
            best.setdefault(tuple(row), trial)
    return [best[row] for row in sorted(best)]


def hypervolume(values: Array, reference: Sequence[float]) -> float:
    """Volume dominated by the rows up to the reference point (Zitzler & Thiele 1998), by moocore."""
    import moocore

    inside = values[(values < np.asarray(reference)).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=np.asarray(reference))) if len(inside) else 0.0


def gains(values: Array, points: Array, reference: Sequence[float]) -> Array:
    """Hypervolume that each of `points` would add to that of `values`, each by itself."""
    if points.shape[1] != 2:
        before = hypervolume(values, reference)
        return np.array([hypervolume(np.vstack([values, point]), reference) - before for point in points])
    # Two objectives: from each step of the staircase to the next it is at one height, and what a point adds there is
    # the part of its box below that height.
    right, top = reference
    inside = values[(values < np.asarray(reference)).all(axis=1)]
    inside = inside[np.argsort(inside[:, 0])]
    edges = np.concatenate([[-np.inf], inside[:, 0], [right]])
    heights = np.minimum.accumulate(np.concatenate([[top], inside[:, 1]]))
    widths = np.maximum(edges[1:] - np.maximum(edges[:-1], points[:, :1]), 0)
    added: Array = (widths * np.maximum(heights - points[:, 1:], 0)).sum(axis=1)
    return added

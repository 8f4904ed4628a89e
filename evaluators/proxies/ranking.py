"""Ensembles: the logarithms of ranks, added up (Lee and Ham 2024, AZ-NAS): no scale matters, and the worst rank counts.

Within a population, `ensemble` ranks it. One architecture alone has no rank: `Reference` ranks it among architectures
scored before, always the same ones, so that its score depends on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

Table = dict[str, Array]
"""A column of scores for each proxy; NaN or infinite where one is not defined."""


def ensemble(table: Mapping[str, Array]) -> Array:
    """Sum over proxies of log(rank / n) (n,), rank n being the best, within the table; at most 0.

    Equal scores share a rank, their mean. Where a proxy is not defined, its rank is that of the worst.
    """
    total: Array = np.sum([np.log(_ranks(column) / len(column)) for column in table.values()], axis=0)
    return total


class Reference:
    """Scores of a reference population, among which others are ranked.

    Args:
        table: a column (n,) for each proxy; what is not finite ranks below everything.
    """

    def __init__(self, table: Mapping[str, Array]) -> None:
        self.table = table
        self._columns = {name: _Column(column) for name, column in table.items()}

    def score(self, scores: Mapping[str, float]) -> float:
        """Sum over the table's proxies of log(rank / n); above 0 only for one that surpasses the reference."""
        return float(sum([column.log_rank(scores[name]) for name, column in self._columns.items()]))


class _Column:
    """Log ranks that rise with the score everywhere: interpolated between the reference's, extrapolated beyond them."""

    def __init__(self, column: Array) -> None:
        finite = column[np.isfinite(column)]
        self.n = len(column)
        undefined = self.n - len(finite)
        self.least = (undefined + 1) / 2  # the rank of what is not defined
        self.values, first = np.unique(finite, return_index=True)
        self.ranks = _ranks(np.where(np.isfinite(column), column, -np.inf))[np.isfinite(column)][first]
        low, high = np.quantile(finite, [0.25, 0.75]) if len(finite) else (0.0, 1.0)
        self.spread = float(high - low) or abs(float(high)) or 1.0

    def log_rank(self, score: float) -> float:
        if not np.isfinite(score) or not len(self.values):
            return float(np.log(self.least / self.n))
        worst, best = self.values[0], self.values[-1]
        if score > best:  # ever more slowly
            return float(np.log(self.ranks[-1] / self.n) + np.log1p((score - best) / self.spread) / self.n)
        if score < worst:
            above = (self.ranks[0] - self.least) / (1 + (worst - score) / self.spread)
            return float(np.log((self.least + above) / self.n))
        return float(np.log(np.interp(score, self.values, self.ranks) / self.n))


def _ranks(column: Array) -> Array:
    """1 for the smallest; equal ones share the mean of theirs, and what is not finite counts as equal and smallest."""
    column = np.where(np.isfinite(column), column, -np.inf)
    _, where, counts = np.unique(column, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts - 1) / 2)[where]
    return ranks

"""How good a set of results is, on a scale that does not depend on units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas import pareto
from nas.pareto import Array
from nas.trial import Objective

POINTS = 0.1
"""Accuracies count from the best to this much below it: 10 points."""

CLOSE = 0.01
"""Part of an objective's window within which a value is as good as the best: 0.1 points of accuracy."""


class Measure:
    """Judges results against everything that there is.

    Each objective is scaled to 0 at its best value and 1 at the end of its window: 10 points below the best for
    accuracy, the worst value for any other. Results outside a window count for nothing.

    Args:
        objectives: what is good.
        everything: costs (n, objectives), to be minimised, of all that could be found.
    """

    def __init__(self, objectives: Sequence[Objective], everything: Array) -> None:
        self.objectives = tuple(objectives)
        self.low = everything.min(axis=0)
        ranges = np.ptp(everything, axis=0)
        windows = [POINTS if o.metric == "accuracy" else size for o, size in zip(objectives, ranges, strict=True)]
        self.span = np.where(np.array(windows) > 0, windows, 1.0)
        scaled = self.scale(everything)
        inside = scaled[(scaled <= 1).all(axis=1)]
        self._front = inside[pareto.ranks(inside) == 0]
        self._reference = np.ones(len(self.objectives))
        self._true = self._volume(scaled)

    def scale(self, costs: Array) -> Array:
        """Costs (n, objectives) in units of the windows; infinite for what is not known."""
        return np.asarray((costs - self.low) / self.span, dtype=np.float64)

    def _volume(self, scaled: Array) -> float:
        return pareto.hypervolume(scaled, self._reference.tolist())

    def hypervolume(self, costs: Array) -> float:
        """Hypervolume up to the windows' ends, relative to that of everything: 0 to 1."""
        return self._volume(self.scale(costs)) / self._true if self._true else 0.0

    def curve(self, costs: Array) -> Array:
        """The same after each row (n,); worked out only where it changes."""
        scaled, volumes = self.scale(costs), np.zeros(len(costs))
        volume, front = 0.0, scaled[:0]
        for i, row in enumerate(scaled):
            if (row < 1).all() and not (front <= row).all(axis=1).any():
                front = np.vstack([front[~(row <= front).all(axis=1)], row])
                volume = self._volume(front)
            volumes[i] = volume
        return volumes / self._true if self._true else volumes

    def igd_plus(self, costs: Array) -> float:
        """Mean distance by which the true front's points inside the windows are missed (Ishibuchi et al. 2015)."""
        import moocore

        scaled = self.scale(costs)
        known = scaled[np.isfinite(scaled).all(axis=1)]
        return float(moocore.igd_plus(known, ref=self._front)) if len(known) else float("inf")

    def reached(self, costs: Array) -> int | None:
        """Number of rows until the first objective is as good as its best (`CLOSE`), None if it never is."""
        close = np.flatnonzero(self.scale(costs)[:, 0] <= CLOSE * (1 + 1e-9))
        return int(close[0]) + 1 if len(close) else None

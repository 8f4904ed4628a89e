"""Asynchronous successive halving over epochs, for any number of objectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from nas import pareto
from nas.errors import ConfigError
from nas.trial import Objective


class Halving:
    """Decides at each rung whether a trial is worth more epochs (ASHA, Li et al. 2020, the variant that only stops).

    A trial goes on if fewer than 1/eta of all results at its rung so far, its own among them, are on a better
    non-dominated front (Deb et al. 2002). So with one objective the best 1/eta go on, and with several a front is
    never cut in two. Nobody is waited for: what comes first is judged by little, and rather goes on.

    What is compared is the mean of a trial's reports since half the rung's epochs: while the learning rate is high,
    single epochs say little (`benchmarks/halving.py`; compare training speed estimation, Ru et al. 2021).

    A decision depends on the order of reports alone, and is made once: a trial that is interrupted and reports
    again hears the same. Reporting a run's journal once more restores the state.

    Args:
        rungs: epochs at which to decide, ascending.
        eta: share of the results that goes on is 1/eta, at least 2.
        objectives: those that the reports have are compared, exact ones among them.
    """

    def __init__(self, rungs: Sequence[float], eta: float, objectives: Sequence[Objective]) -> None:
        self.rungs, self.eta = tuple(rungs), eta
        self._objectives = tuple(objectives)
        self._values: list[list[list[float]]] = [[] for _ in self.rungs]
        self._decided: dict[tuple[int, int], bool] = {}
        self._curves: dict[int, dict[float, Mapping[str, float]]] = {}

    def report(self, number: int, epoch: float, metrics: Mapping[str, float]) -> bool:
        """Whether trial `number` goes on after `epoch`, where it has `metrics`."""
        curve = self._curves.setdefault(number, {})
        curve[epoch] = metrics
        for index, rung in enumerate(self.rungs):
            if epoch < rung:
                break
            if (number, index) not in self._decided:
                recent = [curve[e] for e in curve if rung / 2 <= e <= epoch]
                self._decided[number, index] = self._decide(index, recent)
            if not self._decided[number, index]:
                return False
        return True

    def _decide(self, index: int, reports: Sequence[Mapping[str, float]]) -> bool:
        known = [o for o in self._objectives if all(o.metric in metrics for metrics in reports)]
        values = self._values[index]
        values.append([fmean([o.cost(metrics) for metrics in reports]) for o in known])
        ranks = pareto.ranks(np.array(values, dtype=np.float64).reshape(len(values), len(known)))
        return bool(np.count_nonzero(ranks < ranks[-1]) < len(values) / self.eta)


def check_rungs(rungs: Sequence[float], eta: float, budget: float | None) -> tuple[float, ...]:
    """The rungs at which there is something to decide: those below the full budget. Raises ConfigError."""
    if not rungs:
        return ()
    text = ",".join(f"{rung:g}" for rung in rungs)
    if list(rungs) != sorted(set(rungs)) or rungs[0] <= 0:
        raise ConfigError(f"rungs: expected epochs in ascending order such as 1,3,9, got {text}")
    if eta < 2:
        raise ConfigError(f"eta: expected a number of at least 2 (1/eta of the trials go on), got {eta:g}")
    if budget is None:
        raise ConfigError("rungs: this evaluator trains nothing for several epochs; leave --rungs away")
    if rungs[-1] > budget:
        raise ConfigError(
            f"rungs: {text} goes past the full budget of {budget:g} epochs; end it there, or train for longer with "
            f"--set evaluator.epochs={rungs[-1]:g}"
        )
    return tuple(float(rung) for rung in rungs if rung < budget)

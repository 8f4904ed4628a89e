"""Real runs beside each other: how far each has come, by evaluations and by the clock, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from nas.bench import report
from nas.bench.measure import Measure
from nas.bench.names import parse_budgets
from nas.errors import RunError
from nas.pareto import Array
from nas.search import summary
from nas.session import Results, load
from nas.trial import Trial, format_metric, format_number

ABOUT = ("data", "about", "input_shape", "classes")
"""What must be the same of two runs' data."""


@dataclass(frozen=True)
class Judged:
    """One run.

    Attributes:
        trials: those that count, in the order of telling.
        costs: of each (n, objectives), to be minimised; infinite where it failed or broke a limit.
        curve: hypervolume after each (n,).
    """

    results: Results
    trials: Sequence[Trial]
    costs: Array
    curve: Array

    @property
    def epochs(self) -> float | None:
        """Epochs trained in all, None where trials have no budget."""
        spent = [trial.budget for trial in self.trials if trial.budget is not None]
        return sum(spent) if spent else None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the search."""
        return max((trial.elapsed for trial in self.trials), default=0.0)


class Runs:
    """Runs of the same task and objectives, judged against all that they found together.

    Args:
        paths: run folders.
        budgets: numbers of evaluations to compare at; by default a quarter, half and all of the shortest run's.

    Raises RunError for a folder that holds no run, runs that cannot be compared, and where no trial succeeded.
    """

    def __init__(self, paths: Sequence[Path], budgets: str | Sequence[int] = ()) -> None:
        found = [load(path) for path in paths]
        for other in found[1:]:
            _check(found[0], other)
        self.objectives = found[0].objectives
        trials = [[trial for trial in results.trials if trial.evaluated] for results in found]
        costs = [self._costs(mine) for mine in trials]
        everything = np.vstack(costs)
        everything = everything[np.isfinite(everything).all(axis=1)]
        if not len(everything):
            raise RunError(f"no trial of {', '.join(map(str, paths))} succeeded yet: there is nothing to compare")
        self.measure = Measure(self.objectives, everything)
        self.runs = [Judged(*row, self.measure.curve(row[2])) for row in zip(found, trials, costs, strict=True)]
        shortest = min(len(mine) for mine in trials)
        parts = {max(1, shortest // part) for part in (4, 2, 1)} if shortest else set()
        self.budgets = parse_budgets(budgets) if budgets else sorted(parts)

    def _costs(self, trials: Sequence[Trial]) -> Array:
        good = {trial.number for trial in trials if trial.ok and not trial.violations}
        lost = [inf] * len(self.objectives)
        rows = [[o.cost(t.metrics) for o in self.objectives] if t.number in good else lost for t in trials]
        return np.array(rows, dtype=np.float64).reshape(len(trials), len(self.objectives))

    def to_json(self) -> dict[str, Any]:
        """All figures as data; hypervolume and IGD+ are relative to the front of all runs together."""
        return {
            "objectives": [{"metric": o.metric, "direction": o.direction} for o in self.objectives],
            "budgets": self.budgets,
            "runs": [self._row(run) for run in self.runs],
        }

    def _row(self, run: Judged) -> dict[str, Any]:
        known = run.costs[np.isfinite(run.costs).all(axis=1)]
        signs = [-1 if o.direction == "max" else 1 for o in self.objectives]
        best = known.min(axis=0) if len(known) else [None] * len(self.objectives)
        return {
            "run": str(run.results.path),
            "space": run.results.config.space,
            "strategy": run.results.config.strategy,
            "evaluations": len(run.trials),
            "states": summary(run.results.trials),
            "front": len(run.results.front),
            "best": {o.metric: None if value is None else sign * float(value)
                     for o, sign, value in zip(self.objectives, signs, best, strict=True)},
            "hypervolume": {str(b): float(run.curve[b - 1]) for b in self.budgets if b <= len(run.curve)},
            "hypervolume_at_end": float(run.curve[-1]) if len(run.curve) else 0.0,
            "igd_plus": self.measure.igd_plus(run.costs) if len(known) else None,
            "seconds": run.seconds,
            "epochs": run.epochs,
        }  # fmt: skip

    def print(self) -> None:
        """A table of the runs, best first."""
        rows = sorted(self.to_json()["runs"], key=lambda row: -row["hypervolume_at_end"])
        heads = ["run", "strategy", *(f"at {budget}" for budget in self.budgets), "at the end", "IGD+", "front",
                 *(f"best {o.metric}" for o in self.objectives), "trials", "epochs", "time"]  # fmt: skip
        print("hypervolume and IGD+ relative to the front of all these runs together")
        report.print_table("", heads, [self._cells(row) for row in rows])

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        others = [f"{n} {state}" for state, n in row["states"].items() if state != "ok"]
        volumes = [row["hypervolume"].get(str(budget)) for budget in self.budgets]
        metrics = self.runs[0].results.metrics
        measured = [*volumes, row["hypervolume_at_end"], row["igd_plus"]]
        return [
            row["run"],
            row["strategy"],
            *("-" if value is None else f"{value:.4f}" for value in measured),
            str(row["front"]),
            *("-" if value is None else format_metric(value, metrics.get(name)) for name, value in row["best"].items()),
            ", ".join([str(row["evaluations"]), *others]),
            "-" if row["epochs"] is None else format_number(row["epochs"]),
            _clock(row["seconds"]),
        ]

    def save(self, path: Path) -> Path:
        """Write the curves as a PNG: hypervolume over evaluations, and over wall-clock time."""
        by_trial, by_clock = [], []
        for run in self.runs:
            label = f"{run.results.path} ({run.results.config.strategy})"
            nothing = np.zeros(len(run.curve))
            elapsed = np.array([trial.elapsed / 60 for trial in run.trials])
            by_trial.append(report.Curve(label, np.arange(1.0, len(run.curve) + 1), run.curve, nothing))
            by_clock.append(report.Curve(label, elapsed, run.curve, nothing))
        panels = [("by evaluations", "evaluations", by_trial), ("by the clock", "minutes", by_clock)]
        return report.plot(panels, path, y="hypervolume / all runs' front", steps=True)


def _check(first: Results, other: Results) -> None:
    """Raises RunError, in one line, for what makes figures of two runs incomparable."""

    def facts(results: Results) -> dict[str, Any]:
        task = results.run.config.get("task", {})
        objectives = ",".join(f"{o.metric}:{o.direction}" for o in results.objectives)
        told = {name: task.get(name) for name in ABOUT}
        how = ", ".join(results.run.config.get("about", {}).values()) or "measured by the evaluator alone"
        return {"objectives": objectives, "evaluator": results.config.evaluator, "how": how, **told}

    ours, theirs = facts(first), facts(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise RunError(
                f"runs cannot be compared: {name} of {first.path} is {value}, of {other.path} it is {theirs[name]}"
            )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

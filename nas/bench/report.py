"""What a comparison says: rows for a CSV file, a table, JSON, and curves."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.bench.cells import Cell, Outcome
from nas.bench.methods import PEERS
from nas.bench.problem import Problem
from nas.pareto import Array

COLUMNS = ("table", "method", "seed", "budget", "evaluations", "hypervolume", "igd_plus", "best", "reached", "ms")


@dataclass(frozen=True)
class Row:
    """A method after a budget, one seed.

    Attributes:
        evaluations: how many there were: fewer than the budget where it had nothing more to propose.
        hypervolume: relative to the true front's; igd_plus: distance from it.
        best: of the first objective; nothing if all failed.
        reached: evaluations until within `CLOSE` of the first objective's best; nothing if it was not reached.
        ms: CPU milliseconds per proposal over the whole cell.
    """

    table: str
    method: str
    seed: int
    budget: int
    evaluations: int
    hypervolume: float
    igd_plus: float
    best: float | None
    reached: int | None
    ms: float


def rows(outcomes: Mapping[Cell, Outcome], problems: Mapping[str, Problem], budgets: Sequence[int]) -> list[Row]:
    """A row per cell and budget; none for a budget that the cell was not run to."""
    found = []
    for cell, outcome in outcomes.items():
        problem = problems[cell.source.name]
        measure, sign = problem.measure, -1 if problem.objectives[0].direction == "max" else 1
        reached = measure.reached(outcome.costs)
        for budget in budgets:
            if budget > outcome.asked:
                continue
            costs = outcome.costs[:budget]
            best = costs[:, 0].min() if len(costs) else inf
            found.append(
                Row(
                    problem.name, cell.method, cell.seed, budget, len(costs), measure.hypervolume(costs),
                    measure.igd_plus(costs), None if best == inf else sign * float(best),
                    reached if reached is not None and reached <= budget else None, outcome.milliseconds,
                )
            )  # fmt: skip
    return found


def to_csv(found: Sequence[Row]) -> str:
    """All rows as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in found:
        values = [getattr(row, name) for name in COLUMNS]
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    return out.getvalue()


# -- over seeds ----------------------------------------------------------------------------------------------------


def summary(found: Sequence[Row], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Per table and method: mean and standard error of each measure at each budget, and what it takes to get close.

    `reached` is the median and the quartiles over seeds of the evaluations that it took; a seed that never got there
    took more than all. Best methods first.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found:
        groups.setdefault((row.table, row.method), []).append(row)
    out = []
    for (table, method), mine in groups.items():
        measures: dict[str, dict[str, Any]] = {}
        for budget in budgets:
            here = [row for row in mine if row.budget == budget]
            if here:
                measures[str(budget)] = {
                    "seeds": len(here),
                    "hypervolume": _spread([row.hypervolume for row in here]),
                    "igd_plus": _spread([row.igd_plus for row in here]),
                    "best": _spread([row.best for row in here if row.best is not None]),
                }
        last = [row for row in mine if row.budget == max(row.budget for row in mine)]
        taken = sorted(inf if row.reached is None else float(row.reached) for row in last)
        out.append({
            "table": table, "method": method, "budgets": measures, "ms": median(row.ms for row in last),
            "reached": [_finite(value) for value in _quartiles(taken)],
        })  # fmt: skip
    order = {table: i for i, table in enumerate(dict.fromkeys(row.table for row in found))}
    return sorted(out, key=lambda entry: (order[entry["table"]], -_rank(entry, out)))


def _rank(entry: Mapping[str, Any], everything: Sequence[Mapping[str, Any]]) -> float:
    """Hypervolume at the largest budget that all methods of the table have."""
    shared = set.intersection(*(set(other["budgets"]) for other in everything if other["table"] == entry["table"]))
    budget = max(shared or entry["budgets"], key=int, default=None)
    return float(entry["budgets"][budget]["hypervolume"][0]) if budget else 0.0


def _spread(values: Sequence[float]) -> list[float]:
    """Mean and its standard error; nothing where there is no value."""
    if not values:
        return []
    error = float(np.std(values, ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    return [float(np.mean(values)), error]


def _quartiles(ordered: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile of sorted values that may be infinite."""
    half = len(ordered) // 2
    return [median(ordered[: half or 1]), median(ordered), median(ordered[-(half or 1) :])]


def _finite(value: float) -> float | None:
    return None if value == inf else value


def print_summary(
    entries: Sequence[Mapping[str, Any]], problems: Mapping[str, Problem], budgets: Sequence[int]
) -> None:
    """A table per measured table and measure."""
    for name, problem in problems.items():
        mine = [entry for entry in entries if entry["table"] == name]
        first = problem.objectives[0].metric
        many = len(problem.objectives) > 1
        seeds = max(measured["seeds"] for entry in mine for measured in entry["budgets"].values())
        objectives = ", ".join(o.metric for o in problem.objectives)
        print(f"{name}: {objectives}; mean of {seeds} seeds ± standard error")
        measures = {"hypervolume": "hypervolume, relative to the true front's", "igd_plus": "IGD+, 0 is the true front"}
        for measure, about in (measures if many else {"best": f"best {first}"}).items():
            _print(about, mine, measure, budgets, closeness=not many)
        print()


def _print(
    about: str, entries: Sequence[Mapping[str, Any]], measure: str, budgets: Sequence[int], *, closeness: bool
) -> None:
    heads = [*(f"at {budget}" for budget in budgets), *(["evaluations to the best"] if closeness else []), "ms"]
    lines = []
    for entry in entries:
        cells = [_cell(entry["budgets"].get(str(budget), {}).get(measure)) for budget in budgets]
        if closeness:
            cells.append(_reached(entry["reached"]))
        lines.append([entry["method"], *cells, f"{entry['ms']:.3g}"])
    print_table(about, ["", *heads], lines)


def print_table(about: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Text cells below their heads; the first column to the left, the others to the right."""
    if about:
        print(about)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    Console(width=None if sys.stdout.isatty() else 240).print(table, highlight=False)


def _cell(spread: Sequence[float] | None) -> str:
    return f"{spread[0]:.4f} ± {spread[1]:.4f}" if spread else "-"


def _reached(quartiles: Sequence[float | None]) -> str:
    low, middle, high = ("more" if value is None else f"{value:g}" for value in quartiles)
    return f"{middle} ({low} to {high})"


# -- curves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A line with its band: `y` and `error` (n,) over `x`; peers are dashed."""

    label: str
    x: Array
    y: Array
    error: Array
    dashed: bool = False


def curves(outcomes: Mapping[Cell, Outcome], problem: Problem, order: Sequence[str]) -> list[Curve]:
    """Hypervolume over evaluations, mean over seeds, by method."""
    found = []
    for method in order:
        mine = [o for cell, o in outcomes.items() if cell.method == method and cell.source.name == problem.name]
        length = min(outcome.asked for outcome in mine)
        lines = np.array([_padded(problem.measure.curve(outcome.costs[:length]), length) for outcome in mine])
        error = lines.std(axis=0, ddof=1) / sqrt(len(lines)) if len(lines) > 1 else np.zeros(length)
        found.append(Curve(method, np.arange(1.0, length + 1), lines.mean(axis=0), error, method in PEERS))
    return found


def _padded(values: Array, length: int) -> Array:
    """A search that ended early has what it has."""
    return np.concatenate([values, np.full(length - len(values), values[-1] if len(values) else 0.0)])


def plot(panels: Sequence[tuple[str, str, Sequence[Curve]]], path: Path, *, y: str, steps: bool = False) -> Path:
    """Write a PNG of panels side by side, each with a title, what x is, and its curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, x, lines) in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        for line in lines:
            drawn = axes.plot(
                line.x, line.y, label=line.label, linewidth=1.4, linestyle="--" if line.dashed else "-",
                drawstyle="steps-post" if steps else "default",
            )  # fmt: skip
            if line.error.any():
                low, high = line.y - line.error, line.y + line.error
                axes.fill_between(line.x, low, high, color=drawn[0].get_color(), alpha=0.15, linewidth=0)
        tails = [line.y[len(line.y) // 10 :] for line in lines]  # the very beginning would flatten the rest
        floor, ceiling = min(float(tail.min()) for tail in tails), max(float(tail.max()) for tail in tails)
        axes.set_ylim(floor - 0.02 * (ceiling - floor), ceiling + 0.05 * (ceiling - floor) + 1e-9)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(color="#e6eaee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)
    return path

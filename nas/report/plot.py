"""Figures as PNG: the Pareto front, hypervolume over evaluations, decisions of the good architectures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.trial import Trial, format_number, shown

if TYPE_CHECKING:
    from nas.report.decisions import Decisions
    from nas.report.volume import Volume
    from nas.session import Results

COLOURS = ("#1f6f8b", "#c8553d", "#6b7f3a", "#7b5ea7", "#b98b2f", "#3d5a80")
MOST = 8  # decisions in a figure


def called(paths: Sequence[Path]) -> list[str]:
    """What runs are called: their folders' names, or whole paths where two are called the same."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def save_front(results: Results, path: Path) -> Path:
    """The front of one run; see `save_fronts`."""
    return save_fronts([results], path)


def save_fronts(runs: Sequence[Results], path: Path) -> Path:
    """Write the fronts of runs as a PNG: the second objective on the x axis, the first on the y axis.

    With one objective, its value over the trials. Axes that span more than a factor of 20 are logarithmic.
    """
    figure, axes = _figure()
    first, names = runs[0].objectives[0].metric, [o.metric for o in runs[0].objectives]
    x_name = names[1] if len(names) > 1 else ""
    values: list[float] = []
    titles = called([results.path for results in runs])
    for results, title, colour in zip(runs, titles, _cycle(len(runs)), strict=True):
        done = [t for t in results.trials if t.ok and t.duplicate_of is None]
        name = f"{title}: " if len(runs) > 1 else ""
        rest = colour if len(runs) > 1 else "#b8c4d0"
        x, y = _points(done, x_name, first)
        axes.plot(x, y, "o", color=rest, markersize=5, alpha=0.4 if len(runs) > 1 else 1, mew=0,
                  label=f"{name}{len(done)} trials")  # fmt: skip
        values += x
        if len(names) > 1:
            x, y = _points(sorted(results.front, key=lambda t: t.metrics[x_name]), x_name, first)
            if len(names) == 2:
                axes.plot(x, y, drawstyle="steps-post", color=colour, linewidth=1.2)
            axes.plot(x, y, "o", color=colour, markersize=7, label=f"{name}{len(x)} on the front")
    if x_name:
        axes.set_xlabel(_label(runs[0], x_name))
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_ticks(runs[0], x_name))
        axes.legend(frameon=False, loc="lower right")
    else:
        axes.set_xlabel("trial")
    axes.set_ylabel(_label(runs[0], first))
    axes.yaxis.set_major_formatter(_ticks(runs[0], first))
    config = runs[0].config
    judged = runs[0].run.config["task"]["data"] or config.evaluator
    axes.set_title(f"{config.space}, {', '.join(r.config.strategy for r in runs)}, {judged}", loc="left", fontsize=10)
    return _saved(figure, path)


def save_volumes(curves: Sequence[Volume], path: Path) -> Path:
    """Write hypervolume over evaluations as a PNG; random search dashed, with its standard error."""
    figure, axes = _figure()
    for curve, colour in zip(curves, _cycle(len(curves)), strict=True):
        x, random = np.arange(1, len(curve.mean) + 1), curve.strategy == "random"
        colour = "#8a94a0" if random else colour
        axes.step(x, curve.mean, where="post", color=colour, linestyle="--" if random else "-", label=curve.label)
        if curve.error.any():
            low, high = curve.mean - curve.error, curve.mean + curve.error
            axes.fill_between(x, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("hypervolume, relative to the front of all")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    return _saved(figure, path)


def save_decisions(told: Decisions, path: Path) -> Path:
    """Write the most telling decisions as a PNG: shares of their options among the good, and among all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = told.shares[:MOST]
    lines = sum(len(each.labels) for each in shown)
    figure = Figure(figsize=(7, 1 + 0.19 * lines + 0.3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(shown), 1, squeeze=False, sharex=True, height_ratios=[len(s.labels) for s in shown])
    for axes, shares in zip(panels[:, 0], shown, strict=True):
        y = np.arange(len(shares.labels))
        axes.barh(y - 0.18, shares.good, height=0.34, color=COLOURS[0])
        axes.barh(y + 0.18, shares.all, height=0.34, color="#c3ccd5")
        axes.set_yticks(y, shares.names, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_title(f"{shares.path}  (chance {shares.chance:.3f})", loc="left", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xlabel(f"share among the {told.good} best-ranked (blue) and all {told.trials} (grey)", fontsize=9)
    panels[-1, 0].xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    figure.savefig(path, dpi=150)
    return path


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _saved(figure: Any, path: Path) -> Path:
    (axes,) = figure.axes
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def labels(results: Results) -> dict[str, str]:
    """What an axis with each metric is called."""
    return {name: _label(results, name) for name in results.metrics}


def _label(results: Results, name: str) -> str:
    metric = results.metrics.get(name)
    unit = shown(metric)[0] or (metric.unit if metric is not None else "")
    return {"flops": "FLOPs (multiply-adds)"}.get(name, f"{name} ({unit})" if unit else name)


def _ticks(results: Results, name: str) -> Callable[[float, float], str]:
    factor = shown(results.metrics.get(name))[1]
    return lambda value, _: format_number(value * factor)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _points(trials: Sequence[Trial], x: str, y: str) -> tuple[list[float], list[float]]:
    """Values of two metrics; the trials' numbers where x is not named."""
    return [t.metrics[x] if x else float(t.number) for t in trials], [t.metrics[y] for t in trials]

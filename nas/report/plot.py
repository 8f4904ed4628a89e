"""The Pareto front as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nas.trial import format_number, shown

if TYPE_CHECKING:
    from nas.session import Results


def save_front(results: Results, path: Path) -> Path:
    """Write the front as a PNG: the second objective on the x axis, the first on the y axis.

    With one objective, its value over the trials. Axes that span more than a factor of 20 are logarithmic.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    done = [t for t in results.trials if t.ok and t.duplicate_of is None]
    first = results.objectives[0].metric
    if len(results.objectives) == 1:
        axes.plot([t.number for t in done], [t.metrics[first] for t in done], "o", color="#b8c4d0", markersize=5)
        x_name = "trial"
        axes.set_xlabel("trial")
    else:
        x_name = results.objectives[1].metric
        axes.plot(*_points(done, x_name, first), "o", color="#b8c4d0", markersize=5, label=f"{len(done)} trials")
        chosen = sorted(results.front, key=lambda t: t.metrics[x_name])
        x, y = _points(chosen, x_name, first)
        if len(results.objectives) == 2:
            axes.plot(x, y, drawstyle="steps-post", color="#1f6f8b", linewidth=1.2)
        axes.plot(x, y, "o", color="#1f6f8b", markersize=7, label=f"{len(chosen)} on the front")
        axes.set_xlabel(_label(results, x_name))
        values = [t.metrics[x_name] for t in done]
        if values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_ticks(results, x_name))
        axes.legend(frameon=False, loc="lower right")
    axes.set_ylabel(_label(results, first))
    axes.yaxis.set_major_formatter(_ticks(results, first))
    judged = results.run.config["task"]["data"] or results.config.evaluator
    axes.set_title(f"{results.config.space}, {results.config.strategy}, {judged}", loc="left", fontsize=10)
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def _label(results: Results, name: str) -> str:
    metric = results.metrics.get(name)
    unit = shown(metric)[0] or (metric.unit if metric is not None else "")
    return {"flops": "FLOPs (multiply-adds)"}.get(name, f"{name} ({unit})" if unit else name)


def _ticks(results: Results, name: str) -> Callable[[float, float], str]:
    factor = shown(results.metrics.get(name))[1]
    return lambda value, _: format_number(value * factor)


def _points(trials: list, x: str, y: str) -> tuple[list[float], list[float]]:  # type: ignore[type-arg]
    return [t.metrics[x] for t in trials], [t.metrics[y] for t in trials]

"""Spaces side by side: quantiles as a table, distributions as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nas.profile import QUANTILES, Profile
from nas.report.tables import print_table
from nas.trial import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f6f8b", "#d98032")
TITLES = {"flops": "FLOPs (multiply-adds)", "params": "parameters", "memory": "activation memory (bytes)",
          "depth": "depth (weight layers)", "field": "receptive field (pixels)"}  # fmt: skip
COLUMNS = 3
"""Panels beside each other."""


def print_profiles(profiles: Sequence[Profile]) -> None:
    """Sizes, then the quantiles of each metric, spaces below each other."""
    for profile in profiles:
        failed = f", {profile.failed} of them failed" if profile.failed else ""
        drawn = f"{profile.samples:,} {'at random' if profile.random else 'evaluated by a search'}{failed}"
        print(f"{profile.name}: {profile.size:,} genotypes ({profile.size:.2e}); {drawn}")
    rows = [
        [name, *([profile.name] if len(profiles) > 1 else []), *profile.quantiles(name).values()]
        for name in _metrics(profiles)
        for profile in profiles
        if name in profile.values
    ]
    print_table(["metric", *(["space"] if len(profiles) > 1 else []), *QUANTILES, "mean"], rows)
    print("flops: multiply-adds of convolutions and linear layers; memory: bytes; field: receptive field in pixels")


def save_profiles(profiles: Sequence[Profile], path: Path) -> Path:
    """Write the empirical distribution functions as a PNG: for each value the share of networks that have at most it.

    Axes that span more than a factor of 20 are logarithmic.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = _metrics(profiles)
    rows = -(-len(metrics) // COLUMNS)
    columns = min(COLUMNS, len(metrics))
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.5 + 0.2 * len(profiles)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, name in zip(panels, metrics, strict=False):
        _draw(axes, name, profiles)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("share of networks")
    handles, labels = panels[0].get_legend_handles_labels()
    if len(handles) < len(profiles):  # a metric that only one of them has
        handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[0]))
    figure.legend(handles, labels, loc="outside upper left", frameon=False, fontsize=10)
    figure.savefig(path, dpi=150)
    return path


def _metrics(profiles: Sequence[Profile]) -> list[str]:
    return list(dict.fromkeys(name for profile in profiles for name in profile.values))


def _draw(axes: Axes, name: str, profiles: Sequence[Profile]) -> None:
    shown = [(p, colour) for p, colour in zip(profiles, COLOURS, strict=False) if name in p.values]
    for profile, colour in shown:
        values = profile.values[name]
        shares = np.arange(1, len(values) + 1) / len(values)
        how = "at random" if profile.random else "by a search"
        label = f"{profile.name}: {profile.size:.3g} genotypes, {profile.samples:,} {how}"
        axes.plot([values[0], *values], [0, *shares], drawstyle="steps-post", color=colour, linewidth=1.6, label=label)
        axes.plot(np.median(values), 0.5, "o", color=colour, markersize=5)
    low, high = min(p.values[name][0] for p, _ in shown), max(p.values[name][-1] for p, _ in shown)
    if low > 0 and high > 20 * low:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: format_number(value))
    unit = shown[0][0].units[name]
    axes.set_title(TITLES.get(name, f"{name} ({unit})" if unit else name), loc="left", fontsize=10)
    axes.set_ylim(0, 1.02)
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)

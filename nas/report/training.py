"""Full trainings as they are watched, and what came of them: a bar, a table beside the search, a picture."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from nas.report.progress import REMEMBERED, _clock
from nas.report.tables import print_table
from nas.training import Job

TRAIN, VALIDATION = "#8fa3b5", "#1f6f8b"


class Watch:
    """Trainings one after the other: on a terminal one bar for all of them, elsewhere a line per epoch.

    Everything goes to standard error, so that what is printed at the end can be piped.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs, self._total = jobs, sum(job.recipe.epochs for job in jobs)
        self._console = Console(stderr=True)
        columns = (BarColumn(12), TextColumn("{task.description}"))
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("reading the images", total=self._total)
        self._before, self._said, self._heard = 0, "", False
        self._since, self._from, self._last = time.monotonic(), 0.0, 0.0

    @contextmanager
    def showing(self) -> Iterator[None]:
        """While this lasts the bar is there."""
        with self._bar:
            yield

    def begin(self, job: Job) -> None:
        """The next training."""
        self._job, self._said, self._last, self._heard = job, "", time.monotonic(), False
        self._show(0.0, None)

    def end(self) -> None:
        """It is done."""
        self._before += self._job.recipe.epochs
        if not self._heard:  # it had been done before
            self._since, self._from = time.monotonic(), self._before

    def on_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """After an epoch."""
        now = time.monotonic()
        if now - self._last < REMEMBERED:  # not trained, but remembered from before an interruption
            self._since, self._from = now, self._before + epoch
        self._last, self._heard = now, True
        self._said = f"val {metrics['accuracy']:.1%}"
        self._show(epoch, metrics["train_loss"])
        if not self._console.is_terminal:
            print(self._words(epoch, metrics["train_loss"]), file=sys.stderr, flush=True)

    def on_look(self, epoch: float, loss: float) -> None:
        """Within an epoch."""
        self._show(epoch, loss)

    def _show(self, epoch: float, loss: float | None) -> None:
        self._bar.update(self._task, completed=self._before + epoch, description=self._words(epoch, loss))

    def _words(self, epoch: float, loss: float | None) -> str:
        job = self._job
        at = f"{epoch:g}" if epoch == int(epoch) else f"{epoch:.1f}"
        parts = [f"{job.name} seed {job.seed}", f"epoch {at}/{job.recipe.epochs}"]
        parts += [] if loss is None else [f"loss {loss:.3f}"]
        parts += [self._said] if self._said else []
        done = self._before + epoch
        if done > self._from:
            left = (time.monotonic() - self._since) / (done - self._from) * (self._total - done)
            parts.append(f"{_clock(left)} left")
        return "  ".join(parts)


# -- what came of it ---------------------------------------------------------------------------------------------------


def by_architecture(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The trainings of each architecture, in the order given."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        found.setdefault(result["name"], []).append(result)
    return found


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that was measured, and how well the search ranked what was trained."""
    groups = by_architecture(results)
    pairs = [
        (group[0]["searched"]["accuracy"], mean(r["test"]["accuracy"] for r in group))
        for group in groups.values()
        if "accuracy" in group[0]["searched"]
    ]
    ranks = {"kendall": kendall(pairs), "architectures": len(pairs)} if len(pairs) > 2 else None
    return {"results": list(results), "rank_correlation": ranks}


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Kendall's tau-b (1945) of two rankings, which allows for ties; 0 where one of them is all ties."""
    agree, first, second = 0, 0, 0
    for i, (a, b) in enumerate(pairs):
        for c, d in pairs[:i]:
            one, other = (a > c) - (a < c), (b > d) - (b < d)
            agree, first, second = agree + one * other, first + abs(one), second + abs(other)
    return float(agree / (first * second) ** 0.5) if first and second else 0.0


def print_results(results: Sequence[Mapping[str, Any]], about: str) -> None:
    """A row per architecture: what the search said, and what the trained network is."""
    groups = by_architecture(results)
    seeds = max(len(group) for group in groups.values())
    rows = []
    for name, group in groups.items():
        first = group[0]
        searched = first["searched"].get("accuracy")
        rows.append([
            name, "" if searched is None else f"{searched:.2%}", _spread([r["validation"]["accuracy"] for r in group]),
            _spread([r["test"]["accuracy"] for r in group]), f"{first['params']:,.0f}", f"{first['flops']:,.0f}",
            f"{min(r['latency_ms'] for r in group):.2f} ms", _clock(mean(r["seconds"] for r in group)),
        ])  # fmt: skip
    print(about)
    print_table(["network", "searched", "validation", "test", "params", "FLOPs", "latency", "time"], rows)
    first = results[0]
    many = f"; mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    epochs = f"{first['epochs']} epoch{'s' * (first['epochs'] != 1)}"
    print(f"accuracy in the search and after {epochs}, test on {first['test_images']:,} images{many}")
    print(f"FLOPs: multiply-adds of convolutions and linear layers; latency: {first['latency_of']}")
    ranks = summary(results)["rank_correlation"]
    if ranks:
        print(
            f"rank correlation of search and test (Kendall): {ranks['kendall']:.2f}, {ranks['architectures']} networks"
        )


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def save_curve(curve: Path, title: str, path: Path) -> Path:
    """Losses and accuracy over the epochs, from a training's CSV file, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from nas.torch.job import read_curve

    rows = read_curve(curve)
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["train_loss"] for row in rows], color=TRAIN, label="training")
    left.plot(epochs, [row["loss"] for row in rows], color=VALIDATION, label="validation")
    left.set_ylabel("loss")
    left.legend(frameon=False)
    right.plot(epochs, [100 * row["accuracy"] for row in rows], color=VALIDATION)
    right.set_ylabel("validation accuracy (%)")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(color="#e6eaee", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_title(title, loc="left", fontsize=10)
    figure.savefig(path, dpi=150)
    return path

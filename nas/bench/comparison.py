"""The comparison as a command: which methods, tables and seeds; progress; and what is written."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nas.bench import report
from nas.bench.cells import Cell, Outcome, run_all
from nas.bench.methods import PEERS, fitting, installed, peers, unfit
from nas.bench.names import names, parse_budgets
from nas.bench.problem import Problem, Source
from nas.errors import ConfigError
from nas.store import write_atomically


@dataclass(frozen=True)
class Bench:
    """What to compare; the defaults are those of `nas bench`.

    Args:
        tables: shipped tables by name, or CSV files (`nas.bench.problem`).
        spaces: of those that are files, in turn; one is for all of them.
        strategies: separated by commas, with options in brackets: `evolution,evolution(population=20)`; None for all
            that fit.
        peers: `all` that are installed, `none`, or names separated by commas.
        objectives: such as `accuracy,flops`.
        budgets: numbers of evaluations, as text or one by one.
        seeds, first_seed: how many, and the first.
        distinct: whether a network that was evaluated before is answered for nothing and not counted.
        out: folder for everything; what has ended is kept there, and the same call goes on.
        workers: processes; None for one per core.

    Raises ConfigError for what does not fit together.
    """

    tables: Sequence[str] = ("nas-bench-macro",)
    spaces: Sequence[str] = ()
    strategies: str | None = None
    peers: str = "all"
    objectives: str = "accuracy,flops"
    budgets: str | Sequence[int] = "50,100,200"
    seeds: int = 50
    first_seed: int = 0
    distinct: bool = False
    out: Path = Path("runs/bench")
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("seeds", self.seeds, 1), ("first-seed", self.first_seed, 0),
                                   ("workers", self.workers, 1)):  # fmt: skip
            if value is not None and value < least:
                raise ConfigError(f"--{name}: expected a whole number of at least {least}, got {value}")
        parse_budgets(self.budgets)

    @property
    def steps(self) -> list[int]:
        """The budgets as numbers."""
        return parse_budgets(self.budgets)

    def sources(self) -> list[Source]:
        """The tables. Raises ConfigError."""
        own = [table for table in self.tables if Path(table).suffix in (".csv", ".gz")]
        spaces = list(self.spaces) * max(1, len(own)) if len(self.spaces) == 1 else list(self.spaces)
        if len(spaces) != len(own):
            raise ConfigError(
                f"--space: expected one for each --table that is a file ({len(own)}), or one for all, got {len(spaces)}"
            )
        found = [Source(t, spaces[own.index(t)] if t in own else None, self.objectives) for t in self.tables]
        if len({source.name for source in found}) < len(found):
            raise ConfigError(f"--table: two are called {found[0].name!r}; rename a file")
        return found

    def methods(self, problem: Problem) -> tuple[list[str], list[str]]:
        """Strategies and peers for a problem; and what is left out, a line each. Raises NasError."""
        notes = []
        if self.strategies is None:
            ours, others = fitting(problem)
            notes = [f"{problem.name}: without {name}, {why}" for name, why in others.items()]
        else:
            ours = names(self.strategies)
            reasons = {name: unfit(name, problem) for name in ours if name not in PEERS}
            bad = next((f"{name} cannot be compared here, {why}" for name, why in reasons.items() if why), None)
            if bad:
                raise ConfigError(f"--strategies: {bad}")
        chosen = {"all": installed(), "none": []}.get(self.peers)
        more = peers(names(self.peers)) if chosen is None else chosen
        return list(dict.fromkeys([*ours, *more])), notes


@dataclass(frozen=True)
class Comparison:
    """What came of it: rows per seed and budget, and their summary."""

    bench: Bench
    problems: dict[str, Problem]
    outcomes: dict[Cell, Outcome]
    rows: list[report.Row]
    summary: list[dict[str, Any]]

    def print(self) -> None:
        """The tables on the terminal."""
        report.print_summary(self.summary, self.problems, self.bench.steps)

    def to_json(self) -> dict[str, Any]:
        """The summary as data."""
        bench = self.bench
        return {
            "objectives": bench.objectives.split(","),
            "seeds": bench.seeds,
            "first_seed": bench.first_seed,
            "distinct": bench.distinct,
            "methods": self.summary,
        }

    def save(self) -> list[Path]:
        """Write `results.csv`, `summary.json` and a picture per table; returns their paths."""
        out = self.bench.out
        write_atomically(out / "results.csv", report.to_csv(self.rows))
        write_atomically(out / "summary.json", json.dumps(self.to_json(), indent=1) + "\n")
        saved = [out / "results.csv", out / "summary.json"]
        for name, problem in self.problems.items():
            order = [entry["method"] for entry in self.summary if entry["table"] == name]
            lines = report.curves(self.outcomes, problem, order)
            title = f"{name}: {self.bench.objectives}, mean of {self.bench.seeds} seeds"
            y = "hypervolume / true front's" if len(problem.objectives) > 1 else "best, 1 is the table's"
            saved.append(report.plot([(title, "evaluations", lines)], out / f"{name}.png", y=y))
        return saved


def compare(bench: Bench) -> Comparison:
    """Run what is not there yet, showing progress on standard error, and write all files. Raises NasError."""
    console = Console(stderr=True)
    sources = bench.sources()
    problems = {source: source.load() for source in sources}

    def note(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    chosen = {source: bench.methods(problem) for source, problem in problems.items()}
    for _, notes in chosen.values():
        for line in notes:
            note(line)
    bench.out.mkdir(parents=True, exist_ok=True)
    seeds = range(bench.first_seed, bench.first_seed + bench.seeds)
    cells = [
        Cell(source, name, seed, max(bench.steps), bench.distinct)
        for seed in seeds  # outermost, so that an interrupted comparison has all methods
        for source in sources
        for name in chosen[source][0]
    ]
    columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    workers = bench.workers or len(os.sched_getaffinity(0))
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=len(cells))

            def on_cell(cell: Cell) -> None:
                progress.update(task, advance=1, description=f"{cell.source.name} {cell.method} seed {cell.seed}")

            outcomes = run_all(cells, bench.out, workers=workers, problems=problems, on_cell=on_cell)
    except KeyboardInterrupt:
        note(f"stopped; what has ended is kept in {bench.out}, the same command goes on")
        raise
    named = {source.name: problem for source, problem in problems.items()}
    ordered = {cell: outcomes[cell] for cell in sorted(cells, key=lambda c: (c.source.name, c.method, c.seed))}
    found = report.rows(ordered, named, bench.steps)
    comparison = Comparison(bench, named, ordered, found, report.summary(found, bench.steps))
    comparison.save()
    return comparison

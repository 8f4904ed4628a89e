"""A table of measured results as a problem that strategies are compared on.

A table is a CSV file (`.csv`, or `.csv.gz`) with a header and a row per network:

- `code`: the numbers of `space.encode`, a digit each (`22212220`) or separated by spaces (`2 10 -1 0`); or
  `genotype`: label by decision as JSON, as in a run's journal.
- every other column is a metric. `accuracy0`, `accuracy1`, ... are repeated trainings, of which the mean is
  `accuracy`. Accuracies are in 0..1, or in percent if one is above 1.
- columns called `flops`, `params`, `memory` or `depth` are not read: the analysis says them exactly.

Rows that are the same network are averaged. A network that the table does not have is a failed evaluation.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from nas.bench.measure import Measure
from nas.bench.names import Named
from nas.choices import Genotype
from nas.errors import ConfigError, GraphError, NasError
from nas.plugins import defaults_of, find, make_evaluator, make_space
from nas.space import Space
from nas.trial import ANALYSIS_METRICS, Metric, Objective, parse_objectives

EXACT = frozenset(metric.name for metric in ANALYSIS_METRICS)
WHICH = ("code", "genotype")
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Source:
    """Which table, and the space its networks are from.

    Args:
        table: a shipped table's name, or a file.
        space: None for the one that a shipped table is for.
        objectives: as on the command line, such as `accuracy,flops`.
    """

    table: str
    space: str | None
    objectives: str

    @property
    def name(self) -> str:
        """The table's name without folder and suffix."""
        return re.sub(r"\.csv(\.gz)?$", "", Path(self.table).name)

    @property
    def file(self) -> Path:
        """Where the table is."""
        if Path(self.table).suffix in (".csv", ".gz"):
            return Path(self.table)
        make_evaluator("table", {"table": self.table})  # says which there are
        return Path(str(files("nas.evaluators"))) / "data" / f"{self.table}.csv.gz"

    def load(self) -> Problem:
        """The table in memory. Raises ConfigError in one line for anything that is wrong with it."""
        path, text = self.file, self.space
        if text is None and path == Path(self.table):
            raise ConfigError(f"table {path}: say with --space which search space its networks are from")
        shipped: Any = None if text is not None else make_evaluator("table", {"table": self.table})
        named = Named.parse(text) if text is not None else Named(shipped.source.space)
        defaults = defaults_of(find("search_spaces", named.name))
        shape, classes = defaults.get("input_shape", (3, 32, 32)), defaults.get("classes", 10)
        space = make_space(named.name, shape, classes, named.options)
        return Problem(self.name, space, _read(path, space), self.objectives)


class Problem:
    """All networks of a table, by structural key.

    Attributes:
        metrics: by key, exact costs included.
        objectives: what to search for.
        measure: judges what was found against the whole table.
    """

    def __init__(self, name: str, space: Space, metrics: Mapping[str, Metrics], objectives: str) -> None:
        self.name, self.space, self.metrics = name, space, metrics
        columns = [Metric(column) for column in next(iter(metrics.values())) if column not in EXACT]
        self.objectives: tuple[Objective, ...] = parse_objectives(objectives, (*columns, *ANALYSIS_METRICS))
        absent = [o.metric for o in self.objectives if o.metric not in next(iter(metrics.values()))]
        if absent:
            raise ConfigError(
                f"table {name!r} has no column {absent[0]!r}; there are {', '.join(m.name for m in columns)}"
            )
        self.costs = {key: tuple(o.cost(row) for o in self.objectives) for key, row in metrics.items()}
        self.measure = Measure(self.objectives, np.array(list(self.costs.values()), dtype=np.float64))
        self._keys: dict[tuple[Any, ...], str] = {}

    def key(self, genotype: Genotype) -> str:
        """Structural key of a genotype's network; empty if it cannot be built."""
        labels = tuple(genotype.items())
        if labels not in self._keys:
            try:
                self._keys[labels] = self.space.architecture(genotype).key()
            except GraphError:
                self._keys[labels] = ""
        return self._keys[labels]


def _read(path: Path, space: Space) -> dict[str, Metrics]:
    """Metrics by key."""
    found: defaultdict[str, list[Metrics]] = defaultdict(list)
    exact: dict[str, Metrics] = {}
    rows = list(_rows(path))
    if not rows:
        raise ConfigError(f"table {path}: there is no row below the header")
    columns = [name for name in rows[0][1] if name not in {*WHICH, *EXACT}]
    for line, row in rows:
        where = f"table {path} line {line}"
        metrics = {name: _number(where, name, row[name]) for name in columns}
        try:
            architecture = space.architecture(_genotype(row, space))
            key, exact[key] = architecture.key(), architecture.metrics()
        except (NasError, ValueError, TypeError, AttributeError) as error:
            what = next(name for name in WHICH if name in row)
            raise ConfigError(f"{where}: {what} {row[what]!r} is no network of space {space.name!r}: {error}") from None
        found[key].append(metrics)
    percent = {name for name in columns if name.startswith("accuracy") and any(r[name] > 1 for _, r in _flat(found))}
    means = {key: {c: float(np.mean([row[c] for row in same])) / (100 if c in percent else 1) for c in columns}
             for key, same in found.items()}  # fmt: skip
    bad = next((row[c] for row in means.values() for c in percent if not 0 <= row[c] <= 1), None)
    if bad is not None:
        raise ConfigError(f"table {path}: expected accuracies in 0..1 or in percent, got {100 * bad:g}")
    return {key: {**_averaged(row), **exact[key]} for key, row in means.items()}


def _flat(found: Mapping[str, Sequence[Metrics]]) -> Iterator[tuple[str, Metrics]]:
    return ((key, row) for key, same in found.items() for row in same)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            reader = csv.DictReader(file)
            _check(path, reader.fieldnames or ())
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise ConfigError(f"table {path} line {reader.line_num}: expected {columns} cells as in the header")
                yield reader.line_num, row
    except FileNotFoundError:
        raise ConfigError(f"table {path}: there is no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"table {path} cannot be read: {error}") from None


def _check(path: Path, header: Sequence[str]) -> None:
    twice = [name for name in header if list(header).count(name) > 1]
    if twice:
        raise ConfigError(f"table {path}: two columns are called {twice[0]!r}")
    if sum(name in header for name in WHICH) != 1:
        given = ", ".join(header) or "nothing"
        raise ConfigError(f"table {path}: expected one column 'code' or 'genotype' in the header, got {given}")
    if not set(header) - {*WHICH, *EXACT}:
        raise ConfigError(f"table {path}: expected a column per metric, such as accuracy, got {', '.join(header)}")


def _number(where: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise ConfigError(f"{where}: {name} is {text!r}, expected a number")
    return value


def _genotype(row: Mapping[str, str], space: Space) -> Genotype:
    if "genotype" in row:
        return space.check(json.loads(row["genotype"]))
    text = row["code"].strip()
    return space.decode([int(number) for number in (text.split() if " " in text else text)])


def _averaged(row: Metrics) -> Metrics:
    """`name0`, `name1`, ... become their mean, `name`."""
    out = dict(row)
    for first in [name for name in row if re.fullmatch(r".*\D0", name)]:
        base, trainings = first[:-1], list[float]()
        while f"{base}{len(trainings)}" in row:
            trainings.append(out.pop(f"{base}{len(trainings)}"))
        if len(trainings) > 1:
            out[base] = float(np.mean(trainings))
        else:
            out[first] = trainings[0]
    return out

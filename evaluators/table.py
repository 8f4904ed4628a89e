"""Answers from a table of measured results, so that strategies can be compared in seconds.

An architecture is looked up by what it is: rows of its exact cost are candidates, and the one with its structural key
is it. So any space that contains a network of the table can be searched on it.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas.architecture import Architecture
from nas.errors import ConfigError, EvaluationError
from nas.evaluator import Evaluator, Report, Task
from nas.ops import Shape
from nas.plugins import make_space
from nas.space import Space
from nas.trial import Metric


@dataclass(frozen=True)
class Source:
    """A table `data/NAME.csv.gz` with the columns code, params, flops, and accuracy0, accuracy1, ... in percent.

    A code is `space.encode` of the row's genotype, a digit per decision.
    """

    space: str
    input_shape: Shape
    classes: int
    trainings: int


SOURCES: Mapping[str, Source] = {
    "nas-bench-macro": Source("nasbench-macro", (3, 32, 32), 10, 3),
}


class _Row:
    """Measured accuracies (0..1) of the network that a code stands for."""

    def __init__(self, space: Space, code: str, accuracies: tuple[float, ...]) -> None:
        self.space, self.code, self.accuracies = space, code, accuracies

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)

    @cached_property
    def key(self) -> str:
        return self.space.architecture(self.space.decode([int(digit) for digit in self.code])).key()


class Table(Evaluator):
    """Looks results up.

    Args:
        table: which table: `nas-bench-macro` (Su et al. 2021; see `evaluators/data/README.md`).
        train: search on the accuracy of this training alone (0, 1, 2); the mean of all is then given beside it as
            `accuracy_mean`. By default `accuracy` is the mean.

    Raises ConfigError for an unknown table or training.
    """

    needs_data = False

    def __init__(self, *, table: str = "nas-bench-macro", train: int | None = None) -> None:
        if table not in SOURCES:
            raise ConfigError(f"evaluator.table: no table is called {table!r}; there are {', '.join(SOURCES)}")
        self.source = SOURCES[table]
        if train is not None and train not in range(self.source.trainings):
            raise ConfigError(f"evaluator.train: expected 0 to {self.source.trainings - 1}, or none, got {train!r}")
        self.table, self.train = table, train
        self.metrics = (Metric("accuracy"),) if train is None else (Metric("accuracy"), Metric("accuracy_mean"))

    def open(self, task: Task, *, device: str, threads: int) -> None:
        source = self.source
        if (task.input_shape, task.classes) != (source.input_shape, source.classes):
            raise ConfigError(
                f"table {self.table!r} holds networks for {source.classes} classes of {source.input_shape} images, "
                f"got {task.classes} classes of {task.input_shape}; drop --data, or use another evaluator"
            )
        space = make_space(source.space, source.input_shape, source.classes, {})
        self._rows: defaultdict[tuple[int, int], list[_Row]] = defaultdict(list)
        with gzip.open(Path(__file__).parent / "data" / f"{self.table}.csv.gz", "rt", encoding="ascii") as lines:
            for line in csv.DictReader(lines):
                accuracies = tuple(float(line[f"accuracy{i}"]) / 100 for i in range(source.trainings))
                self._rows[int(line["params"]), int(line["flops"])].append(_Row(space, line["code"], accuracies))

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        costs = arch.analysis
        for row in self._rows.get((costs.params, costs.flops), ()):
            if row.key == arch.key():
                if self.train is None:
                    return {"accuracy": row.mean}
                return {"accuracy": row.accuracies[self.train], "accuracy_mean": row.mean}
        raise EvaluationError(f"table {self.table!r} has no such network; it covers --space={self.source.space}")

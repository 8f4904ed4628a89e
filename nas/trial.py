"""Metrics, objectives, limits, and what became of a proposal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nas.choices import Label
from nas.errors import ConfigError

State = Literal["ok", "stopped", "infeasible", "failed", "diverged", "out_of_memory", "timed_out"]
Direction = Literal["max", "min"]

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": 1e-2, "s": 1.0, "ms": 1e-3, "us": 1e-6,
          "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """A number that an evaluator or the analysis gives for an architecture.

    `exact`: known from the architecture alone, before anything is evaluated.
    """

    name: str
    direction: Direction = "max"
    unit: str = ""
    exact: bool = False


ANALYSIS_METRICS: tuple[Metric, ...] = (
    Metric("flops", "min", "multiply-adds", exact=True),
    Metric("params", "min", "parameters", exact=True),
    Metric("memory", "min", "bytes", exact=True),
    Metric("depth", "min", "layers", exact=True),
)


@dataclass(frozen=True)
class Objective:
    """A metric to make as large or as small as possible."""

    metric: str
    direction: Direction
    exact: bool = False

    def cost(self, metrics: Mapping[str, float]) -> float:
        """The metric's value, negated where larger is better: always to be minimised."""
        value = metrics[self.metric]
        return -value if self.direction == "max" else value


@dataclass(frozen=True)
class Limit:
    """A bound that an architecture must keep: `metric <= bound`, or `>=` where `at_least`."""

    metric: str
    bound: float
    at_least: bool = False
    exact: bool = False

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far the metric is outside, relative to the bound; 0 inside, and where the metric is not there."""
        if self.metric not in metrics:
            return 0.0
        over = metrics[self.metric] - self.bound
        return max(0.0, (-over if self.at_least else over) / (abs(self.bound) or 1.0))

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.at_least else '<='} {format_number(self.bound)}"


@dataclass(frozen=True)
class Proposal:
    """What a strategy asks to have evaluated. `note` is small JSON that comes back with the trial."""

    genotype: Mapping[str, Label]
    note: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of an evaluation. `budget`: epochs actually spent."""

    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    seconds: float = 0.0
    worker: str = "local"
    error: str | None = None


@dataclass(frozen=True)
class Trial:
    """A finished proposal.

    Attributes:
        number: position among all proposals of the run, from 0.
        genotype, key: the architecture; `key` is its structural hash.
        state: how it ended. Only `ok` trials can be in the front.
        metrics: by name; empty unless `ok` or `stopped`. For `infeasible`, those that were known when it ended: the
            exact ones, and what was measured before training.
        budget: epochs spent, None if the evaluator has no budgets.
        violations: limits broken: metric to relative amount.
        elapsed: wall-clock seconds of the search when this was told.
        duplicate_of: number of the trial whose result this is, if the same network was evaluated before.
        note: the proposal's note.
    """

    number: int
    genotype: Mapping[str, Label]
    key: str
    state: State
    metrics: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    seed: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    worker: str = "local"
    error: str | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    duplicate_of: int | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Fully evaluated, with every objective there."""
        return self.state == "ok"

    @property
    def evaluated(self) -> bool:
        """Counts against the number of trials: neither infeasible nor a duplicate."""
        return self.state != "infeasible" and self.duplicate_of is None

    @property
    def ran(self) -> bool:
        """Whether an evaluator saw it: one that is evaluated, or broke a limit on what is measured before training."""
        return self.evaluated or (self.duplicate_of is None and self.seconds > 0)


def parse_number(text: str) -> float:
    """`300M`, `1.5G`, `20ms`, `40%`, `0.9`; raises ValueError."""
    match = re.fullmatch(r"\s*([-+]?[0-9.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z%]*)\s*", text)
    if not match or (match[2] and match[2] not in _UNITS):
        raise ValueError(text)
    return float(match[1]) * _UNITS.get(match[2], 1.0)


def format_number(value: float) -> str:
    """Short, for people: `300M`, `1.52G`, `0.913`."""
    for unit, factor in (("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.4g}"


def shown(metric: Metric | None) -> tuple[str, float]:
    """Unit in which people read a metric, and the factor to it: seconds as `ms`, others as they are."""
    return ("ms", 1e3) if metric is not None and metric.unit == "s" else ("", 1.0)


def format_metric(value: float, metric: Metric | None) -> str:
    """Like `format_number`, with the unit where the metric is shown in one: `12.3 ms`."""
    unit, factor = shown(metric)
    return f"{format_number(value * factor)} {unit}".rstrip()


def parse_objectives(text: str | Sequence[str], metrics: Iterable[Metric]) -> tuple[Objective, ...]:
    """`accuracy,flops` or `score:max,flops`: directions come from the metrics unless given. Raises ConfigError."""
    known = {metric.name: metric for metric in metrics}
    found: list[Objective] = []
    for item in text.split(",") if isinstance(text, str) else text:
        name, _, direction = item.strip().partition(":")
        if direction not in ("", "max", "min") or not name:
            raise ConfigError(f"objectives: {item!r} is not name or name:max or name:min")
        if name not in known and not direction:
            raise ConfigError(
                f"objectives: {name!r} is not a metric of this evaluator; expected some of {', '.join(known)}"
            )
        metric = known.get(name, Metric(name))
        chosen: Direction = metric.direction if not direction else "max" if direction == "max" else "min"
        found.append(Objective(name, chosen, metric.exact))
    if len({o.metric for o in found}) < len(found):
        raise ConfigError(f"objectives: {text!r} names a metric twice")
    return tuple(found)


def named(objectives: Sequence[str], limits: Sequence[str]) -> set[str]:
    """Metrics that the texts of objectives and limits name, right or wrong."""
    bounds = [re.match(r"\s*([\w.]+)\s*[<>=]", text) for text in limits]
    return {text.partition(":")[0].strip() for text in objectives} | {match[1] for match in bounds if match}


def parse_limit(text: str, metrics: Iterable[Metric]) -> Limit:
    """`flops=300M` (at most; at least for a metric that is to be large), `params>=1M`. Raises ConfigError."""
    known = {metric.name: metric for metric in metrics}
    match = re.fullmatch(r"\s*([\w.]+)\s*(<=|>=|=)\s*(.+)", text)
    if not match or match[1] not in known:
        raise ConfigError(
            f"limit: {text!r} is not metric=number such as flops=300M with a metric among {', '.join(known)}"
        )
    metric = known[match[1]]
    try:
        bound = parse_number(match[3])
    except ValueError:
        units = ", ".join(_UNITS)
        raise ConfigError(f"limit: {match[3]!r} in {text!r} is not a number with one of the units {units}") from None
    if not math.isfinite(bound):
        raise ConfigError(f"limit: {text!r} must be finite")
    at_least = match[2] == ">=" or (match[2] == "=" and metric.direction == "max")
    return Limit(metric.name, bound, at_least, metric.exact)

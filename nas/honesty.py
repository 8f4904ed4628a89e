"""What proxies are worth, judged by trials that were trained: rank correlations beside those of counting.

A proxy that ranks no better than FLOPs is not worth its milliseconds; most publications do not show FLOPs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nas.errors import RunError
from nas.evaluator import Task
from nas.plugins import make_evaluator
from nas.scoring import Scorer
from nas.store import write_atomically
from nas.trial import Objective, Trial

if TYPE_CHECKING:
    from nas.session import Results

COUNTS = ("flops", "params", "depth")
"""What every proxy must beat."""

LEAST = 8
"""Networks below which a rank correlation says nothing."""

DRAWS = 1000
"""Of the networks, with replacement, for the intervals."""

MOST = 500
"""Networks that are looked at: the intervals take time with the square of their number."""

Array = np.ndarray[Any, np.dtype[np.float64]]


class Interval(NamedTuple):
    """An estimate and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A proxy against the trained networks.

    Attributes:
        kendall: tau-b; spearman: rho.
        over_flops: its tau less that of FLOPs, over the same networks; None for FLOPs themselves.
        networks: for which it is defined.
    """

    proxy: str
    kendall: Interval
    spearman: Interval
    over_flops: Interval | None
    networks: int

    @property
    def verdict(self) -> str:
        """In words, how it compares with FLOPs."""
        if self.proxy in COUNTS:
            return "a count"
        if self.over_flops is not None and self.over_flops.low > 0:
            return "beats FLOPs"
        if self.over_flops is not None and self.over_flops.high < 0:
            return "worse than FLOPs"
        return "does not beat FLOPs"

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN is None."""
        k, s, d = self.kendall, self.spearman, self.over_flops
        data = {
            "proxy": self.proxy, "networks": self.networks, "kendall": k.value, "low": k.low, "high": k.high,
            "spearman": s.value, "spearman_low": s.low, "spearman_high": s.high,
            "over_flops": None if d is None else d.value, "over_flops_low": None if d is None else d.low,
            "over_flops_high": None if d is None else d.high, "verdict": self.verdict,
        }  # fmt: skip
        return {name: None if isinstance(v, float) and not isfinite(v) else v for name, v in data.items()}


@dataclass(frozen=True)
class Honesty:
    """Rows from the best to the worst, for the metric that was trained for."""

    metric: str
    networks: int
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "networks": self.networks, "proxies": [row.to_json() for row in self.rows]}


def recorded(trials: Sequence[Trial], objectives: Sequence[Objective], proxies: Sequence[str]) -> Honesty | None:
    """How the proxies that a run computed beside its trials did; None with too few trials or nothing trained."""
    objective = next((o for o in objectives if not o.exact), None)
    if objective is None or objective.metric in proxies:
        return None
    chosen = _some(_trained(trials, objective), MOST)
    if len(chosen) < LEAST:
        return None
    columns = {name: _column(chosen, name) for name in (*proxies, *COUNTS)}
    return compared(objective, _column(chosen, objective.metric), columns)


def judged(
    results: Results, *, proxies: str = "all", options: Mapping[str, Any] | None = None, device: str = "auto",
    networks: int = 200, on_scored: Callable[[int, int], None] | None = None,
) -> Honesty:  # fmt: skip
    """How proxies rank the trained networks of a run; writes `proxies.json` into its folder.

    Args:
        proxies: names for the evaluator `proxy`, `all` for all that are installed.
        options: more of the evaluator's.
        networks: how many of the run's trained networks to score, drawn at random where there are more.
        on_scored: told how many of how many are scored.

    Raises RunError where too few networks are trained, NasError for wrong names or options.
    """
    from nas.beside import composed
    from nas.plugins import available
    from nas.session import task_for
    from nas.torch.runtime import pick_device

    objective = next((o for o in results.objectives if not o.exact), None)
    if objective is None:
        raise RunError(f"run {results.path} trained nothing: its objectives are known without evaluation")
    chosen = _trained(results.trials, objective)
    if len(chosen) < LEAST:
        raise RunError(
            f"run {results.path} has {len(chosen)} trained networks; a rank correlation needs {LEAST}: "
            f"let it go on with nas resume {results.path} --trials N"
        )
    chosen = _some(chosen, min(networks, MOST))
    names = ",".join(available("proxies")) if proxies == "all" else proxies
    given = dict(options or {})
    if not composed(results.config)[0].needs_data:
        given.setdefault("noise", True)  # the run had no images
    evaluator = make_evaluator("proxy", {**given, "proxies": names}, "proxy")
    # A folder for each set of them: the same command goes on with what it has scored, others do not mind it.
    digest = hashlib.sha256(json.dumps([names, given], sort_keys=True, default=str).encode()).hexdigest()
    folder = results.path / "proxies" / digest[:8]
    folder.mkdir(parents=True, exist_ok=True)
    space, seed = results.space, results.config.seed
    total = len(chosen)
    # Proxies that read no images still have those of the run for their size.
    is_blind = not evaluator.needs_data
    task = Task(None, space.input_shape, space.classes) if is_blind else task_for(results.config, evaluator)
    scorer = Scorer(
        evaluator, space, task, folder, seed=seed, device=str(pick_device(device)),
        report=lambda done, metrics, of: on_scored(done, of + total) if on_scored else None,
    )  # fmt: skip
    rows = []
    before = int(getattr(evaluator, "reference", 0))
    for done, trial in enumerate(chosen, 1):
        rows.append(scorer.partly(space.architecture(trial.genotype)))
        if on_scored is not None:
            on_scored(before + done, before + total)
    columns = {m.name: np.array([row.get(m.name, nan) for row in rows]) for m in evaluator.metrics}
    columns |= {name: _column(chosen, name) for name in COUNTS}
    found = compared(objective, _column(chosen, objective.metric), columns)
    write_atomically(results.path / "proxies.json", json.dumps(found.to_json(), indent=1))
    return found


def _trained(trials: Sequence[Trial], objective: Objective) -> list[Trial]:
    """Fully trained networks, each once."""
    return [t for t in trials if t.ok and t.duplicate_of is None and objective.metric in t.metrics]


def _some(trials: list[Trial], most: int) -> list[Trial]:
    """At most so many, drawn at random, in their order."""
    if len(trials) <= most:
        return trials
    return [trials[i] for i in sorted(np.random.default_rng(0).choice(len(trials), most, replace=False))]


def _column(trials: Sequence[Trial], metric: str) -> Array:
    return np.array([trial.metrics.get(metric, nan) for trial in trials], dtype=float)


def compared(objective: Objective, truth: Array, columns: Mapping[str, Array]) -> Honesty:
    """Rank correlations of columns (n,), `flops` among them, with what was trained for (n,)."""
    truth = truth if objective.direction == "max" else -truth
    rows = [_row(name, column, truth, columns["flops"]) for name, column in columns.items()]
    rows.sort(key=lambda row: -row.kendall.value if isfinite(row.kendall.value) else np.inf)
    return Honesty(objective.metric, len(truth), tuple(rows))


def _row(name: str, column: Array, truth: Array, flops: Array) -> Row:
    there = np.isfinite(column) & np.isfinite(truth)
    n = int(there.sum())
    if n < LEAST:
        nothing = Interval(nan, nan, nan)
        return Row(name, nothing, nothing, None, n)
    column, truth, flops = column[there], truth[there], flops[there]
    rng = np.random.default_rng(0)
    drawn = rng.integers(n, size=(DRAWS, n))
    counts = np.stack([np.bincount(places, minlength=n) for places in drawn]).astype(float)
    taus = kendall(column, truth, counts)
    tau = float(kendall(column, truth, np.ones((1, n)))[0])
    rho = float(_spearman(column[None], truth[None])[0])
    over = None
    if name != "flops":
        theirs = float(kendall(flops, truth, np.ones((1, n)))[0])
        over = _interval(tau - theirs, taus - kendall(flops, truth, counts))
    return Row(name, _interval(tau, taus), _interval(rho, _spearman(column[drawn], truth[drawn])), over, n)


def kendall(x: Array, y: Array, counts: Array) -> Array:
    """Kendall's tau-b of values (n,) of which each is there so many times, (draws, n); (draws,), NaN without order."""
    a, b = (np.sign(v[:, None] - v) for v in (x, y))

    def pairs(signs: Array) -> Array:
        found: Array = ((counts @ signs) * counts).sum(1)
        return found

    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Array = pairs(a * b) / np.sqrt(pairs(np.abs(a)) * pairs(np.abs(b)))
    return tau


def _spearman(x: Array, y: Array) -> Array:
    """Spearman's rho of each row, (draws, n) to (draws,)."""
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=1) for v in (x, y))
    a, b = (v - v.mean(1, keepdims=True) for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        rho: Array = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return rho


def _interval(value: float, draws: Array) -> Interval:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Interval(value, nan, nan)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(value, float(low), float(high))

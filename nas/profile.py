"""What a space holds: how many networks, and how their costs and cheap metrics are distributed.

As in the papers on design spaces (Radosavovic et al. 2019, 2020): random networks stand for the space, and two spaces
are compared by the empirical distribution functions of what was found, not by their best network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nas.config import Config
from nas.errors import ConfigError, EvaluationError, GraphError, RunError
from nas.plugins import available, make_evaluator, make_space
from nas.scoring import Scorer
from nas.session import load, task_of, threads_for
from nas.space import Space
from nas.trial import ANALYSIS_METRICS, Metric

COSTS = (*ANALYSIS_METRICS, Metric("field", "max", "pixels", exact=True))
"""What every network is asked for: its exact costs, and the longer side of its receptive field."""

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}

OnSample = Callable[[int], None]


@dataclass(frozen=True)
class Profile:
    """Values over the networks of a space.

    Attributes:
        name: of the space, or path of the run.
        size: genotypes in the space, exactly.
        samples: networks that were looked at.
        random: whether they were drawn at random; False for what a search chose.
        values: per metric its values, sorted, of those networks that have it.
        units: per metric.
        failed: networks that cannot be built or evaluated.
    """

    name: str
    size: int
    samples: int
    random: bool
    values: Mapping[str, np.ndarray]
    units: Mapping[str, str]
    failed: int = 0

    def quantiles(self, metric: str) -> dict[str, float]:
        """Values of `QUANTILES`, and the mean."""
        values = self.values[metric]
        found = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
        return {**found, "mean": float(values.mean())}

    def to_json(self) -> dict[str, Any]:
        """The quantiles and all values."""
        return {
            "name": self.name, "size": self.size, "samples": self.samples, "random": self.random,
            "failed": self.failed,
            "metrics": {
                name: {"unit": self.units[name], "quantiles": self.quantiles(name), "values": values.tolist()}
                for name, values in self.values.items()
            },
        }  # fmt: skip


def profile(
    space: Space, *, samples: int = 500, seed: int = 0, scorer: Scorer | None = None,
    on_sample: OnSample | None = None,
) -> Profile:  # fmt: skip
    """Draw networks, every decision uniformly at random, and take their costs.

    Args:
        seed: of the draws.
        scorer: its metrics are taken too.
        on_sample: called with the number of networks so far.

    Raises ConfigError for a number below 1, GraphError where no network can be built, PluginError for an evaluator that
    breaks off.
    """
    if samples < 1:
        raise ConfigError(f"samples: expected a whole number of at least 1, got {samples}")
    rng = np.random.default_rng(seed)
    metrics = (*COSTS, *(scorer.evaluator.metrics if scorer else ()))
    rows: list[Mapping[str, float]] = []
    failed, last = 0, ""
    for number in range(samples):
        try:
            architecture = space.architecture(space.sample(rng))
            exact = {**architecture.metrics(), "field": float(max(architecture.analysis.field))}
            rows.append({**exact, **(scorer(architecture) if scorer else {})})
        except (GraphError, EvaluationError) as error:
            failed, last = failed + 1, str(error)
        if on_sample:
            on_sample(number + 1)
    if not rows:
        raise GraphError(f"none of {samples} random networks of {space.name!r} could be looked at; the last: {last}")
    return Profile(space.name, space.size(), samples, True, *_columns(rows, metrics), failed)


def _columns(
    rows: Sequence[Mapping[str, float]], metrics: Sequence[Metric]
) -> tuple[Mapping[str, np.ndarray], Mapping[str, str]]:
    columns: dict[str, np.ndarray] = {}
    for metric in metrics:
        found = [row[metric.name] for row in rows if isfinite(row.get(metric.name, np.nan))]
        if found:
            columns[metric.name] = np.sort(np.array(found, dtype=np.float64))
    return columns, {metric.name: metric.unit for metric in metrics}


def profile_run(path: Path) -> Profile:
    """The networks that a search evaluated. An accuracy is shown as the error, as in the papers.

    Raises RunError for a folder without a run, or without a finished trial.
    """
    results = load(path)
    trials = [trial for trial in results.trials if trial.ok and trial.duplicate_of is None]
    if not trials:
        raise RunError(f"run {path} has no finished trial yet: there is nothing to look at")
    exact = {metric.name: metric for metric in ANALYSIS_METRICS}
    rows = [dict(trial.metrics) for trial in trials]
    for row in rows:
        if "accuracy" in row:
            row["error"] = 1 - row.pop("accuracy")
    names = dict.fromkeys(name for row in rows for name in row)
    ordered = sorted(names, key=lambda name: (name != "error", name not in exact))
    metrics = [exact.get(name, Metric(name)) for name in ordered]
    space = results.space
    random = results.config.strategy == "random"
    return Profile(str(path), space.size(), len(trials), random, *_columns(rows, metrics))


def profiles(
    sources: Sequence[str], config: Config, *, samples: int, evaluator: str | None = None,
    on_sample: OnSample | None = None,
) -> list[Profile]:  # fmt: skip
    """The profiles of several spaces (or run folders) by name, for the same data.

    Args:
        config: its data, seed, device, and options of spaces, data and evaluator count.
        evaluator: whose metrics to take too.
        on_sample: called with the number of networks so far, of all spaces together.

    Raises NasError for what is wrong with the names or options.
    """
    for section in config.options:
        if section not in ("space", "data", "evaluator") or (section == "evaluator" and evaluator is None):
            raise ConfigError(f"--set {section}...: nothing here takes it; expected options of space, data, evaluator")
    if evaluator is not None:
        make_evaluator(evaluator, config.option("evaluator"))  # wrong options are said before anything is drawn
    spaces: dict[str, Space] = {}
    known = available("search_spaces")  # a folder that is called as a space is not meant
    names = [source for source in sources if source in known or not Path(source).is_dir()]
    if names:
        task = task_of(config)
        options = config.option("space")
        spaces = {name: make_space(name, task.input_shape, task.classes, options) for name in names}
    found = []
    for i, source in enumerate(sources):
        if source not in spaces:
            found.append(profile_run(Path(source)))
            continue

        def count(number: int, before: int = i * samples) -> None:
            if on_sample:
                on_sample(before + number)

        with TemporaryDirectory() as folder:
            scorer: Scorer | None = None
            if evaluator is not None:
                scorer = Scorer(
                    make_evaluator(evaluator, config.option("evaluator")), spaces[source], task, Path(folder),
                    seed=config.seed, device=config.device, threads=threads_for(task.input_shape),
                )  # fmt: skip
            found.append(profile(spaces[source], samples=samples, seed=config.seed, scorer=scorer, on_sample=count))
    return found

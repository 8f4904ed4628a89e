"""Hypervolume over evaluations of some runs, and what random search would have had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from nas.bench.runs import Runs
from nas.errors import NasError
from nas.evaluator import Evaluator, Report, Task
from nas.pareto import Array
from nas.plugins import make_evaluator
from nas.report.plot import called
from nas.session import Results
from nas.trial import ANALYSIS_METRICS, parse_limit

SEEDS = 10
"""Random searches that are drawn where results can be looked up."""
LOOKUP = 0.01
"""Seconds of an evaluation that is no more than a look-up."""
TRIES = 1000
"""Proposals per evaluation, before it is given up that a limit leaves anything."""


@dataclass(frozen=True)
class Volume:
    """A curve: hypervolume relative to the front of all runs after 1, 2, ... evaluations, and its standard error."""

    label: str
    strategy: str
    mean: Array
    error: Array


def volumes(paths: Sequence[Path]) -> list[Volume]:
    """The curve of each run; then random search's, where an evaluator without data tells what it would have found.

    Raises RunError for runs that cannot be compared, and where no trial succeeded.
    """
    runs = Runs(paths)
    found = [
        Volume(name, run.results.config.strategy, run.curve, np.zeros(len(run.curve)))
        for name, run in zip(called(paths), runs.runs, strict=True)
    ]
    first = runs.runs[0].results
    if all(curve.strategy != "random" for curve in found) and max(len(curve.mean) for curve in found):
        length = max(len(curve.mean) for curve in found)
        lines = [runs.measure.curve(costs) for costs in _random(first, length)]
        if lines:
            together = np.array(lines)
            error = together.std(axis=0, ddof=1) / np.sqrt(len(lines))
            found.append(Volume(f"random search, mean of {SEEDS}", "random", together.mean(axis=0), error))
    return found


def _random(results: Results, length: int) -> list[Array]:
    """Costs (length, objectives) of networks drawn at random, per seed; none where they would have to be trained."""
    if median([trial.seconds for trial in results.trials if trial.evaluated]) > LOOKUP:
        return []
    try:
        evaluator = make_evaluator(results.config.evaluator, results.config.option("evaluator"))
        known = {metric.name for metric in (*evaluator.metrics, *ANALYSIS_METRICS)}
        if evaluator.needs_data or any(o.metric not in known for o in results.objectives):
            return []
        task = results.run.config["task"]
        evaluator.open(Task(None, tuple(task["input_shape"]), task["classes"]), device="cpu", threads=1)
        return [_draw(results, evaluator, length, seed) for seed in range(SEEDS)]
    except NasError:  # a plug-in that is not here any more, or that cannot answer
        return []


def _draw(results: Results, evaluator: Evaluator, length: int, seed: int) -> Array:
    rng, space = np.random.default_rng(seed), results.space
    limits = [parse_limit(text, (*evaluator.metrics, *ANALYSIS_METRICS)) for text in results.config.limits]
    rows: dict[str, list[float]] = {}
    silent = Report(lambda epoch, metrics: None)
    with TemporaryDirectory() as folder:
        for _ in range(TRIES * length):
            arch = space.architecture(space.sample(rng))
            metrics = arch.metrics()
            if len(rows) == length:
                break
            if any(limit.violation(metrics) for limit in limits) or arch.key() in rows:
                continue  # neither evaluated nor counted, as in a search
            found = evaluator.evaluate(arch, seed=seed, budget=None, workdir=Path(folder), report=silent)
            rows[arch.key()] = [o.cost({**metrics, **found}) for o in results.objectives]
    costs = np.full((length, len(results.objectives)), np.inf)
    costs[: len(rows)] = np.array(list(rows.values())).reshape(len(rows), -1)
    return costs

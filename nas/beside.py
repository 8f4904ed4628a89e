"""Metrics measured beside the evaluator's own: latency beside accuracy, whoever gives the accuracy.

Where an objective or a limit names a metric that the chosen evaluator does not give, an installed evaluator that may
stand beside another one (`Evaluator.beside`) gives it. `--set latency.batch=8` sets an option of the one called
`latency`, and has it measured whether or not anything names its metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.architecture import Architecture
from nas.config import SECTIONS, Config
from nas.errors import ConfigError, Infeasible, NasError
from nas.evaluator import Evaluator, Report, Task
from nas.plugins import available, find, make_evaluator
from nas.trial import ANALYSIS_METRICS, Limit, Metric, named


class Beside(Evaluator):
    """An evaluator, and others that measure what it does not.

    The others come first, as they cost next to nothing beside a training: a network that they find outside a limit
    ends as infeasible, and is not trained. What they measured is in every report of the training too.

    Args:
        main: the evaluator that was chosen; a metric that both give is its.
        others: the others by name.
    """

    def __init__(self, main: Evaluator, others: Mapping[str, Evaluator]) -> None:
        self.main, self.others = main, dict(others)
        own = {metric.name for metric in main.metrics}
        added = [m for other in others.values() for m in other.metrics if m.name not in own]
        self.metrics = (*main.metrics, *added)
        self.needs_data = any(part.needs_data for part in self.parts().values())
        self.needs_device = any(part.needs_device for part in self.parts().values())
        self.budget = main.budget
        self.limits: Sequence[Limit] = ()
        """Checked before the training; those on metrics of `main` have no effect."""

    def parts(self) -> Mapping[str, Evaluator]:
        return {"evaluator": self.main, **self.others}

    def open(self, task: Task, *, device: str, threads: int) -> None:
        for part in (*self.others.values(), self.main):  # the last one has the last word on the process's threads
            part.open(task, device=device, threads=threads)

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        own = {metric.name for metric in self.main.metrics}
        measured: dict[str, float] = {}
        for other in self.others.values():
            quiet = Report(lambda epoch, metrics: None, report.remaining)
            found = other.evaluate(arch, seed=seed, budget=None, workdir=workdir, report=quiet)
            measured |= {name: float(value) for name, value in found.items() if name not in own}
        broken = [limit for limit in self.limits if limit.violation(measured) > 0]
        if broken:
            raise Infeasible(f"{broken[0]} is not kept", measured)
        report.known = measured
        return {**measured, **self.main.evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=report)}


def composed(config: Config) -> tuple[Evaluator, tuple[Metric, ...]]:
    """The evaluator that a configuration asks for, with those beside it, and all metrics that there are to be named.

    Raises NasError for an evaluator or option that there is not, and for a metric that two evaluators give.
    """
    main = make_evaluator(config.evaluator, config.option("evaluator"))
    known = (*main.metrics, *ANALYSIS_METRICS)
    sections = [name for name in config.options if name not in SECTIONS]
    for name in sections:
        if name == config.evaluator:
            raise ConfigError(f"options of {name!r}: it is the evaluator itself; set evaluator.NAME")
        if not getattr(find("evaluators", name), "beside", False):
            raise ConfigError(
                f"options of {name!r}: this evaluator cannot stand beside another one; name it with --evaluator={name}"
            )
    others = {name: make_evaluator(name, config.option(name), name) for name in sections}
    missing = named(config.objectives, config.limits) - {metric.name for metric in known}
    if missing:
        others = {**_installed(config, set(others)), **others}
    wanted: dict[str, Evaluator] = {}
    for name, other in others.items():
        gives = missing & {metric.name for metric in other.metrics}
        for rival in wanted:
            twice = gives & {metric.name for metric in wanted[rival].metrics}
            if twice:
                raise ConfigError(f"objectives: evaluators {rival!r} and {name!r} both give {min(twice)!r}")
        if gives or name in sections:
            wanted[name] = other
    own = {metric.name for metric in known}
    added = [m for other in others.values() for m in other.metrics if m.name not in own]
    return (Beside(main, wanted) if wanted else main), (*known, *added)


def _installed(config: Config, made: set[str]) -> dict[str, Evaluator]:
    """The installed evaluators that may stand beside another one, with their defaults; not those that are made."""
    found: dict[str, Evaluator] = {}
    for name in sorted(set(available("evaluators")) - made - {config.evaluator}):
        try:
            if getattr(find("evaluators", name), "beside", False):
                found[name] = make_evaluator(name, {})
        except NasError:  # one broken plug-in must not hide the others: what it gives will be missed by name
            continue
    return found

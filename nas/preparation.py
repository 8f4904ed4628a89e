"""The long job before the first trial: a plug-in's `prepare`, where it runs, and what is heard of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import plugin_errors
from nas.evaluator import Task
from nas.executors.base import Executor, Hear


@dataclass(frozen=True)
class Progress:
    """How far the plug-in called `name` has come: `epoch` of `of` (None if it does not say), and its metrics.

    `unit`: what is counted, where it is not epochs: the plug-in's attribute of that name.
    """

    name: str
    epoch: float
    of: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    unit: str = "epoch"


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Preparation:
    """A plug-in's `prepare` as a job that can be sent to another process.

    Args:
        folder: what is left there is found again after an interruption.
        threads: of torch; None leaves it as it is.
    """

    plugin: Any
    task: Task
    folder: Path
    seed: int
    device: str
    threads: int | None = None

    @property
    def name(self) -> str:
        """How the plug-in is called in front of the user."""
        return type(self.plugin).__name__.lower()

    def __call__(self, hear: Hear) -> Any:
        def report(epoch: float, metrics: Mapping[str, float], of: float | None = None) -> None:
            hear(float(epoch), {name: float(value) for name, value in metrics.items()}, of)

        if self.threads is not None:
            from nas.torch.runtime import pick_device, prepare

            prepare(pick_device(self.device), self.threads)
        with plugin_errors(self.plugin):
            return self.plugin.prepare(self.task, self.folder, seed=self.seed, device=self.device, report=report)


def prepared(
    job: Preparation, executor: Executor, resources: Mapping[str, float], on_progress: OnProgress | None
) -> Any:
    """What `prepare` gives: recalled from the run folder if it was done before, otherwise by one job on a worker."""
    plugin = job.plugin
    if hasattr(plugin, "recall"):
        with plugin_errors(plugin):
            known = plugin.recall(job.folder)
        if known is not None:
            return known

    def hear(epoch: float, metrics: Mapping[str, float], of: float | None) -> None:
        if on_progress is not None:
            on_progress(Progress(job.name, epoch, of, metrics, getattr(plugin, "unit", "epoch")))

    hear(0.0, {}, None)
    found = executor.run_once(job, resources, hear).result()
    if hasattr(plugin, "keep"):
        with plugin_errors(plugin):
            plugin.keep(found, job.folder)
    return found

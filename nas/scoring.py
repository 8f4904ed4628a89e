"""An evaluator outside of a search: made ready, and asked for the metrics of one architecture after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas.architecture import Architecture
from nas.errors import EvaluationError, plugin_errors
from nas.evaluator import Evaluator, Report, Task
from nas.space import Space


class Scorer:
    """Scores architectures of a space in this process.

    Args:
        workdir: where an evaluator's long job keeps what it makes, and finds it again.
        device, threads: of torch.
        report: told how far the long job has come, as `Strategy.prepare` says.

    Raises NasError for an evaluator that does not fit the space or the data.
    """

    def __init__(
        self, evaluator: Evaluator, space: Space, task: Task, workdir: Path, *, seed: int = 0, device: str = "cpu",
        threads: int = 1, report: Callable[..., None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.evaluator, self.seed, self.workdir = evaluator, seed, workdir
        plugin: Any = evaluator
        with plugin_errors(evaluator):
            if hasattr(plugin, "use"):
                plugin.use(space)
            if hasattr(plugin, "prepare"):
                found = plugin.recall(workdir) if hasattr(plugin, "recall") else None
                if found is None:
                    found = plugin.prepare(task, workdir, seed=seed, device=device, report=report)
                    if hasattr(plugin, "keep"):
                        plugin.keep(found, workdir)
                plugin.prepared = found
            evaluator.open(task, device=device, threads=threads)

    def __call__(self, architecture: Architecture) -> Mapping[str, float]:
        """Its metrics; raises EvaluationError where there are none."""
        report = Report(lambda epoch, metrics: None)
        with plugin_errors(self.evaluator):
            found = self.evaluator.evaluate(
                architecture, seed=self.seed, budget=None, workdir=self.workdir, report=report
            )
            return {name: float(value) for name, value in found.items()}

    def partly(self, architecture: Architecture) -> Mapping[str, float]:
        """Its metrics, those that were found where not all could be."""
        try:
            return self(architecture)
        except EvaluationError as error:
            return error.metrics

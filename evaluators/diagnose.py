"""What a look inside an untrained network says about it: a metric or a limit that costs milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from nas.architecture import Architecture
from nas.errors import ConfigError, Diverged
from nas.evaluator import Evaluator, Report, Task
from nas.trial import Metric

SMALLEST = 1e-30
"""Gradients below count as this, so that one of 0 still gives a number."""


class Diagnose(Evaluator):
    """Looks into each network at initialisation, or after a few steps of training, as `nas diagnose` does.

    Metrics:
        dead_units: share of channels whose activation is flat for every image, of those of all activations, 0..1.
        gradient_spread: decimal logarithm of the largest gradient norm x weight norm over the smallest of all layers.
        effective_field: side of the effective receptive field relative to the input's (the root of the share of its
            area), 0..1.

    Args:
        steps: of training before the look.
        batch: images that are looked at, and per step. They are the same for every network.

    Raises ConfigError for an option out of range.
    """

    beside = True
    """Cheap: its metrics may be objectives and limits beside those of the evaluator that trains."""

    metrics = (Metric("dead_units", "min"), Metric("gradient_spread", "min", "decades"), Metric("effective_field"))

    def __init__(self, *, steps: int = 0, batch: int = 32) -> None:
        for name, value, least in (("steps", steps, 0), ("batch", batch, 2)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"evaluator.{name}: expected a whole number of at least {least}, got {value!r}")
        self.steps, self.batch = steps, batch

    def open(self, task: Task, *, device: str, threads: int) -> None:
        from nas.torch.runtime import pick_device, prepare

        self.device = pick_device(device)
        prepare(self.device, threads)
        self.data = task.load()

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        from nas.torch.diagnose import diagnose

        found = diagnose(arch, self.data, steps=self.steps, batch=self.batch, seed=seed, device=self.device)
        moment = found.end or found.start
        sizes = list(moment.sensitivities.values())
        if found.diverged or not all(map(math.isfinite, sizes)):
            raise Diverged("the loss or a gradient is not a number; see `nas diagnose`")
        _, height, width = arch.input_shape
        return {
            "dead_units": moment.dead_share,
            "gradient_spread": math.log10(max(*sizes, SMALLEST) / max(min(sizes), SMALLEST)) if sizes else 0.0,
            "effective_field": moment.field.size / math.sqrt(height * width),
        }

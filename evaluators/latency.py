"""Latency and memory of a network, measured where it runs, or latency predicted from a table of measured blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas.architecture import Architecture
from nas.device.settings import RUNTIMES, Settings
from nas.device.table import Table
from nas.errors import ConfigError, GraphError
from nas.evaluator import Evaluator, Report, Task
from nas.pricing import Price
from nas.space import Space
from nas.trial import Metric

SAMPLES = 20
"""Architectures of the space that are looked up before the search begins."""


class Latency(Evaluator):
    """Measures networks with random weights in inference: latency, throughput, memory. May stand beside any evaluator.

    `latency`: seconds of one run; `throughput`: images per second; `peak_memory`: bytes that one run takes, weights
    included (torch alone). How is said in `nas.device.timing`. On a machine with other work to do, or with several
    workers, latencies are those of such a machine; a table has one value for each network.

    Args:
        batch: images per run.
        threads: of the CPU. The training beside it has its own.
        channels_last: layout of images and weights.
        runtime: `torch`, or `onnx` (ONNX Runtime on the CPU, where it is installed).
        warmup: runs that do not count.
        repeats: runs of which a median is taken; three such medians that agree end it.
        seconds: after which no further median is taken, agreeing or not.
        table: file that `nas profile-device` wrote. Latency is then predicted from the blocks and nothing is measured:
            it is exact before anything is evaluated, like FLOPs, and `batch` and the others are those of the table.

    Raises ConfigError for an option out of range, or beside a table.
    """

    beside = True
    needs_data = False
    files = ("table",)

    def __init__(
        self, *, batch: int = 1, threads: int = 1, channels_last: bool = False, runtime: str = RUNTIMES[0],
        warmup: int = 3, repeats: int = 10, seconds: float = 2.0, table: str | None = None,
    ) -> None:  # fmt: skip
        self.settings = Settings(batch, threads, channels_last, runtime, "auto")
        for name, value, least in (("warmup", warmup, 0), ("repeats", repeats, 1)):
            if type(value) is not int or value < least:
                raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if type(seconds) not in (int, float) or not seconds > 0:
            raise ConfigError(f"seconds: expected a number above 0, got {seconds!r}")
        self.warmup, self.repeats, self.seconds, self.table = warmup, repeats, seconds, table
        self._known: Table | None = None
        self.needs_device = table is None
        if table is not None:
            if self.settings != Settings(device="auto"):
                raise ConfigError("table: it says itself how its blocks were measured; drop the other options")
            self.metrics = (Metric("latency", "min", "s", exact=True),)
            self.about = f"latency predicted from {table}"
            return
        memory = (Metric("peak_memory", "min", "bytes"),) if runtime == "torch" else ()
        self.metrics = (Metric("latency", "min", "s"), Metric("throughput", "max", "images/s"), *memory)
        self.about = f"latency measured: {self.settings}"

    def prices(self, space: Space) -> Sequence[Price]:
        """The predicted latency, if there is a table.

        Raises ConfigError for a table that cannot be read, or does not hold the blocks of the space.
        """
        if self.table is None:
            return ()
        self._known = Table.read(Path(self.table))
        self.about = f"latency predicted from {self._known}"
        price = self._known.price
        rng = np.random.default_rng(0)
        for _ in range(SAMPLES):
            with suppress(GraphError):
                made = space.architecture(space.sample(rng))
                price.part(made.body, made.input_shape)
        return (price,)

    def open(self, task: Task, *, device: str, threads: int) -> None:
        if self.table is not None:
            self._known = self._known or Table.read(Path(self.table))
            return
        from nas.device.timing import Bench
        from nas.torch.runtime import pick_device

        where = "cpu" if self.settings.runtime == "onnx" else str(pick_device(device))
        self._bench = Bench(replace(self.settings, device=where))

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        if self._known is not None:
            return {"latency": self._known.predict(arch)}
        from nas.device.timing import seconds

        graph = arch.graph()
        with self._bench.ready():
            runs = [self._bench.run(graph)]
            (latency,) = seconds(runs, warmup=self.warmup, rounds=self.repeats, longest=self.seconds)
            found = {"latency": latency, "throughput": self.settings.batch / latency}
            if self.settings.runtime == "torch":
                found["peak_memory"] = float(self._bench.memory(graph))
        return found

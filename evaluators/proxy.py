"""Zero-cost proxies as metrics, and their ensemble as one score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.architecture import Architecture
from nas.errors import ConfigError, Diverged, GraphError, PluginError, RunError
from nas.evaluator import Evaluator, Report, Task
from nas.space import Space
from nas.trial import ANALYSIS_METRICS, Metric

if TYPE_CHECKING:
    from torch import Tensor

FILE, PART = "reference.json", "reference.jsonl"

FORMAT = 1

DRAWS = 50
"""Samples of the space for each reference architecture, at most: in a small space most are known already."""

Prepared = Mapping[str, "np.ndarray[Any, np.dtype[np.float64]]"]


class Proxies(Evaluator):
    """Scores an architecture in milliseconds, untrained; every metric is better the larger it is.

    There is a metric for each proxy (but `flops` and `params`, which every trial has), and `score`, the ensemble: the
    sum over proxies of log(rank / n). Ranks are those among n reference architectures, random ones of the space that
    are scored once, before the first trial; so a score depends on nothing that was evaluated before. A proxy that is
    not defined for a network (NaN or infinite) makes its trial `diverged`.

    Args:
        proxies: names, or a set of them by name; see `nas.evaluators.proxies`.
        batch: images, always the same ones.
        noise: Gaussian noise and arbitrary labels in the place of the task's images, which are then not read.
        initialisations: how many times weights are drawn; scores are averaged.
        reference: how many reference architectures.

    Raises ConfigError for an option out of range, PluginError for an unknown proxy.
    """

    beside = True
    unit = "network"

    def __init__(
        self, *, proxies: str | Sequence[str] = "default", batch: int = 16, noise: bool = False,
        initialisations: int = 1, reference: int = 64,
    ) -> None:  # fmt: skip
        from .proxies import named

        for name, value, least in (
            ("batch", batch, 4), ("initialisations", initialisations, 1), ("reference", reference, 2),
        ):  # fmt: skip
            if type(value) is not int or value < least:
                raise ConfigError(f"evaluator.{name}: expected a whole number of at least {least}, got {value!r}")
        if type(noise) is not bool:
            raise ConfigError(f"evaluator.noise: expected true or false, got {noise!r}")
        self.proxies = named(proxies)
        self.batch, self.noise, self.initialisations, self.reference = batch, noise, initialisations, reference
        known = {metric.name for metric in ANALYSIS_METRICS}
        self.metrics = (Metric("score"), *[Metric(name) for name in self.proxies if name not in known])
        self.needs_data = not noise and any(proxy.needs != "nothing" for proxy in self.proxies.values())
        self.space: Space | None = None
        self.prepared: Prepared | None = None

    def use(self, space: Space) -> None:
        self.space = space

    # -- the reference, once -----------------------------------------------------------------------------------

    def recall(self, workdir: Path) -> Prepared | None:
        """The reference of this run, if it is there. Raises RunError if it is not one of these options."""
        file = workdir / FILE
        if not file.exists():
            return None
        try:
            found = json.loads(file.read_text())
            about, table = found["about"], {name: _floats(found["scores"][name]) for name in self.proxies}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(f"{file}: not a reference of proxies ({type(error).__name__} {error}); delete it") from None
        if about != self._about():
            raise RunError(f"{file}: belongs to other options, {about} instead of {self._about()}; delete it")
        return table

    def keep(self, prepared: Prepared, workdir: Path) -> None:
        content = {"about": self._about(), "scores": {name: _json(column) for name, column in prepared.items()}}
        (workdir / FILE).write_text(json.dumps(content))
        (workdir / PART).unlink(missing_ok=True)

    def prepare(self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]) -> Prepared:
        """Score the reference architectures; those in `workdir` that were scored before an interruption are kept."""
        from nas.torch.runtime import pick_device

        from .proxies import scores

        workdir.mkdir(parents=True, exist_ok=True)  # on a machine that does not see the run folder
        place = pick_device(device)
        images, labels = self._images(task)
        if (space := self.space) is None:
            raise PluginError("evaluator proxy does not know its space; call use(space) on it before anything else")
        architectures = list(islice(self._population(space, seed), self.reference))
        if len(architectures) < 2:
            raise ConfigError(
                f"evaluator proxy ranks networks, and the space {space.name!r} has fewer than two of them"
            )
        rows = _Rows(workdir / PART, {**self._about(), "seed": seed}, list(self.proxies))
        for done, arch in enumerate(architectures, 1):
            if done > len(rows.scores):
                found = scores(
                    [arch], self.proxies, images=images, labels=labels, seed=seed, device=place,
                    initialisations=self.initialisations,
                )  # fmt: skip
                rows.add({name: float(column[0]) for name, column in found.items()})
            report(done, {}, len(architectures))
        return {name: np.array([row[name] for row in rows.scores]) for name in self.proxies}

    def _population(self, space: Space, seed: int) -> Iterator[Architecture]:
        """Different random networks of the space that can be built, always the same ones."""
        rng, known = np.random.default_rng([seed, 1]), set[str]()
        for _ in range(DRAWS * self.reference):
            arch = space.architecture(space.sample(rng))
            with suppress(GraphError):
                if arch.key() not in known:
                    known.add(arch.key())
                    yield arch

    def _about(self) -> dict[str, Any]:
        """What the reference's scores depend on, beside the space and the seed."""
        options = {"batch": self.batch, "noise": self.noise, "initialisations": self.initialisations}
        return {"format": FORMAT, "proxies": list(self.proxies), "reference": self.reference, **options}

    # -- scoring -----------------------------------------------------------------------------------------------

    def open(self, task: Task, *, device: str, threads: int) -> None:
        from nas.torch.runtime import pick_device, prepare

        from .proxies import Reference

        if self.prepared is None:
            raise PluginError("evaluator proxy has no reference; set its `prepared` to what `prepare` returns")
        self.device = pick_device(device)
        prepare(self.device, threads)
        self._reference = Reference(self.prepared)
        self._batch = [part.to(self.device) for part in self._images(task)]

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        from .proxies import measure

        images, labels = self._batch
        found = measure(
            arch, self.proxies, images=images, labels=labels, seed=seed, initialisations=self.initialisations,
            device=self.device,
        )  # fmt: skip
        found["score"] = self._reference.score(found)
        metrics = {metric.name: found[metric.name] for metric in self.metrics if isfinite(found[metric.name])}
        wild = next((name for name, value in found.items() if not isfinite(value)), None)
        if wild is not None:
            raise Diverged(f"the proxy {wild} is {found[wild]}: {self.proxies[wild].blind}", metrics)
        return metrics

    def _images(self, task: Task) -> tuple[Tensor, Tensor]:
        import torch

        from nas.torch.loader import Batches

        from .proxies import noise
        from .supernet import sample

        if not self.needs_data:
            return noise(task.input_shape, self.batch, 0), torch.arange(self.batch) % task.classes
        data = task.load()
        return next(Batches(sample(data.train, self.batch), mean=data.mean, std=data.std, batch=self.batch).epoch())


class _Rows:
    """Scores as they come, a line each: what was written before an interruption is found again.

    A file of other options is replaced, and what follows a torn line is written anew.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], names: Sequence[str]) -> None:
        self.path = path
        self.scores: list[dict[str, float]] = []
        lines = path.read_text().splitlines() if path.exists() else []
        with suppress(ValueError, KeyError, TypeError, IndexError):
            if json.loads(lines[0]) == dict(about):
                for line in lines[1:]:
                    row = json.loads(line)
                    self.scores.append(dict(zip(names, _floats([row[name] for name in names]).tolist(), strict=True)))
        kept = [json.dumps(dict(about)), *[_line(row) for row in self.scores]]
        path.write_text("".join(f"{line}\n" for line in kept))

    def add(self, row: dict[str, float]) -> None:
        self.scores.append(row)
        with self.path.open("a") as file:
            file.write(f"{_line(row)}\n")


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(dict(zip(row, _json(np.array(list(row.values()))), strict=True)))


def _json(values: np.ndarray[Any, Any]) -> list[float | None]:
    """JSON has no number for what is not defined."""
    return [value if isfinite(value) else None for value in values.tolist()]


def _floats(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], dtype=float)

"""Scores any architecture of the space in seconds, with weights that were trained once for all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.architecture import Architecture
from nas.errors import ConfigError, PluginError
from nas.evaluator import Evaluator, Report, Task
from nas.space import Space
from nas.torch.recipe import Recipe
from nas.trial import Metric

if TYPE_CHECKING:
    from torch import Tensor

    from nas.torch.data import Split
    from nas.torch.loader import Batches
    from nas.torch.supernet.saved import Saved

SCHEMES = ("uniform", "sandwich")

CHUNK = 256
"""Images per batch when statistics are measured, at most."""

RESOLUTIONS = 4
"""For how many sizes the images are kept on the device."""

UNUSED = frozenset({
    "shrink", "ema", "flip", "resized_crop", "jitter", "hue", "randaugment", "magnitude", "mixup", "cutmix", "dropout",
    "drop_path", "compile", "graph",
})  # fmt: skip
"""Fields of `nas.torch.recipe.Recipe` that this training does without."""

DEFAULTS: Mapping[str, Any] = {"epochs": 40, "batch": 64, "lr": 0.1, "weight_decay": 4e-5, "clip": None}
"""Where they are not those of `nas.torch.recipe.Recipe`. `benchmarks/one_shot.py` measures what they are worth."""


def _signature() -> inspect.Signature:
    options = {
        field.name: DEFAULTS.get(field.name, field.default) for field in fields(Recipe) if field.name not in UNUSED
    }
    options |= {"scheme": "uniform", "calibration": 1024, "weights": None}
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature([inspect.Parameter(name, kind, default=value) for name, value in options.items()])


class Supernet(Evaluator):
    """One supernet for the whole space is trained before the first trial; architectures borrow its weights.

    Accuracy and cross entropy are those of the validation images, after the statistics of the batch norms were measured
    on some training images (Guo et al. 2019). They rank architectures; a network for use is trained by itself.

    Options are the fields of `nas.torch.recipe.Recipe` (but those in `UNUSED`), and

    - scheme: `uniform`, one random path per step (Guo et al. 2019), or `sandwich`, the largest, the smallest and two
      random ones with distillation (Yu et al. 2020).
    - calibration: training images for the statistics.
    - weights: a run folder or .safetensors file whose supernet is used instead of training one.

    Raises ConfigError for an option out of range.
    """

    __signature__ = _signature()
    metrics = (Metric("accuracy"), Metric("loss", "min"))

    def __init__(self, **options: Any) -> None:
        given = {name: p.default for name, p in _signature().parameters.items()} | options
        self.scheme, self.calibration, self.weights = (given.pop(name) for name in ("scheme", "calibration", "weights"))
        self.recipe = Recipe(**given)
        if self.scheme not in SCHEMES:
            raise ConfigError(f"scheme: expected {' or '.join(SCHEMES)}, got {self.scheme!r}")
        if type(self.calibration) is not int or self.calibration < 2:
            raise ConfigError(f"calibration: expected a whole number of at least 2 images, got {self.calibration!r}")
        if self.weights is not None and not (isinstance(self.weights, str) and self.weights):
            raise ConfigError(f"weights: expected a run folder or a .safetensors file, got {self.weights!r}")
        self.space: Space | None = None
        self.prepared: Saved | None = None

    def use(self, space: Space) -> None:
        self.space = space

    # -- training, once ----------------------------------------------------------------------------------------

    def recall(self, workdir: Path) -> Saved | None:
        """The supernet that was trained for this run, or that `weights` names. Raises RunError if it does not fit."""
        from nas.torch.supernet.saved import FILE, Saved, find

        file = workdir / FILE
        if file.exists() or self.weights is not None:
            source = file if file.exists() or self.weights is None else find(self.weights)
            saved = Saved.read(source)
            saved.check(self._space(), str(source))
            if source != file:  # the run is whole without the other one
                self.keep(saved, workdir)
            return saved
        return None

    def keep(self, prepared: Saved, workdir: Path) -> None:
        from nas.torch.supernet.saved import FILE

        prepared.write(workdir / FILE)
        (workdir / "checkpoint.pt").unlink(missing_ok=True)

    def prepare(self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]) -> Saved:
        """Train the supernet; the checkpoint in `workdir`, if there is one, is where it goes on."""
        from nas.torch.loader import Augment, Batches
        from nas.torch.runtime import pick_device
        from nas.torch.supernet import Supernet as Weights
        from nas.torch.supernet.saved import Saved
        from nas.torch.supernet.training import fit

        space, recipe = self._space(), self.recipe
        if self.weights is not None and (known := self.recall(workdir)) is not None:
            return known
        workdir.mkdir(parents=True, exist_ok=True)  # on a machine that does not see the run folder
        data, place = task.load(), pick_device(device)
        train = Batches(
            data.train, mean=data.mean, std=data.std, batch=recipe.batch, device=place, seed=seed,
            augment=Augment.default(data.input_shape) if recipe.augment else Augment(0, flip=False),
            channels_last=recipe.channels_last,
        )  # fmt: skip
        weights = Weights(space, seed=seed)
        fit(
            weights, train, recipe, scheme=self.scheme, seed=seed, device=place, checkpoint=workdir / "checkpoint.pt",
            report=lambda epoch, metrics: report(epoch, metrics, recipe.epochs),
        )  # fmt: skip
        return Saved.of(weights, scheme=self.scheme, epochs=recipe.epochs, seed=seed, data=task.data)

    def _space(self) -> Space:
        if self.space is None:
            raise PluginError("evaluator supernet does not know its space; call use(space) on it before anything else")
        return self.space

    # -- scoring -----------------------------------------------------------------------------------------------

    def open(self, task: Task, *, device: str, threads: int) -> None:
        from nas.torch.runtime import pick_device, prepare

        space = self._space()
        if self.prepared is None:
            raise PluginError("evaluator supernet has no weights; set its `prepared` to what `prepare` returns")
        self.device = pick_device(device)
        prepare(self.device, threads)
        self.supernet = self.prepared.supernet(space, "evaluator supernet").to(self.device)
        self.data = task.load()
        self._sample = sample(self.data.train, self.calibration)
        self._placed: dict[tuple[int, int], tuple[Split, Split]] = {}

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        from nas.export.weights import save
        from nas.torch.train import evaluate

        path = self.supernet.path(arch).eval()
        statistics, validation = self._batches(path.resolution)
        self._calibrate(path, statistics)
        metrics = evaluate(path, validation, device=self.device, precision=self.recipe.precision)
        save(path.weights(), workdir / "weights.safetensors", key=arch.key())
        return metrics

    def _calibrate(self, path: Any, batches: Batches) -> None:
        from nas.torch.train import autocast, trial_errors

        def images() -> Iterator[Tensor]:
            for x, _ in batches.epoch():
                yield x

        with autocast(self.recipe.precision, self.device):
            trial_errors(path.calibrate)(images())

    def _batches(self, size: tuple[int, int]) -> tuple[Batches, Batches]:
        """What statistics are measured on, and the validation images, at a resolution."""
        from nas.torch.loader import Batches, place

        if size not in self._placed:
            while len(self._placed) >= RESOLUTIONS:
                self._placed.pop(next(iter(self._placed)))
            both = (place(split, self.device, size) for split in (self._sample, self.data.validation))
            self._placed[size] = next(both), next(both)
        statistics, validation = self._placed[size]
        common: dict[str, Any] = {"mean": self.data.mean, "std": self.data.std, "device": self.device,
                                  "resolution": size, "channels_last": self.recipe.channels_last}  # fmt: skip
        chunks = -(-len(statistics) // CHUNK)
        equal = -(-len(statistics) // chunks)  # each batch counts the same, so none should be much smaller
        return Batches(statistics, batch=equal, **common), Batches(
            validation, batch=max(CHUNK, self.recipe.batch), **common
        )


def sample(split: Split, count: int) -> Split:
    """So many random images of a split, always the same ones, of all classes as often as they are in it."""
    total = len(split)
    rng = np.random.default_rng(0)
    order = rng.permutation(total)
    order = order[np.argsort(split.labels.cpu().numpy()[order], kind="stable")]
    chosen = order[np.linspace(0, total - 1, min(count, total)).astype(int)]
    index = rng.permutation(chosen)
    return replace(split, images=split.images[index], labels=split.labels[index])

"""Short training on the task's training images, scored on its validation images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.architecture import Architecture
from nas.errors import ConfigError, OutOfMemory
from nas.evaluator import Evaluator, Report, Task
from nas.space import Space
from nas.torch.recipe import Recipe
from nas.trial import Metric

if TYPE_CHECKING:
    from torch import nn

    from nas.torch.data import Split
    from nas.torch.supernet.saved import Lender


def _signature() -> inspect.Signature:
    own = inspect.Parameter("init", inspect.Parameter.KEYWORD_ONLY, default=None)
    return inspect.Signature([*inspect.signature(Recipe).parameters.values(), own])


RESOLUTIONS = 4
"""How many sizes of the data set are kept on the device."""


class Train(Evaluator):
    """Trains every architecture for a few epochs; accuracy and cross entropy are those of held-out images.

    Options are the fields of `nas.torch.recipe.Recipe`: epochs, batch, optimizer, lr, and so on. An interrupted
    trial goes on from its last epoch and ends as if it had not been interrupted.

    One option more is `init`: `supernet:RUN` starts from weights borrowed from the supernet of an earlier run, in whose
    space the architectures must lie; by default they start from random ones.

    Raises ConfigError for an option out of range.
    """

    __signature__ = _signature()  # what `--set evaluator.NAME=VALUE` takes
    metrics = (Metric("accuracy"), Metric("loss", "min"))

    def __init__(self, *, init: str | None = None, **options: Any) -> None:
        self.recipe = Recipe(**options)
        self.budget = float(self.recipe.epochs)
        kind, _, self.run = (init or "").partition(":")
        if init is not None and not (kind == "supernet" and self.run):
            raise ConfigError(f"init: expected none, or supernet: and a run folder such as runs/x, got {init!r}")
        self.lender: Lender | None = None

    def use(self, space: Space) -> None:
        """Read the weights to start from, where the run folder is. Raises RunError or ConfigError if none fit."""
        if not self.run:
            return
        from nas.torch.supernet.saved import Lender

        self.lender = Lender.of(self.run)
        if not self.lender.fits(space):
            raise ConfigError(
                f"init: no network of the space {space.name!r} lies in that of the supernet of {self.run}: "
                f"{self.lender.about}; search that space, or train a supernet for this one"
            )

    def open(self, task: Task, *, device: str, threads: int) -> None:
        from nas.torch.runtime import pick_device, prepare

        self.device = pick_device(device)
        prepare(self.device, threads)
        self.data = task.load()
        self._placed: dict[tuple[int, int], tuple[Split, Split]] = {}
        if self.run and self.lender is None:
            from nas.torch.supernet.saved import Lender

            self.lender = Lender.of(self.run)

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        from nas.export.weights import save

        recipe: Recipe | None = self.recipe
        while recipe is not None:
            smaller = recipe.halved()
            try:
                module, metrics = self._fit(arch, recipe, seed, budget, workdir, report)
                break
            except OutOfMemory:
                if smaller is None:
                    raise
            recipe = smaller
        save(module, workdir / "weights.safetensors", key=arch.key())
        return metrics

    def _fit(
        self, arch: Architecture, recipe: Recipe, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> tuple[nn.Module, dict[str, float]]:
        from nas.torch.loader import Augment, Batches
        from nas.torch.regularise import module_to_train
        from nas.torch.train import fit

        data, is_shrunk = self.data, recipe.batch != self.recipe.batch
        checkpoint = workdir / (f"checkpoint-{recipe.batch}.pt" if is_shrunk else "checkpoint.pt")
        channels, height, width = arch.input_shape
        train, validation = self._splits(height, width)
        common: dict[str, Any] = {"mean": data.mean, "std": data.std, "device": self.device,
                                  "resolution": (height, width), "channels_last": recipe.channels_last}  # fmt: skip
        placed_height, placed_width = train.images.shape[2:]
        augment = Augment.of(recipe, (channels, placed_height, placed_width))
        module = module_to_train(arch, seed=seed, dropout=recipe.dropout, drop_path=recipe.drop_path)
        if self.lender is not None:
            self.lender.lend(arch, module)
        metrics = fit(
            module,
            Batches(train, batch=recipe.batch, augment=augment, seed=seed, classes=arch.classes, **common),
            Batches(validation, batch=max(recipe.batch, 256), **common),
            recipe,
            seed=seed, device=self.device, epochs=None if budget is None else int(budget),
            checkpoint=checkpoint, report=report, deadline=report.remaining,
        )  # fmt: skip
        return module, metrics | ({"batch": float(recipe.batch)} if is_shrunk else {})

    def _splits(self, height: int, width: int) -> tuple[Split, Split]:
        """Training and validation images on the device, resized once for each of the last resolutions."""
        from nas.torch.loader import place

        size = height, width
        if size not in self._placed:
            while len(self._placed) >= RESOLUTIONS:
                self._placed.pop(next(iter(self._placed)))
            train, validation = (place(split, self.device, size) for split in (self.data.train, self.data.validation))
            self._placed[size] = train, validation
        return self._placed[size]

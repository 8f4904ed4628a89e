"""Differentiable architecture search: a supernet's weights and the architecture learned in turns, on any space."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.choices import Decision, Genotype, Label
from nas.errors import ConfigError, PluginError, SpaceError
from nas.evaluator import Task
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy
from nas.torch.supernet.settings import Settings
from nas.trial import Limit, Objective, Proposal, Trial

if TYPE_CHECKING:
    from nas.torch.data import Split

FILE = "found.json"

TRIES = 200
"""Architectures that are drawn for one that is new and within the limits."""

Point = Mapping[str, Any]
"""What was found for a preference: `preference`, `genotype`, and `probabilities` of the labels by path."""


class Darts(Strategy):
    """DARTS (Liu et al. 2019) on any space, for accuracy and FLOPs.

    1. `prepare` trains a relaxed supernet: in turns its weights on one half of the training images, and the
       probabilities of all decisions on the other. These depend on a preference between accuracy and FLOPs, which is
       drawn anew for each step, so that one supernet serves a whole front. With `points=1` there is one architecture,
       and `penalty` is the weight of log FLOPs; `points=1 penalty=0 epochs=50` is the paper's first-order search.
    2. `ask` proposes the architecture derived for each preference, and then draws from the probabilities learned.

    What it finds is evaluated like any other proposal. With no objective of cost the penalty is 0 and one is derived.

    Options are the fields of `nas.torch.supernet.settings.Settings`, which names the papers of `partial` (PC-DARTS),
    `gumbel` (GDAS), `beta`, `perturb` (SDARTS) and `stop` (RobustDARTS).

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), **options: Any
    ) -> None:
        super().__init__(space, objectives, limits)
        settings = Settings(**options)
        priced = [o.metric for o in objectives if o.metric in {price.metric for price in space.prices}]
        if priced:
            raise ConfigError(
                f"strategy darts learns with FLOPs, not with {priced[0]!r}; use --limit for it, or --strategy=evolution"
            )
        if not any(o.metric in ("flops", "params", "memory", "depth") for o in objectives):
            settings = replace(settings, points=1, penalty=0.0)
        self.settings = settings
        self.prepared: Sequence[Point] | None = None
        self._seen = Seen(space)
        self._proposed = 0

    # -- the long job ------------------------------------------------------------------------------------------

    def prepare(
        self, task: Task, workdir: Path, *, seed: int, device: str, report: Callable[..., None]
    ) -> Sequence[Point]:
        """Search; returns what was found for each preference.

        Goes on from the checkpoint in `workdir` if there is one, and ends as if it had not been interrupted.
        """
        from nas.torch.runtime import pick_device
        from nas.torch.supernet.bilevel import Bilevel
        from nas.torch.supernet.relaxed import Relaxed
        from nas.torch.supernet.store import Supernet

        where, settings = pick_device(device), self.settings
        relaxed = Relaxed(Supernet(self.space, seed=seed), affine=False, partial=settings.partial)
        batches = _halves(task, settings.batch, seed, where)
        search = Bilevel(relaxed, *batches, settings, seed=seed, device=where)
        found = search.run(
            checkpoint=workdir / "checkpoint.pt",
            report=lambda epoch, metrics: report(epoch, metrics, settings.epochs),
        )
        return [asdict(point) for point in found]

    def keep(self, prepared: Sequence[Point], workdir: Path) -> None:
        """Write what `prepare` found to the run folder."""
        temporary = workdir / f".{FILE}"
        temporary.write_text(json.dumps(prepared, indent=1) + "\n")
        temporary.replace(workdir / FILE)

    def recall(self, workdir: Path) -> Sequence[Point] | None:
        """What was kept, None if there is nothing. Raises ConfigError for a file that is damaged."""
        path = workdir / FILE
        if not path.exists():
            return None
        try:
            found: list[Point] = json.loads(path.read_text())
            for point in found:
                self.space.check(point["genotype"])
                float(point["preference"]), dict(point["probabilities"])
        except (ValueError, KeyError, TypeError, SpaceError) as error:
            raise ConfigError(f"{path}: not what a search left ({error}); delete it to search again") from None
        return found

    # -- the contract ------------------------------------------------------------------------------------------

    def tell(self, trial: Trial) -> None:
        self._seen.tell(trial)
        self._proposed += 1

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        if self.prepared is None:
            raise PluginError("strategy darts has found nothing yet; set its `prepared` to what `prepare` returns")
        self._seen.follow(pending)
        for _ in range(n):
            number = self._proposed + len(self._seen.pending)
            if number < len(self.prepared):
                point = self.prepared[number]
                proposal = Proposal(dict(point["genotype"]), {"preference": point["preference"]})
            else:
                proposal = self._drawn(rng)
            self._seen.add(proposal)
        return self._seen.pending[-n:]

    def _drawn(self, rng: np.random.Generator) -> Proposal:
        """One that is new, drawn from the probabilities of some preference; the last one drawn if none is."""
        assert self.prepared is not None
        for attempt in range(TRIES):
            point = self.prepared[int(rng.integers(len(self.prepared)))]
            # Where a search is sure, all draws are one network: ever more is drawn uniformly.
            genotype = _sample(self.space, point["probabilities"], attempt / TRIES, rng)
            candidate = Candidate(self.space, genotype)
            if not candidate.excess(self.limits) and candidate not in self._seen:
                break
        return Proposal(genotype, {"preference": point["preference"], "drawn": True})


def _sample(
    space: Space, probabilities: Mapping[str, Sequence[float]], uniform: float, rng: np.random.Generator
) -> Genotype:
    def decide(decision: Decision) -> int:
        labels = space.paths[decision.path]
        p = np.ones(len(decision))
        shares = probabilities.get(decision.path)
        if shares is not None and rng.random() >= uniform:
            known: dict[Label, float] = dict(zip(labels, shares, strict=True))
            p = np.array([known[label] for label in decision.labels])
        return int(rng.choice(len(p), p=p / p.sum()))

    return space.walk(decide)


def _halves(task: Task, batch: int, seed: int, device: Any) -> tuple[Any, Any]:
    """Batches of the two halves of the training images; the validation images are left for the evaluator."""
    from nas.torch.loader import Augment, Batches

    data = task.load()
    order = np.random.default_rng([seed, 0]).permutation(len(data.train.labels))
    augment = Augment.default(data.input_shape)

    def half(indices: np.ndarray, number: int) -> Batches:
        return Batches(
            _part(data.train, indices), mean=data.mean, std=data.std, batch=batch, device=device, augment=augment,
            seed=2 * seed + number,
        )  # fmt: skip

    middle = len(order) // 2
    return half(order[:middle], 0), half(order[middle:], 1)


def _part(split: Split, indices: np.ndarray) -> Split:
    import torch

    chosen = torch.from_numpy(np.sort(indices))
    return replace(split, images=split.images[chosen], labels=split.labels[chosen])


# What `--set strategy.NAME=VALUE` takes.
_first = list(inspect.signature(Strategy).parameters.values())
_own = [inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default) for f in fields(Settings)]
Darts.__signature__ = inspect.Signature([*_first, *_own])  # type: ignore[attr-defined]

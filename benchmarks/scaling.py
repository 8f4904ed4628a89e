"""Compound against single-axis scaling at equal FLOPs, on the digits (8x8 pixels, 10 classes).

    python benchmarks/scaling.py [--seeds 5] [--epochs 5] [--phi 2]

A small network is enlarged to 2 and 4 times its FLOPs: in depth, width or resolution alone; in all three evenly; and
by the coefficients that phase 1 of the strategy `scaling` finds (a grid of 15 points at phi = 1, trained with seeds
of its own). Validation accuracy after a short training on one thread: mean over the seeds and its standard error.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nas.strategies.scaling import Scaling

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual
from nas.choices import Repeat
from nas.evaluator import Evaluator, Report, Task
from nas.plugins import make_evaluator
from nas.space import Space
from nas.testing import ACCURACY
from nas.trial import Proposal, Trial

SINGLE = ("depth", "width", "resolution")


def base(task: Task) -> Architecture:
    """Two stages of two inverted residuals; wide enough for a doubling to be met by channels in multiples of 8."""
    stages = {f"stage{i}": Repeat(InvertedResidual(24 * i, expansion=2), 2, first={"stride": i}) for i in (1, 2)}
    body = Chain(stem=Conv(24), **stages, head=Head(task.classes))
    return Architecture(body, task.input_shape, task.classes, "small")


class Trainer:
    """Accuracies by structural key and seed: a network that two families share is trained once."""

    def __init__(self, task: Task, evaluator: Evaluator, folder: Path) -> None:
        evaluator.open(task, device="cpu", threads=1)
        self.evaluator, self.folder, self.known = evaluator, folder, dict[tuple[str, int], float]()

    def __call__(self, architecture: Architecture, seed: int) -> float:
        at = architecture.key(), seed
        if at not in self.known:
            workdir = self.folder / f"{at[0]}-{seed}"
            workdir.mkdir()
            report = Report(lambda epoch, metrics: None)
            budget = self.evaluator.budget
            found = self.evaluator.evaluate(architecture, seed=seed, budget=budget, workdir=workdir, report=report)
            self.known[at] = found["accuracy"]
        return self.known[at]


def ask(strategy: Scaling) -> list[Proposal]:
    return strategy.ask(1000, np.random.default_rng(0), [])


def select(strategy: Scaling, train: Trainer, seeds: Sequence[int]) -> tuple[float, ...]:
    """Phase 1: the coefficients of the winner, by the mean over the selection seeds."""
    for proposal in ask(strategy):
        architecture = strategy.space.architecture(proposal.genotype)
        accuracy = float(np.mean([train(architecture, seed) for seed in seeds]))
        metrics = {**architecture.metrics(), "accuracy": accuracy}
        strategy.tell(Trial(0, proposal.genotype, architecture.key(), "ok", metrics, note=proposal.note))
    note = ask(strategy)[0].note
    return note["alpha"], note["beta"], note["gamma"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--selection", type=int, default=1, help="seeds of phase 1")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--phi", type=int, default=2)
    options = parser.parse_args()
    started = time.process_time()
    task = Task.of("digits")
    small = base(task)
    space = Space(small.body, input_shape=small.input_shape, classes=small.classes)

    def scaling(**given: object) -> Scaling:
        return Scaling(space, [ACCURACY], base=small.to_json(), phi=options.phi, **given)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        train = Trainer(task, make_evaluator("train", {"epochs": options.epochs}), Path(folder))
        found = select(scaling(), train, [1000 + i for i in range(options.selection)])
        families = {axis: scaling(axes=axis) for axis in SINGLE}
        families["even"] = scaling(coefficients=[2 ** (1 / 3), 2 ** (1 / 6), 2 ** (1 / 6)])
        families["phase 1"] = scaling(coefficients=found)
        print(f"base {small.analysis.flops:,} FLOPs, {small.analysis.params:,} parameters; {options.epochs} epochs")
        print(f"phase 1 found depth {found[0]}, width {found[1]}, resolution {found[2]}")
        print(f"{'':12}" + "".join(f"{f'x {2**phi}':>24}" for phi in range(options.phi + 1)))
        spread: defaultdict[str, list[np.ndarray]] = defaultdict(list)
        for name, strategy in families.items():
            cells = []
            for proposal in ask(strategy):
                architecture = strategy.space.architecture(proposal.genotype)
                scores = 100 * np.array([train(architecture, seed) for seed in range(options.seeds)])
                spread[name].append(scores)
                error = scores.std(ddof=1) / len(scores) ** 0.5
                cells.append(
                    f"{scores.mean():.2f} ± {error:.2f} ({architecture.analysis.flops / small.analysis.flops:.2f}x)"
                )
            print(f"{name:12}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print("against phase 1, mean over phi of the difference paired by seed:")
    ours = np.mean(spread["phase 1"][1:], axis=0)
    for name in (*SINGLE, "even"):
        gap = ours - np.mean(spread[name][1:], axis=0)
        print(f"  {name:12} {gap.mean():+.2f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.2f}")
    print(f"{len(train.known)} trainings, {time.process_time() - started:.0f} s of CPU")


if __name__ == "__main__":
    main()

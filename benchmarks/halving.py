"""What successive halving saves, and what it loses: measured by replaying recorded trainings.

    python benchmarks/halving.py                  # replay, in many orders
    python benchmarks/halving.py --record RUN     # take the curves of a run instead of the recorded ones

The curves (data/fashion_curves.csv) are those of 40 random architectures of the mobile space at half width, under 4M
multiply-adds, each trained for 9 epochs on 20,000 images of Fashion-MNIST and measured on 5,000 others:

    nas search --data fashion_mnist.npz --space mobile --set space.width=0.5 --strategy random --trials 40
        --limit flops=4M --set data.limit=25000 --set evaluator.epochs=9 --set evaluator.batch=64

Each replay takes the 40 in another order. One worker sees a trial's report at a rung when the trial gets there; with
several workers the trials in flight report in the order of time, a trial's epoch lasting as long as it has
multiply-adds.
"""

from __future__ import annotations

import argparse
import csv
import heapq
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas import pareto
from nas.fidelity import Halving
from nas.store import Run
from nas.trial import Objective

CURVES = Path(__file__).parent / "data" / "fashion_curves.csv"
OBJECTIVES = (Objective("accuracy", "max"), Objective("flops", "min", exact=True))
WINDOW = 0.1
"""Accuracy below the best at which the hypervolume's reference lies."""

SHARE, LOSS = 0.40, 0.01
"""The aim: at most this share of the epochs, at most this loss of hypervolume."""

SETTINGS = (
    *(((1, 3), 2), ((1, 3), 3), ((1, 3), 4), ((1,), 3), ((3,), 3)),
    *(((2, 4), 3), ((1, 2, 4), 2), ((1, 2, 3, 4), 2), ((1, 2, 3, 4, 5, 6), 2)),
)
"""Rungs and eta."""


@dataclass(frozen=True)
class Curve:
    """A full training: multiply-adds, and validation accuracy after each epoch."""

    flops: float
    accuracy: tuple[float, ...]


def replay(curves: Sequence[Curve], rungs: Sequence[float], eta: float, workers: int) -> tuple[list[int], float]:
    """Numbers of the trials that are trained to the end, and the share of all epochs that is spent."""
    halving = Halving(rungs, eta, OBJECTIVES)
    waiting = iter(range(len(curves)))
    events: list[tuple[float, int, int]] = []  # time, trial, epoch that ends then

    def start(now: float) -> None:
        number = next(waiting, None)
        if number is not None:
            heapq.heappush(events, (now + curves[number].flops, number, 1))

    for _ in range(workers):
        start(0.0)
    ended, spent = [], 0
    while events:
        now, number, epoch = heapq.heappop(events)
        curve, spent = curves[number], spent + 1
        going = halving.report(number, epoch, {"accuracy": curve.accuracy[epoch - 1], "flops": curve.flops})
        if going and epoch < len(curve.accuracy):
            heapq.heappush(events, (now + curve.flops, number, epoch + 1))
            continue
        if going:
            ended.append(number)
        start(now)
    return ended, spent / sum(len(curve.accuracy) for curve in curves)


def volume(curves: Sequence[Curve], reference: tuple[float, float]) -> float:
    """Hypervolume of full trainings: multiply-adds against negative accuracy."""
    return pareto.hypervolume(np.array([[-curve.accuracy[-1], curve.flops] for curve in curves]), reference)


def read(path: Path) -> list[Curve]:
    """The recorded curves, one row per trial: flops, then accuracy after each epoch."""
    with path.open() as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))
    return [Curve(float(row[0]), tuple(map(float, row[1:]))) for row in rows[1:]]


def record(folder: Path, path: Path) -> None:
    """Write the curves of a run."""
    run = Run.open(folder)
    rows = [
        [int(trial.metrics["flops"]), *(f"{metrics['accuracy']:.4f}" for _, metrics in run.curves[trial.number])]
        for trial in run.trials
        if trial.evaluated and trial.ok
    ]
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        file.write("# Recorded by benchmarks/halving.py --record; see there for the command.\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["flops", *(f"epoch{e + 1}" for e in range(len(rows[0]) - 1))])
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="RUN")
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--orders", type=int, default=1000)
    options = parser.parse_args()
    if options.record:
        record(options.record, options.curves)
    curves = read(options.curves)
    reference = WINDOW - max(c.accuracy[-1] for c in curves), max(c.flops for c in curves)
    full = volume(curves, reference)
    front = pareto.ranks(np.array([[-c.accuracy[-1], c.flops] for c in curves])) == 0
    print(f"{len(curves)} trainings of {len(curves[0].accuracy)} epochs, {front.sum()} on the front")
    for epoch in (1, 3, 5):
        first, last = ([c.accuracy[e] for c in curves] for e in (epoch - 1, -1))
        ranks = [np.argsort(np.argsort(values)) for values in (first, last)]
        print(f"  rank correlation of accuracy after {epoch} epochs with the last: {np.corrcoef(*ranks)[0, 1]:.2f}")
    print(f"\n{options.orders} orders each; interval of the mean (95 %), and the worst of twenty orders\n")
    print("rungs        eta  workers  epochs spent  hypervolume of full training")
    reached = False
    rng = np.random.default_rng(0)
    for rungs, eta in SETTINGS:
        for workers in (1, 4):
            shares, volumes = [], []
            for _ in range(options.orders):
                order = [curves[i] for i in rng.permutation(len(curves))]
                ended, share = replay(order, rungs, eta, workers)
                shares.append(share)
                volumes.append(volume([order[i] for i in ended], reference) / full)
            mean, error = np.mean(volumes), 1.96 * np.std(volumes) / len(volumes) ** 0.5
            text = ",".join(map(str, rungs))
            print(
                f"{text:11}  {eta:3}  {workers:7}  {np.mean(shares):11.1%}   {mean:.4f} +- {error:.4f}   "
                f"{np.quantile(volumes, 0.05):.4f}"
            )
            reached |= bool(np.mean(shares) <= SHARE and mean - error >= 1 - LOSS)
    aim = f"at most {SHARE:.0%} of the epochs, and within {LOSS:.0%} of the hypervolume"
    print(f"\n{aim}: {'reached' if reached else 'not reached'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

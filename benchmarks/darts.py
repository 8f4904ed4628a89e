"""What a differentiable search finds, against random architectures of the same FLOPs that are trained alike.

    python benchmarks/darts.py --data fashion_mnist.npz --space nasbench201 --set channels=8 --set cells=1
    python benchmarks/darts.py --data digits --space mobile --option epochs=30

For each seed: the strategy's long job, then its architecture and `--networks` random ones within 5 % of its FLOPs are
trained by the `train` evaluator with its defaults. The search is at least as good as chance where the architecture
found is not below the median. CPU seconds are those of all that is done for it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nas.architecture import Architecture
from nas.evaluator import Evaluator, Report, Task
from nas.plugins import make_evaluator, make_space, make_strategy
from nas.preparation import Preparation
from nas.space import Space
from nas.testing import ACCURACY, FLOPS

TRIES = 100_000


def alike(space: Space, flops: float, n: int, rng: np.random.Generator) -> list[Architecture]:
    """Different random architectures with nearly so many FLOPs; fewer where the space has fewer."""
    found: dict[str, Architecture] = {}
    for _ in range(TRIES):
        genotype = space.sample(rng)
        if abs(space.costs(genotype)["flops"] / flops - 1) <= 0.05:
            architecture = space.architecture(genotype)
            found.setdefault(architecture.key(), architecture)
            if len(found) == n:
                break
    return list(found.values())


def accuracy(train: Evaluator, architecture: Architecture, seed: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        report = Report(lambda epoch, metrics: None)
        metrics = train.evaluate(architecture, seed=seed, budget=None, workdir=Path(folder), report=report)
    return metrics["accuracy"]


def searched(space: Space, task: Task, options: Mapping[str, Any], seed: int) -> Architecture:
    strategy: Any = make_strategy(
        "darts", space, [ACCURACY, FLOPS], (), options={"points": 1, "penalty": 0.0, **options}
    )
    with tempfile.TemporaryDirectory() as folder:
        job = Preparation(strategy, task, Path(folder), seed, "cpu", 1)
        found = job(lambda epoch, metrics, of: print(f"  epoch {epoch:g}/{of}  {_line(metrics)}", flush=True))
    return space.architecture(found[-1]["genotype"])


def _line(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _options(given: Sequence[str]) -> dict[str, Any]:
    return {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in given)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--space", default="nasbench201")
    parser.add_argument("--set", action="append", default=[], help="option of the space, NAME=VALUE")
    parser.add_argument("--option", action="append", default=[], help="option of the strategy, NAME=VALUE")
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    task = Task.of(given.data, limit=given.limit)
    space = make_space(given.space, task.input_shape, task.classes, _options(given.set))
    train = make_evaluator("train", {})
    train.open(task, device="cpu", threads=1)
    for seed in range(given.seeds):
        started = time.process_time()
        architecture = searched(space, task, _options(given.option), seed)
        searching = time.process_time() - started
        flops = architecture.metrics()["flops"]
        mine = accuracy(train, architecture, seed)
        others = [accuracy(train, a, seed) for a in alike(space, flops, given.networks, np.random.default_rng(seed))]
        low, middle, high = np.percentile(others, [0, 50, 100])
        verdict = "ok" if mine >= middle else "no"
        print(
            f"{verdict}  seed {seed}: {mine:.4f} at {flops:,.0f} FLOPs; median of {len(others)} random ones "
            f"{middle:.4f} ({low:.4f} to {high:.4f}); {searching:.0f} s of CPU for the search",
            flush=True,
        )
        print(f"   {dict(architecture.genotype)}", flush=True)


if __name__ == "__main__":
    main()

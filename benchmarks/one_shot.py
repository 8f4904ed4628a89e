"""How well a supernet ranks: its scores against trainings from scratch, beside what the costs alone would say.

    python benchmarks/one_shot.py                       # 20 networks on digits, uniform and sandwich
    python benchmarks/one_shot.py --data fashion_mnist.npz --limit 10000 --width 0.5 --networks 40 --seeds 1 \
        --schemes uniform

Random networks of the mobile space are trained by the `train` evaluator with its defaults, `--seeds` times each, and
scored by the `supernet` evaluator. Kendall's tau between two rankings is 1 where they agree and 0 where they have
nothing to do with each other; that of two trainings from scratch with different seeds is what there is to reach. In
brackets 95 % intervals, by drawing the networks anew 2,000 times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from nas.architecture import Architecture
from nas.evaluator import Evaluator, Report, Task
from nas.plugins import make_evaluator, make_space
from nas.preparation import Preparation
from nas.space import Space

EPOCHS = {"uniform": 40, "sandwich": 15}
"""Of the schemes that are compared; a sandwich of four networks costs as much as three to four times the epochs."""

DRAWS = 2000


def networks(space: Space, n: int) -> list[Architecture]:
    """Different random ones."""
    rng, found = np.random.default_rng(123), dict[str, Architecture]()
    while len(found) < n:
        architecture = space.architecture(space.sample(rng))
        found.setdefault(architecture.key(), architecture)
    return list(found.values())


def scored(evaluator: Evaluator, architectures: Sequence[Architecture], seed: int) -> list[tuple[float, float]]:
    """Accuracy, and the negative loss, of each."""
    found = []
    for architecture in architectures:
        with tempfile.TemporaryDirectory() as folder:
            report = Report(lambda epoch, metrics: None)
            metrics = evaluator.evaluate(architecture, seed=seed, budget=None, workdir=Path(folder), report=report)
        found.append((metrics["accuracy"], -metrics["loss"]))
    return found


def tau(a: Sequence[float], b: Sequence[float]) -> str:
    """Kendall's tau with its interval."""
    rng, x, y = np.random.default_rng(0), np.array(a), np.array(b)
    drawn = [rng.integers(len(x), size=len(x)) for _ in range(DRAWS)]
    low, high = np.nanpercentile([kendalltau(x[i], y[i]).statistic for i in drawn], [2.5, 97.5])
    return f"{kendalltau(x, y).statistic:.2f} ({low:.2f} to {high:.2f})"


def line(name: str, accuracy: Sequence[float], loss: Sequence[float], truth: np.ndarray[Any, Any], note: str) -> None:
    print(f"{name:32}  accuracy {tau(accuracy, truth[:, 0])}  loss {tau(loss, truth[:, 1])}  {note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--width", type=float, default=1.0, help="of the space")
    parser.add_argument("--schemes", nargs="+", default=list(EPOCHS))
    given = parser.parse_args()
    loading = {name: value for name in ("limit", "size") if (value := getattr(given, name)) is not None}
    task = Task.of(given.data, **loading)
    space = make_space("mobile", task.input_shape, task.classes, {"width": given.width})
    architectures = networks(space, given.networks)

    train = make_evaluator("train", {})
    train.open(task, device="cpu", threads=1)
    started = time.process_time()
    trainings = np.array([scored(train, architectures, seed) for seed in range(given.seeds)])
    seconds = (time.process_time() - started) / given.seeds
    truth = trainings.mean(0)
    costs = [architecture.metrics() for architecture in architectures]
    for name in ("flops", "params"):
        values = [cost[name] for cost in costs]
        line(name, values, values, truth, "")
    for seed in range(1, given.seeds):
        line(f"training, seed {seed}, with seed 0", *trainings[seed].T, trainings[0], f"{seconds:.0f} s of CPU")

    for scheme in given.schemes:
        evaluator: Any = make_evaluator("supernet", {"scheme": scheme, "epochs": EPOCHS[scheme]})
        evaluator.use(space)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            evaluator.prepared = Preparation(evaluator, task, Path(folder), 0, "cpu", 1)(lambda *words: None)
            preparing = time.process_time() - started
        evaluator.open(task, device="cpu", threads=1)
        started = time.process_time()
        found = np.array(scored(evaluator, architectures, 0))
        each = (time.process_time() - started) / len(found)
        name = f"supernet, {scheme}, {EPOCHS[scheme]} epochs"
        line(name, *found.T, truth, f"{preparing:.0f} s of CPU, then {each:.2f} s each")


if __name__ == "__main__":
    main()

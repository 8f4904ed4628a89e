"""Fashion-MNIST in an hour: search for ten minutes, train the chosen network, and ResNet-18 for as long.

    python benchmarks/fashion.py --data FOLDER/fashion_mnist.npz
    python benchmarks/fashion.py --data FOLDER/fashion_mnist.npz --search 30s --train 60 --limit 2000   # to try it

All by the command line that everybody has. How many epochs fit into the time of a training is measured beforehand with
each network's own steps. ResNet-18 is the one for small images: a 3x3 stem without stride, no pooling after it
(11.17 million parameters). Prints both, and whether the searched one has at least 93 % of the test images right.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from nas.architecture import Architecture
from nas.plugins import reference
from nas.session import load, threads_for
from nas.torch.data import Data
from nas.torch.data import load as load_data
from nas.torch.job import read_curve
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import FULL, Recipe
from nas.torch.runtime import prepare
from nas.torch.train import fit
from nas.training import CURVE, RESULT, read_result

SEARCH = ["--space=mobile", "--strategy=evolution", "--limit=flops=6M", "--trials=1000", "--set=evaluator.epochs=3",
          "--set=evaluator.batch=64"]  # fmt: skip
TRAIN = ["--set=train.flip=true"]
OTHER = "resnet18_cifar"
STEPS = 20
GOAL = 0.93


def epochs_in(seconds: float, architecture: Architecture, data: Data) -> int:
    """How many epochs of this network fit into a time, by the second half of some steps."""
    few = data.train.__class__(data.train.images[: STEPS * FULL["batch"]], data.train.labels[: STEPS * FULL["batch"]])
    common: dict[str, Any] = {"mean": data.mean, "std": data.std, "channels_last": True}
    train = Batches(few, batch=FULL["batch"], augment=Augment.default(data.input_shape), **common,
                    resolution=architecture.input_shape[1:])  # fmt: skip
    recipe, marks = Recipe(epochs=2, batch=FULL["batch"]), [time.perf_counter()]
    fit(
        architecture.module(seed=0), train, Batches(few, batch=256, **common, resolution=architecture.input_shape[1:]),
        recipe, seed=0, device="cpu", report=lambda *_: marks.append(time.perf_counter()),
    )  # fmt: skip
    each = (marks[2] - marks[1]) / len(few)  # one look at an image too, as the validation images get
    return max(1, int(seconds / (each * (len(data.train) + 0.25 * len(data.validation)))))


def nas(*arguments: str) -> None:
    """Run the command line."""
    print("nas", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "nas", *arguments], check=True)


def train(run: Path, which: str, architecture: Architecture, data: Data, seconds: float) -> dict[str, Any]:
    """Train for about so long, unless it has been done; what came of it."""
    folder = run / "train" / f"{architecture.name}-seed0"
    if not (folder / RESULT).exists():
        epochs = epochs_in(seconds, architecture, data)
        nas("train", str(run), f"--arch={which}", f"--epochs={epochs}", *TRAIN)
    return read_result(folder)


def draw(run: Path, results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy by minutes, a line for each training."""
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for found, color in zip(results, ("#1f6f8b", "#c8553d"), strict=True):
        rows = read_curve(run / "train" / f"{found['name']}-seed0" / CURVE)
        minutes, accuracies = ([row[name] for row in rows] for name in ("seconds", "accuracy"))
        label = f"{found['name']}: {found['params'] / 1e6:.2g} M parameters, test {found['test']['accuracy']:.2%}"
        axes.plot([m / 60 for m in minutes], [100 * a for a in accuracies], ".-", color=color, label=label)
    axes.set(xlabel="minutes of training", ylabel="validation accuracy (%)", xlim=(0, None))
    axes.grid(color="#e6eaee", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)


def main() -> int:
    """Search, train both, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="Fashion-MNIST as .npz, or the folder of its IDX files")
    parser.add_argument("--search", default="10m", help="time of the search")
    parser.add_argument("--train", type=float, default=1800, help="seconds of each training")
    parser.add_argument("--limit", type=int, help="images to keep, to try it")
    parser.add_argument("--out", type=Path, help="run folder, kept; what is finished in it is used")
    parser.add_argument("--picture", type=Path, help="draw both curves here")
    given = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    limit = [] if given.limit is None else [f"--set=data.limit={given.limit}"]
    data = load_data(given.data, limit=given.limit)
    prepare(torch.device("cpu"), threads_for(data.input_shape))
    with tempfile.TemporaryDirectory() as folder:
        run = given.out or Path(folder) / "run"
        if not (run / "front.json").exists():
            nas("search", f"--data={given.data}", *SEARCH, *limit, f"--time={given.search}", f"--out={run}")
        found = load(run)
        searched = max(trial.elapsed for trial in found.trials) / 60
        other = reference(OTHER).fitted(data.input_shape, data.classes)
        chosen = found.best().architecture
        results = [train(run, which, each, data, given.train) for which, each in (("best", chosen), (OTHER, other))]
        if given.picture is not None:
            draw(run, results, given.picture)
    print(f"search {searched:.1f} min; {torch.get_num_threads()} threads")
    for each in results:
        accuracy = f"test {each['test']['accuracy']:.4f}, validation {each['validation']['accuracy']:.4f}"
        size = f"{each['params']:,.0f} parameters, {each['flops']:,.0f} FLOPs, {each['latency_ms']:.2f} ms an image"
        print(f"{each['name']:14} {accuracy}, {size}; {each['epochs']} epochs in {each['seconds'] / 60:.1f} min")
    minutes = searched + results[0]["seconds"] / 60
    good = results[0]["test"]["accuracy"] >= GOAL and minutes <= 60
    verdict = "as it should be" if good else "NOT as it should be"
    print(f"{verdict}: {GOAL:.0%} within an hour, search included ({minutes:.0f} min)")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

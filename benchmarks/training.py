"""How fast a short training runs, and which recipe learns most in it. One thread, CPU seconds.

    python benchmarks/training.py speed
    python benchmarks/training.py recipes --data digits
    python benchmarks/training.py recipes --data FOLDER/fashion_mnist.npz --limit 5000 --epochs 5

`speed` trains the same network in fresh processes: as torch is found, with the allocator of `prepare`,
and with channels_last too, in the main thread and in another. `recipes` changes one thing at a time in
the default recipe. Figures of a GPU are not claimed anywhere: none was at hand.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from nas.torch.data import Data, Split, load
from nas.torch.init import initialise
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.runtime import prepare
from nas.torch.train import fit

MODES = ("defaults", "allocator", "allocator, channels_last")
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    *({"batch": 16, "lr": lr} for lr in (0.1, 0.2)),
    *({"lr": lr} for lr in (0.1, 0.4)),
    *({"batch": 64, "lr": lr} for lr in (0.2, 0.4)),
    *({"batch": 128, "lr": lr} for lr in (0.4, 0.8)),
    *({"optimizer": "adamw", "lr": lr, "weight_decay": 0.05} for lr in (0.003, 0.01)),
    *({"momentum": value} for value in (0.8, 0.95)),
    {"weight_decay": 0.0},
    *({"warmup": value} for value in (0.0, 1.0)),
    {"label_smoothing": 0.0},
    *({"clip": value} for value in (None, 5.0)),
    {"augment": True},
)


class InvertedResidual(nn.Module):
    """Expand 3 times, filter each channel, project; added to the input where the shape allows."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.body = nn.Sequential(
            *convolution(channels, wide, 1), *convolution(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.has_skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, out, H / stride, W / stride)."""
        return x + self.body(x) if self.has_skip else self.body(x)


def convolution(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """With batch norm and ReLU6."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU6(inplace=True)]


def network(channels: int, size: int, classes: int) -> nn.Module:
    """A small MobileNetV2: 75 thousand parameters; its stem halves all but tiny images."""
    layers = convolution(channels, 16, 3, stride=1 if size < 16 else 2)
    width = 16
    for out, stride in ((24, 1), (40, 2), (64, 1)):
        layers += [InvertedResidual(width, out, stride), InvertedResidual(out, out, 1)]
        width = out
    layers += [*convolution(width, 128, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


def train(data: Data, recipe: Recipe, seed: int) -> tuple[float, float, int]:
    """Train once; return the accuracy, and of its last epoch the CPU seconds and the page faults."""
    moments = {"mean": data.mean, "std": data.std, "channels_last": recipe.channels_last}
    augment = Augment.default(data.input_shape) if recipe.augment else Augment(0, False)
    batches = Batches(data.train, **moments, batch=recipe.batch, augment=augment, seed=seed)
    validation = Batches(data.validation, **moments, batch=256)
    module = network(data.input_shape[0], data.input_shape[1], data.classes)
    initialise(module, seed)
    marks = [usage()]
    metrics = fit(module, batches, validation, recipe, seed=seed, device="cpu", report=lambda *_: marks.append(usage()))
    return metrics["accuracy"], marks[-1][0] - marks[-2][0], marks[-1][1] - marks[-2][1]


def usage() -> tuple[float, int]:
    """CPU seconds and page faults of this process so far."""
    return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def noise(count: int = 512, size: int = 64) -> Data:
    """Images to time, not to learn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(count) % 10)
    few = Split(pixels[:32], split.labels[:32])
    return Data("noise", split, few, few, tuple("0123456789"))


def speed(batches: list[int]) -> None:
    """Print CPU seconds and page faults of an epoch, each mode in a fresh process."""
    print("one epoch of 512 images of 3x64x64; CPU seconds (page faults)")
    for batch in batches:
        for place in ("main", "thread"):
            figures = {}
            for mode in MODES:
                command = [sys.executable, __file__, "one", "--mode", mode, "--place", place, "--batch", str(batch)]
                figures[mode] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            first = figures[MODES[0]][0]
            cells = [f"{m}: {s:.2f} ({f:,}) {first / s:.1f}x" for m, (s, f) in figures.items()]
            print(f"batch {batch:3}, {place:6}  " + "   ".join(cells), flush=True)


def one(mode: str, place: str, batch: int) -> None:
    """Train in this process, set up as `mode` says, and print [seconds, faults]."""
    torch.set_num_threads(1)
    if mode != MODES[0]:
        prepare(torch.device("cpu"), 1)
    recipe = Recipe(epochs=2, batch=batch, channels_last="channels_last" in mode)

    def work() -> None:
        print(json.dumps(train(noise(), recipe, 0)[1:]))

    if place == "main":
        return work()
    thread = threading.Thread(target=work)
    thread.start()
    return thread.join()


def recipes(source: str, limit: int | None, epochs: int, seeds: int) -> None:
    """Print the validation accuracy of each changed recipe."""
    prepare(torch.device("cpu"), 1)
    data = load(source, limit=limit)
    base = Recipe(epochs=epochs)
    print(f"{data.describe()}\nbase: {base}")
    for change in CHANGES:
        results = [train(data, replace(base, **change), seed) for seed in range(seeds)]
        accuracies = [accuracy for accuracy, _, _ in results]
        spread = stdev(accuracies) if seeds > 1 else 0.0
        words = ", ".join(f"{name} {value}" for name, value in change.items()) or "base"
        seconds = mean(seconds for _, seconds, _ in results)
        print(f"{words:40} {mean(accuracies):.4f} +- {spread:.4f}  {seconds:.2f} s per epoch", flush=True)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "recipes", "one"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mode", choices=MODES, default=MODES[0])
    parser.add_argument("--place", choices=["main", "thread"], default="main")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    options = parser.parse_args()
    if options.what == "speed":
        speed(options.batch)
    elif options.what == "one":
        one(options.mode, options.place, options.batch[0])
    else:
        recipes(options.data, options.limit, options.epochs, options.seeds)


if __name__ == "__main__":
    main()

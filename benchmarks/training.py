"""How fast a training runs, and which recipe learns most in a short one.

    python benchmarks/training.py epoch
    python benchmarks/training.py speed
    python benchmarks/training.py recipes --data digits
    python benchmarks/training.py recipes --data FOLDER/fashion_mnist.npz --limit 5000 --epochs 5

`epoch` compares an epoch with a plain loop over a `DataLoader`, with the same network, augmentation and optimiser, in
turns: wall-clock seconds, all cores, or a GPU with `--device cuda` (with and without CUDA graphs; not run on one yet).
Both train a small MobileNetV2 written by hand, and random networks of the mobile space.
`speed` trains the same network in fresh processes: as torch is found, with the allocator of `prepare`,
and with channels_last too, in the main thread and in another: one thread, CPU seconds. `recipes` changes one
thing at a time in the default recipe. Figures of a GPU are not claimed anywhere: none was at hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from nas.search_spaces.mobile import mobile
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from nas.torch.data import Data, Split, load
from nas.torch.init import initialise
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.runtime import prepare
from nas.torch.train import fit

IMAGES = 2048
"""In an epoch that is compared with a plain loop."""
EPOCHS = 4
"""In a process of that comparison; the first warms up, of the others the fastest counts."""
DRAWS = (0, 1, 2)
"""Seeds of the drawn networks."""
VARIANTS: dict[str, dict[str, Any]] = {
    "ours, spinning": {}, "ours, compiled": {"compile": True}, "ours, no graph": {"graph": False},
}  # fmt: skip
"""Of our loop: with threads that wait for work as torch's do by themselves, for a machine of one's own; what differs in
the recipe."""

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


def drawn(data: Data, seed: int) -> nn.Module:
    """A random network of the mobile space."""
    space = mobile(data.input_shape, data.classes)
    return space.architecture(space.sample(np.random.default_rng(seed))).module(seed=0)


def by_hand(data: Data) -> nn.Module:
    """`network`, initialised as `fit` wants it."""
    module = network(data.input_shape[0], data.input_shape[1], data.classes)
    initialise(module, 0)
    return module


NETWORKS: dict[str, Callable[[Data], nn.Module]] = {
    "by hand": by_hand, **{f"drawn {seed}": partial(drawn, seed=seed) for seed in DRAWS},
}  # fmt: skip


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


class Plain(Dataset[tuple[Tensor, int]]):
    """Images as a tutorial has them: each is padded, cropped, mirrored and normalised by itself."""

    def __init__(self, data: Data, pad: int) -> None:
        self.split, self.pad = data.train, pad
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.split.images[index].float() / 255
        _, height, width = image.shape
        top, left = torch.randint(2 * self.pad + 1, (2,)).tolist()
        image = functional.pad(image, [self.pad] * 4)[:, top : top + height, left : left + width]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - self.mean) / self.std, int(self.split.labels[index])


def clocks() -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


def differences(marks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of both clocks between marks."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)]


def plain_epochs(
    module: nn.Module, data: Data, recipe: Recipe, device: torch.device, workers: int
) -> list[tuple[float, float]]:
    """Seconds of each epoch of the loop that everybody writes."""
    module = module.to(device)
    loader = DataLoader(
        Plain(data, Augment.default(data.input_shape).crop), batch_size=recipe.batch, shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=device.type == "cuda",
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        module.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, nesterov=True
    )
    steps = recipe.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    module.train()
    marks = [clocks()]
    for _ in range(recipe.epochs):
        total = 0.0
        for images, labels in loader:
            x, y = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(module(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), recipe.clip or 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        marks.append(clocks())
    return differences(marks)


def our_epochs(module: nn.Module, data: Data, recipe: Recipe, device: torch.device) -> list[tuple[float, float]]:
    """Seconds of each epoch of `fit`, its look at a few validation images included."""
    prepare(device, torch.get_num_threads())
    moments = {"mean": data.mean, "std": data.std, "channels_last": recipe.channels_last, "device": device}
    train_batches = Batches(data.train, **moments, batch=recipe.batch, augment=Augment.of(recipe, data.input_shape))
    marks = [clocks()]
    fit(
        module, train_batches, Batches(data.validation, **moments, batch=256), recipe, seed=0, device=device,
        report=lambda *_: marks.append(clocks()),
    )  # fmt: skip
    return differences(marks)


def epoch(device: str, rounds: int, threads: int, networks: Sequence[str]) -> None:
    """Print the seconds of an epoch, each way in fresh processes in turns, and how many times faster ours is."""
    ways = ["plain, no workers", "plain, 2 workers", "ours", *VARIANTS]
    if device == "cpu":
        ways.remove("ours, no graph")
    print(f"an epoch of {IMAGES} images of 3x32x32, {threads} threads: wall-clock (CPU of the process) seconds")
    for name, batch in itertools.product(networks, (32, 128)):
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                options = {"mode": way, "network": name, "batch": batch, "device": device, "threads": threads}
                command = [sys.executable, __file__, "one-epoch", *(f"--{n}={v}" for n, v in options.items())]
                # As nas.cli does, see there; a plain loop has what torch has by itself, which is to spin for long.
                spins = {"GOMP_SPINCOUNT": "2000"} if way.startswith("ours") and "spinning" not in way else {}
                done = subprocess.run(command, check=True, capture_output=True, env={**spins, **os.environ})
                found[way].append(min(map(tuple, json.loads(done.stdout)[1:])))
        wall, cpu = ({way: median(pair[i] for pair in pairs) for way, pairs in found.items()} for i in (0, 1))
        plain = min(ways[:2], key=wall.__getitem__)
        print(f"{name}, batch {batch}: " + ", ".join(f"{way} {wall[way]:.2f} ({cpu[way]:.2f})" for way in ways))
        times = ", ".join(f"{way} {wall[plain] / wall[way]:.2f}" for way in ways[2:])
        print(f"    times faster than the faster plain loop: {times}", flush=True)


def one_epoch(mode: str, name: str, batch: int, device: str, threads: int) -> None:
    """Train some epochs in this process, and print their seconds."""
    torch.set_num_threads(threads)
    data = noise(IMAGES, 32)
    module = NETWORKS[name](data)
    recipe = Recipe(epochs=EPOCHS, batch=batch, augment=True, **VARIANTS.get(mode, {}))
    place = torch.device(device)
    if mode.startswith("plain"):
        print(json.dumps(plain_epochs(module, data, recipe, place, 2 if "2" in mode else 0)))
    else:
        print(json.dumps(our_epochs(module, data, recipe, place)))


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
    parser.add_argument("what", choices=["epoch", "speed", "recipes", "one", "one-epoch"])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--mode", default=MODES[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="of epoch")
    parser.add_argument("--network", default="by hand")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of epoch; all cores by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", choices=["main", "thread"], default="main")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    options = parser.parse_args()
    if options.what == "epoch":
        epoch(options.device, options.rounds, options.threads or torch.get_num_threads(), options.networks)
    elif options.what == "one-epoch":
        one_epoch(
            options.mode, options.network, options.batch[0], options.device, options.threads or torch.get_num_threads()
        )
    elif options.what == "speed":
        speed(options.batch)
    elif options.what == "one":
        one(options.mode, options.place, options.batch[0])
    else:
        recipes(options.data, options.limit, options.epochs, options.seeds)


if __name__ == "__main__":
    main()

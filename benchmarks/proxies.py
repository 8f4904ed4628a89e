"""What zero-cost proxies are worth, and how fast they are. One thread, CPU seconds.

    python benchmarks/proxies.py ranks --data fashion_mnist.npz     # 300 networks of NAS-Bench-Macro
    python benchmarks/proxies.py ranks                              # the same, on noise
    python benchmarks/proxies.py cells --data fashion_mnist.npz     # 40 small networks of cells, trained here
    python benchmarks/proxies.py speed
    python benchmarks/proxies.py where

`ranks` compares every proxy, the counts and ensembles with the published accuracies: Spearman's and Kendall's rank
correlation, in brackets 95 % intervals by drawing the networks anew 1,000 times, and Spearman's beside FLOPs: what is
left of it among networks of the same FLOPs (partial rank correlation). Images of one channel are repeated to three.
`cells` does the same with networks of `nasbench201` that are trained for a short while.

`speed` has two processes take turns: one with each proxy as it is usually written (`plain_proxies.py`), one with ours.
Building the network counts. `where` tells the parts of ours apart, and what the allocator is worth.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nas.evaluators.proxies import BATCH, SETS, Reference, ensemble, measure, named, noise, scores
from nas.evaluators.proxies.network import Network
from nas.evaluators.proxies.passes import Passes
from nas.evaluators.supernet import sample
from plain_proxies import PLAIN
from scipy.stats import kendalltau, rankdata, spearmanr
from torch import Tensor

from nas.architecture import Architecture
from nas.evaluator import Report, Task
from nas.plugins import available, make_evaluator, make_space
from nas.torch.data import load
from nas.torch.loader import Batches
from nas.torch.runtime import prepare

TABLE = Path(__file__).parents[1] / "evaluators/data/nas-bench-macro.csv.gz"
ENSEMBLES = {
    **{f"set {name}": names for name, names in SETS.items()},
    "nwot, jacob_cov": ("nwot", "jacob_cov"),
    "flops, nwot": ("flops", "nwot"),
    "params, synflow, nwot, jacob_cov": ("params", "synflow", "nwot", "jacob_cov"),
}
DRAWS = 1000
SMALL = {"channels": 8, "cells": 1}
Array = np.ndarray[Any, Any]


def batch(data: str | None, count: int, size: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Images (count, channels, size, size), normalised, and labels; noise if there are no data."""
    if data is None:
        return noise((3, size, size), count, 0), torch.arange(count) % 10
    found = load(data)
    batches = Batches(sample(found.train, count), mean=found.mean, std=found.std, batch=count, resolution=(size, size))
    x, y = next(batches.epoch())
    return x.expand(-1, channels, -1, -1).contiguous(), y


# -- ranks -------------------------------------------------------------------------------------------------------------


def published(count: int) -> tuple[list[Architecture], Array, Array]:
    """Random networks of the table, their mean accuracies, and how many of their layers are no identities."""
    space = make_space("nasbench-macro", (3, 32, 32), 10, {})
    with gzip.open(TABLE, "rt", encoding="ascii") as lines:
        rows = list(csv.DictReader(lines))
    chosen = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]
    architectures = [space.architecture(space.decode([int(digit) for digit in row["code"]])) for row in chosen]
    accuracies = np.array([[float(row[f"accuracy{i}"]) for i in range(3)] for row in chosen]).mean(1)
    return architectures, accuracies, np.array([8.0 - row["code"].count("0") for row in chosen])


def partial(x: Array, truth: Array, given: Array) -> float:
    """Spearman's correlation of two columns with what a third says of them taken out."""
    a, b, c = (float(spearmanr(*pair).statistic) for pair in ((x, truth), (x, given), (truth, given)))
    return (a - b * c) / ((1 - b * b) * (1 - c * c)) ** 0.5 if abs(b) < 1 else 0.0


def interval(statistic: Callable[[Array, Array], Any], x: Array, truth: Array) -> str:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(x), size=len(x)) for _ in range(DRAWS)]
    low, high = np.nanpercentile([statistic(x[i], truth[i]).statistic for i in drawn], [2.5, 97.5])
    return f"{statistic(x, truth).statistic:5.2f} ({low:5.2f} to {high:5.2f})"


def ranks(count: int, data: str | None, size: int) -> None:
    architectures, truth, layers = published(count)
    x, y = batch(data, size)
    table = scores(architectures, sorted(available("proxies")), images=x, labels=y)
    more = {"non-identity layers": layers, "score of the evaluator": by_reference(table, x, y)}
    print(f"{len(truth)} networks, {size} images of {data or 'noise'}")
    show(table, more, truth)


def cells(count: int, data: str, size: int) -> None:
    """Small networks of `nasbench201`, trained for four epochs on 4,000 images."""
    task = Task.of(data, limit=4000, size=16)
    space, rng = make_space("nasbench201", task.input_shape, task.classes, SMALL), np.random.default_rng(11)
    different: dict[str, Architecture] = {}
    while len(different) < count:
        arch = space.architecture(space.sample(rng))
        different.setdefault(arch.key(), arch)
    train, losses = make_evaluator("train", {"epochs": 4, "batch": 64}), []
    train.open(task, device="cpu", threads=1)
    for arch in different.values():
        with tempfile.TemporaryDirectory() as folder:
            report = Report(lambda epoch, metrics: None)
            found = train.evaluate(arch, seed=0, budget=None, workdir=Path(folder), report=report)
        losses.append(-found["loss"])
    x, y = batch(data, size, 16, task.input_shape[0])
    print(f"{count} networks, {size} images of {data}, validation loss")
    show(scores(different.values(), sorted(available("proxies")), images=x, labels=y), {}, np.array(losses))


def show(table: Mapping[str, Array], more: Mapping[str, Array], truth: Array) -> None:
    columns = {name: np.where(np.isfinite(column), column, -np.inf) for name, column in table.items()}
    columns = {name: rankdata(column) for name, column in columns.items()} | dict(more)
    columns |= {name: ensemble({one: table[one] for one in names}) for name, names in ENSEMBLES.items()}
    for name, column in sorted(columns.items(), key=lambda item: -float(spearmanr(item[1], truth).statistic)):
        beside = partial(column, truth, columns["flops"])
        line = f"{interval(spearmanr, column, truth)}  Kendall {interval(kendalltau, column, truth)}"
        print(f"{name:34} Spearman {line}  beside FLOPs {beside:5.2f}", flush=True)


def by_reference(table: Mapping[str, Array], x: Tensor, y: Tensor) -> Array:
    """The default ensemble as the evaluator gives it: among 64 random networks of the space."""
    space, rng = make_space("nasbench-macro", (3, 32, 32), 10, {}), np.random.default_rng(1)
    others = [space.architecture(space.sample(rng)) for _ in range(64)]
    reference = Reference(scores(others, "default", images=x, labels=y, seed=1))
    rows = zip(*[table[name] for name in SETS["default"]], strict=True)
    return np.array([reference.score(dict(zip(SETS["default"], row, strict=True))) for row in rows])


# -- speed -------------------------------------------------------------------------------------------------------------


def work(pipe: Connection, plain: bool, keep: bool, architectures: list[Architecture]) -> None:
    """Answer (proxies, which architecture) with the CPU seconds that it takes; `keep` freed memory, or not."""
    torch.set_num_threads(1)
    if keep:
        prepare(torch.device("cpu"), 1)
    x, y = batch(None, BATCH)
    while (asked := pipe.recv()) is not None:
        names, which = asked
        arch = architectures[which]
        started = time.process_time()
        if plain:
            PLAIN[names](arch.module(seed=0).train(), x, y, arch.graph())
        else:
            measure(arch, names, images=x, labels=y)
        pipe.send(time.process_time() - started)


def turns(kinds: Mapping[str, tuple[bool, bool]], tasks: Sequence[str], count: int) -> Iterator[dict[str, float]]:
    """For each task the mean seconds of each kind of process (plain, keep), which take turns."""
    architectures = []
    for space in ("nasbench-macro", "nasbench201"):
        found, rng = make_space(space, (3, 32, 32), 10, {}), np.random.default_rng(0)
        architectures += [found.architecture(found.sample(rng)) for _ in range(count)]
    context, workers = multiprocessing.get_context("spawn"), []
    for plain, keep in kinds.values():
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, plain, keep, architectures), daemon=True)
        process.start()
        workers.append((here, process))
    for task in tasks:
        seconds = np.zeros((len(kinds), len(architectures)))
        for turn in range(-1, len(architectures)):  # the first one warms up
            for kind, (pipe, _) in enumerate(workers):
                pipe.send((task, max(turn, 0)))
                seconds[kind, max(turn, 0)] = pipe.recv()
        yield dict(zip(kinds, seconds.mean(1).tolist(), strict=True))
    for pipe, process in workers:
        pipe.send(None)
        process.join()


def speed(count: int) -> None:
    ratios = []
    for name, seconds in zip(
        PLAIN, turns({"plain": (True, False), "ours": (False, True)}, list(PLAIN), count), strict=True
    ):
        plain, ours = seconds["plain"], seconds["ours"]
        ratios.append(plain / ours)
        print(f"{name:12} {1 / plain:6.1f} a second, ours {1 / ours:6.1f}  x {plain / ours:.2f}", flush=True)
    print(f"mean x {np.mean(ratios):.2f}, geometric mean x {np.exp(np.mean(np.log(ratios))):.2f}")


# -- where the time goes -----------------------------------------------------------------------------------------------


def milliseconds(action: Callable[[], Any], repeats: int = 9) -> float:
    seconds = []
    for _ in range(repeats + 2):
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    return float(np.median(seconds[2:])) * 1e3


def where() -> None:
    prepare(torch.device("cpu"), 1)
    x, y = batch(None, BATCH)
    shared = ("nwot", "snip", "grad_norm", "fisher", "jacob_cov")
    for space in ("nasbench-macro", "nasbench201"):
        found, rng = make_space(space, (3, 32, 32), 10, {}), np.random.default_rng(1)
        arch = found.architecture(found.sample(rng))
        graph, channels_last = arch.graph(), x.contiguous(memory_format=torch.channels_last)
        network, module = Network(graph, seed=0), arch.module(seed=0).train()

        def forward(run: Callable[[Tensor], Tensor], images: Tensor) -> None:
            with torch.no_grad():
                run(images)

        def passes(*names: str, arch: Architecture = arch) -> None:
            chosen = named(names)
            uses = frozenset().union(*[proxy.uses for proxy in chosen.values()])
            made = Passes(arch, x, y, seed=0, uses=uses)
            for proxy in chosen.values():
                proxy.score(made)

        print(f"{space}: {arch.analysis.flops / 1e6:.0f} MFLOPs, {arch.analysis.params / 1e6:.2f} M parameters; ms")
        lines: dict[str, Callable[[], Any]] = {
            "module with initial weights": lambda arch=arch: arch.module(seed=0),
            "its forward pass": lambda module=module: forward(module, x),
            "network of plain weights": lambda graph=graph: Network(graph, seed=0),
            "its forward pass, channels last": lambda network=network, x=channels_last: forward(network.run, x),
            "nwot": lambda passes=passes: passes("nwot"),
            "jacob_cov": lambda passes=passes: passes("jacob_cov"),
            "flops, nwot, jacob_cov": lambda passes=passes: passes("flops", "nwot", "jacob_cov"),
            "five that share passes": lambda passes=passes: passes(*shared),
        }
        for name, action in lines.items():
            print(f"  {name:34} {milliseconds(action):6.1f}", flush=True)
        alone = sum(milliseconds(lambda name=name, passes=passes: passes(name)) for name in shared)  # type: ignore[misc]
        print(f"  {'the same five, each alone':34} {alone:6.1f}", flush=True)
    tasks = ["nwot", "snip", "default"]
    for task, seconds in zip(tasks, turns({"freed": (False, False), "kept": (False, True)}, tasks, 4), strict=True):
        freed, kept = (1e3 * seconds[kind] for kind in ("freed", "kept"))
        print(f"{task}: {freed:.1f} ms as malloc is found, {kept:.1f} ms where it keeps freed memory", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ranks", "cells", "speed", "where"))
    parser.add_argument(
        "--data", help="of ranks and cells: what nas.torch.data.load takes; by default noise, and digits"
    )
    parser.add_argument("--networks", type=int, help="of ranks 300, of cells 40, of speed 8 of each space")
    parser.add_argument("--batch", type=int, default=BATCH, help="of ranks and cells")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "ranks":
        prepare(torch.device("cpu"), 1)
        ranks(given.networks or 300, given.data, given.batch)
    elif given.what == "cells":
        cells(given.networks or 40, given.data or "digits", given.batch)
    elif given.what == "speed":
        speed(given.networks or 8)
    else:
        where()


if __name__ == "__main__":
    main()

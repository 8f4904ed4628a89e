"""Exported files against the modules they were made from, in a fresh interpreter that cannot import this package.

    python benchmarks/export.py [--count 50] [--formats source,state,json,program,onnx] [--sets mobile,zoo]

For each space, and for the reference architectures: random weights, norms and biases as after training; by format the
largest max|difference| / max|output| on two images and on one; how many classes and lines a source file has. An error
if a difference is above 1e-5, or 1e-4 for ONNX. `--share 1/2` takes every second network, `2/2` the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from nas.search_spaces import zoo
from nas.search_spaces.darts import darts
from nas.search_spaces.lecture import lecture
from nas.search_spaces.mobile import mobile
from nas.search_spaces.nasbench201 import nasbench201
from nas.search_spaces.nasbench_macro import nasbench_macro
from torch import nn

from nas.architecture import Architecture
from nas.errors import GraphError
from nas.export.check import check_many, vary
from nas.export.formats import WRITERS, Network
from nas.export.source import compose
from nas.space import Space

BATCH = 10  # networks that one interpreter checks
HEAVIEST = 60e6  # parameters of these together, unless one alone has more
DEEPEST = 400  # nodes: more residual blocks have no finite outputs unless their norms make them small


def sampled(space: Space, count: int) -> Iterator[Architecture]:
    """Random architectures of a space."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield space.architecture(space.sample(rng))


def references() -> Iterator[Architecture]:
    """Reference architectures, on small inputs where they take them."""
    for name in zoo.names():
        found = zoo.get(name)
        if found.input_shape[1] > 96:
            with suppress(GraphError):  # too small an input for this one
                small = zoo.get(name, input_shape=(3, 96, 96))
                found = small if small.graph() else found
        yield found


def batches(architectures: Iterator[Architecture]) -> Iterator[list[Architecture]]:
    """In groups that one interpreter can hold."""
    batch: list[Architecture] = []
    for architecture in architectures:
        if batch and (len(batch) == BATCH or sum(each.analysis.params for each in (*batch, architecture)) > HEAVIEST):
            yield batch
            batch = []
        batch.append(architecture)
    yield batch


def prepared(architecture: Architecture, seed: int) -> nn.Module:
    """The module with weights as after training."""
    module = architecture.module(seed=seed)
    vary(module)
    if len(architecture.graph().nodes) > DEEPEST:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.weight, 0.1)
    return module.eval()


def measure(name: str, architectures: Iterator[Architecture], formats: Sequence[str]) -> None:
    """Export, check and print a line per format."""
    worst = dict.fromkeys(formats, 0.0)
    classes, lines, seconds = [], [], 0.0
    for batch in batches(architectures):
        with tempfile.TemporaryDirectory() as folder:
            cases = []
            for i, architecture in enumerate(batch):
                module = prepared(architecture, i)
                began = time.process_time()
                network = Network(architecture, module, trained=True)
                cases += [WRITERS[each](network, Path(folder), f"network{i}").case for each in formats]
                seconds += time.process_time() - began
                made = compose(architecture, name=f"network{i}").text
                classes.append(made.count("\nclass "))
                lines.append(made.count("\n"))
            for checked, difference in zip(cases, check_many(cases), strict=True):
                worst[checked.kind] = max(worst[checked.kind], difference)
    count = len(classes)
    print(f"{name}: {count} networks, {seconds / count:.1f} CPU s each to write")
    for each, difference in worst.items():
        print(f"    {each:10} largest difference {difference:.1e}", flush=True)
    print(
        f"    classes {np.mean(classes):.1f} ({min(classes)} to {max(classes)}), lines {np.mean(lines):.0f}", flush=True
    )


SPACES = {
    "mobile": mobile, "lecture": lecture, "nasbench-macro": nasbench_macro, "nasbench201": nasbench201, "darts": darts,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50, help="architectures of each space")
    parser.add_argument("--formats", default=",".join(WRITERS))
    parser.add_argument("--sets", default=",".join([*SPACES, "zoo"]))
    parser.add_argument("--share", default="1/1", help="such as 1/2: every second one")
    given = parser.parse_args()
    torch.set_num_threads(1)
    first, of = map(int, given.share.split("/"))
    for name in given.sets.split(","):
        found = references() if name == "zoo" else sampled(SPACES[name]((3, 32, 32), 10), given.count)
        measure(name, islice(found, first - 1, None, of), given.formats.split(","))


if __name__ == "__main__":
    main()

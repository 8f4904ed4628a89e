"""Exported files against the modules they were made from, in a fresh interpreter that cannot import this package.

    python benchmarks/export.py [--count 100]

For each space: random architectures with random weights, norms and biases as after training; the largest
max|difference| / max|output|, and how many classes and lines a file has. An error if a difference is above 1e-5.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from nas.search_spaces import zoo
from nas.search_spaces.lecture import lecture
from nas.search_spaces.mobile import mobile
from nas.search_spaces.nasbench_macro import nasbench_macro

from nas.architecture import Architecture
from nas.errors import GraphError
from nas.export.check import case, check_many, vary
from nas.export.source import compose
from nas.export.weights import save
from nas.space import Space


def sampled(space: Space, count: int) -> Iterator[Architecture]:
    """Random architectures of a space."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield space.architecture(space.sample(rng))


def references(count: int) -> Iterator[Architecture]:
    """Reference architectures on small inputs, those of at most 30 million parameters."""
    for name in zoo.names():
        shape = zoo.get(name).input_shape
        try:
            found = zoo.get(name, input_shape=shape if shape[1] <= 32 else (3, 96, 96))
            small = found.analysis.params <= 30e6 and len(found.graph().nodes) <= 1000
        except GraphError:
            continue  # too small an input for this one
        if small and count > 0:
            count -= 1
            yield found


def measure(name: str, architectures: Iterator[Architecture]) -> None:
    """Export, check and print one line."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        cases, classes, lines = [], [], []
        for i, architecture in enumerate(architectures):
            made, network = compose(architecture, name=f"network{i}"), architecture.module(seed=i)
            vary(network)
            script, weights = Path(folder) / f"{i}.py", Path(folder) / f"{i}.safetensors"
            script.write_text(made.text)
            save(network, weights)
            cases.append(case(script, weights, network, [architecture.input_shape], foreign=bool(made.imports)))
            classes.append(made.text.count("\nclass "))
            lines.append(made.text.count("\n"))
        seconds = time.process_time() - began
        worst = max(check_many(cases))
    print(
        f"{name:16}{len(cases):6} files  largest difference {worst:.1e}  classes {np.mean(classes):4.1f} "
        f"({min(classes)} to {max(classes)})  lines {np.mean(lines):4.0f}  {1000 * seconds / len(cases):4.0f} ms each"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="architectures of each space")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    measure("mobile", sampled(mobile((3, 32, 32), 10), count))
    measure("lecture", sampled(lecture((3, 32, 32), 10), count))
    measure("nasbench-macro", sampled(nasbench_macro(), count))
    measure("zoo", references(count))


if __name__ == "__main__":
    main()

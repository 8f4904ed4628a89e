"""What `nas diagnose` says of every reference architecture at initialisation: nothing, if its bounds are well chosen.

    python benchmarks/diagnose.py

Networks for large images are looked at with 64 pixels (those of Inception and the like with 96), digits, batches of 16.
"""

from __future__ import annotations

from contextlib import suppress
from statistics import median

import torch

from nas.architecture import Architecture
from nas.errors import NasError
from nas.plugins import reference, reference_names
from nas.torch.data import load
from nas.torch.diagnose import diagnose
from nas.torch.runtime import prepare

LARGEST = 120e6  # parameters: what is above takes too long, and is a scaled copy of what is below


def scaled(name: str) -> Architecture:
    """With small images; the next size where the strides leave nothing of those."""
    architecture = reference(name)
    if architecture.input_shape[1] <= 32:
        return architecture
    for size in (64, 96, 128):
        with suppress(NasError):
            small = architecture.scale(resolution=size)
            small.graph()
            return small
    return architecture


def main() -> None:
    prepare(torch.device("cpu"), 1)
    data = load("digits")
    smallest, largest, count = float("inf"), 0.0, 0
    print(f"{'':28}{'pixels':>7}{'smallest':>10}{'median':>10}{'largest':>10}{'dead':>7}  verdict")
    for name in reference_names():
        architecture = scaled(name)
        if architecture.analysis.params > LARGEST:
            continue
        found = diagnose(architecture, data, steps=0, batch=16)
        sizes = list(found.start.sensitivities.values())
        verdict = ", ".join(finding.kind for finding in found.findings) or "sound"
        dead = max(found.start.dead.values(), default=0.0)
        print(f"{name:28}{architecture.input_shape[1]:7}{min(sizes):10.1e}{median(sizes):10.1e}{max(sizes):10.1e}"
              f"{dead:7.0%}  {verdict}", flush=True)  # fmt: skip
        smallest, largest, count = min(smallest, *sizes), max(largest, *sizes), count + 1
    print(f"{count} networks: gradient norm x weight norm from {smallest:.1e} to {largest:.1e}")


if __name__ == "__main__":
    main()

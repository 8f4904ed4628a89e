"""What it costs to know an architecture's cost, beside building the module and counting with the usual tools.

    python benchmarks/cost.py

All in one run on one thread, on MobileNetV2 at 224 pixels: lowering and counting it from nothing; the cost of each of
its neighbours in the space `mobile` (one decision changed, blocks seen before, the network not); building the PyTorch
module and counting with fvcore, torchinfo and torch's FlopCounterMode. Ends with 1 unless the first takes at most
1 ms, the second at most 50 us, and the second is 1,000 times faster than any of the others.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from nas.search_spaces import zoo
from nas.search_spaces.mobile import mobile
from torch.utils.flop_counter import FlopCounterMode
from torchinfo import summary

from nas.architecture import Architecture
from nas.choices import Genotype, Label
from nas.space import Space

STAGES = ((1, 16), (2, 24), (3, 32), (4, 64), (3, 96), (3, 160), (1, 320))  # layers, width


def mobilenet_v2() -> Genotype:
    """MobileNetV2 as a member of the space `mobile`; expansion 1 is its separable block."""
    act = "relu6"
    found: dict[str, Label] = {"resolution": 1.0, "activation": act, "stem.width": 32, "features.width": 1280}
    for i, (times, width) in enumerate(STAGES, 1):
        found |= {f"stage{i}.times": times, f"stage{i}.width": width}
        for layer in [f"stage{i}.{j}" for j in range(times)]:
            found |= {f"{layer}.kernel": 3, f"{layer}.se": None, f"{layer}.activation": act}
            found |= {f"{layer}.block": "inverted_residual", f"{layer}.expansion": 6} if i > 1 else {}
            found |= {f"{layer}.block": "separable"} if i == 1 else {}
    return found


def timed(action: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of `times` calls."""
    seconds = []
    gc.disable()
    for _ in range(times):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    gc.enable()
    return seconds


def forget(architecture: Architecture, parent: Architecture) -> None:
    """Drop the remembered costs of the network and of the stages that its parent does not have."""
    kept = {id(part) for _, part in parent.body.steps() or ()}
    for block in (architecture.body, *(part for _, part in architecture.body.steps() or ())):
        if block.steps() is not None and id(block) not in kept:
            block._memory("costs").clear()


def neighbours(space: Space, parent: Genotype) -> tuple[list[float], list[float]]:
    """Best seconds of 10 for the cost of each neighbour: from its genotype, and from its architecture.

    Before each time the neighbour is forgotten; its layers, and the stages that it has in common with its parent, have
    been counted before.
    """
    every, original = list(space.neighbours(parent)), space.architecture(parent)
    for genotype in every:
        space.architecture(genotype).analysis  # noqa: B018  # from now on every block's cost is known
    from_genotype, from_architecture = [], []
    for genotype in every:
        architecture = space.architecture(genotype)

        def whole(genotype: Genotype = genotype) -> Any:
            return space.architecture(genotype).analysis

        def sums(architecture: Architecture = architecture) -> Any:
            return architecture.analysis

        for seconds, action in ((from_genotype, whole), (from_architecture, sums)):
            best = float("inf")
            for _ in range(10):
                forget(architecture, original)
                best = min(best, timed(action, 1)[0])
            seconds.append(best)
    return from_genotype, from_architecture


def counters(architecture: Architecture) -> dict[str, Callable[[], Any]]:
    """Building the module and counting it, by tool."""
    x = torch.zeros(1, *architecture.input_shape)

    def flop_counter() -> None:
        with FlopCounterMode(display=False), torch.no_grad():
            architecture.module().eval()(x)

    return {
        "module + fvcore": lambda: FlopCountAnalysis(architecture.module().eval(), x).total(),
        "module + torchinfo": lambda: summary(architecture.module(), input_data=x, verbose=0).total_mult_adds,
        "module + FlopCounterMode": flop_counter,
    }


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    space = mobile((3, 224, 224), 1000)
    architecture = space.architecture(mobilenet_v2())
    published = zoo.get("mobilenet_v2")
    assert (architecture.analysis.params, architecture.analysis.flops) == (3_504_872, 300_774_272)

    def cold() -> None:
        network = zoo.get("mobilenet_v2")
        network.graph()
        network.analysis  # noqa: B018

    cold()
    lowering = timed(cold, 300)
    from_genotype, from_architecture = neighbours(space, mobilenet_v2())
    rows = [
        ("MobileNetV2 from nothing: blocks, graph, cost", min(lowering), median(lowering)),
        (f"one of {len(from_genotype)} neighbours, from its genotype", min(from_genotype), median(from_genotype)),
        ("the same, from its architecture", min(from_architecture), median(from_architecture)),
    ]
    for name, action in counters(published).items():
        action()
        seconds = timed(action, 10)
        rows.append((name, min(seconds), median(seconds)))
    neighbour = rows[1][2]
    print(f"{'':52} {'best':>10} {'median':>10}   median / neighbour")
    for name, best, middle in rows:
        print(f"{name:52} {best * 1e6:7,.0f} us {middle * 1e6:7,.0f} us   {middle / neighbour:10,.1f}")
    good = {
        "at most 1 ms from nothing": rows[0][1] <= 1e-3,
        "at most 50 us for a neighbour": neighbour <= 50e-6,
        "1,000 times faster than building and counting": all(row[1] >= 1000 * neighbour for row in rows[3:]),
    }
    for claim, holds in good.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

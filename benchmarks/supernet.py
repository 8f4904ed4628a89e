"""What a step of a relaxed supernet costs, beside single paths and beside a branch for every combination.

    python benchmarks/supernet.py

Forward and backward on 32 images of 32 x 32 pixels, one thread, all decisions equally probable. First over a single
path of the same supernet: the mean over paths with all numbers at their largest, and over uniformly random ones. (A
path without its layers costs little, so the second ratio says more of the space than of the code.) The bound is 1.5
times the kinds of blocks that a layer or an edge chooses from: what mixing blocks costs if all else is free.

Then, for `mobile`, the time of the usual mixed-operation supernet over ours: each layer has a branch with weights of
its own for every combination of block, kernel, expansion and squeeze-and-excitation; activations are weighted sums,
widths are masks.

Measurements take turns; ratios are medians over the rounds, of which the first are not counted: until memory is
used again, steps take several times as long. Ends with 1 unless each first ratio is within its bound and the last is
at least 3.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice, product
from statistics import median
from typing import Any

import numpy as np
import torch
from nas.search_spaces.mobile import STAGES
from torch import Tensor, nn
from torch.nn import functional

from nas.choices import Genotype
from nas.errors import GraphError
from nas.plugins import make_space
from nas.space import Space
from nas.torch.runtime import prepare
from nas.torch.supernet import Path, Relaxed, Supernet
from nas.torch.supernet.store import _largest

KINDS = {"mobile": 3, "lecture": 8, "nasbench201": 5}
"""Options of a layer's `block`, or of an edge."""

CELLS = ("nasbench201",)

WARM = 4
"""Rounds that are not counted."""

PATHS = 8
"""Paths of either kind whose mean is one measurement: with fewer, not every block stands once in every place."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spaces", default=",".join(KINDS))
    parser.add_argument("--branches", action=argparse.BooleanOptionalAction, default=True, help="the second comparison")
    args = parser.parse_args()
    prepare(torch.device("cpu"), threads=1)
    torch.manual_seed(0)
    x, y = torch.randn(args.batch, 3, 32, 32), torch.randint(0, 10, (args.batch,))
    good = True
    print(f"load {os.getloadavg()[0]:.1f}")
    for name in args.spaces.split(","):
        space = make_space(name, (3, 32, 32), 10, {})
        supernet = Supernet(space)
        relaxed = Relaxed(supernet)
        ours, drawn = relaxed_step(relaxed, x, y), relaxed_step(relaxed, x, y, drawn=True)
        partial = relaxed_step(Relaxed(supernet, partial=4), x, y) if name in CELLS else drawn
        largest, random = (steps(supernet, group, x, y) for group in (_largest(space), uniform(space)))
        rows = [
            (timed(ours), mean(largest), mean(random), mean([drawn] * PATHS), timed(partial))
            for _ in range(args.rounds + WARM)
        ][WARM:]
        over = [median(row[0] / row[i] for row in rows) for i in (1, 2)]
        bound = 1.5 * KINDS[name]
        good &= over[0] <= bound
        print(
            f"{name:<12} {median(row[0] for row in rows) * 1e3:7.0f} ms, over a largest path {over[0]:5.2f}, over a "
            f"random one {over[1]:5.2f}; bound {bound:.1f}", flush=True,
        )  # fmt: skip
        remedies = {"one drawn (GDAS)": 3} | ({"a quarter of the channels (PC-DARTS)": 4} if name in CELLS else {})
        for remedy, i in remedies.items():
            print(f"{'':12} {remedy}: {median(row[i] / row[0] for row in rows):.2f} of that", flush=True)
    if args.branches:
        space = make_space("mobile", (3, 32, 32), 10, {})
        ours, theirs = relaxed_step(Relaxed(Supernet(space)), x, y), branches_step(space, x, y)
        rounds = [(timed(theirs), timed(ours)) for _ in range(args.rounds + WARM)][WARM:]
        factor = median(a / b for a, b in rounds)
        good &= factor >= 3
        print(f"branches     {median(a for a, _ in rounds) * 1e3:7.0f} ms, over ours {factor:.2f}; aim 3")
    print(f"load {os.getloadavg()[0]:.1f}")
    return 0 if good else 1


def timed(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def mean(steps: Sequence[Callable[[], None]]) -> float:
    return sum(map(timed, steps)) / len(steps)


def learning(parameters: Sequence[Tensor], scores: Callable[[], Tensor], y: Tensor) -> Callable[[], None]:
    """Forward and backward."""

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(functional.cross_entropy(scores(), y))

    return step


def relaxed_step(relaxed: Relaxed, x: Tensor, y: Tensor, *, drawn: bool = False) -> Callable[[], None]:
    """With the gradients of weights and architecture; `drawn`: of one path, another one in each step."""
    logits = {path: torch.zeros(len(labels), requires_grad=True) for path, labels in relaxed.labels.items()}
    sampled = dict.fromkeys(relaxed.sampled, 1.0)  # the resolution

    def one(p: Tensor) -> Tensor:
        hard = functional.one_hot(torch.multinomial(p.detach(), 1)[0], len(p)).to(p.dtype)
        return hard + p - p.detach()

    def scores() -> Tensor:
        p = {path: value.softmax(0) for path, value in logits.items()}
        return relaxed(x, {path: one(v) for path, v in p.items()} if drawn else p, sampled, single=drawn)

    return learning([*relaxed.supernet.parameters(), *logits.values()], scores, y)


def uniform(space: Space) -> Any:
    rng = np.random.default_rng(0)
    while True:
        yield space.sample(rng)


def steps(supernet: Supernet, genotypes: Any, x: Tensor, y: Tensor) -> list[Callable[[], None]]:
    """Of the first paths of the data's own resolution that can be built."""

    def paths() -> Any:
        for genotype in genotypes:
            changed: Genotype = {**genotype, "resolution": 1.0} if "resolution" in genotype else genotype
            try:
                yield supernet.path(supernet.space.architecture(changed)).train()
            except GraphError:
                continue

    def step(path: Path) -> Callable[[], None]:
        return learning(list(supernet.parameters()), lambda: path(x), y)

    return [step(path) for path in islice(paths(), PATHS)]


# -- a branch for every combination ----------------------------------------------------------------------------

ACTIVATIONS = (functional.relu, functional.relu6, functional.hardswish, functional.silu)


def conv(inputs: int, width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, width, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(width)
    )


class Mixed(nn.Module):
    """A weighted sum of activations."""

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        return sum((weight * act(x) for weight, act in zip(p, ACTIVATIONS, strict=True)), torch.zeros(()))


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce, self.expand, self.act = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1), Mixed()

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        gate = self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)), p))
        return x * torch.sigmoid(gate)


class Branch(nn.Module):
    """An inverted residual, or without an expansion a separable convolution."""

    def __init__(self, inputs: int, width: int, stride: int, kernel: int, expansion: int | None, se: bool) -> None:
        super().__init__()
        hidden = inputs * (expansion or 1)
        self.expand = conv(inputs, hidden) if expansion else None
        self.depthwise = conv(hidden, hidden, kernel, stride, hidden)
        self.gate = Gate(hidden, max(1, inputs // 4)) if se else None
        self.project, self.act = conv(hidden, width), Mixed()
        self.adds = stride == 1 and inputs == width

    def forward(self, x: Tensor, p: Tensor) -> Tensor:
        y = x if self.expand is None else self.act(self.expand(x), p)
        y = self.act(self.depthwise(y), p)
        y = self.project(y if self.gate is None else self.gate(y, p))
        return x + y if self.adds else y


class Layer(nn.Module):
    """All branches of a layer, weighed, and a mask of the widths."""

    def __init__(self, inputs: int, widths: Sequence[int], stride: int) -> None:
        super().__init__()
        width, kernels = widths[-1], (3, 5, 7)
        made: list[nn.Module] = [
            Branch(inputs, width, stride, kernel, expansion, se)
            for kernel, expansion, se in product(kernels, (3, 4, 6, None), (False, True))
        ]
        skips = inputs == width and stride == 1
        self.branches = nn.ModuleList([*made, nn.Identity() if skips else conv(inputs, width, 1, stride)])
        self.weights = nn.Parameter(torch.zeros(len(self.branches)))
        self.activations = nn.Parameter(torch.zeros(len(ACTIVATIONS)))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        p, activations = self.weights.softmax(0), self.activations.softmax(0)
        total = torch.zeros(())
        for weight, branch in zip(p, self.branches, strict=True):
            y = branch(x, activations) if isinstance(branch, Branch) else branch(x)
            total = total + weight * y
        return total * mask


class Widths(nn.Module):
    """How probable each channel is."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(widths)))
        self.masks: Tensor
        self.register_buffer("masks", torch.stack([(torch.arange(widths[-1]) < w).float() for w in widths]))

    def forward(self) -> Tensor:
        return (self.logits.softmax(0) @ self.masks).view(1, -1, 1, 1)


class Stage(nn.Module):
    """Layers, of which the first so many are there."""

    def __init__(self, inputs: int, widths: Sequence[int], depths: Sequence[int], stride: int) -> None:
        super().__init__()
        width, self.depths = widths[-1], depths
        self.layers = nn.ModuleList(
            [Layer(width if i else inputs, widths, 1 if i else stride) for i in range(depths[-1])]
        )
        self.widths, self.times = Widths(widths), nn.Parameter(torch.zeros(len(depths)))

    def forward(self, x: Tensor) -> Tensor:
        mask, total = self.widths(), torch.zeros(())
        p = dict(zip(self.depths, self.times.softmax(0), strict=True))
        for i, layer in enumerate(self.layers, 1):
            x = layer(x, mask)
            total = total + p[i] * x if i in p else total
        return total


class Branches(nn.Module):
    """The space `mobile` at 32 pixels: the first stages of its table, with their strides."""

    def __init__(self, stages: int, classes: int) -> None:
        super().__init__()
        stem, features = (16, 24, 32), (2 * STAGES[stages - 1][0][-1], 4 * STAGES[stages - 1][0][-1])
        self.stem, self.stem_widths = nn.Conv2d(3, stem[-1], 3, padding=1, bias=False), Widths(stem)
        self.norms = nn.ModuleList([nn.BatchNorm2d(stem[-1]), nn.BatchNorm2d(features[-1])])
        made, inputs = list[nn.Module](), stem[-1]
        for widths, depths, stride in STAGES[:stages]:
            made.append(Stage(inputs, widths, depths, stride))
            inputs = widths[-1]
        self.stages = nn.Sequential(*made)
        self.features, self.features_widths = nn.Conv2d(inputs, features[-1], 1, bias=False), Widths(features)
        self.act, self.activations = Mixed(), nn.Parameter(torch.zeros(len(ACTIVATIONS)))
        self.classifier = nn.Linear(features[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        p = self.activations.softmax(0)
        x = self.act(self.norms[0](self.stem(x)), p) * self.stem_widths()
        x = self.act(self.norms[1](self.features(self.stages(x))), p) * self.features_widths()
        result: Tensor = self.classifier(x.mean((2, 3)))
        return result


def branches_step(space: Space, x: Tensor, y: Tensor) -> Callable[[], None]:
    module = Branches(sum(path.startswith("stage") and path.endswith(".times") for path in space.paths), space.classes)
    return learning(list(module.parameters()), lambda: module(x), y)


if __name__ == "__main__":
    sys.exit(main())

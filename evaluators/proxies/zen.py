"""Zen-score: how complex a function the network is, whatever its batch norms rescale."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from nas import ops
from nas.graph import Graph

from .base import Proxy
from .network import Network
from .passes import Passes

STEP = 0.01


class Zen(Proxy):
    """log E |f(x) - f(x + .01 e)|_1 + sum over norms of log sqrt(mean variance), x and e Gaussian noise.

    Weights are N(0, 1); f ends before the last pooling. The sum puts back the scale that norms take out: the variance
    of a batch norm is a channel's over the batch, that of another norm a group's of one sample.
    """

    paper = "Lin et al. 2021, Zen-NAS: A Zero-Shot NAS for High-Performance Image Recognition"
    cost = "2F"
    needs = "nothing"
    blind = (
        "made for chains of convolutions without operations to choose from: about .1 on NAS-Bench-201; infinite where "
        "a deep network has no norms"
    )

    def score(self, passes: Passes) -> float:
        graph, generator, end = passes.graph, passes.generator(1), features(passes.graph)
        network = Network(graph, seed=passes.seed, device=passes.device, dtype=passes.dtype, std=lambda fan_in: 1.0)
        shape = passes.images.shape
        x, e = (torch.randn(shape, generator=generator).to(passes.images) for _ in range(2))
        maps: list[Tensor] = []
        variances: list[Tensor] = []

        def tap(at: int, reads: Sequence[Tensor], value: Tensor) -> None:
            op = graph.nodes[at].op
            if type(op) is ops.Norm and at <= end and not maps:
                variances.append(_variance(op, reads[0]))
            if at == end:
                maps.append(value)

        with torch.no_grad():
            network.run(x, tap)
            scale = sum([variance.log() / 2 for variance in variances])
            network.run(x + STEP * e, tap)
        change = (maps[0] - maps[1]).abs().flatten(1).sum(1).mean()
        return float(change.log() + scale)


def features(graph: Graph) -> int:
    """The node before the last global pooling; without one, the last feature map."""
    at = graph.output
    while graph.nodes[at].inputs and prod(graph.shapes[at][1:]) == 1:
        pooled = type(graph.nodes[at].op) is ops.AdaptivePool
        at = graph.nodes[at].inputs[0]
        if pooled:
            break
    return at


def _variance(op: ops.Norm, x: Tensor) -> Tensor:
    """Mean of the variances that a norm divides by, all of as many numbers. (`Tensor.var` takes ten times as long.)"""
    if op.kind == "batch":
        mean = x.mean([0, *range(2, x.dim())], keepdim=True)
    else:
        x = x.reshape(len(x), x.shape[1] if op.kind == "instance" else op.groups, -1)
        mean = x.mean(2, keepdim=True)
    return (x - mean).square().mean()

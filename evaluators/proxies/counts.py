"""The baselines: what counting alone says. A proxy that ranks no better than these is not worth its passes."""

from __future__ import annotations

from .base import Proxy
from .passes import Passes


class Params(Proxy):
    """Number of trainable parameters."""

    paper = "-"
    cost = "0"
    needs = "nothing"
    blind = "everything but size: operations without weights, resolution, how layers are joined"

    def score(self, passes: Passes) -> float:
        return float(passes.arch.analysis.params)


class Flops(Proxy):
    """Multiply-adds of convolutions and linear layers."""

    paper = "-"
    cost = "0"
    needs = "nothing"
    blind = "everything but the amount of work: how layers are joined, pooling, activations"

    def score(self, passes: Passes) -> float:
        return float(passes.arch.analysis.flops)


class Layers(Proxy):
    """Number of trainable layers: convolutions, linear layers and wrapped modules with weights of their own."""

    paper = "-"
    cost = "0"
    needs = "nothing"
    blind = "width, kernels and resolution; many networks share a value"

    def score(self, passes: Passes) -> float:
        return float(sum(node.op.layer and node.weights is None for node in passes.graph.nodes))

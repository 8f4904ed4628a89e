"""SNIP and the norm of the gradient: what the loss says of the weights at the start."""

from __future__ import annotations

from .base import Proxy
from .passes import Passes


class Snip(Proxy):
    """Sum over weights of |w dL/dw|."""

    paper = "Lee et al. 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity"
    cost = "1F1B"
    needs = "labels"
    blind = "scale of the gradient more than its use: negative on NAS-Bench-301 and TransNAS-Bench macro"
    uses = frozenset({"weight_gradients"})

    def score(self, passes: Passes) -> float:
        weights = passes.network.weights
        return float(sum([(weights[name] * g).detach().abs().sum() for name, g in passes.weight_gradients.items()]))


class GradNorm(Proxy):
    """Sum over layers of the Euclidean norm of dL/dw."""

    paper = "Abdelfattah et al. 2021, Zero-Cost Proxies for Lightweight NAS"
    cost = "1F1B"
    needs = "labels"
    blind = "as snip"
    uses = frozenset({"weight_gradients"})

    def score(self, passes: Passes) -> float:
        return float(sum([g.detach().norm() for g in passes.weight_gradients.values()]))

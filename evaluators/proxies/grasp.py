"""GraSP: what the flow of gradients would lose without the weights."""

from __future__ import annotations

from .base import Proxy
from .passes import Passes


class Grasp(Proxy):
    """Sum over weights of -w (H g), with gradient g and Hessian H of the loss."""

    paper = "Wang et al. 2020, Picking Winning Tickets Before Training by Preserving Gradient Flow"
    cost = "1F2B"
    needs = "labels"
    blind = "unstable between initialisations; about 0 on NAS-Bench-101"
    uses = frozenset({"curvature"})

    def score(self, passes: Passes) -> float:
        weights = passes.network.weights
        return float(-sum([(weights[name].detach() * h).sum() for name, h in passes.curvature.items()]))

"""Fisher: how much the loss would change without a channel."""

from __future__ import annotations

from .base import Proxy
from .passes import Passes


class Fisher(Proxy):
    """Sum over layers and channels of half the mean over samples of (sum over positions of a dL/da)^2.

    a is what a convolution, linear layer or wrapped module gives.
    """

    paper = "Turner et al. 2020, BlockSwap: Fisher-guided Block Substitution for Network Compression on a Budget"
    cost = "1F1B"
    needs = "labels"
    blind = "dominated by a few layers; weak on NAS-Bench-201 and negative on NAS-Bench-301"
    uses = frozenset({"layers", "layer_gradients"})

    def score(self, passes: Passes) -> float:
        total = 0.0
        for a, g in zip(passes.layers, passes.layer_gradients, strict=True):
            each = (a * g).detach()
            each = each.flatten(2).sum(2) if a.dim() > 2 else each
            total += float(each.square().mean(0).sum() / 2)
        return total

"""ZiCo: how steady the gradients are from batch to batch."""

from __future__ import annotations

from math import log

from .base import Proxy
from .passes import Passes


class ZiCo(Proxy):
    """Sum over layers of log of the sum over weights of mean |g| / std(g), over the two halves of the batch.

    A weight whose gradient is the same in both is left out, and a layer without any other.
    """

    paper = "Li et al. 2023, ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients"
    cost = "2F2B"
    needs = "labels"
    blind = "a sum over layers, so depth counts most; noisy with two batches; takes at least four images"

    def score(self, passes: Passes) -> float:
        half, total = len(passes.images) // 2, 0.0
        first, second = passes.gradients_on(slice(half)), passes.gradients_on(slice(half, None))
        for name, g in first.items():
            h = second[name]
            deviation = (g - h).abs() / 2
            steady = (g.abs() + h.abs()) / 2 / deviation
            layer = float(steady[deviation != 0].sum())
            total += log(layer) if layer != 0 else 0.0
        return total

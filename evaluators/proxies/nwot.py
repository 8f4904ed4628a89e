"""NASWOT: how differently the samples of a batch switch the activations."""

from __future__ import annotations

import torch

from .base import Proxy
from .passes import Passes


class Nwot(Proxy):
    """log det K, where K[i, j] is the number of activations whose inputs have the same sign for samples i and j.

    With binary codes X (samples, activations), K = X X' + (1 - X)(1 - X)'. Signs are those of what an activation reads,
    whichever activation it is.
    """

    paper = "Mellor et al. 2021, Neural Architecture Search without Training"
    cost = "1F"
    needs = "images"
    blind = (
        "grows with the number of activations, so it follows width, resolution and depth; sees no difference between "
        "kinds of activations; minus infinity where two samples have all signs in common, or nothing is activated"
    )
    uses = frozenset({"agreement"})

    def score(self, passes: Passes) -> float:
        sign, logdet = torch.linalg.slogdet(passes.agreement)
        return float(logdet) if sign > 0 else float("-inf")

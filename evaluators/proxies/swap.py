"""SWAP: how many different ways units have of switching over a batch."""

from __future__ import annotations

import torch

from .base import Proxy
from .passes import WORD, Passes


class Swap(Proxy):
    """Number of distinct patterns of signs: a unit that is activated has one, its signs for the samples in order.

    Not regularised by a preferred number of parameters, which would have to be known.
    """

    paper = "Peng et al. 2024, SWAP-NAS: Sample-Wise Activation Patterns for Ultra-fast NAS"
    cost = "1F"
    needs = "images"
    blind = "cannot exceed 2 to the number of samples, so it saturates with small batches and large networks"
    uses = frozenset({"patterns"})

    def score(self, passes: Passes) -> float:
        patterns = passes.patterns
        if not torch.isfinite(passes.logits).all():
            return float("nan")
        if len(patterns) > 1:
            return float(torch.unique(patterns, dim=1).shape[1])
        seen = torch.zeros(2**WORD if len(passes.images) >= WORD else 2 ** len(passes.images), dtype=torch.bool)
        seen = seen.to(patterns.device)
        seen[patterns[0].long()] = True
        return float(seen.sum())

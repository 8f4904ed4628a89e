"""MeCo: how uncorrelated the channels of each layer are."""

from __future__ import annotations

from math import prod

import torch

from .base import Proxy
from .passes import Passes, eigenvalues


class MeCo(Proxy):
    """Sum over convolutions of the smallest eigenvalue of the correlation of the channels' maps, for one image.

    The image is the first of the batch. A channel that is constant correlates with none, itself included.
    """

    paper = (
        "Jiang et al. 2023, MeCo: Zero-Shot NAS with One Data and Single Forward Pass via Minimum Eigenvalue of "
        "Correlation"
    )
    cost = "1F"
    needs = "images"
    blind = "layers with as many channels as positions count nothing, so it sees the early layers of a network only"
    uses = frozenset({"layers"})

    def score(self, passes: Passes) -> float:
        total = 0.0
        for layer in passes.layers:
            # Less the mean, n positions span n - 1 dimensions: the smallest of more eigenvalues is 0.
            if layer.dim() != 4 or layer.shape[1] >= prod(layer.shape[2:]):
                continue
            maps = layer[0].detach().flatten(1)
            maps = maps - maps.mean(1, keepdim=True)
            norms = maps.norm(dim=1, keepdim=True)
            maps = torch.where(norms == 0, torch.zeros_like(maps), maps / norms)
            total += float(eigenvalues(maps @ maps.T)[0])
        return total

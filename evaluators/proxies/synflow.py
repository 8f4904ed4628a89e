"""SynFlow and LogSynFlow: the weights' share in what can flow through the network."""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from .base import Proxy
from .passes import Passes


class Synflow(Proxy):
    """log(1 + sum over weights of |w dR/dw|), R the sum of outputs for an input of ones, every weight positive.

    Norms and activations do nothing; see `flow`. The logarithm ranks as the sum does, which is beyond float32.
    """

    paper = "Tanaka et al. 2020, Pruning neural networks without any data by iteratively conserving synaptic flow"
    cost = "1F1B"
    needs = "nothing"
    blind = (
        "counts paths, so it follows depth and width: beside the number of parameters it says next to nothing on "
        "NAS-Bench-201; activations, norms and gates are invisible to it"
    )

    def score(self, passes: Passes) -> float:
        weights, gradients, scale = passes.flow
        total = torch.stack([(w * gradients[name]).sum() for name, w in weights.items()]).sum()
        return float(F.softplus(total.log() + scale))


class LogSynflow(Proxy):
    """Sum over weights of |w| log(1 + |dR/dw|), R as in `synflow`."""

    paper = "Cavagnero et al. 2023, FreeREA: Training-Free Evolution-based Architecture Search"
    cost = "1F1B"
    needs = "nothing"
    blind = "as synflow; closer to the number of parameters times the depth"

    def score(self, passes: Passes) -> float:
        weights, gradients, scale = passes.flow
        parts = [(w * F.softplus(gradients[name].log() + scale)).sum() for name, w in weights.items()]
        return float(sum(parts))

"""Jacobian covariance: how differently the samples of a batch move the scores."""

from __future__ import annotations

import torch

from .base import Proxy
from .passes import Passes, eigenvalues

K = 1e-5


class JacobCov(Proxy):
    """-sum over eigenvalues v of log(v + k) + 1 / (v + k), for the correlation of the samples' input gradients.

    A sample's gradient is that of the sum of all class scores of the batch, where a random sign goes with each sample;
    k = 1e-5. Without batch norms, signs do not change the eigenvalues. With them samples depend on each other, and
    where one stands right before the pooling, the plain sum of the paper's code is constant: its gradient is nothing
    but rounding errors.
    """

    paper = "Mellor et al. 2020, Neural Architecture Search without Training (version 1)"
    cost = "1F1B"
    needs = "images"
    blind = (
        "size; not defined where the scores do not depend on an image; its direction differs between spaces (strong on "
        "NAS-Bench-201, none on NAS-Bench-301)"
    )
    uses = frozenset({"input_gradients"})

    def score(self, passes: Passes) -> float:
        correlation = torch.corrcoef(passes.input_gradients.flatten(1).double())
        v = eigenvalues(correlation).clamp(min=0) + K
        return float(-(v.log() + 1 / v).sum())

"""AZ-NAS: three looks at the blocks of a network, from one forward and one backward pass. FLOPs are the fourth."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from .base import Proxy
from .passes import Passes, eigenvalues

PAPER = "Lee and Ham 2024, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search"
EPS = 1e-6


class Expressivity(Proxy):
    """Sum over blocks of the entropy of the principal components' shares in the variance of the feature map."""

    paper = PAPER
    cost = "1F"
    needs = "images"
    blind = "grows with the number of blocks and their width"
    uses = frozenset({"blocks"})

    def score(self, passes: Passes) -> float:
        return sum([entropy(block.detach()) for block in passes.blocks])


class Progressivity(Proxy):
    """Smallest increment of that entropy from one block to the next."""

    paper = PAPER
    cost = "1F"
    needs = "images"
    blind = "one block decides; not defined for fewer than two"
    uses = frozenset({"blocks"})

    def score(self, passes: Passes) -> float:
        entropies = [entropy(block.detach()) for block in passes.blocks]
        steps = [after - before for before, after in pairwise(entropies)]
        return min(steps, default=float("nan"))


class Trainability(Proxy):
    """Mean over blocks of 2 - s - 1/s, where s is the spectral norm of the block's Jacobian.

    The Jacobian is estimated from random signs v at the block's output: the mean over positions of (v' J)' v'. Where
    the block reduces the map, the positions that become one count as channels.
    """

    paper = PAPER
    cost = "1F1B"
    needs = "images"
    blind = "says nothing of size; not defined for fewer than two blocks"
    uses = frozenset({"blocks", "block_gradients"})

    def score(self, passes: Passes) -> float:
        scores = []
        for signs, g in passes.block_gradients:
            s = _spectral_norm(_rows(_folded(g, signs)).T @ _rows(signs) / _rows(signs).shape[0])
            scores.append(2 - s - 1 / (s + EPS))
        return sum(scores) / len(scores) if scores else float("nan")


def entropy(block: Tensor) -> float:
    """Of the shares of the principal components of a feature map (N, C, H, W), positions being observations."""
    x = _rows(block)
    x = x - x.mean(0)
    # The other eigenvalues of the larger product are 0.
    values = eigenvalues(x.T @ x if x.shape[0] > x.shape[1] else x @ x.T).clamp(min=0)
    total = values.sum()
    share = values / torch.where(total > 0, total, torch.ones_like(total))
    return float(-torch.xlogy(share, share).sum())


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _folded(x: Tensor, like: Tensor) -> Tensor:
    (h, w), (to_h, to_w) = x.shape[2:], like.shape[2:]
    stride = max(-(-h // to_h), -(-w // to_w))
    if stride > 1:
        x = F.pixel_unshuffle(F.pad(x, (0, to_w * stride - w, 0, to_h * stride - h)), stride)
    return x


def _spectral_norm(x: Tensor) -> float:
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T
    return float(eigenvalues(gram)[-1].clamp(min=0).sqrt())

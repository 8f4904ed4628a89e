"""What proxies are computed from. Each pass over the network runs once, however many proxies want it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.architecture import Architecture

from .blocks import block_outputs
from .flow import Flow, flow
from .network import Network

Use = Literal[
    "agreement", "patterns", "layers", "blocks",
    "weight_gradients", "layer_gradients", "input_gradients", "block_gradients", "curvature",
]  # fmt: skip
"""What a proxy can ask of the shared forward pass and its gradients."""

GRADIENTS: tuple[Use, ...] = (
    "weight_gradients", "layer_gradients", "input_gradients", "block_gradients", "curvature",
)  # fmt: skip

WORD = 24
"""Samples whose signs fit into one number: float32 is exact up to 2^24."""


class Passes:
    """The passes over one architecture with one set of initial weights and one batch.

    Args:
        images: batch (N, C, H, W) of at least two, of the architecture's input shape.
        labels: (N,) class numbers.
        seed: of the weights and everything else that is drawn.
        uses: what will be asked for, so that the forward pass keeps that and nothing else.
        dtype: of weights and values.
    """

    def __init__(
        self, arch: Architecture, images: Tensor, labels: Tensor, *, seed: int, uses: frozenset[Use],
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.arch, self.seed, self.dtype = arch, seed, dtype
        self.graph = arch.graph()
        self.images = images.detach().to(dtype, memory_format=torch.channels_last)
        self.labels, self.device = labels, images.device
        self._uses = uses
        self._outputs: frozenset[int] = frozenset()
        self._agreed: dict[int, Tensor] = {}  # by the value whose signs they are
        self._agreement = torch.zeros(len(images), len(images), dtype=torch.float64, device=self.device)
        self._patterns: list[Tensor] = []
        self._layers: list[Tensor] = []
        self._blocks: dict[int, Tensor] = {}

    def generator(self, stream: int) -> torch.Generator:
        """Randomness for what a proxy draws itself, on the CPU: one stream for each purpose."""
        return torch.Generator().manual_seed(2**32 * stream + self.seed)

    @cached_property
    def network(self) -> Network:
        """With weights of He et al. (2015)."""
        return Network(self.graph, seed=self.seed, device=self.device, dtype=self.dtype)

    # -- the forward pass ----------------------------------------------------------------------------------------

    @cached_property
    def logits(self) -> Tensor:
        """Class scores (N, classes)."""
        if self._wants("blocks", "block_gradients"):
            self._outputs = frozenset(block_outputs(self.graph))
        if self._wants("weight_gradients", "curvature"):
            self.network.learn()
        if self._wants("input_gradients", "layer_gradients", "block_gradients"):
            self.images.requires_grad_()  # and with it whatever depends on the images
        with torch.set_grad_enabled(self._wants(*GRADIENTS)):
            return self.network.run(self.images, self._tap)

    def _wants(self, *uses: Use) -> bool:
        return not self._uses.isdisjoint(uses)

    def _tap(self, at: int, reads: Sequence[Tensor], value: Tensor) -> None:
        node = self.graph.nodes[at]
        if type(node.op) in (ops.Activation, ops.PReLU):
            if self._wants("agreement", "patterns"):
                self._signs(self.network.same[node.inputs[0]], reads[0].detach())
        elif node.op.layer and self._wants("layers", "layer_gradients"):
            self._layers.append(value)
        if at in self._outputs:
            self._blocks[at] = value

    def _signs(self, source: int, x: Tensor) -> None:
        """Add up in how many units two samples have the same sign, and note each unit's signs over the batch."""
        if source not in self._agreed:
            x = x.permute(0, 2, 3, 1) if x.dim() == 4 else x  # rows without a copy, values being channels_last
            x = x.reshape(len(x), -1)
            # One step from numbers to 0 and 1, ten times as fast as a comparison and a cast.
            positive = torch.gt(x, 0, out=torch.empty(x.shape, device=x.device))
            both = (positive @ positive.T).double()
            count = both.diagonal()
            self._agreed[source] = x.shape[1] + 2 * both - count - count[:, None]
            if self._wants("patterns"):
                self._patterns.append(_packed(positive))
        self._agreement += self._agreed[source]

    @property
    def agreement(self) -> Tensor:
        """In how many activations two samples have the same sign (N, N), float64; NaN if the network overflows."""
        return self._agreement + 0 * self.logits.detach().sum()

    @property
    def patterns(self) -> Tensor:
        """The signs of every unit that is activated over the batch, packed into (words, units) whole numbers."""
        self.logits  # noqa: B018  (the pass)
        return torch.cat(self._patterns, dim=1) if self._patterns else torch.zeros(1, 0, device=self.device)

    @property
    def layers(self) -> list[Tensor]:
        """Outputs (N, ...) of the convolutions, linear layers and wrapped modules."""
        self.logits  # noqa: B018
        return self._layers

    @property
    def blocks(self) -> list[Tensor]:
        """Outputs (N, C, H, W) of the blocks; see `block_outputs`."""
        self.logits  # noqa: B018
        return [self._blocks[at] for at in sorted(self._blocks)]

    # -- gradients -----------------------------------------------------------------------------------------------

    @cached_property
    def _loss_gradients(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        loss = F.cross_entropy(self.logits, self.labels)
        weights = self.network.weights if self._wants("weight_gradients", "curvature") else {}
        layers = self._layers if self._wants("layer_gradients") else []
        found = gradients(loss, [*weights.values(), *layers], create_graph=self._wants("curvature"))
        return dict(zip(weights, found[: len(weights)], strict=True)), found[len(weights) :]

    @property
    def weight_gradients(self) -> dict[str, Tensor]:
        """Of the mean cross entropy, by the names of `Network.weights`."""
        return self._loss_gradients[0]

    @property
    def layer_gradients(self) -> list[Tensor]:
        """Of the mean cross entropy with respect to `layers`."""
        return self._loss_gradients[1]

    @cached_property
    def curvature(self) -> dict[str, Tensor]:
        """The Hessian of the mean cross entropy times its gradient, by the names of `Network.weights`."""
        found = self.weight_gradients
        slope = sum([(g * g.detach()).sum() for g in found.values()], torch.zeros((), device=self.device))
        return dict(zip(found, gradients(slope, list(self.network.weights.values())), strict=True))

    @cached_property
    def input_gradients(self) -> Tensor:
        """Of the sum of all class scores, each sample's with a random sign, with respect to the images (N, C, H, W)."""
        logits = self.logits
        signs = torch.randint(2, (len(logits), 1), generator=self.generator(3)).to(logits) * 2 - 1
        return gradients(logits, [self.images], signs.expand_as(logits))[0]

    @cached_property
    def block_gradients(self) -> list[tuple[Tensor, Tensor]]:
        """For each block but the first: random signs v of its output's shape, and v' J for its Jacobian J, which reads
        the output of the block before."""
        found, generator = [], self.generator(2)
        for before, after in zip(self.blocks, self.blocks[1:], strict=False):
            signs = torch.randint(2, after.shape, generator=generator).to(after) * 2 - 1
            found.append((signs, gradients(after, [before], signs)[0]))
        return found

    def gradients_on(self, part: slice) -> dict[str, Tensor]:
        """Weight gradients of the mean cross entropy of a part of the batch, by a pass of its own."""
        self.network.learn()
        with torch.enable_grad():
            loss = F.cross_entropy(self.network.run(self.images.detach()[part]), self.labels[part])
        weights = self.network.weights
        return dict(zip(weights, gradients(loss, list(weights.values())), strict=True))

    # -- others --------------------------------------------------------------------------------------------------

    @cached_property
    def flow(self) -> Flow:
        """The pass of synflow."""
        return flow(self.network)


def gradients(
    of: Tensor, inputs: list[Tensor], grad: Tensor | None = None, *, create_graph: bool = False
) -> list[Tensor]:
    """`torch.autograd.grad` that keeps the graph; zeros where `of` does not depend on an input."""
    reached = [x for x in inputs if x.requires_grad] if of.requires_grad else []
    if not reached:
        return [torch.zeros_like(x) for x in inputs]
    found = iter(
        torch.autograd.grad(of, reached, grad, retain_graph=True, create_graph=create_graph, allow_unused=True)
    )
    every = [next(found) if x.requires_grad else None for x in inputs]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(every, inputs, strict=True)]


def eigenvalues(symmetric: Tensor) -> Tensor:
    """In ascending order; NaN where the matrix is not finite, which LAPACK would refuse."""
    if not torch.isfinite(symmetric).all():
        return torch.full_like(symmetric[0], torch.nan)
    values: Tensor = torch.linalg.eigvalsh(symmetric)
    return values


def _packed(positive: Tensor) -> Tensor:
    words = []
    for rows in torch.split(positive, WORD):
        powers = 2.0 ** torch.arange(len(rows), device=rows.device)
        words.append(powers @ rows)
    return torch.stack(words)

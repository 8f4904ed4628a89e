"""A supernet in which every decision is a probability: the network of all networks, differentiable in both.

Blocks mix their outputs, activations theirs; kernels, expansions and widths mix weights, so that they cost one
convolution; depth mixes the outputs after each repetition. See `nas.torch.supernet.union` for what happens in a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.blocks.base import Block
from nas.choices import Genotype, Label, OneOf
from nas.errors import GraphError, SpaceError
from nas.ops import Shape
from nas.torch.supernet.building import Builder
from nas.torch.supernet.channels import leading
from nas.torch.supernet.parts import Part, Step, Wire
from nas.torch.supernet.scoping import Place
from nas.torch.supernet.settling import Wired
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import (
    Beliefs,
    Table,
    decisions,
)
from nas.torch.supernet.union import Unmixable

LOOKS = 64
"""Settings of the decisions that cannot be mixed, at most, with which is tried whether the others can."""


RANDOM = 8
"""How many of these are drawn at random."""


KEPT = 32
"""Relaxed networks that are kept, for as many settings of the decisions that cannot be mixed."""


class Relaxed:
    """Runs a space's networks all at once, with a supernet's weights.

    Args:
        supernet: holds the weights.
        affine: whether norms have their scale and shift (the networks of DARTS have none while they are searched).
        partial: edges of cells work on one in so many channels, and pass the others on (PC-DARTS, Xu et al. 2020).

    Attributes:
        labels: decisions that are mixed, path to labels.
        sampled: decisions that cannot be, such as resolution and strides: they are given for each step.
        default: the first labels of these with which there is a network.
        wirings: decisions which edges a node of a cell has: path to the edges' own decisions, by option.

    Raises SpaceError for a space that cannot be relaxed.
    """

    def __init__(self, supernet: Supernet, *, affine: bool = True, partial: int = 1) -> None:
        self.supernet, self.affine, self.partial = supernet, affine, partial
        self.training = True
        self.wirings: dict[str, tuple[tuple[str, ...], ...]] = {}
        space = supernet.space
        self.sampled: dict[str, tuple[Label, ...]] = {}
        self._at: dict[tuple[int, ...], Part] = {}
        self._wired: dict[Any, tuple[Block, Wired | None]] = {}
        if isinstance(space.resolution, OneOf):
            self.sampled["resolution"] = space.paths["resolution"]
        self.default: Genotype = {}
        while True:
            try:
                self.default = self._look()
                break
            except Unmixable as error:
                more = [v.path for v in decisions(error.variables) if v.path not in self.sampled]
                if not more:
                    raise SpaceError(f"space {space.name!r} cannot be relaxed: {error}") from None
                self.sampled |= {path: space.paths[path] for path in more}
                self._at.clear()
        self.labels = {
            path: labels for path, labels in space.paths.items() if path not in self.sampled and len(labels) > 1
        }

    def __call__(
        self, x: Tensor, probabilities: Mapping[str, Tensor], sampled: Genotype | None = None, *, single: bool = False
    ) -> Tensor:
        """Class scores (N, classes).

        Args:
            x: images (N, C, H, W) at the sampled resolution.
            probabilities: (labels,) for each of `labels`. A cell's choice of edges may be left out: all are there then.
                (Instead, `weights_of(path)` may be given: a weight for each edge in the order of `wirings`.)
            sampled: the other decisions; by default `default`.
            single: run only what is most probable, for probabilities that are (nearly) all 0 or 1.

        Raises GraphError if there is no network with these sampled decisions, see `fits`.
        """
        part, beliefs = self._prepared(probabilities, sampled)
        beliefs.single = single
        return part.run(Step(beliefs, self.affine, self.training), x)

    def flops(self, probabilities: Mapping[str, Tensor], sampled: Genotype | None = None) -> Tensor:
        """Expected multiply-adds, exactly those of the network where all is certain.

        (Only of a cell without any edge it is not known that what reads it has other channels to read.)
        """
        part, beliefs = self._prepared(probabilities, sampled)
        return part.flops(beliefs)

    def resolution(self, sampled: Genotype | None = None) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width = self._input(self._fixed(sampled))
        return height, width

    def fits(self, sampled: Genotype) -> bool:
        """Whether there is a network with these decisions of those that cannot be mixed, and all others can be."""
        try:
            self._prepared({}, sampled)
        except GraphError:
            return False
        return True

    def certain(self, genotype: Genotype, **kwargs: Any) -> dict[str, Tensor]:
        """Probabilities of 0 and 1: those of one network; a decision that it does not have takes its first label."""
        found: dict[str, Tensor] = {}
        for path, labels in self.labels.items():
            index = labels.index(genotype[path]) if path in genotype else 0
            found[path] = torch.eye(len(labels), **kwargs)[index]
        return found

    def _prepared(self, probabilities: Mapping[str, Tensor], sampled: Genotype | None) -> tuple[Part, Beliefs]:
        fixed = self._fixed(sampled)
        try:
            return self._part(fixed), Beliefs(probabilities, self.supernet.space.paths)
        except Unmixable as error:
            raise GraphError(f"with {fixed} the other decisions cannot be mixed: {error}") from None

    def _fixed(self, sampled: Genotype | None) -> dict[str, Label]:
        given = sampled or {}
        return {path: given.get(path, self.default.get(path, labels[0])) for path, labels in self.sampled.items()}

    def _look(self) -> Genotype:
        """The first setting of the decisions that cannot be mixed with which there is a network.

        Tries every label of each, and a few together. Raises Unmixable if another decision cannot be mixed either.
        """
        first = {path: labels[0] for path, labels in self.sampled.items()}
        longest = max(map(len, self.sampled.values()), default=1)
        settings = [{path: v[i % len(v)] for path, v in self.sampled.items()} for i in range(longest)]
        settings += [{**first, path: label} for path, labels in self.sampled.items() for label in labels[1:]]
        rng = np.random.default_rng(0)
        for _ in range(RANDOM):
            settings.append({path: v[int(rng.integers(len(v)))] for path, v in self.sampled.items()})
        found: list[Genotype] = []
        reason: GraphError | None = None
        different = {tuple(setting.values()): setting for setting in settings[:LOOKS] + settings[-RANDOM:]}
        for fixed in different.values():
            try:
                self._part(fixed)
                found.append(fixed)
            except GraphError as error:
                reason = reason or error
        if not found:
            raise SpaceError(f"space {self.supernet.space.name!r} cannot be relaxed: {reason}")
        return found[0]

    def _input(self, fixed: Genotype) -> Shape:
        resolution: Any = self.supernet.space.resolution
        if isinstance(resolution, OneOf):
            resolution = resolution.options[resolution.labels.index(fixed["resolution"])]
        return self.supernet.space.shape_at(resolution)

    def _part(self, fixed: dict[str, Label]) -> Part:
        key = tuple(labels.index(fixed[path]) for path, labels in self.sampled.items())
        if key not in self._at:
            shape = self._input(fixed)
            builder = Builder(self.supernet, fixed, self.partial, self.wirings, self._wired)
            wire = Wire(shape, Table.certain(leading(shape[0])))
            part = builder.part(self.supernet.space.template, Place(), {}, wire)[0]
            if len(self._at) >= KEPT:
                del self._at[next(iter(self._at))]
            self._at[key] = part
        return self._at[key]

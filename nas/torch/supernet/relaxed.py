"""A supernet in which every decision is a probability: the network of all networks, differentiable in both.

Blocks mix their outputs, activations theirs; kernels, expansions and widths mix weights, so that they cost one
convolution; depth mixes the outputs after each repetition. See `nas.torch.supernet.union` for what happens in a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.analysis import analyse
from nas.blocks.base import Block, Chain
from nas.blocks.cell import Cell, CellNetwork, CellNode, called
from nas.blocks.edges import FactorizedSkip, PreConv
from nas.choices import Decision, Genotype, Label, OneOf, Repeat, open_children
from nas.errors import GraphError, SpaceError
from nas.graph import Graph
from nas.ops import Shape
from nas.torch.supernet.channels import Channels, leading, locate, merged
from nas.torch.supernet.mixing import weighted_sum
from nas.torch.supernet.names import Recorder
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import (
    LARGEST,
    Beliefs,
    Table,
    Unknown,
    Variable,
    combinations,
    combined,
    decisions,
    entries,
)
from nas.torch.supernet.union import Setting, Union, Unmixable, padded
from nas.walk import Walker, decision_path, join

B = TypeVar("B", bound=Block)

SETTINGS = 20_000
"""Settings of one block, at most."""

LOOKS = 64
"""Settings of the decisions that cannot be mixed, at most, with which is tried whether the others can."""

RANDOM = 8
"""How many of these are drawn at random."""

KEPT = 32
"""Relaxed networks that are kept, for as many settings of the decisions that cannot be mixed."""


@dataclass(frozen=True, eq=False)
class Taken:
    """A choice that is decided.

    Attributes:
        variable: its decision.
        only: options that it can have here.
        inside: what is decided with an option.
    """

    variable: Variable
    only: tuple[int, ...]
    inside: Mapping[int, Env] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sometimes:
    """A choice that is decided in some settings only, or not always as the same decision.

    Attributes:
        variable: its decision where it is decided, None if there are several.
        of: what it depends on.
    """

    variable: Variable | None
    of: Variable


Env: TypeAlias = Mapping[int, Taken | Sometimes]
"""The decisions that a scope sees, by the id of the choice."""


@dataclass
class _Met:
    """The decisions of one block: all, and by the ids of their choices those that were taken before it."""

    before: Env
    found: dict[Variable, Taken] = field(default_factory=dict)
    shared: dict[int, Taken] = field(default_factory=dict)
    local: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Wire:
    """A value between two blocks: its shape in the supernet, and which channels there are."""

    shape: Shape
    channels: Table[Channels]

    def given(self, variable: Variable, only: Sequence[int]) -> Wire:
        """The same where a decision takes one of these options."""
        return replace(self, channels=self.channels.given(variable, only))


@dataclass(frozen=True)
class Place:
    """Where a block stands.

    Attributes:
        name: in the graph, within `around`.
        around: beginning of the keys.
        path, scope: of decisions.
        fields: what a `Repeat` has instead of the block's own fields: name, path, scope and value of each.
        is_edge: whether the block's own name is to be added, as on the edges of a cell.
    """

    name: str = ""
    around: str = ""
    path: str = ""
    scope: str = ""
    fields: tuple[tuple[str, str, str, Any], ...] = ()
    is_edge: bool = False

    def inside(self, label: str) -> str:
        return f"{self.around}{self.name}:{label}." if self.name else self.around


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
        self._at: dict[tuple[int, ...], _Part] = {}
        self._wired: dict[Any, tuple[Block, _Wired | None]] = {}
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
        return part.run(_Step(self, beliefs), x)

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

    def _prepared(self, probabilities: Mapping[str, Tensor], sampled: Genotype | None) -> tuple[_Part, Beliefs]:
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

    def _part(self, fixed: dict[str, Label]) -> _Part:
        key = tuple(labels.index(fixed[path]) for path, labels in self.sampled.items())
        if key not in self._at:
            shape = self._input(fixed)
            builder = _Builder(self.supernet, fixed, self.partial, self.wirings, self._wired)
            wire = Wire(shape, Table.certain(leading(shape[0])))
            part = builder.part(self.supernet.space.template, Place(), {}, wire)[0]
            if len(self._at) >= KEPT:
                del self._at[next(iter(self._at))]
            self._at[key] = part
        return self._at[key]


def weights_of(path: str) -> str:
    """What the weights of a cell node's edges are called among probabilities, by the path of the choice of edges."""
    return f"{path}|edges"


@dataclass(frozen=True)
class _Step:
    """What a run needs."""

    relaxed: Relaxed
    beliefs: Beliefs


class _Part:
    """A piece of the relaxed network; `out` is what comes out of it."""

    out: Wire

    def run(self, step: _Step, x: Tensor) -> Tensor:
        raise NotImplementedError

    def flops(self, beliefs: Beliefs) -> Tensor:
        raise NotImplementedError


class _Identity(_Part):
    def __init__(self, wire: Wire) -> None:
        self.out = wire

    def run(self, step: _Step, x: Tensor) -> Tensor:
        return x

    def flops(self, beliefs: Beliefs) -> Tensor:
        return torch.zeros((), dtype=torch.float64)


class _Leaf(_Part):
    def __init__(self, union: Union) -> None:
        self._union = union
        # Where no setting can be built there is nothing: the first channels that there can be stand for it.
        known = [c for c in union.channels.values if c is not None]
        values = [known[0] if c is None else c for c in union.channels.values]
        table = Table(union.channels.variables, union.channels.entries, values)
        self.out = Wire(union.shape, table)

    def run(self, step: _Step, x: Tensor) -> Tensor:
        relaxed = step.relaxed
        return self._union.run(step.beliefs, x, affine=relaxed.affine, training=relaxed.training)

    def flops(self, beliefs: Beliefs) -> Tensor:
        table = self._union.flops
        p = beliefs.over(table)
        return p @ torch.tensor(table.values, dtype=torch.float64, device=p.device)


class _Compact(_Part):
    """Only the channels in use, which lie apart where a concatenation has room for more."""

    def __init__(self, part: _Part) -> None:
        self._part = part
        channels, *others = part.out.channels.values
        if others:
            raise SpaceError("edges with open widths cannot be partial; use partial=1")
        self._channels, n = channels, sum(n for _, n in channels)
        self.out = Wire((n, *part.out.shape[1:]), Table.certain(leading(n)))

    def run(self, step: _Step, x: Tensor) -> Tensor:
        y = self._part.run(step, x)
        parts = [y.narrow(1, first, n) for first, n in self._channels]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def flops(self, beliefs: Beliefs) -> Tensor:
        return self._part.flops(beliefs)


class _Sequence(_Part):
    def __init__(self, parts: Sequence[_Part], wire: Wire) -> None:
        self._parts = parts
        self.out = parts[-1].out if parts else wire

    def run(self, step: _Step, x: Tensor) -> Tensor:
        for part in self._parts:
            x = part.run(step, x)
        return x

    def flops(self, beliefs: Beliefs) -> Tensor:
        return sum((part.flops(beliefs) for part in self._parts), torch.zeros((), dtype=torch.float64))


class _Mixture(_Part):
    """One of several blocks, by the option; nothing where an option has none."""

    def __init__(self, variable: Variable, parts: Mapping[int, _Part], missing: Sequence[int]) -> None:
        self.variable, self._parts = variable, parts
        self._missing = list(missing)  # options that cannot be built: there is no network with them
        self.out = _either(variable, {i: part.out for i, part in parts.items()})

    def run(self, step: _Step, x: Tensor) -> Tensor:
        p = self._shares(step.beliefs).to(x.dtype).unbind()
        parts = [(i, self._parts[i]) for i in step.beliefs.likely(self.variable) if i in self._parts]
        if not parts:
            return x.new_zeros(x.shape[0], *self.out.shape)
        return _sum([(part.run(step, x), p[i]) for i, part in parts], self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = self._shares(beliefs)
        return torch.stack([p[i] * part.flops(beliefs) for i, part in self._parts.items()]).sum()

    def _shares(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self.variable)
        return p / (1 - p[self._missing].sum()).clamp_min(1e-30) if self._missing else p


class _Repeated(_Part):
    """Repetitions, of which the first so many are there."""

    def __init__(self, times: Variable, counts: Sequence[int], parts: Sequence[_Part], wire: Wire) -> None:
        self._times, self._counts, self._parts = times, counts, parts
        outs = [wire, *(part.out for part in parts)]
        self.out = _either(times, {k: outs[n] for k, n in enumerate(counts)})

    def run(self, step: _Step, x: Tensor) -> Tensor:
        p = step.beliefs.of(self._times).to(x.dtype).unbind()
        likely = step.beliefs.likely(self._times)
        after = [x]
        for part in self._parts[: max(self._counts[k] for k in likely)]:
            after.append(part.run(step, after[-1]))
        return _sum([(after[self._counts[k]], p[k]) for k in likely], self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self._times)
        total = torch.zeros((), dtype=torch.float64)
        for i, part in enumerate(self._parts):
            there = p[[k for k, n in enumerate(self._counts) if n > i]].sum()
            total = total + there * part.flops(beliefs)
        return total


@dataclass(frozen=True)
class _Edge:
    """An edge of a cell: the value it reads, what it does, and the options of its node's choice with which it is there.

    `idle`: options of its own choice with which it does nothing.
    """

    source: int
    part: _Part
    node: tuple[Variable, tuple[int, ...]] | None
    idle: tuple[Variable, tuple[int, ...]] | None
    partial: int = 1
    number: int = 0

    def run(self, step: _Step, x: Tensor) -> Tensor:
        """What the edge adds to its node."""
        if self.partial > 1:
            some, others = x[:, : x.shape[1] // self.partial], x[:, x.shape[1] // self.partial :]
            y = self.part.run(step, some)
            if y.shape[2:] != others.shape[2:]:
                others = F.max_pool2d(others, 2, 2, ceil_mode=True)
            y = F.channel_shuffle(torch.cat([y, others], 1), self.partial)
        else:
            y = self.part.run(step, x)
        return y * self.there(step.beliefs).to(x.dtype)

    def there(self, beliefs: Beliefs) -> Tensor:
        """How probable it is that the node has this edge; 1 where nothing is said of the node's choice."""
        if self.node is None:
            return torch.ones((), dtype=torch.float64)
        weights = beliefs.given(weights_of(self.node[0].path))
        if weights is not None:
            return weights[self.number].double()
        if not beliefs.knows(self.node[0]):
            return torch.ones((), dtype=torch.float64)
        return beliefs.of(self.node[0])[list(self.node[1])].sum()

    def busy(self, beliefs: Beliefs) -> Tensor:
        """How probable it is that the edge does something."""
        there = self.there(beliefs)
        return there if self.idle is None else there * (1 - beliefs.of(self.idle[0])[list(self.idle[1])].sum())


class _CellPart(_Part):
    """A cell; with probabilities between 0 and 1 all edges are there, each as much as it is probable."""

    def __init__(
        self,
        inputs: Sequence[_Part],
        nodes: Sequence[Sequence[_Edge]],
        wanted: Sequence[int],
        room: Sequence[int],
        out: Wire,
    ) -> None:
        self._inputs, self._nodes, self._wanted, self._room, self.out = inputs, nodes, wanted, room, out

    def run(self, step: _Step, x: Tensor) -> Tensor:
        return self.join(step, [x])

    def join(self, step: _Step, xs: Sequence[Tensor]) -> Tensor:
        """The output, from all inputs."""
        values: list[Tensor | None] = [part.run(step, x) for part, x in zip(self._inputs, xs, strict=True)]
        alive = self._alive(step.beliefs)
        like: Tensor | None = None
        for edges in self._nodes:
            total: Tensor | None = None
            for edge in edges:
                x = values[edge.source]
                if step.beliefs.single and float(edge.there(step.beliefs).detach()) == 0:
                    continue
                # What reads nothing is nothing, though a norm would make its shift of it.
                if x is not None and float(alive[edge.source].detach()) > 0:
                    y = edge.run(step, x)
                    total = y if total is None else total + y
            values.append(total)
            like = total if like is None else like
        if like is None:
            return xs[-1].new_zeros(len(xs[-1]), *self.out.shape)
        found = [torch.zeros_like(like) if (x := values[i]) is None else x for i in self._wanted]
        found = [padded(x, extent) for x, extent in zip(found, self._room, strict=True)]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def flops(self, beliefs: Beliefs) -> Tensor:
        return self.costs(beliefs)[0]

    def costs(self, beliefs: Beliefs) -> tuple[Tensor, list[Tensor]]:
        """FLOPs, and how probable it is that each input makes a difference."""
        alive, one = self._alive(beliefs), torch.ones((), dtype=torch.float64)
        unused = [one] * len(alive)
        total = torch.zeros((), dtype=torch.float64)
        for i in reversed(range(len(self._inputs), len(alive))):
            wanted = one if i in self._wanted else 1 - unused[i]
            for edge in self._nodes[i - len(self._inputs)]:
                total = total + alive[edge.source] * wanted * edge.there(beliefs) * edge.part.flops(beliefs)
                unused[edge.source] = unused[edge.source] * (1 - wanted * edge.busy(beliefs))
        for i, part in enumerate(self._inputs):
            total = total + (1 - unused[i]) * part.flops(beliefs)
        nothing = one  # then the output is as many zeros as the last input has
        for i in self._wanted:
            nothing = nothing * (1 - alive[i])
        *others, last = [1 - p for p in unused[: len(self._inputs)]]
        return total, [*others, 1 - (1 - last) * (1 - nothing)]

    def _alive(self, beliefs: Beliefs) -> list[Tensor]:
        """How probable it is that a value reads an input by some way."""
        found = [torch.ones((), dtype=torch.float64) for _ in self._inputs]
        for edges in self._nodes:
            dead = torch.ones((), dtype=torch.float64)
            for edge in edges:
                dead = dead * (1 - edge.busy(beliefs) * found[edge.source])
            found.append(1 - dead)
        return found


class _Cells(_Part):
    """Cells one after the other, each of which reads the two before it."""

    def __init__(self, entry: _Part | None, cells: Sequence[_CellPart]) -> None:
        self._entry, self._cells = entry, cells
        self.out = cells[-1].out

    def run(self, step: _Step, x: Tensor) -> Tensor:
        before, last = x, x if self._entry is None else self._entry.run(step, x)
        for cell in self._cells:
            before, last = last, cell.join(step, [before, last])
        return last

    def flops(self, beliefs: Beliefs) -> Tensor:
        one = torch.ones((), dtype=torch.float64)
        # What is not read by the next cell, nor by the one after it: before the first two there are two more.
        unused = [one] * (len(self._cells) + 1) + [torch.zeros((), dtype=torch.float64)]
        total = torch.zeros((), dtype=torch.float64)
        for i in reversed(range(len(self._cells))):
            flops, (before, last) = self._cells[i].costs(beliefs)
            wanted = 1 - unused[i + 2]
            total = total + wanted * flops
            unused[i] = unused[i] * (1 - wanted * before)
            unused[i + 1] = unused[i + 1] * (1 - wanted * last)
        return total if self._entry is None else total + (1 - unused[1]) * self._entry.flops(beliefs)


def _either(variable: Variable, wires: Mapping[int, Wire]) -> Wire:
    """One of several values, by the option of a variable; an option that has none is like the first."""
    sizes = {wire.shape[1:] for wire in wires.values()}
    if len(sizes) != 1:
        raise Unmixable(f"{variable.path} changes the size of the map", [variable])
    tables = {i: wire.channels for i, wire in wires.items()}
    if entries(list(tables.values()), [variable]) > 64 * LARGEST:
        tables = {i: table.alone if table.variables else table for i, table in tables.items()}
    first = next(iter(tables.values()))
    found = list(tables.values())
    table = combined(found, [variable], lambda taken: tables.get(taken[variable], first).at(taken))
    return Wire((max(wire.shape[0] for wire in wires.values()), *sizes.pop()), table.limited())


def _sum(parts: Sequence[tuple[Tensor, Tensor]], wire: Wire) -> Tensor:
    return weighted_sum([weight for _, weight in parts], [padded(x, wire.shape[0]) for x, _ in parts])


class _Builder:
    """Goes through a template as `nas.walk.everywhere` does."""

    def __init__(
        self,
        supernet: Supernet,
        fixed: Mapping[str, Label],
        partial: int,
        wirings: dict[str, tuple[tuple[str, ...], ...]],
        wired: dict[Any, tuple[Block, _Wired | None]],
    ) -> None:
        self._supernet, self._fixed, self._partial, self._wirings = supernet, fixed, partial, wirings
        self._wired = wired

    def part(self, value: Any, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        """The relaxed form of a block, and what is decided after it."""
        if value is None:
            return _Identity(wire), env
        if isinstance(value, OneOf):
            return self._choice(value, place, env, wire)
        if place.is_edge:
            inner = replace(place, name=f"{place.name}.{self._called(value, place, env)}", is_edge=False)
            part, env = self.part(value, inner, env, wire)
            return (part if self._partial == 1 else _Compact(part)), env
        if isinstance(value, Repeat):
            return self._repeat(value, place, env, wire)
        if isinstance(value, Cell) and (value.is_open or place.fields):
            return self._cell(value, place, env, [wire])
        if isinstance(value, CellNetwork) and value.is_open and not place.fields:
            return self._cells(value, place, env, wire)
        if isinstance(value, Chain) and value.is_open and not place.fields:
            return self._chain(value, place, env, wire)
        return self._leaf(value, place, env, wire)

    # -- containers --------------------------------------------------------------------------------------------

    def _choice(self, choice: OneOf, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        here = self._taken(choice, place.path, place.scope, env)
        envs = {i: _entered(choice, here, i, env) for i in here.only}
        parts: dict[int, _Part] = {}
        missing: list[int] = []
        reason = GraphError(f"{here.variable.path} has no option")
        for i in here.only:
            option = choice.options[i]
            if option is None and place.is_edge:
                continue  # no block on an edge is no edge, and does not pass its input on
            try:
                parts[i], envs[i] = self.part(option, place, envs[i], wire.given(here.variable, (i,)))
            except GraphError as error:
                missing.append(i)
                reason = error
        if not parts:
            raise reason
        after = _left(choice, here, env, envs)
        if len(here.only) == 1:
            return next(iter(parts.values())), after
        return _Mixture(here.variable, parts, missing), after

    def _chain(self, chain: Chain, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        around = place.inside(chain.label)
        parts: list[_Part] = []
        for name, value in chain.parts:
            inner = Place(name, around, join(place.path, name), place.scope)
            part, env = self.part(value, inner, env, wire)
            parts.append(part)
            wire = part.out
        return _Sequence(parts, wire), env

    def _repeat(self, repeat: Repeat, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        path, scope = place.path, place.scope
        times, counts, env = self._number(repeat.times, join(path, "times"), scope, env)
        each = tuple((name, join(path, name), scope, value) for name, value in repeat.each.items())
        first = tuple((name, join(path, name), scope, value) for name, value in repeat.first.items())
        known = env
        for _, at, _, value in (*each, *first):
            known = self._survey(value, at, scope, known, _Met(env))
        start, parts = wire, list[_Part]()
        for i in range(max(counts)):
            at = join(path, "each" if repeat.shared else str(i))
            inner = Place(str(i), place.inside("stage"), at, at, (*each, *(first if i == 0 else ())))
            inside = known
            if times is not None:
                only = tuple(k for k in times.only if counts[k] > i)
                inside = {**known, id(repeat.times): replace(times, only=only)}
                wire = wire.given(times.variable, only)
            part, _ = self.part(repeat.block, inner, inside, wire)
            parts.append(part)
            wire = part.out
        if times is None:
            return _Sequence(parts, start), known
        return _Repeated(times.variable, counts, parts, start), known

    # -- decisions ---------------------------------------------------------------------------------------------

    def _taken(self, choice: OneOf, path: str, scope: str, env: Env) -> Taken:
        """The decision that a choice is where it stands."""
        known = env.get(id(choice))
        if isinstance(known, Taken):
            return known
        here = Variable(decision_path(choice, path, scope), choice.labels)
        if known is not None and known.variable != here:
            raise Unmixable(f"{here.path} may be decided elsewhere, which depends on {known.of.path}", [known.of])
        if here.path not in self._supernet.space.paths:
            raise SpaceError(f"{here.path} is in a choice that stands in two places; give each a choice of its own")
        return Taken(here, self._options(here))

    def _options(self, variable: Variable) -> tuple[int, ...]:
        """The options that a decision can have."""
        if variable.path not in self._fixed:
            return tuple(range(variable.size))
        label = self._fixed[variable.path]
        # A choice of the same name may have labels that this one lacks: then it is the other that is there.
        return (variable.labels.index(label) if label in variable.labels else 0,)

    def _number(self, value: Any, path: str, scope: str, env: Env) -> tuple[Taken | None, tuple[int, ...], Env]:
        """A number that may be open: its decision, and what the options stand for."""
        if not isinstance(value, OneOf):
            return None, (value,), env
        here = self._taken(value, path, scope, env)
        env = {**env, id(value): here}
        if len(here.only) == 1:
            return None, (value.options[here.only[0]],), env
        return here, tuple([n if k in here.only else 0 for k, n in enumerate(value.options)]), env

    def _survey(self, value: Any, path: str, scope: str, env: Env, met: _Met) -> Env:
        """Find what is decided in a value; returns what is known after it. Goes as `nas.walk.everywhere` does."""
        if isinstance(value, OneOf):
            return self._survey_choice(value, path, scope, env, met)
        if isinstance(value, Repeat):
            times, counts, env = self._number(value.times, join(path, "times"), scope, env)
            if times is not None:
                met.found.setdefault(times.variable, times)
            if isinstance(value.times, OneOf):
                env = self._survey_choice(value.times, join(path, "times"), scope, env, met)
            for name, child in (*value.each.items(), *value.first.items()):
                env = self._survey(child, join(path, name), scope, env, met)
            for i in range(min(max(counts), 1) if value.shared else max(counts)):
                at = join(path, "each" if value.shared else str(i))
                self._survey(value.block, at, at, env, met)
            return env
        numbered = [(str(i), child) for i, child in enumerate(value)] if isinstance(value, tuple) else []
        for name, child in numbered or open_children(value):
            env = self._survey(child, join(path, name), scope, env, met)
        return env

    def _survey_choice(self, choice: OneOf, path: str, scope: str, env: Env, met: _Met) -> Env:
        me, known = id(choice), env.get(id(choice))
        if isinstance(known, Sometimes) and met.before.get(me) is not known:
            # Decided in some settings of this same block: all of them are looked at one by one.
            known = None
            env = {key: value for key, value in env.items() if key != me}
        here = self._taken(choice, path, scope, env)
        if known is None:
            met.local.add(me)
        elif me not in met.local and met.shared.setdefault(me, here).variable != here.variable:
            raise Unmixable(f"{here.variable.path} is one of several decisions", [here.variable])
        met.found.setdefault(here.variable, here)
        envs = {}
        for i in here.only:
            envs[i] = self._survey(choice.options[i], path, scope, _entered(choice, here, i, env), met)
        return _left(choice, here, env, envs)

    def _called(self, block: Any, place: Place, env: Env) -> str:
        """What a block on an edge is called."""
        if isinstance(block, Repeat):
            return "stage"
        kernel = getattr(block, "kernel", None)
        if not isinstance(kernel, OneOf):
            return called(block)
        here = self._taken(kernel, join(place.path, "kernel"), place.scope, env)
        if len(here.only) > 1:
            raise Unmixable(f"{here.variable.path} changes the name of an edge's weights", [here.variable])
        return called(block.with_children({"kernel": kernel.options[here.only[0]]}))

    # -- cells -------------------------------------------------------------------------------------------------

    def _cells(self, network: CellNetwork, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        network, env = self._closed(network, ("width", "cells"), place, env)
        around, (normal, reduction) = place.inside(network.label), self._two(network)
        before, last, entry = wire, wire, None
        if network.entry is not None:
            entry, env = self.part(
                network.entry, Place("entry", around, join(place.path, "entry"), place.scope), env, wire
            )
            last = entry.out
        width, cells = network.width, list[_CellPart]()
        for i in range(network.cells):
            reduces = network.reduces(i)
            width *= 1 + reduces
            cell = (reduction if reduces else normal).with_children({"width": width})
            at = join(place.path, "reduction" if reduces else "normal")
            part, env = self._cell(cell, Place(str(i), around, at, place.scope), env, [before, last])
            cells.append(part)
            before, last = last, part.out
        return _Cells(entry, cells), env

    def _closed(self, block: B, names: Sequence[str], place: Place, env: Env) -> tuple[B, Env]:
        """A block whose fields of these names are closed, which they are if they cannot be mixed."""
        changes = {}
        for name in names:
            value = getattr(block, name)
            if isinstance(value, OneOf):
                here = self._taken(value, join(place.path, name), place.scope, env)
                if len(here.only) > 1:
                    raise Unmixable(f"{here.variable.path} is of a whole cell", [here.variable])
                changes[name], env = value.options[here.only[0]], {**env, id(value): here}
        return block.with_children(changes) if changes else block, env

    @staticmethod
    def _two(network: CellNetwork) -> tuple[Cell, Cell]:
        if not (isinstance(network.normal, Cell) and isinstance(network.reduction, Cell)):
            raise SpaceError("a network of cells that are themselves a choice cannot be relaxed; name two cells")
        return network.normal, network.reduction

    def _cell(self, cell: Cell, place: Place, env: Env, wires: Sequence[Wire]) -> tuple[_CellPart, Env]:
        cell, env = self._closed(cell, ("output", "width"), place, env)
        around = place.inside(cell.label)
        nodes, at, scope = cell.nodes, join(place.path, "nodes"), place.scope
        for name, path, outer, value in place.fields:
            if name != "nodes":
                raise SpaceError(f"a cell with {name!r} given by Repeat cannot be relaxed")
            nodes, at, scope = value, path, outer
        for wire in wires if cell.width is None else ():
            if len(wire.channels.values) > 1:
                raise Unmixable(f"{around[:-1]} reads different numbers of channels", wire.channels.variables)
        inputs: list[_Part] = [_Identity(wire) for wire in wires]
        if cell.width is not None:
            for i, wire in enumerate(wires):
                fits = wire.shape[1:] == wires[-1].shape[1:]
                block: Block = PreConv(cell.width, 1) if fits else FactorizedSkip(cell.width, 2)
                inputs[i] = self.part(block, Place(f"input{i}", around), env, wire)[0]
        values = [part.out for part in inputs]
        built: list[list[_Edge]] = []
        for number, node in enumerate(nodes, len(inputs)):
            inner = Place(f"node{number}", around, join(join(at, str(number - len(inputs))), "edges"), scope)
            edges, env = self._edges(node, inner, env, values)
            built.append(edges)
            values.append(self._sum_of(edges, f"{inner.around}{inner.name}") if edges else values[-1])
        wanted = self._wanted(cell, len(inputs), built)
        if len({values[i].shape for i in wanted}) > 1:
            raise SpaceError(f"{around[:-1]}: nodes of different shapes cannot be relaxed")
        channels, *size = values[wanted[-1]].shape
        # Narrower cells have room between the nodes.
        key, known = f"{around}concat", self._supernet.extents.parts
        room = [known.get((key, k), channels) if len(wanted) > 1 else channels for k in range(len(wanted))]
        joined = merged([(sum(room[:k]), channels) for k in range(len(wanted))])
        out = Wire((sum(room), *size), Table.certain(joined))
        return _CellPart(inputs, built, wanted, room, out), env

    def _sum_of(self, edges: Sequence[_Edge], name: str) -> Wire:
        """What a node of a cell is."""
        shapes = {edge.part.out.shape for edge in edges}
        for table in [edge.part.out.channels for edge in edges]:
            if len(table.values) > 1:
                raise Unmixable(f"{name}: edges have open widths", table.variables)
        every = {edge.part.out.channels.values[0] for edge in edges}
        if len(shapes) > 1 or every != {leading(next(iter(shapes))[0])}:
            raise SpaceError(f"{name}: edges of different shapes cannot be relaxed")
        channels, *size = shapes.pop()
        channels *= self._partial
        return Wire((channels, *size), Table.certain(leading(channels)))

    @staticmethod
    def _wanted(cell: Cell, inputs: int, nodes: Sequence[Sequence[_Edge]]) -> list[int]:
        """The values that make the output."""
        numbers = range(inputs, inputs + len(nodes))
        if cell.output == "last":
            return [numbers[-1]]
        if cell.output == "all":
            return list(numbers)
        if any(edge.node is not None for edges in nodes for edge in edges):
            raise SpaceError("a cell whose output depends on open edges cannot be relaxed; use output='all'")
        read = {edge.source for edges in nodes for edge in edges}
        return [i for i in numbers if i not in read]

    def _edges(self, node: CellNode, place: Place, env: Env, values: Sequence[Wire]) -> tuple[list[_Edge], Env]:
        """All edges that a node can have, each once."""
        choice, options = node.edges, [node.edges]
        here: Taken | None = None
        if isinstance(choice, OneOf):
            here = self._taken(choice, place.path, place.scope, env)
            options = [choice.options[i] for i in here.only]
            env = {**env, id(choice): here}
        found: dict[tuple[int, int, int], tuple[Any, dict[int, int]]] = {}
        for k, edges in zip(here.only if here else (0,), options, strict=True):
            count: Counter[int] = Counter()
            for i, edge in enumerate(edges):
                if isinstance(edge.source, OneOf):
                    raise SpaceError(f"{place.around}{place.name}: an open source of an edge cannot be relaxed")
                key = edge.source, count[edge.source], id(edge.block)
                count[edge.source] += 1
                found.setdefault(key, (edge, {}))[1][k] = i
        made, paths = list[_Edge](), dict[str, list[int]]()
        for (source, again, _), (edge, there) in found.items():
            if edge.block is None:
                continue
            name = f"{place.name}.from{source}" + (f"_{again}" if again else "")
            at = [join(place.path, f"{i}.block") for i in dict.fromkeys(there.values())]
            mets = [_Met(env) for _ in at]
            for where, met in zip(at, mets, strict=True):
                self._survey(edge.block, where, place.scope, env, met)
            if here is not None and any(met.found.keys() != mets[0].found.keys() for met in mets):
                raise Unmixable(f"{here.variable.path}: an edge's decision has several paths", [here.variable])
            inner = Place(name, place.around, at[0], place.scope, is_edge=True)
            idle, path, block = None, f"{place.path}.{name}", edge.block
            if isinstance(block, OneOf):
                known = self._taken(block, inner.path, inner.scope, env)
                path = known.variable.path
                nothing = tuple(i for i in known.only if block.options[i] is None)
                idle = (known.variable, nothing) if nothing else None
                if len(nothing) == len(known.only):
                    block, env = None, {**env, id(block): known}
            paths.setdefault(path, []).extend(there)
            if block is None:
                continue
            part, env = self.part(block, inner, env, self._some(values[source]))
            always = here is None or len(there) == len(here.only)
            with_it = None if here is None or always else (here.variable, tuple(there))
            made.append(_Edge(source, part, with_it, idle, self._partial, list(paths).index(path)))
        if here is not None and len(here.only) > 1:
            self._wirings[here.variable.path] = tuple(
                tuple(path for path, there in paths.items() if k in there) for k in here.only
            )
        return made, env

    def _some(self, wire: Wire) -> Wire:
        """The channels that an edge works on."""
        channels, *size = wire.shape
        if self._partial == 1:
            return wire
        if channels % self._partial or wire.channels.values != (leading(channels),):
            raise SpaceError(f"partial={self._partial}: {channels} channels cannot be divided so; choose a divisor")
        return Wire((channels // self._partial, *size), Table.certain(leading(channels // self._partial)))

    # -- blocks ------------------------------------------------------------------------------------------------

    def _leaf(self, block: Block, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        """A block whose settings are laid over each other."""
        met = _Met(env)
        for value, path, scope in [
            (block, place.path, place.scope),
            *((v, at, scope) for _, at, scope, v in place.fields),
        ]:
            env = self._survey(value, path, scope, env, met)
        mine = [variable for variable, known in met.found.items() if len(known.only) > 1]
        channels = wire.channels
        if channels.variables and set(channels.variables).isdisjoint(mine):
            channels = channels.alone  # where they come from makes no difference
        unknown: list[Unknown] = list(dict.fromkeys([*mine, *channels.variables]))
        total = prod(v.size for v in unknown)
        if total > SETTINGS:
            widest = max(decisions(unknown), key=lambda v: v.size)
            raise Unmixable(f"block {block.label!r} has {total} settings, at most {SETTINGS} can be mixed", [widest])
        settle = _Settler(self._supernet, block, place, met, self._wired)
        which = [settle(taken, channels.at(taken), wire.shape[1:]) for taken in combinations(unknown)]
        if not any(settle.found):
            raise GraphError(f"block {place.inside(block.label)[:-1]!r} can be built in none of its settings")
        union = Union(self._supernet, unknown, settle.found, np.array(which, dtype=np.int64), wire.shape[0])
        return _Leaf(union), env


def _entered(choice: OneOf, here: Taken, i: int, env: Env) -> Env:
    """What is known inside an option."""
    return {**env, **here.inside.get(i, {}), id(choice): replace(here, only=(i,))}


def _left(choice: OneOf, here: Taken, before: Env, envs: Mapping[int, Env]) -> Env:
    """What is known after a choice, from what is known after each of its options."""
    inside = {
        i: {key: known for key, known in env.items() if before.get(key) is not known and key != id(choice)}
        for i, env in envs.items()
    }
    after = {**before, id(choice): replace(here, inside=inside)}
    return {**after, **_either_known(list(inside.values()), here.variable)}


def _either_known(envs: Sequence[Env], of: Variable) -> Env:
    """What is known where one of several is true, which depends on a decision."""
    if len(envs) == 1:
        return envs[0]
    found: dict[int, Taken | Sometimes] = {}
    for key in dict.fromkeys(key for env in envs for key in env):
        known = [env.get(key) for env in envs]
        variables = {value.variable for value in known if value is not None}
        variable = variables.pop() if len(variables) == 1 else None
        taken = [value for value in known if isinstance(value, Taken)]
        if variable is None or len(taken) < len(known):
            found[key] = Sometimes(variable, of)
        else:
            inside = {i: _either_known([t.inside.get(i, {}) for t in taken], of) for t in taken for i in t.inside}
            found[key] = Taken(variable, taken[0].only, inside)
    return found


@dataclass(frozen=True)
class _Wired:
    """A block's graph, and names and keys of its nodes from the block on."""

    graph: Graph
    mark: str
    names: tuple[str, ...]
    keys: tuple[str, ...]
    flops: int


class _Settler:
    """Makes the settings of a block; called with options, returns which of `found` it is."""

    def __init__(
        self, supernet: Supernet, block: Block, place: Place, met: _Met, wired: dict[Any, tuple[Block, _Wired | None]]
    ) -> None:
        self.found: list[Setting | None] = []
        self._supernet, self._place, self._met, self._wired = supernet, place, met, wired
        self._block = Walker(block, place.path, place.scope)
        self._fields = [(name, Walker(value, at, scope)) for name, at, scope, value in place.fields]
        self._known: dict[tuple[int, Channels], int] = {}

    def __call__(self, taken: Mapping[Unknown, int], channels: Channels, size: Shape) -> int:
        def index(variable: Variable) -> int:
            only = self._met.found[variable].only
            # What cannot be here makes no difference: it is as what can.
            return taken[variable] if taken.get(variable) in only else only[0]

        def decide(decision: Decision) -> int:
            return index(Variable(decision.path, decision.labels))

        outer = {i: index(known.variable) for i, known in self._met.shared.items()}
        block = self._block.resolve(decide, outer)[0]
        changes = {name: walker.resolve(decide, outer)[0] for name, walker in self._fields}
        if changes:
            block = block.with_children(changes)
        key = id(block), channels
        if key not in self._known:
            self._known[key] = len(self.found)
            self.found.append(self._made(block, (sum(n for _, n in channels), *size), channels))
        return self._known[key]

    def _made(self, block: Block, shape: Shape, channels: Channels) -> Setting | None:
        key = id(block), shape
        if key not in self._wired:
            self._wired[key] = block, self._wire(block, shape)  # a block that is kept has an id of its own
        _, wired = self._wired[key]
        if wired is None:
            return None
        prefix = self._place.inside(wired.mark)
        keys = tuple([prefix + name for name in wired.keys])
        names = tuple([prefix + name for name in wired.names])
        found = locate(wired.graph, keys, self._supernet.extents, fixed=True, start=channels)
        if not self._supernet.holds(wired.graph, keys, found):
            return None  # no network has it: what decides the input's channels was forgotten on the way
        return Setting(wired.graph, names, keys, tuple(found), wired.flops)

    def _wire(self, block: Block, shape: Shape) -> _Wired | None:
        recorder = Recorder(shape, self._supernet.marks)
        try:
            graph = recorder.graph(recorder.part("", block))
        except GraphError:
            return None
        names = tuple(recorder.keys[node.name] for node in graph.nodes)
        keys = tuple(recorder.keys[node.weights or node.name] for node in graph.nodes)
        return _Wired(graph, recorder.mark(block), names, keys, analyse(graph).flops)

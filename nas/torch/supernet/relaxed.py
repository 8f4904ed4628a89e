"""A supernet in which every decision is a probability: the network of all networks, differentiable in both.

Blocks mix their outputs, activations theirs; kernels, expansions and widths mix weights, so that they cost one
convolution; depth mixes the outputs after each repetition. See `nas.torch.supernet.union` for what happens in a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas.analysis import analyse
from nas.blocks.base import Block, Chain
from nas.blocks.cell import Cell, CellNetwork, CellNode, called
from nas.blocks.edges import FactorizedSkip, PreConv
from nas.choices import Decision, Genotype, Label, OneOf, Repeat, is_open
from nas.errors import GraphError, SpaceError
from nas.graph import Graph
from nas.ops import Shape
from nas.torch.supernet.channels import Channels, leading, locate
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
    entries,
)
from nas.torch.supernet.union import Setting, Union, Unmixable, padded
from nas.walk import Walker, decision_path, everywhere, join

SETTINGS = 20_000
"""Settings of one block, at most."""

Env: TypeAlias = Mapping[int, Variable]
"""The decisions that a scope sees, by the id of the choice."""


@dataclass(frozen=True)
class Wire:
    """A value between two blocks: its shape in the supernet, and which channels there are."""

    shape: Shape
    channels: Table[Channels]


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
        if isinstance(space.resolution, OneOf):
            self.sampled["resolution"] = space.paths["resolution"]
        while True:
            try:
                first = {path: labels[0] for path, labels in self.sampled.items()}
                self._part(first)
                break
            except Unmixable as error:
                more = [v.path for v in error.variables if isinstance(v, Variable) and v.path not in self.sampled]
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
            sampled: the other decisions; the first label of each by default.
            single: run only what is most probable, for probabilities that are (nearly) all 0 or 1.
        """
        part, beliefs = self._prepared(probabilities, sampled)
        beliefs.single = single
        return part.run(_Step(self, beliefs), x)

    def flops(self, probabilities: Mapping[str, Tensor], sampled: Genotype | None = None) -> Tensor:
        """Expected multiply-adds, exactly those of the network where all is certain."""
        part, beliefs = self._prepared(probabilities, sampled)
        return part.flops(beliefs)

    def resolution(self, sampled: Genotype | None = None) -> tuple[int, int]:
        """Height and width of the images."""
        _, height, width = self._input(self._fixed(sampled))
        return height, width

    def certain(self, genotype: Genotype, **kwargs: Any) -> dict[str, Tensor]:
        """Probabilities of 0 and 1: those of one network; a decision that it does not have takes its first label."""
        found: dict[str, Tensor] = {}
        for path, labels in self.labels.items():
            index = labels.index(genotype[path]) if path in genotype else 0
            found[path] = torch.eye(len(labels), **kwargs)[index]
        return found

    def _prepared(self, probabilities: Mapping[str, Tensor], sampled: Genotype | None) -> tuple[_Part, Beliefs]:
        return self._part(self._fixed(sampled)), Beliefs(probabilities, self.supernet.space.paths)

    def _fixed(self, sampled: Genotype | None) -> dict[str, Label]:
        given = sampled or {}
        return {path: given.get(path, labels[0]) for path, labels in self.sampled.items()}

    def _input(self, fixed: Genotype) -> Shape:
        resolution: Any = self.supernet.space.resolution
        if isinstance(resolution, OneOf):
            resolution = resolution.options[resolution.labels.index(fixed["resolution"])]
        return self.supernet.space.shape_at(resolution)

    def _part(self, fixed: dict[str, Label]) -> _Part:
        key = tuple(labels.index(fixed[path]) for path, labels in self.sampled.items())
        if key not in self._at:
            shape = self._input(fixed)
            builder = _Builder(self.supernet, fixed, self.partial, self.wirings)
            wire = Wire(shape, Table.certain(leading(shape[0])))
            self._at[key] = builder.part(self.supernet.space.template, Place(), {}, wire)[0]
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

    def __init__(self, variable: Variable, parts: Mapping[int, _Part]) -> None:
        self.variable, self._parts = variable, parts
        self.out = _either(variable, {i: part.out for i, part in parts.items()})

    def run(self, step: _Step, x: Tensor) -> Tensor:
        p = step.beliefs.of(self.variable).to(x.dtype).unbind()
        parts = [(i, self._parts[i]) for i in step.beliefs.likely(self.variable) if i in self._parts]
        if not parts:
            return x.new_zeros(x.shape[0], *self.out.shape)
        return _sum([(part.run(step, x), p[i]) for i, part in parts], self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self.variable)
        return torch.stack([p[i] * part.flops(beliefs) for i, part in self._parts.items()]).sum()


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
        self, inputs: Sequence[_Part], nodes: Sequence[Sequence[_Edge]], wanted: Sequence[int], out: Wire
    ) -> None:
        self._inputs, self._nodes, self._wanted, self.out = inputs, nodes, wanted, out

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
                # What reads nothing is nothing, though a norm would make its shift of it.
                if x is not None and float(alive[edge.source].detach()) > 0:
                    y = edge.run(step, x)
                    total = y if total is None else total + y
            values.append(total)
            like = total if like is None else like
        if like is None:
            return torch.zeros_like(xs[-1])
        found = [torch.zeros_like(like) if (x := values[i]) is None else x for i in self._wanted]
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def flops(self, beliefs: Beliefs) -> Tensor:
        alive = self._alive(beliefs)
        needed = [torch.ones((), dtype=torch.float64) if i in self._wanted else None for i in range(len(alive))]
        unused: dict[int, Tensor] = {}
        total = sum((part.flops(beliefs) for part in self._inputs), torch.zeros((), dtype=torch.float64))
        for i in reversed(range(len(self._inputs), len(alive))):
            wanted = needed[i]
            if wanted is None:
                wanted = 1 - unused[i] if i in unused else torch.zeros((), dtype=torch.float64)
            for edge in self._nodes[i - len(self._inputs)]:
                there = edge.there(beliefs)
                total = total + alive[edge.source] * wanted * there * edge.part.flops(beliefs)
                before = unused.get(edge.source, torch.ones((), dtype=torch.float64))
                unused[edge.source] = before * (1 - wanted * edge.busy(beliefs))
        return total

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
        parts: list[_Part] = [*([self._entry] if self._entry else []), *self._cells]
        return sum((part.flops(beliefs) for part in parts), torch.zeros((), dtype=torch.float64))


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
    ) -> None:
        self._supernet, self._fixed, self._partial, self._wirings = supernet, fixed, partial, wirings
        self._wired: dict[Any, _Wired | None] = {}

    def part(self, value: Any, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        """The relaxed form of a block, and what is decided after it."""
        if value is None:
            return _Identity(wire), env
        if isinstance(value, OneOf):
            return self._choice(value, place, env, wire)
        if place.is_edge:
            inner = replace(place, name=f"{place.name}.{called(value)}", is_edge=False)
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
        known = env.get(id(choice))
        variable = known or Variable(decision_path(choice, place.path, place.scope), choice.labels)
        around = {**env, id(choice): variable}
        if variable.path in self._fixed or variable.size == 1:
            label = self._fixed.get(variable.path, variable.labels[0])
            return self.part(choice.options[choice.labels.index(label)], place, around, wire)
        built = {
            i: self.part(option, place, around, wire)
            for i, option in enumerate(choice.options)
            if option is not None or not place.is_edge  # no block on an edge is no edge, and does not pass its input on
        }
        first, *others = [env for _, env in built.values()]
        after = around | {i: v for i, v in first.items() if all(other.get(i) == v for other in others)}
        return _Mixture(variable, {i: part for i, (part, _) in built.items()}), after

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
        known = dict(env)
        for _, at, _, value in (*each, *first):
            for where, choice in everywhere(value, at, scope, set(known)):
                known[id(choice)] = Variable(where, choice.labels)
        start, parts = wire, list[_Part]()
        for i in range(max(counts)):
            at = join(path, "each" if repeat.shared else str(i))
            inner = Place(str(i), place.inside("stage"), at, at, (*each, *(first if i == 0 else ())))
            part, _ = self.part(repeat.block, inner, known, wire)
            parts.append(part)
            wire = part.out
        if times is None:
            return _Sequence(parts, start), known
        return _Repeated(times, counts, parts, start), known

    def _number(self, value: Any, path: str, scope: str, env: Env) -> tuple[Variable | None, tuple[int, ...], Env]:
        """A number that may be open: its variable, and what the labels stand for."""
        if not isinstance(value, OneOf):
            return None, (value,), env
        variable = env.get(id(value)) or Variable(decision_path(value, path, scope), value.labels)
        env = {**env, id(value): variable}
        if variable.path in self._fixed or variable.size == 1:
            label = self._fixed.get(variable.path, variable.labels[0])
            return None, (value.options[value.labels.index(label)],), env
        return variable, value.options, env

    # -- cells -------------------------------------------------------------------------------------------------

    def _cells(self, network: CellNetwork, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
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

    @staticmethod
    def _two(network: CellNetwork) -> tuple[Cell, Cell]:
        if not (isinstance(network.normal, Cell) and isinstance(network.reduction, Cell)):
            raise SpaceError("a network of cells that are themselves a choice cannot be relaxed; name two cells")
        return network.normal, network.reduction

    def _cell(self, cell: Cell, place: Place, env: Env, wires: Sequence[Wire]) -> tuple[_CellPart, Env]:
        around = place.inside(cell.label)
        nodes, at, scope = cell.nodes, join(place.path, "nodes"), place.scope
        for name, path, outer, value in place.fields:
            if name != "nodes":
                raise SpaceError(f"a cell with {name!r} given by Repeat cannot be relaxed")
            nodes, at, scope = value, path, outer
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
        channels, *size = values[wanted[-1]].shape
        channels *= len(wanted)
        out = Wire((channels, *size), Table.certain(leading(channels)))
        return _CellPart(inputs, built, wanted, out), env

    def _sum_of(self, edges: Sequence[_Edge], name: str) -> Wire:
        """What a node of a cell is."""
        shapes = {edge.part.out.shape for edge in edges}
        if len(shapes) > 1 or any(len(edge.part.out.channels.values) > 1 for edge in edges):
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
        variable: Variable | None = None
        if isinstance(choice, OneOf):
            variable, _, env = self._number(choice, place.path, place.scope, env)
            label = self._fixed.get(decision_path(choice, place.path, place.scope), choice.labels[0])
            options = list(choice.options) if variable else [choice.options[choice.labels.index(label)]]
        found: dict[tuple[int, int, int], tuple[Any, list[int]]] = {}
        for k, edges in enumerate(options):
            count: Counter[int] = Counter()
            for edge in edges:
                key = edge.source, count[edge.source], id(edge.block)
                count[edge.source] += 1
                found.setdefault(key, (edge, []))[1].append(k)
        made, paths = list[_Edge](), list[str]()
        for (source, again, _), (edge, there) in found.items():
            if isinstance(source, OneOf):
                raise SpaceError(f"{place.around}{place.name}: an open source of an edge cannot be relaxed")
            if edge.block is None:
                continue
            name = f"{place.name}.from{source}" + (f"_{again}" if again else "")
            inner = Place(name, place.around, join(place.path, "block"), place.scope, is_edge=True)
            part, env = self.part(edge.block, inner, env, self._some(values[source]))
            idle = None
            if isinstance(edge.block, OneOf) and isinstance(part, _Mixture):
                nothing = tuple(i for i, option in enumerate(edge.block.options) if option is None)
                idle = (part.variable, nothing) if nothing else None
            with_it = None if variable is None or len(there) == len(options) else (variable, tuple(there))
            made.append(_Edge(source, part, with_it, idle, self._partial, len(made)))
            paths.append(part.variable.path if isinstance(part, _Mixture) else "")
        if variable is not None:
            edges_of = [[p for p, e in zip(paths, made, strict=True) if e.node is None or k in e.node[1]]
                        for k in range(len(options))]  # fmt: skip
            self._wirings[variable.path] = tuple(map(tuple, edges_of))
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
        local: dict[int, Variable] = {}
        shared: dict[int, Variable] = {}
        values = [(block, place.path, place.scope), *((v, at, scope) for _, at, scope, v in place.fields)]
        for value, path, scope in values:
            if not is_open(value):
                continue
            for at, choice in everywhere(value, path, scope):
                if id(choice) in env:
                    shared[id(choice)] = env[id(choice)]
                else:
                    local[id(choice)] = Variable(at, choice.labels)
        decided = {**shared, **local}
        mine = [v for v in decided.values() if v.path not in self._fixed and v.size > 1]
        channels = wire.channels
        if channels.variables and set(channels.variables).isdisjoint(mine):
            channels = channels.alone  # where they come from makes no difference
        unknown: list[Unknown] = list(dict.fromkeys([*mine, *channels.variables]))
        total = prod(v.size for v in unknown)
        if total > SETTINGS:
            widest = max(mine, key=lambda v: v.size)
            raise Unmixable(f"block {block.label!r} has {total} settings, at most {SETTINGS} can be mixed", [widest])
        settle = _Settler(self._supernet, block, place, shared, decided, self._fixed, self._wired)
        which = [settle(taken, channels.at(taken), wire.shape[1:]) for taken in combinations(unknown)]
        if not any(settle.found):
            raise SpaceError(f"block {place.inside(block.label)[:-1]!r} can be built in none of its settings")
        union = Union(self._supernet, unknown, settle.found, np.array(which, dtype=np.int64), wire.shape[0])
        return _Leaf(union), {**env, **local}


@dataclass(frozen=True)
class _Wired:
    """A block's graph, and names and keys of its nodes from the block on."""

    block: Block  # kept, so that its id is not given out again
    graph: Graph
    mark: str
    names: tuple[str, ...]
    keys: tuple[str, ...]
    flops: int


class _Settler:
    """Makes the settings of a block; called with options, returns which of `found` it is."""

    def __init__(
        self, supernet: Supernet, block: Block, place: Place, shared: Env, decided: Env, fixed: Mapping[str, Label],
        wired: dict[Any, _Wired | None],
    ) -> None:  # fmt: skip
        self.found: list[Setting | None] = []
        self._supernet, self._place, self._shared, self._fixed, self._wired = supernet, place, shared, fixed, wired
        self._paths = {v.path: v for v in decided.values()}
        self._block = Walker(block, place.path, place.scope)
        self._fields = [(name, Walker(value, at, scope)) for name, at, scope, value in place.fields]
        self._known: dict[tuple[int, Channels], int] = {}

    def __call__(self, taken: Mapping[Unknown, int], channels: Channels, size: Shape) -> int:
        def index(variable: Variable) -> int:
            if variable in taken:
                return taken[variable]
            return variable.labels.index(self._fixed[variable.path]) if variable.path in self._fixed else 0

        def decide(decision: Decision) -> int:
            return index(self._paths[decision.path])

        outer = {i: index(v) for i, v in self._shared.items()}
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
            self._wired[key] = self._wire(block, shape)
        wired = self._wired[key]
        if wired is None:
            return None
        prefix = self._place.inside(wired.mark)
        keys = tuple([prefix + name for name in wired.keys])
        names = tuple([prefix + name for name in wired.names])
        found = locate(wired.graph, keys, self._supernet.extents, fixed=True, start=channels)
        return Setting(wired.graph, names, keys, tuple(found), wired.flops)

    def _wire(self, block: Block, shape: Shape) -> _Wired | None:
        recorder = Recorder(shape, self._supernet.marks)
        try:
            graph = recorder.graph(recorder.part("", block))
        except GraphError:
            return None
        names = tuple(recorder.keys[node.name] for node in graph.nodes)
        keys = tuple(recorder.keys[node.weights or node.name] for node in graph.nodes)
        return _Wired(block, graph, recorder.mark(block), names, keys, analyse(graph).flops)

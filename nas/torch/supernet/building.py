"""From a template to the pieces of a relaxed network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import numpy as np

from nas.blocks.base import Block, Chain
from nas.blocks.cell import Cell, CellNetwork, CellNode, called
from nas.blocks.edges import FactorizedSkip, PreConv
from nas.choices import Label, OneOf, Repeat, open_children
from nas.errors import GraphError, SpaceError
from nas.torch.supernet.channels import leading, merged
from nas.torch.supernet.identities import with_identities
from nas.torch.supernet.parts import (
    CellEdge,
    CellPart,
    Cells,
    Compact,
    Identity,
    InOrder,
    Leaf,
    Mixture,
    Part,
    Repeated,
    Wire,
)
from nas.torch.supernet.scoping import Env, Met, Place, Sometimes, Taken, entered, left
from nas.torch.supernet.settling import Settler, Wired
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import (
    Table,
    Unknown,
    Variable,
    combinations,
    decisions,
)
from nas.torch.supernet.union import Union, Unmixable
from nas.walk import decision_path, join

B = TypeVar("B", bound=Block)


SETTINGS = 20_000
"""Settings of one block, at most."""


class Builder:
    """Goes through a template as `nas.walk.everywhere` does."""

    def __init__(
        self,
        supernet: Supernet,
        fixed: Mapping[str, Label],
        partial: int,
        wirings: dict[str, tuple[tuple[str, ...], ...]],
        wired: dict[Any, tuple[Block, Wired | None]],
    ) -> None:
        self._supernet, self._fixed, self._partial, self._wirings = supernet, fixed, partial, wirings
        self._wired = wired

    def part(self, value: Any, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        """The relaxed form of a block, and what is decided after it."""
        if value is None:
            return Identity(wire), env
        if isinstance(value, OneOf):
            return self._choice(value, place, env, wire)
        if place.is_edge:
            inner = replace(place, name=f"{place.name}.{self._called(value, place, env)}", is_edge=False)
            part, env = self.part(value, inner, env, wire)
            return (part if self._partial == 1 else Compact(part)), env
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

    def _choice(self, choice: OneOf, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        here = self._taken(choice, place.path, place.scope, env)
        envs = {i: entered(choice, here, i, env) for i in here.only}
        parts: dict[int, Part] = {}
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
        after = left(choice, here, env, envs)
        if len(here.only) == 1:
            return next(iter(parts.values())), after
        return Mixture(here.variable, parts, missing), after

    def _chain(self, chain: Chain, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        around = place.inside(chain.label)
        parts: list[Part] = []
        for name, value in chain.parts:
            inner = Place(name, around, join(place.path, name), place.scope)
            part, env = self.part(value, inner, env, wire)
            parts.append(part)
            wire = part.out
        return InOrder(parts, wire), env

    def _repeat(self, repeat: Repeat, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        path, scope = place.path, place.scope
        times, counts, env = self._number(repeat.times, join(path, "times"), scope, env)
        each = tuple((name, join(path, name), scope, value) for name, value in repeat.each.items())
        first = tuple((name, join(path, name), scope, value) for name, value in repeat.first.items())
        known = env
        for _, at, _, value in (*each, *first):
            known = self._survey(value, at, scope, known, Met(env))
        start, parts = wire, list[Part]()
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
            return InOrder(parts, start), known
        return Repeated(times.variable, counts, parts, start), known

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

    def _survey(self, value: Any, path: str, scope: str, env: Env, met: Met) -> Env:
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

    def _survey_choice(self, choice: OneOf, path: str, scope: str, env: Env, met: Met) -> Env:
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
            envs[i] = self._survey(choice.options[i], path, scope, entered(choice, here, i, env), met)
        return left(choice, here, env, envs)

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

    def _cells(self, network: CellNetwork, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        network, env = self._closed(network, ("width", "cells"), place, env)
        around, (normal, reduction) = place.inside(network.label), self._two(network)
        before, last, entry = wire, wire, None
        if network.entry is not None:
            entry, env = self.part(
                network.entry, Place("entry", around, join(place.path, "entry"), place.scope), env, wire
            )
            last = entry.out
        width, cells = network.width, list[CellPart]()
        for i in range(network.cells):
            reduces = network.reduces(i)
            width *= 1 + reduces
            cell = (reduction if reduces else normal).with_children({"width": width})
            at = join(place.path, "reduction" if reduces else "normal")
            part, env = self._cell(cell, Place(str(i), around, at, place.scope), env, [before, last])
            cells.append(part)
            before, last = last, part.out
        return Cells(entry, cells), env

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

    def _cell(self, cell: Cell, place: Place, env: Env, wires: Sequence[Wire]) -> tuple[CellPart, Env]:
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
        inputs: list[Part] = [Identity(wire) for wire in wires]
        if cell.width is not None:
            for i, wire in enumerate(wires):
                fits = wire.shape[1:] == wires[-1].shape[1:]
                block: Block = PreConv(cell.width, 1) if fits else FactorizedSkip(cell.width, 2)
                inputs[i] = self.part(block, Place(f"input{i}", around), env, wire)[0]
        values = [part.out for part in inputs]
        built: list[list[CellEdge]] = []
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
        return CellPart(inputs, built, wanted, room, out), env

    def _sum_of(self, edges: Sequence[CellEdge], name: str) -> Wire:
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
    def _wanted(cell: Cell, inputs: int, nodes: Sequence[Sequence[CellEdge]]) -> list[int]:
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

    def _edges(self, node: CellNode, place: Place, env: Env, values: Sequence[Wire]) -> tuple[list[CellEdge], Env]:
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
        made, paths = list[CellEdge](), dict[str, list[int]]()
        for (source, again, _), (edge, there) in found.items():
            if edge.block is None:
                continue
            name = f"{place.name}.from{source}" + (f"_{again}" if again else "")
            at = [join(place.path, f"{i}.block") for i in dict.fromkeys(there.values())]
            mets = [Met(env) for _ in at]
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
            made.append(CellEdge(source, part, with_it, idle, self._partial, list(paths).index(path)))
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

    def _leaf(self, block: Block, place: Place, env: Env, wire: Wire) -> tuple[Part, Env]:
        """A block whose settings are laid over each other."""
        met = Met(env)
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
        settle = Settler(self._supernet, block, place, met, self._wired)
        which = [settle(taken, channels.at(taken), wire.shape[1:]) for taken in combinations(unknown)]
        if not any(settle.found):
            raise GraphError(f"block {place.inside(block.label)[:-1]!r} can be built in none of its settings")
        settings = with_identities(settle.found)
        union = Union(self._supernet, unknown, settings, np.array(which, dtype=np.int64), wire.shape[0])
        return Leaf(union), env

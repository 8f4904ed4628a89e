"""A supernet in which every decision is a probability: the network of all networks, differentiable in both.

Blocks mix their outputs, activations theirs; kernels, expansions and widths mix weights, so that they cost one
convolution; depth mixes the outputs after each repetition. See `nas.torch.supernet.union` for what happens in a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nas import ops
from nas.analysis import analyse
from nas.blocks.base import Block, Branches, Chain
from nas.blocks.cell import Cell, CellNetwork, CellNode, called
from nas.blocks.edges import FactorizedSkip, PreConv
from nas.choices import Decision, Genotype, Label, OneOf, Repeat, is_open
from nas.errors import GraphError, SpaceError
from nas.ops import Shape
from nas.torch.supernet.channels import Channels, end, leading, locate
from nas.torch.supernet.names import Recorder
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import (
    LARGEST,
    Beliefs,
    Derived,
    Table,
    Unknown,
    Variable,
    combinations,
    combined,
    entries,
    joined,
)
from nas.torch.supernet.union import Setting, Union, Unmixable, _padded
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
    """

    name: str = ""
    around: str = ""
    path: str = ""
    scope: str = ""
    fields: tuple[tuple[str, str, str, Any], ...] = ()

    def inside(self, label: str) -> str:
        return f"{self.around}{self.name}:{label}." if self.name else self.around


class Relaxed:
    """Runs a space's networks all at once, with a supernet's weights.

    Args:
        supernet: holds the weights.
        affine: whether norms have their scale and shift (the networks of DARTS have none while they are searched).

    Attributes:
        labels: decisions that are mixed, path to labels.
        sampled: decisions that cannot be, such as resolution and strides: they are given for each step.

    Raises SpaceError for a space that cannot be relaxed.
    """

    def __init__(self, supernet: Supernet, *, affine: bool = True) -> None:
        self.supernet, self.affine = supernet, affine
        self.training = True
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
        self.labels = {path: labels for path, labels in space.paths.items() if path not in self.sampled}

    def __call__(self, x: Tensor, probabilities: Mapping[str, Tensor], sampled: Genotype | None = None) -> Tensor:
        """Class scores (N, classes).

        Args:
            x: images (N, C, H, W) at the sampled resolution.
            probabilities: (labels,) for each of `labels`. A cell's choice of edges may be left out: all are there then.
            sampled: the other decisions; the first label of each by default.
        """
        part, beliefs = self._prepared(probabilities, sampled)
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
        """Probabilities that are all 0 or 1: those of one network; decisions it does not have take their first label."""
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
            builder = _Builder(self.supernet, fixed)
            wire = Wire(shape, Table.certain(leading(shape[0])))
            self._at[key] = builder.part(self.supernet.space.template, Place(), {}, wire)[0]
        return self._at[key]


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
    """One of several blocks."""

    def __init__(self, variable: Variable, parts: Sequence[_Part]) -> None:
        self._variable, self._parts = variable, parts
        self.out = _either(variable, [part.out for part in parts])

    def run(self, step: _Step, x: Tensor) -> Tensor:
        p = step.beliefs.of(self._variable).to(x.dtype)
        return _sum([part.run(step, x) for part in self._parts], p.unbind(), self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        return torch.stack([part.flops(beliefs) for part in self._parts]) @ beliefs.of(self._variable)


class _Repeated(_Part):
    """Repetitions, of which the first so many are there."""

    def __init__(self, times: Variable, counts: Sequence[int], parts: Sequence[_Part], wire: Wire) -> None:
        self._times, self._counts, self._parts = times, counts, parts
        outs = [wire, *(part.out for part in parts)]
        self.out = _either(times, [outs[n] for n in counts])

    def run(self, step: _Step, x: Tensor) -> Tensor:
        p = step.beliefs.of(self._times).to(x.dtype)
        after = [x]
        for part in self._parts:
            after.append(part.run(step, after[-1]))
        return _sum([after[n] for n in self._counts], p.unbind(), self.out)

    def flops(self, beliefs: Beliefs) -> Tensor:
        p = beliefs.of(self._times)
        total = torch.zeros((), dtype=torch.float64)
        for i, part in enumerate(self._parts):
            there = p[[k for k, n in enumerate(self._counts) if n > i]].sum()
            total = total + there * part.flops(beliefs)
        return total


class _Edge:
    """What a node of a cell may read."""

    def __init__(self, source: int, part: _Part, there: Table[bool]) -> None:
        self.source, self.part, self.there = source, part, there


def _either(variable: Variable, wires: Sequence[Wire]) -> Wire:
    """One of several values, which one is decided by a variable."""
    sizes = {wire.shape[1:] for wire in wires}
    if len(sizes) != 1:
        raise Unmixable(f"{variable.path} changes the size of the map", [variable])
    tables = [wire.channels for wire in wires]
    if entries(tables, [variable]) > 64 * LARGEST:
        tables = [Table([Derived(t)], _counted(t), t.values) if t.variables else t for t in tables]
    table = combined(tables, [variable], lambda taken: tables[taken[variable]].at(taken))
    return Wire((max(wire.shape[0] for wire in wires), *sizes.pop()), table.limited())


def _counted(table: Table[Any]) -> Any:
    import numpy as np

    return np.arange(len(table.values))


def _sum(xs: Sequence[Tensor], weights: Sequence[Tensor], wire: Wire) -> Tensor:
    total: Tensor | None = None
    for x, weight in zip(xs, weights, strict=True):
        part = _padded(x, wire.shape[0]) * weight
        total = part if total is None else total + part
    assert total is not None
    return total


class _Builder:
    """Goes through a template as `nas.walk.everywhere` does."""

    def __init__(self, supernet: Supernet, fixed: Mapping[str, Label]) -> None:
        self._supernet, self._fixed = supernet, fixed

    def part(self, value: Any, place: Place, env: Env, wire: Wire) -> tuple[_Part, Env]:
        """The relaxed form of a block, and what is decided after it."""
        if value is None:
            return _Identity(wire), env
        if isinstance(value, OneOf):
            return self._choice(value, place, env, wire)
        if isinstance(value, Repeat):
            return self._repeat(value, place, env, wire)
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
        built = [self.part(option, place, around, wire) for option in choice.options]
        after = dict(around)
        for i, v in built[0][1].items():
            if all(other.get(i) == v for _, other in built):
                after[i] = v
        return _Mixture(variable, [part for part, _ in built]), after

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
        unknown: list[Unknown] = [v for v in decided.values() if v.path not in self._fixed and v.size > 1]
        unknown = list(dict.fromkeys([*unknown, *wire.channels.variables]))
        total = 1
        for v in unknown:
            total *= v.size
        if total > SETTINGS:
            widest = max((v for v in unknown if isinstance(v, Variable)), key=lambda v: v.size)
            raise Unmixable(f"block {block.label!r} has {total} settings, at most {SETTINGS} can be mixed", [widest])
        settle = _Settler(self._supernet, block, place, shared, decided, self._fixed)
        settings = [settle(taken, wire) for taken in combinations(unknown)]
        if not any(settings):
            raise SpaceError(f"block {place.inside(block.label)[:-1]!r} can be built in none of its settings")
        union = Union(self._supernet, unknown, settings, wire.shape[0])
        return _Leaf(union), {**env, **local}


class _Settler:
    """Makes the settings of a block."""

    def __init__(
        self, supernet: Supernet, block: Block, place: Place, shared: Env, decided: Env, fixed: Mapping[str, Label]
    ) -> None:
        self._supernet, self._place, self._shared, self._fixed = supernet, place, shared, fixed
        self._paths = {v.path: v for v in decided.values()}
        self._block = Walker(block, place.path, place.scope)
        self._fields = [(name, Walker(value, at, scope)) for name, at, scope, value in place.fields]
        self._known: dict[Any, Setting | None] = {}

    def __call__(self, taken: Mapping[Unknown, int], wire: Wire) -> Setting | None:
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
        channels = wire.channels.at(dict(taken))
        key = id(block), channels
        if key not in self._known:
            self._known[key] = self._made(block, (sum(n for _, n in channels), *wire.shape[1:]), channels)
        return self._known[key]

    def _made(self, block: Block, shape: Shape, channels: Channels) -> Setting | None:
        recorder = Recorder(shape, self._supernet.marks, self._place.around)
        try:
            graph = recorder.graph(recorder.part(self._place.name, block))
        except GraphError:
            return None
        names = tuple(recorder.keys[node.name] for node in graph.nodes)
        keys = tuple(recorder.keys[node.weights or node.name] for node in graph.nodes)
        found = locate(graph, keys, self._supernet.extents, fixed=True, start=channels)
        return Setting(graph, names, keys, tuple(found), analyse(graph).flops)


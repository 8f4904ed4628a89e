"""All settings of a block with open decisions, each wired and placed in the supernet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.analysis import analyse
from nas.blocks.base import Block
from nas.choices import Decision
from nas.errors import GraphError
from nas.graph import Graph
from nas.ops import Shape
from nas.torch.supernet.channels import Channels, locate
from nas.torch.supernet.names import Recorder
from nas.torch.supernet.scoping import Met, Place
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import (
    Unknown,
    Variable,
)
from nas.torch.supernet.union import Setting
from nas.walk import Walker


@dataclass(frozen=True)
class Wired:
    """A block's graph, and names and keys of its nodes from the block on."""

    graph: Graph
    mark: str
    names: tuple[str, ...]
    keys: tuple[str, ...]
    flops: int


class Settler:
    """Makes the settings of a block; called with options, returns which of `found` it is."""

    def __init__(
        self, supernet: Supernet, block: Block, place: Place, met: Met, wired: dict[Any, tuple[Block, Wired | None]]
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

    def _wire(self, block: Block, shape: Shape) -> Wired | None:
        recorder = Recorder(shape, self._supernet.marks)
        try:
            graph = recorder.graph(recorder.part("", block))
        except GraphError:
            return None
        names = tuple(recorder.keys[node.name] for node in graph.nodes)
        keys = tuple(recorder.keys[node.weights or node.name] for node in graph.nodes)
        return Wired(graph, recorder.mark(block), names, keys, analyse(graph).flops)

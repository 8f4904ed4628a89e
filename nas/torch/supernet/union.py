"""A block with open decisions as one computation: what its settings have in common is computed once.

The graphs that a block has in all its settings are laid over each other. A node that is there in several is one node;
where settings differ, it reads a mixture of what they read, and its kernel is a mixture of theirs. Channels that only
some settings have are computed, and weighed by how probable they are after the last norm and activation that works on
each channel by itself: a norm would cancel a weight put before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from nas import ops
from nas.graph import Graph
from nas.ops import Op, Shape
from nas.torch.supernet.channels import KEEPS, Channels, end
from nas.torch.supernet.store import Supernet
from nas.torch.supernet.tables import Table, Unknown

INPUT = 0
"""The block's input among its nodes."""


_LOOKS_AT_ALL = (ops.Slice, ops.Shuffle, ops.Module)
"""Operations for which it matters how many channels there are, or in which order."""


class Unmixable(Exception):
    """Settings that cannot be laid over each other; `variables`: those that make the difference."""

    def __init__(self, reason: str, variables: Sequence[Unknown]) -> None:
        super().__init__(reason)
        self.variables = tuple(variables)


@dataclass(frozen=True)
class Setting:
    """One setting of a block: its graph, the key and owner of each node's weights, channels, and multiply-adds."""

    graph: Graph
    names: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[Channels, ...]
    flops: int


@dataclass
class Node:
    """A node of the union.

    Attributes:
        key: of its weights.
        ops: what it is in each setting, None where it is not there.
        sources: for each input, which node it reads.
        channels: which of its channels there are.
        reads: for each input, which channels it has.
        moves: for each input whose channels are to be others, from which to which.
        ordered: whether it looks at all channels, in the order that the network has them.
        shape: its output without the batch dimension; channels are those of all settings.
        modules, constants: what runs have made of its operations and its channels, to be used again.
    """

    key: str
    ops: Table[Any]
    sources: list[Table[Any]]
    channels: Table[Any]
    reads: list[Table[Any]]
    moves: dict[int, tuple[Channels, Channels]]
    ordered: bool
    shape: Shape = ()
    modules: dict[int, nn.Module] = field(default_factory=dict)
    constants: dict[Any, Tensor] = field(default_factory=dict)


class Union:
    """A block in all its settings.

    Args:
        supernet: holds the weights.
        variables: the open decisions.
        settings: that there are; None stands for those that cannot be built.
        which: position among them for each combination of options, the last variable changing fastest.
        extent: channels of the input in the supernet.

    Raises Unmixable for settings that differ in more than numbers, options and wiring.
    """

    def __init__(
        self, supernet: Supernet, variables: Sequence[Unknown], settings: Sequence[Setting | None], which: np.ndarray,
        extent: int,
    ) -> None:  # fmt: skip
        self.supernet, self._variables, self._settings, self._which = supernet, list(variables), settings, which
        self.flops: Table[int] = self._table([0 if s is None else s.flops for s in settings])
        self._places: list[dict[str, int]] = [
            {} if s is None else {name: i for i, name in enumerate(s.names)} for s in settings
        ]
        order = self._order()
        self._index = {name: i for i, name in enumerate(order)}
        self.nodes = [self._node(name) for name in order]
        self.nodes[INPUT].shape = (extent, *self.nodes[INPUT].shape)
        for node in self.nodes[1:]:
            node.shape = (self._extent(node), *node.shape)
            self._check(node)
        self.output: Table[Any] = self._of(lambda s: self._index[s.names[s.graph.output]])
        self.channels: Table[Any] = self._of(lambda s: s.channels[s.graph.output])
        size: Shape = self._only(self._of(lambda s: s.graph.shapes[s.graph.output][1:]), "output sizes")
        self.shape: Shape = (max(end(c) for c in self.channels.values if c is not None), *size)

    # -- laying over each other --------------------------------------------------------------------------------

    def _table(self, found: Sequence[Any]) -> Table[Any]:
        return Table.of(self._variables, found, self._which)

    def _of(self, what: Callable[[Setting], Any]) -> Table[Any]:
        return self._table([None if s is None else what(s) for s in self._settings])

    def _only(self, table: Table[Any], what: str) -> Any:
        """The one value that a table has where the node is there."""
        values = [value for value in table.values if value is not None]
        if len(values) != 1:
            raise Unmixable(f"its settings have different {what}: {values[:3]}", table.variables)
        return values[0]

    def _order(self) -> list[str]:
        """All nodes, each after all that it reads in any setting."""
        reads: dict[str, dict[str, None]] = {}
        for setting in self._settings:
            if setting is not None:
                for name, node in zip(setting.names, setting.graph.nodes, strict=True):
                    reads.setdefault(name, {}).update(dict.fromkeys(setting.names[i] for i in node.inputs))
        order: list[str] = []
        done: set[str] = set()

        def visit(name: str, above: frozenset[str]) -> None:
            if name in above:
                raise Unmixable(f"{name} stands before and behind others", self._variables)
            if name not in done:
                for other in reads[name]:
                    visit(other, above | {name})
                done.add(name)
                order.append(name)

        for name in reads:
            visit(name, frozenset())
        return order

    def _node(self, name: str) -> Node:
        found = [
            None if name not in places else (s, places[name])
            for s, places in zip(self._settings, self._places, strict=True)
        ]

        def table(what: Any) -> Table[Any]:
            return self._table([None if at is None else what(*at) for at in found])

        key: str = self._only(table(lambda s, i: s.keys[i]), "weights")
        arity = self._only(table(lambda s, i: len(s.graph.nodes[i].inputs)), "numbers of inputs")
        sources = [table(lambda s, i, k=k: self._index[s.names[s.graph.nodes[i].inputs[k]]]) for k in range(arity)]
        operations = table(lambda s, i: _plain(s.graph.nodes[i].op, s.graph.shapes_into(s.graph.nodes[i])))
        channels = table(lambda s, i: s.channels[i])
        size = self._only(table(lambda s, i: s.graph.shapes[i][1:]), "sizes of the map")
        reads = [table(lambda s, i, k=k: s.channels[s.graph.nodes[i].inputs[k]]) for k in range(arity)]
        moves: dict[int, tuple[Channels, Channels]] = {}
        kinds = [op for op in operations.values if op is not None]
        ordered = any(map(_looks_at_all, kinds))
        if not ordered and all(isinstance(op, KEEPS) or by_channel(op) for op in kinds):
            for k in range(arity):
                pairs = table(lambda s, i, k=k: (s.channels[s.graph.nodes[i].inputs[k]], s.channels[i]))
                if any(pair and pair[0] != pair[1] for pair in pairs.values):
                    moves[k] = self._only(pairs, "orders of channels")
        return Node(key, operations, sources, channels, reads, moves, ordered, size)

    def _check(self, node: Node) -> None:
        kinds = [op for op in node.ops.values if op is not None]
        convs = [op for op in kinds if isinstance(op, ops.Conv)]
        for axis in (0, 1):
            # Smaller kernels are the middle of the largest one: where they read must not shift.
            margins = {2 * op.padding[axis] - op.dilation[axis] * (op.kernel[axis] - 1) for op in convs}
            if len(margins) > 1 or len({op.kernel[axis] % 2 for op in convs}) > 1:
                raise Unmixable("its convolutions are padded differently", node.ops.variables)
        if convs:
            alike = len(convs) == len(kinds) and len({replace(op, kernel=(0, 0), padding=(0, 0)) for op in convs}) == 1
        else:
            # What computes other channels cannot be mixed, nor a product, which is weighed in another way.
            alike = len(kinds) == 1 or all(isinstance(op, KEEPS) and not isinstance(op, ops.Mul) for op in kinds)
            alike |= all(isinstance(op, ops.PadChannels) for op in kinds)
        if not alike:
            raise Unmixable(f"its {_named(kinds[0])} differs in more than kernel and width", node.ops.variables)
        if node.ordered:
            for table in (*node.reads, node.channels):
                if len({c for c in table.values if c is not None}) > 1:
                    raise Unmixable(f"its {_named(kinds[0])} works on different numbers of channels", table.variables)

    def _extent(self, node: Node) -> int:
        """Channels in the supernet."""
        if any(isinstance(op, ops.Concat) for op in node.ops.values):
            return sum(self.part_extent(node, k) for k in range(len(node.sources)))
        return max(end(c) for c in node.channels.values if c is not None)

    def part_extent(self, node: Node, k: int) -> int:
        """Channels in the supernet of a part that a concatenation puts together."""
        known = self.supernet.extents.parts.get((node.key, k))
        return known or max(self.nodes[i].shape[0] for i in node.sources[k].values if i is not None)


def _plain(op: Op, into: Sequence[Shape]) -> Op:
    """An operation without what only says how many channels there are."""
    if isinstance(op, ops.Conv):
        return replace(op, width=0, groups=-1 if op.groups == op.width == into[0][0] and op.groups > 1 else op.groups)
    if isinstance(op, ops.Linear):
        return replace(op, width=0)
    return op


def _looks_at_all(op: Op) -> bool:
    grouped = isinstance(op, ops.Conv) and op.groups > 1
    return grouped or isinstance(op, _LOOKS_AT_ALL) or (isinstance(op, ops.Norm) and op.kind in ("layer", "group"))


def _named(op: Op) -> str:
    return type(op).__name__.lower()


def certain(table: Table[Any]) -> Any:
    """The one value of a table where the node is there."""
    return next(value for value in table.values if value is not None)


def by_channel(op: Op) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return isinstance(op, ops.Conv) and op.groups == -1

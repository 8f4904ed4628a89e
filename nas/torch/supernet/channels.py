"""Which of a supernet's channels the channels of a network are.

A value of a network has as many channels as the network gives it; a supernet holds weights for as many as there can
ever be. Usually a network's channels are the leading ones. After a concatenation they are the leading ones of each
part, and where two values are added, channel i of one is channel i of the other: a convolution whose result is added
to a concatenation computes that one's channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from nas import ops
from nas.graph import Graph, Node

Channels = tuple[tuple[int, int], ...]
"""Stretches of the supernet's channels, (first, how many), in the network's order."""

_KEEPS = (
    ops.Norm, ops.Activation, ops.PReLU, ops.Dropout, ops.DropPath, ops.Pool, ops.AdaptivePool, ops.Zero, ops.Add,
    ops.Mean, ops.Mul,
)  # fmt: skip


@dataclass
class Extents:
    """How many channels there are at most: of what a key computes, and of each part that a key puts together."""

    rows: dict[str, int] = field(default_factory=dict)
    parts: dict[tuple[str, int], int] = field(default_factory=dict)

    def grow(self, key: str, channels: Channels) -> None:
        self.rows[key] = max(self.rows.get(key, 0), end(channels))

    def grow_part(self, key: str, part: int, channels: Channels) -> None:
        self.parts[key, part] = max(self.parts.get((key, part), 0), end(channels))


def leading(n: int) -> Channels:
    return ((0, n),)


def end(channels: Channels) -> int:
    return max(first + n for first, n in channels)


def is_depthwise(op: ops.Op, inputs: int) -> bool:
    """Whether output channel i is computed from input channel i alone."""
    return isinstance(op, ops.Conv) and op.groups == inputs == op.width and inputs > 1


def locate(graph: Graph, keys: Sequence[str], extents: Extents, *, fixed: bool) -> list[Channels]:
    """The supernet's channels that each node of a network computes.

    Args:
        keys: of the nodes.
        extents: are enlarged to what the network needs; where they are `fixed`, a result that would not fit takes the
            leading channels.
    """
    return _Locator(graph, keys, extents, fixed).run()


class _Locator:
    def __init__(self, graph: Graph, keys: Sequence[str], extents: Extents, fixed: bool) -> None:
        self.graph, self.keys, self.extents, self.fixed = graph, keys, extents, fixed
        self.group = list(range(len(graph.nodes)))  # of nodes with the same channels
        self.known: dict[int, Channels] = {}
        self.busy: set[int] = set()

    def run(self) -> list[Channels]:
        nodes = self.graph.nodes
        for i, node in enumerate(nodes):
            if self._keeps(node):
                for j in node.inputs:
                    self._join(i, j)
        self.anchors: dict[int, list[int]] = {}
        for i, node in enumerate(nodes):
            if not self._keeps(node) and not self._is_free(node):
                self.anchors.setdefault(self._find(i), []).append(i)
        found = [self._of(i) for i in range(len(nodes))]
        if not self.fixed:
            for i, node in enumerate(nodes):
                self.extents.grow(self.keys[i], found[i])
                if isinstance(node.op, ops.Concat):
                    for part, j in enumerate(node.inputs):
                        self.extents.grow_part(self.keys[i], part, found[j])
        return found

    def _keeps(self, node: Node) -> bool:
        return isinstance(node.op, _KEEPS) or (bool(node.inputs) and is_depthwise(node.op, self._width(node.inputs[0])))

    def _is_free(self, node: Node) -> bool:
        """Whether it may compute any channels: a convolution or linear layer that reads all of its input."""
        return isinstance(node.op, ops.Linear) or (isinstance(node.op, ops.Conv) and node.op.groups == 1)

    def _of(self, i: int) -> Channels:
        group = self._find(i)
        if group not in self.known:
            n = self._width(i)
            found = leading(n)
            if group not in self.busy:
                self.busy.add(group)
                for anchor in self.anchors.get(group, [])[:1]:
                    found = self._anchored(anchor)
                self.busy.discard(group)
            self.known[group] = found
        return self._fitting(i, self.known[group])

    def _fitting(self, i: int, channels: Channels) -> Channels:
        room = self.extents.rows.get(self.keys[i])
        return leading(self._width(i)) if self.fixed and room is not None and end(channels) > room else channels

    def _anchored(self, i: int) -> Channels:
        node, op = self.graph.nodes[i], self.graph.nodes[i].op
        match op:
            case ops.Concat():
                found: list[tuple[int, int]] = []
                start = 0
                for part, j in enumerate(node.inputs):
                    channels = self._of(j)
                    found += [(start + first, n) for first, n in channels]
                    start += max(self.extents.parts.get((self.keys[i], part), 0), end(channels))
                return _merged(found)
            case ops.Slice(start=first, stop=stop):
                return _cut(self._of(node.inputs[0]), first, stop)
            case ops.Shuffle(groups=groups):
                each = _each(self._of(node.inputs[0]))
                width = len(each) // groups
                return _merged([each[g * width + k] for k in range(width) for g in range(groups)])
            case ops.PadChannels():
                inner = self._of(node.inputs[0])
                return _merged([*inner, (end(inner), op.width - self._width(node.inputs[0]))])
            case ops.Flatten():
                inner = self._of(node.inputs[0])
                size = prod(self.graph.shapes[node.inputs[0]][1:])
                return _merged([(first * size, n * size) for first, n in inner])
            case _:
                return leading(self._width(i))

    def _width(self, i: int) -> int:
        return self.graph.shapes[i][0]

    def _find(self, i: int) -> int:
        while self.group[i] != i:
            self.group[i] = i = self.group[self.group[i]]
        return i

    def _join(self, i: int, j: int) -> None:
        self.group[self._find(j)] = self._find(i)


def _each(channels: Channels) -> list[tuple[int, int]]:
    return [(i, 1) for first, n in channels for i in range(first, first + n)]


def _merged(channels: Sequence[tuple[int, int]]) -> Channels:
    found: list[tuple[int, int]] = []
    for first, n in channels:
        if n and found and sum(found[-1]) == first:
            found[-1] = found[-1][0], found[-1][1] + n
        elif n:
            found.append((first, n))
    return tuple(found)


def _cut(channels: Channels, start: int, stop: int) -> Channels:
    found: list[tuple[int, int]] = []
    at = 0
    for first, n in channels:
        low, high = max(start, at), min(stop, at + n)
        if low < high:
            found.append((first + low - at, high - low))
        at += n
    return _merged(found)

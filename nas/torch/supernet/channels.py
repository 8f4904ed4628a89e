"""Which of a supernet's channels the channels of a network are.

A value of a network has as many channels as the network gives it; a supernet holds weights for as many as there can
ever be. Usually a network's channels are the leading ones. After a concatenation they are the leading ones of each
part, and where two values are added, channel i of one is channel i of the other: a convolution whose result is added
to an earlier concatenation computes that one's channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from nas import ops
from nas.graph import Graph, Node

Channels = tuple[tuple[int, int], ...]
"""Stretches of the supernet's channels, (first, how many), in the network's order."""

KEEPS = (
    ops.Norm, ops.Activation, ops.PReLU, ops.Dropout, ops.DropPath, ops.Pool, ops.AdaptivePool, ops.Zero, ops.Add,
    ops.Mean, ops.Mul, ops.Shift,
)  # fmt: skip
"""Operations whose output channel i is made of the inputs' channel i; some look at the others, too."""


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


def locate(
    graph: Graph, keys: Sequence[str], extents: Extents, *, fixed: bool, start: Channels | None = None
) -> list[Channels]:
    """The supernet's channels that each node of a network computes.

    Args:
        keys: of the nodes.
        extents: are enlarged to what the network needs; where they are `fixed`, a result that would not fit takes the
            leading channels.
        start: the channels of the input, the leading ones by default.
    """
    nodes, shapes = graph.nodes, graph.shapes
    keeps = [
        isinstance(node.op, KEEPS) or (bool(node.inputs) and is_depthwise(node.op, shapes[node.inputs[0]][0]))
        for node in nodes
    ]
    groups = _groups(graph, keeps)
    first: dict[int, Channels] = {}  # by group: what the first node in it computes, all others do
    found: list[Channels] = []
    for i, node in enumerate(nodes):
        key, width = keys[i], shapes[i][0]
        if not node.inputs:
            channels = start or leading(width)
        elif keeps[i] and len(node.inputs) == 1:
            channels = found[node.inputs[0]]
        elif keeps[i] or _is_free(node):
            channels = first.get(groups[i], leading(width))
        else:
            channels = _put_together(graph, i, key, found, extents)
        if fixed and end(channels) > extents.rows.get(key, end(channels)):
            channels = leading(width)
        first.setdefault(groups[i], channels)
        found.append(channels)
        if not fixed:
            extents.grow(key, channels)
            if isinstance(node.op, ops.Concat):
                for part, j in enumerate(node.inputs):
                    extents.grow_part(key, part, found[j])
    return found


def _groups(graph: Graph, keeps: Sequence[bool]) -> list[int]:
    """For each node the first one with the same channels as far as additions and what works by channel tell."""
    group = list(range(len(graph.nodes)))

    def find(i: int) -> int:
        while group[i] != i:
            group[i] = i = group[group[i]]
        return i

    for i, node in enumerate(graph.nodes):
        for j in node.inputs if keeps[i] else ():
            a, b = sorted((find(i), find(j)))
            group[b] = a
    return [find(i) for i in range(len(group))]


def _is_free(node: Node) -> bool:
    """Whether it may compute any channels: a convolution or linear layer that reads all of its input."""
    return isinstance(node.op, ops.Linear) or (isinstance(node.op, ops.Conv) and node.op.groups == 1)


def _put_together(graph: Graph, i: int, key: str, found: Sequence[Channels], extents: Extents) -> Channels:
    """The channels of an operation that rearranges those of its inputs."""
    node, op = graph.nodes[i], graph.nodes[i].op
    inner = found[node.inputs[0]]
    match op:
        case ops.Concat():
            parts: list[tuple[int, int]] = []
            start = 0
            for part, j in enumerate(node.inputs):
                parts += [(start + at, n) for at, n in found[j]]
                start += max(extents.parts.get((key, part), 0), end(found[j]))
            return merged(parts)
        case ops.Slice(start=at, stop=stop):
            return _cut(inner, at, stop)
        case ops.Shuffle(groups=groups):
            each = _each(inner)
            width = len(each) // groups
            return merged([each[g * width + k] for k in range(width) for g in range(groups)])
        case ops.PadChannels():
            return merged([*inner, (end(inner), op.width - graph.shapes[node.inputs[0]][0])])
        case ops.Flatten():
            size = prod(graph.shapes[node.inputs[0]][1:])
            return merged([(at * size, n * size) for at, n in inner])
    return leading(graph.shapes[i][0])


def _each(channels: Channels) -> list[tuple[int, int]]:
    return [(i, 1) for first, n in channels for i in range(first, first + n)]


def merged(channels: Sequence[tuple[int, int]]) -> Channels:
    """The same stretches, of which those that touch are one."""
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
    return merged(found)

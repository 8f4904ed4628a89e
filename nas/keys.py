"""The structural key of a graph: the same for the same network, whatever its names and the order of sums.

Two steps. Nodes whose outputs are identical (same operation without weights or randomness on the same inputs,
or the same weights on the same inputs) are merged. Then every node is hashed with everything it reads (a Merkle
hash). Where all hashes differ, the output's hash says everything. Where they do not (two branches of equal
layers with weights of their own, or weights used twice), colours are refined by readers and weight groups, ties
are broken by trying each member (individualisation and refinement, McKay & Piperno 2014), and the whole graph
is hashed in the order of its colours.

The key is always sound: different networks never share one. Two spellings of one network could only get
different keys where refinement cannot tell nodes apart that no symmetry maps onto each other (strongly regular
graphs); then a network would be evaluated twice, which costs time and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from nas import ops

if TYPE_CHECKING:
    from nas.graph import Graph


class _Vertex(NamedTuple):
    """A value: the operation that computes it, the vertices it reads, and the weights it uses (a number, or None)."""

    label: str
    commutative: bool
    inputs: tuple[int, ...]
    weights: int | None


def structural_key(graph: Graph) -> str:
    """Hash of the graph's structure, 32 hexadecimal digits."""
    vertices, output = _merged(graph)
    forward: list[str] = []
    for v in vertices:
        read = [forward[i] for i in v.inputs]
        forward.append(_digest(v.label, *(sorted(read) if v.commutative else read)))
    if len(set(forward)) == len(vertices) and all(
        n == 1 for w, n in Counter(v.weights for v in vertices).items() if w is not None
    ):
        return forward[output]
    colours = _discrete(vertices, forward)
    place = {i: rank for rank, i in enumerate(sorted(range(len(vertices)), key=colours.__getitem__))}
    first: dict[int, int] = {}
    lines = []
    for i in sorted(place, key=place.__getitem__):
        v = vertices[i]
        read_at = [place[j] for j in v.inputs]
        group = -1 if v.weights is None else first.setdefault(v.weights, place[i])
        lines.append(f"{v.label}{sorted(read_at) if v.commutative else read_at}{group}")
    return _digest(*lines, str(place[output]))


def _merged(graph: Graph) -> tuple[list[_Vertex], int]:
    """Vertices in order, identical outputs merged, and the vertex of the output."""
    vertices: list[_Vertex] = []
    known: dict[Hashable, int] = {}
    weights: dict[str, int] = {}
    place: list[int] = []
    random = (ops.Input, ops.Dropout, ops.DropPath)
    for node in graph.nodes:
        op = node.op
        inputs = tuple([place[i] for i in node.inputs])
        group = weights.setdefault(node.weights or node.name, len(weights)) if op.own else None
        label = _label(op)
        identity: Hashable = (label, tuple(sorted(inputs)) if op.commutative else inputs, group)
        if isinstance(op, random):
            identity = node.name
            group = None
        if identity not in known:
            known[identity] = len(vertices)
            vertices.append(_Vertex(label, op.commutative, inputs, group))
        place.append(known[identity])
    return vertices, place[graph.output]


def _refine(vertices: Sequence[_Vertex], colours: list[str]) -> list[str]:
    """Repeat: a vertex's colour becomes that of itself, its inputs, its readers and its weight group."""
    classes = len(set(colours))
    while True:
        readers: list[list[str]] = [[] for _ in vertices]
        groups: defaultdict[int, list[str]] = defaultdict(list)
        for i, v in enumerate(vertices):
            for position, j in enumerate(v.inputs):
                readers[j].append(f"{'' if v.commutative else position}:{colours[i]}")
            if v.weights is not None:
                groups[v.weights].append(colours[i])
        fresh = []
        for i, v in enumerate(vertices):
            read = [colours[j] for j in v.inputs]
            shared = [] if v.weights is None else sorted(groups[v.weights])
            parts = [colours[i], *(sorted(read) if v.commutative else read), "|", *sorted(readers[i]), "|", *shared]
            fresh.append(_digest(*parts))
        colours = fresh
        if len(set(colours)) == classes:
            return colours
        classes = len(set(colours))


def _discrete(vertices: Sequence[_Vertex], colours: list[str]) -> list[str]:
    """Colours that are all different, and the same up to renaming for the same network."""
    colours = _refine(vertices, colours)
    while len(set(colours)) < len(vertices):
        classes: defaultdict[str, list[int]] = defaultdict(list)
        for i, colour in enumerate(colours):
            classes[colour].append(i)
        tied = classes[min(colour for colour, members in classes.items() if len(members) > 1)]
        tried = []
        for member in tied:
            marked = list(colours)
            marked[member] = _digest(marked[member], "first")
            tried.append(_refine(vertices, marked))
        colours = min(tried, key=sorted)
    return colours


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=65536)
def _label(op: ops.Op) -> str:
    return repr(op)

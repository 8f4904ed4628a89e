"""The structural key of a graph: the same for the same network, whatever its names and the order of sums.

Nodes whose outputs are identical (the same operation without weights or randomness on the same inputs, or the same
weights on the same inputs) are merged. The graph is cut wherever everything passes through one value, and its key is
made of those of the segments; so a network's key comes from its blocks' without looking at a node. In a segment every
node is hashed with everything it reads (a Merkle hash). Where all hashes differ, the last one says everything. Where
they do not (branches of equal layers with weights of their own, or weights used twice), hashes are refined by what
reads a node and who shares its weights, what is still tied is told apart one by one (individualisation and
refinement, McKay & Piperno 2014), and the whole segment is hashed in the order that results.

The key is always sound: different networks never share one. Two spellings of one network could only get different
keys where refinement cannot tell nodes apart that no symmetry maps onto each other (as in strongly regular graphs);
then a network would be evaluated twice, which costs time and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import fields
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from nas import ops

if TYPE_CHECKING:
    from nas.graph import Graph


class Vertex(NamedTuple):
    """A value: the operation that computes it, the vertices it reads, and the weights (or randomness) it uses."""

    label: str
    commutative: bool
    inputs: tuple[int, ...]
    weights: int | None


def labelled(graph: Graph) -> tuple[Vertex, ...]:
    """The nodes of a graph without their names."""
    groups: dict[str, int] = {}
    found = []
    for name, op, read, owner in graph.nodes:
        weights = groups.setdefault(owner or name, len(groups)) if op.own else None
        found.append(Vertex(_label(op), op.commutative, read, weights))
    return tuple(found)


def structural_key(*parts: Graph) -> str:
    """Hash of a graph's structure, 32 hexadecimal digits; or that of several, each of which reads the one before."""
    return _digest(_label(parts[0].nodes[0].op), *[key for part in parts for key in part.segments])


def segments(graph: Graph) -> tuple[str, ...]:
    """Keys of a graph's segments: what lies between two values through which everything passes.

    They are the same however a network is put together from blocks, and independent of each other.
    """
    vertices = _merged(labelled(graph))
    read = [0] * len(vertices)  # the last vertex that reads each
    shared = [0] * len(vertices)  # the last one with the same weights
    first: dict[int, int] = {}
    for i, v in enumerate(vertices):
        for j in v.inputs or (0,):
            read[j] = i
        if v.weights is not None:
            shared[first.setdefault(v.weights, i)] = i
    found: list[str] = []
    begin = needed = 0
    for i in range(1, len(vertices)):
        needed = max(needed, read[i - 1], shared[i])
        if needed <= i:
            found.append(_segment(vertices[begin : i + 1], begin))
            begin = i
    if graph.output != len(graph.nodes) - 1:  # one of several inputs
        found.append(str(graph.output))
    return tuple(found)


def _segment(vertices: Sequence[Vertex], begin: int) -> str:
    """Key of the vertices from one value to another; what computes the first does not matter."""
    vertices = [
        Vertex("", False, (), None),
        *[v._replace(inputs=tuple([j - begin for j in v.inputs])) for v in vertices[1:]],
    ]
    forward: list[str] = []
    for label, commutative, inputs, _ in vertices:
        read = [forward[i] for i in inputs]
        forward.append(_digest(label, *(sorted(read) if commutative else read)))
    owned = [v.weights for v in vertices if v.weights is not None]
    if len(set(forward)) == len(vertices) and len(set(owned)) == len(owned):
        return forward[-1]
    order = _order(vertices, forward)
    place = {i: rank for rank, i in enumerate(order)}
    first: dict[int, int] = {}
    lines = []
    for i in order:
        v = vertices[i]
        read_at = [place[j] for j in v.inputs]
        group = -1 if v.weights is None else first.setdefault(v.weights, place[i])
        lines.append(f"{v.label}{sorted(read_at) if v.commutative else read_at}{group}")
    return _digest(*lines, str(place[len(vertices) - 1]))


def _merged(nodes: Sequence[Vertex]) -> list[Vertex]:
    """Vertices in order, those with identical outputs merged; the output stays the last."""
    vertices: list[Vertex] = []
    known: dict[Hashable, int] = {}
    place: list[int] = []
    for label, commutative, read, weights in nodes:
        inputs = tuple([place[i] for i in read])
        identity: Hashable = (label, tuple(sorted(inputs)) if commutative else inputs, weights)
        at = known.setdefault(identity, len(vertices))
        if at == len(vertices):
            vertices.append(Vertex(label, commutative, inputs, weights))
        place.append(at)
    return vertices


def _order(vertices: Sequence[Vertex], colours: list[str]) -> list[int]:
    """The vertices in an order that is the same, up to symmetries, for every spelling of a network."""
    while True:
        colours = _refine(vertices, colours)
        sizes = Counter(colours)
        parts = _parts(vertices, [sizes[colour] > 1 for colour in colours])
        tied = False
        for part in parts:
            inside = Counter(colours[i] for i in part)
            if len(inside) < len(part):
                # Equal within one part: one of them goes first. Parts hang together only through vertices that are
                # already told apart, so the choice in one part does not matter to another.
                tied = True
                _, chosen = min((colours[i], i) for i in part if inside[colours[i]] > 1)
                colours[chosen] = _digest(colours[chosen], "first")
        if not tied:
            break
    # Parts with the same colours can be exchanged as a whole: any order among them is as good as another.
    ranked = sorted(parts, key=lambda part: sorted(colours[i] for i in part))
    rank = {i: at for at, part in enumerate(ranked) for i in part}
    return sorted(range(len(vertices)), key=lambda i: (rank.get(i, -1), colours[i]))


def _refine(vertices: Sequence[Vertex], colours: list[str]) -> list[str]:
    """Until no more colours appear: a vertex's colour becomes that of all it reads, its readers and its weights."""
    classes = 0
    while len(set(colours)) > classes:
        classes = len(set(colours))
        groups: defaultdict[int, list[str]] = defaultdict(list)
        for v, colour in zip(vertices, colours, strict=True):
            if v.weights is not None:
                groups[v.weights].append(colour)
        down: list[str] = []
        for v, colour in zip(vertices, colours, strict=True):
            read = [down[j] for j in v.inputs]
            shared = [] if v.weights is None else sorted(groups[v.weights])
            down.append(_digest(colour, *(sorted(read) if v.commutative else read), "|", *shared))
        colours = list(down)
        readers: list[list[str]] = [[] for _ in vertices]
        for i in range(len(vertices) - 1, -1, -1):
            v = vertices[i]
            colours[i] = _digest(down[i], *sorted(readers[i]))
            for position, j in enumerate(v.inputs):
                readers[j].append(f"{'' if v.commutative else position}:{colours[i]}")
    return colours


def _parts(vertices: Sequence[Vertex], tied: Sequence[bool]) -> list[list[int]]:
    """The tied vertices, those together that are connected through tied ones, by edges or by shared weights."""
    parts: dict[int, list[int]] = {i: [i] for i, is_tied in enumerate(tied) if is_tied}
    owner: dict[int, int] = {}
    for i, v in enumerate(vertices):
        if tied[i]:
            linked = [j for j in v.inputs if tied[j]]
            if v.weights is not None:
                linked.append(owner.setdefault(v.weights, i))
            for j in linked:
                small, large = sorted((parts[i], parts[j]), key=len)
                if small is not large:
                    large += small
                    parts.update(dict.fromkeys(small, large))
    return list({id(part): part for part in parts.values()}.values())


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=65536)
def _label(op: ops.Op) -> str:
    """Name and fields of an operation. Defaults are left out, so that keys stay when an operation gains a field."""
    values = [(f.name, getattr(op, f.name)) for f in fields(op) if getattr(op, f.name) != f.default]
    return f"{type(op).__name__}{values}"

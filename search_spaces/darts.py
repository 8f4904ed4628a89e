"""The DARTS space: a normal and a reduction cell of four nodes each, stacked (Liu et al. 2019).

Every node is the sum of two operations on two different values before it: the outputs of the two cells before, or
earlier nodes. There are seven operations; the eighth, `none`, exists in the relaxed network only, which weighs all
edges at once: what it is taken from keeps two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from nas.blocks import (
    AvgPool,
    Block,
    Cell,
    CellNetwork,
    CellNode,
    Chain,
    Conv,
    DilConv,
    Edge,
    FactorizedSkip,
    Head,
    MaxPool,
    PreConv,
    SepConv,
)  # fmt: skip
from nas.choices import Genotype, Label, OneOf
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space

from .sizes import halvings

OPERATIONS: Mapping[str, Callable[[int], Block]] = {  # by the stride
    "max_pool_3x3": lambda stride: MaxPool(3, stride, 1),
    "avg_pool_3x3": lambda stride: AvgPool(3, stride, 1, count_padding=False),
    "skip_connect": lambda stride: FactorizedSkip(stride=stride),
    "sep_conv_3x3": lambda stride: SepConv(kernel=3, stride=stride),
    "sep_conv_5x5": lambda stride: SepConv(kernel=5, stride=stride),
    "dil_conv_3x3": lambda stride: DilConv(kernel=3, stride=stride),
    "dil_conv_5x5": lambda stride: DilConv(kernel=5, stride=stride),
}
CELLS = ("normal", "reduction")
INPUTS, NODES = 2, 4
STEMS = ("cifar", "imagenet")

Edges = Sequence[tuple[str, int]]
"""A published cell: operation and source of each edge, two edges for every node."""


def darts(
    input_shape: Shape, classes: int, *, channels: int = 16, cells: int = 8, stem: str | None = None
) -> Space:  # fmt: skip
    """Cells that read the two before them; those at one and at two thirds of the depth halve the map.

    A node `normal.node3` decides which two values it reads (`normal.node3.inputs`, such as `0+2`; 0 and 1 are the two
    cells before, 2 is the first node), and for each of them what it does to it (`normal.node3.from2`). All normal
    cells share their decisions, and so do all reduction cells.

    Args:
        input_shape: (channels, height, width) of the data.
        classes: number of classes.
        channels: of each node in the first cells, doubled by every reduction (the authors train 36 on CIFAR-10 and
            48 on ImageNet).
        cells: how many (the authors: 8 to search; to train 20 on CIFAR-10, 14 on ImageNet).
        stem: `cifar`, one convolution, or `imagenet`, three with stride 2; by default what suits the input size.

    Raises SpaceError for numbers below 1 and unknown stems.
    """
    if channels < 2 or cells < 1:
        raise SpaceError(f"darts: expected 2 channels and 1 cell or more, got {channels} and {cells}")
    large = halvings(input_shape) > 4 if stem is None else stem == "imagenet"
    if stem not in (None, *STEMS):
        raise SpaceError(f"darts: unknown stem {stem!r}; expected {' or '.join(STEMS)}")
    normal, reduction = map(_cell, CELLS)
    template = network(normal, reduction, classes, channels=channels, cells=cells, large=large)
    return Space(template, input_shape=input_shape, classes=classes, name="darts")


def network(normal: Cell, reduction: Cell, classes: int, *, channels: int, cells: int, large: bool) -> Chain:
    """Stem, cells and classifier; `large`: with the stem for ImageNet, which divides height and width by eight."""
    body = CellNetwork(normal, reduction, channels, cells, PreConv(channels, stride=2) if large else None)
    if large:
        stem: Block = Chain(Conv(channels // 2, stride=2), Conv(channels, stride=2, activation="identity"))
    else:
        stem = Conv(3 * channels, activation="identity")
    return Chain(stem=stem, cells=body, head=Head(classes))


def cell(edges: Edges, reduces: bool, output: str = "all", **more: Callable[[int], Block]) -> Cell:
    """A published cell; `reduces`: what reads its inputs has stride 2; `more`: operations that the space lacks.

    Raises SpaceError for an unknown operation, or edges that are not two for each node.
    """
    known = {**OPERATIONS, **more}
    unknown = next((name for name, _ in edges if name not in known), None)
    if unknown is not None or len(edges) % 2:
        raise SpaceError(f"cell: expected two edges a node of {', '.join(known)}; got {len(edges)}, and {unknown!r}")
    built = [Edge(j, known[name](_stride(j, reduces))) for name, j in edges]
    nodes = [sorted(built[i : i + 2], key=lambda edge: edge.source) for i in range(0, len(built), 2)]
    return Cell(tuple(CellNode(tuple(pair)) for pair in nodes), output)


def genotype(normal: Edges, reduction: Edges) -> Genotype:
    """The genotype of two published cells. Raises SpaceError for cells that the space does not have."""
    found: dict[str, Label] = {}
    for name, edges in zip(CELLS, (normal, reduction), strict=True):
        if len(edges) != 2 * NODES:
            raise SpaceError(f"darts: expected {2 * NODES} edges in a {name} cell, got {len(edges)}")
        for i in range(NODES):
            node, number = f"{name}.node{INPUTS + i}", INPUTS + i
            pair = sorted(edges[2 * i : 2 * i + 2], key=lambda edge: edge[1])
            (_, a), (_, b) = pair
            if not 0 <= a < b < number or any(operation not in OPERATIONS for operation, _ in pair):
                raise SpaceError(
                    f"darts: {node} is {pair}; expected operations on two different values below {number} of "
                    f"{', '.join(OPERATIONS)}"
                )
            found[f"{node}.inputs"] = f"{a}+{b}"
            found |= {f"{node}.from{j}": operation for operation, j in pair}
    return found


def _cell(name: str) -> Cell:
    return Cell(tuple(_node(f"{name}.node{i}", i, name == CELLS[1]) for i in range(INPUTS, INPUTS + NODES)), "all")


def _node(path: str, number: int, reduces: bool) -> CellNode:
    """A node that is open between all pairs of values before it; what is done to a value is one choice for all."""
    operations: list[Any] = []
    for j in range(number):
        blocks = [make(_stride(j, reduces)) for make in OPERATIONS.values()]
        operations.append(OneOf(*blocks, name=f"{path}.from{j}", labels=tuple(OPERATIONS)))
    pairs = list(combinations(range(number), 2))
    edges = [tuple(Edge(j, operations[j]) for j in pair) for pair in pairs]
    return CellNode(OneOf(*edges, name=f"{path}.inputs", labels=tuple(f"{a}+{b}" for a, b in pairs)))


def _stride(source: int, reduces: bool) -> int:
    return 2 if reduces and source < INPUTS else 1

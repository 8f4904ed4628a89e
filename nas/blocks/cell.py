"""Cells: small graphs whose wiring is itself a choice (NASNet, ENAS, DARTS), and the networks made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Self

from nas.blocks.base import Block, channels
from nas.blocks.edges import FactorizedSkip, PreConv
from nas.errors import GraphError

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class Edge(Block):
    """One edge into a cell's node: `source` is the number of the value it reads, `block` what it does to it.

    Values are numbered: the cell's inputs first, then its nodes. Both fields may be open choices; an edge whose block
    is None is not there.
    """

    source: Any
    block: Any

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.block("block", self.block, *x)


@dataclass(frozen=True)
class CellNode(Block):
    """A node of a cell: the sum of its edges. Which edges there are may be an open choice between tuples of them."""

    edges: Any


@dataclass(frozen=True)
class Cell(Block):
    """Nodes in order, each the sum of edges from earlier values.

    A node without edges is zero, and so is what reads nothing else: it is left out of sums. (Strictly, a norm makes a
    constant of zeros, its shift; that is left out, too.) If the output is zero, the cell is one `Zero`.

    An edge's part of the graph is `node{number}.from{source}.{operation}`, whatever the others are, so its weights
    have names of their own; a second edge from the same source adds `_1` to it.

    Args:
        nodes: tuple of `CellNode`.
        output: `concat` of the nodes that no other node reads (NASNet), `all` nodes concatenated (DARTS), or `last`.
        width: channels to which every input is brought first (activation, 1x1 convolution, norm), and to the size of
            the last one; None: inputs are read as they are.
    """

    nodes: tuple[Any, ...]
    output: str = "last"
    width: int | None = channels(None)

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        if self.output not in ("last", "all", "concat"):
            raise GraphError(f"Cell: unknown output {self.output!r}; expected last, all or concat")
        values: list[Ref | None] = [*x] if self.width is None else [*self._prepared(g, x)]
        read = set[int]()
        for i, node in enumerate(self.nodes, len(x)):
            values.append(self._node(g, i, node, values))
            read.update(edge.source for edge in node.edges)
        nodes = range(len(x), len(values))
        wanted = nodes[-1:] if self.output == "last" else [i for i in nodes if self.output == "all" or i not in read]
        present = [value for i in wanted if (value := values[i]) is not None]
        if not present:
            return g.zero("zero", x[-1])
        # All nodes have one shape, so that any of them says what zeros look like.
        parts = [g.zero(f"node{i}.zero", present[0]) if (v := values[i]) is None else v for i in wanted]
        return g.concat("concat", *parts)

    def _prepared(self, g: GraphBuilder, x: tuple[Ref, ...]) -> list[Ref]:
        size = g.shape(x[-1])[1:]
        found = []
        for i, value in enumerate(x):
            fits = g.shape(value)[1:] == size
            block = PreConv(self.width, 1) if fits else FactorizedSkip(self.width, 2)
            found.append(g.block(f"input{i}", block, value))
        return found

    @staticmethod
    def _node(g: GraphBuilder, number: int, node: CellNode, values: list[Ref | None]) -> Ref | None:
        parts: list[Ref] = []
        before = Counter[int]()
        for edge in node.edges:
            source = edge.source
            if not 0 <= source < len(values):
                raise GraphError(f"Cell: node {number} reads value {source}; there are {len(values)} before it")
            value, block = values[source], edge.block
            again = f"_{before[source]}" if before[source] else ""
            before[source] += 1
            if value is not None and block is not None:
                parts.append(g.block(f"node{number}.from{source}{again}.{called(block)}", block, value))
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else g.add(f"node{number}.add", *parts)


def called(block: Block) -> str:
    """What an operation on an edge is called: its label, and its kernel if it has one (`sep_conv_3x3`)."""
    kernel = getattr(block, "kernel", None)
    if kernel is None:
        return block.label
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return f"{block.label}_{height}x{width}"


@dataclass(frozen=True)
class CellNetwork(Block):
    """Cells one after the other, each of which reads the outputs of the two before it (Zoph et al. 2017).

    The cells that stand at one and at two thirds are reductions, and double the width.

    Args:
        normal, reduction: the two `Cell`s; edges from a reduction's inputs have stride 2.
        width: of the first cells.
        cells: how many there are.
        entry: makes the second of the two values that the first cell reads of the first; None: they are the same.
    """

    normal: Any
    reduction: Any
    width: int = channels(16)
    cells: int = 8
    entry: Any = None

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        before, last = x[0], x[0] if self.entry is None else g.block("entry", self.entry, x[0])
        width = self.width
        for i in range(self.cells):
            reduces = self.reduces(i)
            width *= 1 + reduces
            cell = (self.reduction if reduces else self.normal).with_children({"width": width})
            before, last = last, g.block(str(i), cell, before, last)
        return last

    def reduces(self, i: int) -> bool:
        """Whether cell number `i` is a reduction."""
        return i in (self.cells // 3, 2 * self.cells // 3)

    def scaled(self, width: float, depth: float) -> Self:
        """`depth` multiplies the cells, rounded up."""
        return replace(super().scaled(width, depth), cells=max(1, ceil(depth * self.cells - 1e-9)))

"""Cells: small graphs whose wiring is itself a choice (NASNet, ENAS, DARTS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block
from nas.errors import GraphError

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class Edge(Block):
    """One edge into a cell's node: `source` is the number of the value it reads, `block` what it does to it.

    Values are numbered: the cell's inputs first, then its nodes. Both fields may be open choices.
    """

    source: Any
    block: Any

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.block("block", self.block, *x)


@dataclass(frozen=True)
class CellNode(Block):
    """A node of a cell: the sum of its edges."""

    edges: tuple[Any, ...]


@dataclass(frozen=True)
class Cell(Block):
    """Nodes in order, each the sum of edges from earlier values.

    Args:
        nodes: tuple of `CellNode`.
        output: `concat` of the nodes that no other node reads (NASNet), `all` nodes concatenated (DARTS), or `last`.
    """

    nodes: tuple[Any, ...]
    output: str = "last"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        values, read = list(x), set[int]()
        for i, node in enumerate(self.nodes):
            parts = []
            for j, edge in enumerate(node.edges):
                if not 0 <= edge.source < len(values):
                    raise GraphError(f"Cell: node {i} reads value {edge.source}; there are {len(values)} before it")
                read.add(edge.source)
                parts.append(g.block(f"node{i}.edge{j}", edge.block, values[edge.source]))
            values.append(parts[0] if len(parts) == 1 else g.add(f"node{i}.add", *parts))
        if self.output == "last":
            return values[-1]
        if self.output not in ("all", "concat"):
            raise GraphError(f"Cell: unknown output {self.output!r}; expected last, all or concat")
        inner = range(len(x), len(values))
        return g.concat("concat", *[values[i] for i in inner if self.output == "all" or i not in read])

"""Where a network's blocks end."""

from __future__ import annotations

from nas import ops
from nas.graph import Graph

CONTAINERS = ("stage", "chain", "cell_network")
"""Kinds of scopes that are rows of blocks."""


def block_outputs(graph: Graph) -> list[int]:
    """The last feature map of each block, as node indices in order.

    Blocks are the outermost scopes that are no rows of blocks themselves. The one with the class scores is left out,
    and so are those in which nothing happens but norms and activations.
    """
    rows = {scope.name for scope in graph.scopes if scope.kind in CONTAINERS}
    blocks = {scope.name for scope in graph.scopes if scope.name not in rows}
    ends: dict[str, int] = {}
    worked: set[str] = set()
    for at, node in enumerate(graph.nodes):
        parts = node.name.split(".")
        scope = next((name for i in range(1, len(parts)) if (name := ".".join(parts[:i])) in blocks), None)
        if scope is None:
            continue
        if len(graph.shapes[at]) == 3:
            ends[scope] = at
        if type(node.op) not in (ops.Norm, ops.Activation, ops.PReLU):
            worked.add(scope)
        if at == graph.output:
            worked.discard(scope)
    return [at for scope, at in ends.items() if scope in worked]

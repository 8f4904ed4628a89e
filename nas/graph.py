"""Networks as directed acyclic graphs of primitive operations, in single-assignment order.

A node reads only nodes before it, so a cycle cannot be written down. Names are scopes
(`stage2.0.expand.conv`); they become module paths and weight keys, and mean nothing to the structure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from nas import ops
from nas.errors import GraphError
from nas.ops import Op, Shape

if TYPE_CHECKING:
    import networkx


class Node(NamedTuple):
    """One operation applied to earlier nodes. `weights` names the node whose weights it uses, if not its own."""

    name: str
    op: Op
    inputs: tuple[int, ...]
    weights: str | None = None


class Scope(NamedTuple):
    """A block's place in the graph: the scope that its nodes' names start with, and what block it is."""

    name: str
    kind: str


@dataclass(frozen=True)
class Graph:
    """A lowered network: nodes, their output shapes, the index of the output, and the scopes of its blocks."""

    nodes: tuple[Node, ...]
    shapes: tuple[Shape, ...]
    output: int
    scopes: tuple[Scope, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the input nodes."""
        return tuple(i for i, node in enumerate(self.nodes) if type(node.op) is ops.Input)

    def shapes_into(self, node: Node) -> tuple[Shape, ...]:
        """Shapes that a node reads."""
        shapes = self.shapes
        return tuple([shapes[i] for i in node.inputs])

    @cached_property
    def owners(self) -> Mapping[str, str]:
        """For every node the name of the node whose weights it uses (mostly its own)."""
        return {node.name: node.weights or node.name for node in self.nodes}

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """Keys of what lies between the values through which everything passes; see `nas.keys`."""
        from nas.keys import segments

        return segments(self)

    @cached_property
    def reads_input(self) -> bool:
        """Whether anything depends on the first input."""
        return self.output == 0 or any(0 in node.inputs for node in self.nodes)

    def key(self) -> str:
        """Structural hash: equal for the same network whatever the names or the order of commutative inputs."""
        return self._key

    @cached_property
    def _key(self) -> str:
        from nas.keys import structural_key

        return structural_key(self)

    def verify(self) -> None:
        """Check every rule that a graph keeps; raises GraphError naming the first node that breaks one."""
        names = [node.name for node in self.nodes]
        seen: dict[str, int] = {}
        if len(self.shapes) != len(self.nodes) or not 0 <= self.output < len(self.nodes):
            raise GraphError(f"graph: {len(self.nodes)} nodes, {len(self.shapes)} shapes, output {self.output}")
        for i, node in enumerate(self.nodes):
            if node.name in seen:
                raise GraphError(f"node {node.name!r} stands at {seen[node.name]} and again at {i}; names are unique")
            seen[node.name] = i
            late = [j for j in node.inputs if not 0 <= j < i]
            if late:
                raise GraphError(f"node {node.name!r} at {i} reads {late}: a node reads only earlier nodes")
            shape = node.op.shape(*self.shapes_into(node))
            if shape != self.shapes[i]:
                raise GraphError(f"node {node.name!r}: its shape is {shape}, the graph says {self.shapes[i]}")
            if node.weights is not None:
                if node.weights not in seen or node.weights == node.name:
                    raise GraphError(f"node {node.name!r} uses the weights of {node.weights!r}, no earlier node")
                owner = self.nodes[seen[node.weights]]
                if owner.op != node.op or self.shapes_into(owner)[0][0] != self.shapes_into(node)[0][0]:
                    raise GraphError(f"node {node.name!r} uses the weights of {owner.name!r}, another operation")
                if owner.weights is not None:
                    raise GraphError(f"node {node.name!r}: {owner.name!r} itself borrows; name {owner.weights!r}")
        for scope in self.scopes:
            if not any(name.startswith(scope.name + ".") for name in names):
                raise GraphError(f"scope {scope.name!r} has no node")

    def to_json(self) -> dict[str, Any]:
        """JSON data; inputs by name, so that a person can read it."""
        nodes = []
        for node in self.nodes:
            data = {"name": node.name, **ops.to_json(node.op), "inputs": [self.nodes[i].name for i in node.inputs]}
            nodes.append(data | ({"weights": node.weights} if node.weights else {}))
        scopes = [list(scope) for scope in self.scopes]
        return {"nodes": nodes, "output": self.nodes[self.output].name, "scopes": scopes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Graph:
        """The inverse of `to_json`; verifies. Raises GraphError."""
        from nas.builder import GraphBuilder

        builder = GraphBuilder()
        refs: dict[str, int] = {}
        try:
            for item in data["nodes"]:
                values = dict(item)
                name, inputs = values.pop("name"), values.pop("inputs")
                weights = values.pop("weights", None)
                refs[name] = builder.op(name, ops.from_json(values), *(refs[i] for i in inputs), weights=weights)
            scopes = tuple(Scope(*s) for s in data.get("scopes", ()))
            graph = builder.graph(refs[data["output"]])
        except (KeyError, TypeError) as error:
            raise GraphError(f"graph JSON: {type(error).__name__} {error}; was it written by Graph.to_json?") from None
        graph = cls(graph.nodes, graph.shapes, graph.output, scopes)
        graph.verify()
        return graph

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The graph for networkx: nodes by name with `op`, `shape`, `params`, `flops`; edges carry `position`."""
        import networkx

        out = networkx.MultiDiGraph()
        for node, shape in zip(self.nodes, self.shapes, strict=True):
            into = self.shapes_into(node)
            params = 0 if node.weights else node.op.params(*into)
            out.add_node(node.name, op=node.op, shape=shape, params=params, flops=node.op.flops(*into))
            for position, i in enumerate(node.inputs):
                out.add_edge(self.nodes[i].name, node.name, position=position)
        return out

    def __str__(self) -> str:
        return json.dumps(self.to_json())

"""The nodes of a graph as nested groups, one per scope: what will be classes with attributes and a forward pass.

A scope becomes a group of its own if it can be a function, that is, if only one of its values is read outside.
Otherwise (branches that leave a scope at two places, weights borrowed from another scope) its steps belong to the
scope around it, and its modules stand in an `nn.ModuleDict` there, so that weights keep their names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TypeAlias

from nas import ops
from nas.graph import Graph, Node
from nas.ops import Op

Value: TypeAlias = int  # the index of the node that computes it

WEIGHTED = (ops.Conv, ops.Linear, ops.Norm, ops.PReLU, ops.Module)
FUNCTIONAL = (ops.Add, ops.Mean, ops.Mul, ops.Concat, ops.Flatten)  # written as an expression, not as a module


@dataclass
class Group:
    """A scope that is a function of `inputs`."""

    path: str
    kind: str
    inputs: tuple[Value, ...]
    output: Value
    steps: list[Step]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def weighted(self) -> bool:
        """Whether something inside has weights or statistics."""
        return any(
            step.what.weighted if isinstance(step.what, Group) else isinstance(step.what, WEIGHTED)
            for step in self.steps
        )


@dataclass
class Loop:
    """The layers of a dense block: each reads the concatenation of the input and all outputs before it."""

    layers: list[Group]
    prefix: str


@dataclass
class Step:
    """One line of a forward pass. `name`: where the module stands in the group; `id`: unique in the group."""

    id: str
    name: str
    what: Op | Group | Loop
    inputs: tuple[Value, ...]
    output: Value
    borrowed: bool = False  # the module is that of an earlier step

    @property
    def is_module(self) -> bool:
        """Whether it is an attribute of the group, not an expression."""
        return not isinstance(self.what, FUNCTIONAL) and type(self.what) not in (ops.Slice,)


@dataclass
class _Scope:
    """A prefix of names, while the tree is being built."""

    path: str
    nodes: list[Value] = field(default_factory=list)  # directly in this scope
    inside: set[Value] = field(default_factory=set)  # anywhere below
    scopes: list[str] = field(default_factory=list)


class Tree:
    """Builds the groups of a graph."""

    def __init__(self, graph: Graph, paths: dict[str, str]) -> None:
        self.graph = graph
        self.paths = paths  # module path of every node
        self.kinds = {_path(scope.name, graph, paths): scope.kind for scope in graph.scopes}
        self.readers: defaultdict[Value, set[Value]] = defaultdict(set)
        for at, node in enumerate(graph.nodes):
            for i in node.inputs:
                self.readers[i].add(at)
        self.readers[graph.output].add(-1)
        self.scopes: dict[str, _Scope] = {"": _Scope("")}
        for at, node in enumerate(graph.nodes):
            if type(node.op) is not ops.Input:
                self._place(at, paths[node.name])
        self.dissolved = {path for path, scope in self.scopes.items() if path and not self._is_function(scope)}
        for node in graph.nodes:
            if node.weights is not None:
                self._dissolve_between(paths[node.name], paths[node.weights])

    def root(self) -> Group:
        """The whole network."""
        steps = self._steps("", "")
        return Group("", "", self.graph.inputs, self.graph.output, _loops(_simplified(steps), self.graph))

    def _place(self, at: Value, path: str) -> None:
        scope, parts = "", path.split(".")[:-1]
        self.scopes[""].inside.add(at)
        for part in parts:
            inner = f"{scope}.{part}" if scope else part
            if inner not in self.scopes:
                self.scopes[inner] = _Scope(inner)
                self.scopes[scope].scopes.append(inner)
            self.scopes[inner].inside.add(at)
            scope = inner
        self.scopes[scope].nodes.append(at)

    def _outputs(self, scope: _Scope) -> list[Value]:
        return [i for i in sorted(scope.inside) if self.readers[i] - scope.inside]

    def _is_function(self, scope: _Scope) -> bool:
        return len(self._outputs(scope)) == 1

    def _dissolve_between(self, borrower: str, owner: str) -> None:
        """The modules of an owner and a borrower of weights must be in reach of one forward pass."""
        a, b = borrower.split(".")[:-1], owner.split(".")[:-1]
        common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        for parts in (a, b):
            self.dissolved |= {".".join(parts[:n]) for n in range(common + 1, len(parts) + 1)}

    def _steps(self, scope: str, base: str) -> list[Step]:
        """The steps of `scope`, named relative to the group `base`."""
        cut = len(base) + 1 if base else 0
        found = []
        for at in self.scopes[scope].nodes:
            node = self.graph.nodes[at]
            own = self.paths[node.name][cut:]
            name = self.paths[node.weights][cut:] if node.weights else own
            found.append(Step(own, name, node.op, node.inputs, at, node.weights is not None))
        for path in self.scopes[scope].scopes:
            if path in self.dissolved:
                found += self._steps(path, base)
            else:
                group = self._group(path)
                found.append(Step(path[cut:], path[cut:], group, group.inputs, group.output))
        # A group's output is its last live value, so this order runs everything after what it reads.
        return sorted(found, key=lambda step: step.output)

    def _group(self, path: str) -> Group:
        scope = self.scopes[path]
        reads = [i for at in sorted(scope.inside) for i in self.graph.nodes[at].inputs if i not in scope.inside]
        steps = _loops(_simplified(self._steps(path, path)), self.graph)
        return Group(path, self.kinds.get(path, ""), tuple(dict.fromkeys(reads)), self._outputs(scope)[0], steps)


def _path(scope: str, graph: Graph, paths: dict[str, str]) -> str:
    """The module path of a scope: the first parts of that of any node inside."""
    inside = next((node.name for node in graph.nodes if node.name.startswith(scope + ".")), "")
    return ".".join(paths[inside].split(".")[: scope.count(".") + 1]) if inside else scope


def _simplified(steps: list[Step]) -> list[Step]:
    """A group that is a single operation without weights is that operation."""
    for step in steps:
        if isinstance(step.what, Group) and len(step.what.steps) == 1 and not step.what.weighted:
            only = step.what.steps[0].what
            if not isinstance(only, Group) or not only.weighted:
                step.what, step.inputs = only, step.what.steps[0].inputs
    return steps


def is_sequence(group: Group) -> bool:
    """Whether an `nn.Sequential` says it all: numbered steps one after the other, or any without weights."""
    before = group.inputs[:1]
    for step in group.steps:
        if step.inputs != before or step.borrowed or isinstance(step.what, Loop) or "." in step.name:
            return False
        before = (step.output,)
    if len(group.inputs) != 1:
        return False
    if not group.weighted:
        return True
    numbers = [int(step.name) if step.name.isdecimal() else -1 for step in group.steps]
    return numbers[0] >= 0 and numbers == sorted(numbers) and [str(n) for n in numbers] == [s.name for s in group.steps]


def _loops(steps: list[Step], graph: Graph) -> list[Step]:
    """Three or more equal numbered layers that each read all before them, as one step."""
    for at, first in enumerate(steps):
        match = re.fullmatch(r"([A-Za-z_]\w*?)0", first.name)
        if match and isinstance(first.what, Group) and len(first.inputs) == 1:
            loop = _dense_loop(steps[at:], match[1], first, graph)
            if loop is not None:
                step, used = loop
                rest = [s for s in steps if s.id not in used]
                return sorted([*rest, step], key=lambda s: s.output)
    return steps


def _dense_loop(steps: list[Step], prefix: str, first: Step, graph: Graph) -> tuple[Step, set[str]] | None:
    values, layers, used = [first.inputs[0]], list[Group](), set[str]()
    by_output = {step.output: step for step in steps}
    readers: defaultdict[Value, int] = defaultdict(int)
    for node in graph.nodes:
        for i in node.inputs:
            readers[i] += 1
    named = {step.name: step for step in steps if isinstance(step.what, Group)}
    while (step := named.get(f"{prefix}{len(layers)}")) is not None and isinstance(step.what, Group):
        if len(layers):
            join = by_output.get(step.inputs[0]) if len(step.inputs) == 1 else None
            if join is None or type(join.what) is not ops.Concat or list(join.inputs) != values:
                return None
            if readers[join.output] != len(_first_reads(step.what, graph)) or not _alike(layers[0], step.what, graph):
                return None
            used.add(join.id)
        elif step.inputs != (values[0],):
            return None
        used.add(step.id)
        layers.append(step.what)
        values.append(step.output)
    last = next((s for s in steps if type(s.what) is ops.Concat and list(s.inputs) == values), None)
    if len(layers) < 3 or last is None or any(readers[v] != len(layers) - i for i, v in enumerate(values[1:])):
        return None
    used.add(last.id)
    return Step(prefix, prefix, Loop(layers, prefix), (values[0],), last.output), used

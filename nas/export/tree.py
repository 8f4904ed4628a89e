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
from nas.graph import Graph
from nas.ops import Op

Value: TypeAlias = int  # the index of the node that computes it

WEIGHTED = (ops.Conv, ops.Linear, ops.Norm, ops.PReLU, ops.Module)


@dataclass(frozen=True, slots=True)
class Half(Op):
    """The first or the second half of the channels."""

    second: bool


FUNCTIONAL = (ops.Add, ops.Mean, ops.Mul, ops.Concat, ops.Flatten, Half)  # written as an expression, not a module


@dataclass(eq=False)
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
            step.what.weighted if isinstance(step.what, Group) else isinstance(step.what, (*WEIGHTED, Loop))
            for step in self.steps
        )


@dataclass(eq=False)
class Loop:
    """The layers of a dense block: each reads the concatenation of the input and all outputs before it."""

    layers: list[Group]
    prefix: str


@dataclass(eq=False)
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
        return not isinstance(self.what, FUNCTIONAL)


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
        return Group("", "", self.graph.inputs, self.graph.output, self._tidy(steps, self.graph.output))

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
        output = self._outputs(scope)[0]
        steps = self._tidy(self._steps(path, path), output)
        return Group(path, self.kinds.get(path, ""), tuple(dict.fromkeys(reads)), output, steps)

    def _tidy(self, steps: list[Step], output: Value) -> list[Step]:
        return _rolled(_halved(_simplified(steps), self.graph), output)


def _path(scope: str, graph: Graph, paths: dict[str, str]) -> str:
    """The module path of a scope: the first parts of that of any node inside."""
    inside = next((node.name for node in graph.nodes if node.name.startswith(scope + ".")), "")
    return ".".join(paths[inside].split(".")[: scope.count(".") + 1]) if inside else scope


def _simplified(steps: list[Step]) -> list[Step]:
    """A group that is a single operation without weights is that operation."""
    for step in steps:
        if isinstance(step.what, Group) and len(step.what.steps) == 1 and not step.what.weighted:
            only = step.what.steps[0]
            step.what, step.inputs = only.what, only.inputs
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


def _halved(steps: list[Step], graph: Graph) -> list[Step]:
    """Slices that take the first or second half of the channels say so, whatever the number of channels."""
    for step in steps:
        if isinstance(step.what, ops.Slice):
            channels, cut = graph.shapes[step.inputs[0]][0], (step.what.start, step.what.stop)
            if cut in ((0, channels / 2), (channels / 2, channels)):
                step.what = Half(bool(cut[0]))
    return steps


def _rolled(steps: list[Step], output: Value) -> list[Step]:
    """Three or more equal numbered layers, each reading the concatenation of all before it, become one step."""
    readers: defaultdict[Value, list[Step]] = defaultdict(list)
    for step in steps:
        for i in step.inputs:
            readers[i].append(step)
    layered = {step.name: step for step in steps if isinstance(step.what, Group) and len(step.inputs) == 1}
    for name, first in layered.items():
        match = re.fullmatch(r"([A-Za-z_]\w*?)0", name)
        layers: list[Step] = []
        joins: list[Step] = []
        while match and (layer := layered.get(f"{match[1]}{len(layers)}")) is not None:
            values = (first.inputs[0], *[step.output for step in layers])
            join = next((s for s in readers[values[-1]] if type(s.what) is ops.Concat and s.inputs == values), None)
            read = values if join is None else (join.output,)
            if layer.inputs != read or (layers and shape_of(layer) != shape_of(first)):
                break
            layers.append(layer)
            joins += [join] if join else []
        values = (first.inputs[0], *[step.output for step in layers])
        last = next((s for s in steps if type(s.what) is ops.Concat and s.inputs == values), None)
        if match is None or last is None or len(layers) < 3:
            continue
        if any(step.name.startswith(match[1]) and step not in layers for step in steps if step.is_module):
            continue  # the loop finds its layers by how their names begin
        inner = [*layers, *joins]
        if all(reader in (*inner, last) for step in inner for reader in readers[step.output]) and all(
            step.output != output for step in inner
        ):
            groups = [step.what for step in layers if isinstance(step.what, Group)]
            loop = Step(match[1], match[1], Loop(groups, match[1]), first.inputs, last.output)
            return sorted([loop, *[s for s in steps if s not in (*inner, last)]], key=lambda s: s.output)
    return steps


def shape_of(step: Step) -> tuple[object, ...]:
    """What a step does, without where it stands: equal for steps that differ in nothing but their input channels."""
    if isinstance(step.what, Op):
        return (step.what,)
    if isinstance(step.what, Loop):
        return (len(step.what.layers), shape_of(Step("", "", step.what.layers[0], (), 0)))
    group = step.what
    place = {value: -1 - i for i, value in enumerate(group.inputs)}
    place |= {inner.output: i for i, inner in enumerate(group.steps)}
    return (
        group.kind, place[group.output],
        *[(s.id, s.name, tuple(place[i] for i in s.inputs), shape_of(s)) for s in group.steps],
    )  # fmt: skip

"""Which groups of a network become instances of one class.

Groups of one kind (the same block) share a class if they do the same, or if one does what the other does and
more: a step that some instances lack is optional, provided that leaving it out is passing one of its inputs on
(no expansion, no squeeze-and-excitation, no shortcut).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from nas import ops
from nas.export.leaves import RULES, Make
from nas.export.tree import Group, Loop, Step, is_sequence
from nas.graph import Graph
from nas.ops import Op

CONV_NORM_ACT = "conv_norm_act"
CONTAINERS = ("", "stage", "chain", "branches", "wrap")  # their kind says nothing about what is inside
OPTIONAL = 4  # steps of a class that may be missing: more flags are harder to read than two classes


@dataclass(eq=False)
class Line:
    """A step of a class. `uses`: the step of each instance that has it, by the instance's number."""

    id: str
    name: str
    inputs: tuple[str, ...]  # `#k` is input k of the class, anything else the id of an earlier line
    uses: dict[int, Step]
    bypass: int = 0  # the input that stands for the output where the step is missing

    @property
    def step(self) -> Step:
        """The step of the first instance that has it."""
        return next(iter(self.uses.values()))


@dataclass(eq=False)
class Class:
    """Groups that are the same but for values, and steps that some of them lack."""

    key: str
    groups: list[Group]
    lines: list[Line]
    output: str
    name: str = ""
    children: dict[Class, None] = field(default_factory=dict)  # the classes of everything inside

    def optional(self, line: Line) -> bool:
        """Whether some instance lacks this step."""
        return len(line.uses) < len(self.groups)

    def uses_of(self, instance: int) -> Mapping[str, Step]:
        """The steps of an instance by id."""
        return {line.id: line.uses[instance] for line in self.lines if instance in line.uses}


class Classes:
    """Sorts the groups of a network into classes: `of[group]` for every group that is not an `nn.Sequential`."""

    def __init__(self, root: Group, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[Group, Class] = {}
        self.all: list[Class] = []
        waiting = list(_groups(root, ":root"))
        # Parts before what they are parts of; the longest first, so that the others only lack something.
        for group, key in sorted(waiting, key=lambda item: (_height(item[0]), -len(item[0].steps))):
            if not (group is not root and is_sequence(group)):
                self._place(group, key)
        self.root = self.of[root]
        self._order()

    def _place(self, group: Group, key: str) -> None:
        children = {self.of[part]: None for part in _parts(group) if part in self.of}
        below = _below(children)  # a class may not contain itself
        for known in self.all:
            if known.key == key and known not in below and self._merge(known, group):
                known.children |= children
                self.of[group] = known
                return
        refs = _refs(group)
        lines = [Line(s.id, s.name, tuple(refs[i] for i in s.inputs), {0: s}) for s in group.steps]
        made = Class(key, [group], lines, refs[group.output], children=children)
        self.of[group] = made
        self.all.append(made)

    def _order(self) -> None:
        """Parts before what they are parts of, as they must stand in the file."""
        done: dict[Class, None] = {}

        def visit(cls: Class) -> None:
            for child in cls.children:
                if child not in done:
                    visit(child)
            done.setdefault(cls)

        visit(self.root)
        self.all = list(done)

    def _merge(self, cls: Class, group: Group) -> bool:
        """Make the group an instance of the class if it fits."""
        if len(group.inputs) != len(cls.groups[0].inputs):
            return False
        theirs = {step.id: step for step in group.steps}
        ours = {line.id: line for line in cls.lines}
        common = [line.id for line in cls.lines if line.id in theirs]
        if not common or common != [s.id for s in group.steps if s.id in ours]:
            return False
        if any(not self._alike(ours[id].step, theirs[id]) for id in common):
            return False
        missing = [id for id in ours if id not in theirs]
        added = [id for id in theirs if id not in ours]
        optional = {*missing, *added, *(line.id for line in cls.lines if cls.optional(line))}
        fixed = any("." in s.name or s.name.isdecimal() or s.borrowed for s in group.steps)
        limit = min(OPTIONAL, len(common))
        if cls.key.partition(":")[0] in CONTAINERS:  # what two of them have in common may be chance
            limit = 0 if added else min(2, limit)
        if len(optional) > (0 if fixed else limit):
            return False
        lines = self._joined(cls, group)
        worlds = [(cls.uses_of(i), _refs(g)) for i, g in enumerate(cls.groups)] + [(theirs, _refs(group))]
        outputs = [g.output for g in (*cls.groups, group)]
        place = {line.id: at for at, line in enumerate(lines)}
        output = max(cls.output, _refs(group)[group.output], key=lambda ref: place.get(ref, -1))
        fresh = [line for line in lines if line.id in added or (line.id in missing and not cls.optional(ours[line.id]))]
        for choice in product(*(range(len(line.inputs)) for line in fresh)):
            for line, bypass in zip(fresh, choice, strict=True):
                line.bypass = bypass
            if all(_agrees(lines, output, *w, out) for w, out in zip(worlds, outputs, strict=True)):
                for line in lines:
                    if line.id in theirs:
                        line.uses[len(cls.groups)] = theirs[line.id]
                cls.groups.append(group)
                cls.lines, cls.output = lines, output
                return True
        return False

    def _joined(self, cls: Class, group: Group) -> list[Line]:
        """The steps of both in one order, each reading the later of what it reads in either."""
        refs = _refs(group)
        theirs = {s.id: (s, tuple(refs[i] for i in s.inputs)) for s in group.steps}
        lines: list[Line] = []
        queue = list(group.steps)
        for line in cls.lines:
            if line.id in theirs:
                while queue[0].id != line.id:
                    step = queue.pop(0)
                    lines.append(Line(step.id, step.name, theirs[step.id][1], {}))
                queue.pop(0)
            lines.append(Line(line.id, line.name, line.inputs, dict(line.uses), line.bypass))
        lines += [Line(step.id, step.name, theirs[step.id][1], {}) for step in queue]
        place = {line.id: at for at, line in enumerate(lines)}
        for line in lines:
            if line.uses and line.id in theirs:
                pairs = zip(line.inputs, theirs[line.id][1], strict=True)
                line.inputs = tuple(max(pair, key=lambda ref: place.get(ref, -1)) for pair in pairs)
        return lines

    def _alike(self, a: Step, b: Step) -> bool:
        """Whether two steps differ in values only."""
        if (a.name, a.borrowed, len(a.inputs)) != (b.name, b.borrowed, len(b.inputs)):
            return False
        if isinstance(a.what, Group) and isinstance(b.what, Group):
            if a.what in self.of or b.what in self.of:
                return self.of.get(a.what) is self.of.get(b.what)
            pairs = zip(a.what.steps, b.what.steps, strict=False)
            return len(a.what.steps) == len(b.what.steps) and all(self._alike(x, y) for x, y in pairs)
        if isinstance(a.what, Loop) and isinstance(b.what, Loop):
            return self.of[a.what.layers[0]] is self.of[b.what.layers[0]]
        if isinstance(a.what, Op) and isinstance(b.what, Op):
            if not (a.is_module and b.is_module):
                return type(a.what) is type(b.what) and not b.is_module and (a.what == b.what)
            x, y = self.make(a), self.make(b)
            return x.head == y.head and [i.name for i in x.arguments] == [i.name for i in y.arguments]
        return False

    def make(self, step: Step) -> Make:
        """The call that makes the module of a step that is an operation."""
        assert isinstance(step.what, Op)
        made: Make = RULES[type(step.what)](step.what, *(self.graph.shapes[i] for i in step.inputs))
        return made


def _agrees(lines: Iterable[Line], output: str, uses: Mapping[str, Step], refs: Mapping[int, str], value: int) -> bool:
    """Whether the lines with the bypasses chosen compute what an instance with these steps does."""
    stands: dict[str, str] = {}
    for line in lines:
        read = [stands.get(ref, ref) for ref in line.inputs]
        if line.id not in uses:
            stands[line.id] = read[line.bypass]
        elif read != [refs[i] for i in uses[line.id].inputs]:
            return False
    return stands.get(output, output) == refs[value]


def _refs(group: Group) -> dict[int, str]:
    return {v: f"#{i}" for i, v in enumerate(group.inputs)} | {step.output: step.id for step in group.steps}


def _groups(group: Group, key: str) -> Iterator[tuple[Group, str]]:
    """All groups with the key of their class: the kind of block, or where it has none, its place in one."""
    yield group, key
    for step in group.steps:
        for part in _parts_of([step]):
            yield from _groups(part, _key(part, key, step.name))


def _key(group: Group, outer: str, name: str) -> str:
    if _is_conv_norm_act(group):
        return CONV_NORM_ACT
    if group.kind not in CONTAINERS:
        return group.kind
    if group.kind:
        return f"{group.kind}:"
    return f":{outer.partition(':')[2] or outer}.{re.sub(r'[0-9]+$', '', name) or 'part'}"


def _is_conv_norm_act(group: Group) -> bool:
    """Whether it is what `GraphBuilder.conv_norm_act` makes, whichever block it is in."""
    expected: dict[str, Any] = {"conv": ops.Conv, "norm": ops.Norm, "act": (ops.Activation, ops.PReLU)}
    names = [step.name for step in group.steps]
    return (
        len(group.inputs) == 1
        and names in (["conv"], ["conv", "norm"], ["conv", "act"], ["conv", "norm", "act"])
        and all(isinstance(step.what, expected[step.name]) and not step.borrowed for step in group.steps)
        and all(b.inputs == (a.output,) for a, b in zip(group.steps, group.steps[1:], strict=False))
    )


def _parts(group: Group) -> Iterator[Group]:
    """All groups inside, at any depth."""
    for part in _parts_of(group.steps):
        yield part
        yield from _parts(part)


def _parts_of(steps: Iterable[Step]) -> Iterator[Group]:
    for step in steps:
        if isinstance(step.what, Group):
            yield step.what
        elif isinstance(step.what, Loop):
            yield from step.what.layers


def _height(group: Group) -> int:
    return 1 + max((_height(part) for part in _parts_of(group.steps)), default=0)


def _below(classes: Iterable[Class]) -> set[Class]:
    """The classes and everything inside them."""
    found: set[Class] = set()
    queue = list(classes)
    while queue:
        cls = queue.pop()
        if cls not in found:
            found.add(cls)
            queue += cls.children
    return found

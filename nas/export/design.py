"""What the constructor of a class takes: the values in which its instances differ, found by comparing them.

A value that is the same everywhere is written where it is used. One that equals another's in every instance is the
same argument, or follows from it (`kernel_size // 2`, `in_channels + 2 * growth`). Numbers of channels that come in
and go out are arguments even if they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Any

from nas import ops
from nas.export.classes import CONV_NORM_ACT, Class, Classes, Line
from nas.export.leaves import IDENTITY, PRELU, REQUIRED, Argument, Make, Slot, activation
from nas.export.naming import name_parameters
from nas.export.tree import Group, Loop, Step
from nas.export.values import MISSING, Condition, Flag, Literal, Made, Parameter, Solved, Sum, agree, comparisons


class Design:
    """A class with the arguments of its constructor, and what each of its lines makes.

    Attributes:
        signature: the arguments in order, those without a default first.
        variables: what is computed from them first, because it is used more than once.
        made: the module of each line that makes one, by the line's id.
        conditions: when a line that some instances lack is there.
    """

    def __init__(self, cls: Class, classes: Classes, designs: Mapping[Class, Design]) -> None:
        self.cls = cls
        self.classes = classes
        self.designs = designs
        self.shapes = classes.graph.shapes
        self.count = len(cls.groups)
        self.parameters: list[Parameter] = []
        self.flags: list[Flag] = []
        self.made: dict[str, Made] = {}
        self.conditions: dict[str, Condition] = {}
        self.channels = self._channels()
        self.ends = self._ends()
        self._solve()
        for line in cls.lines:
            if cls.optional(line) and not _is_activation(line.step):
                self.conditions[line.id] = self._condition(line)
        for flag in self.flags:
            flag.settle(self.parameters)
        name_parameters(self.parameters, cls, last=classes.graph.output in [g.output for g in cls.groups])
        arguments = [p for p in self.parameters if p.formula is None]
        self.signature = sorted(arguments, key=lambda p: (p.default is not REQUIRED, _RANK.get(p.kind, 2)))
        self.variables = [p for p in self.parameters if p.formula and len(p.lines) > 1]

    def instance(self, group: Group) -> Make:
        """The call that makes one instance."""
        number = self.cls.groups.index(group)
        arguments = []
        for p in self.signature:
            value = p.default if p.values[number] is MISSING else p.values[number]
            arguments.append(Argument(p.name, Slot(value, p.kind, p.role in ("in0", "through")), p.default))
        return Make(self.cls, tuple(arguments))

    # -- the instances ---------------------------------------------------------------------------------------------

    def _channels(self) -> dict[str, list[Any]]:
        """Channels of every value, in every instance."""
        groups = self.cls.groups
        found = {f"#{k}": [self.shapes[group.inputs[k]][0] for group in groups] for k in range(self.arity)}
        for line in self.cls.lines:
            instead = found[line.inputs[line.bypass]]
            uses = [line.uses.get(i) for i in range(self.count)]
            found[line.id] = [self.shapes[u.output][0] if u else instead[i] for i, u in enumerate(uses)]
        return found

    @property
    def arity(self) -> int:
        """How many values the class reads."""
        return len(self.cls.groups[0].inputs)

    def _ends(self) -> dict[str, Parameter]:
        """Arguments for the channels that come in and go out; the network itself has none."""
        if self.cls is self.classes.root:
            return {}
        ends = {f"in{k}": self.channels[f"#{k}"] for k in range(self.arity)} | {"out": self.channels[self.cls.output]}
        if ends["in0"] == ends["out"]:
            ends = {"through": ends["in0"]} | {name: v for name, v in ends.items() if name not in ("in0", "out")}
        return {name: Parameter("", "channels", list(vector), name) for name, vector in ends.items()}

    def _make(self, step: Step) -> Make:
        what = step.what
        if isinstance(what, Loop):
            return self._loop([self.designs[self.classes.of[layer]].instance(layer) for layer in what.layers])
        if not isinstance(what, Group):
            return self.classes.make(step)
        if what in self.classes.of:
            return self.designs[self.classes.of[what]].instance(what)
        items: list[Make] = []
        for inner in what.steps:
            if what.weighted:  # a number without a step is a block that does nothing
                items += [Make("nn.Identity")] * (int(inner.name) - len(items))
            items.append(self._make(inner))
        return Make("nn.Sequential", tuple(Argument("", item) for item in items))

    @staticmethod
    def _loop(layers: list[Make]) -> Make:
        """How many layers, and one of them, whose input channels grow by the same number from each to the next."""
        arguments = [Argument("layers", Slot(len(layers), "layers"))]
        for first, second, *_ in zip(*(layer.arguments for layer in layers), strict=True):
            if first != second and isinstance(first.value, Slot) and isinstance(second.value, Slot):
                grows = _grows(first.value, second.value.value - first.value.value)
                arguments.append(Argument(first.name, grows, first.default))
            else:
                arguments.append(first)
        return Make(layers[0].head, tuple(arguments))

    # -- comparing them --------------------------------------------------------------------------------------------

    def _solve(self) -> None:
        wide = {f"#{k}": self._end(self.channels[f"#{k}"], f"in{k}") for k in range(self.arity)}
        for line in self.cls.lines:
            read = [wide[ref] for ref in line.inputs]
            if line.step.is_module and not line.step.borrowed:
                makes = [self._make(line.uses[i]) if i in line.uses else None for i in range(self.count)]
                if _is_activation(line.step):
                    before = self.channels[line.inputs[0]]
                    makes = [make or activation(IDENTITY, before[i]) for i, make in enumerate(makes)]
                self.made[line.id], out = self._unify(makes, line, read[0])
            else:
                out = self._joined(line, read)
            channels = self.channels[line.id]
            wide[line.id] = out if out and out.values(self.count) == channels else self._end(channels, "out")

    def _joined(self, line: Line, read: list[Sum | None]) -> Sum | None:
        """The channels that an expression makes of those it reads."""
        if isinstance(line.step.what, ops.Concat):
            return sum((w for w in read if w is not None), Sum()) if None not in read else None
        if isinstance(line.step.what, ops.Flatten):
            areas = {prod(self.shapes[step.inputs[0]][1:]) for step in line.uses.values()}
            return read[0] * areas.pop() if read[0] is not None and len(areas) == 1 else None
        return next((w for w in read if w is not None), None)

    def _end(self, vector: list[Any], role: str) -> Sum | None:
        """The argument for channels that come in or go out, if these are as many; that of `role` first."""
        for name in sorted(self.ends, key=lambda name: name != role):
            if agree(vector, self.ends[name].values):
                return Sum.of(self.ends[name])
        return None

    def _unify(self, makes: Sequence[Make | None], line: Line, wide: Sum | None) -> tuple[Made, Sum | None]:
        """One call for those of all instances, which read `wide` channels, and the channels of what it makes."""
        head = next(make.head for make in makes if make is not None)
        if head == "activation" and not any(_value(make, 0) == PRELU for make in makes):
            makes = [make and Make(head, make.arguments[:1]) for make in makes]
        first = next(make for make in makes if make is not None)
        solved: list[tuple[Argument, Any]] = []
        named: dict[str, Solved] = {}
        out = wide
        for k, argument in enumerate(first.arguments):
            values: list[Any] = [make and make.arguments[k].value for make in makes]
            if any(isinstance(value, Make) and value.head == "grows" for value in values):
                values = [_grows(value, 0) if isinstance(value, Slot) else value for value in values]
            if any(isinstance(value, Make) for value in values):
                inner, out = self._unify(values, line, out)
                solved.append((argument, inner))
                continue
            named[argument.name] = answer = self._value(values, argument, line, wide, named)
            solved.append((argument, answer))
        if isinstance(head, Class):
            ends = [p.name for p in self.designs[head].parameters if p.role in ("out", "through")]
            out = _sum(named.get(ends[0])) if ends else None
        elif head in ("nn.Conv2d", "nn.Linear"):
            out = _sum(named["out_channels" if head == "nn.Conv2d" else "out_features"])
        return Made(head, solved), out

    def _value(
        self, slots: list[Slot | None], argument: Argument, line: Line, wide: Sum | None, others: Mapping[str, Solved]
    ) -> Solved:
        """What stands for a value of all instances."""
        slot = next(slot for slot in slots if slot is not None)
        vector = [MISSING if slot is None else slot.value for slot in slots]
        given = [v for v in vector if v is not MISSING]
        if slot.kind in ("flag", "step"):
            self.flags.append(Flag(vector, argument.name, line.id, slot.kind))
            return self.flags[-1]
        if slot.kind == "channels":
            if not slot.reads and agree(vector, self.channels[line.id]):
                vector = self.channels[line.id]  # where the step is missing: what passes it by
            if slot.reads and wide is not None and agree(vector, wide.values(self.count)):
                return self._used(wide, line)
            if (end := self._end(vector, "in0" if slot.reads else "out")) is not None:
                return self._used(end, line)
        if slot.kind == "groups" and set(given) != {1}:  # depthwise: one of the call's own numbers of channels
            for other in others.values():
                if isinstance(other, Sum) and agree(vector, other.values(self.count)):
                    return self._used(other, line)
        if slot.kind == "padding" and isinstance(kernel := others.get("kernel_size"), Sum) and kernel.alone:
            half = Sum.of(kernel.alone, divisor=2)
            if agree(vector, half.values(self.count)):
                return self._used(half, line)
        # What every convolution says, this class asks for, as people do.
        asked = slot.kind == "kernel_size" or (slot.kind == "stride" and given[0] != 1)
        asked = asked and self.cls.key == CONV_NORM_ACT
        fitting = [p for p in self.parameters if p.kind == slot.kind and agree(p.values, vector)]
        constant = all(v == given[0] and type(v) is type(given[0]) for v in given)
        if constant and not asked and (MISSING not in vector or not fitting):
            return Literal(given[0])
        if fitting:
            fitting[0].take(vector)
            return self._used(Sum.of(fitting[0]), line)
        for derived in self._derived(slot.kind):
            if agree(vector, derived.values(self.count)):
                variable = Parameter(argument.name, slot.kind, derived.values(self.count), formula=derived)
                return self._used(Sum.of(variable), line)
        return self._used(Sum.of(Parameter(argument.name, slot.kind, vector)), line)

    def _derived(self, kind: str) -> list[Sum]:
        """What may follow from other arguments, if these have two values or more."""
        known = [*self.ends.values(), *[p for p in self.parameters if not p.role and not p.formula]]
        known = [p for p in known if p.kind == kind and p.known and len(set(p.values)) > 1]
        if kind == "kernel_size":
            return [Sum.of(p, constant=2) for p in known]
        if kind != "channels":
            return []
        multiples = [Sum.of(p, factor=k) for p in known for k in range(2, 9)]
        parts = [Sum.of(p, divisor=d) for d in (2, 3, 4, 8, 16) for p in known if all(v % d == 0 for v in p.values)]
        return multiples + parts

    def _used(self, value: Sum, line: Line) -> Sum:
        for p, _, _ in value.terms:
            p.lines.append(line.id)
            if p not in self.parameters:
                if p.formula:
                    self._used(p.formula, line)
                self.parameters.append(p)
        return value

    def _condition(self, line: Line) -> Condition:
        """When a step is there that some instances lack."""
        present = [i in line.uses for i in range(self.count)]
        for p in [p for p in self.parameters if p.kind in _TELLING]:  # given only where the step is there
            given = [v is not MISSING and bool(v) for v in p.values]
            if not p.formula and set(p.lines) == {line.id} and given == present:
                return Condition("{}", (p,))
        known = [p for p in self.parameters if p.known and not p.formula]
        wide = [p for p in known if p.kind == "channels"]
        strides = [p for p in known if p.kind == "stride"]
        ends = list(combinations([p for p in wide if p.role in ("in0", "out")], 2))
        tests = comparisons(ends, strides, equal=not line.step.is_module)
        if line.step.is_module:
            mine = list(combinations([p for p in wide if line.id in p.lines], 2))
            tests = comparisons(mine, [p for p in strides if line.id in p.lines], equal=False) + tests
        for condition in tests:
            if condition.holds(self.count) == present:
                return condition
        self.flags.append(Flag([*present], line.name if line.step.is_module else "residual", line.id, "step"))
        return Condition("{}", (self.flags[-1],))


_TELLING = ("channels", "kernel_size", "rate", "extra")  # kinds whose arguments are None if they are not given
_RANK = {"channels": 0, "kernel_size": 1, "stride": 1, "activation": 3, "flag": 4, "step": 4}


def _grows(start: Slot, growth: int) -> Make:
    """A number of channels that grows from one layer of a loop to the next."""
    return Make("grows", (Argument("start", start), Argument("growth", Slot(growth, "channels"))))


def _is_activation(step: Step) -> bool:
    return isinstance(step.what, ops.Activation | ops.PReLU)


def _value(make: Make | None, k: int) -> Any:
    value = make.arguments[k].value if make else None
    return value.value if isinstance(value, Slot) else None


def _sum(value: Any) -> Sum | None:
    return value if isinstance(value, Sum) else Sum((), value.value) if isinstance(value, Literal) else None

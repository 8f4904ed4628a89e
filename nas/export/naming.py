"""What classes are called (after their kind of block, or else their place in the network), and their arguments."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

from nas import ops
from nas.export.classes import CONTAINERS, CONV_NORM_ACT, Class, Classes, Line
from nas.export.leaves import HELPERS, IDENTITY, REQUIRED
from nas.export.tree import Group
from nas.export.values import MISSING, Parameter

# What channels are called that tell nothing more, and those that come in and go out.
GENERIC = ("in_channels", "out_channels", "channels", "in_features", "out_features", "num_features")
ENDS = {"out": "out_channels", "through": "channels", "in0": "in_channels"}


def camel(name: str) -> str:
    """A name as that of a class."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", name) if part]
    parts = [f"_{b}" if a[-1:].isdigit() and b[0].isdigit() else b for a, b in pairwise(["", *parts])]
    camel = "".join(re.sub(r"(?<=[a-z])net(?=\d*$)", "Net", part[0].upper() + part[1:]) for part in parts)
    return camel if camel[:1].isalpha() else f"Network{camel}"


def name_classes(classes: Classes, name: str) -> None:
    """Give every class a name of its own."""
    taken = {"Tensor", *HELPERS}
    for cls in (classes.root, *classes.all[:-1]):
        wanted = camel(name) if cls is classes.root else _wanted(cls, classes)
        number, unique = 1, wanted
        while unique in taken:
            number += 1
            unique = f"{wanted}Network" if cls is classes.root and number == 2 else f"{wanted}{number}"
        taken.add(unique)
        cls.name = unique


def _wanted(cls: Class, classes: Classes) -> str:
    """What to call a class, if nothing else is called so."""
    lines = {line.id: line for line in cls.lines}
    kind = cls.key.partition(":")[0]
    if cls.key == CONV_NORM_ACT:
        return "".join(part.capitalize() for part in ("conv", "norm", "act") if part in lines)
    if kind not in CONTAINERS:
        return camel(kind) + _difference(cls, classes)
    names = Counter(name for group in cls.groups if not (name := group.name).isdecimal())
    first, *others = names or [""]
    prefix = next(first[:n] for n in range(len(first), -1, -1) if all(name.startswith(first[:n]) for name in others))
    if len(prefix) > 2:
        return camel(prefix)
    if names:
        return camel(names.most_common(1)[0][0])
    outer = {next((p for p in reversed(g.path.split(".")) if not p.isdecimal()), "") for g in cls.groups}
    if len(outer) == 1 and (name := outer.pop()):
        return f"{camel(name)}Block"
    adds = cls.output in lines and isinstance(lines[cls.output].step.what, ops.Add)
    return "Residual" if adds else camel(kind or "block")


def _difference(cls: Class, classes: Classes) -> str:
    """What tells a class from the others of the same kind of block, if there are any."""
    others = [other for other in classes.all if other.key == cls.key and other is not cls]
    shapes = classes.graph.shapes
    if others and all(shapes[g.output][1:] < shapes[g.inputs[0]][1:] for g in cls.groups):
        return "Down"
    known = {line.id for other in others for line in other.lines}
    own = [line.name for line in cls.lines if line.id not in known and line.step.is_module]
    return camel(own[0].rstrip("0123456789").rpartition(".")[2]) if others and own else ""


def name_parameters(parameters: list[Parameter], cls: Class, *, last: bool) -> None:
    """Give the arguments and variables of a class names and defaults. `last`: it makes the network's output."""
    lines = {line.id: line for line in cls.lines}
    own = [p for p in parameters if not p.role and p.kind == "channels" and p.base in GENERIC]
    for p in parameters:
        p.base = "num_classes" if last and p.role == "out" else _base(p, lines[p.lines[0]], alone=own == [p])
        p.default = _default(p)
    often = Counter(p.base for p in parameters)
    taken = {"self", "torch", "nn", "i"}
    for p in parameters:
        name = p.base if often[p.base] == 1 or p.role else f"{lines[p.lines[0]].name}_{p.base}"
        name = name.replace(".", "_")
        name = name if name.isidentifier() else f"part{name}"
        while name in taken:
            name += "_"
        taken.add(name)
        p.name = name
    for p in parameters:
        if p.formula and len(p.lines) == 1:
            p.name = str(p.formula)


def _base(p: Parameter, line: Line, *, alone: bool) -> str:
    """What to call an argument that was met in `line`. `alone`: the class has no other inner number of channels."""
    if p.role:
        return ENDS.get(p.role, f"{p.role}_channels")
    if p.kind == "channels" and p.base != "growth":
        if alone:
            return "hidden_channels"
        told = isinstance(line.step.what, Group) and p.base not in (*GENERIC, "hidden_channels")
        return p.base if told else f"{line.name}_channels"
    if p.base == "kind":
        return "activation" if line.name.startswith("act") else line.name
    if p.base == "rate":
        return "dropout" if isinstance(line.step.what, ops.Dropout) else "drop_path"
    return p.base


def _default(p: Parameter) -> Any:
    """What an argument is if it is not given."""
    if p.kind in ("stride", "groups", "dilation") and (1 in p.values or not p.known):
        return 1
    values = [v for v in p.values if v is not MISSING and v is not None]
    if p.kind in ("activation", "flag", "step", "eps", "momentum"):
        return Counter(v for v in values if v != IDENTITY or set(values) == {v}).most_common(1)[0][0]
    if len(values) < len(p.values):
        return None
    return 0 if p.kind == "padding" and 0 in values else REQUIRED

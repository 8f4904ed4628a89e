"""An architecture as a plain Python file: one `nn.Module` class per distinct block, nothing imported but torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from nas.analysis import analyse
from nas.architecture import Architecture
from nas.blocks.base import known_blocks
from nas.errors import ExportError
from nas.export.classes import CONTAINERS, CONV_NORM_ACT, Class, Classes, Line
from nas.export.design import Design
from nas.export.forward import forward, inputs
from nas.export.leaves import HELPERS, REQUIRED, Name
from nas.export.naming import name_classes
from nas.export.python import Call, Expr, Pair, docstring, layout, sequence
from nas.export.tree import Group, Loop, Tree
from nas.export.values import Flag, Literal, Made, Parameter
from nas.graph import Graph
from nas.torch.build import module_paths


class Source(NamedTuple):
    """A file's text, the name of the network's class in it, and the files of the package that it leans on, if any."""

    text: str
    network: str
    imports: tuple[str, ...]


def source(network: Architecture | Graph, *, name: str) -> str:
    """The text of a Python file that defines the network and `load(path)`, which fills it with saved weights.

    The keys of its state dictionary are those of `nas.torch.build`. The file imports torch alone, and the modules of
    wrapped classes (`nas.blocks.Wrap`) where there are any.

    Args:
        network: an architecture or a graph.
        name: what to call the network.

    Raises ExportError for a wrapped class that a file cannot import.
    """
    return compose(network, name=name).text


def compose(network: Architecture | Graph, *, name: str, notes: Sequence[str] = ()) -> Source:
    """As `source`, with the name of the network's class and what the file imports besides torch."""
    graph = network.graph() if isinstance(network, Architecture) else network
    classes = Classes(Tree(graph, module_paths(graph)).root(), graph)
    name_classes(classes, name)
    designs: dict[Class, Design] = {}
    for cls in classes.all:
        designs[cls] = Design(cls, classes, designs)
    written = {cls: _Writer(design) for cls, design in designs.items()}
    bodies = [line for cls in classes.all for line in ["", "", *written[cls].lines()]]
    used = {head for writer in written.values() for head in writer.heads}
    helpers = [line for head, code in HELPERS.items() if head in used for line in ["", "", *code.strip().split("\n")]]
    foreign = sorted(head for head in used if ":" in head)
    root = classes.root.name
    code = [*helpers, *bodies, "", "", *_load(root), ""]
    head = [*_docstring(network, graph, name, notes), "", *_imports(foreign, any("Tensor" in line for line in code))]
    return Source("\n".join([*head, *code]), root, tuple(foreign))


# -- parts of the file -------------------------------------------------------------------------------------------------


def _docstring(network: Architecture | Graph, graph: Graph, name: str, notes: Sequence[str]) -> list[str]:
    costs = analyse(graph)
    name = re.sub(r"[^\w .+-]", "_", name)
    shapes = [", ".join(map(str, ("N", *graph.shapes[i]))) for i in graph.inputs]
    result = ", ".join(map(str, ("N", *costs.shape)))
    classes = f" for {network.classes} classes" if isinstance(network, Architecture) else ""
    return [
        f'"""{name}: a network{classes}.',
        "",
        f"Input: float images ({'), ('.join(shapes)}). Output: ({result}).",
        f"Parameters: {costs.params:,}. FLOPs for one image: {costs.flops:,}, where a multiply-add",
        "of a convolution or linear layer counts 1 and everything else 0.",
        *[line for note in notes for line in wrap(re.sub(r'[\\"]', "_", note), 80)],
        "",
        f'    model = load("{name}.safetensors")',
        "",
        "Needs torch alone; `load` reads .safetensors files with the package safetensors.",
        '"""',
    ]


def _imports(foreign: list[str], tensors: bool) -> list[str]:
    lines = ["import torch", f"from torch import {'Tensor, ' * tensors}nn"]
    if foreign:
        lines += ["", "# Layers that are not defined here: these modules must be importable where the file is used."]
        lines += [f"import {module}" for module in sorted({head.partition(":")[0] for head in foreign})]
    return lines


def _load(network: str) -> list[str]:
    return f'''def load(path: str) -> {network}:
    """The network with the weights of a .safetensors file or a saved state dictionary."""
    model = {network}()
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state)
    return model.eval()'''.split("\n")


class _Writer:
    """One class as lines of Python. `heads`: what it calls."""

    def __init__(self, design: Design) -> None:
        self.design = design
        self.cls = design.cls
        self.root = self.cls is design.classes.root
        self.heads: set[str] = set()
        self.flags: dict[str, str] = {}

    def lines(self) -> list[str]:
        lines = self.cls.lines
        numbered = [line for line in lines if line.step.is_module and line.name.partition(".")[0].isdecimal()]
        base = "Module"
        if numbered:
            base = "Sequential" if len(numbered) == len(lines) and _is_chain(self.cls) else "ModuleList"
        out = [f"class {self.cls.name}(nn.{base}):"]
        if about := self._about():
            out += [*docstring(about, 4), ""]
        if init := self._init(base):
            out += [*self._signature(), *init, ""]
        if base == "Sequential":
            return out[:-1]
        arguments: list[Expr] = ["self", *(f"{name}: Tensor" for name in inputs(self.design.arity))]
        out += layout(Call("def forward", tuple(arguments)), 4, after=" -> Tensor:")
        return out + forward(self.cls, self.flags, root=self.root)

    def _about(self) -> str:
        kind = self.cls.key.partition(":")[0]
        if self.root or kind in CONTAINERS:
            return ""
        if kind == CONV_NORM_ACT:
            parts = {"conv": "Convolution", "norm": "norm", "act": "activation"}
            return ", ".join(parts[line.id] for line in self.cls.lines) + "."
        block = known_blocks().get(kind)
        about = " ".join((block.__doc__ or "").strip().split("\n\n")[0].split()) if block else ""
        # What the block's own text says of its fields is kept where they are arguments here too.
        arguments = {p.name for p in self.design.signature}
        about = re.sub(r" \([^()]*`[^()]*\)", "", about)
        clauses = re.split(r"(?<=[.;]) (?![^(]*\))", about)
        clauses = [clause for clause in clauses if set(re.findall(r"`(\w+)[^`]*`", clause)) <= arguments]
        return " ".join(clauses).rstrip(" ;.") + "." if clauses and clauses[0] else ""

    def _signature(self) -> list[str]:
        arguments: list[Expr] = ["self"]
        for p in self.design.signature:
            default = "" if p.default is REQUIRED else f" = {_literal(p.default)}"
            arguments.append(f"{p.name}: {_type(p)}{default}")
        return layout(Call("def __init__", tuple(arguments)), 4, after=" -> None:")

    def _init(self, base: str) -> list[str]:
        out: list[str] = []
        nested: dict[str, Any] = {}  # modules of scopes that are no function of their own
        for line in self.cls.lines:
            made = self.design.made.get(line.id)
            if made is None:
                out += self._flag(line) if line.id in self.design.conditions else []
            elif isinstance(line.step.what, Loop):
                out += self._loop(line, made)
            elif "." in line.name or line.name.isdecimal():
                *scopes, last = line.name.split(".")
                inside = nested
                for scope in scopes:
                    inside = inside.setdefault(scope, {})
                inside[last] = self._expression(made)
            else:
                out += self._attribute(line, self._expression(made))
        items: list[Expr] = []
        for number in sorted(int(name) for name in nested if name.isdecimal()):
            items += ["nn.Identity()"] * (number - len(items))
            items.append(_dictionary(nested[str(number)]))
        for name, content in nested.items():
            if not name.isdecimal():
                out += layout(_dictionary(content), 8, f"self.{name} = ")
        variables = [f"        {p.name} = {p.formula}" for p in self.design.variables]
        if not items:
            return ["        super().__init__()", *variables, *out] if out else []
        arguments = sequence(items)
        call = Call("super().__init__", arguments if base == "Sequential" else (Call("", arguments, "[]"),), tall=True)
        return [*variables, *layout(call, 8), *out]

    def _attribute(self, line: Line, made: Expr) -> list[str]:
        if line.id not in self.design.conditions:
            return layout(made, 8, f"self.{line.name} = ")
        condition = str(self.design.conditions[line.id])
        if len(line.inputs) > 1:
            return [*self._flag(line), f"        if {condition}:", *layout(made, 12, f"self.{line.name} = ")]
        absent = f"        self.{line.name} = nn.Identity()"
        return [absent, f"        if {condition}:", *layout(made, 12, f"self.{line.name} = ")]

    def _flag(self, line: Line) -> list[str]:
        condition = self.design.conditions[line.id]
        taken = {other.name for other in self.cls.lines} | set(self.flags.values())
        name = "residual" if not line.step.is_module else f"use_{line.name}"
        while name in taken:
            name += "_"
        self.flags[line.id] = name
        return [f"        self.{name} = {condition}"]

    def _loop(self, line: Line, made: Made) -> list[str]:
        count, *arguments = made.arguments
        layer = self._expression(Made(made.head, arguments))
        return [
            f"        for i in range({count[1]}):",
            *layout(Call("self.add_module", (f'f"{line.name}{{i}}"', layer)), 12),
        ]

    def _expression(self, made: Made) -> Expr:
        values = [value for _, value in made.arguments]
        if made.head == "activation":
            kind, *channels = map(str, values)
            if not channels:
                return f"{kind}()"
            if isinstance(values[0], Literal):
                return f"{kind}({channels[0]})"
            self.heads.add("activation")
            return f"make_activation({kind}, {channels[0]})"
        if made.head == "grows":
            return f"{values[0]} + i * {values[1]}"
        head = made.head.name if isinstance(made.head, Class) else made.head.replace(":", ".")
        if not isinstance(made.head, Class):
            self.heads.add(made.head)
        items: list[Expr] = []
        for argument, value in made.arguments:
            text = self._expression(value) if isinstance(value, Made) else str(value)
            if argument.default is REQUIRED:
                items.append(text)
            elif not _is_default(value, argument.default):
                items.append(Pair(f"{argument.name}=", text))
        if head == "nn.Sequential":
            return Call(head, sequence(items), tall=True)
        return Call(head, tuple(items))


def _is_chain(cls: Class) -> bool:
    before = "#0"
    for line in cls.lines:
        if line.inputs != (before,) or line.step.borrowed or "." in line.name or len(cls.groups[0].inputs) > 1:
            return False
        before = line.id
    numbers = [int(line.name) for line in cls.lines]
    return numbers == sorted(numbers)


def _is_default(value: Any, default: Any) -> bool:
    known = value.value if isinstance(value, Literal) else value.literal if isinstance(value, Flag) else REQUIRED
    return type(known) is type(default) and known == default


def _literal(value: Any) -> str:
    return str(Literal(value))


def _type(p: Parameter) -> str:
    types = {"flag": "bool", "step": "bool", "activation": "type[nn.Module]"}
    if p.kind in types:
        return types[p.kind]
    found = {_annotation(value) for value in p.values if value is not None and not isinstance(value, Name)}
    found -= {"object"}
    return " | ".join([*sorted(found), *(["None"] if p.default is None else [])]) or "object"


def _annotation(value: Any) -> str:
    if isinstance(value, tuple):
        return f"tuple[{', '.join(map(_annotation, value))}]"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else "object"


def _dictionary(content: Any) -> Expr:
    """A module, or the modules of a scope by name."""
    if not isinstance(content, dict):
        made: Expr = content
        return made
    items = tuple(Pair(f'"{name}": ', _dictionary(value)) for name, value in content.items())
    return Call("nn.ModuleDict", (Call("", items, "{}"),))


__all__ = ["ExportError", "Group", "Source", "compose", "source"]

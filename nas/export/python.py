"""Python expressions, laid out as `ruff format` does: on one line if they fit, else one part a line."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TypeAlias

WIDTH = 88


@dataclass(frozen=True)
class Call:
    """`head(items)`; a list is the head `""` with square brackets, a dictionary one with braces.

    `tall`: where one line is too short, every item has its own, even if one line would do for all of them.
    """

    head: str
    items: tuple[Expr, ...]
    brackets: str = "()"
    tall: bool = False


@dataclass(frozen=True)
class Pair:
    """`name=value` in a call, `"name": value` in a dictionary."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Copies:
    """`*[value for _ in range(times)]`: equal items of a list."""

    value: Expr
    times: int


@dataclass(frozen=True)
class Infix:
    """Operands joined by an operator."""

    operator: str
    items: tuple[Expr, ...]


Expr: TypeAlias = str | Call | Pair | Copies | Infix


def text(expr: Expr) -> str:
    """The expression on one line."""
    if isinstance(expr, Call):
        return f"{expr.head}{expr.brackets[0]}{', '.join(map(text, expr.items))}{expr.brackets[1]}"
    if isinstance(expr, Pair):
        return f"{expr.name}{text(expr.value)}"
    if isinstance(expr, Copies):
        return f"*[{text(expr.value)} for _ in range({expr.times})]"
    if isinstance(expr, Infix):
        return f" {expr.operator} ".join(map(text, expr.items))
    return expr


def layout(expr: Expr, indent: int, before: str = "", after: str = "") -> list[str]:
    """The lines of `before + expr + after`, indented by `indent` spaces."""
    pad, inner = " " * indent, indent + 4
    line = f"{pad}{before}{text(expr)}{after}"
    if len(line) <= WIDTH or isinstance(expr, str) or (isinstance(expr, Call) and not expr.items):
        return [line]
    if isinstance(expr, Pair):
        return layout(expr.value, indent, before + expr.name, after)
    if isinstance(expr, Copies):
        item = layout(expr.value, inner)
        return [f"{pad}{before}*[", *item, f"{' ' * inner}for _ in range({expr.times})", f"{pad}]{after}"]
    if isinstance(expr, Infix):
        operator = ["", *[f"{expr.operator} "] * (len(expr.items) - 1)]
        terms = [line for sign, term in zip(operator, expr.items, strict=True) for line in layout(term, inner, sign)]
        return [f"{pad}{before}(", *terms, f"{pad}){after}"]
    arguments = ", ".join(map(text, expr.items))
    if expr.brackets == "()" and not expr.tall and inner + len(arguments) <= WIDTH:
        return [f"{pad}{before}{expr.head}(", f"{' ' * inner}{arguments}", f"{pad}){after}"]
    items = [line for item in expr.items for line in layout(item, inner, after=",")]
    return [f"{pad}{before}{expr.head}{expr.brackets[0]}", *items, f"{pad}{expr.brackets[1]}{after}"]


def sequence(items: list[Expr]) -> tuple[Expr, ...]:
    """Items of a list, with equal neighbours as `Copies`."""
    out: list[Expr] = []
    at = 0
    while at < len(items):
        times = 1
        while at + times < len(items) and items[at + times] == items[at] != "nn.Identity()":
            times += 1
        out.append(items[at] if times == 1 else Copies(items[at], times))
        at += times
    return tuple(out)


def docstring(content: str, indent: int) -> list[str]:
    """A docstring of one paragraph, wrapped."""
    pad = " " * indent
    content = content.replace("\\", "\\\\").replace('"""', "'''")
    if len(line := f'{pad}"""{content}"""') <= WIDTH and not content.endswith('"'):
        return [line]
    lines = textwrap.wrap(content, WIDTH - indent - 3)
    return [f'{pad}"""{lines[0]}', *[pad + line for line in lines[1:]], f'{pad}"""']

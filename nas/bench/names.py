"""Plug-ins with options in one word, such as `evolution(population=20)`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from nas.config import parse_value
from nas.errors import ConfigError


@dataclass(frozen=True)
class Named:
    """A plug-in's name and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `name` or `name(option=value,option=value)`. Raises ConfigError."""
        match = re.fullmatch(r"([\w.:-]+)(?:\((.*)\))?", text.strip(), flags=re.DOTALL)
        if not match:
            raise ConfigError(
                f"{text.strip()!r} is not a name, or a name with options such as evolution(population=20)"
            )
        options = {}
        for item in _split(match[2] or ""):
            name, equals, value = item.partition("=")
            if not equals or not name.strip().isidentifier():
                raise ConfigError(f"{text.strip()!r}: {item.strip()!r} is not option=value")
            options[name.strip()] = parse_value(value.strip())
        return cls(match[1], options)


def names(text: str) -> list[str]:
    """The parts of a list separated by commas; commas in brackets separate nothing. Raises ConfigError for none."""
    found = [part.strip() for part in _split(text)]
    if not found:
        raise ConfigError(f"{text!r}: expected names separated by commas")
    if len(set(found)) < len(found):
        raise ConfigError(f"{text!r} names one twice")
    return found


def parse_budgets(given: str | Sequence[int]) -> list[int]:
    """Numbers of evaluations, of `50,100,200` or one by one, in order. Raises ConfigError."""
    try:
        found = sorted({int(part) for part in (given.split(",") if isinstance(given, str) else given)})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise ConfigError(f"--budgets: expected numbers of evaluations such as 50,100,200, got {given!r}")
    return found


def _split(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]

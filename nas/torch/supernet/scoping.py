"""Which decisions a place in a template sees, and what it knows of them; as `nas.walk` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from nas.choices import OneOf
from nas.torch.supernet.tables import (
    Variable,
)


@dataclass(frozen=True, eq=False)
class Taken:
    """A choice that is decided.

    Attributes:
        variable: its decision.
        only: options that it can have here.
        inside: what is decided with an option.
    """

    variable: Variable
    only: tuple[int, ...]
    inside: Mapping[int, Env] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Sometimes:
    """A choice that is decided in some settings only, or not always as the same decision.

    Attributes:
        variable: its decision where it is decided, None if there are several.
        of: what it depends on.
    """

    variable: Variable | None
    of: Variable


Env: TypeAlias = Mapping[int, Taken | Sometimes]
"""The decisions that a scope sees, by the id of the choice."""


@dataclass
class Met:
    """The decisions of one block: all, and by the ids of their choices those that were taken before it."""

    before: Env
    found: dict[Variable, Taken] = field(default_factory=dict)
    shared: dict[int, Taken] = field(default_factory=dict)
    local: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Place:
    """Where a block stands.

    Attributes:
        name: in the graph, within `around`.
        around: beginning of the keys.
        path, scope: of decisions.
        fields: what a `Repeat` has instead of the block's own fields: name, path, scope and value of each.
        is_edge: whether the block's own name is to be added, as on the edges of a cell.
    """

    name: str = ""
    around: str = ""
    path: str = ""
    scope: str = ""
    fields: tuple[tuple[str, str, str, Any], ...] = ()
    is_edge: bool = False

    def inside(self, label: str) -> str:
        return f"{self.around}{self.name}:{label}." if self.name else self.around


def entered(choice: OneOf, here: Taken, i: int, env: Env) -> Env:
    """What is known inside an option."""
    return {**env, **here.inside.get(i, {}), id(choice): replace(here, only=(i,))}


def left(choice: OneOf, here: Taken, before: Env, envs: Mapping[int, Env]) -> Env:
    """What is known after a choice, from what is known after each of its options."""
    inside = {
        i: {key: known for key, known in env.items() if before.get(key) is not known and key != id(choice)}
        for i, env in envs.items()
    }
    after = {**before, id(choice): replace(here, inside=inside)}
    return {**after, **either_known(list(inside.values()), here.variable)}


def either_known(envs: Sequence[Env], of: Variable) -> Env:
    """What is known where one of several is true, which depends on a decision."""
    if len(envs) == 1:
        return envs[0]
    found: dict[int, Taken | Sometimes] = {}
    for key in dict.fromkeys(key for env in envs for key in env):
        known = [env.get(key) for env in envs]
        variables = {value.variable for value in known if value is not None}
        variable = variables.pop() if len(variables) == 1 else None
        taken = [value for value in known if isinstance(value, Taken)]
        if variable is None or len(taken) < len(known):
            found[key] = Sometimes(variable, of)
        else:
            inside = {i: either_known([t.inside.get(i, {}) for t in taken], of) for t in taken for i in t.inside}
            found[key] = Taken(variable, taken[0].only, inside)
    return found

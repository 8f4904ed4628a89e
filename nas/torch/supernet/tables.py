"""What depends on open decisions: tables of values, and how probable each value is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from nas.choices import Label

V = TypeVar("V", bound=Hashable)
W = TypeVar("W", bound=Hashable)

LARGEST = 512
"""Entries of a table; a larger one is replaced by how probable its values are, as if they depended on nothing else."""


@dataclass(frozen=True)
class Variable:
    """What is not certain: a decision, by its path and the labels that it has where it stands."""

    path: str
    labels: tuple[Label, ...]

    @property
    def size(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Derived:
    """What is not certain because it depends on decisions: the values of a table too large to be carried on."""

    table: Table[Any]

    @property
    def size(self) -> int:
        return len(self.table.values)


Unknown = Variable | Derived


def decisions(unknowns: Sequence[Unknown]) -> list[Variable]:
    """The decisions on which all this depends."""
    found: dict[Variable, None] = {}
    for unknown in unknowns:
        found |= dict.fromkeys([unknown] if isinstance(unknown, Variable) else decisions(unknown.table.variables))
    return list(found)


class Table(Generic[V]):
    """A value for every combination of options of some variables, without those that make no difference.

    Args:
        variables: on which it may depend.
        entries: position in `values` for each combination, an array with an axis for each variable.
        values: all different.
    """

    def __init__(self, variables: Sequence[Unknown], entries: np.ndarray, values: Sequence[V]) -> None:
        for axis in reversed(range(len(variables))):
            first = entries.take([0], axis)
            if (entries == first).all():
                entries = first.squeeze(axis)
                variables = [*variables[:axis], *variables[axis + 1 :]]
        self.variables, self.entries, self.values = tuple(variables), entries, tuple(values)

    @classmethod
    def of(cls, variables: Sequence[Unknown], found: Sequence[V], which: np.ndarray | None = None) -> Table[V]:
        """From the values of all combinations, the last variable changing fastest.

        `which`: position in `found` of each combination; by default all are there.
        """
        places: dict[V, int] = {}
        entries = np.array([places.setdefault(value, len(places)) for value in found], dtype=np.int64)
        entries = entries if which is None else entries[which]
        return cls(variables, entries.reshape([v.size for v in variables]), tuple(places))

    @classmethod
    def certain(cls, value: V) -> Table[V]:
        return cls((), np.zeros((), dtype=np.int64), (value,))

    def at(self, taken: Mapping[Unknown, int]) -> V:
        """The value where the variables take these options."""
        return self.values[int(self.entries[tuple([taken[v] for v in self.variables])])]

    def given(self, variable: Variable, only: Sequence[int]) -> Table[V]:
        """The table where a variable takes one of these options: what it says of the others makes no difference."""
        if variable not in self.variables:
            return self
        taken = [i if i in only else only[0] for i in range(variable.size)]
        return Table(self.variables, self.entries.take(taken, self.variables.index(variable)), self.values).used

    @property
    def used(self) -> Table[V]:
        """Without values that no combination has."""
        there, entries = np.unique(self.entries, return_inverse=True)
        if len(there) == len(self.values):
            return self
        return Table(self.variables, entries.reshape(self.entries.shape), [self.values[i] for i in there])

    @cached_property
    def alone(self) -> Table[V]:
        """One that stands for it, with a variable of its own: its values, as probable as they are."""
        return Table([Derived(self)], np.arange(len(self.values)), self.values)

    def limited(self, most: int = LARGEST) -> Table[V]:
        """The table itself, or one that stands for it if it is too large."""
        return self if self.entries.size <= most else self.alone

    @cached_property
    def form(self) -> Hashable:
        """What the probabilities of its values depend on, but for its values."""
        return self.variables, self.entries.tobytes(), *[value is None for value in self.values]

    @cached_property
    def members(self) -> Tensor:
        """(combinations, values): 1 where a combination has the value."""
        return torch.eye(len(self.values), dtype=torch.float64)[torch.from_numpy(self.entries.reshape(-1))]


def combinations(variables: Sequence[Unknown]) -> Iterator[dict[Unknown, int]]:
    """All combinations of options, the last variable changing fastest."""
    for indices in product(*[range(v.size) for v in variables]):
        yield dict(zip(variables, indices, strict=True))


def joined(tables: Sequence[Table[Any]]) -> list[Unknown]:
    """The variables of several tables, each once."""
    return list(dict.fromkeys(v for table in tables for v in table.variables))


def combined(
    tables: Sequence[Table[Any]], extra: Sequence[Unknown], value: Callable[[dict[Unknown, int]], W]
) -> Table[W]:
    """A table over the variables of others, of what `value` makes of each combination."""
    variables = list(dict.fromkeys([*extra, *joined(tables)]))
    return Table.of(variables, [value(taken) for taken in combinations(variables)])


def entries(tables: Sequence[Table[Any]], extra: Sequence[Unknown] = ()) -> int:
    """How many combinations `combined` would look at."""
    return prod(v.size for v in dict.fromkeys([*extra, *joined(tables)]))


class Beliefs:
    """How probable the options of all decisions are, and what follows for the values of tables.

    Args:
        probabilities: (labels,) for each decision, by path; those of the space's own labels in their order.
        labels: of each decision.
    """

    def __init__(self, probabilities: Mapping[str, Tensor], labels: Mapping[str, tuple[Label, ...]]) -> None:
        self._probabilities, self._labels = probabilities, labels
        self._known: dict[Any, Any] = {}
        self.single = False
        """Whether only the most probable option of each variable counts."""

    def given(self, name: str) -> Tensor | None:
        """What was given under a name."""
        return self._probabilities.get(name)

    def likely(self, unknown: Unknown) -> list[int]:
        """The options that count."""
        return [int(self.of(unknown).detach().argmax())] if self.single else list(range(unknown.size))

    def knows(self, variable: Variable) -> bool:
        """Whether anything is said of a decision."""
        return variable.path in self._probabilities

    def of(self, unknown: Unknown) -> Tensor:
        """Probability of each option."""
        found = self._known.get(unknown)
        if found is None:
            found = self.over(unknown.table) if isinstance(unknown, Derived) else self._decision(unknown)
            self._known[unknown] = found
        return found

    def over(self, table: Table[Any]) -> Tensor:
        """Probability of each value of a table."""
        found = self._known.get(table)
        if found is None:
            joint: Tensor | None = None
            for variable in table.variables:
                p = self.of(variable)
                joint = p if joint is None else (joint[:, None] * p).reshape(-1)
            found = torch.ones(1, dtype=torch.float64) if joint is None else joint @ table.members.to(joint.device)
            self._known[table] = found
        return found

    def shares(self, table: Table[V]) -> tuple[list[V], Tensor | None]:
        """The values of a table that are not None, and the probability of each if it is one of these; None: certain."""
        values = [value for value in table.values if value is not None]
        if len(values) == 1:
            return values, None
        found = self._known.get(table.form)
        if found is None:
            p = self.over(table)
            if len(values) < len(p):
                p = p[[i for i, value in enumerate(table.values) if value is not None]]
            if self.single:
                best = int(p.detach().argmax())
                found = p[best : best + 1] / p[best].detach().clamp_min(1e-30), best  # 1, with a gradient
            else:
                found = p / p.sum().clamp_min(1e-30), None
            self._known[table.form] = found
        p, only = found
        return values if only is None else [values[only]], p

    def _decision(self, variable: Variable) -> Tensor:
        p = self._probabilities[variable.path].double()
        labels = self._labels[variable.path]
        if variable.labels == labels:
            return p
        # One of several choices of this name, with fewer options.
        p = p[[labels.index(label) for label in variable.labels]]
        total = p.sum()
        if float(total.detach()) == 0:  # another of them is meant: then it makes no difference what is taken here
            return torch.eye(variable.size, dtype=p.dtype, device=p.device)[0]
        return p / total

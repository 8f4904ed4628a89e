"""How many genotypes a template has, exactly, without enumerating them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from nas.choices import OneOf, Repeat, is_open

# What is already decided at some point of the walk: (choice, option) pairs. Only choices that can be met again are
# kept; and the option only where it makes a difference to what is open then, else 0.
_Decided: TypeAlias = frozenset[tuple[int, int]]
_Counts: TypeAlias = Counter[_Decided]


def count(template: Any) -> int:
    """Number of different genotypes of a template."""
    return sum(_Counting(template).count(template, frozenset(), frozenset()).values())


class _Counting:
    """Counts parts of one template."""

    def __init__(self, template: Any) -> None:
        self._choices: dict[int, frozenset[int]] = {}  # ids of the choices in a part, by the part's id
        self._telling: set[int] = set()  # choices of which it matters what was taken, not only that it was
        self._inside(template)

    def count(self, value: Any, decided: _Decided, later: frozenset[int]) -> _Counts:
        """Genotypes of `value`, by what is decided afterwards; `later`: choices that can be met after it."""
        if not is_open(value):
            return Counter({decided: 1})
        if isinstance(value, OneOf):
            taken = dict(decided)
            if id(value) in taken:
                return self.count(value.options[taken[id(value)]], decided, later)
            total: _Counts = Counter()
            telling = id(value) in self._telling
            for i, option in enumerate(value.options):
                after = decided | {(id(value), i if telling else 0)} if id(value) in later else decided
                total.update(self.count(option, after, later))
            return total
        if isinstance(value, Repeat):
            return self._repeat(value, decided, later)
        return self._sequence(_inside(value), decided, later)

    def _sequence(self, values: Sequence[Any], decided: _Decided, later: frozenset[int]) -> _Counts:
        rest = [later]
        for value in reversed(values[1:]):
            rest.append(rest[-1] | self._inside(value))
        before: _Counts = Counter({decided: 1})
        for value, needed in zip(values, reversed(rest), strict=False):
            after: _Counts = Counter()
            for state, n in before.items():
                for found, m in self.count(value, state, needed).items():
                    after[frozenset([pair for pair in found if pair[0] in needed])] += n * m
            before = after
        return before

    def _repeat(self, repeat: Repeat, decided: _Decided, later: frozenset[int]) -> _Counts:
        total: _Counts = Counter()
        times = repeat.times
        options = times.options if isinstance(times, OneOf) else (times,)
        fields = (*repeat.each.values(), *repeat.first.values())
        needed = later | self._inside(repeat.block)
        known = dict(decided)
        for i, n in enumerate(options):
            state = decided
            if isinstance(times, OneOf):
                if known.get(id(times), i) != i:
                    continue
                state = decided | {(id(times), i)}
            for after, m in self._sequence(fields, state, needed | {id(times)}).items():
                # A repetition is a scope: what it decides is open again in the next one.
                ways = sum(self.count(repeat.block, after, frozenset()).values())
                total[after] += m * ways ** (min(1, n) if repeat.shared else n)
        return total

    def _inside(self, value: Any) -> frozenset[int]:
        found = self._choices.get(id(value))
        if found is None:
            found = frozenset([id(value)] if isinstance(value, OneOf) else ())
            if isinstance(value, Repeat):
                self._telling.add(id(value.times))
            elif isinstance(value, OneOf) and any(map(is_open, value.options)):
                self._telling.add(id(value))
            found = self._choices[id(value)] = found.union(*map(self._inside, _inside(value)))
        return found


def _inside(value: Any) -> Sequence[Any]:
    if isinstance(value, OneOf):
        return value.options
    if isinstance(value, Repeat):
        return (value.times, *value.each.values(), *value.first.values(), value.block)
    if isinstance(value, tuple):
        return value
    return [child for _, child in value.children()] if is_open(value) else ()

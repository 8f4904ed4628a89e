"""How many genotypes a template has, exactly, without enumerating them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

from nas.choices import OneOf, Repeat, is_open

# What is already decided at some point of the walk: (choice, option) pairs. Only choices that stand in more than one
# place are kept, because only they can be met again.
_Decided: TypeAlias = frozenset[tuple[int, int]]
_Counts: TypeAlias = Counter[_Decided]


def count(template: Any) -> int:
    """Number of different genotypes of a template."""
    places: Counter[int] = Counter()
    _places(template, places)
    shared = {choice for choice, n in places.items() if n > 1}
    return sum(_count(template, frozenset(), shared).values())


def _places(value: Any, found: Counter[int]) -> None:
    if isinstance(value, OneOf):
        found[id(value)] += 1
        if found[id(value)] > 2:  # what is inside a choice that is met again is met again, too
            return
    for child in _inside(value):
        _places(child, found)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, OneOf):
        return value.options
    if isinstance(value, Repeat):
        return (value.times, *value.each.values(), *value.first.values(), value.block)
    if isinstance(value, tuple):
        return value
    return [child for _, child in value.children()] if is_open(value) else ()


def _count(value: Any, decided: _Decided, shared: set[int]) -> _Counts:
    """Genotypes of `value`, by what is decided afterwards."""
    if not is_open(value):
        return Counter({decided: 1})
    if isinstance(value, OneOf):
        taken = dict(decided)
        if id(value) in taken:
            return _count(value.options[taken[id(value)]], decided, shared)
        total: _Counts = Counter()
        for i, option in enumerate(value.options):
            after = decided | {(id(value), i)} if id(value) in shared else decided
            total.update(_count(option, after, shared))
        return total
    if isinstance(value, Repeat):
        return _repeat(value, decided, shared)
    return _sequence(_inside(value), Counter({decided: 1}), shared)


def _sequence(values: Iterable[Any], before: _Counts, shared: set[int]) -> _Counts:
    for value in values:
        after: _Counts = Counter()
        for decided, n in before.items():
            for state, m in _count(value, decided, shared).items():
                after[state] += n * m
        before = after
    return before


def _repeat(repeat: Repeat, decided: _Decided, shared: set[int]) -> _Counts:
    total: _Counts = Counter()
    options = repeat.times.options if isinstance(repeat.times, OneOf) else (repeat.times,)
    known = dict(decided)
    for i, times in enumerate(options):
        state = decided
        if isinstance(repeat.times, OneOf):
            if known.get(id(repeat.times), i) != i:
                continue
            if id(repeat.times) in shared:
                state = decided | {(id(repeat.times), i)}
        fields = (*repeat.each.values(), *repeat.first.values())
        for after, n in _sequence(fields, Counter({state: 1}), shared).items():
            # A repetition is a scope: what it decides is open again in the next one.
            ways = sum(_count(repeat.block, after, shared).values())
            total[after] += n * ways ** (min(1, times) if repeat.shared else times)
    return total

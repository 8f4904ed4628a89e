"""The one walk over open choices.

A template is a block with choices left open. `resolve` walks it in reading order, asks `decide` at every open
choice that is active, and returns the template with nothing open. Sampling, decoding, mutating, enumerating, a
controller's next token: each is one `decide` function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, TypeVar

from nas.choices import MISSING, Decide, Decision, Genotype, Label, OneOf, Repeat, is_open, open_children
from nas.errors import SpaceError

T = TypeVar("T")


def resolve(template: Any, decide: Decide) -> tuple[Any, dict[str, Label]]:
    """Close every open choice of a template.

    Args:
        template: a block (or any value) with open choices.
        decide: called with each active decision in reading order, returns the index of the option.

    Returns the template with nothing open, and the genotype: path to label for each active decision.
    Raises SpaceError if two different choices have the same path, or `decide` answers outside the options.
    """
    return Walker(template).resolve(decide)


def every(walk: Callable[[Decide], T]) -> Iterator[T]:
    """What a walk gives for all ways to decide, in reading order, the last decision changing fastest."""
    prefix: list[int] = []
    while True:
        sizes: list[int] = []

        def decide(decision: Decision, sizes: list[int] = sizes) -> int:
            at = len(sizes)
            sizes.append(len(decision))
            if at == len(prefix):
                prefix.append(0)
            return prefix[at]

        yield walk(decide)
        del prefix[len(sizes) :]
        while prefix and prefix[-1] + 1 == sizes[len(prefix) - 1]:
            prefix.pop()
        if not prefix:
            return
        prefix[-1] += 1


class Following:
    """The `decide` that takes a genotype's decisions; raises SpaceError where it has none or an unknown one.

    What comes of the decisions in a `Repeat`, and in each of its repetitions, is remembered: a neighbour costs a
    look-up for each stage, and for each layer of the stage that is new.
    """

    __slots__ = ("genotype", "name")

    def __init__(self, genotype: Genotype, name: str) -> None:
        self.genotype = genotype
        self.name = name

    def __call__(self, decision: Decision) -> int:
        index = decision.index_in(self.genotype)
        if index is not None:
            return index
        path, expected = decision.path, f"expected one of {list(decision.labels)}"
        if path in self.genotype:
            raise SpaceError(f"space {self.name!r}: {path}={self.genotype[path]!r}; {expected}")
        if len(decision) > 1:
            raise SpaceError(f"space {self.name!r}: the genotype lacks {path!r}; {expected}")
        return 0


# What a part of a template does when walked: takes `decide`, the genotype so far, and the decisions that its scope
# sees (the choice's id to the option's index); returns the closed part.
_Visit: TypeAlias = Callable[[Decide, dict[str, Label], dict[int, int]], Any]

_KNOWN = 1024  # results that a part remembers


class Walker:
    """A template made ready for many walks: paths and decisions are worked out at the first visit of each part.

    The same decisions in a part give the same object, so that what it remembers (its cost, its graph) is found
    again. Where only the genotype is wanted, `nas.steps` is faster.

    Args:
        template: a block, or any value with open choices.
        path, scope: where it stands, if in another template.
    """

    def __init__(self, template: Any, path: str = "", scope: str = "") -> None:
        self._visit = _part(template, path, scope)

    def resolve(self, decide: Decide, taken: Mapping[int, int] | None = None) -> tuple[Any, dict[str, Label]]:
        """See `resolve`; `taken`: what is decided already, a choice's id to the option's index."""
        genotype: dict[str, Label] = {}
        return self._visit(decide, genotype, dict(taken or {})), genotype


class Pieces(NamedTuple):
    """The decisions on which each piece of a part depends.

    Attributes:
        whole: there is one piece, which is the part; else they are the steps of a `Stage`.
        times: path of the decision how many pieces there are; None where that is not open.
        counts: what its labels stand for.
        paths: of each piece, all decisions that can make a difference to it.
    """

    whole: bool
    times: str | None
    counts: Mapping[Label, int]
    paths: list[tuple[str, ...]]


class Row:
    """Parts made ready to be walked one after the other, in one scope.

    Args:
        parts: path and value of each.
    """

    def __init__(self, parts: Sequence[tuple[str, Any]]) -> None:
        self._parts = parts
        self._visits = [_remembered(value, path) for path, value in parts]

    def resolve(self, decide: Decide) -> tuple[list[Any], dict[str, Label]]:
        """The parts with nothing open, and the genotype; see `resolve`."""
        genotype: dict[str, Label] = {}
        taken: dict[int, int] = {}
        return [visit(decide, genotype, taken) for visit in self._visits], genotype

    def part(self, i: int, follow: Following) -> Any:
        """One part with nothing open, without walking the others."""
        taken: dict[int, int] = {}
        for path, choice in self._shared[i]:
            if path in follow.genotype:
                taken[id(choice)] = choice.labels.index(follow.genotype[path])
        return self._visits[i](follow, {}, taken)

    def pieces(self, i: int) -> Pieces:
        """What decides each repetition of a part that is a `Repeat`, of another the whole of it."""
        path, value = self._parts[i]
        shared = [at for at, _ in self._shared[i]]
        elsewhere = {id(choice) for _, choice in self._shared[i]}
        if not isinstance(value, Repeat) or id(value.times) in elsewhere:
            own = [at for at, _ in everywhere(value, path)]
            return Pieces(True, None, {}, [tuple(dict.fromkeys(own + shared))])
        fields = replace(value, block=(), times=1)
        around = [at for at, _ in everywhere(fields, path)] + shared
        times, where = value.times, None
        counts: dict[Label, int] = {}
        if isinstance(times, OneOf):
            where = decision_path(times, join(path, "times"), "")
            counts = dict(zip(times.labels, times.options, strict=True))
        found: list[tuple[str, ...]] = []
        for n in range(max(times.options) if isinstance(times, OneOf) else times):
            at = join(path, "each" if value.shared else str(n))
            inside = list(everywhere(value.block, at, at))
            seen = [where] if where and any(choice is times for _, choice in inside) else []
            found.append(tuple(dict.fromkeys([*seen, *around, *(name for name, _ in inside)])))
        return Pieces(False, where, counts, found)

    @cached_property
    def _shared(self) -> list[list[tuple[str, OneOf]]]:
        """For each part where the choices in it may be decided that also stand in an earlier one."""
        met: Met = {}
        decided: list[tuple[str, OneOf]] = []
        found: list[list[tuple[str, OneOf]]] = []
        for path, value in self._parts:
            here = list(everywhere(value, path, "", met))
            elsewhere = {id(choice) for at in everywhere(value, path) if at not in here for choice in at[1:]}
            found.append([(at, choice) for at, choice in decided if id(choice) in elsewhere])
            decided += here
        return found


def _remembered(value: Any, path: str) -> _Visit:
    part = _part(value, path, "")
    return _looked_up(value, path, "", part) if open_children(value) else part


def _part(value: Any, path: str, scope: str) -> _Visit:
    if isinstance(value, OneOf):
        return _choice(value, path, scope)
    if isinstance(value, Repeat):
        return _repetition(value, path, scope)
    if isinstance(value, tuple) and is_open(value):
        parts = [_part(v, join(path, str(i)), scope) for i, v in enumerate(value)]
        return _together(parts, lambda *values: values)
    inside = open_children(value)
    if inside:
        names = [name for name, _ in inside]
        parts = [_part(child, join(path, name), scope) for name, child in inside]
        return _together(parts, lambda *values: value.with_children(dict(zip(names, values, strict=True))))
    return lambda decide, genotype, taken: value


def _choice(choice: OneOf, path: str, scope: str) -> _Visit:
    decision = Decision(decision_path(choice, path, scope), choice)
    here, labels, options, me = decision.path, choice.labels, choice.options, id(choice)
    closed = [not is_open(option) for option in options]
    parts: list[_Visit | None] = [None] * len(options)

    def visit(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> Any:
        index = taken.get(me)
        if index is None:
            if here in genotype:
                raise SpaceError(f"two different choices share the path {here!r}; give one OneOf a name=")
            index = decide(decision)
            if not 0 <= index < len(options):
                raise SpaceError(f"decision {here!r}: option {index} of {len(options)} was chosen")
            taken[me] = index
            genotype[here] = labels[index]
        if closed[index]:
            return options[index]
        part = parts[index]
        if part is None:
            part = parts[index] = _part(options[index], path, scope)
        return part(decide, genotype, taken)

    return visit


def _repetition(template: Repeat, path: str, scope: str) -> _Visit:
    from nas.blocks.base import stage

    times = _part(template.times, join(path, "times"), scope)
    shared, n_each = template.shared, len(template.each)
    named = (*template.each.items(), *template.first.items())
    fields = [_part(value, join(path, name), scope) for name, value in named]
    scopes: list[_Visit] = []

    def walk(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> list[Any]:
        n: int = times(decide, genotype, taken)
        values = [field(decide, genotype, taken) for field in fields]
        for i in range(min(n, 1) if shared else n):
            if i == len(scopes):
                scopes.append(_scope(template.block, join(path, "each" if shared else str(i))))
            values.append(scopes[i](decide, genotype, taken))
        return values + values[-1:] * (n - 1) if shared and n else values

    def make(*values: Any) -> Any:
        each = dict(zip(template.each, values, strict=False))
        first = dict(zip(template.first, values[n_each:], strict=False))
        return stage(values[len(fields) :], each, first)

    # `stage` remembers what it made.
    return _looked_up(template, path, scope, lambda decide, genotype, taken: make(*walk(decide, genotype, taken)))


def _scope(block: Any, path: str) -> _Visit:
    """A repetition: it sees what was decided around it, and nobody sees what it decides."""
    part = _part(block, path, path)
    if not is_open(block):
        return part
    known = _looked_up(block, path, path, part)
    return lambda decide, genotype, taken: known(decide, genotype, dict(taken))


def _looked_up(value: Any, path: str, scope: str, part: _Visit) -> _Visit:
    """Visit that walks a part only if the genotype it follows has something new there."""
    paths: dict[str, None] = {}  # of all decisions inside, and the ids of their choices: found when first needed
    choices: dict[int, None] = {}
    known: dict[tuple[Any, ...], tuple[Any, dict[str, Label], dict[int, int]]] = {}
    missing = repeat(MISSING)

    def visit(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> Any:
        if decide.__class__ is not Following:
            return part(decide, genotype, taken)
        if not paths:
            for where, choice in everywhere(value, path, scope):
                paths[where], choices[id(choice)] = None, None
        get = decide.genotype.get
        key = tuple(map(get, paths, missing))
        if not taken.keys().isdisjoint(choices):
            key += tuple(map(taken.get, choices))
        try:
            found = known.get(key)
        except TypeError:  # a label that cannot be hashed: no space has one
            return part(decide, genotype, taken)
        if found is None:
            inside: dict[str, Label] = {}
            after = dict(taken)
            made = part(decide, inside, after)
            found = made, inside, {choice: index for choice, index in after.items() if choice not in taken}
            remember(known, key, found)
        closed, labels, decided = found
        before = len(genotype)
        genotype.update(labels)
        if len(genotype) != before + len(labels):
            raise SpaceError(f"two different choices share a path inside {path!r}; give one OneOf a name=")
        taken.update(decided)
        return closed

    return visit


def _together(parts: list[_Visit], make: Callable[..., Any]) -> _Visit:
    def walk(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> list[Any]:
        return [part(decide, genotype, taken) for part in parts]

    return _remembering(walk, make)


def _remembering(walk: Callable[..., list[Any]], make: Callable[..., Any]) -> _Visit:
    """Visit that makes something of the values inside, the same object whenever they are the same objects."""
    known: dict[tuple[int, ...], tuple[list[Any], Any]] = {}

    def visit(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> Any:
        values = walk(decide, genotype, taken)
        key = tuple(map(id, values))
        found = known.get(key)
        if found is None:
            found = values, make(*values)  # keeps the values, so that no id is given out again
            remember(known, key, found)
        return found[1]

    return visit


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _KNOWN:
        known.clear()
    known[key] = value


def join(path: str, name: str) -> str:
    """`path.name`; an empty part adds nothing."""
    return f"{path}.{name}" if path and name else path or name


def decision_path(choice: OneOf, path: str, scope: str) -> str:
    """Path of a decision: a named one hangs on its scope, another on the field in which it stands."""
    if choice.name is not None:
        return join(scope, choice.name)
    last = path.rpartition(".")[2]
    # A choice that stands for a whole repetition or part, not in a field, is called `block`.
    return join(path, "block") if path == scope or last.isdigit() else path


def survey(template: Any) -> dict[str, tuple[Label, ...]]:
    """Every decision that can become active, by path, with the union of its labels, in reading order.

    Visits all options instead of choosing one; so it is the map of the space, not a walk through it.
    """
    found: dict[str, dict[Label, None]] = {}
    for path, choice in everywhere(template):
        found.setdefault(path, {}).update(dict.fromkeys(choice.labels))
    return {path: tuple(labels) for path, labels in found.items()}


Met: TypeAlias = dict[int, Sequence[Any]]
"""Choices that were met, by id; for each of their options what had been met after it."""


def everywhere(value: Any, path: str = "", scope: str = "", met: Met | None = None) -> Iterator[tuple[str, OneOf]]:
    """Every choice in a value with its path, in reading order; none that is in `met`, which is added to."""
    met = {} if met is None else met
    if isinstance(value, OneOf):
        before = met.get(id(value))
        if before is None:
            yield decision_path(value, path, scope), value
        after: list[Met] = []
        for i, option in enumerate(value.options):
            # What one option decides is open in another. Met again, it is open no more, but for what a `Repeat` in it
            # has anew wherever it stands.
            inside: Met = {**met, id(value): (), **(before[i] if before else {})}
            yield from everywhere(option, path, scope, inside)
            after.append(inside)
        met[id(value)] = after
    elif isinstance(value, Repeat):
        yield from everywhere(value.times, join(path, "times"), scope, met)
        most = max(value.times.options) if isinstance(value.times, OneOf) else value.times
        for name, child in (*value.each.items(), *value.first.items()):
            yield from everywhere(child, join(path, name), scope, met)
        for i in range(min(most, 1) if value.shared else most):
            inner = join(path, "each" if value.shared else str(i))
            yield from everywhere(value.block, inner, inner, dict(met))
    elif isinstance(value, tuple):
        for i, child in enumerate(value):
            yield from everywhere(child, join(path, str(i)), scope, met)
    else:
        for name, child in open_children(value):
            yield from everywhere(child, join(path, name), scope, met)

"""Open choices, and the one walk over them.

A template is a block with choices left open. `resolve` walks it in reading order, asks `decide` at every open
choice that is active, and returns the template with nothing open. Sampling, decoding, mutating, enumerating, a
controller's next token: each is one `decide` function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nas.errors import SpaceError

Label: TypeAlias = str | int | float | bool | None
Genotype: TypeAlias = Mapping[str, Label]


class OneOf:
    """An open choice among `options`, standing in any field of any block.

    An option may be a value, or a block that itself contains open choices (a conditional choice). The same
    `OneOf` object met again in the same scope, or in a scope inside it, is the same decision.

    Args:
        options: two or more. Numbers, strings, booleans and None are their own labels; a block's label is its
            class in snake case (`inverted_residual`).
        name: the decision's name; by default, the field in which the choice is first met.
        labels: given where two options would have the same label.

    Raises SpaceError if labels repeat or there is no option.
    """

    __slots__ = ("_index", "labels", "name", "options", "ordinal")

    options: tuple[Any, ...]
    labels: tuple[Label, ...]
    name: str | None
    ordinal: bool
    _index: dict[Label, int]

    # Typed as Any, because an open choice may stand wherever a value may: `Conv(width=OneOf(16, 32))`.
    def __new__(cls, *options: Any, name: str | None = None, labels: tuple[Label, ...] | None = None) -> Any:
        if not options:
            raise SpaceError(f"OneOf(name={name!r}) has no options; give at least one")
        self = super().__new__(cls)
        self.options = options
        self.name = name
        self.labels = labels or tuple(label_of(option) for option in options)
        if len(self.labels) != len(options) or len(set(self.labels)) != len(options):
            raise SpaceError(
                f"OneOf(name={name!r}) has {len(options)} options with the labels {list(self.labels)}; "
                "labels must be unique: pass labels=(...)"
            )
        self._index = {label: i for i, label in enumerate(self.labels)}
        # Predictors, TPE and supernets use the order of numbers.
        self.ordinal = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.options, {"name": self.name, "labels": self.labels}

    def __len__(self) -> int:
        return len(self.options)

    def index(self, label: Any) -> int | None:
        """Position of a label, None if it is not among the labels (`True` is not `1`)."""
        i = self._index.get(label)
        return i if i is None or isinstance(self.labels[i], bool) == isinstance(label, bool) else None

    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(str, self.labels))})"


@dataclass(frozen=True)
class Repeat:
    """`times` copies of a block, one after the other; resolves to a `Stage`.

    Args:
        block: the repeated block; every repetition is a scope, so each has decisions of its own.
        times: how many; may be open.
        each: fields that every repetition has instead of the block's own, decided once (`{"width": OneOf(24, 32)}`).
        first: fields that the first repetition has instead (`{"stride": 2}`).
        shared: all repetitions take the same decisions.
    """

    block: Any
    times: int | OneOf
    each: Mapping[str, Any] = field(default_factory=dict)
    first: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


class Decision:
    """An active open choice as `decide` sees it: a readable path and the labels to choose from."""

    __slots__ = ("choice", "path")

    def __init__(self, path: str, choice: OneOf) -> None:
        self.path = path
        self.choice = choice

    @property
    def labels(self) -> tuple[Label, ...]:
        return self.choice.labels

    @property
    def ordinal(self) -> bool:
        """The labels are numbers, and their order means something."""
        return self.choice.ordinal

    def __len__(self) -> int:
        return len(self.choice.labels)

    def __repr__(self) -> str:
        return f"Decision({self.path}: {list(self.labels)})"

    def index(self, label: Any) -> int | None:
        """Position of a label, None if it is not among the labels."""
        return self.choice.index(label)


Decide: TypeAlias = Callable[[Decision], int]


def label_of(option: Any) -> Label:
    """What an option is called in a genotype; raises SpaceError for what has no label."""
    if option is None or isinstance(option, str | int | float | bool):
        return option
    label = getattr(option, "label", None)
    if isinstance(label, str):
        return label
    if isinstance(option, tuple) and all(isinstance(o, str | int | float | bool) for o in option):
        return "-".join(map(str, option))
    raise SpaceError(f"option {option!r} has no label: expected a number, string, tuple of them or block; pass labels=")


def resolve(template: Any, decide: Decide) -> tuple[Any, dict[str, Label]]:
    """Close every open choice of a template.

    Args:
        template: a block (or any value) with open choices.
        decide: called with each active decision in reading order, returns the index of the option.

    Returns the template with nothing open, and the genotype: path to label for each active decision.
    Raises SpaceError if two different choices have the same path, or `decide` answers outside the options.
    """
    walk = _Walk(decide)
    return walk.value(template, "", _Scope(None, "")), walk.genotype


class _Scope:
    """Decisions taken so far in one scope; a scope sees those of the scopes around it."""

    __slots__ = ("outer", "path", "taken")

    def __init__(self, outer: _Scope | None, path: str) -> None:
        self.outer, self.path = outer, path
        self.taken: dict[int, int] = {}

    def find(self, choice: OneOf) -> int | None:
        scope: _Scope | None = self
        while scope is not None:
            index = scope.taken.get(id(choice))
            if index is not None:
                return index
            scope = scope.outer
        return None


class _Walk:
    __slots__ = ("decide", "genotype")

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.genotype: dict[str, Label] = {}

    def value(self, value: Any, path: str, scope: _Scope) -> Any:
        if isinstance(value, OneOf):
            return self.choice(value, path, scope)
        if isinstance(value, Repeat):
            return self.repeat(value, path, scope)
        if isinstance(value, tuple):
            return tuple([self.value(v, join(path, str(i)), scope) for i, v in enumerate(value)])
        inside = open_children(value)
        if not inside:
            return value
        changes = {name: self.value(child, join(path, name), scope) for name, child in inside}
        return value.with_children(changes)

    def choice(self, choice: OneOf, path: str, scope: _Scope) -> Any:
        index = scope.find(choice)
        if index is None:
            decision = Decision(decision_path(choice, path, scope.path), choice)
            if decision.path in self.genotype:
                raise SpaceError(f"two different choices share the path {decision.path!r}; give one OneOf a name=")
            index = self.decide(decision)
            if not 0 <= index < len(choice.options):
                raise SpaceError(f"decision {decision.path!r}: option {index} of {len(choice)} was chosen")
            scope.taken[id(choice)] = index
            self.genotype[decision.path] = choice.labels[index]
        return self.value(choice.options[index], path, scope)

    def repeat(self, repeat: Repeat, path: str, scope: _Scope) -> Any:
        from nas.blocks.base import stage

        times = self.value(repeat.times, join(path, "times"), scope)
        each = {name: self.value(v, join(path, name), scope) for name, v in repeat.each.items()}
        first = {name: self.value(v, join(path, name), scope) for name, v in repeat.first.items()}
        blocks: list[Any] = []
        for i in range(times):
            if repeat.shared and blocks:
                blocks.append(blocks[0])
            else:
                inner = join(path, "each" if repeat.shared else str(i))
                blocks.append(self.value(repeat.block, inner, _Scope(scope, inner)))
        return stage(tuple(blocks), each, first)


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


def open_children(value: Any) -> tuple[tuple[str, Any], ...]:
    """Name and value of the parts of a block in which something is open; nothing for other values."""
    found: tuple[tuple[str, Any], ...] = getattr(value, "open_children", ())
    return found


def is_open(value: Any) -> bool:
    """Whether there is an open choice (or an unresolved `Repeat`) anywhere inside."""
    if isinstance(value, OneOf | Repeat):
        return True
    if isinstance(value, tuple):
        return any(is_open(v) for v in value)
    return bool(open_children(value))


def survey(template: Any) -> dict[str, tuple[Label, ...]]:
    """Every decision that can become active, by path, with the union of its labels, in reading order.

    Visits all options instead of choosing one; so it is the map of the space, not a walk through it.
    """
    found: dict[str, dict[Label, None]] = {}
    for path, choice in _everywhere(template, "", _Scope(None, "")):
        found.setdefault(path, {}).update(dict.fromkeys(choice.labels))
    return {path: tuple(labels) for path, labels in found.items()}


def _everywhere(value: Any, path: str, scope: _Scope) -> Iterator[tuple[str, OneOf]]:
    if isinstance(value, OneOf):
        if scope.find(value) is None:
            yield decision_path(value, path, scope.path), value
            before = {**scope.taken, id(value): 0}
            for option in value.options:
                scope.taken = dict(before)  # what one option decides is open again in another
                yield from _everywhere(option, path, scope)
            scope.taken = before
    elif isinstance(value, Repeat):
        yield from _everywhere(value.times, join(path, "times"), scope)
        most = max(value.times.options) if isinstance(value.times, OneOf) else value.times
        for name, child in (*value.each.items(), *value.first.items()):
            yield from _everywhere(child, join(path, name), scope)
        for i in range(1 if value.shared else most):
            inner = join(path, "each" if value.shared else str(i))
            yield from _everywhere(value.block, inner, _Scope(scope, inner))
    elif isinstance(value, tuple):
        for i, child in enumerate(value):
            yield from _everywhere(child, join(path, str(i)), scope)
    else:
        for name, child in open_children(value):
            yield from _everywhere(child, join(path, name), scope)

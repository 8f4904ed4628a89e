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

_MISSING = object()


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

    __slots__ = ("labels", "name", "options", "ordinal")

    options: tuple[Any, ...]
    labels: tuple[Label, ...]
    name: str | None
    ordinal: bool

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
        # Predictors, TPE and supernets use the order of numbers.
        self.ordinal = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.options, {"name": self.name, "labels": self.labels}

    def __len__(self) -> int:
        return len(self.options)

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
    """An active open choice as `decide` sees it.

    Attributes:
        path: where it is, readable and unique.
        labels: what there is to choose from.
        ordinal: the labels are numbers, and their order means something.
    """

    __slots__ = ("_positions", "labels", "ordinal", "path")

    def __init__(self, path: str, choice: OneOf) -> None:
        self.path = path
        self.labels = choice.labels
        self.ordinal = choice.ordinal
        self._positions = {label: i for i, label in enumerate(choice.labels)}

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Decision({self.path}: {list(self.labels)})"

    def index(self, label: Any) -> int | None:
        """Position of a label, None if it is not among the labels (`True` is not `1`)."""
        try:
            i = self._positions.get(label)
        except TypeError:  # not hashable
            return None
        return i if i is None or (self.labels[i].__class__ is bool) is (label.__class__ is bool) else None

    def index_in(self, genotype: Genotype) -> int | None:
        """Position of the label that a genotype has here, None if it has none that is known."""
        return self.index(genotype.get(self.path, _MISSING))


Decide: TypeAlias = Callable[[Decision], int]


class Following:
    """The `decide` that takes a genotype's decisions; raises SpaceError where it has none or an unknown one.

    What came of a repetition's decisions is remembered, so that a neighbour costs a look-up for each layer.
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
    return Walker(template).resolve(decide)


# What a part of a template does when walked: takes `decide`, the genotype so far, and the decisions that its scope
# sees (the choice's id to the option's index); returns the closed part.
_Visit: TypeAlias = Callable[[Decide, dict[str, Label], dict[int, int]], Any]

_KNOWN = 4096  # results that a part remembers


class Walker:
    """A template made ready for many walks: paths and decisions are worked out at the first visit of each part.

    The same decisions in a part give the same object, so that what it remembers (its cost, its graph) is found
    again. `build=False` walks without putting blocks together, where only the genotype is wanted.
    """

    def __init__(self, template: Any, *, build: bool = True) -> None:
        self._visit = _part(template, "", "", build)

    def resolve(self, decide: Decide) -> tuple[Any, dict[str, Label]]:
        """See `resolve`."""
        genotype: dict[str, Label] = {}
        return self._visit(decide, genotype, {}), genotype


def _part(value: Any, path: str, scope: str, build: bool) -> _Visit:
    if isinstance(value, OneOf):
        return _choice(value, path, scope, build)
    if isinstance(value, Repeat):
        return _repetition(value, path, scope, build)
    if isinstance(value, tuple) and is_open(value):
        parts = [_part(v, join(path, str(i)), scope, build) for i, v in enumerate(value)]
        return _together(parts, lambda *values: values, build)
    inside = open_children(value)
    if inside:
        names = [name for name, _ in inside]
        parts = [_part(child, join(path, name), scope, build) for name, child in inside]
        return _together(parts, lambda *values: value.with_children(dict(zip(names, values, strict=True))), build)
    return lambda decide, genotype, taken: value


def _choice(choice: OneOf, path: str, scope: str, build: bool) -> _Visit:
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
            part = parts[index] = _part(options[index], path, scope, build)
        return part(decide, genotype, taken)

    return visit


def _repetition(template: Repeat, path: str, scope: str, build: bool) -> _Visit:
    from nas.blocks.base import stage

    times = _part(template.times, join(path, "times"), scope, build)
    shared, n_each = template.shared, len(template.each)
    named = (*template.each.items(), *template.first.items())
    fields = [_part(value, join(path, name), scope, build) for name, value in named]
    scopes: list[_Visit] = []

    def walk(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> list[Any]:
        n: int = times(decide, genotype, taken)
        values = [field(decide, genotype, taken) for field in fields]
        for i in range(min(n, 1) if shared else n):
            if i == len(scopes):
                scopes.append(_scope(template.block, join(path, "each" if shared else str(i)), build))
            values.append(scopes[i](decide, genotype, taken))
        return values + values[-1:] * (n - 1) if shared and n else values

    def make(*values: Any) -> Any:
        each = dict(zip(template.each, values, strict=False))
        first = dict(zip(template.first, values[n_each:], strict=False))
        return stage(values[len(fields) :], each, first)

    return _remembering(walk, make) if build else walk


def _scope(block: Any, path: str, build: bool) -> _Visit:
    """A repetition: it sees what was decided around it, and nobody sees what it decides."""
    part = _part(block, path, path, build)
    if not build:
        return lambda decide, genotype, taken: part(decide, genotype, dict(taken))
    found = list(_everywhere(block, path, path, set()))
    paths = tuple(dict.fromkeys([path for path, _ in found]))
    choices = list(dict.fromkeys(id(choice) for _, choice in found))
    known: dict[tuple[Any, ...], tuple[Any, dict[str, Label]]] = {}

    def visit(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> Any:
        if decide.__class__ is not Following:
            return part(decide, genotype, dict(taken))
        get = decide.genotype.get
        here: list[Any] = [get(path, _MISSING) for path in paths]
        if not taken.keys().isdisjoint(choices):
            here += map(taken.get, choices)
        key = tuple(here)
        result = known.get(key)
        if result is None:
            inside: dict[str, Label] = {}
            result = part(decide, inside, dict(taken)), inside
            _remember(known, key, result)
        before = len(genotype)
        genotype.update(result[1])
        if len(genotype) != before + len(result[1]):
            raise SpaceError(f"two different choices share a path inside {path!r}; give one OneOf a name=")
        return result[0]

    return visit


def _together(parts: list[_Visit], make: Callable[..., Any], build: bool) -> _Visit:
    def walk(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> list[Any]:
        return [part(decide, genotype, taken) for part in parts]

    return _remembering(walk, make) if build else walk


def _remembering(walk: Callable[..., list[Any]], make: Callable[..., Any]) -> _Visit:
    """Visit that makes something of the values inside, the same object whenever they are the same objects."""
    known: dict[tuple[int, ...], tuple[list[Any], Any]] = {}

    def visit(decide: Decide, genotype: dict[str, Label], taken: dict[int, int]) -> Any:
        values = walk(decide, genotype, taken)
        key = tuple(map(id, values))
        found = known.get(key)
        if found is None:
            found = values, make(*values)  # keeps the values, so that no id is given out again
            _remember(known, key, found)
        return found[1]

    return visit


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
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
    for path, choice in _everywhere(template, "", "", set()):
        found.setdefault(path, {}).update(dict.fromkeys(choice.labels))
    return {path: tuple(labels) for path, labels in found.items()}


def _everywhere(value: Any, path: str, scope: str, taken: set[int]) -> Iterator[tuple[str, OneOf]]:
    if isinstance(value, OneOf):
        if id(value) not in taken:
            taken.add(id(value))
            yield decision_path(value, path, scope), value
            for option in value.options:
                yield from _everywhere(option, path, scope, set(taken))  # what one option decides is open in another
    elif isinstance(value, Repeat):
        yield from _everywhere(value.times, join(path, "times"), scope, taken)
        most = max(value.times.options) if isinstance(value.times, OneOf) else value.times
        for name, child in (*value.each.items(), *value.first.items()):
            yield from _everywhere(child, join(path, name), scope, taken)
        for i in range(min(most, 1) if value.shared else most):
            inner = join(path, "each" if value.shared else str(i))
            yield from _everywhere(value.block, inner, inner, set(taken))
    elif isinstance(value, tuple):
        for i, child in enumerate(value):
            yield from _everywhere(child, join(path, str(i)), scope, taken)
    else:
        for name, child in open_children(value):
            yield from _everywhere(child, join(path, name), scope, taken)

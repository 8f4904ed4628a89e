"""Open choices: what a template is written with. `nas.walk` closes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nas.errors import SpaceError

Label: TypeAlias = str | int | float | bool | None
Genotype: TypeAlias = Mapping[str, Label]

MISSING = object()


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
        self.labels = tuple(labels or map(label_of, options))
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

    def __post_init__(self) -> None:
        options = self.times.options if isinstance(self.times, OneOf) else (self.times,)
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in options):
            raise SpaceError(f"Repeat(times={self.times}): expected a number of repetitions, 0 or more, or OneOf such")


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
        return self.index(genotype.get(self.path, MISSING))


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

"""Constructor arguments of a class, and what is computed from them. They become text once the arguments have names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nas.export.leaves import REQUIRED, Argument

MISSING = object()  # the value of an instance that has no use for an argument
Vector: TypeAlias = list[Any]  # one value per instance of a class


def agree(a: Vector, b: Vector) -> bool:
    """Whether two vectors are equal wherever both have a value, and there is such a place."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not MISSING and y is not MISSING]
    return bool(pairs) and all(x == y and type(x) is type(y) for x, y in pairs)


@dataclass(eq=False)
class Parameter:
    """An argument of a constructor.

    Attributes:
        base: what to call it, if nothing else in the class is called so.
        kind: what its values mean; see `leaves.Slot`.
        values: of every instance.
        role: the channels of input k (`in0`), of the output (`out`), or both (`through`).
        lines: the ids of the lines that use it, once for each use; the first is where it was met.
        formula: what it is computed from, if it is no argument but a variable of the constructor.
    """

    base: str
    kind: str
    values: Vector
    role: str = ""
    lines: list[str] = field(default_factory=list)
    formula: Sum | None = None
    name: str = ""
    default: Any = REQUIRED

    def take(self, vector: Vector) -> None:
        """Fill in the instances that had no value."""
        self.values = [b if a is MISSING else a for a, b in zip(self.values, vector, strict=True)]

    @property
    def known(self) -> bool:
        """Whether every instance has a value."""
        return MISSING not in self.values

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Sum:
    """Multiples of arguments, or of arguments divided by a number, and a constant."""

    terms: tuple[tuple[Parameter, int, int], ...] = ()  # argument, divisor, factor
    constant: int = 0

    @classmethod
    def of(cls, parameter: Parameter, *, divisor: int = 1, factor: int = 1, constant: int = 0) -> Sum:
        """`parameter // divisor * factor + constant`."""
        return cls(((parameter, divisor, factor),), constant)

    @property
    def alone(self) -> Parameter | None:
        """The argument, if it is nothing but one."""
        return self.terms[0][0] if len(self.terms) == 1 and self == Sum.of(self.terms[0][0]) else None

    def values(self, count: int) -> Vector:
        """In every instance: missing where an argument is, None where one is no number."""
        if (alone := self.alone) is not None:
            return alone.values
        found: Vector = []
        for i in range(count):
            terms = [(p.values[i], d, k) for p, d, k in self.terms]
            if any(v is MISSING for v, _, _ in terms):
                found.append(MISSING)
            else:
                numbers = all(isinstance(v, int) for v, _, _ in terms)
                found.append(self.constant + sum(v // d * k for v, d, k in terms) if numbers else None)
        return found

    def __add__(self, other: Sum) -> Sum:
        total = Counter[tuple[Parameter, int]]()
        for p, d, k in (*self.terms, *other.terms):
            total[p, d] += k
        return Sum(tuple((p, d, k) for (p, d), k in total.items()), self.constant + other.constant)

    def __mul__(self, factor: int) -> Sum:
        return Sum(tuple((p, d, k * factor) for p, d, k in self.terms), self.constant * factor)

    def __str__(self) -> str:
        texts = []
        for p, d, k in self.terms:
            name = f"({p.name})" if " " in p.name and (d, k) != (1, 1) else p.name
            part = name if d == 1 else f"{name} // {d}"
            texts.append(part if k == 1 else f"{k} * {part}" if d == 1 else f"{k} * ({part})")
        return " + ".join([*texts, str(self.constant)] if self.constant or not texts else texts)


def quoted(value: Any) -> str:
    """A value as Python, strings in double quotes where that needs no escapes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(quoted, value))}{',' * (len(value) == 1)})"
    text = repr(value)
    plain = isinstance(value, str) and '"' not in value and text[0] == "'"
    return f'"{text[1:-1]}"' if plain else text


@dataclass
class Literal:
    """The same value in every instance."""

    value: Any

    def __str__(self) -> str:
        return quoted(self.value)


@dataclass
class Flag:
    """A value that is true or false. Which argument it is, or the opposite of which, is settled last.

    `kind`: `step` if it says whether a step is there, else `flag`.
    """

    vector: Vector
    base: str
    line: str
    kind: str = "flag"
    literal: bool | None = None
    parameter: Parameter | None = None
    opposite: bool = False

    def settle(self, parameters: list[Parameter]) -> None:
        """Find the argument that it is, or add one."""
        given = [v for v in self.vector if v is not MISSING]
        if len(set(given)) == 1:
            self.literal = given[0]
            return
        for p in parameters:
            for opposite in (False, True):
                # Steps may come together, and a bias stands where a norm does not; the rest would be coincidence.
                related = p.kind == "step" if opposite else p.base == self.base or p.kind == self.kind == "step"
                vector = [v if v is MISSING else v != opposite for v in self.vector]
                if p.kind in ("flag", "step") and related and agree(p.values, vector):
                    p.take(vector)
                    self.parameter, self.opposite = p, opposite
                    return
        self.parameter = Parameter(self.base, self.kind, list(self.vector), lines=[self.line])
        parameters.append(self.parameter)

    def __str__(self) -> str:
        return str(self.literal) if self.parameter is None else f"{'not ' * self.opposite}{self.parameter.name}"


Solved: TypeAlias = Sum | Flag | Literal


@dataclass
class Condition:
    """When a step is there: a test of arguments."""

    template: str
    operands: Sequence[Parameter | Flag]
    test: Callable[..., bool] = bool

    def holds(self, count: int) -> list[bool]:
        """In every instance."""
        vectors = [p.values for p in self.operands if isinstance(p, Parameter)]
        return [self.test(*[v[i] for v in vectors]) for i in range(count)]

    def __str__(self) -> str:
        return self.template.format(*self.operands)


def comparisons(
    pairs: Sequence[tuple[Parameter, Parameter]], strides: Sequence[Parameter], *, equal: bool
) -> list[Condition]:
    """What people compare to know whether a shortcut fits (`equal`) or a layer is needed, the simplest first."""
    sign, word = ("==", "and") if equal else ("!=", "or")
    found = [Condition(f"{{}} {sign} {{}}", pair, lambda a, b: (a == b) is equal) for pair in pairs]
    for stride in strides:
        found += [
            Condition(
                f"{{}} {sign} 1 {word} {{}} {sign} {{}}", (stride, *pair), lambda s, a, b: (s == 1 and a == b) is equal
            )
            for pair in pairs
        ]
        found.append(Condition(f"{{}} {sign} 1", (stride,), lambda s: (s == 1) is equal))
    return found


@dataclass
class Made:
    """A call whose arguments are known. Each is `Solved`, or again a call."""

    head: Any  # as of `leaves.Make`
    arguments: list[tuple[Argument, Any]]

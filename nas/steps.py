"""The decisions of a template one after the other, without the blocks: a machine whose states are shared.

What is decided next depends on few of the decisions before. So a state stands for all beginnings that leave the same
parts to be walked, and is worked out when first met: after that a walk costs a look-up for each decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

from nas.choices import MISSING, Decide, Decision, Genotype, Label, OneOf, Repeat, is_open, open_children
from nas.errors import SpaceError
from nas.walk import decision_path, join

_KNOWN = 65536  # states that are remembered


class _Part(NamedTuple):
    """What is still to be walked: a value, or what a `Repeat` becomes once `times` is decided."""

    value: Any
    path: str
    scope: str
    kind: str = "value"  # or `copies`: fields and repetitions; `scope`: one repetition


# What is left in a scope, and the options taken that it can see (the choice's id to the option's index).
_Frame: TypeAlias = tuple[tuple[_Part, ...], dict[int, int]]


class Step:
    """A state: the decision to take, and for each label that was met, the label and the step after it."""

    __slots__ = ("_choice", "_here", "_outer", "decision", "known", "labels", "path")

    def __init__(self, outer: tuple[_Frame, ...], here: _Frame) -> None:
        part = here[0][0]
        self._choice, self._outer, self._here = part.value, outer, here
        self.decision = Decision(decision_path(part.value, part.path, part.scope), part.value)
        self.path, self.labels = self.decision.path, self.decision.labels
        self.known: dict[Any, tuple[Label, Step]] = {}

    def after(self, index: int) -> tuple[_Frame, ...]:
        """What is left once an option is taken."""
        (part, *rest), taken = self._here
        option = part._replace(value=self._choice.options[index])
        return *self._outer, ((option, *rest), {**taken, id(self._choice): index})


class Steps:
    """The machine of a template: `first` is where a walk begins, `END` where it is over."""

    def __init__(self, template: Any) -> None:
        self._template = template
        self._inside: dict[int, frozenset[int]] = {}  # ids of the choices in a part, by the part's id
        self._telling: set[int] = set()  # choices of which it matters what was taken, not only that it was
        self._known: dict[Any, Step] = {}
        self._choices(template)
        self.first = self._begin()

    def _begin(self) -> Step:
        return self._next((((_Part(self._template, "", ""),), {}),))

    def after(self, step: Step, index: int) -> tuple[Label, Step]:
        """The label of an option, and the step after it."""
        label = step.labels[index]
        found = step.known.get(label)
        if found is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
                self.first = self._begin()
            found = step.known[label] = label, self._next(step.after(index))
        return found

    def walk(self, decide: Decide) -> dict[str, Label]:
        """The genotype of the decisions that `decide` takes; see `nas.walk.resolve`."""
        genotype: dict[str, Label] = {}
        step = self.first
        while step is not END:
            index, path = decide(step.decision), step.path
            if not 0 <= index < len(step.labels):
                raise SpaceError(f"decision {path!r}: option {index} of {len(step.labels)} was chosen")
            if path in genotype:
                raise SpaceError(f"two different choices share the path {path!r}; give one OneOf a name=")
            genotype[path], step = self.after(step, index)
        return genotype

    def change(
        self, genotype: Genotype, changes: Mapping[str, Callable[[int, int], int]], fill: Callable[[int], int]
    ) -> dict[str, Label]:
        """The genotype with other options at some decisions.

        Args:
            genotype: where to begin.
            changes: path to a function of the option's index and the number of options, which gives the new index.
            fill: index of the option, given their number, for each decision that the genotype does not have.
        """
        made: dict[str, Label] = {}
        get, step = genotype.get, self.first
        while step is not END:
            path = step.path
            found = step.known.get(get(path, MISSING))
            if found is None or path in changes:
                index = step.decision.index_in(genotype)
                if index is None:
                    index = fill(len(step.labels))
                elif path in changes:
                    index = changes[path](index, len(step.labels))
                found = self.after(step, index)
            made[path], step = found
        return made

    def cross(self, a: Genotype, b: Genotype, coins: Iterable[bool], fill: Callable[[int], int]) -> dict[str, Label]:
        """Each decision from `a` where the coin says so, else from `b`; from the other, or `fill`, if it lacks it."""
        made: dict[str, Label] = {}
        step, coin = self.first, iter(coins)
        while step is not END:
            path = step.path
            one, other = (a, b) if next(coin) else (b, a)
            label = one.get(path, MISSING)
            found = step.known.get(other.get(path, MISSING) if label is MISSING else label)
            if found is None:
                index = step.decision.index_in(one)
                if index is None:
                    index = step.decision.index_in(other)
                found = self.after(step, fill(len(step.labels)) if index is None else index)
            made[path], step = found
        return made

    def _next(self, frames: tuple[_Frame, ...]) -> Step:
        """Go on to the next open choice."""
        while frames:
            *outer, (todo, taken) = frames
            if not todo:
                frames = tuple(outer)
                continue
            part, rest = todo[0], todo[1:]
            if part.kind == "scope":  # it sees what was decided around it, and nobody sees what it decides
                frames = (*outer, (rest, taken), ((part._replace(kind="value"),), taken))
            elif isinstance(part.value, OneOf) and id(part.value) not in taken:
                return self._state(frames)
            else:
                frames = (*outer, ((*self._parts(part, taken), *rest), taken))
        return END

    def _parts(self, part: _Part, taken: dict[int, int]) -> list[_Part]:
        """What a part consists of, in reading order."""
        value, path, scope, kind = part
        if isinstance(value, OneOf):
            return [part._replace(value=value.options[taken[id(value)]])]
        if isinstance(value, Repeat) and kind == "value":
            return [_Part(value.times, join(path, "times"), scope), part._replace(kind="copies")]
        if isinstance(value, Repeat):
            times = value.times
            n = times.options[taken[id(times)]] if isinstance(times, OneOf) else times
            names = ["each"] * min(n, 1) if value.shared else map(str, range(n))
            inner = [join(path, name) for name in names] if is_open(value.block) else []
            fields = [(k, v) for k, v in (*value.each.items(), *value.first.items()) if is_open(v)]
            return [_Part(v, join(path, name), scope) for name, v in fields] + [
                _Part(value.block, at, at, "scope") for at in inner
            ]
        children = enumerate(value) if isinstance(value, tuple) else open_children(value)
        return [_Part(child, join(path, str(name)), scope) for name, child in children if is_open(child)]

    def _state(self, frames: tuple[_Frame, ...]) -> Step:
        """The step at the open choice that comes first in the last frame, shared with all that go on as it does."""
        kept: list[_Frame] = []
        for todo, taken in frames:
            inside = frozenset[int]().union(*[self._choices(part.value) for part in todo])
            seen = {i: index if i in self._telling else 0 for i, index in taken.items() if i in inside}
            kept.append((todo, seen))
        key = tuple(
            [(tuple([(id(part.value), *part[1:]) for part in todo]), frozenset(taken.items())) for todo, taken in kept]
        )
        if key not in self._known:
            self._known[key] = Step(tuple(kept[:-1]), kept[-1])
        return self._known[key]

    def _choices(self, value: Any) -> frozenset[int]:
        """Ids of all choices in a value."""
        found = self._inside.get(id(value))
        if found is None:
            found = frozenset()
            if isinstance(value, OneOf):
                found = found.union([id(value)], *map(self._choices, value.options))
                if any(map(is_open, value.options)):
                    self._telling.add(id(value))
            elif isinstance(value, Repeat):
                if isinstance(value.times, OneOf):
                    self._telling.add(id(value.times))
                parts = (value.times, *value.each.values(), *value.first.values(), value.block)
                found = found.union(*map(self._choices, parts))
            else:
                children = value if isinstance(value, tuple) else [child for _, child in open_children(value)]
                found = found.union(*map(self._choices, children))
            self._inside[id(value)] = found
        return found


END = Step((), (((_Part(OneOf(0), "", ""),), {})))
"""All is decided."""

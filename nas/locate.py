"""Finding a known architecture in a space: the genotype that it has there, or the nearest one.

Template and architecture are walked side by side. Every open choice tries its options; what differs has a cost, and
the cheapest few ways are followed at a time. An architecture that the space contains costs nothing all along, so it is
found; whether it really is the same network, the structural key says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log2
from typing import Any, NamedTuple

from nas.architecture import Architecture
from nas.blocks.base import Block, Stage
from nas.blocks.mobile import InvertedResidual, Separable
from nas.choices import Decision, Genotype, Label, OneOf, Repeat, open_children
from nas.errors import GraphError, SpaceError
from nas.space import Space
from nas.walk import decision_path, join

KEPT = 8
"""Ways to match that are followed at a time."""

ABSENT, OTHER, TRAINING = 4.0, 2.0, 0.01
"""Costs: a part that only one of the two has, a block of another class within a layer, dropout. A number
costs the doublings by which it misses, any other value 1; a stage the mean of its layers."""

UNTRAINED = ("dropout", "drop_path")
"""Fields that matter in training only: a network is the same without them."""


class Match(NamedTuple):
    """A genotype for an architecture: whether it is the same network (dropout aside), and what differs, in words."""

    genotype: Genotype
    exact: bool
    differs: tuple[str, ...]


def locate(space: Space, architecture: Architecture) -> Genotype | None:
    """The genotype of an architecture in a space, None if there is none.

    Dropout and stochastic depth may differ: they are training, and have no weights. Otherwise the network of the
    genotype has the architecture's structural key, so input size and number of classes are the same, too.
    """
    key = _key(architecture)
    ways = _ways(space, architecture) if key is not None else []
    return next((genotype for genotype, _ in ways if _key(space.architecture(genotype)) == key), None)


def nearest(space: Space, architecture: Architecture) -> Match:
    """The nearest genotype to an architecture, for the images and classes of the space; an exact one if there is one.

    Blocks keep their class, and numbers their value as far as the options go. A space with fewer stages has those
    that fit best; one with more repeats the last layer.

    Raises SpaceError for an architecture with layers of which the space has none, naming the first.
    """
    _check(space, architecture)
    wanted = adapted(architecture, space)
    ways = _ways(space, wanted)
    if not ways or _nothing_fits(space, ways[0][1]):
        first = next((name for name, part in _steps(space.template) if isinstance(part, Repeat)), "the template")
        raise _too_far(space, architecture, f"nothing in it fits {first}")
    key = _key(wanted)
    for genotype, differs in ways:
        if key is not None and _key(space.architecture(genotype)) == key:
            return Match(genotype, True, tuple(map(str, differs)))
    return Match(ways[0][0], False, tuple(map(str, ways[0][1])))


def adapted(architecture: Architecture, space: Space) -> Architecture:
    """An architecture for the images and classes of a space.

    It keeps its input size where the space has that, else its resolution relative to the images that it was made for.
    """
    body = _with(architecture.body, {"classes": space.classes})
    shape = architecture.input_shape
    if all(_scaled(space, factor) != shape for factor in _resolutions(space)):
        own = architecture.genotype.get("resolution", 1.0)
        shape = _scaled(space, float(own) if isinstance(own, int | float) else 1.0)
    return replace(architecture, body=body, input_shape=shape, classes=space.classes)


def _key(architecture: Architecture) -> str | None:
    """Structural key without dropout, None for what cannot be built."""
    try:
        return replace(architecture, body=_with(architecture.body, dict.fromkeys(UNTRAINED, 0.0))).key()
    except (GraphError, SpaceError):
        return None


def _with(value: Any, numbers: Mapping[str, float]) -> Any:
    """A block in which every field of these names that is a number is another one."""
    if isinstance(value, tuple):
        return tuple([_with(part, numbers) for part in value])
    if not isinstance(value, Block):
        return value
    changes: dict[str, Any] = {}
    for name, child in value.children():
        if isinstance(child, Block | tuple):
            changes[name] = _with(child, numbers)
        elif name in numbers and isinstance(child, int | float):
            changes[name] = numbers[name]
    return value.with_children(changes) if changes else value


def _scaled(space: Space, factor: float) -> tuple[int, int, int]:
    c, h, w = space.input_shape
    return c, max(1, round(h * factor)), max(1, round(w * factor))


def _resolutions(space: Space) -> tuple[float, ...]:
    found = space.resolution
    return found.options if isinstance(found, OneOf) else (found,)


# -- too far -----------------------------------------------------------------------------------------------------------


def _steps(body: Any) -> Sequence[tuple[str, Any]]:
    """Parts of a body or stage by name; one that has none is a single part."""
    steps = body.steps() if isinstance(body, Block) else None
    return (("", body),) if steps is None else steps


def _check(space: Space, architecture: Architecture) -> None:
    offered = dict.fromkeys(kind for _, part in _steps(space.template) for kind in _kinds(part))
    for name, part in _steps(architecture.body):
        if part.steps() is None:  # a stem, a pool, a head: these may be others
            continue
        for i, layer in _steps(part):
            if not any(type(form) in offered for form in _forms(layer)):
                inside = dict.fromkeys(kind.label for _, p in _steps(space.template) if isinstance(p, Repeat)
                                       for kind in _kinds(p))  # fmt: skip
                which = f"{join(name, i)} is {layer.label!r}, which the space does not have"
                raise _too_far(space, architecture, f"{which}: its layers are {', '.join(inside) or 'fixed'}")


def _kinds(template: Any) -> Iterator[type[Block]]:
    """Classes of blocks that a part of a template can become."""
    if isinstance(template, Repeat):
        yield from _kinds(template.block)
    elif isinstance(template, OneOf):
        for option in template.options:
            yield from _kinds(option)
    elif isinstance(template, Block) and template.steps() is not None:
        for _, part in _steps(template):
            yield from _kinds(part)
    elif isinstance(template, Block):
        yield type(template)


def _nothing_fits(space: Space, differs: Sequence[Difference]) -> bool:
    """Whether a template with stages got none of them from the architecture."""
    added = {difference.path for difference in differs if difference.wanted is _NONE}
    stages = {name for name, part in _steps(space.template) if isinstance(part, Repeat)}
    return bool(stages) and stages <= added


def _too_far(space: Space, architecture: Architecture, why: str) -> SpaceError:
    return SpaceError(
        f"{architecture.name} is too far from the space {space.name!r}: {why}; start from another architecture, or "
        "choose a space that has it"
    )


# -- matching ----------------------------------------------------------------------------------------------------------

_NONE = object()


class Difference(NamedTuple):
    """Where a match differs: what the architecture has there, and what the space."""

    path: str
    wanted: Any
    given: Any

    def __str__(self) -> str:
        if self.wanted is _NONE:
            return f"{self.path} added"
        if self.given is _NONE:
            return f"its {self.path} left out"
        return f"{self.path} {_word(self.given)} instead of {_word(self.wanted)}"


def _word(value: Any) -> str:
    return value.label if isinstance(value, Block) else f"{value:.4g}" if isinstance(value, float) else str(value)


class _Way(NamedTuple):
    """How far a match has come: its cost, decisions in sight (the choice's id to an option), decisions by path."""

    cost: float
    taken: dict[int, int]
    genotype: dict[str, Label]
    differs: tuple[Difference, ...]

    def charged(self, cost: float, path: str, wanted: Any, given: Any) -> _Way:
        return self._replace(cost=self.cost + cost, differs=(*self.differs, Difference(path, wanted, given)))


class _At(NamedTuple):
    """Where a part of a template stands.

    `fields`: names that are given from outside and matched there. `layer`: of another class it does not fit at all.
    """

    path: str
    scope: str
    fields: frozenset[str] = frozenset()
    layer: bool = False

    def inside(self, name: str, *, layer: bool = False) -> _At:
        return _At(join(self.path, name), self.scope, layer=layer)


def _ways(space: Space, architecture: Architecture) -> list[tuple[Genotype, tuple[Difference, ...]]]:
    """Genotypes that come near, the nearest first, and what differs; decisions of which nothing is known are first."""
    shape = architecture.input_shape
    wanted = next((f for f in _resolutions(space) if _scaled(space, f) == shape), shape[1] / space.input_shape[1])
    matcher = _Matcher(space.template)
    start = matcher.match(space.resolution, wanted, _At("resolution", ""), _Way(0.0, {}, {}, ()))
    ways = _through(start, lambda way: matcher.match(space.template, architecture.body, _At("", "", layer=True), way))
    return [(_completed(space, way.genotype), way.differs) for way in ways]


def _completed(space: Space, genotype: Genotype) -> Genotype:
    def decide(decision: Decision) -> int:
        return decision.index_in(genotype) or 0

    return space.walk(decide)


class _Matcher:
    """Matches parts of one template, and remembers what came of each."""

    def __init__(self, template: Any) -> None:
        self._known: dict[Hashable, list[_Way]] = {}
        self._choices: dict[int, frozenset[int]] = {}
        self._again = {me for me, n in Counter(_choices(template)).items() if n > 1}  # what stands in several places

    def layer(self, template: Any, wanted: Any, at: _At, way: _Way) -> list[_Way]:
        """`match`, remembered by the decisions in sight that the part has inside."""
        inside = self._choices.get(id(template))
        if inside is None:
            inside = self._choices[id(template)] = frozenset(_choices(template))
        seen = {me: index for me, index in way.taken.items() if me in inside}
        key = id(template), wanted, at, tuple(sorted(seen.items()))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self.match(template, wanted, at, _Way(0.0, seen, {}, ()))
        ways = []
        for cost, taken, genotype, differs in found:
            seen = {me: index for me, index in taken.items() if me in self._again}
            ways.append(_Way(way.cost + cost, way.taken | seen, way.genotype | genotype, way.differs + differs))
        return ways

    def match(self, template: Any, wanted: Any, at: _At, way: _Way) -> list[_Way]:
        """The cheapest ways to go on over one part of the template; none where it cannot be what is wanted."""
        if isinstance(template, OneOf):
            return self._choose(template, wanted, at, way)
        if isinstance(template, Repeat):
            return self._repeat(template, wanted, at, way)
        if isinstance(template, Block) and isinstance(wanted, Block):
            return self._block(template, wanted, at, way)
        if isinstance(template, tuple) and isinstance(wanted, tuple) and len(template) == len(wanted):
            ways = [way]
            for i, (part, other) in enumerate(zip(template, wanted, strict=True)):
                ways = _through(ways, lambda w, i=i, a=part, b=other: self.match(a, b, at.inside(str(i)), w))  # type: ignore[misc]
            return ways
        if template == wanted and isinstance(template, bool) is isinstance(wanted, bool):
            return [way]
        cost = TRAINING if at.path.rpartition(".")[2] in UNTRAINED else _distance(template, wanted)
        return [way.charged(cost, at.path, wanted, template)]

    def _choose(self, choice: OneOf, wanted: Any, at: _At, way: _Way) -> list[_Way]:
        me, path = id(choice), decision_path(choice, at.path, at.scope)
        if me in way.taken:
            return self.match(choice.options[way.taken[me]], wanted, at, way)
        found: list[_Way] = []
        for i, (option, label) in enumerate(zip(choice.options, choice.labels, strict=True)):
            decided = way._replace(taken={**way.taken, me: i}, genotype={**way.genotype, path: label})
            found += self.match(option, wanted, at, decided)
        return _cheapest(found)

    def _block(self, template: Block, wanted: Block, at: _At, way: _Way) -> list[_Way]:
        if template.steps() is not None:
            return self._parts(template, wanted, at, way) if wanted.steps() is not None else []
        form = next((form for form in _forms(wanted) if type(form) is type(template)), None)
        if form is None:
            return [] if at.layer else [way.charged(OTHER, at.path, wanted, template)]
        ways, values = [way], dict(form.children())
        for name, child in template.children():
            if name not in at.fields:
                ways = _through(ways, lambda w, n=name, c=child: self.match(c, values[n], at.inside(n), w))  # type: ignore[misc]
        return ways

    def _repeat(self, template: Repeat, wanted: Any, at: _At, way: _Way) -> list[_Way]:
        layers = [layer for _, layer in wanted.steps() or ()] if isinstance(wanted, Block) else []
        if not layers:
            return []
        ways = self.match(template.times, len(layers), at.inside("times"), way)
        for fields, among in ((template.each, layers), (template.first, layers[:1])):
            for name, child in fields.items():
                for value in dict.fromkeys(getattr(layer, name) for layer in among if hasattr(layer, name)):
                    if value is not None:
                        ways = _through(ways, lambda w, n=name, c=child, v=value: self.match(c, v, at.inside(n), w))  # type: ignore[misc]
        each, first = frozenset(template.each), frozenset((*template.each, *template.first))
        found: list[_Way] = []
        for before in ways:
            times = _value(template.times, before)
            after = [before]
            for i in range(times):
                inner = join(at.path, "each" if template.shared else str(i))
                here = _At(inner, inner, each if i else first, layer=True)
                layer = layers[min(i, len(layers) - 1)]
                after = _through(after, lambda w, a=here, v=layer: self.layer(template.block, v, a, w))  # type: ignore[misc]
                if not template.shared:  # nobody sees what a repetition decides
                    after = _cheapest([w._replace(taken=before.taken) for w in after])
            share = max(1, times)
            found += [w._replace(cost=before.cost + (w.cost - before.cost) / share, taken=before.taken) for w in after]
        return _cheapest(found)

    def _parts(self, template: Block, wanted: Block, at: _At, way: _Way) -> list[_Way]:
        """Parts one after the other: each for each if they fit, else an alignment in which both may have more."""
        ours, theirs = template.steps() or (), wanted.steps() or ()

        def pair(i: int, j: int) -> Callable[[_Way], list[_Way]]:
            return lambda w: self.layer(ours[i][1], theirs[j][1], at.inside(ours[i][0], layer=True), w)

        if len(ours) == len(theirs):
            ways = [way]
            for i in range(len(ours)):
                ways = _through(ways, pair(i, i))
            if ways:
                return ways
        table: dict[tuple[int, int], list[_Way]] = {(0, 0): [way]}
        for i in range(len(ours) + 1):
            for j in range(len(theirs) + 1):
                found = table.get((i, j), [])
                if j:
                    name, part = theirs[j - 1]
                    found = found + [w.charged(ABSENT, join(at.path, name), part, _NONE) for w in table[i, j - 1]]
                if i:
                    found = found + [self._added(*ours[i - 1], theirs[:j], at, w) for w in table[i - 1, j]]
                if i and j:
                    found = found + _through(table[i - 1, j - 1], pair(i - 1, j - 1))
                table[i, j] = _cheapest(found)
        return table[len(ours), len(theirs)]

    def _added(self, name: str, part: Any, before: Sequence[tuple[str, Block]], at: _At, way: _Way) -> _Way:
        """A part that the architecture does not have; a stage repeats the last layer of what came before."""
        here = at.inside(name, layer=True)
        if not isinstance(part, Repeat):
            return way.charged(ABSENT, here.path, _NONE, part)
        last = next((steps[-1][1] for _, block in reversed(before) if (steps := block.steps())), None)
        ways = [] if last is None else self.layer(part, Stage((last,)), here, way)
        most = ways[0]._replace(cost=way.cost, differs=way.differs) if ways else way
        return most.charged(ABSENT, here.path, _NONE, part)


def _forms(block: Block) -> Iterator[Block]:
    """The block, and how else the same network can be written."""
    yield block
    if isinstance(block, InvertedResidual) and block.expansion == 1:
        yield Separable(
            block.width, block.kernel, block.stride, block.se, block.activation, block.norm, residual=True, linear=True
        )
    elif isinstance(block, Separable) and block.residual and block.linear and not block.pre_activation:
        yield InvertedResidual(
            block.width, block.kernel, block.stride, 1, block.se, block.activation, block.norm
        )  # fmt: skip


def _choices(template: Any) -> Iterator[int]:
    """Ids of the open choices in a template, as often as they stand in it."""
    if isinstance(template, OneOf):
        yield id(template)
        inside: Iterable[Any] = template.options
    elif isinstance(template, Repeat):
        inside = (template.times, *template.each.values(), *template.first.values(), template.block)
    else:
        inside = template if isinstance(template, tuple) else [child for _, child in open_children(template)]
    for part in inside:
        yield from _choices(part)


def _value(choice: Any, way: _Way) -> Any:
    return choice.options[way.taken[id(choice)]] if isinstance(choice, OneOf) else choice


def _through(ways: Iterable[_Way], step: Callable[[_Way], list[_Way]]) -> list[_Way]:
    return _cheapest([after for way in ways for after in step(way)])


def _cheapest(ways: list[_Way]) -> list[_Way]:
    """The cheapest ways, one for each set of decisions in sight."""
    if len(ways) < 2:
        return ways
    found: dict[frozenset[tuple[int, int]], _Way] = {}
    for way in sorted(ways, key=lambda way: way.cost):
        found.setdefault(frozenset(way.taken.items()), way)
    return list(found.values())[:KEPT]


def _distance(a: Any, b: Any) -> float:
    """Doublings between two numbers, 1 between other values that are not equal."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in (a, b))
    return abs(log2(a / b)) if numbers else 1.0

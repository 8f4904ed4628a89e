"""All distinct blocks that a space can contain, each on every shape at which it can stand.

A walk over decisions, part by part, that keeps nothing of the way but the shapes it can lead to: a space of 10^37
networks has some ten thousand blocks. A choice that stands in two parts is taken as open in each, so there may be a
few blocks more than can occur, never fewer.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from nas.blocks.base import Block, Chain, stage
from nas.choices import OneOf, Repeat
from nas.counting import count
from nas.errors import GraphError, SpaceError
from nas.ops import Shape
from nas.pricing import Placed, leaves, output
from nas.space import Space
from nas.walk import Walker, every

MOST = 100_000
"""Ways in which one block can be closed, up to which they are gone through."""


def blocks(space: Space) -> dict[str, Placed]:
    """Every block that computes something, with the shape it reads, by the key of its graph (`nas.keys`).

    Raises SpaceError where one block alone has more than `MOST` settings, as a cell does.
    """
    reach = _Reach(space.name)
    reach.after(space.template, {space.shape_at(factor) for factor in _closings(space.resolution)})
    return reach.found


def key(block: Block, shape: Shape) -> str | None:
    """Key of a block's graph, None if there is nothing in it. Raises GraphError where it cannot be built."""
    graph = block.lower(shape)
    return graph.key() if graph.output else None


class _Reach:
    def __init__(self, name: str) -> None:
        self.found: dict[str, Placed] = {}
        self._name = name
        self._known: dict[tuple[int, Shape], Shape | None] = {}
        self._kept: list[Block] = []  # so that no id is given out again

    def after(self, value: Any, shapes: set[Shape]) -> set[Shape]:
        """Shapes behind a part of a template that reads these shapes; notes every block on the way."""
        if isinstance(value, OneOf):
            return set[Shape]().union(*[self.after(option, shapes) for option in value.options])
        if isinstance(value, Chain):
            for _, part in value.parts:
                shapes = self.after(part, shapes)
            return shapes
        if isinstance(value, Repeat):
            return self._repeated(value, shapes)
        return self._closed(self._all(value), shapes)

    def _closed(self, options: list[Block], shapes: set[Shape]) -> set[Shape]:
        found = (self._noted(block, shape) for block in options for shape in shapes)
        return {shape for shape in found if shape is not None}

    def _repeated(self, repeat: Repeat, shapes: set[Shape]) -> set[Shape]:
        times = repeat.times.options if isinstance(repeat.times, OneOf) else (repeat.times,)
        options = self._all(repeat.block)
        after = set(shapes) if 0 in times else set()
        for each, first in product(_fields(repeat.each), _fields(repeat.first)):
            # Where all repetitions are the same, what one leads to is read by itself alone.
            for same in [[block] for block in options] if repeat.shared else [options]:
                both = [stage((block, block), each, first).steps() for block in same]
                here = shapes
                for i in range(max(times)):
                    here = self._closed([steps[min(i, 1)][1] for steps in both], here)
                    after |= here if i + 1 in times else set()
        return after

    def _noted(self, block: Block, shape: Shape) -> Shape | None:
        """Note a closed block on a shape; returns what is behind it, None where it cannot be built."""
        at = id(block), shape
        if at not in self._known:
            self._kept.append(block)
            try:
                for leaf in leaves(block, shape):
                    name = key(*leaf)
                    if name is not None:
                        self.found.setdefault(name, leaf)
                self._known[at] = output(block, shape)
            except GraphError:
                self._known[at] = None
        return self._known[at]

    def _all(self, value: Any) -> list[Block]:
        n = count(value)
        if n > MOST:
            raise SpaceError(
                f"space {self._name!r}: one block of it ({getattr(value, 'label', type(value).__name__)}) has {n:,} "
                f"settings, too many to measure each (up to {MOST:,}); narrow its choices with --set space.NAME"
            )
        return list(_closings(value))


def _fields(fields: Any) -> list[dict[str, Any]]:
    """All ways to close the fields that a `Repeat` sets."""
    options = [list(_closings(value)) for value in fields.values()]
    return [dict(zip(fields, values, strict=True)) for values in product(*options)]


def _closings(template: Any) -> Iterator[Any]:
    """A value with its choices closed in every way."""
    walker = Walker(template)
    return every(lambda decide: walker.resolve(decide)[0])

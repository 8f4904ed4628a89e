"""A search space: a template with open choices, for one input shape and number of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import Any

import numpy as np

from nas.analysis import Analysis, combined, cost
from nas.architecture import Architecture, metrics
from nas.blocks.base import Block, Chain
from nas.choices import MISSING, Decide, Decision, Genotype, Label, OneOf
from nas.counting import count
from nas.errors import SpaceError
from nas.ops import Shape
from nas.pricing import Price
from nas.steps import Steps
from nas.trial import ANALYSIS_METRICS
from nas.walk import Following, Pieces, Row, every, remember, survey


@dataclass(frozen=True)
class _Root(Block):
    """The template with its input resolution in front; the resolution is a decision like any other."""

    resolution: Any
    body: Any

    def children(self) -> Iterator[tuple[str, Any]]:
        yield "resolution", self.resolution
        yield "", self.body

    def _replaced(self, changes: Mapping[str, Any]) -> _Root:
        return _Root(changes.get("resolution", self.resolution), changes.get("", self.body))


class Space:
    """All architectures that a template can become.

    Args:
        template: a block with open choices, from the input to the class scores.
        input_shape: the data's native (channels, height, width).
        classes: number of classes.
        name: how the space is called.
        resolution: factor on height and width; may be open.

    Attributes:
        prices: exact metrics besides those of the analysis, of a device say. They are set before the first look-up, and
            stay where they are: a copy in another process has none.

    Genotypes are plain mappings from path to label; a genotype of an older version of the space stays valid when
    options are added.
    """

    def __init__(
        self, template: Block, *, input_shape: Shape, classes: int, name: str = "space",
        resolution: float | OneOf = 1.0,
    ) -> None:  # fmt: skip
        self.template = template
        self.input_shape = input_shape
        self.classes = classes
        self.name = name
        self.prices: tuple[Price, ...] = ()
        self._root = _Root(resolution, template)

    @property
    def recipe(self) -> tuple[str, Mapping[str, Any]] | None:
        """Name and JSON options with which `make_space` makes a strategy's own space again; None for one that is named.

        It is written to `run.json`, so it depends on no other file.
        """
        return None

    def __repr__(self) -> str:
        return f"Space({self.name!r}, input_shape={self.input_shape}, classes={self.classes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.template, self.input_shape, self.classes, self.name, self._root.resolution)

    @property
    def resolution(self) -> Any:
        """Factor on height and width of the data; may be open."""
        return self._root.resolution

    @cached_property
    def _steps(self) -> Steps:
        return Steps(self._root)

    @cached_property
    def _row(self) -> Row:
        """The resolution, and what the network runs one after the other."""
        return Row([("resolution", self._root.resolution), *self._parts])

    @cached_property
    def _parts(self) -> tuple[tuple[str, Any], ...]:
        return self.template.parts if isinstance(self.template, Chain) else (("", self.template),)

    # -- genotypes ---------------------------------------------------------------------------------------------

    def walk(self, decide: Decide) -> Genotype:
        """Genotype of the decisions that `decide` takes; see `nas.walk.resolve`."""
        return self._steps.walk(decide)

    def sample(self, rng: np.random.Generator) -> Genotype:
        """Every active decision uniformly at random."""
        draws = iter(rng.random(len(self.paths)).tolist())
        return self.walk(lambda decision: int(next(draws) * len(decision)))

    def mutate(self, genotype: Genotype, rng: np.random.Generator, *, decisions: int = 1) -> Genotype:
        """Change `decisions` active decisions to other labels; decisions that become active are drawn at random.

        Always differs from the parent. Raises SpaceError if the space has nothing to change.
        """
        active = [path for path in genotype if path in self._choices]
        if active:
            child = self._changed(genotype, active, decisions, rng)
            if child != genotype:
                return child
        # A choice that has but one option where it stands, or a genotype that is not complete.
        active = [path for path, n in self._active(genotype) if n > 1]
        if not active:
            raise SpaceError(f"space {self.name!r} has no decision with two options: nothing to mutate")
        return self._changed(genotype, active, decisions, rng)

    @cached_property
    def _choices(self) -> frozenset[str]:
        """Decisions that have two options or more somewhere."""
        return frozenset([path for path, labels in self.paths.items() if len(labels) > 1])

    def _changed(self, genotype: Genotype, active: Sequence[str], decisions: int, rng: np.random.Generator) -> Genotype:
        changed: set[str] = set()
        while len(changed) < min(decisions, len(active)):
            changed.add(active[_draw(rng, len(active))])

        def other(index: int, n: int) -> int:
            return (index + 1 + _draw(rng, n - 1)) % n

        return self._steps.change(genotype, dict.fromkeys(changed, other), lambda n: _draw(rng, n))

    def crossover(self, a: Genotype, b: Genotype, rng: np.random.Generator) -> Genotype:
        """Each decision from one of two parents at random (uniform crossover), fresh where neither has it."""
        coins: list[bool] = (rng.random(len(self.paths)) < 0.5).tolist()
        return self._steps.cross(a, b, coins, lambda n: _draw(rng, n))

    def neighbours(self, genotype: Genotype, rng: np.random.Generator | None = None) -> Iterator[Genotype]:
        """All genotypes one decision away, in reading order; decisions that become active take their first option,
        or a random one if `rng` is given."""
        fill = (lambda n: 0) if rng is None else (lambda n: _draw(rng, n))
        for path, n in self._active(genotype):
            for step in range(1, n):

                def other(index: int, n: int, step: int = step) -> int:
                    return (index + step) % n

                yield self._steps.change(genotype, {path: other}, fill)

    def change(self, genotype: Genotype, path: str, index: int, fill: Callable[[int], int]) -> Genotype:
        """The genotype with the option `index` at one decision; `fill` answers, given the number of options, those
        that become active."""
        return self._steps.change(genotype, {path: lambda *_: index}, fill)

    def decisions(self, genotype: Genotype) -> list[Decision]:
        """The active decisions of a genotype, in reading order. Raises SpaceError if it does not belong here."""
        found: list[Decision] = []
        follow = Following(genotype, self.name)

        def decide(decision: Decision) -> int:
            found.append(decision)
            return follow(decision)

        self.walk(decide)
        return found

    def check(self, genotype: Genotype) -> Genotype:
        """The genotype itself if it belongs to this space, else SpaceError naming the first wrong decision."""
        active = {decision.path for decision in self.decisions(genotype)}
        unknown = [path for path in genotype if path not in active]
        if unknown:
            raise SpaceError(f"space {self.name!r}: decision {unknown[0]!r} does not exist or is not active")
        return genotype

    def _active(self, genotype: Genotype) -> list[tuple[str, int]]:
        return [(decision.path, len(decision)) for decision in self.decisions(genotype)]

    # -- architectures -----------------------------------------------------------------------------------------

    def architecture(self, genotype: Genotype) -> Architecture:
        """The architecture of a genotype. Raises SpaceError if the genotype does not belong to this space."""
        shape, values, complete = self._closed(genotype)
        if isinstance(self.template, Chain):
            names = [name for name, _ in self._parts]
            body = self.template.with_children(dict(zip(names, values, strict=True)))
        else:
            body = values[0]
        body.__dict__["_open_"] = ()  # the walk has closed it: nobody needs to look for what is open
        return Architecture(body, shape, self.classes, self.name, complete)

    @property
    def exact(self) -> tuple[str, ...]:
        """Names of the metrics that are known before anything is evaluated."""
        return (*(metric.name for metric in ANALYSIS_METRICS), *(price.metric for price in self.prices))

    def metrics(self, architecture: Architecture) -> dict[str, float]:
        """Exact metrics of one of its architectures. Raises GraphError where it cannot be built."""
        placed = architecture.body, architecture.input_shape
        return architecture.metrics() | {price.metric: price.whole([price.part(*placed)]) for price in self.prices}

    def costs(self, genotype: Genotype) -> dict[str, float]:
        """`metrics(architecture(genotype))` without the architecture: for candidates, most of which are given up.

        Raises GraphError where it cannot be built, SpaceError if the genotype does not belong to this space.
        """
        get, missing = genotype.get, repeat(MISSING)
        follow = Following(genotype, self.name)
        start = shape = self.shape_at(self._row.part(0, follow))
        found: list[Analysis] = []
        prices: list[tuple[float, ...]] = []
        for i, ((whole, times, counts, paths), known) in enumerate(zip(self._pieces, self._analyses, strict=True), 1):
            n = len(paths) if times is None else counts.get(get(times))
            if n is None:  # wrong, or left out where there is but one option: the walk knows
                n = len(self._row.part(i, follow).blocks)
            for j in range(n):
                key = (j == 0, shape, *map(get, paths[j], missing))
                piece = known.get(key)
                if piece is None:
                    part = self._row.part(i, follow)
                    block = part if whole else part.steps()[j][1]
                    piece = cost(block, shape), tuple([price.part(block, shape) for price in self.prices])
                    remember(known, key, piece)
                found.append(piece[0])
                prices.append(piece[1])
                shape = piece[0].shape
        exact = metrics(combined(found, start))
        for k, price in enumerate(self.prices):
            exact[price.metric] = price.whole([parts[k] for parts in prices])
        return exact

    @cached_property
    def _pieces(self) -> list[Pieces]:
        return [self._row.pieces(i) for i in range(1, len(self._parts) + 1)]

    @cached_property
    def _analyses(self) -> list[dict[tuple[Any, ...], tuple[Analysis, tuple[float, ...]]]]:
        """Costs and prices of the pieces of each part by the labels in it and the shape that it reads."""
        return [{} for _ in self._parts]

    def _closed(self, genotype: Genotype) -> tuple[Shape, list[Any], Genotype]:
        """The input shape, the parts with nothing open, and the genotype with what it leaves out."""
        (factor, *values), complete = self._row.resolve(Following(genotype, self.name))
        return self.shape_at(factor), values, complete

    def shape_at(self, factor: float) -> Shape:
        """Input shape at a resolution, relative to the data's."""
        c, h, w = self.input_shape
        return c, max(1, round(h * factor)), max(1, round(w * factor))

    # -- the whole space ---------------------------------------------------------------------------------------

    @cached_property
    def paths(self) -> Mapping[str, tuple[Label, ...]]:
        """Every decision that can become active: path to labels, in reading order."""
        return survey(self._root)

    def encode(self, genotype: Genotype) -> np.ndarray:
        """Integers (len(paths),): position of each decision's label, -1 where the decision is not active.

        Raises SpaceError for a label that the space does not have.
        """
        code = [-1] * len(self.paths)
        for path, label in genotype.items():
            if path in self._places:
                at, positions = self._places[path]
                if label not in positions:
                    raise SpaceError(f"space {self.name!r}: {path}={label!r}; expected one of {list(positions)}")
                code[at] = positions[label]
        return np.array(code, dtype=np.int64)

    @cached_property
    def _places(self) -> Mapping[str, tuple[int, Mapping[Label, int]]]:
        """Where a decision stands in a code, and what its labels are there."""
        return {p: (i, {label: j for j, label in enumerate(ls)}) for i, (p, ls) in enumerate(self.paths.items())}

    def decode(self, code: Sequence[int] | np.ndarray) -> Genotype:
        """The inverse of `encode`. Raises SpaceError if the code belongs to no genotype."""
        if len(code) != len(self.paths):
            raise SpaceError(f"space {self.name!r}: a code has {len(self.paths)} numbers, got {len(code)}")
        genotype: dict[str, Label] = {}
        for i, (path, labels) in zip(code, self.paths.items(), strict=True):
            if not -1 <= i < len(labels):
                raise SpaceError(f"space {self.name!r}: {path} has {len(labels)} options, the code says {i}")
            if i >= 0:
                genotype[path] = labels[i]
        return self.check(genotype)

    def size(self) -> int:
        """Number of genotypes, exactly (networks can be fewer: two genotypes may be the same network)."""
        return count(self._root)

    def enumerate(self) -> Iterator[Genotype]:
        """All genotypes, in reading order of the last decision changing fastest."""
        return every(self.walk)


def _again(template: Block, input_shape: Shape, classes: int, name: str, resolution: Any) -> Space:
    return Space(template, input_shape=input_shape, classes=classes, name=name, resolution=resolution)


def _draw(rng: np.random.Generator, n: int) -> int:
    return int(rng.random() * n) if n > 1 else 0

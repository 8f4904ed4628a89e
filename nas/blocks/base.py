"""What a block is, and the containers: `Chain`, `Stage`, `Branches`, `Residual`.

A block is a frozen dataclass of hyperparameters with one method, `wire(g, x)`, that writes it once in terms of
primitive operations. Blocks are immutable, so a block remembers what it was asked before: its lowered form and
its cost per input shape. That makes the cost of a neighbouring architecture a handful of look-ups.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nas.choices import is_open
from nas.errors import GraphError, SpaceError

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref
    from nas.graph import Graph
    from nas.ops import Shape


_KNOWN = 1024  # variants that a block remembers
_STAGES = 64  # stages that their first block remembers; more of them only cost memory
_PLAIN = frozenset({int, float, str, bool, type(None)})  # types of values in which nothing can be open


@cache
def _names(cls: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls))


def channels(default: Any = dataclasses.MISSING, *, divisor: int = 8) -> Any:
    """A field that counts channels: `scale` multiplies it and rounds it to multiples of `divisor`."""
    return field(default=default, metadata={"divisor": divisor})


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below 90 % of the value (Sandler et al. 2018)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class Block:
    """Base class. Subclasses are frozen dataclasses that define `wire`; any field may hold an open choice."""

    label: ClassVar[str] = "block"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__:
            cls.label = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        """Add this block's nodes to `g`, reading `x`; returns the output. Most blocks read one value."""
        raise TypeError(f"{type(self).__name__} must define wire(self, g, x)")

    # -- what the walk over open choices needs -----------------------------------------------------------------

    def children(self) -> Iterator[tuple[str, Any]]:
        """Fields by name, in reading order."""
        cls: Any = type(self)
        for name in _names(cls):
            yield name, getattr(self, name)

    def with_children(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other field values. The same changes give the same object, so that its memory is shared."""
        known: dict[Any, Self] = self._memory("variants")
        key = tuple([(name, id(v) if isinstance(v, Block) else v) for name, v in changes.items()])
        try:
            return known[key]
        except KeyError:
            if len(known) >= _KNOWN:
                known.clear()
            made = known[key] = self._replaced(changes)
            return made
        except TypeError:  # a value that cannot be hashed
            return self._replaced(changes)

    def _replaced(self, changes: Mapping[str, Any]) -> Self:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @property
    def open_children(self) -> tuple[tuple[str, Any], ...]:
        """The children in which a choice is still open."""
        found: tuple[tuple[str, Any], ...] | None = self.__dict__.get("_open_")
        if found is None:
            found = tuple([(name, v) for name, v in self.children() if v.__class__ not in _PLAIN and is_open(v)])
            self.__dict__["_open_"] = found
        return found

    @property
    def is_open(self) -> bool:
        """Whether a choice inside is still open."""
        return bool(self.open_children)

    # -- lowering ----------------------------------------------------------------------------------------------

    def lower(self, *shapes: Shape) -> Graph:
        """This block alone as a graph, for inputs of the given shapes. Raises GraphError where it cannot be wired."""
        from nas.builder import GraphBuilder

        known: dict[tuple[Shape, ...], Graph] = self._memory("graphs")
        if shapes not in known:
            if self.is_open:
                raise SpaceError(f"block {self.label!r} has open choices; resolve it before building")
            g = GraphBuilder(*shapes)
            known[shapes] = g.graph(self.wire(g, *range(len(shapes))))
        return known[shapes]

    def steps(self) -> tuple[tuple[str, Block], ...] | None:
        """Name and block of each part if the block does nothing but run its parts one after the other."""
        return None

    def width_for(self, g: GraphBuilder, x: Ref) -> int:
        """The field `width`; None stands for as many channels as the input has."""
        width: int | None = getattr(self, "width", None)
        return width or g.channels(x)

    def scaled(self, width: float, depth: float) -> Self:
        """A copy with channel fields times `width` and stages repeated `depth` times as often."""
        changes: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Block):
                changes[f.name] = value.scaled(width, depth)
            elif isinstance(value, tuple) and any(isinstance(v, Block) for v in value):
                changes[f.name] = tuple(v.scaled(width, depth) if isinstance(v, Block) else v for v in value)
            elif "divisor" in f.metadata and value is not None and width != 1:
                changes[f.name] = make_divisible(value * width, f.metadata["divisor"])
        return self._replaced(changes) if changes else self

    def _memory(self, name: str) -> dict[Any, Any]:
        memory: dict[Any, Any] = self.__dict__.setdefault(f"_{name}_", {})
        return memory

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if not (k.startswith("_") and k.endswith("_"))}


@dataclass(frozen=True, init=False)
class Chain(Block):
    """Parts one after the other: `Chain(stem=..., stage1=Repeat(...), head=...)`. None is left out."""

    parts: tuple[tuple[str, Any], ...]

    def __init__(self, *unnamed: Any, **named: Any) -> None:
        numbered = [(str(i), part) for i, part in enumerate(unnamed)]
        object.__setattr__(self, "parts", tuple((k, v) for k, v in [*numbered, *named.items()] if v is not None))

    def children(self) -> Iterator[tuple[str, Any]]:
        yield from self.parts

    def _replaced(self, changes: Mapping[str, Any]) -> Self:
        return type(self)(**{name: changes.get(name, part) for name, part in self.parts})

    def steps(self) -> tuple[tuple[str, Block], ...]:
        return self.parts

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        for name, part in self.parts:
            x = (g.block(name, part, *x),)
        return x[0]

    def scaled(self, width: float, depth: float) -> Self:
        return type(self)(**{name: part.scaled(width, depth) for name, part in self.parts})


@dataclass(frozen=True)
class Stage(Block):
    """A resolved `Repeat`: blocks one after the other, the first with the fields `first` instead of its own."""

    blocks: tuple[Block, ...]
    first: tuple[tuple[str, Any], ...] = ()

    def steps(self) -> tuple[tuple[str, Block], ...]:
        blocks = self.blocks
        if blocks and self.first:
            blocks = blocks[0].with_children(dict(self.first)), *blocks[1:]
        return tuple([(str(i), block) for i, block in enumerate(blocks)])

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        for name, block in self.steps():
            x = (g.block(name, block, *x),)
        return x[0]

    def scaled(self, width: float, depth: float) -> Self:
        blocks = tuple(block.scaled(width, depth) for block in self.blocks)
        added = ceil(depth * len(blocks) - 1e-9) - len(blocks)
        if added < 0:
            blocks = blocks[:added]
        elif blocks:
            blocks += (blocks[-1],) * added
        first = dict(self.first)
        if self.blocks and first:
            scaled = self.blocks[0].with_children(first).scaled(width, depth)
            first = {name: getattr(scaled, name) for name in first}
        return type(self)(blocks, tuple(first.items()))


def stage(blocks: tuple[Block, ...], each: Mapping[str, Any], first: Mapping[str, Any]) -> Stage:
    """The `Stage` of these blocks with the fields `each`; the same object whenever the blocks are the same."""
    if each:
        for block in blocks:
            _has(block, each, "each")
        blocks = tuple([block.with_children(each) for block in blocks])
    pairs = tuple(first.items())
    if not blocks:
        return Stage((), pairs)
    known: dict[Any, Stage] = blocks[0]._memory("stages")
    key = (tuple([id(block) for block in blocks]), pairs)
    if key not in known:
        if len(known) >= _STAGES:
            known.clear()
        _has(blocks[0], first, "first")
        known[key] = Stage(blocks, pairs)
    return known[key]


def _has(block: Block, names: Mapping[str, Any], argument: str) -> None:
    known = type(block).__dataclass_fields__  # type: ignore[attr-defined]  # blocks are dataclasses
    for name in names:
        if name not in known:
            raise SpaceError(
                f"Repeat({argument}=...) sets {name!r}, which the block {block.label!r} does not have; "
                f"it has {', '.join(known)}"
            )


@dataclass(frozen=True)
class Branches(Block):
    """Blocks side by side on the same input.

    Args:
        blocks: the branches.
        join: `add`, `mean` or `concat`.
        names: what to call the branches; by default they are numbered.
    """

    blocks: tuple[Any, ...]
    join: str = "concat"
    names: tuple[str, ...] = ()

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        names = self.names or tuple(str(i) for i in range(len(self.blocks)))
        if len(names) != len(self.blocks):
            raise GraphError(f"Branches: {len(names)} names for {len(self.blocks)} blocks; give each block one")
        outputs = [g.block(name, block, *x) for name, block in zip(names, self.blocks, strict=True)]
        joins = {"add": g.add, "mean": g.mean, "concat": g.concat}
        if self.join not in joins:
            raise GraphError(f"Branches: unknown join {self.join!r}; expected add, mean or concat")
        return outputs[0] if len(outputs) == 1 else joins[self.join]("join", *outputs)


def known_blocks() -> dict[str, type[Block]]:
    """Every block class that has been imported, by label; a later class does not replace an earlier one."""
    found: dict[str, type[Block]] = {}
    queue = list(Block.__subclasses__())
    for cls in queue:
        found.setdefault(cls.label, cls)
        queue.extend(cls.__subclasses__())
    return found


def block_to_json(value: Any) -> Any:
    """A resolved block as JSON data: its label under `label` (so no field can be called that), then its fields."""
    if isinstance(value, Chain):
        return {"label": value.label, "parts": [[name, block_to_json(part)] for name, part in value.parts]}
    if isinstance(value, Block):
        return {"label": value.label, **{name: block_to_json(v) for name, v in value.children()}}
    if isinstance(value, tuple):
        return [block_to_json(v) for v in value]
    return value


def block_from_json(data: Any) -> Any:
    """The inverse of `block_to_json`; raises SpaceError for a block or field that is not known."""
    if isinstance(data, list):
        return tuple(block_from_json(v) for v in data)
    if not isinstance(data, dict):
        return data
    values = {name: block_from_json(v) for name, v in data.items()}
    label = values.pop("label", None)
    cls = known_blocks().get(label) if isinstance(label, str) else None
    if cls is None:
        raise SpaceError(f"unknown block {label!r}; import the module that defines it first")
    try:
        return cls(**dict(values["parts"])) if issubclass(cls, Chain) else cls(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise SpaceError(f"block {label!r}: {error}; it was written by another version") from None

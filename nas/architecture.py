"""An architecture: resolved blocks on an input shape. It knows its graph, key and costs, and goes to and from JSON."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nas.analysis import Analysis, cost
from nas.blocks.base import Block, block_from_json, block_to_json
from nas.builder import GraphBuilder
from nas.choices import Decision, Label
from nas.errors import GraphError, SpaceError
from nas.graph import Graph
from nas.keys import structural_key
from nas.ops import Shape
from nas.walk import resolve

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1


@dataclass(frozen=True)
class Architecture:
    """A network with nothing left open.

    Args:
        body: the resolved block that maps the input to class scores.
        input_shape: (channels, height, width) that the network reads.
        classes: number of classes.
        name: what to call it.
        genotype: the decisions it came from, if it came from a space.
    """

    body: Block
    input_shape: Shape
    classes: int
    name: str = "network"
    genotype: Mapping[str, Label] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.body.is_open:
            object.__setattr__(self, "body", resolve(self.body, self._only)[0])

    def _only(self, decision: Decision) -> int:
        if len(decision) == 1:
            return 0
        raise SpaceError(
            f"architecture {self.name!r}: {decision.path!r} is open between {list(decision.labels)}; an architecture "
            "has nothing open, a Space may"
        )

    def graph(self) -> Graph:
        """The lowered network. Raises GraphError if it cannot be built on this input."""
        return self._graph

    @cached_property
    def _graph(self) -> Graph:
        g = GraphBuilder(self.input_shape)
        steps = self.body.steps()
        x = 0
        if steps is None:
            x = self.body.wire(g, x)
        for name, part in steps or ():
            x = g.block(name, part, x)
        graph = g.graph(x)
        if graph.shapes[graph.output] != (self.classes,):
            raise SpaceError(
                f"architecture {self.name!r} ends in the shape {graph.shapes[graph.output]}, expected {self.classes} "
                "class scores; end it with a Head"
            )
        return graph

    def key(self) -> str:
        """Structural hash of the network and its input shape; see `nas.keys`. Raises what `graph` does.

        The body remembers it, and it is put together from the lowered parts: a graph is not built for it.
        """
        known: dict[Any, str] = self.body._memory("keys")
        found = known.get((self.input_shape, self.classes))
        if found is None:
            parts: list[Graph] = []
            shape = self.input_shape
            with suppress(GraphError):  # `graph` says where it is
                shape = _lowered(self.body, self.input_shape, parts)
            whole = shape == (self.classes,) and all(part.reads_input for part in parts)
            found = structural_key(*parts) if whole else self._graph.key()
            known[self.input_shape, self.classes] = found
        return found

    @property
    def analysis(self) -> Analysis:
        """Exact costs, from block costs seen before where there are any."""
        return cost(self.body, self.input_shape)

    def metrics(self) -> dict[str, float]:
        """The costs that can be objectives or limits, known before any training."""
        return metrics(self.analysis)

    def module(self, *, seed: int | None = None) -> nn.Module:
        """The network as a PyTorch module, initialised from `seed` (PyTorch's own initialisation if None)."""
        from nas.torch.build import build

        return build(self.graph(), seed=seed)

    def scale(self, *, width: float = 1, depth: float = 1, resolution: int | float | None = None) -> Architecture:
        """Compound scaling (Tan & Le 2019).

        Args:
            width: multiplies channels, rounded to multiples of 8, never below 90 %.
            depth: multiplies the repetitions of each stage, rounded up; added ones copy the stage's last block.
            resolution: pixels of the shorter side if an int, a multiplier of the present one if a float.

        Raises SpaceError for factors that are not positive.
        """
        if width <= 0 or depth <= 0 or (resolution is not None and resolution <= 0):
            raise SpaceError(f"scale: expected positive factors, got width={width} depth={depth} {resolution=}")
        c, h, w = self.input_shape
        if resolution is not None:
            ratio = resolution / min(h, w) if isinstance(resolution, int) else resolution
            h, w = max(1, round(h * ratio)), max(1, round(w * ratio))
        return Architecture(self.body.scaled(width, depth), (c, h, w), self.classes, self.name)

    def fitted(self, input_shape: Shape, classes: int) -> Architecture:
        """The same network for other images and classes: every block that names the classes names the new ones.

        Raises SpaceError or GraphError where it cannot be built for them.
        """
        found = Architecture(
            _reclassed(self.body, self.classes, classes), input_shape, classes, self.name, self.genotype
        )
        found.graph()
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON data, versioned."""
        return {
            "format": FORMAT,
            "name": self.name,
            "input_shape": list(self.input_shape),
            "classes": self.classes,
            "genotype": dict(self.genotype),
            "body": block_to_json(self.body),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_json`; raises SpaceError."""
        try:
            if data["format"] > FORMAT:
                raise SpaceError(f"architecture format {data['format']} is newer than {FORMAT}; upgrade this package")
            body = block_from_json(data["body"])
            shape = tuple(int(n) for n in data["input_shape"])
            return cls(body, shape, int(data["classes"]), str(data["name"]), dict(data.get("genotype", {})))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpaceError(f"architecture JSON: {type(error).__name__} {error}; expected to_json's") from None


def _reclassed(block: Block, before: int, after: int) -> Block:
    changes: dict[str, Any] = {}
    for name, child in block.children():
        if isinstance(child, Block):
            changes[name] = _reclassed(child, before, after)
        elif isinstance(child, tuple):
            changes[name] = tuple(_reclassed(c, before, after) if isinstance(c, Block) else c for c in child)
        elif name == "classes" and child == before:
            changes[name] = after
    return block.with_children(changes) if changes else block


def metrics(a: Analysis) -> dict[str, float]:
    """The costs that can be objectives or limits, by name."""
    return {"flops": a.flops, "params": a.params, "memory": a.memory, "depth": a.depth}


def _lowered(block: Block, shape: Shape, parts: list[Graph]) -> Shape:
    """Append what a block does one after the other to `parts`, as graphs; returns the output shape."""
    steps = block.steps()
    if steps is None:
        part = block.lower(shape)
        parts.append(part)
        return part.shapes[part.output]
    for _, step in steps:
        shape = _lowered(step, shape, parts)
    return shape


def scale(
    architecture: Architecture, *, width: float = 1, depth: float = 1, resolution: int | float | None = None
) -> Architecture:
    """See `Architecture.scale`."""
    return architecture.scale(width=width, depth=depth, resolution=resolution)

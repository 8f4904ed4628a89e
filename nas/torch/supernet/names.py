"""Which weights a node of a network uses in a supernet: a key for each node, the same in all networks that share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from nas import ops
from nas.architecture import Architecture
from nas.blocks.base import Block
from nas.builder import GraphBuilder
from nas.choices import OneOf, is_open
from nas.graph import Graph
from nas.ops import Op, Shape
from nas.walk import everywhere

if TYPE_CHECKING:
    from nas.builder import Ref
    from nas.space import Space

Marks = Mapping[str, Mapping[str, frozenset[str]]]
"""By a block's label, the fields that tell apart options of one choice, and the values that they have there."""


def marks(space: Space) -> Marks:
    """Fields in which blocks of one class differ that are options of one choice, and so must not share weights.

    The two convolutions of `OneOf(Conv(kernel=1), Conv(kernel=3))` are alternatives; the kernels of
    `Conv(kernel=OneOf(1, 3))` are settings of one convolution.
    """
    found: dict[str, dict[str, frozenset[str]]] = {}
    for _, choice in everywhere(space.template):
        for label, options in _alike(choice).items():
            for field in fields(options[0]):  # type: ignore[arg-type]  # blocks are dataclasses
                values = [getattr(option, field.name) for option in options]
                if not any(map(is_open, values)) and any(value != values[0] for value in values):
                    known = found.setdefault(label, {})
                    known[field.name] = known.get(field.name, frozenset()).union(map(_told, values))
    return found


def _alike(choice: OneOf) -> dict[str, list[Block]]:
    by_label: dict[str, list[Block]] = {}
    for option in choice.options:
        if isinstance(option, Block):
            by_label.setdefault(option.label, []).append(option)
    return {label: options for label, options in by_label.items() if len(options) > 1}


def keyed(architecture: Architecture, marks: Marks) -> tuple[Graph, list[str]]:
    """The lowered network, and the key of each node: its name, with the kinds of the blocks around it.

    Nodes of the same key in two networks use the same weights. Raises GraphError as `Architecture.graph` does.
    """
    recorder = Recorder(architecture.input_shape, marks)
    graph = recorder.graph(recorder.part("", architecture.body))
    return graph, [recorder.keys[node.weights or node.name] for node in graph.nodes]


class Recorder(GraphBuilder):
    """Wires every block itself, without what blocks remember, to see which block a node is in.

    Args:
        shape: of the input.
        marks: of the space.
        around: what the keys begin with.

    Attributes:
        keys: of the nodes by name.
    """

    def __init__(self, shape: Shape, marks: Marks, around: str = "") -> None:
        self.keys: dict[str, str] = {}
        self._marks, self._around, self._base = marks, around, ""
        super().__init__(shape)

    def part(self, name: str, block: Block) -> Ref:
        """Wire a block that reads the input, under a name if it has one."""
        return self.block(name, block, 0) if name else self._wired(block, (0,))

    def op(self, name: str, op: Op, *inputs: Ref, weights: str | None = None) -> Ref:
        owner = None if weights is None else self._base + weights  # a block knows names from itself on
        ref = super().op(name, op, *inputs, weights=owner)
        key = self._around + name
        if isinstance(op, ops.Module):  # no part of its weights can be taken
            key += _digest(op, [self.shape(i) for i in inputs])
        elif isinstance(op, ops.Conv) and op.groups > 1:
            key += "/depthwise" if op.groups == self.channels(inputs[0]) else f"/{op.groups}"
        self.keys[self._nodes[ref].name] = key
        return ref

    @contextmanager
    def scope(self, name: str, kind: str = "") -> Iterator[None]:
        before, self._around = self._around, f"{self._around}{name}:{kind}." if kind else f"{self._around}{name}."
        try:
            with super().scope(name, kind):
                yield
        finally:
            self._around = before

    def block(self, name: str, block: Block, *inputs: Ref) -> Ref:
        base = self._base
        with self.scope(name, self.mark(block)):
            self._base = self._prefix
            try:
                return self._wired(block, inputs)
            finally:
                self._base = base

    def _wired(self, block: Block, inputs: tuple[Ref, ...]) -> Ref:
        steps = block.steps()
        if steps is None:
            return block.wire(self, *inputs)
        for name, step in steps:
            inputs = (self.block(name, step, *inputs),)
        return inputs[0]

    def mark(self, block: Block) -> str:
        """What kind of block it is: its label, and what tells it from others of its class."""
        values = {
            name: (_told(getattr(block, name)), known) for name, known in self._marks.get(block.label, {}).items()
        }
        return block.label + "".join(f"({name}={told})" for name, (told, known) in values.items() if told in known)


def _told(value: Any) -> str:
    return str(value) if value is None or isinstance(value, int | float | str) else _digest(value)


def _digest(*values: Any) -> str:
    return "#" + sha256(repr(values).encode()).hexdigest()[:8]

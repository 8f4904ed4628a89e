"""Exact metrics beyond those of the analysis: so much for each block, and a constant.

The latency that a table of measured blocks predicts is one. A space that has prices gives them wherever it gives the
exact costs, so that strategies compare candidates by them, and keep limits on them, before anything is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from nas.blocks.base import Block
    from nas.ops import Shape

Placed: TypeAlias = "tuple[Block, Shape]"
"""A block, and the shape that it reads."""


@dataclass(frozen=True)
class Price:
    """A metric that is the sum of what its blocks cost.

    Args:
        metric: its name.
        base: what every network costs.
        of: what a block costs that is not made of others one after the other, on an input of a shape. It is asked
            again and again, so it should remember; it may raise a NasError for a block that it does not know.
    """

    metric: str
    base: float
    of: Callable[[Block, Shape], float]

    def part(self, block: Block, shape: Shape) -> float:
        """What a block costs, without the base. Raises GraphError where it cannot be built on this shape."""
        return sum(self.of(*placed) for placed in leaves(block, shape))

    def whole(self, parts: Iterable[float]) -> float:
        """The metric of a network, given what its parts cost."""
        return self.base + sum(parts)


def leaves(block: Block, shape: Shape) -> Iterator[Placed]:
    """What a closed block runs one after the other, each with the shape that it reads.

    Raises GraphError for a block that cannot be built on its shape.
    """
    steps = block.steps()
    if steps is None:
        yield block, shape
        return
    for _, step in steps:
        yield from leaves(step, shape)
        shape = output(step, shape)


def output(block: Block, shape: Shape) -> Shape:
    """Shape of what a closed block gives. Raises GraphError."""
    from nas.analysis import cost

    return cost(block, shape).shape

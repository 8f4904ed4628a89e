"""How a template adapts to the size of its input."""

from __future__ import annotations

from math import log2

from nas.ops import Shape


def halvings(input_shape: Shape, *, at_most: int = 5) -> int:
    """How often a network may halve its feature maps so that the last one keeps about 4 pixels a side.

    8 pixels: 1, 28 or 32: 3, 64: 4, 112 and more: 5. Counted on the shorter side.
    """
    side = min(input_shape[1:])
    return max(0, min(at_most, int(log2(side / 3.5)))) if side > 3 else 0

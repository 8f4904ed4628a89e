"""How one reference network is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nas.blocks import Block


@dataclass(frozen=True)
class Entry:
    """A reference network: `build(classes)` gives its body; `size` pixels and `classes` are those of its paper."""

    build: Callable[[int], Block]
    size: int = 224
    classes: int = 1000

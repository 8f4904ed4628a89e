"""Inception and fractal blocks: branches of different depth on one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas.blocks.base import Block, channels

if TYPE_CHECKING:
    from nas.builder import GraphBuilder, Ref


@dataclass(frozen=True)
class InceptionModule(Block):
    """1x1, 3x3, 5x5 and pooling side by side, concatenated (GoogLeNet, Szegedy et al. 2014).

    Args:
        one, three, five, pool: output channels of the four branches.
        three_reduce, five_reduce: channels of the 1x1 convolutions before the larger kernels.
        five_kernel: 5, or 3 as in torchvision's GoogLeNet.
    """

    one: int = channels()
    three_reduce: int = channels()
    three: int = channels()
    five_reduce: int = channels()
    five: int = channels()
    pool: int = channels()
    five_kernel: int = 5
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation}
        a = g.conv_norm_act("one", x[0], self.one, 1, **style)
        b = g.conv_norm_act("three_reduce", x[0], self.three_reduce, 1, **style)
        b = g.conv_norm_act("three", b, self.three, 3, **style)
        c = g.conv_norm_act("five_reduce", x[0], self.five_reduce, 1, **style)
        c = g.conv_norm_act("five", c, self.five, self.five_kernel, **style)
        d = g.max_pool("pool", x[0], 3, 1, 1, ceil=True)
        d = g.conv_norm_act("pool_project", d, self.pool, 1, **style)
        return g.concat("concat", a, b, c, d)


@dataclass(frozen=True)
class Inception(Block):
    """An inception block that ends at a given width and stride.

    Branches take a quarter, a half, an eighth and an eighth of the width. `factorised` replaces each kernel k by
    1 x k then k x 1 (Szegedy et al. 2015).
    """

    width: int | None = channels(None)
    kernel: int = 3
    stride: int = 1
    factorised: bool = False
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation}
        width = self.width_for(g, x[0])
        eighth = max(1, width // 8)
        a = g.conv_norm_act("one", x[0], width - 6 * eighth, 1, stride=self.stride, **style)
        b = g.conv_norm_act("middle_reduce", x[0], 2 * eighth, 1, **style)
        b = self._spatial(g, "middle", b, 4 * eighth, self.kernel)
        c = g.conv_norm_act("large_reduce", x[0], max(1, eighth // 2), 1, **style)
        c = self._spatial(g, "large", c, eighth, self.kernel + 2)
        d = g.max_pool("pool", x[0], 3, self.stride, 1)
        d = g.conv_norm_act("pool_project", d, eighth, 1, **style)
        return g.concat("concat", a, b, c, d)

    def _spatial(self, g: GraphBuilder, name: str, x: Ref, width: int, kernel: int) -> Ref:
        style: dict[str, Any] = {"norm": self.norm, "activation": self.activation}
        if not self.factorised:
            return g.conv_norm_act(name, x, width, kernel, stride=self.stride, **style)
        y = g.conv_norm_act(f"{name}_row", x, width, (1, kernel), stride=(1, self.stride), **style)
        return g.conv_norm_act(f"{name}_column", y, width, (kernel, 1), stride=(self.stride, 1), **style)


@dataclass(frozen=True)
class Fractal(Block):
    """`columns` paths of doubling depth, averaged where they meet (FractalNet, Larsson et al. 2016)."""

    width: int | None = channels(None)
    columns: int = 3
    kernel: int = 3
    activation: str = "relu"
    norm: str = "batch"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        heads = self._expand(g, x[0], self.columns, "path")
        return heads[0] if len(heads) == 1 else g.mean("join", *heads)

    def _expand(self, g: GraphBuilder, x: Ref, columns: int, name: str) -> list[Ref]:
        """f_C(x): the loose ends of `columns` columns, not yet joined."""
        first = g.conv_norm_act(
            f"{name}{columns}", x, self.width_for(g, x), self.kernel, norm=self.norm, activation=self.activation
        )
        if columns == 1:
            return [first]
        half = self._expand(g, x, columns - 1, f"{name}{columns}a")
        joined = half[0] if len(half) == 1 else g.mean(f"{name}{columns}_join", *half)
        return [first, *self._expand(g, joined, columns - 1, f"{name}{columns}b")]

"""RegNetX and RegNetY: widths from a quantised line (Radosavovic et al. 2020)."""

from __future__ import annotations

from functools import partial
from math import log

from nas.blocks import Block, Bottleneck, Chain, Conv, Head, SqueezeExcite
from nas.choices import Repeat

from .entry import Entry

# Initial width w0, slope wa, quantisation wm, channels per group, depth: the paper's appendix and its released models.
REGNET_X = {
    "200mf": (24, 36.44, 2.49, 8, 13),
    "400mf": (24, 24.48, 2.54, 16, 22),
    "600mf": (48, 36.97, 2.24, 24, 16),
    "800mf": (56, 35.73, 2.28, 16, 16),
    "1_6gf": (80, 34.01, 2.25, 24, 18),
    "3_2gf": (88, 26.31, 2.25, 48, 25),
    "4gf": (96, 38.65, 2.43, 40, 23),
    "6_4gf": (184, 60.83, 2.07, 56, 17),
    "8gf": (80, 49.56, 2.88, 120, 23),
    "12gf": (168, 73.36, 2.37, 112, 19),
    "16gf": (216, 55.59, 2.1, 128, 22),
    "32gf": (320, 69.86, 2.0, 168, 23),
}
REGNET_Y = {
    "200mf": (24, 36.44, 2.49, 8, 13),
    "400mf": (48, 27.89, 2.09, 8, 16),
    "600mf": (48, 32.54, 2.32, 16, 15),
    "800mf": (56, 38.84, 2.4, 16, 14),
    "1_6gf": (48, 20.71, 2.65, 24, 27),
    "3_2gf": (80, 42.63, 2.66, 24, 21),
    "4gf": (96, 31.41, 2.24, 64, 22),
    "6_4gf": (112, 33.22, 2.27, 72, 25),
    "8gf": (192, 76.82, 2.19, 56, 17),
    "12gf": (168, 73.36, 2.37, 112, 19),
    "16gf": (200, 106.23, 2.48, 112, 18),
    "32gf": (232, 115.89, 2.53, 232, 20),
}


def stages(initial: int, slope: float, quantum: float, group: int, depth: int) -> list[tuple[int, int]]:
    """(width, number of blocks) of each stage.

    Block j wants `initial + slope * j` channels; that is rounded to a power of `quantum` times `initial`, then to a
    multiple of 8, and at last to whole groups. Blocks of equal width are a stage.
    """
    found: dict[int, int] = {}
    for j in range(depth):
        power = round(log((initial + slope * j) / initial) / log(quantum))
        width = round(initial * quantum**power / 8) * 8
        found[width] = found.get(width, 0) + 1
    return [(max(1, round(width / min(group, width))) * min(group, width), times) for width, times in found.items()]


def regnet(classes: int, parameters: tuple[int, float, float, int, int], se: bool = False) -> Block:
    """RegNetX; with `se`, which squeezes to a quarter of the block's input, RegNetY."""
    group = parameters[3]
    excite = SqueezeExcite(ratio=0.25, of="input") if se else None
    body = {
        f"stage{i}": Repeat(
            Bottleneck(width, reduction=1, group_width=min(group, width), se=excite, se_of_hidden=True),
            times,
            first={"stride": 2},
        )
        for i, (width, times) in enumerate(stages(*parameters), 1)
    }
    return Chain(stem=Conv(32, stride=2), **body, head=Head(classes))


MODELS = {
    **{f"regnetx_{size}": Entry(partial(regnet, parameters=p)) for size, p in REGNET_X.items()},
    **{f"regnety_{size}": Entry(partial(regnet, parameters=p, se=True)) for size, p in REGNET_Y.items()},
}

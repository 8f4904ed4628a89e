"""Networks of cells that a search found: NASNet-A, AmoebaNet-A, DARTS, in the networks in which DARTS trains them.

The cells are those of `genotypes.py` in the authors' code of DARTS (github.com/quark0/darts), and so is the network:
its stems and its widths are the same for all four, without the auxiliary classifier, which is there in training only.
NASNet and AmoebaNet are not their own authors' networks (with other stems, paths and more cells) but comparable ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from nas.blocks import Block, RowColumnConv, SepConv

from ..darts import Edges, cell, network
from .entry import Entry


class Published(NamedTuple):
    """Two cells. `output`: `all` nodes, or `concat` of those that no other reads."""

    normal: Edges
    reduction: Edges
    output: str = "all"


CELLS: Mapping[str, Published] = {
    "darts_v1": Published(  # Liu et al. 2019, first order
        normal=(
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
        ),
        reduction=(
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
        ),
    ),
    "darts_v2": Published(  # second order
        normal=(
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ),
        reduction=(
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ),
    ),
    "nasnet_a": Published(  # Zoph et al. 2017
        normal=(
            ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 0), ("sep_conv_3x3", 0),
            ("avg_pool_3x3", 1), ("skip_connect", 0), ("avg_pool_3x3", 0), ("avg_pool_3x3", 0),
            ("sep_conv_3x3", 1), ("skip_connect", 1),
        ),
        reduction=(
            ("sep_conv_5x5", 1), ("sep_conv_7x7", 0), ("max_pool_3x3", 1), ("sep_conv_7x7", 0),
            ("avg_pool_3x3", 1), ("sep_conv_5x5", 0), ("skip_connect", 3), ("avg_pool_3x3", 2),
            ("sep_conv_3x3", 2), ("max_pool_3x3", 1),
        ),
        output="concat",
    ),
    "amoebanet_a": Published(  # Real et al. 2018
        normal=(
            ("avg_pool_3x3", 0), ("max_pool_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("avg_pool_3x3", 3), ("sep_conv_3x3", 1), ("skip_connect", 1),
            ("skip_connect", 0), ("avg_pool_3x3", 1),
        ),
        reduction=(
            ("avg_pool_3x3", 0), ("sep_conv_3x3", 1), ("max_pool_3x3", 0), ("sep_conv_7x7", 2),
            ("sep_conv_7x7", 0), ("avg_pool_3x3", 1), ("max_pool_3x3", 0), ("max_pool_3x3", 1),
            ("conv_7x1_1x7", 0), ("sep_conv_3x3", 5),
        ),
        output="concat",
    ),
}  # fmt: skip

OTHERS: Mapping[str, Callable[[int], Block]] = {  # operations that the space lacks, by the stride
    "sep_conv_7x7": lambda stride: SepConv(kernel=7, stride=stride),
    "conv_7x1_1x7": lambda stride: RowColumnConv(stride=stride),
}


def cells(classes: int, name: str, *, large: bool) -> Block:
    """The network for ImageNet (`large`: 48 channels, 14 cells) or for CIFAR-10 (36 channels, 20 cells)."""
    published = CELLS[name]
    normal, reduction = (
        cell(edges, reduces, published.output, **OTHERS)
        for edges, reduces in ((published.normal, False), (published.reduction, True))
    )
    channels, count = (48, 14) if large else (36, 20)
    return network(normal, reduction, classes, channels=channels, cells=count, large=large)


MODELS = {
    **{name: Entry(partial(cells, name=name, large=True)) for name in CELLS},
    **{f"{name}_cifar": Entry(partial(cells, name=name, large=False), 32, 10) for name in CELLS},
}

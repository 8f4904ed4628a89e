"""NAS-Bench-201: 5^6 = 15,625 cells, each trained on CIFAR-10, CIFAR-100 and ImageNet16-120 (Dong & Yang 2020).

A cell has four nodes; between any two an edge with one of five operations, and a node is the sum of its edges. All
cells of the network are the same. Edges that are `none`, and those on no way from the cell's input to its output, are
not in the network that we build, so many genotypes are one network. The authors built and counted every edge:
`published_cost` gives their figures.
"""

from __future__ import annotations

from functools import cache

from nas.analysis import cost
from nas.blocks import (
    AvgPool,
    Block,
    Branches,
    Cell,
    CellNode,
    Chain,
    Conv,
    Edge,
    FactorizedSkip,
    Head,
    Norm,
    PreConv,
)  # fmt: skip
from nas.choices import Genotype, OneOf, Repeat
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NODES = 4  # the first one is the cell's input
STAGES = 3

_BLOCKS: tuple[Block | None, ...] = (
    None, FactorizedSkip(), PreConv(kernel=1), PreConv(kernel=3), AvgPool(3, 1, 1, count_padding=False),
)  # fmt: skip


def nasbench201(
    input_shape: Shape = (3, 32, 32), classes: int = 10, *, channels: int = 16, cells: int = 5
) -> Space:  # fmt: skip
    """Three stages of cells that are all the same, and residual blocks that halve the map between them.

    Args:
        input_shape: (channels, height, width) of the data.
        classes: number of classes.
        channels: of the first stage, doubled by each further one.
        cells: in each stage.

    Raises SpaceError for numbers below 1.
    """
    if channels < 1 or cells < 1:
        raise SpaceError(f"nasbench201: channels and cells must be 1 or more, got {channels} and {cells}")
    nodes = tuple(
        CellNode(tuple(Edge(j, OneOf(*_BLOCKS, name=f"node{i}.from{j}", labels=OPERATIONS)) for j in range(i)))
        for i in range(1, NODES)
    )
    stages: dict[str, Block | Repeat] = {}
    for i in range(STAGES):
        if i:
            stages[f"reduce{i}"] = reduction(channels * 2**i)
        # As a field of `each` the nodes are decided once, and the same in all stages.
        stages[f"stage{i + 1}"] = Repeat(Cell(()), cells, each={"nodes": nodes})
    stem = Conv(channels, activation="identity")
    template = Chain(stem=stem, **stages, norm=Norm(), head=Head(classes))
    return Space(template, input_shape=input_shape, classes=classes, name="nasbench201")


def reduction(width: int) -> Block:
    """The residual block between two stages; its shortcut is average pooling and a 1x1 convolution without norm."""
    shortcut = Chain(pool=AvgPool(2, 2, ceil=True), conv=Conv(width, 1, activation="identity", norm="none", bias=False))
    return Branches((Chain(PreConv(width, stride=2), PreConv(width)), shortcut), "add", ("residual", "shortcut"))


def published_cost(
    genotype: Genotype, input_shape: Shape = (3, 32, 32), classes: int = 10, *, channels: int = 16, cells: int = 5
) -> tuple[int, int]:  # fmt: skip
    """Parameters and FLOPs of a genotype as the authors publish them (in millions, 10^6).

    They differ from those of our network, which has no edge without effect: here every edge counts. FLOPs are the
    multiply-adds of convolutions and of the classifier, and a FLOP for each of the classifier's biases; norms,
    activations, pooling and sums are free, as in the authors' counter.

    Raises SpaceError for a genotype of another space.
    """
    edges, base = _costs(tuple(input_shape), classes, channels, cells)
    params, flops = base
    for operation in _operations(genotype):
        more, multiplied = edges[operation]
        params, flops = params + more, flops + multiplied
    return params, flops


@cache
def _costs(shape: Shape, classes: int, channels: int, cells: int) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Parameters and FLOPs of one edge in all cells by operation, and of the network without any."""
    space = nasbench201(shape, classes, channels=channels, cells=cells)
    bare = space.architecture(dict.fromkeys(_paths(), "none"))
    maps = [s for s, node in zip(bare.graph().shapes, bare.graph().nodes, strict=True) if node.name.endswith("0.zero")]
    edges = {}
    for operation, block in zip(OPERATIONS, _BLOCKS, strict=True):
        found = [cost(block, s) for s in maps] if block else []
        edges[operation] = (cells * sum(c.params for c in found), cells * sum(c.flops for c in found))
    return edges, (bare.analysis.params, bare.analysis.flops + classes)


def code(genotype: Genotype) -> str:
    """The published string of a genotype: for each node its operations, and the nodes that these read.

    Such as `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|`. Raises SpaceError for a
    genotype of another space.
    """
    operations = iter(_operations(genotype))
    return "+".join(["".join([f"|{next(operations)}~{j}" for j in range(i)]) + "|" for i in range(1, NODES)])


def genotype(text: str) -> Genotype:
    """The genotype of a published string; see `code`. Raises SpaceError for anything else."""
    operations = [part.partition("~")[0] for node in text.split("+") for part in node.strip("|").split("|")]
    found = dict(zip(_paths(), operations, strict=False))
    if set(operations) - set(OPERATIONS) or len(found) < len(_paths()) or code(found) != text:
        raise SpaceError(
            f"nasbench201: {text!r} is not a cell such as |none~0|+|none~0|none~1|+|none~0|none~1|none~2| of the "
            f"operations {', '.join(OPERATIONS)}"
        )
    return found


def _operations(genotype: Genotype) -> list[str]:
    found = [genotype.get(path) for path in _paths()]
    wrong = next((path for path, o in zip(_paths(), found, strict=True) if o not in OPERATIONS), None)
    if wrong is not None or len(genotype) != len(found):
        raise SpaceError(f"not a genotype of nasbench201: {dict(genotype)}; expected {', '.join(_paths())}")
    return [str(operation) for operation in found]


def _paths() -> list[str]:
    return [f"node{i}.from{j}" for i in range(1, NODES) for j in range(i)]

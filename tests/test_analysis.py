"""Costs worked out by hand, and the sum over blocks against the whole graph."""

from __future__ import annotations

import numpy as np
import pytest
from nas.search_spaces.lecture import lecture
from nas.search_spaces.mobile import mobile

from nas import blocks as b
from nas import ops
from nas.analysis import Analysis, analyse, cost
from nas.builder import GraphBuilder
from nas.ops import Shape
from nas.space import Space
from nas.testing import toy_space


def test_a_convolution_by_hand() -> None:
    assert analyse(b.Conv(8, 3, stride=2).lower((3, 9, 9))) == Analysis(
        params=8 * 3 * 9 + 2 * 8,  # weights, and the norm's scale and shift
        flops=8 * 3 * 9 * 5 * 5,
        memory=4 * (3 * 81 + 8 * 25),  # input and output; norm and activation work in place
        depth=1,
        field=(3, 3),
        stride=(2, 2),
        shape=(8, 5, 5),
    )


def test_a_classifier_by_hand() -> None:
    found = analyse(b.Chain(a=b.Conv(4, norm="none"), head=b.Head(10, hidden=6)).lower((1, 6, 6)))
    assert found.params == (4 * 9 + 4) + (4 * 6 + 6) + (6 * 10 + 10)
    assert found.flops == 4 * 9 * 36 + 4 * 6 + 6 * 10
    assert (found.depth, found.shape) == (3, (10,))
    assert found.field == (3, 3)  # global pooling does not count


@pytest.mark.parametrize(
    ("block", "shape", "floats"),
    [
        # x waits for the sum while both convolutions run: x, between, result
        (b.Residual(4), (4, 5, 5), 3 * 100),
        # the expanded map twice (before and after the depthwise convolution) and x
        (b.InvertedResidual(4, expansion=3), (4, 5, 5), 100 + 2 * 300),
        # without the sum x is given back once it has been read
        (b.InvertedResidual(8, expansion=3), (4, 5, 5), 2 * 300),
        (b.Chain(a=b.Conv(4), b=b.Conv(4), c=b.Conv(4)), (4, 5, 5), 2 * 100),
        # three results and the input; then the joined map beside the three
        (b.Branches((b.Conv(4), b.Conv(4), b.Conv(4))), (4, 5, 5), 3 * 100 + 300),
        # what is read again is not overwritten: x, its normalisation, the sum
        (b.Branches((b.Norm(), b.Skip()), "add"), (4, 5, 5), 3 * 100),
        (b.Skip(), (4, 5, 5), 100),
        (b.Norm(), (4, 5, 5), 100),
        (b.Chain(a=b.Norm(), b=b.Dropout()), (4, 5, 5), 100),
        # the map, its mean per channel and the gate's layers (1, then 4), the product
        (b.SqueezeExcite(), (4, 5, 5), 2 * 100 + 4),
        (b.MaxPool(), (4, 6, 6), 144 + 36),
    ],
)
def test_peak_memory_by_hand(block: b.Block, shape: Shape, floats: int) -> None:
    assert analyse(block.lower(shape)).memory == 4 * floats


@pytest.mark.parametrize(
    ("block", "field", "stride"),
    [
        (b.Chain(a=b.Conv(4, 3), b=b.Conv(4, 3), c=b.Conv(4, 3)), 7, 1),
        (b.Chain(a=b.Conv(4, 7, stride=2), b=b.MaxPool(3, 2, 1), c=b.Conv(4, 3)), 7 + 2 * 2 + 2 * 4, 4),
        (b.Chain(a=b.AvgPool(2, 2), b=b.AvgPool(2, 2)), 4, 4),
        (b.Branches((b.Conv(4, 1), b.Conv(4, 5), b.Chain(a=b.Conv(4, 3), b=b.Conv(4, 3), c=b.Conv(4, 3)))), 7, 1),
        (b.Chain(a=b.Residual(4, stride=2), b=b.Separable(4, kernel=5)), 3 + 2 * 2 + 4 * 2, 2),
        (b.Chain(a=b.Conv(4), b=b.SqueezeExcite(), c=b.Conv(4)), 5, 1),
    ],
)
def test_receptive_field_by_hand(block: b.Block, field: int, stride: int) -> None:
    found = analyse(block.lower((4, 32, 32)))
    assert (found.field, found.stride) == ((field, field), (stride, stride))


def test_receptive_field_of_dilated_and_oblong_kernels() -> None:
    g = GraphBuilder((4, 32, 32))
    x = g.conv("a", 0, 4, (1, 7), stride=(1, 2))
    found = analyse(g.graph(g.conv("b", x, 4, 3, dilation=2)))
    assert (found.field, found.stride) == ((5, 7 + 4 * 2), (1, 2))


def test_depth_is_the_longest_path() -> None:
    assert cost(b.Residual(8, stride=2), (4, 8, 8)).depth == 2  # the projection runs beside
    assert cost(b.Bottleneck(8), (8, 8, 8)).depth == 3
    assert cost(b.Chain(a=b.Dense(8, layers=3), head=b.Head(2)), (8, 8, 8)).depth == 3 + 1 + 1
    assert cost(b.Branches((b.Conv(4), b.Chain(b.Conv(4), b.Conv(4)))), (4, 4, 4)).depth == 2


def test_shared_weights_count_once() -> None:
    g = GraphBuilder((4, 8, 8))
    x = g.conv("a", 0, 4)
    own = analyse(g.graph(g.conv("b", x, 4)))
    shared = analyse(g.graph(g.conv("c", x, 4, weights="a")))
    assert (own.params, shared.params) == (2 * 144, 144)
    assert own.flops == shared.flops == 2 * 144 * 64


def test_unused_parts_cost_nothing() -> None:
    nodes = tuple(b.CellNode((b.Edge(0, b.Conv(4, kernel)),)) for kernel in (3, 5))
    cell = b.Cell(nodes, output="last")
    assert cost(cell, (4, 8, 8)) == cost(b.Conv(4, 5), (4, 8, 8))
    assert cost(b.Chain(a=cell, b=cell), (4, 8, 8)) == analyse(b.Chain(a=cell, b=cell).lower((4, 8, 8)))


def test_a_whole_module_costs_what_torch_counts() -> None:
    g = GraphBuilder((4, 8, 8))
    found = analyse(g.graph(g.module("m", "torch.nn:Conv2d", 0, in_channels=4, out_channels=6, kernel_size=3)))
    assert (found.params, found.flops, found.shape) == (6 * 4 * 9 + 6, 6 * 4 * 9 * 36, (6, 6, 6))


@pytest.mark.parametrize(
    "space",
    [mobile((1, 8, 8), 10), mobile((3, 224, 224), 1000), lecture((1, 28, 28), 10), lecture((3, 64, 64), 7)],
    ids=lambda space: f"{space.name}-{space.input_shape[1]}",
)
def test_the_sum_over_blocks_is_the_whole(space: Space) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        architecture = space.architecture(space.sample(rng))
        assert architecture.analysis == analyse(architecture.graph())


def test_the_sum_over_nested_containers_is_the_whole() -> None:
    stage = b.Stage((b.Residual(8), b.Residual(8)), (("stride", 2),))
    inner = b.Chain(a=b.Inception(16, stride=2), b=b.Skip(), c=stage)
    block = b.Chain(a=inner, b=b.Branches((inner, inner), "add"), c=b.Chain(), head=b.Head(3))
    assert cost(block, (3, 40, 24)) == analyse(block.lower((3, 40, 24)))


def test_only_what_is_new_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour whose blocks have been seen lowers and analyses nothing."""
    space = toy_space()
    genotype = space.sample(np.random.default_rng(1))
    neighbours = list(space.neighbours(genotype))
    for neighbour in neighbours:
        space.architecture(neighbour).analysis  # noqa: B018
    calls: list[object] = []
    monkeypatch.setattr("nas.analysis.analyse", calls.append)
    monkeypatch.setattr("nas.builder.GraphBuilder.graph", lambda *a: calls.append(a))
    for neighbour in neighbours:
        space.architecture(neighbour).body._memory("costs").clear()
        assert space.architecture(neighbour).analysis.flops > 0
    assert calls == []


def test_which_operations_work_in_place_and_which_are_layers() -> None:
    in_place = {name for name, cls in ops.OPS.items() if cls.inplace}
    assert in_place == {"Norm", "Activation", "PReLU", "Dropout", "DropPath"}
    assert {name for name, cls in ops.OPS.items() if cls.layer} == {"Conv", "Linear", "Module"}

"""Every block: shapes it promises, rules of its graph, JSON, scaling; and a user's own."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas import blocks as b
from nas import ops
from nas.analysis import analyse, cost
from nas.architecture import Architecture
from nas.blocks.base import known_blocks
from nas.builder import GraphBuilder, Ref
from nas.choices import OneOf
from nas.errors import GraphError, SpaceError

SIZED = [  # blocks that go to a width and a stride
    b.Conv, b.MlpConv, b.Skip, b.Separable, b.InvertedResidual, b.FusedInvertedResidual, b.ShuffleUnit, b.Dense,
    b.Inception, b.Residual, b.Bottleneck, b.PreConv, b.SepConv, b.DilConv, b.RowColumnConv, b.FactorizedSkip,
]  # fmt: skip
NODES = (b.CellNode((b.Edge(0, b.Conv()), b.Edge(0, b.Skip()))), b.CellNode((b.Edge(1, b.Conv()),)))
SMALLER = (b.CellNode((b.Edge(0, b.SepConv(stride=2)), b.Edge(1, b.MaxPool(3, 2, 1)))),)
OTHERS = [
    b.AvgPool(3, 2, 1), b.MaxPool(), b.GlobalPool(), b.Norm(), b.Dropout(0.2), b.SqueezeExcite(), b.Fire(16),
    b.Ghost(16), b.Fractal(16), b.DenseBlock(3, 8), b.Transition(), b.InceptionModule(8, 4, 8, 4, 8, 8),
    b.Branches((b.Conv(8), b.Skip(8))), b.Chain(a=b.Conv(8), b=b.Skip()), b.Head(5), b.DenseHead(5, (16, 8), 2),
    b.Wrap("torch.nn:PixelShuffle", (("upscale_factor", 2),)),
    b.Stage((b.Conv(8), b.Conv(8)), (("stride", 2),)),
    b.Cell(NODES, "all"), b.CellNetwork(b.Cell(NODES), b.Cell(SMALLER), 8, 4, b.PreConv(8, stride=2)),
]  # fmt: skip
EVERY = [cls(16) for cls in SIZED] + OTHERS
SHAPE = (8, 12, 10)


def test_no_shipped_block_is_left_out() -> None:
    shipped = {cls for cls in vars(b).values() if isinstance(cls, type) and issubclass(cls, b.Block)}
    assert shipped - {type(block) for block in EVERY} == {b.Block, b.CellNode, b.Edge, b.PoolHead}
    assert b.PoolHead().lower((5, 3, 3)).shapes[-1] == (5,)


def test_labels_are_unique() -> None:
    labels = [cls.label for cls in vars(b).values() if isinstance(cls, type) and issubclass(cls, b.Block)]
    assert len(set(labels)) == len(labels)
    assert known_blocks()["inverted_residual"] is b.InvertedResidual


@pytest.mark.parametrize("cls", SIZED, ids=lambda cls: cls.label)
@pytest.mark.parametrize(("width", "stride"), [(8, 1), (16, 1), (8, 2), (24, 2), (None, 1)])
def test_width_and_stride_are_kept(cls: type[b.Block], width: int | None, stride: int) -> None:
    block = cls(width=width, stride=stride)  # type: ignore[call-arg]
    graph = block.lower(SHAPE)
    graph.verify()
    height, across = -(-12 // stride), -(-10 // stride)
    assert graph.shapes[graph.output] == (width or 8, height, across)


@pytest.mark.parametrize("block", EVERY, ids=lambda block: block.label)
class TestEveryBlock:
    def test_its_graph_keeps_the_rules(self, block: b.Block) -> None:
        graph = block.lower(SHAPE)
        graph.verify()
        assert block.lower(SHAPE) is graph
        assert cost(block, SHAPE) == analyse(graph)

    def test_json_there_and_back(self, block: b.Block) -> None:
        again = b.block_from_json(json.loads(json.dumps(b.block_to_json(block))))
        assert again == block
        assert again.lower(SHAPE).key() == block.lower(SHAPE).key()

    def test_twice_as_wide_is_still_a_network(self, block: b.Block) -> None:
        wide = block.scaled(2.0, 1.0)
        wide.lower(SHAPE).verify()
        for f in fields(block):  # type: ignore[arg-type]
            before = getattr(block, f.name)
            if "divisor" in f.metadata and before is not None:
                assert getattr(wide, f.name) == 2 * before
        assert block.scaled(1.0, 1.0).lower(SHAPE).key() == block.lower(SHAPE).key()


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("norm", ops.NORMS)
def test_activation_and_norm_are_fields(activation: str, norm: str) -> None:
    graph = b.Residual(16, activation=activation, norm=norm).lower(SHAPE)
    found = [node.op for node in graph.nodes if isinstance(node.op, ops.Activation | ops.PReLU)]
    kinds = [getattr(op, "kind", "prelu") for op in found]
    assert kinds == ([] if activation == "identity" else [activation] * 2)
    norms = [node.op.kind for node in graph.nodes if isinstance(node.op, ops.Norm)]
    assert norms == ([] if norm == "none" else [norm] * 3)
    assert all(node.op.bias == (norm == "none") for node in graph.nodes if isinstance(node.op, ops.Conv))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b.Conv(8, activation="swish"), "unknown activation 'swish'"),
        (b.Residual(8, norm="batchnorm"), "unknown norm 'batchnorm'"),
        (b.Branches((b.Conv(8), b.Conv(8)), "max"), "unknown join 'max'; expected add, mean or concat"),
        (b.Branches((b.Conv(8), b.Conv(16)), "add"), "two or more equal shapes"),
        (b.Conv(10, groups=4), "divisible by groups=4"),
        (b.Cell((b.CellNode((b.Edge(1, b.Skip()),)),)), "node 1 reads value 1; there are 1 before it"),
        (b.Cell((b.CellNode((b.Edge(0, b.Skip()),)),), "no"), "unknown output 'no'; expected last, all or concat"),
    ],
)
def test_impossible_blocks_are_refused_in_one_line(block: b.Block, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        block.lower(SHAPE)
    assert "\n" not in str(caught.value)


def test_values_around_make_divisible() -> None:
    assert [b.make_divisible(n) for n in (1, 8, 11, 12, 19, 20, 35, 36)] == [8, 8, 16, 16, 24, 24, 32, 40]
    assert b.make_divisible(32 * 1.4) == 48  # EfficientNet-B3's stem is 40 = make_divisible(32 * 1.2)
    assert b.make_divisible(32 * 1.2) == 40
    assert b.make_divisible(10, 4) == 12


@given(st.floats(1, 1e5), st.sampled_from([1, 4, 8, 16]))
def test_make_divisible_never_loses_a_tenth(value: float, divisor: int) -> None:
    rounded = b.make_divisible(value, divisor)
    assert rounded % divisor == 0
    assert rounded >= 0.9 * value
    assert rounded <= max(divisor, value + divisor)


class TestContainers:
    def test_a_chain_leaves_out_none(self) -> None:
        chain = b.Chain(b.Conv(8), None, b.Conv(8), last=None)
        assert [name for name, _ in chain.steps()] == ["0", "2"]
        assert b.Chain().lower(SHAPE).output == 0

    def test_equal_changes_give_the_same_block(self) -> None:
        block = b.InvertedResidual(16)
        assert block.with_children({"kernel": 5}) is block.with_children({"kernel": 5})
        assert block.with_children({"kernel": 5}) is not block.with_children({"kernel": 7})
        assert block.with_children({"se": [1]}).se == [1]  # not hashable: made anew each time

    def test_a_stage_gives_its_first_block_other_fields(self) -> None:
        stage = b.Stage((b.Conv(8), b.Conv(8)), (("stride", 2), ("width", 24)))
        assert [block for _, block in stage.steps()] == [b.Conv(24, stride=2), b.Conv(8)]


class TestCells:
    def cell(self, output: str, *sources: int) -> b.Cell:
        return b.Cell(tuple(b.CellNode((b.Edge(s, b.Conv()),)) for s in sources), output)

    def test_a_node_sums_its_edges(self) -> None:
        node = b.CellNode((b.Edge(0, b.Conv()), b.Edge(1, b.Conv())))
        graph = b.Cell((node,)).lower(SHAPE, SHAPE)
        assert isinstance(graph.nodes[graph.output].op, ops.Add)
        graph.verify()

    @pytest.mark.parametrize(("output", "width"), [("last", 8), ("all", 24), ("concat", 16)])
    def test_outputs(self, output: str, width: int) -> None:
        graph = self.cell(output, 0, 1, 0).lower(SHAPE)
        assert graph.shapes[graph.output] == (width, 12, 10)
        graph.verify()

    def test_a_node_that_nobody_reads_vanishes(self) -> None:
        assert self.cell("last", 0, 0).lower(SHAPE).key() == self.cell("last", 0).lower(SHAPE).key()

    def test_names_hang_on_sources_and_operations(self) -> None:
        edges = (b.Edge(1, b.SepConv(8, 5)), b.Edge(0, b.SepConv(8)), b.Edge(1, b.SepConv(8, 5)))
        node = b.CellNode((*edges, b.Edge(0, b.Conv(8, (1, 7)))))
        names = {node.name for node in b.Cell((node,), width=8).lower(SHAPE, SHAPE).nodes}
        assert {"input0.conv", "input1.norm", "node2.from0_1.conv_1x7.conv", "node2.add"} < names
        for edge in ("from0.sep_conv_3x3", "from1.sep_conv_5x5", "from1_1.sep_conv_5x5"):
            assert f"node2.{edge}.second.depthwise.conv" in names

    def test_what_is_not_there_vanishes(self) -> None:
        a, c = b.Conv(), b.Conv(kernel=5)
        plain = b.Cell((b.CellNode((b.Edge(0, a),)),))
        for nodes in (
            (b.CellNode((b.Edge(0, a),)), b.CellNode((b.Edge(0, None), b.Edge(1, b.Skip())))),  # no edge
            (b.CellNode((b.Edge(0, None),)), b.CellNode((b.Edge(0, a), b.Edge(1, c)))),  # reads zeros
            (b.CellNode((b.Edge(0, c),)), b.CellNode((b.Edge(0, a), b.Edge(1, None)))),  # nobody reads it
        ):
            assert b.Cell(nodes).lower(SHAPE).key() == plain.lower(SHAPE).key()

    def test_a_cell_without_a_way_through_is_zero(self) -> None:
        node = b.CellNode((b.Edge(0, None),))
        graph = b.Cell((node, b.CellNode((b.Edge(0, None), b.Edge(1, b.Conv()))))).lower(SHAPE)
        assert [type(node.op) for node in graph.nodes] == [ops.Input, ops.Zero]
        both = b.Cell((node, b.CellNode((b.Edge(0, b.Conv()),))), "all").lower(SHAPE)
        assert both.shapes[both.output] == (16, 12, 10)
        both.verify()

    def test_inputs_are_brought_to_one_width_and_size(self) -> None:
        node = b.CellNode((b.Edge(0, b.Skip()), b.Edge(1, b.Skip())))
        graph = b.Cell((node,), width=24).lower((8, 13, 11), (16, 7, 6))
        graph.verify()
        assert graph.shapes[graph.output] == (24, 7, 6)
        assert {n.name for n in graph.nodes} >= {"input0.even", "input0.shift", "input0.odd", "input1.conv"}

    @pytest.mark.parametrize(
        ("cells", "widths"), [(1, [16]), (2, [16, 32]), (3, [8, 16, 32]), (8, [8] * 2 + [16] * 3 + [32] * 3)]
    )
    def test_networks_of_cells(self, cells: int, widths: list[int]) -> None:
        sums = b.CellNode((b.Edge(0, b.Skip()), b.Edge(1, b.Skip())))
        network = b.CellNetwork(b.Cell((sums,)), b.Cell(SMALLER), 8, cells)
        graph = network.lower(SHAPE)
        shapes = dict(zip([node.name for node in graph.nodes], graph.shapes, strict=True))
        assert [shapes[f"{i}.input1.conv"][0] for i in range(cells)] == widths
        assert graph.shapes[graph.output] == (widths[-1], *((6, 5) if cells == 1 else (3, 3)))
        assert network.scaled(1.0, 1.5).cells == -(-3 * cells // 2)
        assert network.scaled(2.0, 1.0).width == 16
        reads = {i for node in graph.nodes if node.name == "1.input0.act" for i in node.inputs}
        assert cells == 1 or reads == {0}  # the second cell reads what the first one read


@dataclass(frozen=True)
class Gated(b.Block):
    """Somebody's own block, with a block as a field and weights used twice."""

    inner: b.Block
    width: int | None = b.channels(None, divisor=4)

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.block("inner", self.inner, x[0])
        y = g.conv("mix", y, self.width_for(g, x[0]))
        y = g.conv("again", y, self.width_for(g, x[0]), weights="mix")
        return g.mul("gate", y, g.activation("act", g.global_pool("pool", y), "sigmoid"))


class TestOwnBlocks:
    def test_it_is_a_block_as_any_other(self) -> None:
        body = b.Chain(stem=b.Conv(8), own=Gated(b.Residual(8)), head=b.Head(3))
        architecture = Architecture(body, (1, 8, 8), 3)
        graph = architecture.graph()
        graph.verify()
        assert {node.weights for node in graph.nodes} == {None, "own.mix"}
        assert architecture.analysis == analyse(graph)
        assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
        assert Gated(b.Residual(8), width=10).scaled(1.3, 1) == Gated(b.Residual(16), width=12)

    def test_it_stands_in_a_choice(self) -> None:
        choice = OneOf(Gated(b.Residual(8)), b.Skip())
        assert choice.labels == ("gated", "identity")

    def test_it_must_be_wired(self) -> None:
        @dataclass(frozen=True)
        class Nothing(b.Block):
            pass

        with pytest.raises(TypeError, match="Nothing must define wire"):
            Nothing().lower(SHAPE)

    def test_any_module_is_a_block(self) -> None:
        from torch import nn

        block = b.Wrap(nn.Conv2d, (("in_channels", 8), ("out_channels", 4), ("kernel_size", 3)))
        assert block.target == "torch.nn.modules.conv:Conv2d"
        assert block.lower(SHAPE).shapes[-1] == (4, 10, 8)
        assert b.block_from_json(json.loads(json.dumps(b.block_to_json(block)))) == block


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"label": "convolution"}, "unknown block 'convolution'; import the module that defines it first"),
        ({"width": 3}, "unknown block None"),
        ({"label": ["conv"]}, "unknown block"),
        ({"label": "conv", "colour": 3}, "block 'conv': .*colour"),
        ({"label": "chain", "parts": 3}, "block 'chain'"),
        ({"label": "head"}, "block 'head': .*classes"),
        ({"label": "branches", "blocks": [{"label": "no"}]}, "unknown block 'no'"),
    ],
)
def test_wrong_json_is_refused_in_one_line(data: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        b.block_from_json(data)
    assert "\n" not in str(caught.value)

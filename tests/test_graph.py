"""The builder's errors, the rules of a graph, pruning, JSON, networkx, and what each operation does to shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import pytest

from nas import ops
from nas.blocks import Branches, Chain, Conv, Head, Skip
from nas.builder import GraphBuilder
from nas.errors import GraphError
from nas.graph import Graph, Node, Scope
from nas.testing import toy_space

CONV = ops.Conv(4)
ADD = ops.Add()
IN = Node("in", ops.Input((4, 4, 4)), ())
SHAPE = (4, 4, 4)


def small() -> Graph:
    """in -> a -> b, and a + b at the end."""
    nodes = (IN, Node("s.a", CONV, (0,)), Node("s.b", CONV, (1,)), Node("sum", ADD, (1, 2)))
    return Graph(nodes, (SHAPE,) * 4, 3, (Scope("s", "toy"),))


def test_a_sound_graph_is_verified() -> None:
    small().verify()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: Graph(g.nodes, g.shapes[:3], 3), "4 nodes, 3 shapes"),
        (lambda g: Graph(g.nodes, g.shapes, 4), "output 4"),
        (lambda g: replaced(g, 2, name="s.a"), "'s.a' stands at 1 and again at 2"),
        (lambda g: replaced(g, 1, inputs=(1,)), "'s.a' at 1 reads"),
        (lambda g: replaced(g, 1, inputs=(2,)), "'s.a' at 1 reads"),
        (lambda g: replaced(g, 1, inputs=(-1,)), "'s.a' at 1 reads"),
        (lambda g: Graph(g.nodes, (SHAPE, SHAPE, (4, 2, 2), SHAPE), 3), "'s.b': its shape is"),
        (lambda g: replaced(g, 3, inputs=(1,)), "two or more equal shapes"),
        (lambda g: replaced(g, 2, weights="no"), "'s.b' uses the weights of 'no', no earlier node"),
        (lambda g: replaced(g, 1, weights="s.b"), "'s.a' uses the weights of 's.b', no earlier node"),
        (lambda g: replaced(g, 2, weights="s.b"), "'s.b' uses the weights of 's.b', no earlier node"),
        (lambda g: replaced(g, 2, weights="in"), "uses the weights of 'in', another operation"),
        (lambda g: borrowed_twice(), "itself borrows; name 's.a'"),
        (lambda g: Graph(g.nodes, g.shapes, 3, (Scope("t", "toy"),)), "scope 't' has no node"),
    ],
)
def test_each_broken_rule_is_found(change: Callable[[Graph], Graph], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        change(small()).verify()
    assert "\n" not in str(caught.value)


def replaced(graph: Graph, at: int, **changes: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[at] = nodes[at]._replace(**changes)
    return Graph(tuple(nodes), graph.shapes, graph.output, graph.scopes)


def borrowed_twice() -> Graph:
    nodes = (IN, Node("s.a", CONV, (0,)), Node("s.b", CONV, (1,), "s.a"), Node("c", CONV, (2,), "s.b"))
    return Graph(nodes, (SHAPE,) * 4, 3)


def test_weights_are_shared_by_equal_operations_on_equal_widths() -> None:
    g = GraphBuilder(SHAPE)
    a = g.conv("a", 0, 4)
    g.conv("b", g.conv("wide", a, 8), 4, weights="a")
    with pytest.raises(GraphError, match="'b' uses the weights of 'a', another operation"):
        g.graph(3).verify()
    shared = g.graph(g.conv("c", a, 4, weights="a"))
    shared.verify()
    assert shared.owners == {"input": "input", "a": "a", "c": "a"}


class TestBuilder:
    def test_names_are_scopes(self) -> None:
        g = GraphBuilder(SHAPE, (8,))
        with g.scope("outer", "kind"), g.scope("inner"):
            x = g.conv_norm_act("unit", 0, 8, norm="none", activation="silu")
        graph = g.graph(x)
        assert [node.name for node in graph.nodes[2:]] == ["outer.inner.unit.conv", "outer.inner.unit.act"]
        assert graph.nodes[2].op.bias  # no norm takes its place
        assert graph.scopes == (Scope("outer", "kind"),)
        assert graph.inputs == (0, 1)
        graph.verify()

    def test_a_name_stands_once(self) -> None:
        g = GraphBuilder(SHAPE)
        g.conv("a", 0, 4)
        with pytest.raises(GraphError, match="two nodes are called 'a'"):
            g.conv("a", 0, 4)
        g.block("b", Conv(4), 0)
        with pytest.raises(GraphError, match="called alike under 'b'"):
            g.block("b", Conv(4), 0)

    def test_an_impossible_shape_names_the_node(self) -> None:
        with pytest.raises(GraphError, match=r"^stage\.1\.conv.*: Conv: kernel 9x9 does not fit"):
            Chain(stage=Chain(Skip(), Conv(4, 9, padding=0))).lower((3, 4, 4))

    def test_kinds_are_known(self) -> None:
        g = GraphBuilder(SHAPE)
        with pytest.raises(GraphError, match="unknown activation 'swish'; expected one of relu,"):
            g.activation("a", 0, "swish")
        with pytest.raises(GraphError, match="unknown norm 'bn'; expected one of batch,"):
            g.norm("n", 0, "bn")

    def test_what_does_nothing_adds_nothing(self) -> None:
        g = GraphBuilder(SHAPE)
        assert g.norm("n", 0, "none") == g.activation("a", 0, "identity") == g.dropout("d", 0, 0.0) == 0
        assert g.drop_path("p", 0, 0.0) == g.concat("c", 0) == g.block("s", Skip(), 0) == 0
        assert g.graph(0) == Graph((Node("input", ops.Input(SHAPE), ()),), (SHAPE,), 0)

    @pytest.mark.parametrize(("width", "groups"), [(8, 1), (16, 1), (32, 2), (48, 3), (50, 2), (53, 1), (512, 32)])
    def test_group_norm_takes_about_16_channels_a_group(self, width: int, groups: int) -> None:
        g = GraphBuilder((width, 2, 2))
        assert g.graph(g.norm("n", 0, "group")).nodes[1].op.groups == groups

    def test_containers_leave_their_names_and_kinds(self) -> None:
        block = Chain(a=Chain(b=Conv(4), nothing=Skip()), c=Branches((Conv(4), Conv(8))))
        graph = GraphBuilder(SHAPE)
        x = graph.block("net", block, 0)
        made = graph.graph(x)
        assert [tuple(scope) for scope in made.scopes] == [
            ("net", "chain"), ("net.a", "chain"), ("net.a.b", "conv"), ("net.c", "branches"), ("net.c.0", "conv"),
            ("net.c.1", "conv"),
        ]  # fmt: skip
        made.verify()
        assert made.nodes[-1].name == "net.c.join"

    def test_wiring_a_container_equals_lowering_it(self) -> None:
        space = toy_space()
        body = space.architecture(space.sample(np.random.default_rng(3))).body
        g = GraphBuilder((3, 16, 16))
        whole = g.graph(g.block("net", body, 0))
        alone = body.lower((3, 16, 16))
        assert [f"net.{node.name}" for node in alone.nodes[1:]] == [node.name for node in whole.nodes[1:]]
        assert [node[1:] for node in alone.nodes] == [node[1:] for node in whole.nodes]


class TestPruning:
    def test_only_what_reaches_the_output_stays(self) -> None:
        g = GraphBuilder(SHAPE)
        with g.scope("dead", "kind"):
            g.conv("b", g.conv("a", 0, 8), 8)
        graph = g.graph(g.conv("c", g.conv("live", 0, 4), 4))
        assert [node.name for node in graph.nodes] == ["input", "live", "c"]
        assert graph.nodes[2].inputs == (1,)
        assert graph.scopes == ()
        graph.verify()

    def test_an_unread_input_stays(self) -> None:
        g = GraphBuilder(SHAPE, SHAPE)
        graph = g.graph(g.conv("a", 1, 4))
        assert graph.inputs == (0, 1)
        graph.verify()

    def test_shared_weights_pass_to_the_first_that_is_used(self) -> None:
        g = GraphBuilder(SHAPE)
        g.conv("unused", 0, 4)
        a = g.conv("a", 0, 4, weights="unused")
        graph = g.graph(g.conv("b", a, 4, weights="unused"))
        assert [(node.name, node.weights) for node in graph.nodes[1:]] == [("a", None), ("b", "a")]
        graph.verify()


class TestJson:
    @pytest.mark.parametrize("seed", range(5))
    def test_there_and_back(self, seed: int) -> None:
        space = toy_space()
        graph = space.architecture(space.sample(np.random.default_rng(seed))).graph()
        assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
        assert Graph.from_json(json.loads(str(graph))).key() == graph.key()

    def test_shared_weights_and_every_kind_of_field(self) -> None:
        g = GraphBuilder((4, 8, 8))
        x = g.conv("a", 0, 4, (1, 3), stride=(2, 1), groups=2, bias=True)
        x = g.avg_pool("pool", g.conv("b", x, 4, (1, 3), stride=(2, 1), groups=2, bias=True, weights="a"), 2, ceil=True)
        x = g.dropout("drop", g.norm("norm", x, "group", eps=1e-3), 0.2)
        x = g.module("module", "torch.nn:Conv2d", x, in_channels=4, out_channels=6, kernel_size=1)
        graph = g.graph(g.linear("out", g.flatten("flat", x), 3))
        assert Graph.from_json(json.loads(json.dumps(graph.to_json()))) == graph

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"op": "Konv"}, "unknown operation 'Konv'; known: Input"),
            ({"radius": 3}, "operation Conv: .*radius"),
            ({"inputs": ["nobody"]}, "KeyError 'nobody'"),
            ({"inputs": None}, "TypeError"),
            ({"weights": "nobody"}, "no earlier node"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, change: dict[str, Any], message: str) -> None:
        data = small().to_json()
        data["nodes"][1] |= change
        with pytest.raises(GraphError, match=message) as caught:
            Graph.from_json(data)
        assert "\n" not in str(caught.value)

    def test_other_data_is_refused(self) -> None:
        with pytest.raises(GraphError, match="was it written by"):
            Graph.from_json({"layers": []})


def test_networkx_has_the_costs_and_the_order_of_inputs() -> None:
    space = toy_space()
    architecture = space.architecture(space.sample(np.random.default_rng(0)))
    graph, drawn = architecture.graph(), architecture.graph().to_networkx()
    assert networkx.is_directed_acyclic_graph(drawn)
    assert list(drawn) == [node.name for node in graph.nodes]
    assert sum(params for _, params in drawn.nodes(data="params")) == architecture.analysis.params
    assert sum(flops for _, flops in drawn.nodes(data="flops")) == architecture.analysis.flops
    twice = small()
    assert [(a, b, position) for a, b, position in twice.to_networkx().edges(data="position") if b == "sum"] == [
        ("s.a", "sum", 0), ("s.b", "sum", 1),
    ]  # fmt: skip


MAP = (6, 9, 8)


@pytest.mark.parametrize(
    ("op", "inputs", "shape"),
    [
        (ops.Conv(12), [MAP], (12, 9, 8)),
        (ops.Conv(12, (3, 5), (2, 3), (1, 0), (2, 1), 6, True), [MAP], (12, 4, 2)),
        (ops.Pool("max", (2, 2), (2, 2)), [MAP], (6, 4, 4)),
        (ops.Pool("max", (2, 2), (2, 2), ceil=True), [MAP], (6, 5, 4)),
        (ops.Pool("avg", (3, 3), (2, 2), (1, 1), True), [(6, 8, 7)], (6, 5, 4)),
        (ops.Pool("avg", (1, 1), (3, 3), (0, 0), True), [(6, 8, 7)], (6, 3, 3)),
        (ops.Pool("max", (2, 2), (2, 2), (1, 1), True), [(6, 5, 5)], (6, 3, 3)),
        (ops.AdaptivePool((2, 3)), [MAP], (6, 2, 3)),
        (ops.Linear(5), [(7,)], (5,)),
        (ops.Norm(), [(7,)], (7,)),
        (ops.Add(), [MAP, MAP, MAP], MAP),
        (ops.Mul(), [MAP, (6, 1, 1)], MAP),
        (ops.Mul(), [(6, 1, 1), MAP], MAP),
        (ops.Concat(), [MAP, (2, 9, 8)], (8, 9, 8)),
        (ops.Concat(), [(3,), (4,)], (7,)),
        (ops.Slice(2, 5), [MAP], (3, 9, 8)),
        (ops.Shuffle(3), [MAP], MAP),
        (ops.PadChannels(8), [MAP], (8, 9, 8)),
        (ops.Zero(2), [MAP], (6, 5, 4)),
        (ops.Shift(), [MAP], MAP),
        (ops.Flatten(), [MAP], (432,)),
        (ops.Activation("relu"), [MAP], MAP),
        (ops.PReLU(), [MAP], MAP),
    ],
)
def test_shapes(op: ops.Op, inputs: list[ops.Shape], shape: ops.Shape) -> None:
    assert op.shape(*inputs) == shape


@pytest.mark.parametrize(
    ("op", "inputs", "message"),
    [
        (ops.Conv(12), [(6,)], "Conv needs a feature map"),
        (ops.Conv(12, groups=4), [MAP], "divisible by groups=4"),
        (ops.Conv(12, (11, 3), padding=(0, 0)), [MAP], "kernel 11x3 does not fit into the 9x8 input; use a larger"),
        (ops.Pool("max", (10, 2), (2, 2)), [MAP], "does not fit"),
        (ops.Linear(5), [MAP], "flatten or pool first"),
        (ops.Norm("group", 4), [MAP], "6 channels are not divisible into 4 groups"),
        (ops.Norm("instance"), [(6,)], "instance normalisation needs a map"),
        (ops.Add(), [MAP], "two or more equal shapes"),
        (ops.Mean(), [MAP, (6, 9, 9)], "Mean needs two or more equal shapes"),
        (ops.Mul(), [MAP, (6, 3, 1)], "fits neither"),
        (ops.Mul(), [MAP, (6,)], "two feature maps"),
        (ops.Concat(), [MAP, (6, 9, 7)], "equal heights and widths"),
        (ops.Slice(2, 7), [MAP], "channels 2 to 7 are outside the 6"),
        (ops.Shuffle(4), [MAP], "not divisible into 4 groups"),
        (ops.PadChannels(5), [MAP], "cannot pad 6 channels to 5"),
        (ops.AdaptivePool(), [(6,)], "AdaptivePool needs a feature map"),
    ],
)
def test_impossible_shapes_are_refused_in_one_line(op: ops.Op, inputs: list[ops.Shape], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        op.shape(*inputs)
    assert "\n" not in str(caught.value)


def test_costs_of_single_operations() -> None:
    conv = ops.Conv(12, (3, 5), (1, 1), (1, 2), groups=3, bias=True)
    assert conv.params(MAP) == 12 * 2 * 15 + 12
    assert conv.flops(MAP) == 12 * 2 * 15 * 9 * 8
    assert (ops.Linear(5).params((7,)), ops.Linear(5).flops((7,)), ops.Linear(5, False).params((7,))) == (40, 35, 35)
    assert (ops.Norm().params(MAP), ops.PReLU().params(MAP), ops.Activation("relu").params(MAP)) == (12, 6, 0)


def test_a_head_ends_in_class_scores() -> None:
    graph = Chain(a=Conv(8), head=Head(7, hidden=16, dropout=0.5)).lower((3, 8, 8))
    assert graph.shapes[graph.output] == (7,)
    assert [node.name for node in graph.nodes if isinstance(node.op, ops.Linear)] == ["head.hidden", "head.classifier"]

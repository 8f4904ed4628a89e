"""What a template is written with: labels, scopes, paths, and the one walk."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from nas.blocks import Block, Cell, CellNode, Chain, Conv, Edge, InvertedResidual, Separable, Skip, SqueezeExcite, Stage
from nas.choices import Decision, Label, OneOf, Repeat, is_open, label_of
from nas.errors import SpaceError
from nas.walk import Following, Walker, resolve, survey


@dataclass(frozen=True)
class MyOwnBlock(Block):
    inner: Any
    pair: Any = (1, 2)


def first(decision: Decision) -> int:
    return 0


def take(labels: Mapping[str, Label], template: Any) -> tuple[Any, dict[str, Label]]:
    """Walk with the given labels; the first option where none is given. Every given one must be used."""

    def decide(decision: Decision) -> int:
        index = decision.index_in(labels)
        return 0 if index is None else index

    value, genotype = resolve(template, decide)
    assert labels.items() <= genotype.items()
    return value, genotype


def test_values_and_blocks_have_labels() -> None:
    assert [label_of(v) for v in (3, 0.5, "silu", True, None, (3, 5))] == [3, 0.5, "silu", True, None, "3-5"]
    assert label_of(InvertedResidual()) == "inverted_residual"
    assert label_of(Skip()) == "identity"
    with pytest.raises(SpaceError, match="has no label"):
        label_of([1, 2])


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ((), {}, "no options"),
        ((3, 5, 3), {}, "labels must be unique"),
        ((Conv(8), Conv(16)), {}, "labels must be unique"),
        ((1, True), {}, "labels must be unique"),
        ((1, 2), {"labels": ("one",)}, "labels must be unique"),
    ],
)
def test_labels_are_unique_among_options(options: tuple[Any, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message) as caught:
        OneOf(*options, **settings)
    assert "\n" not in str(caught.value)


def test_labels_can_be_given() -> None:
    choice = OneOf(Conv(8), Conv(16), labels=("narrow", "wide"))
    assert resolve(choice, lambda d: d.labels.index("wide")) == (Conv(16), {"block": "wide"})


def test_only_numbers_are_ordinal() -> None:
    assert OneOf(3, 5, 0.5).ordinal
    assert not OneOf(True, False).ordinal
    assert not OneOf(3, None).ordinal
    assert not OneOf(3, "relu").ordinal


def test_a_truth_value_is_no_number() -> None:
    decision = Decision("path", OneOf(0, 1, 2))
    assert decision.index(1) == decision.index(1.0) == 1
    assert decision.index(True) is None
    assert decision.index([1]) is None
    assert Decision("path", OneOf(True, False)).index(1) is None


@pytest.mark.parametrize("times", [-1, 1.5, True, OneOf(1, "two"), OneOf(0, -1)])
def test_repetitions_are_whole_numbers(times: Any) -> None:
    with pytest.raises(SpaceError, match="number of repetitions"):
        Repeat(Conv(8), times)


def test_an_open_choice_is_found_wherever_it_stands() -> None:
    choice = OneOf(1, 2)
    for value in (choice, Repeat(Conv(8), 2), (3, (4, choice)), Conv(choice), Chain(a=Conv(8), b=Conv(8, choice))):
        assert is_open(value)
    for value in (3, "relu", None, (3, 4), Conv(8), Chain(a=Conv(8)), SqueezeExcite()):
        assert not is_open(value)


def test_a_template_without_choices_is_returned_as_it_is() -> None:
    block = Chain(a=Conv(8), b=Conv(16))
    assert resolve(block, first) == (block, {})
    assert resolve(block, first)[0] is block


def test_decisions_come_in_reading_order_with_readable_paths() -> None:
    layer = OneOf(InvertedResidual(kernel=OneOf(3, 5), expansion=OneOf(3, 6)), Skip())
    template = Chain(
        stem=Conv(OneOf(8, 16)),
        stage1=Repeat(layer, OneOf(1, 2), each={"width": OneOf(24, 32)}, first={"stride": OneOf(1, 2)}),
    )
    seen: list[str] = []

    def decide(decision: Decision) -> int:
        seen.append(decision.path)
        return 1 if decision.path == "stage1.times" else 0

    block, genotype = resolve(template, decide)
    assert seen == list(genotype) == [
        "stem.width", "stage1.times", "stage1.width", "stage1.stride",
        "stage1.0.block", "stage1.0.kernel", "stage1.0.expansion",
        "stage1.1.block", "stage1.1.kernel", "stage1.1.expansion",
    ]  # fmt: skip
    layers = [part for _, part in dict(block.parts)["stage1"].steps()]
    assert layers == [InvertedResidual(24, 3, stride=1, expansion=3), InvertedResidual(24, 3, expansion=3)]


def test_conditional_choices_at_any_depth() -> None:
    deep = OneOf(Conv(8), Chain(inner=OneOf(Skip(), Separable(se=OneOf(None, SqueezeExcite(ratio=OneOf(0.25, 0.5)))))))
    template = Chain(outer=deep)
    assert take({"outer": "conv"}, template)[1] == {"outer": "conv"}
    inner = {"outer.inner": "separable", "outer.inner.se": "squeeze_excite", "outer.inner.se.ratio": 0.5}
    block, genotype = take({"outer": "chain", **inner}, template)
    assert genotype == {"outer": "chain", **inner}
    assert block == Chain(outer=Chain(inner=Separable(se=SqueezeExcite(0.5))))


class TestSharing:
    """The same object in one scope, or in a scope inside it, is one decision."""

    def test_within_a_block_and_between_blocks(self) -> None:
        act = OneOf("relu", "silu")
        template = Chain(a=Separable(activation=act, se=SqueezeExcite(activation=act)), b=Conv(activation=act))
        block, genotype = take({"a.se.activation": "silu"}, template)
        assert genotype == {"a.se.activation": "silu"}
        parts = dict(block.parts)
        assert parts["a"].activation == parts["a"].se.activation == parts["b"].activation == "silu"

    def test_a_scope_inside_sees_what_was_decided_around_it(self) -> None:
        act = OneOf("relu", "silu", name="activation")
        template = Chain(stem=Conv(8, activation=act), body=Repeat(Conv(8, activation=act), 3))
        block, genotype = take({"activation": "silu"}, template)
        assert genotype == {"activation": "silu"}
        assert {b.activation for _, b in dict(block.parts)["body"].steps()} == {"silu"}

    def test_what_a_repetition_decides_is_open_in_the_next_and_outside(self) -> None:
        act = OneOf("relu", "silu", name="activation")
        template = Chain(body=Repeat(Conv(8, activation=act), 2), last=Conv(8, activation=act))
        labels = {"body.0.activation": "silu", "body.1.activation": "relu", "activation": "silu"}
        assert take(labels, template)[1] == labels

    def test_shared_repetitions_take_the_same_decisions(self) -> None:
        template = Repeat(Conv(8, kernel=OneOf(3, 5)), OneOf(0, 1, 3), shared=True)
        block, genotype = take({"times": 3, "each.kernel": 5}, template)
        assert genotype == {"times": 3, "each.kernel": 5}
        assert block == Stage((Conv(8, 5),) * 3)
        assert take({"times": 0}, template) == (Stage(()), {"times": 0})

    def test_an_option_met_again_brings_its_inner_decisions_along(self) -> None:
        se = OneOf(None, SqueezeExcite(ratio=OneOf(0.25, 0.5)), name="se")
        template = Chain(a=Separable(se=se), b=Separable(se=se))
        block, genotype = take({"se": "squeeze_excite", "a.se.ratio": 0.5}, template)
        assert genotype == {"se": "squeeze_excite", "a.se.ratio": 0.5}
        assert block == Chain(a=Separable(se=SqueezeExcite(0.5)), b=Separable(se=SqueezeExcite(0.5)))


def test_the_wiring_of_a_cell_is_a_choice() -> None:
    nodes = tuple(CellNode((Edge(OneOf(*range(i + 1)), OneOf(Conv(), Skip())),)) for i in range(3))
    template = Cell(nodes, output="concat")
    block, genotype = take({"nodes.1.edges.0.source": 1, "nodes.2.edges.0.source": 0}, template)
    assert list(genotype)[:2] == ["nodes.0.edges.0.source", "nodes.0.edges.0.block"]
    assert [node.edges[0].source for node in block.nodes] == [0, 1, 0]
    graph = block.lower((8, 4, 4))
    assert graph.nodes[graph.output].name == "concat"
    assert graph.shapes[graph.output] == (16, 4, 4)  # nodes 1 and 2: node 0 is read by node 1


def test_two_choices_may_not_share_a_path() -> None:
    template = Chain(a=Conv(OneOf(8, 16, name="x")), b=Conv(OneOf(8, 16, name="x")))
    with pytest.raises(SpaceError, match="share the path 'x'; give one OneOf a name"):
        resolve(template, first)


def test_a_collision_is_found_where_a_repetition_is_remembered() -> None:
    inner = Repeat(Conv(OneOf(8, 16, name="y")), 1)
    template = Chain(a=OneOf(Skip(), Conv(kernel=OneOf(8, 16, name="b.0.y"))), b=inner)
    walker = Walker(template)
    genotype = {"a": "identity", "b.0.y": 8}
    walker.resolve(Following(genotype, "space"))  # no collision, and remembered
    with pytest.raises(SpaceError, match=r"share a path inside 'b'"):
        walker.resolve(Following({"a": "conv", "b.0.y": 8}, "space"))


def test_decide_must_answer_with_an_option() -> None:
    for index in (-1, 2):
        with pytest.raises(SpaceError, match=f"option {index} of 2"):
            resolve(Conv(OneOf(8, 16)), lambda _, index=index: index)


@pytest.mark.parametrize("argument", ["each", "first"])
def test_a_repetition_sets_only_fields_that_its_blocks_have(argument: str) -> None:
    with pytest.raises(SpaceError, match="'expansion', which the block 'conv' does not have"):
        resolve(Repeat(Conv(8), 2, **{argument: {"expansion": 3}}), first)


def test_the_same_decisions_give_the_same_object() -> None:
    layer = OneOf(Conv(8, OneOf(3, 5)), Skip())
    template = Chain(a=Repeat(layer, OneOf(1, 2), each={"width": OneOf(8, 16)}), b=Conv(8))
    walker = Walker(template)
    genotype = {"a.times": 2, "a.width": 16, "a.0.block": "conv", "a.0.kernel": 5, "a.1.block": "identity"}
    one = walker.resolve(Following(genotype, "space"))
    two = walker.resolve(Following(dict(genotype), "space"))
    assert one == two
    assert one[0] is two[0]
    other = walker.resolve(Following(genotype | {"a.1.block": "conv", "a.1.kernel": 5}, "space"))[0]
    layers = [block for _, block in dict(other.parts)["a"].steps()]
    assert layers[0] is layers[1]  # equal layers of a stage are one block, which remembers its cost once


def test_a_remembered_repetition_depends_on_what_it_shares_with_its_surroundings() -> None:
    act = OneOf("relu", "silu", name="activation")
    walker = Walker(Chain(stem=Conv(8, activation=act), body=Repeat(Conv(8, kernel=OneOf(3, 5), activation=act), 1)))
    for label in ("relu", "silu", "relu"):
        block, genotype = walker.resolve(Following({"activation": label, "body.0.kernel": 3}, "space"))
        assert dict(block.parts)["body"].blocks[0].activation == label
        assert genotype == {"activation": label, "body.0.kernel": 3}


def test_what_is_missing_is_not_none() -> None:
    walker = Walker(Repeat(Separable(8, se=OneOf(None, SqueezeExcite())), 1))
    walker.resolve(Following({"0.se": None}, "space"))
    with pytest.raises(SpaceError, match=r"lacks '0\.se'; expected one of"):
        walker.resolve(Following({}, "space"))


def test_a_choice_survives_copying_with_what_it_shares() -> None:
    act = OneOf("relu", "silu", name="activation")
    template = Chain(a=Conv(8, activation=act), b=Conv(8, activation=act))
    for again in (copy.deepcopy(template), pickle.loads(pickle.dumps(template))):
        assert survey(again) == survey(template) == {"activation": ("relu", "silu")}


def test_a_users_block_may_hold_open_choices() -> None:
    template = MyOwnBlock(OneOf(Conv(8), Skip()), pair=(1, OneOf(2, 3)))
    block, genotype = resolve(template, lambda decision: 1)
    assert MyOwnBlock.label == "my_own_block"
    assert block == MyOwnBlock(Skip(), (1, 3))
    assert list(genotype) == ["inner", "pair.1.block"]

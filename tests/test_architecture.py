"""Architectures: what they know, JSON, and compound scaling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from nas.search_spaces import zoo

from nas import ops
from nas.architecture import Architecture, scale
from nas.blocks import Chain, Conv, Dense, Head, InvertedResidual, Residual, Skip, Stage
from nas.choices import OneOf, Repeat
from nas.errors import GraphError, SpaceError
from nas.testing import toy_space


def small(**options: Any) -> Architecture:
    stage = Stage((InvertedResidual(24), InvertedResidual(24), Residual(24)), (("stride", 2),))
    body = Chain(stem=Conv(12), stage=stage, tail=Skip(), head=Head(10, hidden=20))
    return Architecture(body, (3, 16, 12), 10, **options)


def test_it_knows_its_costs_and_its_key() -> None:
    architecture = small(name="small")
    assert architecture.metrics() == {
        "flops": architecture.analysis.flops,
        "params": architecture.analysis.params,
        "memory": architecture.analysis.memory,
        "depth": architecture.analysis.depth,
    }
    assert architecture.key() == architecture.graph().key() == small(name="other").key()
    assert architecture.graph() is architecture.graph()


def test_repetitions_without_choices_are_closed() -> None:
    body = Chain(stem=Conv(8), body=Repeat(Conv(8), 3, each={"kernel": 5}, first={"stride": 2}), head=Head(4))
    architecture = Architecture(body, (1, 8, 8), 4)
    kernels = [node.op for node in architecture.graph().nodes if isinstance(node.op, ops.Conv)][1:]
    assert [(op.kernel, op.stride) for op in kernels] == [((5, 5), (2, 2)), ((5, 5), (1, 1)), ((5, 5), (1, 1))]


def test_what_is_open_is_no_architecture() -> None:
    with pytest.raises(SpaceError, match=r"architecture 'network': 'a.width' is open between \[8, 16\]"):
        Architecture(Chain(a=Conv(OneOf(8, 16)), head=Head(2)), (1, 8, 8), 2)
    with pytest.raises(SpaceError, match="block 'conv' has open choices"):
        Conv(OneOf(8, 16)).lower((1, 8, 8))


def test_it_must_end_in_class_scores() -> None:
    with pytest.raises(SpaceError, match=r"ends in the shape \(7,\), expected 5 class scores"):
        Architecture(Chain(a=Conv(8), head=Head(7)), (1, 8, 8), 5).graph()
    with pytest.raises(SpaceError, match="end it with a Head"):
        Architecture(Conv(8), (1, 8, 8), 8).graph()


def test_an_input_that_is_too_small_is_named() -> None:
    with pytest.raises(GraphError, match=r"^a.*kernel 5x5 does not fit into the 4x4 input; use a larger resolution$"):
        Architecture(Chain(a=Conv(8, 5, padding=0), head=Head(2)), (1, 4, 4), 2).graph()


class TestJson:
    @pytest.mark.parametrize("seed", range(5))
    def test_there_and_back(self, seed: int) -> None:
        space = toy_space()
        one = space.architecture(space.sample(np.random.default_rng(seed)))
        two = Architecture.from_json(json.loads(json.dumps(one.to_json())))
        assert two == one
        assert two.genotype == one.genotype
        assert (two.key(), two.analysis) == (one.key(), one.analysis)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"format": 2}, "format 2 is newer than 1; upgrade"),
            ({"body": {"label": "transformer"}}, "unknown block 'transformer'; import the module that defines it"),
            ({"body": {"label": "conv", "radius": 3}}, "block 'conv': .*radius"),
            ({"body": {"label": "conv", "width": {"label": "nowhere"}}}, "unknown block 'nowhere'"),
            ({"body": {"label": "chain"}}, "block 'chain': 'parts'"),
            ({"body": 3}, "architecture JSON"),
            ({"body": None}, "architecture JSON"),
            ({"classes": "many"}, "architecture JSON: ValueError"),
            ({"input_shape": 8}, "architecture JSON: TypeError"),
        ],
    )
    def test_what_is_wrong_is_said_in_one_line(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(SpaceError, match=message) as caught:
            Architecture.from_json({**small().to_json(), **change})
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("data", [{}, {"layers": 3}, [], None, "network"])
    def test_other_data_is_refused(self, data: Any) -> None:
        with pytest.raises(SpaceError, match="architecture JSON"):
            Architecture.from_json(data)


class TestScale:
    def test_factors_of_one_change_nothing(self) -> None:
        for name in ("mobilenet_v2", "resnet50", "efficientnet_b0", "densenet121"):
            architecture = zoo.get(name)
            assert architecture.scale().key() == scale(architecture, width=1.0, depth=1.0).key() == architecture.key()

    def test_width_is_rounded_to_eights_and_the_classifier_stays(self) -> None:
        scaled = small().scale(width=1.1)
        stem, stage, tail, head = (part for _, part in scaled.body.parts)  # type: ignore[attr-defined]
        assert stem.width == 16  # 13.2 -> 16
        assert [block.width for block in stage.blocks] == [24] * 3  # 26.4 -> 24: not below 90 %
        assert (tail.width, head.hidden, head.classes) == (None, 24, 10)
        assert small().scale(width=1.2).body.parts[1][1].blocks[0].width == 32  # type: ignore[attr-defined]  # 28.8
        scaled.graph().verify()

    def test_added_repetitions_copy_the_last_block(self) -> None:
        stage = small().scale(depth=1.5).body.parts[1][1]  # type: ignore[attr-defined]
        assert [block.label for block in stage.blocks] == ["inverted_residual"] * 2 + ["residual"] * 3  # 4.5 -> 5
        assert stage.first == (("stride", 2),)
        shapes = [small().scale(depth=depth).graph().shapes[-5][1:] for depth in (0.3, 1, 1.5, 4)]
        assert len(set(shapes)) == 1  # only the first repetition has the stride

    @pytest.mark.parametrize(("depth", "times"), [(0.2, 1), (0.34, 2), (1.0, 3), (1.01, 4), (4 / 3, 4), (2.0, 6)])
    def test_depth_is_rounded_up(self, depth: float, times: int) -> None:
        stage = small().scale(depth=depth).body.parts[1][1]  # type: ignore[attr-defined]
        assert len(stage.blocks) == times

    @pytest.mark.parametrize(
        ("resolution", "shape"), [(24, (3, 32, 24)), (12, (3, 16, 12)), (1.5, (3, 24, 18)), (0.01, (3, 1, 1))]
    )
    def test_resolution_is_pixels_or_a_factor(self, resolution: float, shape: tuple[int, ...]) -> None:
        assert small().scale(resolution=resolution).input_shape == shape

    @pytest.mark.parametrize("factors", [{"width": 0}, {"depth": -1}, {"resolution": 0}])
    def test_factors_are_positive(self, factors: dict[str, float]) -> None:
        with pytest.raises(SpaceError, match="expected positive factors"):
            small().scale(**factors)

    def test_what_has_no_width_of_its_own_follows(self) -> None:
        body = Chain(stem=Conv(16), dense=Dense(), head=Head(2))
        wide = Architecture(body, (1, 8, 8), 2).scale(width=2)
        assert wide.graph().shapes[-3] == (32, 1, 1)

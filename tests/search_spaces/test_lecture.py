"""The lecture space: the classic blocks beside each other, at every input size."""

from __future__ import annotations

import numpy as np
import pytest
from nas.search_spaces.lecture import lecture

from nas import ops
from nas.choices import Label
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space
from nas.testing import SpaceConformance

BLOCKS = {  # and the join that it has at any width
    "residual": "Add", "bottleneck": "Add", "dense": "Concat", "inception": "Concat", "separable": "", "conv": "",
    "inverted_residual": "", "identity": "",
}  # fmt: skip


class TestConformance(SpaceConformance):
    inputs = (((1, 8, 8), 10), ((1, 28, 28), 3), ((3, 32, 48), 100), ((3, 224, 224), 1000))
    samples = 12

    def make(self, input_shape: Shape, classes: int) -> Space:
        return lecture(input_shape, classes)


def genotype(space: Space, **layer: Label) -> dict[str, Label]:
    """One layer per stage, all alike."""
    chosen: dict[str, Label] = {}

    def decide(decision: object) -> int:
        path, labels = decision.path, list(decision.labels)  # type: ignore[attr-defined]
        return labels.index(layer[path.split(".")[-1]]) if path.split(".")[-1] in layer else 0

    chosen.update(space.walk(decide))
    return chosen


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_can_be_chosen(block: str) -> None:
    space = lecture((1, 28, 28), 10)
    chosen = genotype(space, block=block, kernel=5, activation="gelu")
    assert [chosen[f"stage{i}.0.block"] for i in (1, 2, 3, 4)] == [block] * 4
    graph = space.architecture(chosen).graph()
    graph.verify()
    assert graph.shapes[graph.output] == (10,)
    kinds = {type(node.op).__name__ for node in graph.nodes}
    assert not BLOCKS[block] or BLOCKS[block] in kinds
    if block != "identity":
        assert any(isinstance(node.op, ops.Conv) and node.op.kernel == (5, 5) for node in graph.nodes)
        assert any(isinstance(node.op, ops.Activation) and node.op.kind == "gelu" for node in graph.nodes)


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_every_activation_can_be_chosen(activation: str) -> None:
    space = lecture((1, 8, 8), 10)
    graph = space.architecture(genotype(space, block="conv", activation=activation)).graph()
    found = [node.op for node in graph.nodes if isinstance(node.op, ops.Activation | ops.PReLU)]
    expected = [] if activation == "identity" else [activation] * 3
    assert [getattr(op, "kind", "prelu") for op in found] == expected


def test_a_layer_chooses_block_width_kernel_and_activation() -> None:
    space = lecture((1, 28, 28), 10)
    assert set(space.paths["stage2.1.block"]) == set(BLOCKS)
    assert space.paths["stage2.1.width"] == (16, 32, 48)
    assert space.paths["stage2.1.kernel"] == (3, 5)
    assert space.paths["stage2.1.activation"] == ops.ACTIVATIONS


@pytest.mark.parametrize(
    ("size", "stages", "stride"),
    [(1, 1, 1), (4, 1, 1), (7, 2, 2), (8, 2, 2), (28, 4, 8), (32, 4, 8), (64, 5, 16), (112, 4, 32), (256, 4, 32)],
)
def test_stages_and_strides_follow_the_input_size(size: int, stages: int, stride: int) -> None:
    space = lecture((3, size + 3, size), 2)
    assert sum(path.endswith(".times") for path in space.paths) == stages
    rng = np.random.default_rng(0)
    for _ in range(10):
        architecture = space.architecture(space.sample(rng))
        assert architecture.analysis.stride == (stride, stride)
        architecture.graph().verify()


@pytest.mark.parametrize(
    ("shape", "least", "most"),
    [((1, 8, 8), 0.01e6, 10e6), ((1, 28, 28), 0.5e6, 150e6), ((3, 32, 32), 0.5e6, 200e6), ((3, 224, 224), 50e6, 8e9)],
)
def test_it_spans_a_factor_of_ten_at_a_sensible_size(shape: Shape, least: float, most: float) -> None:
    space, rng = lecture(shape, 10), np.random.default_rng(0)
    flops = [space.architecture(space.sample(rng)).analysis.flops for _ in range(200)]
    assert least <= min(flops)
    assert max(flops) <= most
    assert max(flops) >= 10 * min(flops)


def test_options() -> None:
    space = lecture((1, 28, 28), 10, width=8, depths=[4], kernels=[3, 7], activations=["relu"])
    assert space.paths["stage1.0.width"] == (8, 16)  # 4, 8 and 12, in eights
    assert space.paths["stage1.times"] == (4,)
    assert space.paths["stage1.0.kernel"] == (3, 7)
    with pytest.raises(SpaceError, match="width must be at least 8, got 4"):
        lecture((1, 28, 28), 10, width=4)

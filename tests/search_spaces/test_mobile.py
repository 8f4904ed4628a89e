"""The mobile space: what it contains, and what it spans at every input size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from nas.search_spaces import zoo
from nas.search_spaces.mobile import STAGES, mobile

from nas import ops
from nas.choices import Genotype, Label
from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space
from nas.testing import SpaceConformance


class TestConformance(SpaceConformance):
    inputs = (((1, 8, 8), 10), ((1, 28, 28), 3), ((3, 32, 48), 10), ((3, 224, 224), 1000))
    samples = 12

    def make(self, input_shape: Shape, classes: int) -> Space:
        return mobile(input_shape, classes)


Layers = Sequence[tuple[int, int, int]]  # layers, width, kernel of each stage


def member(activation: str, se: str | None, layers: Layers) -> Genotype:
    """Inverted residuals with expansion 6, in the first stage 1 (which is the separable block)."""
    found: dict[str, Label] = {"resolution": 1.0, "activation": activation, "stem.width": 32, "features.width": 1280}
    for i, (times, width, kernel) in enumerate(layers, 1):
        found |= {f"stage{i}.times": times, f"stage{i}.width": width}
        for layer in [f"stage{i}.{j}" for j in range(times)]:
            found |= {f"{layer}.kernel": kernel, f"{layer}.se": se, f"{layer}.activation": activation}
            found |= {f"{layer}.block": "inverted_residual", f"{layer}.expansion": 6} if i > 1 else {}
            found |= {f"{layer}.block": "separable"} if i == 1 else {}
    return found


V2 = member("relu6", None, [(1, 16, 3), (2, 24, 3), (3, 32, 3), (4, 64, 3), (3, 96, 3), (3, 160, 3), (1, 320, 3)])
B0 = member(
    "silu", "squeeze_excite",
    [(1, 16, 3), (2, 24, 3), (2, 40, 5), (3, 80, 3), (3, 112, 5), (4, 192, 5), (1, 320, 3)],
)  # fmt: skip


@pytest.mark.parametrize(("genotype", "name"), [(V2, "mobilenet_v2"), (B0, "efficientnet_b0")])
def test_it_contains_the_published_networks(genotype: Genotype, name: str) -> None:
    """As many parameters, multiply-adds, bytes and layers as the zoo's (which have dropout, too)."""
    space = mobile((3, 224, 224), 1000)
    space.check(genotype)
    assert space.architecture(genotype).analysis == zoo.get(name).analysis


def random_costs(space: Space, n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([space.architecture(space.sample(rng)).analysis.flops for _ in range(n)])


@pytest.mark.parametrize(
    ("shape", "least", "most"),
    [((1, 8, 8), 0.01e6, 4e6), ((1, 28, 28), 0.5e6, 60e6), ((3, 32, 32), 0.5e6, 60e6), ((3, 224, 224), 20e6, 1200e6)],
)
def test_it_spans_a_factor_of_ten_at_a_sensible_size(shape: Shape, least: float, most: float) -> None:
    flops = random_costs(mobile(shape, 10))
    assert least <= flops.min()
    assert flops.max() <= most
    assert flops.max() >= 10 * flops.min()


@pytest.mark.parametrize(
    ("size", "stages", "stride"),
    [(1, 1, 1), (3, 1, 1), (6, 1, 1), (8, 2, 2), (16, 3, 4), (28, 5, 8), (64, 5, 16), (112, 7, 32), (512, 7, 32)],
)
def test_stages_and_strides_follow_the_input_size(size: int, stages: int, stride: int) -> None:
    space = mobile((3, size, 2 * size), 10)
    assert sum(path.endswith(".times") for path in space.paths) == stages
    rng = np.random.default_rng(0)
    for _ in range(5):
        architecture = space.architecture(space.sample(rng))
        assert architecture.analysis.stride == (stride, stride)
        maps = [shape for shape in architecture.graph().shapes if len(shape) == 3]
        assert maps[-1] == (maps[-2][0], 1, 1)
        assert maps[-2][1] >= 3 or size < 8  # the last feature map
        architecture.graph().verify()


def test_every_layer_chooses_for_itself() -> None:
    space = mobile((1, 28, 28), 10)
    labels = {path.split(".", 2)[-1]: set(options) for path, options in space.paths.items() if path.count(".") == 2}
    assert labels == {
        "block": {"inverted_residual", "separable", "identity"},
        "kernel": {3, 5, 7},
        "expansion": {3, 4, 6},
        "se": {None, "squeeze_excite"},
        "activation": {"relu", "relu6", "hard_swish", "silu"},
    }
    assert set(space.paths["resolution"]) == {0.75, 1.0, 1.25}
    layers = [path for path in space.paths if path.endswith(".kernel")]
    assert len(layers) == sum(max(depths) for _, depths, _ in STAGES[:5])


def test_a_layers_activation_is_that_of_its_gate_and_the_stems_that_of_the_head() -> None:
    space, rng = mobile((1, 8, 8), 10), np.random.default_rng(0)
    for _ in range(20):
        genotype = space.sample(rng)
        graph = space.architecture(genotype).graph()
        for node in graph.nodes:
            if isinstance(node.op, ops.Activation) and node.op.kind != "sigmoid":
                layer = ".".join(node.name.split(".")[:2])
                own = genotype.get(f"{layer}.activation", genotype["activation"])
                assert node.op.kind == own


def test_options() -> None:
    space = mobile(
        (1, 28, 28), 10, width=0.5, stages=2, kernels=[3], expansions=[2, 3], activations=["gelu"], resolutions=[1.0]
    )
    assert space.paths["stage2.width"] == (16,)  # 12 and 16, in eights
    assert space.paths["stage1.0.kernel"] == (3,)
    assert space.paths["stage1.0.expansion"] == (2, 3)
    assert not any(path.startswith("stage3") for path in space.paths)
    full, half = random_costs(mobile((1, 28, 28), 10)), random_costs(mobile((1, 28, 28), 10, width=0.5))
    assert np.median(half) < 0.6 * np.median(full)
    deep = mobile((1, 8, 8), 10, stages=7)
    assert deep.architecture(deep.sample(np.random.default_rng(0))).analysis.stride == (2, 2)


@pytest.mark.parametrize(("options", "message"), [({"width": 0}, "positive, got 0"), ({"stages": 8}, "1 to 7, got 8")])
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        mobile((1, 28, 28), 10, **options)  # type: ignore[arg-type]

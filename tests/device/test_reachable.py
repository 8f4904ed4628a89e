"""Which blocks a space can contain."""

from __future__ import annotations

import numpy as np
import pytest

from nas.blocks import Chain, Conv, Head, InvertedResidual, Separable, Skip
from nas.choices import OneOf, Repeat
from nas.device.reachable import blocks, key
from nas.errors import GraphError, SpaceError
from nas.plugins import make_space
from nas.pricing import leaves
from nas.space import Space


def occurring(space: Space) -> set[str]:
    """Keys of all blocks of all architectures, by going through them."""
    found: set[str] = set()
    for genotype in space.enumerate():
        made = space.architecture(genotype)
        try:
            made.graph()
        except GraphError:
            continue
        found.update(k for block, shape in leaves(made.body, made.input_shape) if (k := key(block, shape)))
    return found


def small(**options: object) -> Space:
    """Widths that later blocks read, strides, identities, a scope for each repetition, resolutions."""
    layer = OneOf(InvertedResidual(kernel=OneOf(3, 5, name="k"), expansion=2), Skip(), name="block")
    stage = Repeat(layer, OneOf(1, 2), each={"width": OneOf(8, 16)}, first={"stride": 2}, **options)  # type: ignore[arg-type]
    body = Chain(stem=Conv(OneOf(4, 8)), stage=stage, last=OneOf(Chain(Conv(8), Skip()), Separable()), head=Head(3))
    return Space(body, input_shape=(3, 8, 8), classes=3, resolution=OneOf(1.0, 1.5))


@pytest.mark.parametrize("space", [small(), small(shared=True)], ids=["scopes", "shared"])
def test_they_are_those_of_all_architectures(space: Space) -> None:
    assert set(blocks(space)) == occurring(space)


def test_a_stage_that_may_be_empty_lets_what_is_before_it_through() -> None:
    body = Chain(stem=Conv(8), stage=Repeat(Conv(OneOf(12, 16)), OneOf(0, 2)), head=Head(3))
    space = Space(body, input_shape=(3, 8, 8), classes=3)
    assert set(blocks(space)) == occurring(space)
    heads = {shape[0] for block, shape in blocks(space).values() if isinstance(block, Head)}
    assert heads == {8, 12, 16}


def test_a_choice_in_two_parts_may_give_more_never_fewer() -> None:
    width = OneOf(8, 16, name="width")
    body = Chain(stem=Conv(width), body=Conv(width), head=Head(3))
    space = Space(body, input_shape=(3, 8, 8), classes=3)
    assert occurring(space) < set(blocks(space))


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench-macro"])
def test_none_is_missing_in_the_spaces_we_ship(name: str) -> None:
    options = {"activations": ("relu", "silu")} if name != "nasbench-macro" else {}
    space = make_space(name, (3, 16, 16), 10, options)
    found, rng = blocks(space), np.random.default_rng(0)
    for _ in range(60):
        made = space.architecture(space.sample(rng))
        assert {k for placed in leaves(made.body, made.input_shape) if (k := key(*placed))} <= set(found)
    for k, (block, shape) in list(found.items())[:50]:
        assert block.lower(shape).key() == k


def test_a_block_with_too_many_settings_is_named() -> None:
    with pytest.raises(SpaceError, match=r"one block of it \(cell_network\) has [\d,]+ settings"):
        blocks(make_space("darts", (3, 32, 32), 10, {}))

"""Spaces on random templates: nested, conditional, shared, repeated choices, all against plain enumeration."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from nas import ops
from nas.blocks import Block, Chain, Conv, Head, InvertedResidual, Skip
from nas.choices import Label, OneOf, Repeat
from nas.errors import SpaceError
from nas.plugins import make_space
from nas.space import Space
from nas.testing import toy_space
from nas.walk import resolve

LARGEST = 400


@dataclass(frozen=True)
class Red(Block):
    a: Any = 0
    b: Any = 0


@dataclass(frozen=True)
class Blue(Block):
    a: Any = 0
    b: Any = 0


@st.composite
def templates(draw: st.DrawFn) -> Block:
    """A template; some of its choices are one object in several places."""
    pool = [OneOf(1, 2, name="s"), OneOf("x", "y", "z", name="t"), OneOf(Red(OneOf(5, 6)), Blue(), name="u")]
    numbers = st.sampled_from([OneOf(0, 1), OneOf(0, 2), OneOf(1, 2), 0, 1, 2])

    def value(depth: int) -> Any:
        kinds = ["constant", "choice", "pool"] + (["block", "blocks", "tuple", "repeat"] if depth else [])
        kind = draw(st.sampled_from(kinds))
        if kind == "constant":
            return draw(st.integers(0, 3))
        if kind == "choice":
            return OneOf(*range(draw(st.integers(1, 3))))
        if kind == "pool":
            return draw(st.sampled_from(pool))
        if kind == "tuple":
            return (value(depth - 1), value(depth - 1))
        if kind == "blocks":
            return OneOf(Red(value(depth - 1), value(depth - 1)), Blue(value(depth - 1)))
        if kind == "repeat":
            each = {"a": value(0)} if draw(st.booleans()) else {}
            times = draw(numbers)
            return Repeat(block(depth - 1), times, each=each, first={"b": value(0)}, shared=draw(st.booleans()))
        return block(depth - 1)

    def block(depth: int) -> Any:
        made = draw(st.sampled_from([Red, Blue]))(value(depth), value(depth))
        return OneOf(made, Red() if isinstance(made, Blue) else Blue()) if draw(st.booleans()) else made

    return Chain(first=block(2), second=block(2), last=value(2))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    resolution = draw(st.sampled_from([1.0, OneOf(0.5, 1.0)]))
    space = Space(draw(templates()), input_shape=(1, 8, 8), classes=2, resolution=resolution)
    assume(space.size() <= LARGEST)
    return space


def frozen(genotype: Mapping[str, Label]) -> frozenset[tuple[str, Label]]:
    return frozenset(genotype.items())


SLOW = [HealthCheck.filter_too_much, HealthCheck.too_slow]
COMMON = settings(max_examples=60, suppress_health_check=SLOW)


@COMMON
@given(spaces())
def test_the_size_is_the_number_of_genotypes(space: Space) -> None:
    every = list(space.enumerate())
    assert space.size() == len(every) == len({frozen(g) for g in every})


@COMMON
@given(spaces(), st.randoms(use_true_random=False))
def test_every_genotype_stands_for_one_template_without_choices(space: Space, random: Any) -> None:
    every = list(space.enumerate())
    random.shuffle(every)
    for genotype in every[:40]:
        assert space.check(genotype) == genotype
        body, again = resolve(space.template, lambda d, genotype=genotype: d.index_in(genotype))
        architecture = space.architecture(genotype)
        assert architecture.body == body  # what is remembered equals what is walked afresh
        assert architecture.genotype == genotype
        assert again.items() <= genotype.items()


@COMMON
@given(spaces())
def test_codes_go_there_and_back(space: Space) -> None:
    seen = set()
    for genotype in space.enumerate():
        code = space.encode(genotype)
        assert code.shape == (len(space.paths),)
        assert [path for path, i in zip(space.paths, code, strict=True) if i >= 0] == [
            path for path in space.paths if path in genotype
        ]
        assert space.decode(code) == genotype
        seen.add(tuple(code))
    assert len(seen) == space.size()


@COMMON
@given(spaces(), st.integers(0, 2**32 - 1))
def test_what_chance_makes_is_in_the_space(space: Space, seed: int) -> None:
    every = {frozen(g) for g in space.enumerate()}
    rng = np.random.default_rng(seed)
    parent = space.sample(rng)
    assert frozen(parent) in every
    for _ in range(5):
        other = space.sample(rng)
        child = space.crossover(parent, other, rng)
        assert frozen(child) in every
        both = {*parent.items(), *other.items()}
        assert all(item in both for item in child.items() if item[0] in parent and item[0] in other)
        if len(every) > 1:
            for decisions in (1, 2):
                mutant = space.mutate(parent, rng, decisions=decisions)
                assert frozen(mutant) in every
                assert mutant != parent
            parent = mutant
        else:
            with pytest.raises(SpaceError, match="nothing to mutate"):
                space.mutate(parent, rng)


@COMMON
@given(spaces(), st.integers(0, 2**32 - 1))
def test_neighbours_differ_in_one_decision(space: Space, seed: int) -> None:
    every = {frozen(g) for g in space.enumerate()}
    rng = np.random.default_rng(seed)
    genotype = space.sample(rng)
    expected = sum(len(decision) - 1 for decision in space.decisions(genotype))
    for chance in (None, rng):
        found = list(space.neighbours(genotype, chance))
        assert len(found) == expected
        for other in found:
            assert frozen(other) in every
            changed = [d for d in space.decisions(other) if genotype.get(d.path, other[d.path]) != other[d.path]]
            assert sum(d.index_in(genotype) is not None for d in changed) == 1  # the rest could not keep their labels


def toy() -> Space:
    layer = OneOf(Conv(kernel=OneOf(1, 3)), InvertedResidual(kernel=OneOf(3, 5), expansion=OneOf(2, 4)), Skip())
    body = Repeat(layer, OneOf(1, 2), each={"width": OneOf(8, 16)}, first={"stride": 2})
    template = Chain(stem=Conv(8), body=body, head=Head(10))
    return Space(template, input_shape=(3, 16, 16), classes=10, name="toy", resolution=OneOf(0.5, 1.0))


GENOTYPE: dict[str, Label] = {
    "resolution": 0.5, "body.times": 2, "body.width": 16, "body.0.block": "conv", "body.0.kernel": 3,
    "body.1.block": "identity",
}  # fmt: skip


def test_a_genotype_becomes_an_architecture() -> None:
    space = toy()
    assert space.size() == 2 * (2 * 7 + 2 * 49)
    architecture = space.architecture(json.loads(json.dumps(GENOTYPE)))
    assert architecture.input_shape == (3, 8, 8)
    assert architecture.genotype == GENOTYPE
    convolutions = [node.op for node in architecture.graph().nodes if isinstance(node.op, ops.Conv)]
    assert convolutions == [ops.Conv(8), ops.Conv(16, stride=(2, 2))]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body.times": None}, "the genotype lacks 'body.times'; expected one of [1, 2]"),
        ({"body.0.kernel": 7}, "body.0.kernel=7; expected one of [1, 3]"),
        ({"body.width": [8]}, "body.width=[8]; expected one of [8, 16]"),
        ({"body.0.expansion": 2}, "decision 'body.0.expansion' does not exist or is not active"),
        ({"other": 1}, "decision 'other' does not exist or is not active"),
    ],
)
def test_a_wrong_genotype_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    wrong = {path: label for path, label in {**GENOTYPE, **change}.items() if label is not None}
    space = toy()
    with pytest.raises(SpaceError) as caught:
        space.check(wrong)
    assert str(caught.value) == f"space 'toy': {message}"
    if "not active" not in message:
        for _ in range(2):  # the second time with memory
            with pytest.raises(SpaceError) as caught:
                space.architecture(wrong)
            assert str(caught.value) == f"space 'toy': {message}"


def test_a_missing_decision_with_one_option_is_no_fault() -> None:
    space = Space(Chain(a=Conv(OneOf(8)), head=Head(2)), input_shape=(1, 4, 4), classes=2)
    assert space.architecture({}).genotype == {"a.width": 8}
    assert space.size() == 1


@pytest.mark.parametrize(
    ("code", "message"), [((0,) * 3, "a code has"), ((9,) * 9, "has 2 options"), ((-1,) * 9, "lacks 'resolution'")]
)
def test_a_wrong_code_is_refused_in_one_line(code: tuple[int, ...], message: str) -> None:
    space = toy()
    assert len(space.paths) == 9
    with pytest.raises(SpaceError, match=message):
        space.decode(code)


def test_a_label_that_the_space_lacks_cannot_be_encoded() -> None:
    with pytest.raises(SpaceError, match="kernel=9; expected one of"):
        toy().encode(GENOTYPE | {"body.0.kernel": 9})


def test_a_genotype_stays_valid_when_the_space_gains_options_and_places() -> None:
    layer = OneOf(
        Skip(), InvertedResidual(kernel=OneOf(3, 5, 7), expansion=OneOf(2, 3, 4)), Conv(kernel=OneOf(1, 3, 5, 7))
    )
    body = Repeat(layer, OneOf(1, 2, 3, 4), each={"width": OneOf(8, 16, 24)}, first={"stride": 2})
    template = Chain(stem=Conv(8), body=body, head=Head(10))
    later = Space(template, input_shape=(3, 16, 16), classes=10, resolution=OneOf(0.25, 0.5, 1.0))
    for genotype in toy().enumerate():
        assert later.check(genotype) == genotype
        assert later.architecture(genotype).key() == toy().architecture(genotype).key()


def test_sampling_is_uniform_over_options() -> None:
    space, rng = toy(), np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(3000)]
    for label in ("conv", "inverted_residual", "identity"):
        share = sum(g["body.0.block"] == label for g in samples) / len(samples)
        assert abs(share - 1 / 3) < 0.04


def test_it_can_be_sent_to_another_process() -> None:
    space = toy()
    space.architecture(GENOTYPE)  # what it remembers stays here
    again = pickle.loads(pickle.dumps(space))
    assert (again.size(), again.paths, repr(again)) == (space.size(), space.paths, repr(space))
    assert again.architecture(GENOTYPE).key() == space.architecture(GENOTYPE).key()


def test_the_seed_governs_chance() -> None:
    def run(seed: int) -> list[Mapping[str, Label]]:
        rng, space = np.random.default_rng(seed), toy()
        a, b = space.sample(rng), space.sample(rng)
        return [a, b, space.mutate(a, rng), space.crossover(a, b, rng), *space.neighbours(a, rng)]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_costs_are_those_of_the_architecture() -> None:
    width = OneOf(8, 16, 24, name="width")  # decided in the first part that has it, and the same in all others
    act = OneOf("relu", "silu")
    block = OneOf(Conv(width=width, activation=act), InvertedResidual(width=width, kernel=OneOf(3, 5)))
    parts = {"a": Repeat(block, times=OneOf(0, 1, 3)), "b": block, "c": Repeat(block, times=2)}
    chain = Chain(stem=Conv(width=8, activation=act), **parts, head=Head(4))
    shared = Space(chain, input_shape=(3, 16, 16), classes=4, resolution=OneOf(0.5, 1.0))
    for space in (shared, toy_space(), make_space("lecture", (3, 32, 32), 10, {})):
        rng = np.random.default_rng(0)
        genotypes = [space.sample(rng) for _ in range(60)]
        genotypes += [space.crossover(a, b, rng) for a, b in pairwise(genotypes)]
        for genotype in genotypes:
            assert space.costs(genotype) == space.architecture(genotype).metrics()


def test_what_is_shared_is_counted_once() -> None:
    """A choice in several places, one of them a number of repetitions; and many of them, without going through all."""
    n = OneOf(1, 2, 3)
    layer = Conv(kernel=OneOf(1, 3))
    space = Space(
        Chain(a=Conv(width=n), b=Repeat(layer, n), c=Repeat(layer, n), head=Head(2)), input_shape=(1, 4, 4), classes=2
    )
    assert space.size() == len(list(space.enumerate())) == 2**2 + 2**4 + 2**6
    many = tuple(OneOf(*range(10), name=f"c{i}") for i in range(60))
    assert Space(Chain(a=Red(many), b=Blue(many)), input_shape=(1, 4, 4), classes=2).size() == 10**60
    pairs = tuple(
        OneOf((a, b), (b, c), (a, c), labels=(1, 2, 3))
        for a, b, c in zip(many[:20], many[20:40], many[40:], strict=True)
    )
    assert Space(Red(pairs), input_shape=(1, 4, 4), classes=2).size() == 300**20


def test_a_repetition_in_a_choice_that_stands_twice_decides_anew_in_each_place() -> None:
    block = OneOf(Repeat(Conv(OneOf(4, 8)), OneOf(1, 2)), Conv(8), labels=("several", "one"))
    space = Space(Chain(a=block, c=block, head=Head(4)), input_shape=(3, 8, 8), classes=4)
    assert list(space.paths) == ["a", "a.times", "a.0.width", "a.1.width", "c.0.width", "c.1.width"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        genotype = space.sample(rng)
        assert set(genotype) <= set(space.paths)
        assert space.decode(space.encode(genotype)) == genotype
        assert space.costs(genotype) == space.architecture(genotype).metrics()
    assert space.size() == 1 + 4 + 16
    assert len({tuple(g.items()) for g in space.enumerate()}) == 21

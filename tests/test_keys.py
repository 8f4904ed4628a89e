"""The structural key against an independent definition of "the same network", on random graphs.

The definition: write the output as a term, every operation with weights carrying the number of its weights. Two
networks are the same if some renumbering of the weights makes the terms equal, sums read in any order.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas import ops
from nas.blocks import Branches, Chain, Conv, Dropout, Head, Residual, Skip
from nas.builder import GraphBuilder
from nas.choices import OneOf, Repeat
from nas.graph import Graph
from nas.space import Space

SHAPE = (4, 3, 3)
KINDS: dict[str, tuple[ops.Op, int]] = {  # operations that keep the shape, and how many inputs they take
    "conv": (ops.Conv(4), 1),
    "wide": (ops.Conv(4, (5, 5), padding=(2, 2)), 1),
    "norm": (ops.Norm(), 1),
    "relu": (ops.Activation("relu"), 1),
    "silu": (ops.Activation("silu"), 1),
    "add": (ops.Add(), 2),
    "mean": (ops.Mean(), 2),
    "mul": (ops.Mul(), 2),
    "add3": (ops.Add(), 3),
    "cat": (ops.Concat(), 2),  # the order matters; a slice follows
}


@dataclass(frozen=True)
class Step:
    """One operation; `weights` is the number of the step whose weights it uses."""

    kind: str
    inputs: tuple[int, ...]  # -1 is the network's input
    weights: int


Net = tuple[Step, ...]  # the last step is the output


@st.composite
def nets(draw: st.DrawFn, least: int = 1, most: int = 9) -> Net:
    steps: list[Step] = []
    for i in range(draw(st.integers(least, most))):
        kind = draw(st.sampled_from(list(KINDS)))
        inputs = tuple(draw(st.integers(-1, i - 1)) for _ in range(KINDS[kind][1]))
        owners = [j for j, s in enumerate(steps) if s.kind == kind and s.weights == j] if KINDS[kind][0].own else []
        weights = draw(st.sampled_from(owners)) if owners and draw(st.integers(0, 3)) == 0 else i
        steps.append(Step(kind, inputs, weights))
    return tuple(steps)


def graph(net: Net, rng: random.Random | None = None) -> Graph:
    """The network's graph; with `rng`, in another order of nodes and of commutative inputs, under other names."""
    order = list(range(len(net)))
    if rng is not None:
        waiting, order = set(order), []
        while waiting:
            ready = [i for i in sorted(waiting) if all(j < 0 or j not in waiting for j in net[i].inputs)]
            order.append(rng.choice(ready))
            waiting.remove(order[-1])
    g = GraphBuilder(SHAPE)
    refs, owner = {-1: 0}, {}
    for at, i in enumerate(order):
        step = net[i]
        op = KINDS[step.kind][0]
        inputs = [refs[j] for j in step.inputs]
        if rng is not None and op.commutative:
            rng.shuffle(inputs)
        name = f"{'n' if rng is None else rng.randrange(10**6)}.{at}"
        refs[i] = g.op(name, op, *inputs, weights=owner.get(step.weights))
        if step.kind == "cat":
            refs[i] = g.slice(f"{name}.slice", refs[i], 2, 6)
        owner.setdefault(step.weights, name)
    return g.graph(refs[len(net) - 1])


def term(net: Net) -> Any:
    """The network, written so that equal terms are equal networks: the least over all numberings of its weights."""
    live, used = {len(net) - 1}, []
    for i in range(len(net) - 1, -1, -1):
        if i in live:
            live |= set(net[i].inputs)
            if KINDS[net[i].kind][0].own and net[i].weights not in used:
                used.append(net[i].weights)

    def written(numbers: dict[int, int]) -> str:
        terms = {-1: "x"}
        for i, step in enumerate(net):
            op = KINDS[step.kind][0]
            read = [terms[j] for j in step.inputs]
            weights = numbers.get(step.weights, "unused") if op.own else ""
            terms[i] = f"{op}{weights}({','.join(sorted(read) if op.commutative else read)})"
        return terms[len(net) - 1]

    return min(written(dict(zip(used, numbers, strict=True))) for numbers in permutations(range(len(used))))


@settings(max_examples=300)
@given(nets(most=16), st.integers(0, 2**32 - 1))
def test_names_and_orders_do_not_matter(net: Net, seed: int) -> None:
    rng = random.Random(seed)
    key = graph(net).key()
    for _ in range(3):
        spelled = graph(net, rng)
        spelled.verify()
        assert spelled.key() == key


def changed(net: Net, rng: random.Random) -> Net:
    """One step with another operation, another input or other weights."""
    i = rng.randrange(len(net))
    step = net[i]
    alike = [kind for kind, (_, n) in KINDS.items() if n == len(step.inputs) and kind != step.kind]
    if alike and rng.random() < 0.4 and not any(s.weights == i for s in net[i + 1 :]) and step.weights == i:
        step = Step(rng.choice(alike), step.inputs, i)
    elif rng.random() < 0.7:
        inputs = list(step.inputs)
        inputs[rng.randrange(len(inputs))] = rng.randrange(-1, i)
        step = Step(step.kind, tuple(inputs), step.weights)
    elif KINDS[step.kind][0].own and not any(s.weights == i for s in net[i + 1 :]):
        owners = [j for j, s in enumerate(net[:i]) if s.kind == step.kind and s.weights == j]
        step = Step(step.kind, step.inputs, rng.choice([i, *owners]))
    return (*net[:i], step, *net[i + 1 :])


@settings(max_examples=400)
@given(nets(most=8), st.integers(0, 2**32 - 1))
def test_equal_keys_mean_equal_networks(net: Net, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(3):
        other = changed(net, rng)
        assert (graph(net).key() == graph(other).key()) == (term(net) == term(other))


@settings(max_examples=300)
@given(nets(least=3, most=5), nets(least=3, most=5))
def test_unrelated_networks_are_told_apart(a: Net, b: Net) -> None:
    assert (graph(a).key() == graph(b).key()) == (term(a) == term(b))


def test_all_small_networks_are_told_apart() -> None:
    """Every way to wire four nodes of {conv, add}: as many keys as terms."""
    keys: dict[str, set[str]] = {}
    for code in np.ndindex(*(2,) * 3, 1, 2, 2, 3, 3, 4, 4):
        kinds, reads = code[:3], [n - 1 for n in code[3:]]
        places = [reads[:1] * 2, reads[1:3], reads[3:5]]
        wired = zip(kinds, places, strict=True)
        steps = [Step("add", tuple(p), i) if k else Step("conv", (p[0],), i) for i, (k, p) in enumerate(wired)]
        net = (*steps, Step("add", (reads[5], reads[6]), 3))
        keys.setdefault(term(net), set()).add(graph(net).key())
    assert all(len(found) == 1 for found in keys.values())
    assert len(set().union(*keys.values())) == len(keys) > 50


class TestExamples:
    def test_twin_branches_differ_from_one_read_twice(self) -> None:
        twins = graph((Step("conv", (-1,), 0), Step("conv", (-1,), 1), Step("add", (0, 1), 2)))
        once = graph((Step("conv", (-1,), 0), Step("add", (0, 0), 1)))
        shared = graph((Step("conv", (-1,), 0), Step("conv", (-1,), 0), Step("add", (0, 1), 2)))
        assert twins.key() != once.key()
        assert shared.key() == once.key()  # the same weights on the same input: one output

    def test_operations_without_weights_are_merged(self) -> None:
        twice = graph((Step("relu", (-1,), 0), Step("relu", (-1,), 1), Step("add", (0, 1), 2)))
        once = graph((Step("relu", (-1,), 0), Step("add", (0, 0), 1)))
        assert twice.key() == once.key()

    def test_who_shares_weights_matters(self) -> None:
        """Five convolutions in a row, sharing weights in each of the 52 possible ways."""
        ways = [w for w in np.ndindex(1, 2, 3, 4, 5) if all(w[j] == j for j in w)]
        chains = [tuple(Step("conv", (i - 1,), w) for i, w in enumerate(way)) for way in ways]
        assert len({graph(chain).key() for chain in chains}) == len(chains) == 52

    def test_randomness_is_not_merged(self) -> None:
        def net(blocks: tuple[Any, ...]) -> str:
            return Branches(blocks, "add").lower(SHAPE).key()

        assert net((Dropout(), Dropout())) != net((Dropout(), Skip()))
        assert net((Dropout(), Skip())) == net((Skip(), Dropout()))
        assert net((Dropout(0.1), Dropout(0.2))) == net((Dropout(0.2), Dropout(0.1))) != net((Dropout(), Dropout()))

    def test_concatenation_has_an_order(self) -> None:
        def net(*kernels: int) -> str:
            return Branches(tuple(Conv(4, kernel) for kernel in kernels), "concat").lower(SHAPE).key()

        assert net(1, 3) != net(3, 1)
        assert net(3, 3) == net(3, 3)

    @pytest.mark.parametrize("weights", [(0, 3), (2, 3)])
    def test_twins_with_unlike_readers_or_weights(self, weights: tuple[int, int]) -> None:
        """One of two twins shares the weights of an earlier layer, or both stand in a concatenation."""
        kind = "mul" if 0 in weights else "cat"
        lower = (Step("conv", (-1,), 0), Step("relu", (0,), 1))

        def net(weights: tuple[int, int]) -> Net:
            return (*lower, Step("conv", (1,), weights[0]), Step("conv", (1,), weights[1]), Step(kind, (2, 3), 4))

        twisted = (*lower, Step("conv", (1,), 2), Step("conv", (1,), 0 if 0 in weights else 3), Step(kind, (3, 2), 4))
        spelled = {graph(n, random.Random(seed)).key() for n in (net(weights), twisted) for seed in range(8)}
        assert len(spelled) == 1

    def test_twins_that_share_weights_with_other_twins(self) -> None:
        def net(first: int, second: int) -> Net:
            lower = (Step("conv", (-1,), 0), Step("conv", (-1,), 1), Step("add", (0, 1), 2))
            return (*lower, Step("conv", (2,), first), Step("conv", (2,), second), Step("mul", (3, 4), 5))

        one = {graph(net(*weights), random.Random(seed)).key() for weights in ((0, 1), (1, 0)) for seed in range(8)}
        others = {graph(net(*weights)).key() for weights in ((0, 0), (0, 4), (3, 4), (3, 3))}
        assert len(one) == 1
        assert len(one | others) == 5

    def test_nested_twins(self) -> None:
        """Pairs of branches of two layers, wired alike or crosswise, as a chain of cells."""

        def net(pairs: tuple[tuple[int, int], ...], rng: random.Random | None = None) -> str:
            steps: list[Step] = []
            x = -1
            for _ in range(3):
                at = len(steps)
                steps += [Step("conv", (x,), at + i) for i in range(4)]
                steps += [Step("norm", (at + i,), at + 4 + i) for i in range(4)]
                steps += [Step("add", (at + 4 + a, at + 4 + b), at + 8 + i) for i, (a, b) in enumerate(pairs)]
                x = len(steps)
                steps.append(Step("mul", (x - 2, x - 1), x))
            return graph(tuple(steps), rng).key()

        pairs, cycle = net(((0, 1), (2, 3))), net(((0, 1), (1, 2)))
        assert pairs != cycle
        assert {net(((0, 2), (3, 1)), random.Random(seed)) for seed in range(8)} == {pairs}
        assert {net(((2, 0), (3, 2)), random.Random(seed)) for seed in range(8)} == {cycle}

    def test_many_twins_are_fast(self) -> None:
        """The work grows with the size, not with the number of ways to swap twins: digests are counted."""
        from nas import keys

        def digests(cells: int) -> int:
            body = Chain(*[Branches((Conv(), Conv(), Conv(), Conv()), "add") for _ in range(cells)], head=Head(3))
            made, count = body.lower(SHAPE), 0
            before = keys._digest

            def counted(*parts: str) -> str:
                nonlocal count
                count += 1
                return before(*parts)

            keys._digest = counted
            try:
                made.key()
            finally:
                keys._digest = before
            return count

        assert digests(24) <= 2.5 * digests(12)

    def test_the_input_shape_is_part_of_it(self) -> None:
        block = Chain(a=Conv(4), head=Head(3))
        assert len({block.lower(shape).key() for shape in ((4, 8, 8), (4, 8, 9), (3, 8, 8))}) == 3

    def test_unused_nodes_are_not_part_of_it(self) -> None:
        net = (Step("conv", (-1,), 0), Step("wide", (-1,), 1), Step("relu", (0,), 2))
        assert graph(net).key() == graph((net[0], Step("relu", (0,), 1))).key()

    def test_identities_commute(self) -> None:
        layer = OneOf(Skip(), Residual(kernel=OneOf(3, 5)))
        template = Chain(stem=Conv(8), body=Repeat(layer, OneOf(1, 2, 3)), head=Head(3))
        space = Space(template, input_shape=(1, 8, 8), classes=3)

        def key(*layers: int | None) -> str:
            genotype: dict[str, Any] = {"body.times": len(layers)}
            for i, kernel in enumerate(layers):
                block = {"block": "residual", "kernel": kernel} if kernel else {"block": "identity"}
                genotype |= {f"body.{i}.{name}": label for name, label in block.items()}
            return space.architecture(genotype).key()

        assert len({key(3), key(3, None), key(None, 3), key(None, 3, None), key(None, None, 3)}) == 1
        assert len({key(3, 5), key(5, 3), key(3), key(5), key(None), key(3, 3)}) == 6
        networks = {space.architecture(g).key() for g in space.enumerate()}
        assert len(networks) == 1 + 2 + 4 + 8  # kernels of up to three residual layers
        assert space.size() == 3 + 9 + 27


@pytest.mark.parametrize("hashseed", ["0", "1"])
def test_keys_are_the_same_in_every_process(hashseed: str) -> None:
    code = (
        "from nas.blocks import *; "
        "print(Chain(a=Conv(8), b=Branches((Conv(8), Conv(8), Conv(8, 5)), 'add'), h=Head(3)).lower((1, 8, 8)).key())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hashseed}
    )
    branches = Branches((Conv(8), Conv(8), Conv(8, 5)), "add")
    assert done.stdout.strip() == Chain(a=Conv(8), b=branches, h=Head(3)).lower((1, 8, 8)).key()

"""All networks of a space at once: that certainty gives one of them back, what the gradients are, and what is mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (as everywhere)

from nas import ops
from nas.architecture import Architecture
from nas.blocks import (
    AvgPool,
    Block,
    Bottleneck,
    Branches,
    Cell,
    CellNetwork,
    CellNode,
    Chain,
    Conv,
    Dense,
    DenseBlock,
    DenseHead,
    Edge,
    FactorizedSkip,
    Fire,
    Fractal,
    Ghost,
    Head,
    Inception,
    InvertedResidual,
    MaxPool,
    MlpConv,
    PreConv,
    Residual,
    Separable,
    ShuffleUnit,
    Skip,
    SqueezeExcite,
    Wrap,
)
from nas.builder import GraphBuilder, Ref
from nas.choices import OneOf, Repeat
from nas.errors import GraphError, SpaceError
from nas.plugins import make_space
from nas.space import Space
from nas.torch.supernet import Relaxed, Supernet
from nas.torch.supernet.activations import CHUNK, FEW, KINDS, mixed_activation
from nas.torch.supernet.mixing import weighted_sum
from nas.torch.supernet.parts import weights_of
from nas.torch.supernet.relaxed import KEPT
from nas.torch.supernet.tables import Beliefs, Derived, Table, Variable, decisions

SHIPPED: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "mobile": ((1, 16, 16), {"width": 0.5, "stages": 2}),
    "lecture": ((1, 8, 8), {"width": 8, "depths": (1, 2)}),
    "nasbench-macro": ((3, 8, 8), {}),
    "nasbench201": ((3, 8, 8), {"channels": 4, "cells": 1}),
    "darts": ((3, 8, 8), {"channels": 4, "cells": 3}),
}
NETWORKS = 50


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Twice(Block):
    """A block of a user's own: two convolutions side by side, put together, and one more."""

    width: Any = 8
    kernel: Any = 3

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        left = g.conv_norm_act("left", x[0], self.width, self.kernel)
        right = g.conv_norm_act("right", x[0], self.width // 2, 1)
        return g.conv_norm_act("both", g.concat("concat", left, right), 8, 1)


@dataclass(frozen=True)
class Either(Block):
    """Another one, in which a node is one of two very different operations."""

    pools: Any = False

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.max_pool("op", x[0], 3, 1, 1) if self.pools else g.conv("op", x[0], g.channels(x[0]))


class Wrapped(nn.Module):
    """A module of a user's own, with statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return y


class Doubled(nn.Module):
    """Takes any number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def space_of(body: Any, *, resolution: Any = 1.0, head: Block | None = None, channels: int = 1) -> Space:
    template = Chain(stem=Conv(8), body=body, head=Head(4) if head is None else head)
    return Space(template, input_shape=(channels, 8, 8), classes=4, name="own", resolution=resolution)


def widths(*options: int, name: str | None = None) -> Any:
    return OneOf(*(options or (4, 8, 12)), name=name)


def disturbed(supernet: Supernet) -> Supernet:
    """In double precision; norms that do nothing would hide which part of them is used."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return supernet.double()


def relaxed_of(space: Space, **how: Any) -> Relaxed:
    relaxed = Relaxed(disturbed(Supernet(space)), **how)
    relaxed.training = False
    return relaxed


@cache
def shipped(name: str) -> Relaxed:
    shape, options = SHIPPED[name]
    return relaxed_of(make_space(name, shape, 10, options))


def networks(space: Space, n: int, seed: int = 0) -> Iterator[Architecture]:
    """Random ones that can be built."""
    rng = np.random.default_rng(seed)
    while n:
        architecture = space.architecture(space.sample(rng))
        try:
            architecture.graph()
        except GraphError:
            continue
        n -= 1
        yield architecture


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(relaxed: Relaxed, architecture: Architecture, x: Tensor) -> Tensor:
    """What the network alone says."""
    path = relaxed.supernet.path(architecture)
    path.regularised = False
    result: Tensor = path.train()(x)
    return result


@torch.no_grad()
def check(relaxed: Relaxed, n: int, *, seed: int = 0) -> None:
    """Certainty gives single networks and their FLOPs, whether all is computed or only what is chosen."""
    space = relaxed.supernet.space
    for number, architecture in enumerate(networks(space, n, seed)):
        genotype = architecture.genotype
        x = noise(4, space.input_shape[0], *relaxed.resolution(genotype), seed=number)
        expected, certain = scores(relaxed, architecture, x), relaxed.certain(genotype, dtype=torch.float64)
        for single in (False, True) if number % 3 == 0 else (False,):
            found = relaxed(x, certain, genotype, single=single)
            error = float((found - expected).abs().max() / expected.abs().max())
            assert error < 1e-8, f"network {number}, single={single}: off by {error}: {genotype}"
        assert float(relaxed.flops(certain, genotype)) == architecture.metrics()["flops"]


@pytest.mark.parametrize("name", SHIPPED)
def test_certainty_gives_one_network(name: str) -> None:
    relaxed = shipped(name)
    check(relaxed, NETWORKS)
    assert list(relaxed.sampled) == (["resolution"] if name == "mobile" else [])
    open_ones = {path for path, labels in relaxed.supernet.space.paths.items() if len(labels) > 1}
    assert {*relaxed.labels, *relaxed.sampled} == open_ones


# -- spaces that are hard to lay over each other ---------------------------------------------------------------


def decided_in_several_parts() -> Space:
    width = OneOf(8, 16, 24, name="width")  # decided in the first part that has it, and the same in all others
    act = OneOf("relu", "silu")
    block = OneOf(Conv(width=width, activation=act), InvertedResidual(width=width, kernel=OneOf(3, 5)))
    parts = {"a": Repeat(block, times=OneOf(0, 1, 3)), "b": block, "c": Repeat(block, times=2)}
    chain = Chain(stem=Conv(width=8, activation=act), **parts, head=Head(4))
    return Space(chain, input_shape=(3, 8, 8), classes=4, resolution=OneOf(0.5, 1.0))


def forgotten_on_the_way() -> Block:
    """Between two blocks that share a width stands one that knows nothing of it: not all that can be thought is."""
    width = widths(12, 4)
    first = OneOf(Bottleneck(width), Bottleneck(width, 5), labels=("a", "b"))
    return Chain(first, conv=Conv(kernel=OneOf(1, 3)), again=OneOf(first, Conv(6), labels=("c", "d")))


def sometimes(name: str | None) -> Block:
    """A choice that is decided in one option, or where it stands later."""
    width = widths(name=name)
    return Chain(a=OneOf(Conv(width), Skip()), b=Repeat(Conv(width), 2), c=Conv(width))


def sometimes_inside() -> Block:
    ratio = OneOf(0.25, 0.5, 1.0)
    gates = OneOf(SqueezeExcite(ratio), SqueezeExcite(ratio, divisor=4), None, labels=("plain", "rounded", "none"))
    return Chain(a=InvertedResidual(se=gates), b=InvertedResidual(se=SqueezeExcite(ratio)))


def joined(join: Any, *parts: Any) -> Block:
    return Chain(Conv(widths()), Branches(parts, join), Conv(widths(), 1))


def added(width: Any) -> Block:
    return joined("add", Conv(width), Residual(width), Separable(width))


def number_twice(n: Any) -> Block:
    """A number of layers that is their width, too."""
    return Chain(Repeat(Conv(kernel=OneOf(1, 3)), n), Repeat(Conv(n), n))


def between(block: Any) -> Block:
    """Twice a block, after channels that vary and before others."""
    return Chain(before=OneOf(Conv(widths()), Residual(widths())), it=Repeat(block, OneOf(1, 2)), after=Conv(8, 1))


SE = OneOf(
    None, SqueezeExcite(OneOf(0.25, 0.5)), SqueezeExcite(of="input", gate=OneOf("hard_sigmoid", "tanh")),
    labels=("none", "hidden", "input"),
)  # fmt: skip
HARD: Mapping[str, Callable[[], Any]] = {
    "forgotten": forgotten_on_the_way,
    "shared_repeat": lambda: Repeat(
        OneOf(Conv(kernel=OneOf(1, 3)), Residual(widths()), Skip()), OneOf(0, 1, 3), shared=True
    ),
    "a_number_twice": lambda: number_twice(OneOf(1, 2, 3)),
    "open_first": lambda: Repeat(
        OneOf(Conv(kernel=OneOf(1, 3)), Residual(widths())), OneOf(1, 2, 3),
        first={"width": widths(6, 10), "kernel": OneOf(3, 5)},
    ),
    "no_layer": lambda: Chain(Repeat(OneOf(Conv(widths()), Skip()), 0), Repeat(Conv(widths()), OneOf(0, 2))),
    "own": lambda: Repeat(OneOf(Twice(OneOf(4, 8, 12), OneOf(1, 3)), Wrap(Wrapped, (("width", 8),))), OneOf(1, 2)),
    "wrapped_widths": lambda: Chain(Conv(widths()), Wrap(Doubled), Conv(8)),
    "wrapped_options": lambda: Chain(Wrap(Wrapped, (("width", widths()),)), Conv(8)),
    "alike": lambda: Repeat(OneOf(Conv(widths(), 1), Conv(widths(), 3), labels=("small", "large")), OneOf(1, 2)),
    "labels_of_one_name": lambda: joined(
        "concat", OneOf(Conv(widths()), Skip()), OneOf(Fire(widths(8, 16)), Residual(widths()))
    ),
    "gates": lambda: Chain(
        Conv(widths()), InvertedResidual(widths(), expansion=OneOf(0.5, 1, 2), se=SE), Residual(se=SE)
    ),
    "added": lambda: added(widths()),
    "averaged": lambda: joined("mean", Conv(8, OneOf(1, 3)), Conv(8)),
    "concatenated": lambda: joined("concat", Conv(widths(), OneOf(1, 3)), Conv(widths(2, 6))),
    "dense": lambda: between(Dense(widths(), OneOf(1, 3))),
    "dense_block": lambda: between(DenseBlock(2, OneOf(2, 4, 6), bottleneck=2)),
    "inception": lambda: between(Inception(widths(8, 16, 20), OneOf(1, 3), factorised=OneOf(False, True))),
    "fire": lambda: between(Fire(widths(8, 12, 16), OneOf(None, 2, 3))),
    "ghost": lambda: between(Ghost(widths(7, 8, 12), OneOf(3, 5))),
    "fractal": lambda: between(Fractal(widths(), 2, OneOf(1, 3))),
    "no_norm": lambda: between(MlpConv(widths(), (widths(), 6), activation=OneOf("tanh", "sigmoid", "prelu"))),
    "activations": lambda: between(Conv(widths(), norm="none", activation=OneOf(*ops.ACTIVATIONS))),
    "pre_activation": lambda: between(
        Residual(widths(), pre_activation=OneOf(True, False), activation=OneOf("prelu", "sigmoid"))
    ),
    "subspaces": lambda: OneOf(
        Chain(Conv(widths()), Conv(widths())), Chain(Conv(widths()), Residual(widths())), labels=("p", "q")
    ),
    "nested": lambda: Repeat(
        Chain(Conv(widths()), Repeat(OneOf(Residual(widths()), Skip()), OneOf(0, 2))), OneOf(1, 2)
    ),
    "instances": lambda: Chain(Conv(widths(), norm="instance"), Conv(8)),
    "padded": lambda: Chain(Conv(widths(6, 8)), Residual(widths(8, 12, 16), stride=2, projection="pad"), Conv(8)),
}  # fmt: skip


@pytest.mark.parametrize("name", HARD)
def test_everything_is_mixed(name: str) -> None:
    relaxed = relaxed_of(space_of(HARD[name]()))
    check(relaxed, 8)
    assert not relaxed.sampled


def test_choices_that_several_parts_share() -> None:
    relaxed = relaxed_of(decided_in_several_parts())
    check(relaxed, 30)
    assert list(relaxed.sampled) == ["resolution"]


@pytest.mark.parametrize("head", [DenseHead(4, (widths(), 6), 2, dropout=0.5), Head(4, OneOf(None, 8, 12))])
def test_hidden_layers(head: Block) -> None:
    check(relaxed_of(space_of(Conv(widths()), head=head)), 12)


# What cannot be mixed, by the last part of its path.
SAMPLED: Mapping[str, tuple[Callable[[], Any], set[str]]] = {
    "strides": (lambda: Chain(Conv(widths(), stride=OneOf(1, 2)), Residual(widths(), stride=OneOf(1, 2))), {"stride"}),
    "open_first_stride": (lambda: Repeat(Conv(3), OneOf(1, 2), first={"stride": OneOf(1, 2)}), {"stride"}),
    "group_norm": (lambda: Chain(Conv(widths(16, 32, 48), norm="group"), Conv(8)), {"width"}),
    "layer_norm": (lambda: Chain(Conv(widths(), norm="layer"), Conv(8)), {"width"}),
    "norms": (lambda: Chain(Conv(widths(), norm=OneOf("batch", "layer", "instance", "none"))), {"norm", "width"}),
    "groups": (lambda: Chain(Bottleneck(widths(16, 32), groups=2)), {"width"}),
    "group_widths": (lambda: Bottleneck(widths(8, 16), reduction=1, group_width=OneOf(2, 4)), {"width", "group_width"}),
    "numbers_of_groups": (lambda: Conv(widths(8, 16), groups=OneOf(1, 2, None)), {"width", "groups"}),
    "shuffled": (lambda: Chain(Conv(8), Repeat(ShuffleUnit(widths(8, 16), OneOf(3, 5)), 2)), {"width"}),
    "columns": (lambda: Fractal(widths(), OneOf(1, 2, 3)), {"columns"}),
    "joins": (lambda: joined(OneOf("add", "concat"), Conv(8), Conv(8)), {"join"}),
    "orders": (lambda: joined("add", OneOf(Conv(), Skip()), OneOf(Fire(), Residual())), {"block", "width"}),
    "paddings": (
        lambda: Repeat(Conv(8, OneOf(3, 5), padding=OneOf(1, 2)), OneOf(1, 2)), {"kernel", "padding", "times"},
    ),
    "biases": (lambda: Conv(widths(), bias=OneOf(True, False)), {"bias"}),
    "very_different": (lambda: Chain(Either(OneOf(True, False)), Conv(widths())), {"pools"}),
    "sometimes": (lambda: sometimes(None), {"a"}),
    "sometimes_named": (lambda: sometimes("w"), {"a"}),
    "sometimes_inside": (sometimes_inside, {"se"}),
    "cannot_be_built": (
        lambda: Chain(Conv(widths(6, 8, 16)), Conv(12, groups=OneOf(1, 4)), Conv(8)), {"groups", "width"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLED)
def test_what_cannot_be_mixed_is_given(name: str) -> None:
    make, expected = SAMPLED[name]
    relaxed = relaxed_of(space_of(make()))
    check(relaxed, 8)
    assert {path.rpartition(".")[2] for path in relaxed.sampled} == expected
    assert not relaxed.sampled.keys() & relaxed.labels.keys()
    assert relaxed.fits(relaxed.default)


def test_what_cannot_be_built_is_left_out() -> None:
    grouped = OneOf(Conv(12, groups=4), Conv(12), labels=("grouped", "plain"))
    relaxed = relaxed_of(space_of(Chain(Conv(widths(6, 8, 16)), grouped, Conv(8))))
    check(relaxed, 8)
    # With six channels there is the plain one only, however improbable.
    x = noise(4, 1, 8, 8)
    certain = relaxed.certain({"body.1.block": "plain"}, dtype=torch.float64)
    maybe = {**certain, "body.1.block": torch.tensor([0.9, 0.1], dtype=torch.float64)}
    assert torch.allclose(relaxed(x, maybe, {"body.0.width": 6}), relaxed(x, certain, {"body.0.width": 6}), rtol=1e-12)
    assert not torch.allclose(
        relaxed(x, maybe, {"body.0.width": 8}), relaxed(x, certain, {"body.0.width": 8}), rtol=1e-9
    )

    small = Chain(MaxPool(2), MaxPool(2), Conv(kernel=OneOf(3, 5), padding=0))
    relaxed = relaxed_of(space_of(small, resolution=OneOf(0.5, 2.0, 4.0)))
    assert [relaxed.fits({"resolution": factor}) for factor in (0.5, 2.0, 4.0)] == [False, True, True]
    assert relaxed.fits(relaxed.default)
    with pytest.raises(GraphError, match=r"^block 'body:chain.2:conv' can be built in none of its settings$"):
        relaxed(noise(4, 1, 4, 4), relaxed.certain({}), {"resolution": 0.5})
    check(relaxed, 6)


def test_only_so_many_relaxed_networks_are_kept() -> None:
    relaxed = relaxed_of(space_of(Chain(*[Conv(4, 1, padding=OneOf(0, 1)) for _ in range(6)])))
    assert len(relaxed.sampled) == 6
    check(relaxed, 50)
    assert len(relaxed._at) <= KEPT


def two(prefix: str = "") -> Any:
    labels = ("none", "skip", "small", "large", "pool")
    return OneOf(None, FactorizedSkip(), PreConv(kernel=1), PreConv(), AvgPool(3, 1, 1), name=prefix, labels=labels)


def open_edges(i: int, prefix: str = "") -> CellNode:
    return CellNode(tuple(Edge(j, two(f"{prefix}{i}from{j}")) for j in range(i)))


def always(i: int) -> CellNode:
    """Edges that are there: what reads a cell of nothing has other channels to read, which FLOPs do not tell."""
    return CellNode(tuple(Edge(j, operation(f"{i}from{j}")) for j in range(i)))


def open_wiring(i: int, block: Callable[[str], Any]) -> CellNode:
    """Reads two of the values before it."""
    made = [block(f"{i}from{j}") for j in range(i)]
    pairs = [(a, b) for a in range(i) for b in range(a + 1, i)]
    return CellNode(
        OneOf(*[tuple(Edge(j, made[j]) for j in pair) for pair in pairs], name=f"w{i}",
              labels=tuple(f"{a}+{b}" for a, b in pairs))
    )  # fmt: skip


def operation(name: str) -> Any:
    inside = InvertedResidual(expansion=OneOf(1, 2, name=f"e{name}"))
    return OneOf(FactorizedSkip(), PreConv(kernel=1), PreConv(), inside, name=name, labels=("s", "1", "3", "ir"))


CELLS: Mapping[str, tuple[Callable[[], Any], set[str]]] = {
    "unread": (lambda: Cell((open_edges(1), open_edges(2), open_edges(3)), "concat"), set()),
    "all": (lambda: Cell((open_edges(1), open_edges(2), open_edges(3)), "all", width=6), set()),
    "wirings": (lambda: Cell((open_edges(1), open_wiring(2, operation), open_wiring(3, operation)), "all"), set()),
    "kernels": (
        lambda: Cell((open_edges(1), open_wiring(2, lambda name: PreConv(kernel=OneOf(1, 3, name=name)))), "all"),
        {"2from0", "2from1"},
    ),
    "closed": (lambda: Cell((open_edges(1), open_wiring(2, lambda _: PreConv())), "all"), set()),
    "two_kinds": (
        lambda: CellNetwork(Cell((open_wiring(2, operation),), "all"), Cell((open_edges(2, "r"),), "all"), 4, 3), set(),
    ),
    "width": (lambda: Cell((always(1), open_edges(2)), "all", width=OneOf(4, 8)), {"width"}),
    "after_a_width": (lambda: Chain(Conv(widths(4, 8)), Cell((always(1), always(2)))), {"width"}),
    "repeated": (lambda: Repeat(Cell((CellNode((Edge(0, two()),)),)), OneOf(0, 1, 2)), set()),
    "repeated_as_one": (lambda: Repeat(Cell(()), OneOf(1, 2), each={"nodes": (open_edges(1), open_edges(2))}), set()),
    "sizes": (
        lambda: Cell((CellNode((Edge(0, OneOf(MaxPool(3, 1, 1), MaxPool(2, 2), labels=("a", "b"))),)),)), {"block"},
    ),
    "nothing": (lambda: Cell((CellNode((Edge(0, OneOf(None, name="n")), Edge(0, OneOf(None, Conv())))),)), set()),
    "longer": (
        lambda: Cell((CellNode((Edge(0, Repeat(Conv(kernel=OneOf(1, 3)), OneOf(1, 2))),
                                Edge(0, Chain(Conv(kernel=OneOf(1, 3)), OneOf(Residual(), Skip()))))),)), set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str) -> None:
    make, expected = CELLS[name]
    relaxed = relaxed_of(space_of(make()))
    check(relaxed, 8)
    assert {path.rpartition(".")[2] for path in relaxed.sampled} == expected


REFUSED: Mapping[str, tuple[Callable[[], Any], str]] = {
    "source": (lambda: Cell((open_edges(1), CellNode((Edge(OneOf(0, 1), PreConv()),)))), r"an open source of an edge"),
    "output": (
        lambda: Cell((open_edges(1), open_edges(2), open_wiring(3, operation)), "concat"),
        r"whose output depends on open edges",
    ),
    "shapes": (lambda: Cell((open_edges(1), CellNode((Edge(0, Conv(6)),))), "all"), r"nodes of different shapes"),
    "no_two_cells": (
        lambda: CellNetwork(OneOf(Cell((open_edges(2),)), Cell((open_edges(2, "b"),), "all"), labels=("a", "b")),
                            Cell((open_edges(2, "r"),)), 4, 2),
        r"cells that are themselves a choice",
    ),
    "never": (lambda: Chain(MaxPool(8), Conv(kernel=OneOf(3, 5), padding=0)), r"can be built in none of its settings"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_relaxed_is_one_clear_line(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises((SpaceError, GraphError), match=reason) as error:
        relaxed_of(space_of(make()))
    assert isinstance(error.value, SpaceError) or name == "never"
    assert "\n" not in str(error.value)


def test_blocks_with_too_many_settings_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.torch.supernet.building.SETTINGS", 11)
    relaxed = relaxed_of(space_of(Branches((Conv(OneOf(2, 3)), Conv(OneOf(4, 5, 6)), Conv(OneOf(7, 8))))))
    check(relaxed, 6)
    assert list(relaxed.sampled) == ["body.blocks.1.width"]


def test_partial_channels_that_do_not_divide() -> None:
    with pytest.raises(SpaceError, match=r"^partial=3: 8 channels cannot be divided so; choose a divisor$"):
        relaxed_of(space_of(Cell((open_edges(1),))), partial=3)


# -- gradients -------------------------------------------------------------------------------------------------


def kinds() -> Space:
    """One of each kind of decision."""
    layer = OneOf(
        InvertedResidual(kernel=OneOf(3, 5), expansion=OneOf(1, 2, 3), se=SE, activation=OneOf("silu", "gelu")),
        Dense(activation="mish"), Skip(), name="block",
    )  # fmt: skip
    cell = Cell((open_edges(1), open_wiring(2, operation)), "all")
    body = Chain(Repeat(layer, OneOf(1, 2, 3), each={"width": widths(4, 6, 8)}, first={"stride": 2}), Conv(6), cell)
    return space_of(body, resolution=OneOf(1.0, 1.5))


@pytest.mark.parametrize("name", ["kinds", "mobile", "lecture", "darts"])
def test_gradients_are_those_of_the_softmax(name: str) -> None:
    """Through the output and through expected FLOPs, for each kind of decision."""
    relaxed = relaxed_of(kinds()) if name == "kinds" else shipped(name)
    space, rng = relaxed.supernet.space, np.random.default_rng(0)
    logits = {
        path: noise(len(labels), seed=i).requires_grad_() for i, (path, labels) in enumerate(relaxed.labels.items())
    }
    x, v = noise(4, space.input_shape[0], *relaxed.resolution(), seed=1), noise(4, space.classes, seed=2)

    def run(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        p = {path: value.softmax(0) for path, value in values.items()}
        return (relaxed(x, p) * v).sum(), relaxed.flops(p).log()

    # Several decisions of each kind: kernels, expansions, widths, blocks, activations, depths, ...
    by_kind: dict[str, list[str]] = {}
    for path in logits:
        by_kind.setdefault(path.rpartition(".")[2].lstrip("0123456789"), []).append(path)
    some = [str(path) for paths in by_kind.values() for path in rng.permutation(paths)[:2]]
    values, step = run(logits), 1e-6
    found = [torch.autograd.grad(v, list(logits.values()), allow_unused=True, retain_graph=True) for v in values]
    scales = [max(float(g.abs().max()) for g in gradients if g is not None) for gradients in found]
    assert min(scales) > 0
    for path in some:
        direction, at = noise(len(logits[path]), seed=7), list(logits).index(path)
        with torch.no_grad():
            up, down = (run({**logits, path: logits[path] + sign * step * direction}) for sign in (1, -1))
        for gradients, scale, a, b in zip(found, scales, up, down, strict=True):
            gradient = gradients[at]
            analytic = 0.0 if gradient is None else float(gradient @ direction)
            assert float(a - b) / (2 * step) == pytest.approx(analytic, rel=1e-5, abs=1e-5 * scale), path


def test_weights_learn_in_proportion() -> None:
    """Gradients of the weights of what cannot be are zero; of what is half certain they are not."""
    relaxed = relaxed_of(space_of(Conv(OneOf(4, 8), kernel=OneOf(1, 3))))
    weight = relaxed.supernet.tensor("body:conv.conv", "weight")
    x = noise(4, 1, 8, 8)
    p = {"body.width": torch.tensor([1.0, 0.0]), "body.kernel": torch.tensor([1.0, 0.0])}
    (gradient,) = torch.autograd.grad((relaxed(x, p) ** 2).sum(), weight)
    assert gradient[:4, :, 1, 1].abs().min() > 0
    assert not gradient[4:].any()
    gradient[:, :, 1, 1] = 0
    assert not gradient.any()
    half = {path: torch.tensor([0.5, 0.5]) for path in p}
    (gradient,) = torch.autograd.grad((relaxed(x, half) ** 2).sum(), weight)
    assert gradient.abs().min() > 0


def test_certain_norms_have_no_scale_if_they_are_not_affine() -> None:
    space = space_of(Conv(widths()))
    supernet = disturbed(Supernet(space))
    plain = Relaxed(supernet, affine=False)
    x, p = noise(4, 1, 8, 8), plain.certain({"body.width": 8}, dtype=torch.float64)
    before = plain(x, p)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if "norm" in name:
                parameter.zero_()
    assert torch.equal(plain(x, p), before)
    assert not torch.allclose(Relaxed(supernet)(x, p), before)


# -- single paths, partial channels, weights of edges ----------------------------------------------------------


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench201", "darts"])
def test_a_single_path_runs_what_is_chosen_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    relaxed = shipped(name)
    space, calls = relaxed.supernet.space, list[int]()
    convolution = F.conv2d

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return convolution(*args, **kwargs)

    monkeypatch.setattr(F, "conv2d", counted)
    for architecture in networks(space, 5, seed=3):
        genotype = architecture.genotype
        x = noise(4, space.input_shape[0], *relaxed.resolution(genotype))
        expected = scores(relaxed, architecture, x)
        alone = len(calls)
        # Not quite certain, as single precision leaves it; and with the gradient of another distribution.
        certain = relaxed.certain(genotype, dtype=torch.float64)
        soft = {path: noise(len(p), seed=5).softmax(0).requires_grad_() for path, p in certain.items()}
        chosen = {path: p + soft[path] - soft[path].detach() for path, p in certain.items()}
        calls.clear()
        found = relaxed(x, chosen, genotype, single=True)
        # A cell's inputs are brought to their width, whether an edge reads them or not.
        assert alone <= len(calls) <= alone + (4 if name == "darts" else 0)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-10)
        gradients = torch.autograd.grad((found**2).sum(), list(soft.values()), allow_unused=True)
        flows = {path for path, g in zip(soft, gradients, strict=True) if g is not None and g.any()}
        active = {path for path in certain if path in genotype}
        assert flows <= active
        decided = {path for path in active if path.endswith(("block", "times", "kernel", "width")) or ".from" in path}
        assert len(flows & decided) > 0.4 * len(decided)
        calls.clear()


def test_partial_channels_go_through_the_operation_and_the_others_around() -> None:
    space = space_of(Cell((CellNode((Edge(0, OneOf(None, FactorizedSkip(), PreConv(kernel=1), name="o")),)),)))
    relaxed = relaxed_of(space, partial=4)
    supernet, x = relaxed.supernet, noise(4, 1, 8, 8)
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)

    def tensor(name: str, part: str = "weight") -> Tensor:
        return supernet.tensor(name, part)

    y = F.conv2d(x, tensor("stem:conv.conv"), padding=1)
    y = F.batch_norm(y, None, None, tensor("stem:conv.norm"), tensor("stem:conv.norm", "bias"), training=True).relu()
    edge = "body:cell.node1.from0.nor_conv_1x1:nor_conv."
    some, others = y[:, :2], y[:, 2:]
    z = F.conv2d(some.relu(), tensor(f"{edge}conv")[:2, :2])
    z = F.batch_norm(z, None, None, tensor(f"{edge}norm")[:2], tensor(f"{edge}norm", "bias")[:2], training=True)
    z = F.channel_shuffle(torch.cat([0.3 * some + 0.5 * z, others], 1), 4)
    classifier = "head:head.classifier"
    expected = F.linear(z.mean((2, 3)), tensor(classifier), tensor(classifier, "bias"))
    assert torch.allclose(relaxed(x, {"o": p}), expected, rtol=1e-10)


def test_partial_channels_of_a_whole_space() -> None:
    shape, options = SHIPPED["darts"]
    space = make_space("darts", shape, 10, options)
    relaxed = relaxed_of(space, partial=2)
    p = {path: noise(len(labels), seed=i).softmax(0) for i, (path, labels) in enumerate(relaxed.labels.items())}
    found = relaxed(noise(2, *shape), p)
    assert found.shape == (2, 10)
    assert found.isfinite().all()
    assert float(relaxed.flops(p)) < float(shipped("darts").flops(p))


def test_weights_of_edges() -> None:
    """Weights of 1 and 0 are a choice of edges, nothing said is all edges, and the sum is linear in them."""
    relaxed = shipped("darts")
    space = relaxed.supernet.space
    x = noise(4, *space.input_shape)
    (architecture,) = networks(space, 1, seed=4)
    certain = relaxed.certain(architecture.genotype, dtype=torch.float64)
    without = {path: p for path, p in certain.items() if path not in relaxed.wirings}
    weights, ones = {}, {}
    for path, options in relaxed.wirings.items():
        edges = list(dict.fromkeys(edge for option in options for edge in option))
        kept = options[space.paths[path].index(architecture.genotype[path])]
        weights[weights_of(path)] = torch.tensor([float(edge in kept) for edge in edges])
        ones[weights_of(path)] = torch.ones(len(edges))
        assert all(edge in relaxed.labels for edge in edges)
    assert torch.allclose(relaxed(x, {**without, **weights}), relaxed(x, certain), rtol=1e-12)
    assert torch.allclose(relaxed(x, {**without, **ones}), relaxed(x, without), rtol=1e-12)
    assert not torch.allclose(relaxed(x, without), relaxed(x, certain))
    assert float(relaxed.flops({**without, **weights})) == architecture.metrics()["flops"]

    cell = Cell((CellNode(OneOf((Edge(0, PreConv()),), (Edge(0, AvgPool(3, 1, 1)),), name="w", labels=("c", "p"))),))
    head = relaxed_of(space_of(Chain(cell, Skip())))
    y = noise(4, 1, 8, 8)

    def at(a: float, b: float) -> Tensor:
        return head(y, {weights_of("w"): torch.tensor([a, b], dtype=torch.float64)})

    assert torch.allclose(
        at(0.3, 0.5) - at(0, 0), 0.3 * (at(1, 0) - at(0, 0)) + 0.5 * (at(0, 1) - at(0, 0)), rtol=1e-10
    )


# -- tables ----------------------------------------------------------------------------------------------------


def test_tables_keep_what_makes_a_difference() -> None:
    a, b, c = (Variable(name, (0, 1, 2)) for name in "abc")
    table = Table.of([a, b, c], [10 * i + k for i in range(3) for _ in range(3) for k in range(3)])
    assert table.variables == (a, c)
    assert table.at({a: 2, b: 0, c: 1}) == 21
    assert table.given(a, (1,)).variables == (c,)
    assert table.given(a, (1,)).values == (10, 11, 12)
    assert table.given(b, (1,)) is table
    assert table.given(c, (1, 2)).values == (1, 2, 11, 12, 21, 22)
    assert decisions([Derived(table), b, a]) == [a, c, b]
    p = {"a": torch.tensor([0.5, 0.5, 0.0]), "c": torch.tensor([0.2, 0.3, 0.5])}
    labels = dict.fromkeys("abc", (0, 1, 2))
    expected = torch.tensor([0.1, 0.15, 0.25, 0.1, 0.15, 0.25, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(Beliefs(p, labels).over(table), expected)
    assert torch.allclose(Beliefs(p, labels).over(table.alone), expected)


def test_choices_of_one_name_with_fewer_labels() -> None:
    labels: dict[str, tuple[Any, ...]] = {"w": (4, 8, 16)}
    few, other = Variable("w", (8, 16)), Variable("w", (4,))
    beliefs = Beliefs({"w": torch.tensor([0.5, 0.125, 0.375])}, labels)
    assert beliefs.of(few).tolist() == [0.25, 0.75]
    assert beliefs.of(other).tolist() == [1]
    # Of what is not meant something is taken: probabilities add up to one.
    assert Beliefs({"w": torch.tensor([1.0, 0.0, 0.0])}, labels).of(few).tolist() == [1, 0]


# -- mixtures --------------------------------------------------------------------------------------------------

PLAIN: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "elu": F.elu,
    "selu": F.selu, "silu": F.silu, "hard_swish": F.hardswish, "gelu": F.gelu, "mish": F.mish,
    "sigmoid": torch.sigmoid, "hard_sigmoid": F.hardsigmoid, "tanh": torch.tanh,
}  # fmt: skip
LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "some_channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "some_channels_last": lambda x: torch.cat([x, x], 1).contiguous(memory_format=torch.channels_last)[:, : x.shape[1]],
    "turned": lambda x: x.transpose(2, 3),
    "vectors": lambda x: x.flatten(1),
    "turned_vectors": lambda x: x.flatten(1).t(),
}


def assert_same(
    mine: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Values and gradients, up to a few times the precision."""
    results = []
    for function in (mine, plain):
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = function(*leaves)
        assert y.dtype == dtype
        factor = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        results.append([y.detach(), *torch.autograd.grad((y * factor).sum(), leaves)])
        alike = torch.autograd.grad(function(*leaves).sum(), leaves)  # its gradient is one number, expanded
        results[-1] += alike
    precision = 1e-5 if dtype is torch.float32 else 1e-12
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape
        scale = max(1.0, float(expected.abs().max()))
        assert float((found - expected).abs().max()) < precision * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mixtures_are_sums(layout: str, dtype: torch.dtype) -> None:
    xs = [LAYOUTS[layout](3 * noise(3, 4, 5, 5, seed=i)).to(dtype) for i in range(3)]
    p = noise(len(PLAIN), seed=9).softmax(0)  # probabilities are of double precision, whatever the images are

    def plain(w: Tensor, *values: Tensor) -> Tensor:
        return torch.stack([v.to(dtype) * x for v, x in zip(w, values, strict=False)]).sum(0)

    assert_same(lambda w, *xs: weighted_sum(w[:3], xs), plain, [p, *xs], dtype)
    assert_same(
        lambda w, x: mixed_activation(x, list(PLAIN), w),
        lambda w, x: plain(w, *[activation(x) for activation in PLAIN.values()]),
        [p, xs[0]], dtype,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_activation_far_from_zero_and_beyond_a_chunk(kind: str) -> None:
    x = torch.linspace(-100, 100, CHUNK + 1001, dtype=torch.float64)
    x = torch.cat([x, torch.linspace(-1e-3, 1e-3, 1001, dtype=torch.float64)]).view(1, -1, 1, 1)
    x = x[:, (x.view(-1).abs() - 3).abs() > 1e-9]  # where gradients are one-sided, either is right
    x = x[:, (x.view(-1).abs() > 1e-12) & ((x.view(-1) - 6).abs() > 1e-9)]
    for dtype in (torch.float32, torch.float64):
        one, atol = torch.ones(1, dtype=torch.float64), 3e-6 if dtype is torch.float32 else 1e-12
        mine = lambda w, y: mixed_activation(y, [kind], w)  # noqa: E731
        leaves = [x.to(dtype).requires_grad_(), x.to(dtype).requires_grad_()]
        found, expected = mine(one, leaves[0]), PLAIN[kind](leaves[1])
        assert torch.allclose(found, expected, rtol=1e-10, atol=atol)
        (a,), (b,) = (torch.autograd.grad(y.sum(), leaf) for y, leaf in zip((found, expected), leaves, strict=True))
        assert torch.allclose(a, b, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "vectors" not in name])
@pytest.mark.parametrize("size", [5, 73])
@pytest.mark.parametrize("count", [FEW, len(PLAIN)])
def test_a_mixture_with_a_slope_below_zero(count: int, size: int, layout: str) -> None:
    """As PReLU has for each channel; activations are computed one by one or, of large tensors, looked up."""
    x, p = LAYOUTS[layout](3 * noise(5, 4, size, size)).float(), noise(count, seed=9).softmax(0)
    slope = noise(x.shape[1]).float()
    x[0, 0, 0, :3] = torch.tensor([1e8, -1e8, 0.5])  # far outside of any table

    def plain(w: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        mixed = [v.float() * f(x) for v, f in zip(w, list(PLAIN.values())[:count], strict=True)]
        return torch.stack(mixed).sum(0) + slope.view(1, -1, 1, 1) * x.clamp_max(0)

    leaves = [[t.clone().requires_grad_() for t in (p, x, slope)] for _ in range(2)]
    found = mixed_activation(leaves[0][1], list(PLAIN)[:count], *leaves[0][::2])
    expected = plain(*leaves[1])
    assert torch.allclose(found, expected, rtol=1e-5, atol=3e-6)
    factor = noise(*x.shape, seed=3).float()
    factor[0, 0, 0, :2] = 0  # their sums would hide all others
    of_p, of_x, of_slope = zip(*(torch.autograd.grad((y * factor).sum(), t)
                                 for y, t in zip((found, expected), leaves, strict=True)), strict=True)  # fmt: skip
    assert torch.allclose(*of_p, rtol=1e-4, atol=1e-4 * float(of_p[1].abs().max()))
    assert torch.allclose(*of_slope, rtol=1e-4, atol=1e-4 * float(of_slope[1].abs().max()))
    at_a_kink = torch.isin(x.round(decimals=2), torch.tensor([-3.0, 0.0, 3.0, 6.0]))
    assert torch.allclose(of_x[0][~at_a_kink], of_x[1][~at_a_kink], rtol=1e-3, atol=2e-3)


def test_what_is_not_a_number_stays_one() -> None:
    x = torch.zeros(1, 1, CHUNK, 1)
    x[0, 0, 7] = torch.nan
    found = mixed_activation(x, list(PLAIN), torch.ones(len(PLAIN)))
    assert found.isnan().nonzero().tolist() == [[0, 0, 7, 0]]


def test_every_activation_of_the_spaces_can_be_mixed() -> None:
    assert set(KINDS) == set(PLAIN) == set(ops.ACTIVATIONS) - {"prelu"}

"""Weights shared between networks: which they are, that they compute what a network's own would, their training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.architecture import Architecture
from nas.blocks import Block, Branches, Chain, Conv, Dense, Head, InvertedResidual, Residual, Wrap
from nas.builder import GraphBuilder, Ref
from nas.choices import OneOf, Repeat
from nas.errors import Diverged, EvaluationError, GraphError
from nas.plugins import make_space
from nas.space import Space
from nas.testing import toy_space
from nas.torch.data import Split
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe
from nas.torch.supernet import Path, Supernet
from nas.torch.supernet.training import Scheme, _Training, extremes, fit, resized

SPACES: dict[str, tuple[int, int, int]] = {"mobile": (1, 16, 16), "lecture": (1, 8, 8), "nasbench-macro": (3, 32, 32)}
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


class Wrapped(nn.Module):
    """A module of a user's own, with statistics and dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(8, width, 1), nn.BatchNorm2d(width), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout(self.norm(self.conv(x)))
        return y


def space_of(body: Block, *, resolution: Any = 1.0) -> Space:
    template = Chain(stem=Conv(8), body=body, head=Head(4))
    return Space(template, input_shape=(1, 8, 8), classes=4, name="own", resolution=resolution)


def own() -> Space:
    """A space of blocks that this package does not know."""
    layer = OneOf(Twice(width=OneOf(4, 8, 12), kernel=OneOf(1, 3)), Wrap(Wrapped, (("width", 8),)))
    return space_of(Repeat(layer, OneOf(1, 2)), resolution=OneOf(1.0, 1.5))


@cache
def shipped(name: str) -> Supernet:
    space = own() if name == "own" else make_space(name, SPACES[name], 10, {})
    supernet = Supernet(space)
    disturb(supernet)
    return supernet


def disturb(supernet: Supernet) -> None:
    """Norms that do nothing would hide which part of them is used."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


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


def images(path: Path | Architecture, n: int = 4, seed: int = 0, channels: int = 1) -> Tensor:
    height, width = path.resolution if isinstance(path, Path) else path.input_shape[1:]
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def choose(space: Space, **labels: object) -> Architecture:
    """The network with the given labels, by the last part of their paths; the first option elsewhere."""
    genotype = space.walk(lambda d: d.labels.index(labels.get(d.path.rpartition(".")[2], d.labels[0])))
    return space.architecture(genotype)


def shared(supernet: Supernet, path: Path, name: str) -> str:
    """The key of the node with a name."""
    graph = path._located.graph
    return path._located.keys[[node.name for node in graph.nodes].index(name)]


# -- what a path computes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SPACES, "own"])
def test_a_module_of_its_own_with_the_borrowed_weights_computes_the_same(name: str) -> None:
    supernet = shipped(name)
    channels = supernet.space.input_shape[0]
    for number, architecture in enumerate(networks(supernet.space, NETWORKS)):
        path = supernet.path(architecture)
        path.calibrate(images(path, 3, seed, channels) for seed in range(2))
        module = architecture.module()
        module.load_state_dict(path.weights())
        x = images(path, 2, 9, channels)
        with torch.no_grad():
            expected, found = module.eval()(x), path.eval()(x)
        scale = max(1.0, float(expected.abs().max()))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * scale), f"network {number}: {architecture.genotype}"


@pytest.mark.parametrize("name", [*SPACES, "own"])
def test_every_network_of_a_space_has_its_place(name: str) -> None:
    supernet = shipped(name)
    for architecture in networks(supernet.space, 500, seed=1):
        located = supernet.located(architecture)
        assert [node.name for node in located.graph.nodes] == [node.name for node in architecture.graph().nodes]


def test_statistics_are_the_mean_over_the_batches_and_this_networks_own() -> None:
    supernet = shipped("own")
    first, other = networks(supernet.space, 2, seed=3)
    path = supernet.path(first)
    path.calibrate([images(path, 8, 0), images(path, 8, 1)])
    before = path.weights()
    both = [supernet.path(first) for _ in range(2)]
    for seed, part in enumerate(both):
        part.calibrate([images(path, 8, seed)])
    stem = "stem.norm.running_mean"
    assert torch.allclose(before[stem], (both[0].weights()[stem] + both[1].weights()[stem]) / 2, atol=1e-6)
    assert before["stem.norm.num_batches_tracked"] == 2
    neighbour = supernet.path(other)
    neighbour.calibrate([images(neighbour, 8, 7)])
    after = path.weights()
    assert all(torch.equal(before[name], after[name]) for name in before)
    path.calibrate([images(path, 8, 0), images(path, 8, 1)])
    assert all(torch.equal(before[name], value) for name, value in path.weights().items())


def test_statistics_of_a_wrapped_module_are_not_the_shared_ones() -> None:
    space = space_of(Wrap(Wrapped, (("width", 8),)))
    supernet = Supernet(space)
    state = {name: value.clone() for name, value in supernet.state_dict().items()}
    path = supernet.path(next(networks(space, 1)))
    path.eval()
    path.calibrate([images(path, 16)])
    assert all(torch.equal(value, state[name]) for name, value in supernet.state_dict().items())
    assert path.weights()["body.module.norm.num_batches_tracked"] == 1
    x = images(path, 3, 1)
    assert torch.equal(path(x), path(x)), "its dropout acts though the network is not trained"
    path.train()
    path(images(path, 16))
    assert any(not torch.equal(value, state[name]) for name, value in supernet.state_dict().items())


def test_dropout_acts_where_a_network_is_trained_and_regularised_only() -> None:
    layer = InvertedResidual(drop_path=0.5)
    template = Chain(stem=Conv(8), body=layer, wrapped=Wrap(Wrapped, (("width", 8),)), head=Head(4, dropout=0.5))
    space = Space(template, input_shape=(1, 8, 8), classes=4)
    supernet = Supernet(space)
    for regularised, training, acts in ((True, True, True), (False, True, False), (True, False, False)):
        path = supernet.path(next(networks(space, 1)))
        path.regularised = regularised
        path.train(training)
        x = images(path, 32)
        assert (not torch.equal(path(x), path(x))) == acts


# -- what is shared --------------------------------------------------------------------------------------------


def test_leading_channels_and_the_centre_of_the_kernel() -> None:
    space = space_of(Conv(width=OneOf(4, 8, 16), kernel=OneOf(1, 3, 5)))
    supernet = Supernet(space)
    disturb(supernet)
    large, small = choose(space, width=16, kernel=5), choose(space, width=4, kernel=3)
    all_of_it, part = supernet.path(large).weights(), supernet.path(small).weights()
    assert all_of_it["body.conv.weight"].shape == (16, 8, 5, 5)
    assert torch.equal(part["body.conv.weight"], all_of_it["body.conv.weight"][:4, :, 1:4, 1:4])
    assert torch.equal(part["body.norm.weight"], all_of_it["body.norm.weight"][:4])
    assert torch.equal(part["head.classifier.weight"], all_of_it["head.classifier.weight"][:, :4])
    assert sum(p.numel() for p in supernet.parameters()) == large.metrics()["params"]


def test_after_a_concatenation_the_leading_channels_of_each_part() -> None:
    space = space_of(Chain(two=Branches((Conv(OneOf(4, 8)), Conv(OneOf(2, 6))), "concat"), last=Conv(8, 1)))
    supernet = Supernet(space)
    labels = [(a, b) for a in (4, 8) for b in (2, 6)]
    weights = {}
    for a, b in labels:
        genotype = space.walk(lambda d, a=a, b=b: d.labels.index(a if a in d.labels else b))  # type: ignore[misc]
        weights[a, b] = supernet.path(space.architecture(genotype)).weights()["body.last.conv.weight"]
    whole = weights[8, 6]
    for a, b in labels:
        assert torch.equal(weights[a, b], torch.cat([whole[:, :a], whole[:, 8 : 8 + b]], 1))


def test_options_of_a_choice_among_blocks_share_nothing() -> None:
    apart = space_of(OneOf(Conv(kernel=1), Conv(kernel=3), Residual(), labels=("small", "large", "residual")))
    together = space_of(Conv(kernel=OneOf(1, 3)))
    keys = {}
    for space in (apart, together):
        supernet = Supernet(space)
        paths = [supernet.path(architecture) for architecture in networks(space, 20)]
        found = {key for path in paths for key in path._located.keys if "body" in key and key.endswith("conv")}
        keys[space] = {key for key in found if key in supernet.sizes}
    assert len(keys[together]) == 1
    assert len(keys[apart]) == 4  # the residual block has two
    supernet = Supernet(apart)
    assert sorted(supernet.sizes[key].kernel for key in keys[apart]) == [(1, 1), (3, 3), (3, 3), (3, 3)]


def test_what_is_of_another_space_is_named() -> None:
    supernet = Supernet(space_of(Conv(width=OneOf(4, 8))))
    with pytest.raises(GraphError, match=r"no weights of this size; is it of another space"):
        supernet.path(choose(space_of(Conv(width=16))))
    with pytest.raises(GraphError, match=r"the supernet has no weights"):
        supernet.path(choose(space_of(Residual(width=8))))
    with pytest.raises(GraphError, match=r"the supernet has no weights for it"):
        supernet.path(choose(space_of(Wrap(Wrapped, (("width", 8),)))))


def test_initial_weights_depend_on_the_seed_alone() -> None:
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        states.append(Supernet(own(), seed=seed).state_dict())
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    different = [name for name in states[0] if not torch.equal(states[0][name], states[2][name])]
    assert any("wrapped" in name for name in different)
    assert any("wrapped" not in name for name in different)


# -- gradients -------------------------------------------------------------------------------------------------


def numbered(supernet: Supernet) -> Supernet:
    """The same supernet, in which every weight is its own number: what is borrowed then says where it is from."""
    copy, at = Supernet(supernet.space), 0
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.copy_(torch.arange(at, at + parameter.numel(), dtype=torch.float32).view(parameter.shape))
            at += parameter.numel()
    assert at < 2**24, "not every number is a float"
    return copy


@pytest.mark.parametrize("space", [toy_space(), own(), make_space("lecture", (1, 8, 8), 10, {})], ids=lambda s: s.name)
def test_gradients_land_in_the_borrowed_part_and_nowhere_else(space: Space) -> None:
    supernet = Supernet(space)
    disturb(supernet)
    numbers = numbered(supernet)
    for architecture in networks(space, 8, seed=4):
        path = supernet.path(architecture)
        path.regularised = False
        module = architecture.module()
        module.load_state_dict(path.weights())
        module.train()
        for part in module.modules():
            if isinstance(part, nn.Dropout) or type(part).__name__ == "DropPath":
                part.eval()
        x = images(path, 8, channels=space.input_shape[0])
        supernet.zero_grad()
        path.train()(x).pow(2).sum().backward()
        module(x).pow(2).sum().backward()
        origin = numbers.path(architecture).weights()
        size = sum(p.numel() for p in supernet.parameters())
        expected = torch.zeros(size)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            expected[origin[name].long().flatten()] += parameter.grad.flatten()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in supernet.parameters()]
        found = torch.cat([gradient.flatten() for gradient in gradients])
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
        borrowed = torch.cat([origin[name].long().flatten() for name, _ in module.named_parameters()])
        outside = torch.ones(size, dtype=torch.bool)
        outside[borrowed] = False
        assert not found[outside].any()
        assert borrowed.unique().numel() == borrowed.numel() == architecture.metrics()["params"]


# -- training --------------------------------------------------------------------------------------------------

RECIPE = Recipe(epochs=3, batch=8, lr=0.05, warmup=0.5)


def batches(seed: int = 0, n: int = 24, channels: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(3)
    split = Split(
        torch.randint(0, 256, (n, channels, 16, 16), dtype=torch.uint8, generator=generator),
        torch.randint(0, 10, (n,), generator=generator),
    )
    return Batches(
        split, mean=[0.5] * channels, std=[0.3] * channels, batch=8, augment=Augment(0, flip=False), seed=seed
    )


def trained(scheme: Scheme, seed: int = 0, **how: Any) -> dict[str, Tensor]:
    supernet = Supernet(toy_space(), seed=seed)
    fit(supernet, batches(seed), RECIPE, scheme=scheme, seed=seed, device="cpu", **how)
    return supernet.state_dict()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("scheme", ["uniform", "sandwich"])
def test_training_depends_on_the_seed_and_not_on_interruptions(scheme: Scheme, tmp_path: File) -> None:
    whole = trained(scheme)
    torch.manual_seed(7)  # the rest of the process may draw what it likes
    state = torch.get_rng_state()
    assert equal(trained(scheme), whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(trained(scheme, seed=1), whole)
    heard: list[float] = []

    def report(epoch: float, metrics: object) -> None:
        heard.append(epoch)
        if len(heard) in (1, 3):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trained(scheme, checkpoint=tmp_path / "checkpoint.pt", report=report)
    assert equal(trained(scheme, checkpoint=tmp_path / "checkpoint.pt", report=report), whole)
    assert heard == [1, 1, 2, 1, 2, 3]
    with pytest.raises(EvaluationError, match=r"belongs to another training: seed was 0 and is 1; delete it"):
        trained(scheme, seed=1, checkpoint=tmp_path / "checkpoint.pt")


def test_the_gradients_of_a_sandwich_are_the_sum_of_its_four() -> None:
    space = toy_space()
    supernet = Supernet(space)
    recipe = Recipe(epochs=1, batch=8, clip=None, warmup=0, channels_last=False)
    training = _Training(supernet, recipe, "sandwich", 1, 0, torch.device("cpu"))
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    x, y = next(iter(batches().epoch()))
    training._step(x, y, np.random.default_rng(5))
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in supernet.parameters()]

    rng = np.random.default_rng(5)
    largest, smallest = extremes(space)
    supernet.zero_grad()
    soft = y
    for genotype in (largest, space.sample(rng), space.sample(rng), smallest):
        path = supernet.path(space.architecture(genotype))
        path.regularised = genotype is largest
        scores = path(resized(x, path.resolution))
        smoothing = recipe.label_smoothing if soft is y else 0.0
        nn.functional.cross_entropy(scores, soft, label_smoothing=smoothing).backward()
        soft = scores.detach().softmax(1) if soft is y else soft
    expected = [torch.zeros_like(p) if p.grad is None else p.grad for p in supernet.parameters()]
    assert any(gradient.any() for gradient in expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_the_extremes_are_the_largest_and_the_smallest() -> None:
    space = toy_space()
    largest, smallest = (space.costs(genotype)["flops"] for genotype in extremes(space))
    flops = [space.costs(space.sample(np.random.default_rng(seed)))["flops"] for seed in range(200)]
    assert smallest <= min(flops)
    assert largest >= max(flops)


def test_training_learns_and_says_when_it_cannot() -> None:
    space = space_of(Chain(a=Conv(width=OneOf(8, 16)), b=Dense(width=OneOf(4, 8))))
    labels = torch.arange(64) % 4
    pixels = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    for label, pattern in enumerate([(slice(0, 8, 2), slice(8)), (slice(8), slice(0, 8, 2)), (slice(8), slice(8))]):
        pixels[labels == label, 0, *pattern] = 255  # rows, columns, all, and nothing
    how: dict[str, Any] = {"mean": [0.5], "std": [0.5], "batch": 16, "augment": Augment(0, flip=False)}
    train = Batches(Split(pixels, labels), **how)
    recipe = Recipe(epochs=8, batch=16, lr=0.1, label_smoothing=0)
    history = fit(Supernet(space), train, recipe, scheme="uniform", seed=0, device="cpu")
    assert len(history) == 8
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    wild = Recipe(epochs=1, batch=16, lr=1e30, clip=None, warmup=0)
    with pytest.raises(Diverged, match=r"training loss became nan"):
        fit(Supernet(space), train, wild, scheme="uniform", seed=0, device="cpu")

"""Weights and architecture in turns: the gradients, what each remedy changes, and that nothing is lost on the way."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path as File
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.blocks import Block, Cell, CellNode, Chain, Conv, Edge, FactorizedSkip, Head, InvertedResidual, PreConv, Skip
from nas.choices import OneOf, Repeat
from nas.errors import ConfigError, Diverged, EvaluationError
from nas.plugins import make_space
from nas.space import Space
from nas.torch.data import Split
from nas.torch.loader import Augment, Batches
from nas.torch.supernet import Relaxed, Supernet
from nas.torch.supernet.activations import KINDS
from nas.torch.supernet.bilevel import Bilevel
from nas.torch.supernet.parts import weights_of
from nas.torch.supernet.settings import Settings


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def space_of(body: Block, *, dropout: float = 0.0, resolution: Any = 1.0) -> Space:
    template = Chain(stem=Conv(4, activation="silu"), body=body, head=Head(3, dropout=dropout))
    return Space(template, input_shape=(1, 6, 6), classes=3, name="own", resolution=resolution)


def small(**how: Any) -> Space:
    """A few decisions of several kinds; activations are smooth, so that second derivatives are."""
    first = Conv(OneOf(4, 8), kernel=OneOf(1, 3), activation=OneOf("silu", "tanh"))
    return space_of(Chain(first, Repeat(OneOf(Conv(activation="silu"), Skip()), OneOf(1, 2))), **how)


def with_stride(**how: Any) -> Space:
    """A space with decisions that cannot be mixed."""
    return space_of(Chain(Conv(OneOf(4, 8), stride=OneOf(1, 2)), Conv(kernel=OneOf(1, 3))), **how)


def wired(**how: Any) -> Space:
    """A cell whose second node reads two of three values."""

    def operation(name: str) -> Any:
        return OneOf(FactorizedSkip(), PreConv(kernel=1), PreConv(), name=name, labels=("skip", "small", "large"))

    edges = [Edge(i, operation(f"from{i}")) for i in range(3)]
    choice = OneOf(*[(edges[a], edges[b]) for a, b in ((0, 1), (0, 2), (1, 2))], name="w", labels=("01", "02", "12"))
    before = (CellNode((Edge(0, PreConv()),)), CellNode((Edge(0, PreConv(kernel=1)),)))
    return space_of(Cell((*before, CellNode(choice)), "last"), **how)


def batches(seed: int, *, n: int = 24, batch: int = 8, dtype: torch.dtype = torch.float32) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    split = Split(
        torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=generator),
        torch.randint(0, 3, (n,), generator=generator),
    )
    augment = Augment(0, flip=False)
    return Batches(split, mean=[0.5], std=[0.3], batch=batch, augment=augment, seed=seed, dtype=dtype)


def made(
    space: Space, *, seed: int = 0, double: bool = False, halves: tuple[Batches, Batches] | None = None, **options: Any
) -> Bilevel:
    """A search; `double`: in double precision, with logits that are not all alike."""
    settings = Settings(**{"epochs": 3, "batch": 8, "points": 1, "alpha_lr": 0.05, **options})
    dtype = torch.float64 if double else torch.float32
    relaxed = Relaxed(Supernet(space, seed=seed).to(dtype), partial=settings.partial)
    halves = halves or (batches(1, dtype=dtype), batches(2, dtype=dtype))
    search = Bilevel(relaxed, *halves, settings, seed=seed, device="cpu")
    if double:
        search.alphas.double()
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for parameter in search.alphas.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return search


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def first_batches(search: Bilevel) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    train, validation = (next(iter(half.epoch(0))) for half in search.halves)
    return train, validation


# -- derivatives -----------------------------------------------------------------------------------------------

SMOOTH: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x, "silu": functional.silu, "tanh": torch.tanh, "relu": functional.relu,
}  # fmt: skip


@pytest.fixture
def twice_differentiable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same mixtures, written so that autograd can differentiate them again."""

    def weighted_sum(weights: Tensor, xs: Sequence[Tensor]) -> Tensor:
        return torch.stack([weight.to(x.dtype) * x for weight, x in zip(weights, xs, strict=True)]).sum(0)

    def mixed_activation(x: Tensor, kinds: Sequence[str], weights: Tensor, slope: Tensor | None = None) -> Tensor:
        assert slope is None
        return weighted_sum(weights, [SMOOTH[kind](x) for kind in kinds])

    assert KINDS.keys() >= SMOOTH.keys()
    for module in ("running", "parts"):
        monkeypatch.setattr(f"nas.torch.supernet.{module}.weighted_sum", weighted_sum)
    monkeypatch.setattr("nas.torch.supernet.running.mixed_activation", mixed_activation)


def exact_unrolled(search: Bilevel) -> list[Tensor]:
    """Gradient of the validation loss after one step of momentum SGD, by differentiating through the step."""
    (x, y), (vx, vy) = first_batches(search)
    named = dict(search.supernet.named_parameters())
    group = search.optimizer.param_groups[0]

    def loss(values: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        p = search.alphas.probabilities(search.alphas.at(1.0))
        with_values = _Lent(values)
        before, search.relaxed.supernet.tensor = search.relaxed.supernet.tensor, with_values  # type: ignore[method-assign]
        try:
            return functional.cross_entropy(search.relaxed(x, p), y)
        finally:
            search.relaxed.supernet.tensor = before  # type: ignore[method-assign]

    gradients = torch.autograd.grad(loss(named, x, y), list(named.values()), create_graph=True, allow_unused=True)
    stepped = {}
    for (name, theta), g in zip(named.items(), gradients, strict=True):
        stepped[name] = theta
        if g is not None:
            buffer = search.optimizer.state.get(theta, {}).get("momentum_buffer", torch.zeros_like(theta))
            moved = group["momentum"] * buffer + g + group["weight_decay"] * theta
            stepped[name] = theta - group["lr"] * moved
    return list(torch.autograd.grad(loss(stepped, vx, vy), list(search.alphas.parameters())))


class _Lent:
    """Other values for a supernet's weights."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = values

    def __call__(self, key: str, name: str) -> Tensor:
        return self.values[f"{key.replace('.', '/')}|{name}"]


@pytest.mark.usefixtures("twice_differentiable")
@pytest.mark.parametrize("steps", [0, 2], ids=["first", "with_momentum"])
def test_the_second_order_gradient_is_that_through_a_step(steps: int) -> None:
    search = made(small(), double=True, order=2, lr=0.2)
    for group in search.optimizer.param_groups:
        group["weight_decay"] = 0.05  # large enough to be seen
    rng = np.random.default_rng(0)
    for _ in range(steps):
        search._learn_weights(*first_batches(search)[0], 1.0, {}, rng, 0)
    before, alphas = state(search.supernet), state(search.alphas)
    expected = exact_unrolled(search)
    train, validation = first_batches(search)
    found = search.unrolled(train, validation, lambda: search.alphas.probabilities(search.alphas.at(1.0)), {})
    assert same(state(search.supernet), before)
    assert same(state(search.alphas), alphas)
    plain = torch.autograd.grad(
        search._loss(*validation, search.alphas.probabilities(search.alphas.at(1.0)), {}, single=False),
        list(search.alphas.parameters()),
    )
    for a, b, c in zip(found, expected, plain, strict=True):
        assert a is not None
        scale = float(b.abs().max())
        assert float((a - b).abs().max()) < 1e-3 * scale
        assert float((c - b).abs().max()) > 1e-2 * scale, "the first-order gradient would do"


def test_the_second_order_gradient_meets_the_same_dropout_every_time() -> None:
    search = made(small(dropout=0.5), double=True, order=2)
    train, validation = first_batches(search)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(search.unrolled(train, validation, lambda: search.alphas.probabilities(search.alphas.at(1.0)), {}))
    norm = math.sqrt(sum(float(g.square().sum()) for g in found[0] if g is not None))
    assert norm < 10, "a difference of two draws of dropout, over a small number"
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)


@pytest.mark.usefixtures("twice_differentiable")
def test_the_eigenvalue_is_the_dominant_one_of_the_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.torch.supernet.bilevel.POWER", 60)
    search = made(small(), double=True)
    before = {name: value for module in (search.alphas, search.supernet) for name, value in state(module).items()}
    torch.manual_seed(1)
    random = torch.get_rng_state()
    found = search.eigenvalue(0)
    after = {name: value for module in (search.alphas, search.supernet) for name, value in state(module).items()}
    assert same(before, after)
    assert torch.equal(random, torch.get_rng_state())

    parameters = list(search.alphas.parameters())
    x, y = next(iter(search.halves[1].epoch(0)))
    p = search.alphas.probabilities(search.alphas.at(0.5))
    loss = functional.cross_entropy(search.relaxed(x, p), y)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [torch.cat([h.flatten() for h in torch.autograd.grad(g, parameters, retain_graph=True)]) for g in flat]
    values = torch.linalg.eigvalsh(torch.stack(rows))
    dominant = float(values[values.abs().argmax()])
    assert found == pytest.approx(dominant, rel=0.02)


# -- whose turn it is ------------------------------------------------------------------------------------------


def test_each_step_changes_its_own_half_alone() -> None:
    for order in (1, 2):
        search = made(small(), order=order)
        train, validation = first_batches(search)
        rng = np.random.default_rng(0)
        weights, alphas = state(search.supernet), state(search.alphas)
        search._learn_architecture(train, validation, 1.0, {}, rng, 0)
        assert same(state(search.supernet), weights)
        assert not same(state(search.alphas), alphas)
        assert all(parameter.grad is None for parameter in search.supernet.parameters())
        alphas = state(search.alphas)
        search._learn_weights(*train, 1.0, {}, rng, 0)
        assert not same(state(search.supernet), weights)
        assert same(state(search.alphas), alphas)


class Recorded(Batches):
    """Remembers what it has handed out."""

    def epoch(self, epoch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in super().epoch(epoch):
            self.__dict__.setdefault("seen", []).append(x)
            yield x, y


def recorded(seed: int) -> Recorded:
    half = batches(seed)
    half.__class__ = Recorded
    assert isinstance(half, Recorded)
    return half


def test_the_halves_are_kept_apart_and_validation_batches_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = recorded(1), recorded(2)
    search = made(small(), halves=halves, order=2)
    weights_saw, architecture_saw = list[Tensor](), list[Tensor]()
    learn_weights, learn_architecture = search._learn_weights, search._learn_architecture

    def weights(x: Tensor, *rest: Any) -> Tensor:
        weights_saw.append(x)
        return learn_weights(x, *rest)

    def architecture(train: Any, validation: Any, *rest: Any) -> Tensor:
        assert train[0] is halves[0].__dict__["seen"][-1]
        architecture_saw.append(validation[0])
        return learn_architecture(train, validation, *rest)

    monkeypatch.setattr(search, "_learn_weights", weights)
    monkeypatch.setattr(search, "_learn_architecture", architecture)
    search.run()
    images = [{image.numpy().tobytes() for x in saw for image in x} for saw in (weights_saw, architecture_saw)]
    assert not images[0] & images[1]
    assert len(images[0]) == len(images[1]) == 24
    assert all(any(x is given for given in halves[1].__dict__["seen"]) for x in architecture_saw)
    assert len(architecture_saw) == 9
    for a, b in pairwise(architecture_saw):
        assert not torch.equal(a, b)


def test_the_shorter_half_begins_again() -> None:
    search = made(small(), halves=(batches(1, n=40), recorded(2)), epochs=1)
    search.run()
    # Five steps on three batches, then the eigenvalue on the first one.
    seen = search.halves[1].__dict__["seen"]
    assert len(seen) == 6
    assert torch.equal(seen[0], seen[-1])
    assert not any(torch.equal(a, b) for a, b in zip(seen[:3], seen[3:], strict=True))


def test_too_few_images_are_told() -> None:
    for halves in ((batches(1, n=1), batches(2)), (batches(1), batches(2, n=1))):
        with pytest.raises(EvaluationError, match=r"^nothing to .*: expected batches of at least two images$"):
            made(small(), halves=halves).run()


def test_a_search_that_diverges_says_so() -> None:
    with pytest.raises(Diverged, match="loss became nan"):
        made(small(), lr=1e38).run()


# -- going on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (small, {"points": 3, "penalty": 0.3}),
        (small, {"order": 2, "beta": 1.0, "perturb": 0.3, "warmup": 1}),
        (with_stride, {"gumbel": True}),
        (wired, {"partial": 2}),
    ],
    ids=["points", "second_order", "gumbel", "partial"],
)
def test_killed_and_continued_it_is_the_uninterrupted_search(
    make: Callable[..., Space], options: dict[str, Any], tmp_path: File
) -> None:
    whole = made(make(dropout=0.5), **options)
    expected = whole.run()
    torch.manual_seed(7)  # the rest of the process may draw what it likes
    heard: list[float] = []

    def report(epoch: float, metrics: Mapping[str, float]) -> None:
        heard.append(epoch)
        assert metrics == whole.history[int(epoch) - 1]
        if len(heard) in (1, 3):
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint.pt"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made(make(dropout=0.5), **options).run(checkpoint=file, report=report)
    last = made(make(dropout=0.5), **options)
    assert [asdict(d) for d in last.run(checkpoint=file, report=report)] == [asdict(d) for d in expected]
    assert heard == [1, 1, 2, 1, 2, 3]
    for name in ("alphas", "supernet"):
        assert same(state(getattr(last, name)), state(getattr(whole, name)))
    content = torch.load(file, weights_only=True)["state"]
    assert same(content["alphas"], state(whole.alphas))
    with pytest.raises(EvaluationError, match=r"belongs to another training: seed was 0 and is 1; delete it"):
        made(make(dropout=0.5), seed=1, **options).run(checkpoint=file)


def test_another_seed_is_another_search() -> None:
    assert not same(state(made(small(), seed=1).alphas), state(made(small(), seed=0).alphas))
    torch.manual_seed(3)
    assert same(state(made(small(), seed=1).alphas), state(made(small(), seed=1).alphas))


# -- remedies --------------------------------------------------------------------------------------------------


def gradients_of(search: Bilevel, epoch: int = 0) -> list[Tensor]:
    """Of the architecture, in its step."""
    search._learn_architecture(*first_batches(search), 1.0, {}, np.random.default_rng(0), epoch)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in search.alphas.parameters()]


def test_beta_decay_pulls_logits_together() -> None:
    """Its gradient is the softmax, over the number of decisions, times the weight, which grows linearly."""
    for epoch, share in ((0, 1 / 3), (2, 1.0)):
        plain, decayed = (made(small(), double=True, beta=beta) for beta in (0.0, 2.0))
        softmax = [p[0].softmax(0) for p in plain.alphas.parameters()]
        differences = [b - a for a, b in zip(gradients_of(plain, epoch), gradients_of(decayed, epoch), strict=True)]
        for difference, p in zip(differences, softmax, strict=True):
            assert torch.allclose(difference[0], 2.0 * share * p / len(softmax), rtol=1e-9)


def test_perturbation_is_in_the_steps_of_the_weights_alone() -> None:
    plain, perturbed = (made(small(), perturb=perturb) for perturb in (0.0, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(gradients_of(plain), gradients_of(perturbed), strict=True))
    alphas, seen = state(perturbed.alphas), list[dict[str, Tensor]]()
    probabilities = perturbed._probabilities

    def look(logits: Mapping[str, Tensor], *rest: Any) -> dict[str, Tensor]:
        seen.append({path: value.clone() for path, value in logits.items()})
        return probabilities(logits, *rest)

    perturbed._probabilities = look  # type: ignore[method-assign]
    for epoch in (0, 2):
        perturbed._learn_weights(*first_batches(perturbed)[0], 1.0, {}, np.random.default_rng(1), epoch)
    assert same(state(perturbed.alphas), alphas)
    known = {path: value.detach() for path, value in perturbed.alphas.at(1.0).items()}
    for logits, most in zip(seen, (0.5 / 3, 0.5), strict=True):
        noise = torch.cat([logits[path] - known[path] for path in known])
        assert 0.5 * most < float(noise.abs().max()) <= most + 1e-6


def test_gumbel_draws_single_options_and_cools_down() -> None:
    search = made(small(), gumbel=True, double=True)
    logits, rng = search.alphas.at(1.0), np.random.default_rng(0)
    counts: dict[str, Tensor] = {path: torch.zeros(len(value), dtype=torch.float64) for path, value in logits.items()}
    for _ in range(2000):
        for path, p in search._probabilities(logits, rng, 0).items():
            p = p.detach()
            assert max(p.tolist()) == pytest.approx(1)
            assert float(p.sum()) == pytest.approx(1)
            counts[path] += p
    for path, value in logits.items():  # the noise makes them as frequent as the softmax says, at any temperature
        assert torch.allclose(counts[path] / 2000, value.softmax(0), atol=0.05)
    slopes = []
    for epoch in (0, 2):
        p = search._probabilities(logits, np.random.default_rng(5), epoch)
        found = torch.autograd.grad(p["body.0.width"][0], list(search.alphas.parameters()), allow_unused=True)
        (slope,) = [g for g in found if g is not None]
        slopes.append(slope)
    assert slopes[0].any()
    assert not torch.allclose(slopes[0], slopes[1])
    search.run()


def test_partial_channels_have_weights_of_edges() -> None:
    assert weights_of("w") not in made(wired()).alphas.at(1.0)
    search = made(wired(), partial=2)
    logits = search.alphas.at(1.0)
    assert "w" not in logits
    assert logits[weights_of("w")].shape == (3,)
    # The operations of the node's edges may do nothing, too; the others' have one option.
    assert {path: len(value) for path, value in logits.items() if path.startswith("from")} == {
        "from0": 4, "from1": 4, "from2": 4,
    }  # fmt: skip
    search.run()
    x, _ = first_batches(search)[0]
    p = search.alphas.probabilities(logits)
    assert not torch.allclose(search.relaxed(x, p), made(wired()).relaxed(x, p))


@pytest.mark.parametrize("warmup", [0, 2])
def test_it_ends_with_the_earlier_architecture_when_the_eigenvalue_grows(
    warmup: int, monkeypatch: pytest.MonkeyPatch, tmp_path: File
) -> None:
    monkeypatch.setattr(Bilevel, "eigenvalue", lambda self, epoch: 1.0 if epoch < 11 else 3.0)
    search, alphas = made(small(), epochs=20, warmup=warmup, stop=1.3), list[dict[str, Tensor]]()
    file = tmp_path / "checkpoint.pt"
    found = search.run(checkpoint=file, report=lambda *_: alphas.append(state(search.alphas)))
    # Twelve epochs: of the last five values one is 3, so their mean is 1.4 times that of four epochs before.
    assert len(alphas) == 12
    assert same(state(search.alphas), alphas[7])
    assert not same(alphas[7], alphas[11])
    again, epochs = made(small(), epochs=20, warmup=warmup, stop=1.3), list[float]()
    assert again.run(checkpoint=file, report=lambda epoch, _: epochs.append(epoch)) == found
    assert same(state(again.alphas), alphas[7])
    assert epochs == list(range(1, 13))


@pytest.mark.parametrize(("stop", "count"), [(0.0, 15), (1.5, 13)])
def test_a_larger_factor_ends_it_later(stop: float, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bilevel, "eigenvalue", lambda self, epoch: 1.0 if epoch < 11 else 3.0)
    epochs: list[float] = []
    made(small(), epochs=15, stop=stop).run(report=lambda epoch, _: epochs.append(epoch))
    assert len(epochs) == count


# -- what comes out --------------------------------------------------------------------------------------------


def test_a_larger_penalty_gives_no_larger_networks() -> None:
    flops = []
    for penalty in (0.0, 0.3, 3.0):
        search = made(small(), penalty=penalty, alpha_lr=0.3, epochs=6)
        (derived,) = search.run()
        flops.append(search.supernet.space.costs(derived.genotype)["flops"])
        if penalty == 3.0:
            space = search.supernet.space
            assert flops[-1] == min(space.costs(genotype)["flops"] for genotype in space.enumerate())
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] < flops[0]


def test_one_search_serves_all_preferences() -> None:
    search = made(small(), points=5, penalty=3.0, alpha_lr=0.3, epochs=10)
    found = search.run()
    assert [d.preference for d in found] == [0, 0.25, 0.5, 0.75, 1]
    space = search.supernet.space
    flops = [space.costs(d.genotype)["flops"] for d in found]
    assert flops == sorted(flops, reverse=True)
    with torch.no_grad():
        expected = [float(search.relaxed.flops(search._mixture(d.preference))) for d in found]
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] < 0.98 * expected[0]
    for derived in found:
        space.check(derived.genotype)
        for path, p in derived.probabilities.items():
            assert len(p) == len(space.paths[path])
            assert sum(p) == pytest.approx(1)


def test_what_cannot_be_mixed_learns_from_what_it_costs() -> None:
    """The dearer stride is chosen less where FLOPs count alone."""
    search = made(with_stride(resolution=OneOf(1.0, 1.5)), penalty=3.0, alpha_lr=0.3, epochs=20)
    assert set(search.relaxed.sampled) == {"resolution", "body.0.stride"}
    (derived,) = search.run()
    assert derived.probabilities["body.0.stride"][1] > 0.7
    assert derived.probabilities["resolution"][0] > 0.7
    assert derived.genotype["body.0.stride"] == 2
    assert all(math.isfinite(metrics["eigenvalue"]) for metrics in search.history)


def test_only_what_can_be_built_is_drawn() -> None:
    space = Space(
        Chain(stem=Conv(4, stride=OneOf(1, 2)), body=Conv(kernel=OneOf(3, 5), padding=0), head=Head(3)),
        input_shape=(1, 6, 6), classes=3,
    )  # fmt: skip
    search = made(space)
    rng = np.random.default_rng(0)
    drawn = {tuple(search._sample(1.0, rng).items()) for _ in range(60)}
    for genotype in drawn:
        assert search.relaxed.fits(dict(genotype))
    assert len(drawn) == 3  # with stride 2 the larger kernel does not fit
    with torch.no_grad():
        for path in search.relaxed.sampled:
            search.alphas.at(1.0)[path].copy_(torch.tensor([0.0, 9.0]))
    assert search.relaxed.fits(search._likely(1.0))
    search.run()


def set_logits(search: Bilevel, values: Mapping[str, Sequence[float]]) -> None:
    with torch.no_grad():
        for path, logits in values.items():
            search.alphas.at(1.0)[path].copy_(torch.tensor(logits))


def test_nodes_keep_the_two_strongest_inputs_and_doing_nothing_does_not_count() -> None:
    search = made(wired())
    # The last logit is for doing nothing: it is the largest of the first edge, whose best operation is the weakest.
    set_logits(search, {"from0": [0, 0, 0.5, 9], "from1": [0, 2, 0, 0], "from2": [1, 0, 0, 0]})
    (derived,) = search.derived()
    assert derived.genotype["w"] == "12"
    assert derived.genotype["from1"] == "small"
    assert derived.genotype["from2"] == "skip"
    set_logits(search, {"from0": [0, 0, 3.5, 0]})
    (derived,) = search.derived()
    assert derived.genotype["w"] == "01"
    assert derived.genotype["from0"] == "large"
    # Where edges have weights, they count as well.
    search = made(wired(), partial=2)
    set_logits(
        search, {"from0": [0, 0, 3, 0], "from1": [0, 2, 0, 0], "from2": [1, 0, 0, 0], weights_of("w"): [-9, 0, 0]}
    )
    assert search.derived()[0].genotype["w"] == "12"


def test_nasbench201_takes_the_best_of_all_five_on_every_edge() -> None:
    space = make_space("nasbench201", (1, 6, 6), 3, {"channels": 4, "cells": 1})
    search = made(space)
    wanted = dict(
        zip(space.paths, ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none"), strict=True)
    )
    set_logits(search, {p: [2.0 * (label == wanted[p]) for label in labels] for p, labels in space.paths.items()})
    assert search.derived()[0].genotype == wanted


def test_elsewhere_the_most_probable_option_of_what_is_there() -> None:
    block = OneOf(InvertedResidual(kernel=OneOf(3, 5)), Skip(), name="block")
    search = made(space_of(Repeat(block, OneOf(1, 2))))
    set_logits(search, {"body.times": [0, 1], "body.0.block": [1, 0], "body.0.kernel": [0, 1], "body.1.block": [0, 1]})
    assert search.derived()[0].genotype == {
        "body.times": 2, "body.0.block": "inverted_residual", "body.0.kernel": 5, "body.1.block": "identity",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["type", "values", "keys", "half", "training"])
def test_a_decision_may_be_called_anything(name: str) -> None:
    search = made(space_of(Conv(OneOf(4, 8, name=name))), epochs=1)
    assert name in search.run()[0].genotype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "strategy.epochs: expected a whole number of at least 1, got 0"),
        ({"epochs": True}, "strategy.epochs: expected a whole number of at least 1, got True"),
        ({"batch": 1}, "strategy.batch: expected a whole number of at least 2, got 1"),
        ({"order": 3}, "strategy.order: expected 1 or 2, got 3"),
        ({"order": 1.0}, "strategy.order: expected 1 or 2, got 1.0"),
        ({"points": "3"}, "strategy.points: expected a whole number of at least 1, got '3'"),
        ({"penalty": -1}, "strategy.penalty: expected a number of at least 0, got -1"),
        ({"penalty": math.nan}, "strategy.penalty: expected a number of at least 0, got nan"),
        ({"penalty": math.inf}, "strategy.penalty: expected a number of at least 0, got inf"),
        ({"lr": 0}, "strategy.lr: expected a number above 0, got 0"),
        ({"alpha_lr": None}, "strategy.alpha_lr: expected a number above 0, got None"),
        ({"gumbel": 1}, "strategy.gumbel: expected true or false, got 1"),
        ({"partial": 0}, "strategy.partial: expected a whole number of at least 1, got 0"),
        ({"stop": 1}, "strategy.stop: expected 0, or a factor above 1, got 1"),
        ({"warmup": 50}, "strategy.warmup: expected fewer than all 50 epochs, got 50"),
    ],
)
def test_bad_settings_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Settings(**options)
    assert str(error.value) == message


# -- several processes -----------------------------------------------------------------------------------------


def process(rank: int, folder: File) -> None:
    """One of two that learn from different images."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2)
    search = made(with_stride(), halves=(batches(10 + rank), batches(20 + rank)), epochs=2, order=2, penalty=0.3)
    found = [asdict(point) for point in search.run()]
    eigenvalues = [metrics["eigenvalue"] for metrics in search.history]
    torch.save((found, eigenvalues, state(search.alphas), state(search.supernet)), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="gloo is missing"
)
def test_processes_keep_in_step(tmp_path: File) -> None:
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    for running in [subprocess.Popen(command) for command in commands]:
        assert running.wait(120) == 0
    (found, eigenvalues, alphas, weights), other = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert found == other[0]
    assert eigenvalues == other[1]
    assert same(alphas, other[2])
    assert same(weights, other[3])
    alone = made(with_stride(), halves=(batches(10), batches(20)), epochs=2, order=2, penalty=0.3)
    alone.run()
    assert not same(state(alone.alphas), alphas)


if __name__ == "__main__":
    process(int(sys.argv[1]), File(sys.argv[2]))

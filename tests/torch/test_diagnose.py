"""Looking inside a network: what is planted is found and named, what is measured is what the definitions say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas import ops
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, InvertedResidual, Residual, SqueezeExcite, Wrap
from nas.blocks.base import Block
from nas.builder import GraphBuilder, Ref
from nas.errors import ConfigError, EvaluationError
from nas.plugins import make_space, reference
from nas.torch.build import build
from nas.torch.data import Data, load
from nas.torch.diagnose import Finding, diagnose, judge
from nas.torch.field import field, last_map
from nas.torch.snapshot import Snapshot, snapshot


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def plain(activation: str, layers: int, *, norm: str = "none", width: int = 16) -> Architecture:
    convs: dict[str, Any] = {f"c{i}": Conv(width, activation=activation, norm=norm) for i in range(layers)}
    return Architecture(Chain(**convs, head=Head(10)), (1, 8, 8), 10, f"plain-{activation}")


def changed(architecture: Architecture, change: Callable[[Any], Any]) -> Snapshot:
    """What is seen at initialisation after `change` was done to every convolution."""
    module = architecture.module(seed=0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                change(layer)
    return snapshot(module, architecture.graph(), *batch(architecture), seed=0)


def batch(architecture: Architecture, images: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, *architecture.input_shape, generator=generator)
    return x, torch.arange(images) % architecture.classes


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


# -- planted defects -----------------------------------------------------------------------------------------------


def test_a_gradient_that_vanishes_is_named(digits: Data) -> None:
    """30 layers of sigmoid: even with its own gain each divides the gradient by 2.5 or so."""
    found = diagnose(plain("sigmoid", 30), digits, steps=2)
    assert kinds(found.findings) == {"vanishing", "alike"}
    first = found.findings[0]
    assert (first.kind, first.node, first.when) == ("vanishing", "c0.conv", "at initialisation")
    assert "vanishes at initialisation at c0.conv: times the weights" in first.text
    assert "times the median" in first.text
    assert {finding.when for finding in found.findings} == {"at initialisation", "after 2 steps"}
    ratio = found.start.sensitivities["c0.conv"] / found.start.sensitivities["c29.conv"]
    assert ratio < 1e-9


def test_a_gradient_that_explodes_is_named() -> None:
    moment = changed(plain("tanh", 30), lambda conv: conv.weight.mul_(6))
    (finding,) = judge(moment, "now")
    assert finding.kind == "exploding"
    assert finding.node in ("c0.conv", "c1.conv", "c2.conv")
    assert "explodes now" in finding.text


def test_a_gain_too_large_explodes_in_every_layer() -> None:
    moment = changed(plain("relu", 30), lambda conv: conv.weight.mul_(3))
    (finding,) = judge(moment, "now")
    assert finding.kind == "exploding"
    assert "(31 of 31 layers)" in finding.text


def test_numbers_that_are_none_count_as_exploding() -> None:
    moment = changed(plain("relu", 12), lambda conv: conv.weight.mul_(1e9))
    assert not any(map(math.isfinite, moment.gradients.values()))
    assert "exploding" in kinds(judge(moment, "now"))
    assert moment.field.size == 0


def test_a_training_that_diverges_is_said(digits: Data) -> None:
    body = Chain(bad=Wrap(Bad), stem=Conv(8, norm="none"), head=Head(10))
    found = diagnose(Architecture(body, (1, 8, 8), 10), digits, steps=5)
    assert found.diverged
    assert found.end is None
    assert found.steps < 5
    assert found.findings[-1].text == f"the training diverges at step {found.steps}: the loss is not a number"


@pytest.mark.parametrize("kind", ["relu", "relu6", "elu", "selu", "silu", "hard_swish", "gelu", "mish", "sigmoid",
                                  "hard_sigmoid", "tanh"])  # fmt: skip
def test_dead_units_of_every_activation(kind: str) -> None:
    """A bias of -100 saturates them all, on a few channels as on all of them."""

    def kill(conv: Any) -> None:
        if conv.out_channels == 16:
            conv.bias[:4].fill_(-100)

    moment = changed(plain(kind, 2), kill)
    assert moment.dead == {"c0.act": pytest.approx(0.25), "c1.act": pytest.approx(0.25)}
    assert moment.dead_share == pytest.approx(0.25)
    assert "dead" not in kinds(judge(moment, "now"))
    moment = changed(plain(kind, 2), lambda conv: conv.bias.fill_(-100))
    assert moment.dead_share == 1
    finding = next(finding for finding in judge(moment, "now") if finding.kind == "dead")
    assert finding.text.startswith("100% of the units of c0.act are dead now (2 of 2 activations")


@pytest.mark.parametrize("kind", ["leaky_relu", "prelu"])
def test_a_leak_keeps_units_alive(kind: str) -> None:
    assert changed(plain(kind, 2), lambda conv: conv.bias.fill_(-100)).dead_share == 0


def test_the_dead_share_weighs_activations_by_their_units() -> None:
    body = Chain(a=Conv(30, norm="none"), b=Conv(10, norm="none"), head=Head(10))

    def kill(conv: Any) -> None:
        if conv.out_channels == 10:
            conv.bias.fill_(-1000)

    moment = changed(Architecture(body, (1, 8, 8), 10), kill)
    assert (moment.dead["b.act"], moment.units["b.act"]) == (1, 10)
    assert moment.dead_share == pytest.approx((30 * moment.dead["a.act"] + 10) / 40)


# -- sound networks ------------------------------------------------------------------------------------------------


def test_a_resnet_is_clean_before_and_after_training(digits: Data) -> None:
    losses: list[float] = []
    network = reference("resnet20_cifar")
    found = diagnose(network, digits, steps=6, batch=16, on_step=lambda done, loss: losses.append(loss))
    assert found.findings == []
    assert len(losses) == found.steps == 6
    assert list(found.moments) == ["at initialisation", "after 6 steps"]
    assert found.end is not None
    assert found.end.gradients != found.start.gradients
    layers = [node.name for node in network.graph().nodes if node.op.layer]
    assert list(found.start.gradients) == layers
    assert set(found.start.means) == set(layers) | set(found.start.dead)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "ghostnet", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_the_references_are_sound(name: str, digits: Data) -> None:
    architecture = reference(name)
    small = architecture if architecture.input_shape[1] <= 32 else architecture.scale(resolution=64)
    found = diagnose(small, digits, steps=0, batch=8)
    assert kinds(found.findings) <= {"dead"}  # eight images leave some units of a narrow gate unused
    assert found.end is None


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench201", "darts"])
def test_any_network_of_our_spaces_can_be_looked_into(name: str, digits: Data) -> None:
    space, rng = make_space(name, digits.input_shape, 10, {}), np.random.default_rng(0)
    for _ in range(1 if name == "darts" else 3):
        found = diagnose(space.architecture(space.sample(rng)), digits, steps=0, batch=8)
        assert not kinds(found.findings) & {"exploding"}
        assert 0 < found.start.field.size <= max(found.architecture.input_shape)


@pytest.mark.parametrize("norm", ops.NORMS)
def test_every_norm(norm: str, digits: Data) -> None:
    assert diagnose(plain("silu", 4, norm=norm), digits, steps=1, batch=8).findings == []


class Own(nn.Module):
    """A user's module; its dropout is random wherever it trains."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.conv(x), 0.5, self.training)


class Bad(nn.Module):
    """Leaves no number finite."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 1e30 * 1e30


@dataclass(frozen=True)
class Twice(Block):
    """One convolution used twice, then a module of a user's own."""

    label = "diagnosed_twice"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.conv("first", x[0], 8)
        y = g.activation("act", g.conv("again", y, 8, weights="first"), "relu")
        y = g.module("own", Own, y, width=8)
        return g.linear("classifier", g.flatten("flatten", g.global_pool("pool", y)), 10)


def test_shared_weights_and_modules_of_ones_own() -> None:
    architecture = Architecture(Chain(stem=Conv(8), body=Twice()), (3, 8, 8), 10)
    module, graph = architecture.module(seed=0), architecture.graph()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    moments = [snapshot(module, graph, *batch(architecture), seed=3) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert moments[0].sensitivities == moments[1].sensitivities
    assert torch.equal(moments[0].field.map, moments[1].field.map)
    assert list(moments[0].gradients) == ["stem.conv", "body.first", "body.own", "body.classifier"]
    assert {"body.first", "body.again", "body.own"} < set(moments[0].means)
    other = snapshot(module, graph, *batch(architecture), seed=4)
    assert other.gradients["body.first"] != moments[0].gradients["body.first"]


# -- what is measured ----------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_network_as_it_trains() -> None:
    architecture = plain("tanh", 3, norm="batch")
    module, (x, y) = architecture.module(seed=0), batch(architecture)
    moment = snapshot(module, architecture.graph(), x, y, seed=0)
    seen: dict[str, Tensor] = {}
    for name, layer in module.named_modules():
        layer.register_forward_hook(lambda layer, x, out, name=name: seen.__setitem__(name, out.detach()))
    module.train()
    loss = functional.cross_entropy(module(x), y)
    loss.backward()
    assert moment.loss == pytest.approx(float(loss.detach()))
    for name in ("c0.conv", "c2.conv", "head.classifier"):
        weight: Any = module.get_submodule(name).weight
        assert moment.gradients[name] == pytest.approx(float(weight.grad.norm()), rel=1e-4)
        expected = float(weight.grad.norm() * weight.detach().norm())
        assert moment.sensitivities[name] == pytest.approx(expected, rel=1e-4)
    for name in ("c0.conv", "c1.act", "head.classifier"):
        out = seen[name]
        assert moment.means[name] == pytest.approx(float(out.mean()), abs=1e-6)
        assert moment.sizes[name] == pytest.approx(float(out.square().mean().sqrt()), rel=1e-4)
        assert moment.spreads[name] == pytest.approx(float(out.var(0, correction=0).mean().sqrt()), rel=1e-4)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_sensitivity_does_not_depend_on_scales_that_make_no_difference() -> None:
    """Of weights before a norm; of two layers with ReLUs, one of them up and the other down."""
    architecture = plain("relu", 3, norm="batch")
    moments = [changed(architecture, lambda conv, f=f: conv.weight.mul_(f)) for f in (1, 7)]
    for name in ("c0.conv", "c1.conv", "c2.conv"):
        assert moments[1].sensitivities[name] == pytest.approx(moments[0].sensitivities[name], rel=0.02)
        assert moments[1].gradients[name] == pytest.approx(moments[0].gradients[name] / 7, rel=0.02)

    def shift(conv: Any) -> None:
        conv.weight.mul_(5 if conv.in_channels == 1 else 1)

    bare = plain("relu", 1)
    before, after = changed(bare, lambda conv: None), changed(bare, shift)
    assert after.gradients["head.classifier"] == pytest.approx(5 * before.gradients["head.classifier"], rel=0.05)


# -- the effective receptive field ---------------------------------------------------------------------------------


def seen_by(architecture: Architecture, images: int = 4) -> Any:
    module = architecture.module(seed=0)
    return field(module, architecture.graph(), batch(architecture, images)[0], torch.Generator().manual_seed(0))


def test_a_field_lies_within_the_theoretical_one() -> None:
    body = Chain(a=Conv(8, 3, norm="none"), b=Conv(8, 5, norm="none"), head=Head(10))
    found = seen_by(Architecture(body, (3, 21, 21), 10))
    assert (found.node, found.theory) == ("b.act", (7, 7))
    rows, columns = found.map.nonzero().T
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (7, 13, 7, 13)
    assert float(found.map.sum()) == pytest.approx(1)
    assert 4 < found.size < 7
    assert found.centre == (pytest.approx(10.5, abs=1), pytest.approx(10.5, abs=1))


def test_the_share_is_that_of_the_pixels() -> None:
    """One 5x5 kernel of equal weights: 24 of its 25 pixels hold 95.45 %; of 1 and 24 small ones the middle does."""
    architecture = Architecture(Chain(a=Conv(1, 5, norm="none", activation="identity"), head=Head(10)), (1, 11, 11), 10)
    module: Any = build(architecture.graph(), seed=0)
    for outer, pixels in ((1.0, 24), (0.001, 1)):
        with torch.no_grad():
            module.a.conv.weight.fill_(outer)
            module.a.conv.weight[0, 0, 2, 2] = 1
        found = field(module, architecture.graph(), batch(architecture)[0], torch.Generator())
        assert found.size == pytest.approx(math.sqrt(pixels))


def test_a_field_grows_as_the_root_of_the_depth() -> None:
    """Luo et al. 2016; the theoretical one grows with the depth itself."""

    def linear(layers: int) -> Any:
        convs: dict[str, Any] = {f"c{i}": Conv(12, norm="none", activation="identity") for i in range(layers)}
        return seen_by(Architecture(Chain(**convs, head=Head(10)), (3, 65, 65), 10))

    few, many = linear(8), linear(32)
    assert many.theory[0] / few.theory[0] == pytest.approx(65 / 17)
    assert many.size / few.size == pytest.approx(2, rel=0.12)


def test_batch_norms_do_not_spread_the_field_and_stay_as_they_are() -> None:
    architecture = plain("relu", 2, norm="batch")
    wide = Architecture(architecture.body, (1, 31, 31), 10)
    module = wide.module(seed=0)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = field(module, wide.graph(), batch(wide)[0], torch.Generator())
    assert int((found.map > 0).sum()) <= 25
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_a_gradient_too_small_for_squares_in_float32_is_still_a_field() -> None:
    moment = changed(plain("relu", 20), lambda conv: conv.weight.mul_(0.05))
    assert moment.field.size > 4


@pytest.mark.parametrize(
    ("architecture", "node"),
    [
        ("resnet20_cifar", "stage3.2.act"),
        ("mobilenet_v3_small", "last.act"),
        ("vgg11", "pool5.pool"),
        ("nin_cifar", None),
    ],
)
def test_the_last_map_is_what_the_pooling_reads(architecture: str, node: str | None) -> None:
    graph = reference(architecture).graph()
    at = last_map(graph)
    readers = [n.op for n in graph.nodes if at in n.inputs]
    assert [type(op) for op in readers] == [ops.AdaptivePool]
    assert node in (None, graph.nodes[at].name)


def test_squeezing_pools_are_not_the_last() -> None:
    body = Chain(a=InvertedResidual(8, se=SqueezeExcite()), b=Residual(8), head=Head(10))
    graph = Architecture(body, (3, 8, 8), 10).graph()
    assert graph.nodes[last_map(graph)].name == "b.act"


# -- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 1}, "batch: expected at least 2 images"), ({"steps": -1}, "steps: expected a whole number")],
)
def test_numbers_out_of_range(options: dict[str, int], message: str, digits: Data) -> None:
    with pytest.raises(ConfigError, match=message):
        diagnose(plain("relu", 1), digits, **options)


def test_data_that_do_not_fit(digits: Data) -> None:
    few = Architecture(Chain(a=Conv(4), head=Head(3)), (1, 8, 8), 3, "few")
    with pytest.raises(ConfigError, match="'few' tells 3 classes apart, digits has 10; name other data"):
        diagnose(few, digits, steps=0)
    colour = Data("photos", *[type(s)(s.images.repeat(1, 3, 1, 1), s.labels) for s in
                              (digits.train, digits.validation, digits.test)], digits.class_names)  # fmt: skip
    with pytest.raises(ConfigError, match="reads images of 1 channels, photos has 3"):
        diagnose(plain("relu", 1), colour, steps=0)


class Refuses(nn.Module):
    """Works on the meta device only."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            raise RuntimeError("no")
        return x


def test_a_module_that_fails_is_one_line(digits: Data) -> None:
    body = Chain(own=Wrap(Refuses), head=Head(10))
    with pytest.raises(EvaluationError, match=r"^RuntimeError: no$"):
        diagnose(Architecture(body, (1, 8, 8), 10), digits, steps=0)

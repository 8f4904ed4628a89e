"""The module of a graph: its parameters, FLOPs and shapes are the graph's, and it behaves like any module."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nas import blocks as b
from nas import ops
from nas.analysis import analyse
from nas.builder import GraphBuilder
from nas.choices import OneOf, Repeat
from nas.errors import GraphError, PluginError
from nas.graph import Graph
from nas.space import Space
from nas.torch.build import build, module_paths

SE = b.SqueezeExcite(0.25, activation="silu")
MAP = (12, 9, 7)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small networks run faster so, and several test processes do not fight for the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BLOCKS = {
    "conv": b.Conv(8),
    "conv wide": b.Conv(8, (1, 5), stride=2, groups=4, padding=(0, 1), bias=True),
    "conv plain": b.Conv(None, norm="none", activation="identity"),
    "mlpconv": b.MlpConv(8, (6, 5), kernel=5),
    "identity": b.Skip(),
    "projection": b.Skip(8, stride=2),
    "squeeze excite": b.SqueezeExcite(0.5, divisor=8, gate="hard_sigmoid"),
    "separable": b.Separable(16, stride=2, se=SE, linear=True),
    "separable residual": b.Separable(residual=True),
    "separable first": b.Separable(16, pre_activation=True),
    "inverted": b.InvertedResidual(se=b.SqueezeExcite(of="input"), drop_path=0.2),
    "inverted flat": b.InvertedResidual(8, stride=2, expansion=1),
    "fused": b.FusedInvertedResidual(drop_path=0.1),
    "fused wide": b.FusedInvertedResidual(8, stride=2),
    "fire": b.Fire(10),
    "shuffle": b.ShuffleUnit(),
    "shuffle down": b.ShuffleUnit(16, stride=2),
    "ghost": b.Ghost(9),
    "dense block": b.DenseBlock(3, 4, dropout=0.1),
    "dense block plain": b.DenseBlock(2, 4, bottleneck=0),
    "dense": b.Dense(8, stride=2, layers=2),
    "transition": b.Transition(),
    "inception module": b.InceptionModule(4, 2, 3, 2, 3, 2),
    "inception": b.Inception(24, stride=2),
    "inception factorised": b.Inception(16, stride=2, factorised=True),
    "fractal": b.Fractal(4, 3),
    "residual": b.Residual(se=SE, dropout=0.1, drop_path=0.1),
    "residual down": b.Residual(8, stride=2),
    "residual pad": b.Residual(16, stride=2, projection="pad"),
    "residual first": b.Residual(8, stride=2, pre_activation=True),
    "bottleneck": b.Bottleneck(32, groups=2, stride=2, se=SE, se_of_hidden=True),
    "bottleneck first": b.Bottleneck(pre_activation=True, se=SE),
    "branches": b.Branches((b.Conv(4), b.Skip(), b.MaxPool(3, 1, 1))),
    "branches add": b.Branches((b.Conv(), b.Skip()), join="add"),
    "branches mean": b.Branches((b.Conv(), b.Skip(), b.Conv(kernel=5)), join="mean", names=("x", "y", "z")),
    "cell": b.Cell(
        (b.CellNode((b.Edge(0, b.Conv()), b.Edge(0, b.Skip()))), b.CellNode((b.Edge(1, b.Separable()),))), "all"
    ),
    "cell zero": b.Cell((b.CellNode((b.Edge(0, None),)), b.CellNode((b.Edge(0, b.Conv(12)),))), "all"),
    "cell network": b.CellNetwork(
        b.Cell((b.CellNode((b.Edge(0, b.DilConv()), b.Edge(1, b.SepConv()))),)),
        b.Cell((b.CellNode((b.Edge(0, b.FactorizedSkip(stride=2)), b.Edge(1, b.MaxPool(3, 2, 1)))),)),
        8,
        4,
        b.PreConv(8, stride=2),
    ),
    "nor conv": b.PreConv(8, 5, 2, "silu", "none"),
    "sep conv": b.SepConv(8, 5, 2),
    "dil conv": b.DilConv(8, 5, 2),
    "row column conv": b.RowColumnConv(8, 2),
    "skip connect": b.FactorizedSkip(7, 2),
    "skip connect wider": b.FactorizedSkip(8),
    "max pool": b.MaxPool(3, 2, 1, ceil=True),
    "max pool ceil": b.MaxPool(2, 3, ceil=True),
    "avg pool": b.AvgPool(3, 2, 1, ceil=True, count_padding=False),
    "global pool": b.GlobalPool(),
    "norm": b.Norm("layer", "gelu"),
    "dropout": b.Dropout(0.3),
    "head": b.Head(5, hidden=7, activation="prelu", dropout=0.1),
    "dense head": b.DenseHead(5, (6, 7), size=3),
    "pool head": b.PoolHead(),
    "wrap": b.Wrap(nn.Conv2d, (("in_channels", 12), ("kernel_size", 3), ("out_channels", 6), ("padding", 1))),
    "chain": b.Chain(b.Conv(4), b.Head(3)),
}


def check(graph: Graph, *, backward: bool = True) -> None:
    """Parameters, FLOPs, the shape of every node and the keys of the module are those of the graph."""
    graph.verify()
    module = build(graph).eval()
    costs = analyse(graph)
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == costs.params
    seen: dict[str, tuple[int, ...]] = {}
    for name, child in module.named_modules():
        child.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, tuple(out.shape[1:])))
    inputs = [torch.rand(2, *graph.shapes[i]) for i in graph.inputs]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = module(*inputs)
    assert counter.get_total_flops() == 2 * 2 * costs.flops  # a batch of two, two per multiply-add
    assert out.shape[1:] == graph.shapes[graph.output]
    assert torch.isfinite(out).all()
    shapes = {node.name: shape for node, shape in zip(graph.nodes, graph.shapes, strict=True)}
    for node in graph.nodes:
        if node.weights is None and type(node.op) is not ops.Input:
            assert seen[node.name] == shapes[node.name], node.name
    assert all(any(key.startswith(name + ".") for name in shapes) for key in module.state_dict())
    if backward:
        module.train()(*[x.requires_grad_() for x in inputs]).sum().backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block(name: str) -> None:
    check(BLOCKS[name].lower(MAP))


def test_no_block_is_left_out() -> None:
    used = {type(block) for block in BLOCKS.values()} | {b.Stage, b.CellNode, b.Edge, b.Block}
    classes = {v for v in vars(b).values() if isinstance(v, type) and issubclass(v, b.Block)}
    assert classes == classes & used


@pytest.mark.parametrize("kind", ops.ACTIVATIONS)
@pytest.mark.parametrize("norm", ops.NORMS)
def test_every_activation_and_norm(kind: str, norm: str) -> None:
    g = GraphBuilder(MAP)
    x = g.conv_norm_act("conv", 0, 32, norm=norm, activation=kind)
    x = g.flatten("flatten", g.global_pool("pool", x))
    x = g.linear("hidden", x, 32)
    x = g.activation("act", x if norm == "instance" else g.norm("norm", x, norm), kind)
    check(g.graph(x))


def test_norms_are_what_they_are_called() -> None:
    x = torch.randn(4, 8, 5, 5) * 3 + 2
    axes = {"batch": (0, 2, 3), "layer": (1, 2, 3), "instance": (2, 3)}
    for kind, over in axes.items():
        g = GraphBuilder((8, 5, 5))
        y = build(g.graph(g.norm("norm", 0, kind))).train()(x)
        assert torch.allclose(y.mean(over), torch.zeros(()), atol=1e-5)
        assert torch.allclose(y.var(over, correction=0), torch.ones(()), atol=1e-4)
    g = GraphBuilder((8,))
    y = build(g.graph(g.norm("norm", 0, "layer")))(x[:, :, 0, 0])
    assert torch.allclose(y, nn.functional.layer_norm(x[:, :, 0, 0], (8,)), atol=1e-6)


def space() -> Space:
    act = OneOf(*ops.ACTIVATIONS, name="act")
    norm = OneOf("batch", "layer", "group", "none", name="norm")
    style = {"activation": act, "norm": norm, "stride": OneOf(1, 2, name="stride"), "width": OneOf(8, 20, name="width")}
    se = OneOf(None, b.SqueezeExcite(activation=act), name="se")
    layer = OneOf(
        b.Residual(se=se, drop_path=0.1, **style), b.Bottleneck(groups=2, se=se, **style), b.Dense(**style),
        b.Inception(**style), b.Separable(se=se, **style), b.InvertedResidual(se=se, expansion=OneOf(1, 3), **style),
        b.ShuffleUnit(**style), b.Conv(**style), b.Skip(), name="block",
    )  # fmt: skip
    template = b.Chain(stem=b.Conv(8), body=Repeat(layer, OneOf(1, 2, 4)), head=b.Head(5, OneOf(None, 8), act))
    return Space(template, input_shape=(3, 16, 16), classes=5)


def test_random_architectures() -> None:
    small, rng = space(), np.random.default_rng(0)
    for _ in range(60):
        check(small.architecture(small.sample(rng)).graph())


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench_macro"])
def test_analysis_equals_the_module(name: str) -> None:
    """200 random architectures of each space."""
    chosen: Space = getattr(import_module(f"nas.search_spaces.{name}"), name)((3, 16, 16), 10)
    rng = np.random.default_rng(1)
    for _ in range(200):
        architecture = chosen.architecture(chosen.sample(rng))
        graph, costs = architecture.graph(), analyse(architecture.graph())
        assert (architecture.analysis.params, architecture.analysis.flops) == (costs.params, costs.flops)
        check(graph, backward=False)


# -- a module like any other -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Graph:
    chain = b.Chain(
        stem=b.Conv(8), body=Repeat(b.InvertedResidual(8, se=SE, drop_path=0.2), 2), unit=b.ShuffleUnit(),
        dense=b.DenseBlock(2, 4), pad=b.Residual(24, stride=2, projection="pad"), head=b.Head(5),
    )  # fmt: skip
    return Space(chain, input_shape=(3, 12, 12), classes=5).architecture({}).graph()


def test_copies_and_pickles(network: Graph) -> None:
    module, x = build(network, seed=1).eval(), torch.rand(2, 3, 12, 12)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    with torch.no_grad():
        twin.stem.conv.weight.zero_()
    assert not torch.allclose(twin(x), module(x))


def test_a_replaced_module_is_used(network: Graph) -> None:
    module, x = build(network, seed=1).eval(), torch.rand(2, 3, 12, 12)
    before = module(x)
    module.body = nn.Sequential(*module.body.children())  # other containers, same leaves
    assert torch.equal(module(x), before)
    module.head.classifier = nn.Linear(24, 3)
    assert module(x).shape == (2, 3)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in converted.modules())
    assert converted(x).shape == (2, 3)


@pytest.mark.parametrize("training", [False, True])
def test_traces_and_compiles(network: Graph, training: bool) -> None:
    module, x = build(network, seed=1).train(training), torch.rand(2, 3, 12, 12)
    traced = torch.fx.symbolic_trace(module)
    program = torch.export.export(module, (x,))
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert set(program.state_dict) == set(module.state_dict())
    if not training:
        for other in (traced, program.module(), compiled):
            assert torch.allclose(other(x), module(x), atol=1e-6)


def test_channels_last_is_kept(network: Graph) -> None:
    module = build(network, seed=1).to(memory_format=torch.channels_last)
    lost: list[str] = []

    def look(child: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        if out.dim() == 4 and not out.is_contiguous(memory_format=torch.channels_last):
            lost.append(type(child).__name__)

    for child in module.modules():
        child.register_forward_hook(look)
    module(torch.rand(2, 3, 12, 12).to(memory_format=torch.channels_last))
    assert set(lost) <= {"Slice"}  # a view of some channels is contiguous in no layout


def test_gradients_keep_channels_last_behind_a_global_pool() -> None:
    g = GraphBuilder((4, 8, 8))
    pool = build(g.graph(g.global_pool("pool", 0)))
    x = torch.rand(2, 4, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    for mode in (True, False):
        (gradient,) = torch.autograd.grad(pool.train(mode)(x).sum(), x)
        assert torch.allclose(gradient, torch.full_like(x, 1 / 64))
        assert torch.allclose(pool(x), x.mean((2, 3), keepdim=True), atol=1e-6)
        assert gradient.is_contiguous(memory_format=torch.channels_last) == mode


def test_intermediate_values_are_freed() -> None:
    g = GraphBuilder((4, 8, 8))
    x = 0
    for i in range(5):
        x = g.activation(f"act{i}", x, "relu")
    module = build(g.graph(x))
    assert [step.free for step in module._steps] == [(0,), (1,), (2,), (3,), (4,)]


def test_drop_path_drops_whole_samples() -> None:
    g = GraphBuilder((4, 3, 3))
    module = build(g.graph(g.drop_path("drop", 0, 0.25)))
    torch.manual_seed(0)
    out = module.train()(torch.ones(4000, 4, 3, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(set(per_sample[:, 0].tolist())) == [0, pytest.approx(4 / 3)]
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(module.eval()(out), out)


def test_initial_weights_depend_on_the_seed_alone(network: Graph) -> None:
    state = torch.random.get_rng_state()
    first = build(network, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(7)
    second, other = build(network, seed=3).state_dict(), build(network, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_shared_weights() -> None:
    g = GraphBuilder((4, 6, 6))
    x = g.conv("a", 0, 4)
    x = g.conv("b", x, 4, weights="a")
    graph = g.graph(x)
    check_module = build(graph)
    assert list(check_module.state_dict()) == ["a.weight"]
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(check_module(x), check_module.a(check_module.a(x)))
    with FlopCounterMode(display=False) as counter:
        check_module(x)
    assert counter.get_total_flops() == 2 * analyse(graph).flops


def test_several_inputs() -> None:
    g = GraphBuilder((4, 6, 6), (4, 1, 1))
    module = build(g.graph(g.mul("scale", 1, 0)))
    a, c = torch.rand(2, 4, 6, 6), torch.rand(2, 4, 1, 1)
    assert torch.equal(module(a, c), a * c)
    with pytest.raises(ValueError, match="shorter"):
        module(a)


def test_names_that_a_module_cannot_have() -> None:
    g = GraphBuilder((4, 6, 6))
    x = 0
    for name in ("half", "class.conv", "_steps", "1x1", "a-b", "block", "block.conv", "2.weight"):
        x = g.conv(name, x, 4)
    graph = g.graph(x)
    paths = module_paths(graph)
    assert [paths[node.name] for node in graph.nodes[1:]] == [
        "half_", "class_.conv", "_steps_", "_1x1", "a_b", "block_", "block.conv", "2.weight_",
    ]  # fmt: skip
    assert [key.removesuffix(".weight") for key in build(graph).state_dict()] == list(paths.values())[1:]
    g = GraphBuilder((4, 6, 6))
    g.conv("a-b", 0, 4)
    with pytest.raises(GraphError, match=r"'a-b' and 'a\+b' are both the module 'a_b'"):
        build(g.graph(g.conv("a+b", 1, 4)))


# -- wrapped modules ---------------------------------------------------------------------------------------------------


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * self.linear(scale.flatten(1)).unflatten(1, (-1, 1, 1))


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no\nway")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()


def test_a_wrapped_module_is_traced() -> None:
    before = torch.random.get_rng_state()
    g = GraphBuilder((6, 4, 4), (6, 1, 1))
    graph = g.graph(g.module("gate", Gate, 0, 1, width=6))
    assert graph.shapes[graph.output] == (6, 4, 4)
    assert (analyse(graph).params, analyse(graph).flops) == (6 * 6 + 6, 6 * 6)
    assert torch.equal(torch.random.get_rng_state(), before)
    check(graph)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere.at:All", "cannot be imported: ModuleNotFoundError"),
        ("torch.nn:NoSuch", "has no 'NoSuch'"),
        ("torch:relu", "no nn.Module class"),
        ("torch.nn:Conv2d", "cannot be built: TypeError"),
        (Broken, "fails on inputs of the shapes .4, 6, 6.: RuntimeError: no way"),
        (Pair, "returns tuple; expected one tensor"),
        (Sum, "must keep the batch"),
    ],
)
def test_what_is_wrong_with_a_wrapped_module(target: str | type, message: str) -> None:
    g = GraphBuilder((4, 6, 6))
    with pytest.raises(PluginError, match=message) as caught:
        g.module("custom", target, 0)
    assert "\n" not in str(caught.value)


def test_meta_needs_no_memory() -> None:
    g = GraphBuilder((3, 224, 224))
    x = g.flatten("flatten", 0)
    graph = g.graph(g.linear("huge", x, 10**7))
    with torch.device("meta"):
        module = build(graph, seed=0)
    assert analyse(graph).params == sum(p.numel() for p in module.parameters()) == (3 * 224 * 224 + 1) * 10**7

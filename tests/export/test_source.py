"""Exported source: the same function and the same weight names, in a file that a person could have written."""

from __future__ import annotations

import ast
import importlib.util
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from nas.search_spaces import zoo
from torch import Tensor, nn

from nas import blocks as b
from nas import ops
from nas.analysis import analyse
from nas.architecture import Architecture
from nas.builder import GraphBuilder, Ref
from nas.choices import OneOf, Repeat
from nas.errors import ExportError
from nas.export.check import vary
from nas.export.source import compose, source
from nas.graph import Graph, Node, Scope
from nas.space import Space
from nas.torch.build import build


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the tests of this module write their files; in the end all of them are linted and must be formatted."""
    folder = tmp_path_factory.mktemp("files")
    yield folder
    if ruff := shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff"):
        for command in (["format", "--diff"], ["check"]):
            done = subprocess.run([ruff, *command, "--isolated", str(folder)], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


def load(text: str, path: Path) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(graph: Graph, files: Path, name: str) -> str:
    """The file has the module's parameters, weight names and outputs."""
    made = compose(graph, name=name)
    network = getattr(load(made.text, files / f"{name}.py"), made.network)
    ours, theirs = build(graph, seed=0).eval(), network().eval()
    vary(ours)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    assert sum(p.numel() for p in theirs.parameters()) == analyse(graph).params
    theirs.load_state_dict(ours.state_dict())
    inputs = [torch.randn(2, *graph.shapes[i]) for i in graph.inputs]
    with torch.no_grad():
        expected, found = ours(*inputs), theirs(*inputs)
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert theirs.train()(*inputs).shape == expected.shape
    return made.text


def classes(text: str) -> list[str]:
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]


# -- what it looks like ------------------------------------------------------------------------------------------------

BOTTLENECK = """
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        hidden_channels = out_channels // 4
        self.reduce = ConvNormAct(in_channels, hidden_channels, 1)
        self.conv = ConvNormAct(hidden_channels, hidden_channels, 3, stride=stride)
        self.expand = ConvNormAct(
            hidden_channels, out_channels, 1, activation=nn.Identity
        )
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = ConvNormAct(
                in_channels, out_channels, 1, stride=stride, activation=nn.Identity
            )
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        y = self.conv(y)
        y = self.expand(y)
        return self.act(self.shortcut(x) + y)
"""
DENSE = """
        for i in range(layers):
            self.add_module(f"layer{i}", DenseLayer(in_channels + i * 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.children():
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)
"""
STAGE = """
        self.stage2 = nn.Sequential(
            Bottleneck(256, 512, stride=2),
            *[Bottleneck(512, 512) for _ in range(3)],
        )
"""


def test_resnet50_reads_like_resnet50() -> None:
    text = source(zoo.get("resnet50"), name="resnet50")
    assert classes(text) == ["ConvNormAct", "Bottleneck", "Head", "ResNet50"]
    assert BOTTLENECK in text
    assert STAGE in text
    assert "Parameters: 25,557,032. FLOPs for one image: 4,089,184,256" in text
    assert text.count("\n") < 130


def test_layers_of_a_dense_block_are_a_loop() -> None:
    text = source(zoo.get("densenet121"), name="densenet121")
    assert DENSE in text
    assert "self.dense3 = DenseBlock(256, 24)" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v2", ["ConvNormAct", "InvertedResidual", "Head", "MobileNetV2"]),
        ("efficientnet_b0", ["ConvNormAct", "SqueezeExcite", "InvertedResidual", "Head", "EfficientNetB0"]),
        ("googlenet", ["ConvNormAct", "InceptionModule", "Head", "GoogleNet"]),
        ("vgg11", ["ConvAct", "DenseHead", "Vgg11"]),
        ("shufflenet_v2_x1_0", ["ConvNormAct", "ShuffleUnitDown", "ShuffleUnit", "Head", "ShuffleNetV2X1_0"]),
    ],
)
def test_one_class_per_distinct_block(name: str, expected: list[str]) -> None:
    assert classes(source(zoo.get(name), name=name)) == expected


def test_options_are_arguments() -> None:
    text = source(zoo.get("efficientnet_b0"), name="efficientnet_b0")
    assert "if in_channels != hidden_channels:\n            self.expand = ConvNormAct(" in text
    assert "self.residual = in_channels == out_channels" in text
    assert "return x + y if self.residual else y" in text
    assert "self.se = SqueezeExcite(hidden_channels, in_channels // 4)" in text


def test_only_torch_is_imported() -> None:
    tree = ast.parse(source(zoo.get("mobilenet_v3_small"), name="m"))
    imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    imported |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert imported == {"torch", "safetensors.torch"}
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(top) == 2  # safetensors is imported where it is used


@pytest.mark.parametrize("name", ["bottleneck", "1-net", "a net!", 'x"""y', "torch", "drop_path"])
def test_any_name_will_do(name: str, files: Path) -> None:
    chain = b.Chain(stem=b.Conv(8), block=b.Bottleneck(drop_path=0.1), head=b.Head(3))
    made = compose(Architecture(chain, (3, 8, 8), 3), name=name)
    module = load(made.text, files / "named.py")
    assert len(set(classes(made.text))) == len(classes(made.text))
    assert made.network[0].isupper()
    assert issubclass(getattr(module, made.network), nn.Module)


# -- that it computes the same -----------------------------------------------------------------------------------------

SMALL = [
    "alexnet", "nin_cifar", "squeezenet1_1", "resnet20_cifar", "preact_resnet164_cifar", "wrn_16_8_cifar",
    "fractalnet20_cifar", "densenet_bc_100_12_cifar", "inception_v3", "xception", "ghostnet", "mobilenet_v4_conv_small",
    "regnety_200mf", "se_resnet50",
]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_reference_architectures(name: str, files: Path) -> None:
    shape = zoo.get(name).input_shape
    small = shape if shape[1] <= 32 else (3, 96, 96)
    check(zoo.get(name, classes=10, input_shape=small).graph(), files, name)


def everything() -> Space:
    act = OneOf(*ops.ACTIVATIONS, name="act")
    norm = OneOf("batch", "layer", "group", "none", name="norm")
    style = {"activation": act, "norm": norm, "stride": OneOf(1, 2, name="stride"), "width": OneOf(8, 16, name="width")}
    se = OneOf(None, b.SqueezeExcite(activation=act), name="se")
    drop = OneOf(0.0, 0.1, 0.2, name="drop")
    layer = OneOf(
        b.Residual(se=se, drop_path=drop, pre_activation=OneOf(False, True), **style),
        b.Bottleneck(groups=2, se=se, **style), b.Dense(**style), b.Inception(factorised=OneOf(False, True), **style),
        b.Separable(se=se, residual=True, **style), b.InvertedResidual(se=se, expansion=OneOf(1, 3), **style),
        b.ShuffleUnit(**style), b.Conv(**style), b.Skip(), b.DenseBlock(4, 4, bottleneck=OneOf(0, 2)), b.Fractal(8, 3),
        b.Branches((b.Conv(8), b.Chain(b.Conv(4), b.Skip(), b.Conv(4)), b.MaxPool(3, 1, 1))),
        b.Cell((b.CellNode((b.Edge(0, b.Conv()), b.Edge(0, b.Skip()))), b.CellNode((b.Edge(1, b.Conv()),))), "all"),
        b.Ghost(8), b.Fire(8), b.MlpConv(8, (4, 8)), name="block",
    )  # fmt: skip
    chain = b.Chain(stem=b.Conv(8), body=Repeat(layer, OneOf(1, 3, 6)), head=b.Head(5, OneOf(None, 8), act))
    return Space(chain, input_shape=(3, 32, 32), classes=5)


@pytest.mark.parametrize("seed", range(40))
def test_random_architectures(seed: int, files: Path) -> None:
    space = everything()
    check(space.architecture(space.sample(np.random.default_rng(seed))).graph(), files, f"random{seed}")


@dataclass(frozen=True)
class Unit(b.Block):
    """A unit of `width` channels; with "quotes" and a \\ in its text."""

    width: int = 8
    hidden: int = 8
    kernel: int = 3
    first: bool = False
    middle: bool = False
    gate: bool = False
    add: bool = False
    inner: Any = None
    act: str = "relu"

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        y = g.conv("first", x[0], self.hidden, 1) if self.first else x[0]
        y = g.conv_norm_act("main", y, self.hidden, self.kernel, activation=self.act)
        if self.middle:
            y = g.conv_norm_act("middle", y, self.hidden, self.kernel, groups=self.hidden, norm="none")
        if self.inner is not None:
            y = g.block("inner", self.inner, y)
        y = g.norm("norm", g.conv("out", y, self.width, 1))
        if self.gate:
            y = g.mul("scale", y, g.activation("gate", g.conv("squeeze", y, self.width, 1), "sigmoid"))
        if self.add and g.shape(x[0]) == g.shape(y):
            y = g.add("add", y, x[0])
        return g.activation("act", y, self.act)


@pytest.mark.parametrize("seed", range(30))
def test_blocks_with_steps_that_may_be_missing(seed: int, files: Path) -> None:
    r = random.Random(seed)
    style = [r.sample(["relu", "prelu", "silu", "identity"], 2), r.sample([1, 3, 5], r.choice([1, 2])), [8, 12]]

    def unit(depth: int) -> Unit:
        inner = None if depth > 1 or r.random() < 0.6 else r.choice([unit(depth + 1), b.DenseBlock(3, 4), b.Conv(8)])
        flags = {name: r.random() < 0.5 for name in ("first", "middle", "gate", "add")}
        act, kernel, width = (r.choice(options) for options in style)
        return Unit(width, r.choice(style[2]), kernel, inner=inner, act=act, **flags)  # type: ignore[arg-type]

    stages = {f"stage{i}": b.Stage(tuple(unit(0) for _ in range(r.randint(1, 3)))) for i in range(3)}
    check(b.Chain(stem=b.Conv(8), **stages).lower((3, 12, 12)), files, f"units{seed}")


def wiring(seed: int) -> Graph:
    """Operations wired at random, under random names, sharing weights at random: scopes that are no functions."""
    r = random.Random(seed)
    g = GraphBuilder(*[(4, 6, 6)] * r.choice([1, 1, 2, 3]))
    scopes = ["", "a.", "a.b.", "a.c.", "0.", "1.", "d.0.", "d.2.", "e.f.g.", "half.", "in-put."]
    values, kernels, cut = [0], dict[str, int](), r.choice(scopes)
    for _ in range(r.randint(1, 20)):
        cut = r.choice(scopes) if r.random() < 0.35 else cut
        name = cut + r.choice(["conv", "norm", "act", "x", "0", "1", "layer0", "layer1", "se", "in", "features"])
        while name in g._names:
            name += r.choice("abc0")
        x, y = (values[-1] if r.random() < 0.6 else r.choice(values) for _ in range(2))
        k = r.choice([1, 3])
        owners = [owner for owner, kernel in kernels.items() if kernel == k]
        kind = r.choice(["conv", "norm", "act", "add", "mul", "mean", "concat", "halves", "slice", "other"])
        if kind == "conv":
            owner = r.choice(owners) if owners and r.random() < 0.3 else None
            values.append(g.conv(name, x, 4, k, weights=owner))
            kernels |= {} if owner else {name: k}
        elif kind == "norm":
            values.append(g.norm(name, x, r.choice(["batch", "layer"])))
        elif kind == "act":
            values.append(g.activation(name, x, r.choice(["relu", "prelu"])))
        elif kind in ("add", "mul", "mean"):
            values.append(getattr(g, kind)(name, x, y))
        elif kind == "concat":
            values.append(g.slice(f"{name}_s", g.concat(name, x, y), *r.choice([(0, 4), (2, 6), (4, 8)])))
        elif kind == "halves":
            values.append(g.concat(name, g.slice(f"{name}r", x, 2, 4), g.slice(f"{name}l", x, 0, 2)))
        elif kind == "slice":
            values.append(g.op(f"{name}p", ops.PadChannels(4), g.slice(name, x, 1, 3)))
        else:
            values.append(g.op(name, r.choice([ops.Zero(1), ops.DropPath(0.5), ops.Shuffle(2), ops.Dropout(0.1)]), x))
    graph = g.graph(values[-1])
    prefixes = sorted({node.name.rsplit(".", 1)[0] for node in graph.nodes if "." in node.name})
    kinds = ["alpha", "beta", "chain", "stage", "branches", "drop_path"]
    return Graph(graph.nodes, graph.shapes, graph.output, tuple(Scope(p, r.choice(kinds)) for p in prefixes))


@pytest.mark.parametrize("seed", range(60))
def test_any_wiring(seed: int, files: Path) -> None:
    check(wiring(seed), files, f"wiring{seed}")


# -- unusual networks --------------------------------------------------------------------------------------------------


def test_weights_shared_between_blocks(files: Path) -> None:
    g = GraphBuilder((4, 6, 6))
    x = g.conv_norm_act("a.first", 0, 4)
    with g.scope("b"):
        x = g.conv("again", x, 4, weights="a.first.conv")
        x = g.norm("norm", x)
    text = check(g.graph(x), files, "shared")
    assert text.count("nn.Conv2d(") == 1
    assert text.count('self.a["first"]["conv"](') == 2


def test_a_scope_with_two_outputs(files: Path) -> None:
    g = GraphBuilder((4, 6, 6))
    left, right = g.conv("both.left", 0, 4), g.conv("both.right", 0, 4)
    text = check(g.graph(g.mul("mul", g.activation("act", left), right)), files, "two")
    assert "self.both = nn.ModuleDict(" in text


def test_a_loop_beside_other_modules(files: Path) -> None:
    chain = b.Chain(stem=b.Conv(8), a=b.Dense(16, layers=4, stride=2), c=b.Dense(32, layers=3))
    text = check(chain.lower((3, 16, 16)), files, "loops")
    assert "for name, layer in self.named_children():" in text
    g = GraphBuilder((4, 6, 6))
    values = [0]
    for i in range(3):
        values.append(g.conv_norm_act(f"layer{i}", g.concat(f"concat{i}", *values), 2))
    graph = g.graph(g.conv("layers", g.concat("concat", *values), 4))
    assert "named_children" not in check(graph, files, "no_loop")  # `layers` begins like the layers


def test_a_network_that_is_a_list(files: Path) -> None:
    text = check(b.Chain(b.Conv(4), b.Skip(), b.MaxPool(2), b.Conv(8)).lower((3, 8, 8)), files, "listed")
    assert "class Listed(nn.Sequential):" in text
    assert "super().__init__(\n" in text


def test_the_identity(files: Path) -> None:
    g = GraphBuilder((4, 6, 6))
    assert "return (x * x).flatten(1)" in check(g.graph(g.flatten("flatten", g.mul("square", 0, 0))), files, "square")
    made = compose(g.graph(0), name="nothing")
    network = getattr(load(made.text, files / "nothing.py"), made.network)()
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(network(x), x)


class Gate(nn.Module):
    def __init__(self, width: int, names: tuple[str, ...] = ("a",)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_wrapped_modules(files: Path) -> None:
    pool = b.Wrap(nn.LPPool2d, (("kernel_size", 2), ("norm_type", 2.0)))
    assert "nn.LPPool2d(kernel_size=2, norm_type=2.0)" in check_wrapped(pool, files)
    gate = b.Wrap(Gate, (("names", ("a", "b")), ("width", 3)))
    text = check_wrapped(gate, files)
    assert f"import {__name__}\n" in text
    assert f'{__name__}.Gate(names=("a", "b"), width=3)' in text
    assert "these modules must be importable" in text


def check_wrapped(block: b.Block, files: Path) -> str:
    return check(b.Chain(pool=block, head=b.Head(2)).lower((3, 8, 8)), files, "wrapped")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (b.Wrap(Gate, (("names", (Gate,)), ("width", 3))), "the option names=.* cannot be written in a file"),
        (b.Wrap(type("Local", (nn.ReLU,), {"__qualname__": "f.<locals>.Local"})), "cannot be imported"),
    ],
)
def test_what_cannot_be_exported(module: b.Wrap, message: str) -> None:
    op = ops.Module(module.target, module.options)
    nodes = (Node("input", ops.Input((3, 4, 4)), ()), Node("custom", op, (0,)))
    graph = Graph(nodes, ((3, 4, 4), (3, 4, 4)), 1)  # written by hand: the builder would trace the module
    with pytest.raises(ExportError, match=message) as caught:
        source(graph, name="custom")
    assert "\n" not in str(caught.value)

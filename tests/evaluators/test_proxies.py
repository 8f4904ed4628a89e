"""Proxies against slow references written from the formulas; what they leave behind; ensembles; the evaluator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nas.evaluators.proxies import SETS, ensemble, measure, named, noise, scores
from nas.evaluators.proxies import Reference as Ranks
from nas.evaluators.proxies.blocks import block_outputs
from nas.evaluators.proxy import PART, Proxies
from proxy_formulas import Reference
from torch import nn

from nas import ops
from nas.architecture import Architecture
from nas.blocks import (
    AvgPool,
    Block,
    Bottleneck,
    Chain,
    Conv,
    Dense,
    DenseHead,
    Fractal,
    Head,
    Inception,
    InvertedResidual,
    MaxPool,
    Residual,
    Separable,
    ShuffleUnit,
    SqueezeExcite,
    Wrap,
)
from nas.builder import GraphBuilder, Ref
from nas.choices import OneOf
from nas.errors import ConfigError, Diverged, PluginError, RunError
from nas.evaluator import Report, Task
from nas.plugins import available, make_evaluator, make_space
from nas.preparation import Preparation
from nas.report.tables import rows
from nas.space import Space
from nas.testing import toy_space

ALL = sorted(available("proxies"))
BLOCKS = ("expressivity", "progressivity", "trainability")
TASK = Task(None, (3, 16, 16), 10)


@dataclass(frozen=True)
class Recurrent(Block):
    """One convolution and one PReLU used twice, and two activations of one value."""

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        width = g.channels(x[0])
        once = g.conv("conv", x[0], width, 3)
        once = g.op("act", ops.PReLU(), g.norm("norm", once, "batch"))
        twice = g.conv("again", once, width, 3, weights="conv")
        twice = g.op("act2", ops.PReLU(), g.norm("norm2", twice, "batch"), weights="act")
        return g.add("add", g.activation("relu", twice, "relu"), g.activation("relu2", twice, "relu"), x[0])


@dataclass(frozen=True)
class Cut(Block):
    """Nothing gets through."""

    def wire(self, g: GraphBuilder, *x: Ref) -> Ref:
        return g.zero("zero", x[0])


class Wrapped(nn.Module):
    """Everything of its own: activation as a function, dropout, norm with statistics, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.dropout(torch.relu(self.norm(self.conv(x))))
        return x


def network(
    *blocks: Block, size: int = 8, width: int = 6, activation: str = "relu", norm: str = "batch"
) -> Architecture:
    stem = Conv(width, activation=activation, norm=norm)
    return Architecture(Chain(stem, *blocks, Head(5)), (3, size, size), 5)


STRUCTURES = {
    "residual and max pooling": (Residual(6), MaxPool(), Residual(8, stride=2, pre_activation=True)),
    "dense and concat": (Dense(8), Inception(12, stride=2)),
    "depthwise and gates": (
        Separable(6, se=SqueezeExcite()), InvertedResidual(8, stride=2, expansion=2, se=SqueezeExcite()),
    ),
    "groups and shuffles": (Bottleneck(8, groups=2, reduction=2), ShuffleUnit(8), AvgPool()),
    "joins of branches": (Fractal(6, columns=2), Conv(8, stride=2)),
    "group norm": (Residual(6, norm="group"), Conv(8, stride=2, norm="layer"), Conv(8, norm="instance")),
    "dropout": (Residual(6, dropout=0.5, drop_path=0.5), Conv(6, stride=2)),
    "shared weights": (Recurrent(), Conv(8, stride=2)),
    "no norm": (Conv(6, norm="none"), Residual(6, norm="none")),
}  # fmt: skip


def batch(arch: Architecture, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return noise(arch.input_shape, n, 7), torch.arange(n) % arch.classes


def agree(arch: Architecture, dtype: torch.dtype = torch.float64) -> None:
    x, y = batch(arch)
    found = measure(arch, ALL, images=x, labels=y, seed=3, dtype=dtype)
    for name in ALL:
        tolerance = 1e-4 if name == "grasp" else 1e-7  # differences; torch's hard sigmoid has a 1/6 of single precision
        exact = getattr(Reference(arch, x, y, seed=3), name)()
        assert found[name] == pytest.approx(exact, rel=tolerance, abs=tolerance), name
        alone = measure(arch, name, images=x, labels=y, seed=3, dtype=dtype)[name]
        assert alone == pytest.approx(found[name], rel=1e-9, abs=1e-9), f"{name} alone"


@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
def test_every_proxy_is_its_formula_with_every_activation(activation: str) -> None:
    blocks = Residual(6, activation=activation), Conv(8, stride=2, activation=activation)
    agree(network(*blocks, activation="relu" if activation == "identity" else activation))


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_proxy_is_its_formula_on_every_structure(name: str) -> None:
    agree(network(*STRUCTURES[name]))


def test_single_precision_is_enough() -> None:
    arch = network(*STRUCTURES["residual and max pooling"], *STRUCTURES["depthwise and gates"])
    x, y = batch(arch)
    single, double = (measure(arch, ALL, images=x, labels=y, dtype=dtype) for dtype in (torch.float32, torch.float64))
    for name in ALL:
        assert single[name] == pytest.approx(double[name], rel=2e-3, abs=2e-3), name


def test_synflow_is_finite_at_any_depth() -> None:
    deep = Architecture(Chain(Conv(64), *[Conv(64) for _ in range(400)], Head(5)), (3, 4, 4), 5)
    found = measure(deep, "synflow,logsynflow")
    assert found["synflow"] > 800  # beyond float64: e^709
    assert np.isfinite(found["logsynflow"])


def test_relu6_and_gates_do_not_cut_synflow_off() -> None:
    plain = measure(network(Conv(6), Conv(6)), "synflow")["synflow"]
    assert measure(network(Conv(6, activation="relu6"), Conv(6, activation="tanh")), "synflow")["synflow"] == plain
    gated, open_ = Separable(6, se=SqueezeExcite()), Separable(6)
    assert (
        0
        < measure(network(gated), "synflow")["synflow"]
        == pytest.approx(
            measure(network(open_), "synflow")["synflow"],
            abs=1,  # other draws
        )
    )


def test_patterns_of_more_samples_than_fit_into_a_number() -> None:
    arch = network(Conv(8, stride=2))
    x, y = batch(arch, 60)
    assert measure(arch, "swap", images=x, labels=y)["swap"] == Reference(arch, x, y, seed=0).swap()


def test_a_wrapped_module_is_a_layer_without_signs() -> None:
    arch = network(Wrap(Wrapped), Conv(8, stride=2))
    x, y = batch(arch)
    plain = [name for name in ALL if name != "layers"]
    first, alone = measure(arch, ALL, images=x, labels=y), [measure(arch, n, images=x, labels=y)[n] for n in plain]
    assert [first[name] for name in plain] == pytest.approx(alone, rel=1e-6)
    assert all(np.isfinite(list(first.values())))
    without = network(Conv(8, stride=2))
    assert measure(arch, "layers")["layers"] == measure(without, "layers")["layers"] + 1


def test_the_seed_decides_and_the_order_does_not() -> None:
    a, b = network(Residual(6)), network(Conv(8, stride=2), Conv(8))
    first = measure(a, ALL, seed=1)
    measure(b, ALL, seed=2)
    assert measure(a, ALL, seed=1) == first
    assert measure(a, list(reversed(ALL)), seed=1) == pytest.approx(first, rel=1e-6)
    other = measure(a, ALL, seed=2)
    assert {name for name in ALL if other[name] != first[name]} >= {"nwot", "snip", "zen", "synflow", "jacob_cov"}
    together = scores([b, a], ALL, seed=1)
    assert {name: column[1] for name, column in together.items()} == first


def test_initialisations_are_averaged() -> None:
    arch = network(Residual(6))
    several = measure(arch, "nwot,snip", initialisations=3, seed=5)
    assert several != measure(arch, "nwot,snip", seed=5)
    assert several == measure(arch, "nwot,snip", initialisations=3, seed=5)


def test_nothing_is_left_behind() -> None:
    arch = network(Wrap(Wrapped), Residual(6, dropout=0.5))
    x, y = batch(arch)
    before, state, numbers = x.clone(), torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    measure(arch, ALL, images=x, labels=y)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state()) == numbers  # noqa: NPY002


@pytest.mark.parametrize("space", ["mobile", "lecture", "nasbench-macro", "nasbench201", "darts"])
def test_every_proxy_is_finite_on_every_space(space: str) -> None:
    found, rng = make_space(space, (3, 16, 16), 10, {}), np.random.default_rng(1)
    for _ in range(3):
        values = measure(found.architecture(found.sample(rng)), ALL, batch=6)
        assert all(np.isfinite(value) for value in values.values()), values


def test_what_cannot_be_scored_says_so() -> None:
    cut = network(Conv(6), Cut(), Conv(6))
    found = measure(cut, ALL)
    assert found["synflow"] == 0
    assert np.isnan(found["jacob_cov"])
    table = scores([cut, network(Conv(6))], "nwot,jacob_cov")
    assert np.argmin(ensemble(table)) == 0
    arch = network(Conv(6), Conv(8, stride=2))
    images, labels = batch(arch)
    overflown = measure(arch, ALL, images=images * 3e38, labels=labels)
    needless = {"flops", "params", "layers", "synflow", "logsynflow", "zen"}
    assert {name for name, value in overflown.items() if np.isfinite(value)} == needless
    linear = network(Conv(6, activation="identity"), activation="identity")
    assert measure(linear, "nwot,swap") == {"nwot": float("-inf"), "swap": 0}


def test_blocks_are_the_rows_of_a_network() -> None:
    space = make_space("nasbench201", (3, 32, 32), 10, {})
    graph = space.architecture(dict.fromkeys(space.paths, "nor_conv_3x3")).graph()
    names = [graph.nodes[at].name.split(".") for at in block_outputs(graph)]
    cells = [f"stage{i}" for i in (1, 2, 3) for _ in range(5)]
    assert sorted(name[0] for name in names) == sorted(["stem", "reduce1", "reduce2", *cells])
    darts = make_space("darts", (3, 32, 32), 10, {})
    graph = darts.architecture(darts.sample(np.random.default_rng(0))).graph()
    cells = {name.split(".")[1] for name in (graph.nodes[at].name for at in block_outputs(graph)) if "cells" in name}
    assert len(block_outputs(graph)) == 1 + len(cells)
    assert len(cells) > 3


# -- ensembles ---------------------------------------------------------------------------------------------------------


def test_the_ensemble_adds_up_logarithms_of_ranks() -> None:
    table = {"a": np.array([3.0, 1.0, 2.0, 2.0]), "b": np.array([1.0, np.nan, -np.inf, 5.0])}
    expected = np.log([4 / 4, 1 / 4, 2.5 / 4, 2.5 / 4]) + np.log([3 / 4, 1.5 / 4, 1.5 / 4, 4 / 4])
    assert ensemble(table) == pytest.approx(expected)
    scaled = {"a": 1e9 * table["a"], "b": np.arctan(table["b"])}
    scaled["b"][2] = np.inf
    assert ensemble(scaled) == pytest.approx(expected)


def test_ranks_within_a_reference_rise_with_the_score() -> None:
    rng = np.random.default_rng(0)
    column = np.round(rng.normal(size=50), 1)
    ranks = Ranks({"a": np.append(column, np.nan)})
    line = np.linspace(-30, 30, 4001)
    found = np.array([ranks.score({"a": value}) for value in line])
    assert (np.diff(found) > 0).all()
    inside = [ranks.score({"a": value}) for value in column]
    assert inside == pytest.approx(ensemble({"a": np.append(column, np.nan)})[:-1])
    assert ranks.score({"a": float("nan")}) < found[0]
    constant = Ranks({"a": np.full(8, 2.0)})
    assert constant.score({"a": 1.0}) < constant.score({"a": 2.0}) < constant.score({"a": 3.0})


def test_names() -> None:
    assert set(ALL) == {name for name in vars(Reference) if not name.startswith("_")} - {
        "build", "values", "nodes", "signs", "weights", "loss", "gradient",
    }  # fmt: skip
    for names in SETS.values():
        assert set(names) <= set(ALL)
    assert list(named("az_nas, nwot")) == [*SETS["az_nas"], "nwot"]
    assert [row["name"] for row in rows("proxies", Path())] == ALL
    for proxy in named(ALL).values():
        assert proxy.paper
        assert proxy.blind
        assert proxy.needs in ("nothing", "images", "labels")
    with pytest.raises(PluginError, match="no proxy is called 'nwt'; did you mean 'nwot'"):
        named("nwt")
    with pytest.raises(ConfigError, match="got 'flops' twice"):
        named("flops,az_nas")
    with pytest.raises(PluginError, match="is no subclass of"):
        named("torch.nn:ReLU")


def test_a_proxy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(
        "from nas.evaluators.proxies.base import Proxy\n"
        "class Spread(Proxy):\n"
        "    paper, cost, needs, blind = '-', '1F', 'images', 'nearly everything'\n"
        "    uses = frozenset({'layers'})\n"
        "    def score(self, passes):\n"
        "        return max(float(layer.std()) for layer in passes.layers)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arch = network(Conv(6))
    found = measure(arch, "own:Spread,nwot")
    assert found == {"Spread": named("own:Spread")["Spread"](arch), "nwot": measure(arch, "nwot")["nwot"]}
    evaluator = prepared(Proxies(proxies="own:Spread", noise=True, reference=3), toy_space(), tmp_path)
    assert [metric.name for metric in evaluator.metrics] == ["score", "Spread"]
    assert evaluated(evaluator, network(Conv(6), size=16))["Spread"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": torch.zeros(3, 3, 8, 8)}, "four or more of 3 channels"),
        ({"images": torch.zeros(8, 1, 8, 8)}, "four or more of 3 channels"),
        ({"labels": torch.zeros(3)}, "and 3 labels"),
        ({"initialisations": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(network(Conv(6)), "nwot", **options)


def test_images_are_resized() -> None:
    assert measure(network(Conv(6)), "nwot", images=noise((3, 32, 32), 8, 0))["nwot"] > 0


# -- the evaluator -----------------------------------------------------------------------------------------------------


def prepared(evaluator: Any, space: Space, folder: Path, task: Task = TASK) -> Any:
    evaluator.use(space)
    evaluator.prepared = Preparation(evaluator, task, folder, 0, "cpu", 1)(lambda *words: None)
    evaluator.open(task, device="cpu", threads=1)
    return evaluator


def evaluated(evaluator: Any, arch: Architecture, seed: int = 0) -> Mapping[str, float]:
    found: Mapping[str, float] = evaluator.evaluate(
        arch, seed=seed, budget=None, workdir=Path(), report=Report(lambda epoch, metrics: None)
    )
    return found


def test_metrics_and_data_follow_from_the_proxies() -> None:
    evaluator = make_evaluator("proxy", {"proxies": "flops,params,layers,nwot"})
    assert [(m.name, m.direction) for m in evaluator.metrics] == [("score", "max"), ("layers", "max"), ("nwot", "max")]
    assert evaluator.needs_data
    assert not make_evaluator("proxy", {"proxies": "flops,synflow"}).needs_data
    assert not make_evaluator("proxy", {"noise": True}).needs_data


def test_the_score_ranks_as_the_ensemble_does(tmp_path: Path) -> None:
    space, rng = toy_space(), np.random.default_rng(4)
    evaluator = prepared(Proxies(noise=True, reference=30, batch=8), space, tmp_path)
    architectures = [space.architecture(space.sample(rng)) for _ in range(20)]
    found = [evaluated(evaluator, arch)["score"] for arch in architectures]
    table = scores(architectures, "default", images=noise(TASK.input_shape, 8, 0))
    assert np.corrcoef(found, ensemble(table))[0, 1] > 0.9
    assert len(set(found)) == len({arch.key() for arch in architectures})


def test_an_undefined_proxy_is_a_trial_state(tmp_path: Path) -> None:
    evaluator = prepared(Proxies(proxies="jacob_cov", noise=True, reference=2), toy_space(), tmp_path)
    with pytest.raises(Diverged, match="the proxy jacob_cov is nan: size; not defined where"):
        evaluated(evaluator, network(Cut(), size=16))


def test_the_reference_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    space, counted = toy_space(), list[float]()

    def make() -> Proxies:
        evaluator = Proxies(proxies="nwot,zen", noise=True, reference=6, batch=4)
        evaluator.use(space)
        return evaluator

    def run(evaluator: Proxies, folder: Path, stop: int) -> Any:
        def hear(epoch: float, metrics: Mapping[str, float], of: float | None) -> None:
            assert of == 6
            counted.append(epoch)
            if epoch == stop:
                raise KeyboardInterrupt

        return Preparation(evaluator, TASK, folder, 0, "cpu")(hear)

    whole = run(make(), tmp_path / "whole", 99)
    with pytest.raises(KeyboardInterrupt):
        run(make(), tmp_path / "cut", 4)
    part = tmp_path / "cut" / PART
    lines = part.read_text().splitlines()
    assert len(lines) == 1 + 4
    lines[2] = lines[2].replace(lines[2].split()[1], "12345.0,")  # so that it shows whether it is read
    part.write_text("\n".join(lines) + '\n{"nwot": 1')
    evaluator = make()
    again = run(evaluator, tmp_path / "cut", 99)
    assert again["nwot"][1] == 12345
    assert np.delete(again["nwot"], 1).tolist() == np.delete(whole["nwot"], 1).tolist()
    assert again["zen"].tolist() == whole["zen"].tolist()
    evaluator.keep(again, tmp_path / "cut")
    assert not part.exists()
    recalled = make().recall(tmp_path / "cut")
    assert recalled is not None
    assert {name: column.tolist() for name, column in recalled.items()} == {n: c.tolist() for n, c in again.items()}
    with pytest.raises(RunError, match="belongs to other options"):
        Proxies(proxies="nwot", reference=7).recall(tmp_path / "cut")
    (tmp_path / "cut/reference.json").write_text(json.dumps({"about": 1}))
    with pytest.raises(RunError, match="not a reference of proxies"):
        make().recall(tmp_path / "cut")


def test_a_space_of_one_network_is_refused(tmp_path: Path) -> None:
    space = Space(Chain(Conv(OneOf(8, 8, labels=("a", "b"))), Head(10)), input_shape=(3, 16, 16), classes=10)
    with pytest.raises(ConfigError, match="has fewer than two"):
        prepared(Proxies(proxies="flops,layers"), space, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 3}, "evaluator.batch: expected a whole number of at least 4, got 3"),
        ({"reference": 1}, "evaluator.reference"),
        ({"initialisations": 1.5}, "evaluator.initialisations"),
        ({"noise": "yes"}, "evaluator.noise: expected true or false, got 'yes'"),
        ({"proxies": ""}, "no proxy is called ''"),
        ({"proxies": ()}, "got none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=message):
        make_evaluator("proxy", options)


def test_a_network_that_flattens_has_no_pooling_before_its_end() -> None:
    arch = Architecture(Chain(Conv(6), MaxPool(), DenseHead(5, (8,), size=2, dropout=0)), (3, 8, 8), 5)
    assert np.isfinite(measure(arch, "zen")["zen"])

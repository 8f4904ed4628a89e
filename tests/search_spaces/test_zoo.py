"""The zoo against published figures.

`zoo.csv` maps rows of a table of published models (torchvision, timm, the papers' definitions: exact parameters and
multiply-adds) to zoo names. Where that table itself is at hand, the mapping is checked against it, too.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from pathlib import Path

import pytest
from nas.search_spaces import zoo

from nas.analysis import analyse
from nas.architecture import Architecture
from nas.blocks import Branches, Chain, Conv, Ghost, Head, Skip
from nas.errors import GraphError, SpaceError


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


PUBLISHED = table(Path(__file__).parent / "zoo.csv")
SAMPLE = (
    "alexnet", "vgg11_bn", "nin_cifar", "squeezenet1_1", "googlenet", "inception_v3", "xception", "resnet18",
    "se_resnext50_32x4d", "preact_resnet164_cifar", "wrn_28_10_cifar", "densenet121", "fractalnet40_cifar",
    "regnety_400mf", "mobilenet_v3_large_075", "mobilenet_v4_conv_medium", "ghostnet", "shufflenet_v2_x0_5",
    "fbnet_c", "efficientnet_b7", "efficientnet_v2_s", "tinynet_e", "darts_v2", "nasnet_a_cifar", "amoebanet_a",
)  # fmt: skip


@pytest.mark.parametrize("row", PUBLISHED, ids=[row["reference"] for row in PUBLISHED])
def test_published_figures_are_met_exactly(row: dict[str, str]) -> None:
    size = int(row["resolution"])
    analysis = zoo.get(row["zoo"], classes=int(row["classes"]), input_shape=(3, size, size)).analysis
    assert (analysis.params, analysis.flops) == (int(row["params"]), int(row["macs"]))


def test_resnet18_for_small_images() -> None:
    """11.17 M parameters; multiply-adds by layers: stem, four stages (with a projection in all but one), classifier."""
    stem, block = 32 * 32 * 27 * 64, 32 * 32 * 64 * 64 * 9
    wider = block // 2 + 3 * block + 16 * 16 * 64 * 128
    analysis = zoo.get("resnet18_cifar").analysis
    assert (analysis.params, analysis.flops) == (11_173_962, stem + 4 * block + 3 * wider + 512 * 10)


def test_the_papers_resolutions_and_classes_are_the_defaults() -> None:
    ours = {(name, zoo.get(name).input_shape[1], zoo.get(name).classes) for name in zoo.names()}
    published = {(row["zoo"], int(row["resolution"]), int(row["classes"])) for row in PUBLISHED}
    assert published - ours == {("efficientnet_b2", 288, 1000), ("nin_cifar", 32, 100), ("wrn_28_10_cifar", 32, 100)}


def test_the_mapping_covers_the_table(shared: Path) -> None:
    rows = {(r["name"], r["resolution"], r["params"], r["macs"]) for r in table(shared / "reference-models/exact.csv")}
    mapped = {(r["reference"], r["resolution"], r["params"], r["macs"]) for r in PUBLISHED}
    assert mapped <= rows
    # They need what no block has yet: norm over channels alone, residuals times a constant, mixed kernels, cells.
    assert {name for name, *_ in rows - mapped} == {
        "tv.convnext_tiny", "timm.inception_resnet_v2", "timm.mixnet_s", "timm.mixnet_m", "timm.mixnet_l",
        "timm.nasnetalarge", "timm.pnasnet5large",
    }  # fmt: skip


def test_torchvision_and_pycls_agree(shared: Path) -> None:
    """A second table, also for what the first lacks: exact parameters, multiply-adds to three decimals of 10^9."""
    pycls = {
        "X-101-32x4d_dds_8gpu": "resnext101_32x4d",
        "X-152-32x4d_dds_8gpu": "resnext152_32x4d",
        "R-56_nds_1gpu": "resnet56_cifar_projected",
    }
    # torchvision rounds the widths of these RegNets to whole groups by `make_divisible`, and counts Inception-v3 with
    # its auxiliary head.
    other = {"regnet_x_400mf", "regnet_y_800mf", "regnet_y_8gf", "inception_v3"}
    known, seen = set(zoo.names()), set()
    for row in table(shared / "reference-models/reference_models.csv"):
        name = pycls.get(row["name"]) or re.sub(r"^regnet_([xy])_", r"regnet\1_", row["name"])
        source = "torchvision 0" in row["source"] and row["name"] not in other
        if name in known and (source or row["name"] in pycls):
            size = int(row["resolution"])
            analysis = zoo.get(name, input_shape=(3, size, size)).analysis
            assert analysis.params == int(row["params"]), name
            assert analysis.flops / 1e9 == pytest.approx(float(row["gmacs"]), abs=6e-4), name
            seen.add(name)
    assert len(seen) == 62
    assert {"vgg11_bn", "vgg19_bn", "resnext101_64x4d", "resnext152_32x4d", "mnasnet0_75"} <= seen


@pytest.mark.parametrize("name", zoo.names())
def test_every_graph_is_sound(name: str) -> None:
    architecture = zoo.get(name)
    graph = architecture.graph()
    graph.verify()
    assert architecture.analysis == analyse(graph)
    assert architecture.name == name


@pytest.mark.parametrize(
    "name",
    [n for n in zoo.names() if re.match(r"(vgg|(preact_|wide_)?resnet|resnext|densenet)", n) and "264" not in n],
)
def test_the_depth_is_the_number_in_the_name(name: str) -> None:
    """Weight layers on the longest path. (DenseNet-264 has 265; the paper's name is a layer short.)"""
    depth = re.search(r"(\d+)", name.replace("densenet_bc", "densenet"))
    assert depth is not None
    assert zoo.get(name).analysis.depth == int(depth[1])


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("alexnet", 195), ("vgg16", 212), ("mobilenet_v1", 315), ("resnet50_v1", 483), ("resnet101_v1", 1027),
        ("resnet152_v1", 1507), ("inception_v3", 1311), ("inception_v4", 2071),
    ],
)  # fmt: skip
def test_receptive_fields(name: str, field: int) -> None:
    """Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019."""
    assert zoo.get(name).analysis.field == (field, field)


@pytest.mark.parametrize("name", SAMPLE)
def test_json_and_back_is_the_same_network(name: str) -> None:
    architecture = zoo.get(name)
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    assert again == architecture
    assert again.graph() == architecture.graph()
    assert again.key() == architecture.key()


def test_all_networks_differ() -> None:
    keys = {zoo.get(name).key() for name in zoo.names()}
    assert len(keys) == len(zoo.names())


@pytest.mark.parametrize("name", SAMPLE)
def test_networks_can_be_scaled(name: str) -> None:
    architecture = zoo.get(name)
    scaled = architecture.scale(width=1.3, depth=1.3)
    assert scaled.graph().shapes[scaled.graph().output] == (architecture.classes,)
    assert scaled.analysis.params > architecture.analysis.params


def test_efficientnets_are_b0_scaled() -> None:
    b0, b1 = zoo.get("efficientnet_b0"), zoo.get("efficientnet_b1")
    assert b0.scale(width=1.0, depth=1.1, resolution=240).key() == b1.key()


def test_classes_and_input_shape_replace_the_defaults() -> None:
    small = zoo.get("mobilenet_v2", classes=7, input_shape=(1, 64, 48))
    graph = small.graph()
    assert graph.shapes[0] == (1, 64, 48)
    assert graph.shapes[graph.output] == (7,)
    too_small = zoo.get("inception_v3", input_shape=(3, 64, 64))
    with pytest.raises(GraphError, match=r"mixed7a.*use a larger resolution"):
        too_small.graph()


@pytest.mark.parametrize(
    ("wrong", "right"), [("resnet5O", "resnet50"), ("mobilenetv2", "mobilenet_v2"), ("?", "resnet50")]
)
def test_an_unknown_name_gets_a_suggestion(wrong: str, right: str) -> None:
    with pytest.raises(SpaceError, match=right) as caught:
        zoo.get(wrong)
    assert "\n" not in str(caught.value)


def test_names_are_unique_lower_case_words() -> None:
    families = (
        "plain", "inception", "resnet", "dense", "regnet", "mobile", "light", "searched", "efficientnet", "cells",
    )  # fmt: skip
    listed = [n for family in families for n in importlib.import_module(f"nas.search_spaces.zoo.{family}").MODELS]
    assert listed == zoo.names()
    assert len(set(listed)) == len(listed)
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name) for name in listed)


def test_importing_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_named: object) -> None:
        raise AssertionError("a network was built at import")

    monkeypatch.setattr(Chain, "__init__", refuse)
    monkeypatch.setattr(Architecture, "__init__", refuse)
    for family in ("plain", "resnet", "mobile", "efficientnet", "cells"):
        importlib.reload(importlib.import_module(f"nas.search_spaces.zoo.{family}"))
    importlib.reload(zoo)


def test_names_of_nodes_say_where_they_stand() -> None:
    names = {node.name for node in zoo.get("inception_v3").graph().nodes}
    assert {"conv1.conv", "mixed5b.double.2.norm", "mixed7b.three.1.column.act", "head.classifier"} <= names
    names = {node.name for node in zoo.get("efficientnet_b0").graph().nodes}
    assert {"stem.norm", "stage2.0.expand.conv", "stage2.1.se.reduce", "stage7.0.project.norm"} <= names


def test_branches_need_a_name_each() -> None:
    body = Chain(Branches((Conv(8), Skip()), names=("only",)), Head(2))
    with pytest.raises(GraphError, match="1 names for 2 blocks"):
        Architecture(body, (3, 8, 8), 2).graph()


def test_depthwise_and_odd_ghosts() -> None:
    assert Conv(groups=None).lower((6, 8, 8)).nodes[1].op.params((6, 8, 8)) == 6 * 9
    assert Ghost(7).lower((6, 8, 8)).shapes[-1] == (7, 8, 8)

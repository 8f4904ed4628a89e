"""NAS-Bench-201 against what is published: costs of every cell, strings, and which cells are one network."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from nas.search_spaces.nasbench201 import OPERATIONS, code, genotype, nasbench201, published_cost

from nas import ops
from nas.choices import Genotype
from nas.errors import GraphError, SpaceError
from nas.export.source import compose
from nas.ops import Shape
from nas.space import Space
from nas.testing import SpaceConformance

PATHS = ("node1.from0", "node2.from0", "node2.from1", "node3.from0", "node3.from1", "node3.from2")


class TestConformance(SpaceConformance):
    inputs = (((3, 32, 32), 10), ((3, 16, 16), 120), ((1, 28, 28), 3), ((1, 9, 13), 2))
    samples = 12

    def make(self, input_shape: Shape, classes: int) -> Space:
        return nasbench201(input_shape, classes)


def every(operations: tuple[str, ...] = OPERATIONS) -> list[Genotype]:
    return [dict(zip(PATHS, chosen, strict=True)) for chosen in product(operations, repeat=6)]


def test_published_costs_of_all_cells() -> None:
    """Ranges and points of the published tables, in millions (NAS-Bench-201-v1_1; Dong & Yang 2020, figure 2).

    The first architecture of the tables: 15.64737 MFLOPs and 0.129306 M parameters.
    """
    costs = [published_cost(g) for g in every()]
    assert len(costs) == nasbench201().size() == 15625
    params, flops = ([f"{v / 1e6:.6f}" for v in column] for column in zip(*costs, strict=True))
    assert (min(params), max(params)) == ("0.073306", "1.531546")
    assert (min(flops, key=float), max(flops, key=float)) == ("7.783050", "220.119690")
    first = genotype("|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|")
    assert published_cost(first) == (129306, 15647370)
    # Only the numbers of the two convolutions matter: binomials.
    assert Counter(costs)[73306, 7783050] == 3**6
    assert len(set(costs)) == 28


def test_published_costs_where_every_edge_is_in_use() -> None:
    """The network itself costs what is published, but for the classifier's biases."""
    for operation in OPERATIONS:
        genotype = dict.fromkeys(PATHS, operation)
        analysis = nasbench201().architecture(genotype).analysis
        assert published_cost(genotype) == (analysis.params, analysis.flops + 10)
    other = {"channels": 8, "cells": 2}
    analysis = nasbench201((3, 16, 16), 120, **other).architecture(genotype).analysis
    assert published_cost(genotype, (3, 16, 16), 120, **other) == (analysis.params, analysis.flops + 120)


def test_an_edge_without_effect_counts_for_the_authors_only() -> None:
    dead = {**dict.fromkeys(PATHS, "none"), "node1.from0": "nor_conv_3x3", "node3.from0": "skip_connect"}
    bare = dict.fromkeys(PATHS, "skip_connect")
    assert published_cost(dead)[1] - published_cost(bare)[1] == 15 * 2359296
    costs = nasbench201().costs(dead)
    assert (costs["params"], costs["flops"]) == (73306, 7783040)


def test_strings_go_there_and_back() -> None:
    for g in every():
        assert genotype(code(g)) == g
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"
    assert code(genotype(text)) == text
    assert list(genotype(text).items()) == list(
        zip(PATHS, ("nor_conv_3x3", "none", "skip_connect", "skip_connect", "none", "avg_pool_3x3"), strict=True)
    )
    space = nasbench201()
    assert space.decode([3, 0, 1, 1, 0, 4]) == genotype(text)


@pytest.mark.parametrize(
    "text", ["", "|none~0|", "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "|conv~0|+|none~0|none~1|"]
)
def test_a_wrong_string_is_refused(text: str) -> None:
    with pytest.raises(SpaceError, match="is not a cell such as"):
        genotype(text)


@pytest.mark.parametrize(
    "wrong", [{}, {"node1.from0": "none"}, {**every()[0], "width": 3}, {**every()[0], "node1.from0": 1}]
)
def test_another_spaces_genotype_has_no_string_and_no_cost(wrong: Genotype) -> None:
    for function in (code, published_cost):
        with pytest.raises(SpaceError, match="not a genotype of nasbench201"):
            function(wrong)


def formula(g: Genotype) -> str:
    """What a cell computes, weights aside: nested sums of operations, sorted."""
    values = ["x"]
    for i in (1, 2, 3):
        terms = []
        for j in range(i):
            operation = str(g[f"node{i}.from{j}"])
            if operation != "none" and values[j] != "0":
                terms.append(values[j] if operation == "skip_connect" else f"{operation}({values[j]})")
        values.append(f"[{'+'.join(sorted(terms))}]" if len(terms) > 1 else terms[0] if terms else "0")
    return values[-1]


def test_genotypes_that_are_one_network_have_one_key() -> None:
    """Cells that compute different things have different keys; which share weights have, too."""
    space = nasbench201((3, 8, 8), 10, channels=2, cells=1)
    few = every(("none", "skip_connect", "nor_conv_3x3", "avg_pool_3x3"))
    formulas: dict[str, set[str]] = {}
    for g in few:
        key = space.architecture(g).body.steps()[1][1].steps()[0][1].lower((2, 8, 8)).key()  # type: ignore[index]
        formulas.setdefault(key, set()).add(formula(g))
    assert all(len(same) == 1 for same in formulas.values())
    assert len({formula(g) for g in few}) == 1066
    assert len(formulas) == 1148
    zeros = [g for g in few if formula(g) == "0"]
    assert len({space.architecture(g).key() for g in zeros}) == 1
    assert len(zeros) > 64


def test_a_network_without_a_way_through_still_builds() -> None:
    space = nasbench201((3, 8, 8), 10, channels=4, cells=2)
    architecture = space.architecture(dict.fromkeys(PATHS, "none"))
    assert sum(isinstance(node.op, ops.Zero) for node in architecture.graph().nodes) == 6
    module = architecture.module(seed=0).eval()
    a, b = module(torch.rand(2, 3, 8, 8)).unbind()
    assert torch.equal(a, b)  # it sees nothing of the image


def test_random_architectures_train_and_export() -> None:
    space, rng = nasbench201((3, 8, 8), 10, channels=4, cells=1), np.random.default_rng(0)
    for i in range(8):
        architecture = space.architecture(space.sample(rng))
        assert space.costs(architecture.genotype) == architecture.metrics()
        module, x = architecture.module(seed=i).eval(), torch.rand(2, 3, 8, 8)
        made = compose(architecture, name=f"net{i}")
        names: dict[str, object] = {"__name__": "exported"}
        exec(compile(made.text, "exported", "exec"), names)
        twin = names[made.network]().eval()  # type: ignore[operator]
        twin.load_state_dict(module.state_dict())
        torch.testing.assert_close(twin(x), module(x))
        module.train()(x).sum().backward()


def test_the_published_layout() -> None:
    graph = nasbench201().architecture(dict.fromkeys(PATHS, "nor_conv_3x3")).graph()
    shapes = dict(zip([node.name for node in graph.nodes], graph.shapes, strict=True))
    assert [shapes[f"stage{i}.4.node3.add"] for i in (1, 2, 3)] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert {"reduce1.shortcut.pool.pool", "reduce1.shortcut.conv.conv"} < set(shapes)
    assert "reduce1.shortcut.conv.norm" not in shapes
    assert [node.name for node in graph.nodes][-5:] == [
        "norm.norm", "norm.act", "head.pool", "head.flatten", "head.classifier",
    ]  # fmt: skip


def test_options() -> None:
    for options in ({"channels": 0}, {"cells": 0}):
        with pytest.raises(SpaceError, match="must be 1 or more"):
            nasbench201(**options)
    with pytest.raises(GraphError, match="use a larger resolution"):
        nasbench201((3, 1, 1), 2).architecture(every()[0]).graph()


def test_it_is_searched_on_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{''.join(map(str, digits))},{50 + sum(digits)}" for digits in rng.integers(0, 5, (400, 6)).tolist()]
    (tmp_path / "cells.csv").write_text("\n".join(["code,accuracy", *rows]) + "\n")
    command = [sys.executable, "-m", "nas", "bench", "--table=cells.csv", "--space=nasbench201", "--strategies=random"]
    done = subprocess.run(
        [*command, "--budgets=10", "--seeds=2", "--objectives=accuracy,flops"], cwd=tmp_path, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

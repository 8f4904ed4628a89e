"""NAS-Bench-Macro against the published table: every network's costs, and how many networks there are."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from nas.search_spaces.nasbench_macro import code, genotype, nasbench_macro

from nas.errors import SpaceError
from nas.ops import Shape
from nas.space import Space
from nas.testing import SpaceConformance


class TestConformance(SpaceConformance):
    inputs = (((3, 32, 32), 10),)

    def make(self, input_shape: Shape, classes: int) -> Space:
        return nasbench_macro(input_shape, classes)


def test_all_networks_have_the_published_costs_and_are_told_apart(shared: Path) -> None:
    space = nasbench_macro()
    rows = list(csv.DictReader((shared / "nas-bench-macro/nas-bench-macro_cifar10.csv").read_text().splitlines()))
    assert len(rows) == space.size() == 6561
    networks: dict[str, set[str]] = {}
    for row in rows:
        architecture = space.architecture(genotype(row["arch"]))
        costs = architecture.analysis
        assert (costs.params, costs.flops) == (int(row["params"]), int(row["flops"]))
        networks.setdefault(architecture.key(), set()).add(row["canonical_arch"])
    assert len(networks) == 3969
    assert all(len(canonical) == 1 for canonical in networks.values())


def test_codes_go_there_and_back() -> None:
    space = nasbench_macro()
    for i, found in enumerate(space.enumerate()):
        digits = np.base_repr(i, 3).zfill(8)
        assert code(found) == digits
        assert genotype(digits) == found
    assert space.decode([int(digit) for digit in "22212220"]) == genotype("22212220")
    assert genotype("01200000")["stage2.0.block"] == "mb6_k5"


def test_the_published_layout() -> None:
    architecture = nasbench_macro().architecture(genotype("21100000"))
    graph = architecture.graph()
    blocks = {scope.name: scope.kind for scope in graph.scopes if scope.name.count(".") == 1}
    assert blocks["stage1.0"] == blocks["stage1.1"] == blocks["stage2.0"] == "inverted_residual"
    assert blocks["stage3.0"] == "identity"  # a projection: it halves the map
    assert "stage2.1" not in blocks  # nothing
    assert next(shape for shape in graph.shapes if shape[0] == 1280) == (1280, 4, 4)


@pytest.mark.parametrize("wrong", ["", "0000000", "000000000", "00000003", "0000000x"])
def test_a_wrong_code_is_refused(wrong: str) -> None:
    with pytest.raises(SpaceError, match="is not a code of 8 digits"):
        genotype(wrong)


@pytest.mark.parametrize("change", [{"stage1.0.block": "mb4"}, {"stage1.0.block": None}])
def test_another_spaces_genotype_has_no_code(change: dict[str, str]) -> None:
    with pytest.raises(SpaceError, match="not a genotype of nasbench-macro"):
        code({**genotype("00000000"), **change})
    with pytest.raises(SpaceError, match="not a genotype of nasbench-macro"):
        code({"width": 3})

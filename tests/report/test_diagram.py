"""Block diagrams: every node is in a block, costs add up, and connections are those of the graph."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from nas import blocks as b
from nas.architecture import Architecture
from nas.plugins import make_space, reference
from nas.report.diagram import svg, units


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "googlenet", "fractalnet20_cifar", "shufflenet_v2_x1_0"])
def test_costs_of_the_blocks_add_up(name: str) -> None:
    architecture = reference(name)
    rows = units(architecture)
    assert sum(unit.params for unit in rows) == architecture.analysis.params
    assert sum(unit.flops for unit in rows) == architecture.analysis.flops
    assert rows[-1].shape == (architecture.classes,)
    assert len(rows) < 80


@pytest.mark.parametrize("space", ["mobile", "lecture", "darts", "nasbench201", "nasbench-macro"])
def test_any_network_can_be_drawn(space: str) -> None:
    made = make_space(space, (3, 32, 32), 10, {})
    rng = np.random.default_rng(0)
    for _ in range(5):
        architecture = made.architecture(made.sample(rng))
        rows = units(architecture)
        assert sum(unit.params for unit in rows) == architecture.analysis.params
        drawn = ElementTree.fromstring(svg(architecture))
        titles = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}title")]
        assert len(titles) == len(rows) + 1
        assert all(j < i for i, unit in enumerate(rows) for j in unit.reads)


def test_ways_around_and_equal_blocks() -> None:
    rows = {unit.name: unit for unit in units(reference("resnet50"))}
    assert rows["stage1.0"].skip == "projection"
    assert (rows["stage1.1-2"].skip, rows["stage1.1-2"].times) == ("identity", 2)
    assert rows["stem"].skip == ""
    assert rows["stage3.1-5"].detail == "3x3, relu"


def test_connections_that_skip_blocks() -> None:
    rows = units(reference("densenet121"))
    transition = next(i for i, unit in enumerate(rows) if unit.kind == "transition")
    assert rows[transition].reads == frozenset(range(1, transition))  # the pooled stem and all six layers
    cells = units(make_space("darts", (3, 32, 32), 10, {}).architecture(_darts()))
    third = next(i for i, unit in enumerate(cells) if unit.name == "cells.2")
    assert cells[third].reads == {third - 1, third - 2}


def _darts() -> object:
    space = make_space("darts", (3, 32, 32), 10, {})
    return space.sample(np.random.default_rng(0))


def test_texts_are_escaped() -> None:
    chain = b.Chain(stem=b.Conv(8), head=b.Head(2))
    drawn = svg(Architecture(chain, (3, 8, 8), 2, "<name>"))
    ElementTree.fromstring(drawn)
    assert "&lt;name&gt;" in drawn

"""The sources in docs/export.md are what is written today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from nas.export.formats import OPSET, WRITERS
from nas.export.source import source
from nas.plugins import reference

PAGE = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_resnet50_is_printed_as_it_is_written() -> None:
    assert BLOCKS[1] == source(reference("resnet50"), name="resnet50")


def test_the_found_network_is_a_network() -> None:
    scope: dict[str, Any] = {}
    exec(compile(BLOCKS[2], "export.md", "exec"), scope)
    network = scope["SmallMobile"]()
    said = re.search(r"Parameters: ([\d,]+)", BLOCKS[2])
    assert said is not None
    assert sum(p.numel() for p in network.parameters()) == int(said[1].replace(",", ""))
    assert network.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_table_of_formats_is_complete() -> None:
    assert set(re.findall(r"^\| `(\w+)`", PAGE, flags=re.MULTILINE)) == set(WRITERS)
    assert f"opset {OPSET}" in PAGE

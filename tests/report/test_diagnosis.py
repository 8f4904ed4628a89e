"""A diagnosis as a table, as data and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head
from nas.plugins import reference
from nas.report.diagnosis import diagnosis_json, print_diagnosis, save_diagnosis
from nas.torch.data import Data, load
from nas.torch.diagnose import Diagnosis, diagnose


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", limit=200)


@pytest.fixture(scope="module")
def sick(digits: Data) -> Diagnosis:
    convs: dict[str, Any] = {f"c{i}": Conv(8, activation="sigmoid", norm="none") for i in range(30)}
    return diagnose(Architecture(Chain(**convs, head=Head(10)), (1, 8, 8), 10, "sick"), digits, steps=1)


def test_the_table_has_every_layer_and_the_verdict(sick: Diagnosis, capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnosis(sick)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["node", "kind", "drawn", "gradient", "after", "x", "weights", "after", "dead", "after",
                                "mean", "spread"]  # fmt: skip
    rows = [line.split()[0] for line in lines[1:62]]
    assert rows == [f"c{i}.{part}" for i in range(30) for part in ("conv", "act")] + ["head.classifier"]
    assert lines[1].startswith("c0.conv          conv 3x3  xavier 1.846  ")
    text = "\n".join(lines[62:])
    assert "xavier 1.846, fan mean: sigmoid follows and no norm (30 layers)" in text
    assert "theoretical 61x61; input 8x8 (of c29.act)" in text
    for finding in sick.findings:
        assert finding.text in text


def test_a_sound_network_is_called_sound(digits: Data, capsys: pytest.CaptureFixture[str]) -> None:
    print_diagnosis(diagnose(reference("resnet20_cifar"), digits, steps=0, batch=8))
    out = capsys.readouterr().out
    assert "verdict          sound: no gradient vanishes or explodes" in out
    assert "after" not in out


def test_the_same_as_data(sick: Diagnosis) -> None:
    data = json.loads(json.dumps(diagnosis_json(sick), allow_nan=False))
    start = data["moments"]["at initialisation"]
    assert start["sensitivities"] == dict(sick.start.sensitivities)
    assert start["field"] == {"node": "c29.act", "effective": sick.start.field.size, "theoretical": [61, 61]}
    assert data["initialisation"]["c0.conv"]["scheme"] == "xavier"
    assert [finding["text"] for finding in data["findings"]] == [finding.text for finding in sick.findings]


def test_numbers_that_are_none_are_null_in_data(digits: Data, tmp_path: Path) -> None:
    convs: dict[str, Any] = {f"c{i}": Conv(8, norm="none") for i in range(2)}
    found = diagnose(Architecture(Chain(**convs, head=Head(10)), (1, 8, 8), 10), digits, steps=0)
    broken: dict[str, float] = dict.fromkeys(found.start.gradients, float("nan"))
    found.start.sensitivities.update(broken)  # type: ignore[attr-defined]
    data = diagnosis_json(found)
    json.dumps(data, allow_nan=False)
    assert set(data["moments"]["at initialisation"]["sensitivities"].values()) == {None}
    assert found.findings[0].kind == "exploding"
    save_diagnosis(found, tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["sick", "sound"])
def test_the_picture(name: str, sick: Diagnosis, digits: Data, tmp_path: Path) -> None:
    found = sick if name == "sick" else diagnose(reference("resnet20_cifar"), digits, steps=0, batch=8)
    with Image.open(save_diagnosis(found, tmp_path / "x.png")) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (990, 1950, 3)
    red = (pixels[:, :1400, 0] - pixels[:, :1400, 2] > 100).sum()  # the named layer, left of the fields
    assert (red > 200) == (name == "sick")

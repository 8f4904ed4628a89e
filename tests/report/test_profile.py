"""Spaces side by side as a table and a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.profile import Profile, profile
from nas.report.profile import print_profiles, save_profiles
from nas.testing import toy_space


def made(name: str, metrics: list[str]) -> Profile:
    values = {metric: np.arange(1.0, 101.0) * 10**i for i, metric in enumerate(metrics)}
    return Profile(name, 12345, 100, name != "run", values, dict.fromkeys(metrics, ""), failed=2)


def test_the_table_has_every_metric_of_each_space(capsys: pytest.CaptureFixture[str]) -> None:
    print_profiles([made("one", ["flops", "nwot"]), made("run", ["error", "flops"])])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "one: 12,345 genotypes (1.23e+04); 100 at random, 2 of them failed"
    assert lines[1] == "run: 12,345 genotypes (1.23e+04); 100 evaluated by a search, 2 of them failed"
    rows = [line.split() for line in lines[3:-1]]
    assert [row[:2] for row in rows] == [["flops", "one"], ["flops", "run"], ["nwot", "one"], ["error", "run"]]
    assert rows[0][2:] == ["1", "5.95", "25.75", "50.5", "75.25", "95.05", "100", "50.5"]


def test_one_space_needs_no_name_in_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_profiles([profile(toy_space(), samples=10)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["metric", "min"]
    assert [line.split()[0] for line in lines[2:-1]] == ["flops", "params", "memory", "depth", "field"]


def test_the_picture_has_a_panel_per_metric_and_a_colour_per_space(tmp_path: Path) -> None:
    def colours(profiles: list[Profile]) -> tuple[tuple[int, ...], int, int]:
        with Image.open(save_profiles(profiles, tmp_path / "x.png")) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        blue = (np.abs(pixels - (0x1F, 0x6F, 0x8B)).sum(2) < 20).sum()
        orange = (np.abs(pixels - (0xD9, 0x80, 0x32)).sum(2) < 20).sum()
        return pixels.shape[:2], int(blue), int(orange)

    small, blue, orange = colours([made("one", ["flops"])])
    assert blue > 500
    assert orange == 0
    large, blue, orange = colours([made("one", ["flops", "a", "b", "c"]), made("run", ["d", "flops"])])
    assert large[0] > 1.8 * small[0]
    assert large[1] == pytest.approx(3 * small[1], abs=3)
    assert blue > 2 * orange > 1000

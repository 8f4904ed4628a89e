"""Tables: the fit, the file, the prediction, and how one comes about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.device import profile as profiling
from nas.device.profile import PASSES, profile
from nas.device.reachable import blocks
from nas.device.settings import Settings
from nas.device.table import Check, Table
from nas.errors import ConfigError, SpaceError
from nas.plugins import make_space
from nas.space import Space
from nas.testing import toy_space

SPACE = toy_space()


class Fake:
    """A bench on which a network takes a microsecond per thousand FLOPs, and a tenth of one more; `runs` are counted.

    After `patience` networks somebody presses Ctrl-C.
    """

    patience = 10**9
    runs = 0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def ready(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()

    def run(self, graph: Any) -> Any:
        from nas.analysis import analyse

        Fake.runs += 1
        if Fake.runs > Fake.patience:
            raise KeyboardInterrupt
        took = 1e-7 + analyse(graph).flops * 1e-9
        return lambda: took


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setattr(profiling, "Bench", Fake)
    monkeypatch.setattr(Fake, "runs", 0)
    monkeypatch.setattr(Fake, "patience", 10**9)
    return Fake


def made(out: Path, space: Space = SPACE, **given: Any) -> Table:
    return profile(space, {"width": (1, 2)}, given.pop("settings", Settings()), out, networks=12, **given)


def test_the_line_is_that_of_the_fitted_half_and_the_error_that_of_the_other() -> None:
    sums = np.linspace(1, 2, 20)
    latencies = 1.5 * sums + 0.25
    latencies[1::2] *= np.where(np.arange(10) % 2, 1.1, 0.9)
    check = Check.of(list(zip(sums.tolist(), latencies.tolist(), strict=True)))
    assert (check.scale, check.offset) == pytest.approx((1.5, 0.25))
    assert len(check.fitted) == len(check.held_out) == 10
    assert check.errors == pytest.approx([1 - 1 / 1.1 if i % 2 else 1 / 0.9 - 1 for i in range(10)])
    assert check.error == pytest.approx((1 - 1 / 1.1 + 1 / 0.9 - 1) / 2)
    assert 0.6 < check.spearman < 1
    assert Check.of([(1.0, 2.0), (3.0, 1.0), (2.0, 3.0), (1.0, 5.0)]).spearman == pytest.approx(-1)


def test_every_block_is_measured_in_every_pass_and_predicts_whole_networks(bench: type[Fake], tmp_path: Path) -> None:
    table = made(tmp_path / "t.json")
    found = blocks(SPACE)
    assert set(table.blocks) == set(found)
    assert bench.runs == PASSES * len(found) + 12
    assert all(len(medians) == PASSES for medians in table.blocks.values())
    rng = np.random.default_rng(7)
    for _ in range(20):
        architecture = SPACE.architecture(SPACE.sample(rng))
        blocks_in_it = table.sum(architecture)
        assert blocks_in_it >= architecture.analysis.flops * 1e-9
        assert table.predict(architecture) == pytest.approx(1e-7 + architecture.analysis.flops * 1e-9, rel=0.05)
    assert table.check is not None
    assert table.check.error < 0.02
    assert Table.read(tmp_path / "t.json") == table
    assert made(tmp_path / "t.json").blocks == table.blocks
    assert bench.runs == PASSES * len(found) + 24


def test_an_interrupted_table_goes_on(bench: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "TOGETHER", 4)
    whole, total = made(tmp_path / "whole.json"), Fake.runs
    cuts = (10, len(whole.blocks) + 5, 2 * len(whole.blocks) + 3)
    heard: list[tuple[str, int, int]] = []
    done = 0
    for cut in cuts:
        bench.runs, bench.patience = 0, cut - done
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "cut.json")
        known = Table.read(tmp_path / "cut.json")
        done = sum(map(len, known.blocks.values()))
        assert cut - 8 < done <= cut
        with pytest.raises(ConfigError, match="not finished"):
            _ = known.price
    bench.runs, bench.patience = 0, 10**9
    again = made(tmp_path / "cut.json", hear=lambda *what: heard.append(what))
    assert bench.runs == total - done
    assert again.blocks == whole.blocks
    assert again.check == whole.check
    progress = [n for what, n, _ in heard if what == "blocks"]
    assert progress[0] == done
    assert progress == sorted(progress)


def test_a_table_of_something_else_is_left_alone(bench: type[Fake], tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    made(out)
    before = out.read_bytes()
    for given, expected in (
        ({"settings": Settings(batch=8)}, "another settings"),
        ({"space": make_space("nasbench-macro", (3, 16, 16), 10, {})}, "another space"),
    ):
        with pytest.raises(ConfigError, match=expected):
            made(out, **given)
    with pytest.raises(ConfigError, match="at least 6"):
        profile(SPACE, {}, Settings(), out, networks=2)
    assert out.read_bytes() == before


def test_too_few_networks_are_an_error(bench: type[Fake], tmp_path: Path) -> None:
    from nas.blocks import Chain, Conv, Head
    from nas.choices import OneOf

    space = Space(Chain(Conv(OneOf(8, 16)), Head(3)), input_shape=(3, 8, 8), classes=3)
    with pytest.raises(SpaceError, match="12 different networks were wanted, 2 were found"):
        made(tmp_path / "t.json", space)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda data: data.update(format=2), "newer than 1"),
        (lambda data: data.pop("blocks"), "KeyError"),
        (lambda data: data["blocks"].update(x=[float("nan")]), "no time that is a number"),
        (lambda data: data["blocks"].update(x=[]), "no time that is a number"),
        (lambda data: data["blocks"].update(x=3), "TypeError"),
        (lambda data: data["settings"].update(batch=0), "batch"),
        (lambda data: data["check"].update(scale="fast"), "ValueError"),
    ],
)
def test_a_damaged_table_is_one_line(bench: type[Fake], tmp_path: Path, change: Any, expected: str) -> None:
    out = tmp_path / "t.json"
    made(out)
    data = json.loads(out.read_text())
    change(data)
    out.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=expected) as caught:
        Table.read(out)
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_one_line(tmp_path: Path) -> None:
    for text, expected in (("[1]", "not what"), ("{", "not what"), (None, "does not exist")):
        path = tmp_path / "t.json"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigError, match=expected):
            Table.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Table.read(tmp_path)


def test_a_block_of_another_space_is_named(bench: type[Fake], tmp_path: Path) -> None:
    table = made(tmp_path / "t.json")
    other = make_space("nasbench-macro", (3, 16, 16), 10, {})
    with pytest.raises(ConfigError, match=r"no Conv\(width=32.*on 3x16x16.*nas profile-device") as caught:
        table.predict(other.architecture(other.sample(np.random.default_rng(0))))
    assert "\n" not in str(caught.value)


def test_the_price_is_what_candidates_and_architectures_are_told(bench: type[Fake], tmp_path: Path) -> None:
    table, space = made(tmp_path / "t.json"), toy_space()
    space.prices = (table.price,)
    assert space.exact == ("flops", "params", "memory", "depth", "latency")
    rng = np.random.default_rng(3)
    for _ in range(40):
        genotype = space.sample(rng)
        architecture = space.architecture(genotype)
        costs = space.costs(genotype)
        assert costs == space.metrics(architecture)
        assert costs["latency"] == table.predict(architecture)

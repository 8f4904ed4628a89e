"""Rank correlations of proxies with what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from nas.config import Config
from nas.errors import PluginError, RunError
from nas.honesty import COUNTS, LEAST, compared, judged, kendall, recorded
from nas.report import honesty as report
from nas.session import load, start
from nas.trial import Objective

ACCURACY = Objective("accuracy", "max")


@pytest.mark.parametrize("ties", [False, True])
def test_correlations_are_those_of_scipy(ties: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    y += x
    if ties:
        x, y = x.round(), y.round()
    assert kendall(x, y, np.ones((1, 30)))[0] == pytest.approx(kendalltau(x, y)[0])
    places = rng.integers(30, size=30)
    counts = np.bincount(places, minlength=30)[None].astype(float)
    assert kendall(x, y, counts)[0] == pytest.approx(kendalltau(x[places], y[places])[0])
    found = compared(ACCURACY, y, {"flops": rng.normal(size=30), "x": x})
    row = next(row for row in found.rows if row.proxy == "x")
    assert row.kendall.value == pytest.approx(kendalltau(x, y)[0])
    assert row.spearman.value == pytest.approx(spearmanr(x, y)[0])
    assert row.kendall.low < row.kendall.value < row.kendall.high


def test_verdicts() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=200)
    columns = {
        "good": truth + 0.1 * rng.normal(size=200), "flops": truth + rng.normal(size=200),
        "alike": truth + rng.normal(size=200), "bad": -truth, "none": np.full(200, np.nan), "flat": np.ones(200),
    }  # fmt: skip
    found = compared(ACCURACY, truth, columns)
    assert {row.proxy: row.verdict for row in found.rows} == {
        "good": "beats FLOPs", "alike": "does not beat FLOPs", "bad": "worse than FLOPs", "flops": "a count",
        "none": "does not beat FLOPs", "flat": "does not beat FLOPs",
    }  # fmt: skip
    assert found.rows[0].proxy == "good"
    assert {row.proxy for row in found.rows[-2:]} == {"none", "flat"}
    over = found.rows[0].over_flops
    assert over is not None
    expected = kendalltau(columns["good"], truth)[0] - kendalltau(columns["flops"], truth)[0]
    assert over.value == pytest.approx(expected)
    loss = compared(Objective("loss", "min"), -truth, columns)
    assert loss.rows[0].kendall == found.rows[0].kendall
    json.dumps(found.to_json(), allow_nan=False)


def test_a_proxy_that_is_not_defined_everywhere() -> None:
    rng = np.random.default_rng(2)
    truth, flops = rng.normal(size=(2, 40))
    column = truth.copy()
    column[:10] = np.nan
    column[10] = np.inf
    row = next(row for row in compared(ACCURACY, truth, {"flops": flops, "x": column}).rows if row.proxy == "x")
    assert row.networks == 29
    assert row.kendall.value == pytest.approx(1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honesty") / "run"
    options = {"proxy": {"proxies": "nwot", "noise": True, "reference": 4, "batch": 4}}
    config = Config(
        space="nasbench-macro", strategy="random", evaluator="table", trials=12, options=options, out=str(path)
    )
    start(config).run()
    return path


def test_a_run_says_what_its_proxies_were_worth(run: Path) -> None:
    results = load(run)
    assert results.proxies == ["score", "nwot"]
    found = recorded(results.trials, results.objectives, results.proxies)
    assert found is not None
    assert {row.proxy for row in found.rows} == {"score", "nwot", *COUNTS}
    assert found.networks == 12
    assert recorded(results.trials[: LEAST - 1], results.objectives, ["nwot"]) is None
    assert recorded(results.trials, [Objective("flops", "min", exact=True)], ["nwot"]) is None


def test_proxies_are_judged_afterwards(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    options = {"reference": 4, "batch": 4}
    found = judged(
        load(run), proxies="nwot,snip", options=options, networks=10, device="cpu",
        on_scored=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert found.networks == 10
    assert {row.proxy for row in found.rows} == {"score", "nwot", "snip", *COUNTS}
    assert seen[-1] == (14, 14)
    assert json.loads((run / "proxies.json").read_text()) == found.to_json()
    others = judged(load(run), proxies="synflow", options=options, networks=10, device="cpu")  # of no images at all
    assert {row.proxy for row in others.rows} == {"score", "synflow", *COUNTS}
    report.print_honesty(found)
    text = capsys.readouterr().out
    assert "rank correlation with accuracy, 10 networks" in text
    assert "FLOPs" in text
    with pytest.raises(PluginError, match="nwott"):
        judged(load(run), proxies="nwott")


def test_too_few_networks(tmp_path: Path) -> None:
    config = Config(space="nasbench-macro", strategy="random", evaluator="table", trials=3, out=str(tmp_path / "run"))
    start(config).run()
    with pytest.raises(RunError, match="has 3 trained networks; a rank correlation needs 8"):
        judged(load(tmp_path / "run"))

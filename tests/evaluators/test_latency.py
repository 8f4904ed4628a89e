"""Latency beside accuracy: measured, and predicted from a table."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from nas.evaluators.latency import Latency
from test_cli import nas

from nas.config import Config
from nas.device.table import Table
from nas.errors import ConfigError
from nas.evaluator import Report, Task
from nas.plugins import available, find, make_space
from nas.session import load, resume, start

SMALL = {"kernels": (3,), "expansions": (3,), "activations": ("relu",), "resolutions": (1.0,)}
SET = [f"--set=space.{name}={list(values)}".replace("'", '"') for name, values in SMALL.items()]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the small space for 8x8 images, as the command makes it."""
    folder = tmp_path_factory.mktemp("device")
    done = nas("profile-device", "--input=1x8x8", *SET, "--networks=8", "--out=t.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device  torch ")
    assert "runs    batch 1, 1 thread, torch, on cpu" in lines
    check = next(line for line in lines if line.startswith("check"))
    assert "4 networks held out: median error" in check
    assert lines[-1].endswith("--set latency.table=t.json")
    return folder / "t.json"


def test_all_it_measures_fits_together(tmp_path: Path) -> None:
    space = make_space("mobile", (3, 32, 32), 10, {})
    architecture = space.architecture(space.sample(np.random.default_rng(0)))
    found = {}
    for batch in (1, 16):
        evaluator: Latency = pickle.loads(pickle.dumps(Latency(batch=batch, repeats=3)))
        evaluator.open(Task(None, (3, 32, 32), 10), device="cpu", threads=1)
        report = Report(lambda *_: None)
        found[batch] = evaluator.evaluate(architecture, seed=0, budget=None, workdir=tmp_path, report=report)
        assert found[batch]["throughput"] == pytest.approx(batch / found[batch]["latency"])
        assert found[batch]["peak_memory"] >= 4 * architecture.analysis.params + batch * architecture.analysis.memory
    assert found[16]["latency"] > found[1]["latency"]


def test_options_out_of_range_are_one_line(tmp_path: Path) -> None:
    for given, expected in (
        ({"batch": 0}, "batch"), ({"repeats": 0}, "repeats"), ({"warmup": -1}, "warmup"), ({"seconds": 0}, "seconds"),
        ({"runtime": "c"}, "torch or onnx"), ({"table": "t.json", "batch": 2}, "drop the other options"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=expected):
            Latency(**given)


def test_onnx_runtime_gives_no_memory() -> None:
    assert [m.name for m in Latency(runtime="onnx").metrics] == ["latency", "throughput"]


def test_a_predicted_limit_is_kept_before_anything_is_evaluated(table: Path, tmp_path: Path) -> None:
    space = make_space("mobile", (1, 8, 8), 10, SMALL)
    known, rng = Table.read(table), np.random.default_rng(0)
    latencies = [known.predict(space.architecture(space.sample(rng))) for _ in range(60)]
    bound = float(np.quantile(latencies, 0.3))
    for strategy in ("evolution", "random", "local-search", "tpe", "rl", "regularized-evolution"):
        out = tmp_path / strategy
        done = nas(
            "search", "--evaluator=toys:Sized", "--objectives=accuracy,latency", f"--limit=latency={bound * 1e3}ms",
            f"--set=latency.table={table}", *SET, f"--strategy={strategy}", "--trials=8", f"--out={out}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        trials = load(out).trials
        assert sum(t.evaluated for t in trials) == 8
        for t in trials:
            predicted = known.predict(space.architecture(t.genotype))
            assert t.metrics["latency"] == pytest.approx(predicted)
            assert t.state == ("infeasible" if predicted > bound else "ok")
        if strategy in ("evolution", "tpe", "local-search"):  # they look before they propose
            assert all(t.evaluated for t in trials)
    shown = nas("show", str(tmp_path / "evolution")).stdout.splitlines()
    assert "latency (ms)" in shown[1]
    best = json.loads(nas("show", str(tmp_path / "evolution"), "--json").stdout)["trials"][0]["metrics"]["latency"]
    assert best < bound


def test_a_run_with_a_table_goes_on_from_anywhere_and_is_read_without_it(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "t.json"
    copy.write_bytes(table.read_bytes())
    monkeypatch.chdir(tmp_path)
    config = Config(evaluator="toys:Sized", strategy="random", objectives=("accuracy", "latency"), trials=3, out="run",
                    options={"latency": {"table": "t.json"}, "space": SMALL})  # fmt: skip
    start(config).run()
    monkeypatch.chdir("/")
    resume(tmp_path / "run", trials=4).run()
    copy.unlink()
    results = load(tmp_path / "run")
    assert len(results.trials) >= 4
    assert results.run.config["about"]["latency"].startswith(f"latency predicted from {copy}: batch 1, 1 thread")
    with pytest.raises(ConfigError, match=r"t\.json does not exist"):
        resume(tmp_path / "run", trials=5)


def test_a_table_of_other_images_is_an_error_before_there_is_a_run(table: Path, tmp_path: Path) -> None:
    done = nas("search", "--evaluator=toys:Sized", f"--set=latency.table={table}", "--out=run", cwd=tmp_path)
    assert done.returncode == 2
    assert "nas profile-device" in done.stderr
    assert not (tmp_path / "run").exists()


def test_darts_says_that_it_learns_with_flops(table: Path, tmp_path: Path) -> None:
    arguments = ["--strategy=darts", "--evaluator=toys:Sized", "--objectives=accuracy,latency", *SET]
    done = nas("search", *arguments, f"--set=latency.table={table}", f"--out={tmp_path / 'run'}")
    assert done.returncode == 2
    assert "'latency'" in done.stderr


def test_profile_device_says_what_is_wrong(table: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (["--input=8x8"], "CHANNELSxHEIGHTxWIDTH"), (["--batch=0"], "batch"), (["--device=tpu"], "device"),
        (["--space=darts", "--input=3x32x32"], "too many"), ([f"--out={table}", "--input=3x8x8"], "another space"),
    ):  # fmt: skip
        done = nas("profile-device", f"--out={tmp_path / 't.json'}", *arguments)
        assert done.returncode == 2, arguments
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_finished_table_is_checked_again(table: Path) -> None:
    before = Table.read(table)
    done = nas("profile-device", "--input=1x8x8", *SET, "--networks=10", f"--out={table}", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert (data["fitted"], len(data["held_out"])) == (5, 5)
    assert data["blocks"] == len(before.blocks)
    assert Table.read(table).blocks == before.blocks


def test_evaluators_that_stand_beside_another_need_no_option() -> None:
    for name in available("evaluators"):
        cls = find("evaluators", name)
        if getattr(cls, "beside", False):
            assert cls().metrics

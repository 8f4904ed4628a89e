"""A run as an Optuna study and as event files."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from test_cli import nas

import nas as package
from nas.report import dashboard
from nas.report.dashboard import study


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with conditional decisions, halving, and a limit."""
    folder = tmp_path_factory.mktemp("dashboard")
    few = ["--set=evaluator.epochs=2", "--set=evaluator.batch=16", "--set=data.limit=200", "--limit=flops=1M"]
    done = nas("search", "--strategy=random", "--trials=6", "--rungs=1", *few, "--out=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_study_is_the_run(run: Path) -> None:
    results = package.load(run)
    made = optuna.load_study(study_name="run", storage=study(results))
    assert made.directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    evaluated = [trial for trial in results.trials if trial.evaluated]
    assert len(made.trials) == len(evaluated) == 6
    for ours, theirs in zip(evaluated, made.trials, strict=True):
        assert theirs.params == ours.genotype  # inactive decisions are not there
        assert theirs.user_attrs["trial"] == ours.number
        assert {name: theirs.user_attrs[name] for name in ours.metrics} == ours.metrics
        assert theirs.intermediate_values[1] == results.run.curves[ours.number][0][1]["accuracy"]
        assert theirs.state is (TrialState.COMPLETE if ours.ok else TrialState.PRUNED)
        assert theirs.duration is not None
        assert theirs.duration.total_seconds() == pytest.approx(ours.seconds, abs=1e-3)
    assert {"ok", "stopped"} == {trial.state for trial in evaluated}
    best = {trial.user_attrs["trial"] for trial in made.best_trials}
    assert {trial.number for trial in results.front} <= best
    for path, labels in results.space.paths.items():
        for trial in made.trials:
            if path in trial.distributions:
                assert trial.distributions[path].choices == labels


def test_trials_without_a_result_failed(tmp_path: Path) -> None:
    nas("search", "--evaluator=toys:broken", "--trials=2", "--strategy=random", "--out=run", cwd=tmp_path)
    results = package.load(tmp_path / "run")
    made = optuna.load_study(study_name="run", storage=study(results))
    assert [trial.state for trial in made.trials] == [TrialState.FAIL] * 2
    assert made.trials[0].user_attrs["error"] == results.trials[0].error


def test_the_command_serves(run: Path) -> None:
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nas", "dashboard", str(run), f"--port={port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            found = _get(f"http://127.0.0.1:{port}/api/studies", server)
            (summary,) = found["study_summaries"]
            assert summary["study_name"] == "run"
            taken = nas("dashboard", str(run), f"--port={port}")
        finally:
            server.terminate()
    assert taken.returncode == 2
    assert "choose another --port" in taken.stderr


def _get(url: str, server: subprocess.Popen[bytes]) -> dict:  # type: ignore[type-arg]
    for _ in range(300):
        assert server.poll() is None, server.stdout and server.stdout.read()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def test_event_files_hold_the_curves(run: Path) -> None:
    training = run / "train" / "some-seed0"
    training.mkdir(parents=True)
    (training / "curve.csv").write_text(
        "epoch,lr,train_loss,loss,accuracy,seconds\n1,0.1,2.0,1.5,0.5,9\n2,0,1,1,0.75,18\n"
    )
    done = nas("dashboard", str(run), "--tensorboard")
    assert done.returncode == 0, done.stderr
    assert nas("dashboard", str(run), "--tensorboard").returncode == 0  # again: nothing is doubled
    results = package.load(run)
    for number, curve in results.run.curves.items():
        (file,) = (run / "tensorboard" / f"{number:05d}").iterdir()
        found = _scalars(file)
        assert sorted(found["accuracy"]) == [int(epoch) for epoch, _ in curve]
        for epoch, metrics in curve:
            assert found["accuracy"][int(epoch)] == pytest.approx(metrics["accuracy"])
    (file,) = (run / "tensorboard" / "some-seed0").iterdir()
    assert _scalars(file)["accuracy"] == {1: 0.5, 2: 0.75}


def _scalars(file: Path) -> dict[str, dict[int, float]]:
    """What is in an event file: length, checksum, message, checksum, again and again."""
    from tensorboardX.proto.event_pb2 import Event

    data, at = file.read_bytes(), 0
    found: dict[str, dict[int, float]] = {}
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + size])
        at += 12 + size + 4
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_what_is_missing_is_one_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert "pip install 'nas[dashboard]'" in nas("dashboard", str(run)).stderr
    assert "pip install tensorboardX" in nas("dashboard", str(run), "--tensorboard").stderr
    monkeypatch.undo()
    table = ["search", "--space=nasbench-macro", "--evaluator=table", "--trials=2", "--out=table"]
    assert nas(*table, cwd=tmp_path).returncode == 0
    assert "has no training curves" in nas("dashboard", str(tmp_path / "table"), "--tensorboard").stderr
    assert dashboard.study(package.load(tmp_path / "table")).get_all_studies()

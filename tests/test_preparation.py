"""The long job before the first trial: run once, heard of, kept; and what remains where it fails."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toys import CALLS

from nas.cli import main
from nas.config import Config
from nas.errors import ConfigError, PluginError
from nas.mirror import Mirror, restore
from nas.preparation import Progress
from nas.report.progress import _Preparing
from nas.session import resume, start
from nas.storage import Storage
from nas.store import Run


def config(folder: Path, **options: Any) -> Config:
    return Config(
        space="toys:toy_space", evaluator="toys:Long", strategy="random", trials=2, seed=5,
        out=str(folder), options={"evaluator": options},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def calls() -> list[str]:
    CALLS.clear()
    return CALLS


def test_it_runs_once_and_is_recalled(tmp_path: Path, calls: list[str]) -> None:
    heard: list[Progress] = []
    search = start(config(tmp_path / "run"), on_prepare=lambda search, progress: heard.append(progress))
    assert calls == ["use", "recall", "prepare", "step1", "step2", "step3", "keep", "open"]
    assert heard == [Progress("long", 0.0), *[Progress("long", n, 3, {"loss": 1 / n}) for n in (1.0, 2.0, 3.0)]]
    search.run()
    calls.clear()
    resume(tmp_path / "run", trials=3).run()
    assert calls == ["use", "recall", "open"]


def test_a_failure_that_leaves_nothing_leaves_no_run(tmp_path: Path, calls: list[str]) -> None:
    for trouble, error in (
        ("use wrong", ConfigError), ("recall wrong", ConfigError), ("prepare bug", PluginError),
        ("step2 bug", PluginError),
    ):  # fmt: skip
        with pytest.raises(error):
            start(config(tmp_path / "run", fail=trouble))
        assert not (tmp_path / "run").exists()


def test_what_a_failure_or_an_interruption_leaves_can_go_on(tmp_path: Path, calls: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(config(tmp_path / "stopped", fail="prepare stop"))
    with pytest.raises(PluginError):
        start(config(tmp_path / "failed", fail="open bug"))
    assert (tmp_path / "failed/prepare/evaluator/result.json").exists()
    for name in ("stopped", "failed"):
        run = Run.open(tmp_path / name, write=True)
        run.configure({**run.config, "config": config(tmp_path / name).to_json()})  # the cause is mended
        run.close()
        search = resume(tmp_path / name)
        search.run()
        assert search.evaluated == 2


def test_an_interruption_at_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--space=toys:toy_space", "--evaluator=toys:Long", "--set", "evaluator.fail=step2 stop"]
    monkeypatch.setattr("sys.argv", ["nas", "search", *words, f"--out={tmp_path / 'run'}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"run {tmp_path / 'run'}"
    assert lines[1].startswith("long  epoch 1/3  loss 1")
    assert lines[2].startswith("long  epoch 2/3  loss 0.5")
    assert lines[3:] == [f"stopped; go on with: nas resume {tmp_path / 'run'}"]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_shown(
    tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search = start(config(tmp_path / "run"))
    search.store.close()
    capsys.readouterr()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    status, now = console.status("starting"), [0.0]
    shown: list[str] = []
    monkeypatch.setattr(status, "update", shown.append)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    preparing = _Preparing(console, status)
    # Two epochs are remembered from before an interruption, and come at once; then each takes 40 s.
    for epoch, at in ((0, 0.0), (1, 10.0), (2, 10.001), (3, 50.001), (4, 90.001)):
        now[0] = at
        preparing.on_prepare(search, Progress("supernet", epoch, 20 if epoch else None, {"train_loss": 1.23}))
    lines = shown if terminal else capsys.readouterr().out.splitlines()
    assert lines[-2:] == [
        "supernet  epoch 3/20  train_loss 1.23  11:20 left",
        "supernet  epoch 4/20  train_loss 1.23  10:40 left",
    ]
    assert len(lines) == (5 if terminal else 4)


def test_what_was_prepared_is_part_of_the_copy(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'copy'}"
    run = Run.create(tmp_path / "run", {})
    folder = tmp_path / "run/prepare/evaluator"
    folder.mkdir(parents=True)
    (folder / "supernet.safetensors").write_bytes(b"weights")
    (folder / "checkpoint.pt").write_bytes(b"large")
    Mirror(run.path, Storage(url))
    run.close()
    restore(Storage(url), tmp_path / "again")
    assert (tmp_path / "again/prepare/evaluator/supernet.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "again/prepare/evaluator/checkpoint.pt").exists()

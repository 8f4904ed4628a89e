"""The run folder: what is written, torn, corrupted, locked, full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.errors import RunError
from nas.store import Run, find_runs
from nas.trial import Proposal, Trial


def filled(folder: Path) -> Run:
    """A run with a finished trial, an infeasible one, a duplicate, and one in flight."""
    run = Run.create(folder, {"config": {"seed": 1}})
    run.ask(Proposal({"a": 1}, {"parent": None}), key="k0", seed=5, budget=3)
    run.report(0, 1, {"accuracy": 0.5})
    run.retry(0, "worker killed")
    run.tell(Trial(0, {"a": 1}, "k0", "ok", {"accuracy": 0.7}, 3, 5, 1.5, note={"parent": None}))
    run.tell(Trial(1, {"a": 2}, "k1", "infeasible", {"flops": 9.0}, seed=6, violations={"flops": 0.5}))
    run.tell(Trial(2, {"a": 1}, "k0", "ok", {"accuracy": 0.7}, 3, 7, duplicate_of=0))
    run.ask(Proposal({"a": 3}), key="k3", seed=8, budget=None)
    run.close()
    return run


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written = filled(tmp_path / "run")
    read = Run.open(tmp_path / "run")
    assert read.trials == written.trials
    assert read.asked == written.asked
    assert read.curves == {0: [(1, {"accuracy": 0.5})]}
    assert read.retries == {0: 1}
    assert read.proposals == 4
    assert read.config["config"] == {"seed": 1}


def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    journal = tmp_path / "run/trials.jsonl"
    whole = journal.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        journal.write_bytes(whole[:-cut])
        assert Run.open(tmp_path / "run").proposals == 3
    run = Run.open(tmp_path / "run", write=True)
    run.ask(Proposal({"a": 3}), key="k3", seed=8, budget=None)
    run.close()
    assert journal.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    ["{}", "nonsense", '{"event":"told","number":99,"state":"ok"}', '{"event":"asked","number":0}',
     '{"event":"x","number":9}', "[1]", "\x00\xff"],
)  # fmt: skip
def test_a_corrupted_line_is_named_and_nothing_is_lost(tmp_path: Path, line: str) -> None:
    filled(tmp_path / "run")
    journal = tmp_path / "run/trials.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    broken = b"".join([*lines[:4], line.encode("latin-1") + b"\n", *lines[4:]])
    journal.write_bytes(broken)
    with pytest.raises(RunError, match=r"trials\.jsonl line 5.*keep its first 4 lines") as caught:
        Run.open(tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert journal.read_bytes() == broken


def test_only_one_process_writes(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    first = Run.open(tmp_path / "run", write=True)
    code = f"from pathlib import Path; from nas.store import Run; Run.open(Path({str(tmp_path / 'run')!r}), write=True)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "in use by another process" in other.stderr
    Run.open(tmp_path / "run")  # reading is always possible
    first.close()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "run")
    with pytest.raises(RunError, match="already holds a run; resume it"):
        Run.create(tmp_path / "run", {})


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        Run.open(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RunError, match="format 99, this version reads up to"):
        Run.open(tmp_path)


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "run")
    journal = tmp_path / "run/trials.jsonl"
    before = journal.read_bytes()
    run = Run.open(tmp_path / "run", write=True)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run.ask(Proposal({"a": 4}), key="k4", seed=8, budget=None)
    with pytest.raises(RunError, match=r"No space left on device; free some space, then `nas resume"):
        run.sync()
    monkeypatch.undo()
    assert journal.read_bytes() == before
    run.close()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied; choose a folder"):
        Run.create(tmp_path / "run", {})


def test_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run folder .*file"):
        Run.create(tmp_path / "file" / "run", {})


def test_runs_are_found(tmp_path: Path) -> None:
    assert find_runs(tmp_path / "none") == []
    filled(tmp_path / "a")
    (tmp_path / "not a run").mkdir()
    assert find_runs(tmp_path) == [tmp_path / "a"]


def test_numbers_that_are_not_finite_never_reach_the_journal(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(ValueError, match="JSON"):
        run.report(0, 1, {"accuracy": float("nan")})
    run.close()

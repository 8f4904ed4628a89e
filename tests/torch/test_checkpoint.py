from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nas.errors import EvaluationError, RunError
from nas.torch import checkpoint as module
from nas.torch.checkpoint import Checkpoint


def state() -> dict[str, Any]:
    return {"weights": torch.arange(4.0)}


def read(path: Path, **identity: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    Checkpoint(path, identity).load(found.update)
    return found


def test_round_trip_and_absence(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert read(path, seed=1) == {}
    Checkpoint(path, {"seed": 1}).save(1, state, now=True)
    assert torch.equal(read(path, seed=1)["weights"], torch.arange(4.0))
    with pytest.raises(EvaluationError, match="seed was 1 and is 2"):
        read(path, seed=2)
    Checkpoint(None, {}).save(1, state, now=True)  # keeps nothing, and does not mind


def test_what_was_loaded_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "c"
    Checkpoint(path, {}).save(3, state, now=True)
    again = Checkpoint(path, {})
    again.load(lambda state: None)
    before = path.stat().st_ino
    again.save(3, state, now=True)
    assert path.stat().st_ino == before
    again.save(4, state, now=True)
    assert path.stat().st_ino != before


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch takes one second of this clock, a writing two: one in 40 seconds is a share of 5 %."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    written: list[int] = []

    def dear_state() -> dict[str, Any]:
        nonlocal now
        now += 2
        written.append(epoch)
        return state()

    checkpoint = Checkpoint(tmp_path / "c", {})
    for epoch in range(1, 101):
        now += 1
        checkpoint.save(epoch, dear_state, now=epoch == 100)
    assert written == [1, 41, 81, 100]
    checkpoint.save(100, dear_state, now=True)
    assert written == [1, 41, 81, 100]  # it is there already


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    checkpoint = Checkpoint(path, {})
    checkpoint.save(1, state, now=True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        checkpoint.save(2, state, now=True)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]
    assert torch.equal(read(path)["weights"], torch.arange(4.0))


def test_what_an_earlier_version_did_not_know_is_the_default(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "c", {"seed": 1}).save(1, state, now=True)
    for value, is_refused in ((0.0, False), (0.5, True)):
        now = Checkpoint(tmp_path / "c", {"seed": 1, "hue": value}, {"hue": 0.0})
        if is_refused:
            with pytest.raises(EvaluationError, match=r"hue was 0\.0 and is 0\.5"):
                now.load(lambda _: None)
        else:
            now.load(lambda _: None)


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No such file or directory"):
        Checkpoint(tmp_path / "absent" / "c", {}).save(1, state, now=True)


def test_reading_runs_no_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write({"identity": {}, "epochs": 1, "state": Payload()}, tmp_path / "c")
        with pytest.raises(EvaluationError, match="not a checkpoint"):
            read(tmp_path / "c")
    assert not (tmp_path / "ran").exists()

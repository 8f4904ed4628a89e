"""A search that is killed at random moments and resumed equals one that was not: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nas.export.weights import read
from nas.store import Run

KILLS = 25
TRIALS = 40


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nas", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])}


def new(folder: Path) -> list[str]:
    return command(
        "search", "--space=toys:toy_space", "--evaluator=toys:Toy", "--strategy=evolution", f"--trials={TRIALS}",
        "--set=strategy.population=10", "--set=evaluator.delay=0.004", f"--out={folder}",
    )  # fmt: skip


def comparable(folder: Path) -> list[dict[str, object]]:
    return [{**vars(trial), "seconds": 0, "elapsed": 0} for trial in Run.open(folder).trials]


def test_killed_25_times_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(new(whole), env=environment(), check=True, capture_output=True)
    length = (whole / "trials.jsonl").stat().st_size

    rng = np.random.default_rng(0)
    journal = cut / "trials.jsonl"
    killed = 0
    finished: set[int] = set()
    for at in np.sort(rng.integers(1, length, KILLS)):
        start = command("resume", str(cut)) if (cut / "run.json").exists() else new(cut)
        process = subprocess.Popen(start, env=environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < at):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        told = {trial.number for trial in Run.open(cut).trials}
        assert finished <= told, "a finished trial was lost"
        finished = told
    subprocess.run(command("resume", str(cut)), env=environment(), check=True, capture_output=True)

    assert killed == KILLS
    assert comparable(cut) == comparable(whole)
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    for kind in ("asked", "told"):
        numbers = [event["number"] for event in events if event["event"] == kind]
        assert len(numbers) == len(set(numbers)), f"a trial was {kind} twice"
    curves = [(event["number"], event["epoch"]) for event in events if event["event"] == "report"]
    assert len(curves) == len(set(curves))


def wait_for(journal: Path, event: str, process: subprocess.Popen[str], times: int = 1) -> None:
    """Until the journal holds an event `times` times."""
    while process.poll() is None and (not journal.exists() or journal.read_text().count(f'"{event}"') < times):
        time.sleep(0.002)
    assert process.poll() is None, "the search ended before it could be interrupted"


def test_real_training_killed_in_mid_trial_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    def start(folder: Path) -> list[str]:
        quick = ["--trials=3", "--set=evaluator.epochs=3", "--set=data.limit=600", "--set=strategy.population=2"]
        return command("search", *quick, f"--out={folder}")

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run(start(whole), env=environment(), check=True, capture_output=True)
    process = subprocess.Popen(start(cut), env=environment(), stdout=subprocess.DEVNULL, text=True)
    wait_for(cut / "trials.jsonl", "report", process, times=4)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(Run.open(cut).trials) == 1
    subprocess.run(command("resume", str(cut)), env=environment(), check=True, capture_output=True)
    assert comparable(cut) == comparable(whole)
    names = sorted(path.name for path in (whole / "weights").iterdir())
    assert names == sorted(path.name for path in (cut / "weights").iterdir())
    for name in names:
        a, b = read(whole / "weights" / name)[0], read(cut / "weights" / name)[0]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_ctrl_c_once_finishes_the_trial_and_twice_stops_at_once(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        arguments = [*new(folder), "--set=evaluator.delay=0.5"]
        return subprocess.Popen(
            arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip

    once = start(tmp_path / "once")
    wait_for(tmp_path / "once/trials.jsonl", "asked", once)
    once.send_signal(signal.SIGINT)
    out, _ = once.communicate()
    assert once.returncode == 0
    assert "ended early: interrupted; go on with: nas resume" in out
    run = Run.open(tmp_path / "once")
    assert len(run.trials) == 1
    assert not run.asked

    twice = start(tmp_path / "twice")
    wait_for(tmp_path / "twice/trials.jsonl", "asked", twice)
    twice.send_signal(signal.SIGINT)
    time.sleep(0.2)
    twice.send_signal(signal.SIGINT)
    out, err = twice.communicate()
    assert twice.returncode == 130
    assert "go on with: nas resume" in out
    assert "Traceback" not in err
    assert len(Run.open(tmp_path / "twice").asked) == 1

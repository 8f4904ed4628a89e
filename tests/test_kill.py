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
    return [{**vars(trial), "seconds": 0} for trial in Run.open(folder).trials]


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

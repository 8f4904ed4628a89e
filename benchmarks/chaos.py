"""A search to which everything happens: workers killed every few seconds, the driver killed again and again.

    python benchmarks/chaos.py [--trials 300] [--workers 2] [--every 3] [--drivers 5] [--seed 0]

`nas search --workers 2` on evaluations of 0.3 s (`toys:Toy` of the tests: three epochs of waiting, a checkpoint after
each). A worker is sent SIGKILL every few seconds (at random, 3 on average), whatever it is at, though not before the
search has finished as many trials as it has workers since the last time. The driver is sent SIGKILL at five random
moments, and `nas resume` follows at once, while the dead driver's workers may still be there. Then the journal is read
without mercy. Ends with 1 unless every line of the verdict is `yes`. Two to four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
EPOCHS, PATIENCE = 3, 90.0
"""Epochs of an evaluation; seconds without a finished trial after which the run counts as hung."""

ENDING = 90.0
"""Seconds in which everything must have ended: Ray's agents, which compute nothing, wait 60 for a dead head node."""

MARK, WORKER = "NAS_CHAOS", "ray::Worker"


class Chaos:
    """A run and all who work on it, told apart from everything else by a variable in their environment."""

    def __init__(self, folder: Path, workers: int, trials: int, seed: int) -> None:
        self.run, self.temporary = folder / "run", folder / "t"
        self.temporary.mkdir()
        self.random = random.Random(seed)
        self.workers, self.sessions, self.workers_killed = workers, 0, 0
        self.dead: dict[int, float] = {}  # killed sessions of which something still runs, and when they were killed
        self.workers_gone = self.gone = 0.0  # seconds that workers, and anything, of a killed session ran on
        self.said: list[str] = []  # what the command line wrote to its standard error
        cpus = min(1.0, len(os.sched_getaffinity(0)) / workers)
        self._search = [
            "search", "--space=toys:toy_space", "--evaluator=toys:Toy", "--set=evaluator.delay=0.1",
            f"--workers={workers}", f"--cpus-per-trial={cpus:g}", f"--trials={trials}", f"--seed={seed}",
            f"--out={self.run}",
        ]  # fmt: skip

    # -- processes ---------------------------------------------------------------------------------------------

    def start(self) -> subprocess.Popen[str]:
        """`nas search`, or `nas resume` if there is something to resume."""
        arguments = ["resume", str(self.run)] if self.sessions else self._search
        self.sessions += 1
        path = os.pathsep.join([str(TESTS), str(ROOT)])
        env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(self.temporary), MARK: self._mark(self.sessions)}
        with (self.run.parent / "said").open("w") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "nas", *arguments], env=env, text=True, stdout=subprocess.DEVNULL, stderr=said
            )

    def heard(self) -> str:
        """What the last command wrote to its standard error."""
        return (self.run.parent / "said").read_text()

    def _mark(self, session: int) -> str:
        return f"{os.getpid()}-{session}."

    def processes(self, session: int | None = None) -> Iterator[tuple[int, str]]:
        """Id and title of each process of one session, or of all."""
        mark = f"{MARK}={os.getpid()}-" if session is None else f"{MARK}={self._mark(session)}"
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if mark.encode() in (entry / "environ").read_bytes():
                        yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                except OSError:  # it has ended meanwhile, or is not ours
                    continue

    def kill_a_worker(self) -> bool:
        """Whether there was one."""
        workers = [pid for pid, title in self.processes(self.sessions) if title.startswith(WORKER)]
        if workers:
            os.kill(self.random.choice(workers), signal.SIGKILL)
            self.workers_killed += 1
        return bool(workers)

    def watch(self) -> None:
        """See whether what killed drivers had started has ended."""
        for session, since in list(self.dead.items()):
            titles = [title for _, title in self.processes(session)]
            seconds = time.monotonic() - since
            self.gone = max(self.gone, seconds)
            if any(title.startswith(WORKER) for title in titles):
                self.workers_gone = max(self.workers_gone, seconds)
            if not titles:
                del self.dead[session]

    # -- the journal -------------------------------------------------------------------------------------------

    def journal(self) -> bytes:
        """Its whole lines."""
        path = self.run / "trials.jsonl"
        data = path.read_bytes() if path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def evaluated(self) -> int:
        lines = (line for line in self.journal().splitlines() if line.startswith(b'{"event":"told"'))
        return sum(b'"duplicate_of"' not in line and b'"infeasible"' not in line for line in lines)


def torment(chaos: Chaos, trials: int, every: float, drivers: int) -> list[bytes]:
    """Run the search to its end; the journals as the killed drivers left them. Raises RuntimeError if it hangs."""
    moments = sorted(chaos.random.sample(range(max(1, trials // 20), trials - trials // 20), drivers))
    left: list[bytes] = []
    driver, told, at = chaos.start(), 0, time.monotonic()
    begun, next_kill, before = at, at + every, 0  # `before`: trials at the last kill
    while driver.poll() is None:
        time.sleep(0.05)
        now, count = time.monotonic(), chaos.evaluated()
        if count > told:
            told, at = count, now
        if now - at > PATIENCE:
            raise RuntimeError(f"no trial was finished in {PATIENCE:g} s: {chaos.heard()}")
        if moments and told >= moments[0]:
            time.sleep(chaos.random.uniform(0, 0.3))  # anywhere in an evaluation, not just after one
            driver.kill()
            driver.wait()
            moments.pop(0)
            left.append(chaos.journal())
            chaos.dead[chaos.sessions] = time.monotonic()
            chaos.said.append(chaos.heard())
            when = f"  {time.monotonic() - begun:4.0f} s: driver {len(left)} killed"
            print(f"{when} at {told} trials, {chaos.workers_killed} workers before", flush=True)
            driver, at = chaos.start(), time.monotonic()
        if told >= before + chaos.workers and now >= next_kill and chaos.kill_a_worker():
            next_kill, before = now + chaos.random.uniform(0.4, 1.6) * every, told
        chaos.watch()
    chaos.said.append(chaos.heard())
    if driver.returncode:
        raise RuntimeError(f"`nas resume` ended with {driver.returncode}: {chaos.heard()}")
    return left


def judge(chaos: Chaos, trials: int, drivers: int, left: Sequence[bytes]) -> dict[str, bool]:
    """What must be so in the end."""
    sys.path.insert(0, str(TESTS))
    from toys import toy_space

    from nas.search import RETRIES
    from nas.store import Run
    from nas.testing import toy_metrics

    journal = chaos.journal()
    events = [json.loads(line) for line in journal.splitlines()]
    asked, told = ([e["number"] for e in events if e["event"] == kind] for kind in ("asked", "told"))
    run = Run.open(chaos.run)
    evaluated = [trial for trial in run.trials if trial.evaluated]
    accidents = {number: count + 1 for number, count in run.retries.items()}
    failed = [trial for trial in evaluated if not trial.ok]
    space = toy_space()

    def right(number: int, genotype: object, seed: int, accuracy: float) -> bool:
        expected = toy_metrics(space.architecture(genotype))["accuracy"] + seed % 1000 / 1e6  # type: ignore[arg-type]
        epochs = [epoch for epoch, _ in run.curves[number]]
        return accuracy == expected and epochs == list(range(1, EPOCHS + 1))

    states = Counter("duplicate" if trial.duplicate_of is not None else trial.state for trial in run.trials)
    print(f"trials: {len(run.trials)} ({', '.join(f'{count} {state}' for state, count in states.items())})")
    print(
        f"killed: {len(left)} drivers, {chaos.workers_killed} workers in between; jobs tried again for that:", end=" "
    )
    print(f"{sum(run.retries.values())} times, {sum(a > 1 for a in run.retries.values())} of them twice")
    print(f"a killed driver's workers were gone within {chaos.workers_gone:.1f} s, all else within {chaos.gone:.1f} s")
    return {
        f"exactly {trials} trials evaluated": len(evaluated) == trials,
        "every asked trial told, none twice": len(set(told)) == len(told) and set(asked) <= set(told),
        "none asked twice, numbers without a gap": len(set(asked)) == len(asked)
        and sorted(told) == [*range(len(told))],
        "no network evaluated twice": len({trial.key for trial in evaluated}) == len(evaluated),
        "what was on record when a driver was killed is unchanged": all(journal.startswith(before) for before in left),
        "results and learning curves as without accidents": all(
            right(t.number, t.genotype, t.seed, t.metrics["accuracy"]) for t in evaluated if t.ok
        ),
        f"failed only what lost {RETRIES + 1} workers": all(
            accidents.get(trial.number) == RETRIES + 1 and f"({RETRIES + 1} times)" in (trial.error or "")
            for trial in failed
        ),
        f"{drivers} drivers and at least {4 * drivers} workers were killed": len(left) == drivers
        and chaos.workers_killed >= 4 * drivers,
        "nothing left running": not any(chaos.processes()),
        "none of Ray's temporary files left": not any(chaos.temporary.iterdir()),
        "not a word on standard error": not any(chaos.said),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=3.0, help="mean seconds between two killed workers")
    parser.add_argument("--drivers", type=int, default=5, help="how often the driver is killed")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), given.workers, given.trials, given.seed)
        try:
            left = torment(chaos, given.trials, given.every, given.drivers)
            print(f"{given.trials} trials, {given.workers} workers: {time.monotonic() - started:.0f} s")
            end = time.monotonic() + ENDING
            while any(chaos.processes()) and time.monotonic() < end:
                time.sleep(0.1)
                chaos.watch()
            verdict = judge(chaos, given.trials, given.drivers, left)
        except RuntimeError as error:
            verdict = {str(error): False}
        finally:
            for pid, title in list(chaos.processes()):
                print(f"  still running: {pid} {title[:80]}")
                os.kill(pid, signal.SIGKILL)
    for claim, holds in verdict.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return 0 if all(verdict.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

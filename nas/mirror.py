"""A copy of a run folder at a storage, from which the run can go on where the folder is not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from nas.errors import RunError
from nas.storage import Storage

EVERY = 5.0
"""Seconds between two copies of the journal; more where a copy takes longer than a twentieth of it."""

JOURNAL = "trials.jsonl"
WEIGHTS = "weights.safetensors"
EXPLANATION = "error.txt"


class Mirror:
    """Copies the run folder, and does there what `nas.keep` does here: the front's weights stay, and explanations.

    A thread of its own works; the search never waits. What fails is tried again until `close`. The copy is that of a
    moment that was: the journal is copied before the files of the trials that it calls told are touched.

    Args:
        path: the run folder.
        storage: where the copy is. The workers put the files of their trials there themselves.

    Raises RunError if the copy is of another run, or has more than the folder: then the run went on elsewhere.
    """

    def __init__(self, path: Path, storage: Storage) -> None:
        self._path, self._storage = path, storage
        self._told: list[int] = []  # trials whose files are to be looked through
        self._front: Collection[int] = ()
        self._kept: set[int] = set()  # trials whose weights are kept there
        self._copied: dict[str, tuple[int, int]] = {}  # name to time (ns) and size of the file that was last copied
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._check()
        self._copy()

    def everything(self, asked: Collection[int], proposals: int, front: Collection[int]) -> None:
        """Look through all that is there but the files of trials that are still to be told; begin to copy.

        What is numbered from `proposals` on goes at once: its proposal was lost, and the next may be another network.
        """
        trials = set()
        for name in self._storage.files("trials"):
            number = name.split("/")[1]
            if number.isdecimal() and int(number) < proposals:
                trials.add(int(number))
            else:
                self._storage.remove(name)
        kept = {name.split("/")[1].removesuffix(".safetensors") for name in self._storage.files("weights")}
        self._kept = {int(name) for name in kept if name.isdecimal()}
        with self._lock:
            self._told += sorted(trials - set(asked))
            self._front = front
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def after(self, number: int, front: Collection[int]) -> None:
        """Trial `number` was told, and now these are the front."""
        with self._lock:
            self._told.append(number)
            self._front = front

    def publish(self) -> None:
        """Copy what was written after the end: the front as a file and as a picture."""
        try:
            self._copy()
        except (RunError, OSError) as error:
            raise self._behind(error) from error

    def close(self) -> None:
        """Copy a last time. Raises RunError if that fails, unless there is an error on its way already."""
        if self._thread is None:
            return
        failed = sys.exception() is not None
        self._end.set()
        self._thread.join()
        self._thread = None
        try:
            self._beat()
        except (RunError, OSError) as error:
            if not failed:
                raise self._behind(error) from error

    def discard(self) -> None:
        """Take away the copy of a folder in which nothing has happened yet."""
        with suppress(RunError):
            for name in self._copied:
                self._storage.remove(name)

    def _behind(self, error: Exception) -> RunError:
        return RunError(f"{error}; run folder {self._path} is whole: `nas resume {self._path}` copies the rest")

    def _check(self) -> None:
        there, here = self._storage.read(JOURNAL), self._journal()
        if there is None or here.startswith(there):
            return
        url = self._storage.url
        if not here:
            raise RunError(f"{url} already holds a run; resume it with `nas resume {url}` or choose another --storage")
        raise RunError(
            f"{url} does not hold what {self._path} holds: the run went on elsewhere; "
            f"go on with it by `nas resume {url} --out` and a new folder"
        )

    def _journal(self) -> bytes:
        """Its whole lines."""
        data = (self._path / JOURNAL).read_bytes()
        return data[: data.rfind(b"\n") + 1]

    def _run(self) -> None:
        pause = EVERY
        while not self._end.wait(pause):
            started = time.monotonic()
            with suppress(RunError, OSError):  # tried again with the next, and raised by the last
                self._beat()
            pause = max(EVERY, 20 * (time.monotonic() - started))

    def _beat(self) -> None:
        with self._lock:
            told, self._told = self._told, []
        try:
            self._copy()
            while told:
                self._tidy(told[0])
                del told[0]
            for number in self._kept - set(self._front):
                self._storage.remove(f"weights/{number:05d}.safetensors")
                self._weights(number).unlink(missing_ok=True)
                self._kept.discard(number)
        finally:
            with self._lock:
                self._told = told + self._told

    def _copy(self) -> None:
        """The files of the run folder that have changed, the journal's whole lines first; and what was prepared."""
        files = sorted(self._path.iterdir(), key=lambda file: file.name != JOURNAL)
        for file in (*files, *self._path.glob("prepare/*/*.safetensors")):
            if not file.is_file() or file.name.startswith("."):
                continue
            name = file.relative_to(self._path).as_posix()
            facts = file.stat()
            state = facts.st_mtime_ns, facts.st_size
            if self._copied.get(name) != state:
                self._storage.write(name, self._journal() if name == JOURNAL else file.read_bytes())
                self._copied[name] = state

    def _tidy(self, number: int) -> None:
        """Keep a told trial's weights if they are the front's, here and there, and what explains an error."""
        folder = f"trials/{number:05d}"
        for name in self._storage.files(folder):
            last = name.removeprefix(f"{folder}/")
            if last == EXPLANATION:
                self._storage.get(name, self._path / name)
            elif last == WEIGHTS and number in self._front:
                self._storage.get(name, self._weights(number))
                self._storage.move(name, f"weights/{number:05d}.safetensors")
                self._kept.add(number)
            else:
                self._storage.remove(name)
                if last == WEIGHTS:
                    self._weights(number).unlink(missing_ok=True)

    def _weights(self, number: int) -> Path:
        return self._path / "weights" / f"{number:05d}.safetensors"


def restore(storage: Storage, path: Path) -> None:
    """Fetch a run folder, but for the files of trials that are not told: their workers fetch them.

    Raises RunError if no run is there, or `path` has one.
    """
    names = storage.files()
    if "run.json" not in names:
        raise RunError(f"{storage.url} holds no run (no run.json); expected what `nas search --storage` was given")
    if (path / "run.json").exists():
        raise RunError(f"{path} already holds a run: go on with `nas resume {path}`, or choose another --out")
    for name in sorted(names, key=lambda name: name == "run.json"):  # last: until then it is no run folder
        if not name.startswith("trials/") or name.endswith(f"/{EXPLANATION}"):
            storage.get(name, path / name)

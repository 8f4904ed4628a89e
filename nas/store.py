"""The run folder: configuration, the journal, weights. Readable without the process that wrote it.

The journal `trials.jsonl` has one JSON object per line, only ever appended:

- `asked`: number, genotype, note, key, seed, budget; on disk before the evaluation starts.
- `report`: number, epoch, metrics.
- `retry`: number, reason; the evaluation was started again on another worker.
- `told`: number, state, metrics, budget, seconds, worker, error; and genotype, key, note, seed, violations,
  duplicate_of for a proposal that was never started.

A last line without its newline was cut by a crash and is dropped; anything else that is wrong is an error.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import RunError
from nas.trial import Proposal, Trial

if TYPE_CHECKING:
    from nas.mirror import Mirror

FORMAT = 1


@dataclass(frozen=True)
class Asked:
    """A proposal that was sent to evaluation: its trial number, structural key, seed and budget."""

    number: int
    proposal: Proposal
    key: str
    seed: int
    budget: float | None


class Run:
    """A run folder. Open one with `Run.create` or `Run.open`; only one process at a time may write to it.

    Attributes:
        path: the folder.
        config: the resolved configuration that was written at creation (`run.json`).
        asked: proposals sent to evaluation and not told yet, by number.
        trials: told trials, in the order of telling.
        curves: number to (epoch, metrics) pairs reported so far.
        proposals: how many proposals there were in all.
        retries: number to how often it was started again.
        mirror: keeps a copy of the folder elsewhere, and the files of trials; None without one.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = config
        self.asked: dict[int, Asked] = {}
        self.trials: list[Trial] = []
        self.curves: dict[int, list[tuple[float, Mapping[str, float]]]] = {}
        self.retries: dict[int, int] = {}
        self.proposals = 0
        self.mirror: Mirror | None = None
        self._file: FileIO | None = None
        self._synced = 0  # length of the journal that is certainly on disk
        self._unsynced = False

    # -- opening -----------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> Run:
        """Make a new run folder and open it for writing. Raises RunError if it holds a run already."""
        run = cls(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run._lock()
            if (path / "run.json").exists() or (path / "trials.jsonl").stat().st_size:
                run.close()
                raise RunError(
                    f"{path} already holds a run; resume it with `nas resume {path}` or choose another --out"
                )
            run.configure(config)
        except OSError as error:
            run.close()
            raise RunError(f"run folder {path}: {error.strerror}; choose one that can be written with --out") from None
        return run

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> Run:
        """Open an existing run folder and read its journal. Raises RunError."""
        try:
            config = json.loads((path / "run.json").read_text())
        except FileNotFoundError:
            raise RunError(f"{path} is not a run folder (no run.json); `nas list` shows the runs there are") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{path / 'run.json'} cannot be read: {error}") from None
        version = config.get("format") if isinstance(config, dict) else None
        if not isinstance(version, int) or version > FORMAT:
            raise RunError(f"{path / 'run.json'}: format {version!r}, this version reads up to {FORMAT}; upgrade nas")
        run = cls(path, config)
        if write:
            run._lock()
        run._read()
        return run

    def _lock(self) -> None:
        """Open the journal for appending, cut a torn last line, and keep other processes out."""
        try:
            file = (self.path / "trials.jsonl").open("a+b", buffering=0)
        except OSError as error:
            raise RunError(f"{self.path / 'trials.jsonl'} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RunError(f"run {self.path} is in use by another process; wait, or choose another --out") from None
        file.seek(0)
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)
        self._synced = file.seek(0, os.SEEK_END)
        self._file = file

    def close(self) -> None:
        """Let go of the journal."""
        if self._file is not None:
            try:
                self.sync()
            finally:
                self._file.close()
                self._file = None
        if self.mirror is not None:
            self.mirror.close()

    def publish(self) -> None:
        """Have what was written into the folder since it was closed in the copy elsewhere too, if there is one."""
        if self.mirror is not None:
            self.mirror.publish()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write `run.json` anew."""
        self.config = {**config, "format": FORMAT}
        write_atomically(self.path / "run.json", json.dumps(self.config, indent=2) + "\n")

    def discard(self) -> None:
        """Close, and take away a folder in which nothing has happened yet."""
        self.close()
        prepare = self.path / "prepare"
        found = list(prepare.rglob("*"))
        if self.proposals == 0 and all(path.is_dir() for path in found):  # a long job has left nothing to go on from
            if self.mirror is not None:
                self.mirror.discard()
            for name in ("run.json", "trials.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            for folder in (*sorted(found, reverse=True), prepare, self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    # -- writing -----------------------------------------------------------------------------------------------

    def ask(self, proposal: Proposal, *, key: str, seed: int, budget: float | None) -> Asked:
        """Record a proposal to be evaluated; `sync` before it is."""
        asked = Asked(self.proposals, proposal, key, seed, budget)
        event = {"event": "asked", "number": asked.number, "genotype": proposal.genotype, "note": proposal.note,
                 "key": key, "seed": seed, "budget": budget}  # fmt: skip
        self._append(event)
        self._apply(event)
        return asked

    def report(self, number: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Record metrics of a running trial; an epoch that was recorded before an interruption is not repeated."""
        if any(known == epoch for known, _ in self.curves.get(number, ())):
            return
        event = {"event": "report", "number": number, "epoch": epoch, "metrics": dict(metrics)}
        self._append(event)
        self._apply(event)

    def retry(self, number: int, reason: str) -> None:
        """Record that a trial is started again after its worker was lost."""
        event = {"event": "retry", "number": number, "reason": reason}
        self._append(event)
        self._apply(event)

    def tell(self, trial: Trial) -> None:
        """Record a finished proposal. Written at once: only the machine's own end can lose it before `sync`."""
        event: dict[str, Any] = {"event": "told", "number": trial.number, "state": trial.state}
        left_out = {"number", "state"} | ({"genotype", "key", "note", "seed"} if trial.number in self.asked else set())
        for field in fields(trial):
            value = getattr(trial, field.name)
            if field.name not in left_out and value not in (None, {}):
                event[field.name] = value
        self._append(event)
        self._apply(event)

    def sync(self) -> None:
        """Have all that was recorded on disk when this returns."""
        if self._file is not None and self._unsynced:
            with self._writing(self._synced):
                os.fsync(self._file.fileno())
            self._synced = self._file.seek(0, os.SEEK_END)
            self._unsynced = False

    def _append(self, event: Mapping[str, Any]) -> None:
        if self._file is None:
            raise RunError(f"run {self.path} is open for reading only")
        line = json.dumps(event, allow_nan=False, separators=(",", ":"), default=_plain).encode() + b"\n"
        with self._writing(self._file.seek(0, os.SEEK_END)):
            while line:  # the file is not buffered, so a full disk shows here and not when it is closed
                line = line[self._file.write(line) :]
        self._unsynced = True

    @contextmanager
    def _writing(self, at: int) -> Iterator[None]:
        """What cannot be written is taken back to length `at`, and one clear error."""
        assert self._file is not None
        try:
            yield
        except OSError as error:
            self._file.truncate(at)
            self._unsynced = False
            raise RunError(
                f"{self.path / 'trials.jsonl'}: {error.strerror}; free some space, then `nas resume {self.path}`"
            ) from None

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        for line, event in self.events():
            try:
                self._apply(event)
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"{self.path / 'trials.jsonl'} line {line}: {type(error).__name__} {error}; the journal is "
                    f"corrupted there: move the file aside, keep its first {line - 1} lines, and resume"
                ) from None

    def events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and event of each whole line. Raises RunError for a line that is not an event."""
        path = self.path / "trials.jsonl"
        try:
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}") from None
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or "event" not in event:
                    raise ValueError("no event")
            except ValueError:
                raise RunError(
                    f"{path} line {number} is not an event: {line[:40]!r}; the journal is corrupted there: move the "
                    f"file aside, keep its first {number - 1} lines, and resume"
                ) from None
            yield number, event

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind, number = event["event"], event["number"]
        if kind == "asked":
            if number != self.proposals:
                raise ValueError(f"proposal {number} follows {self.proposals - 1}")
            proposal = Proposal(event["genotype"], event["note"])
            self.asked[number] = Asked(number, proposal, event["key"], event["seed"], event["budget"])
            self.proposals = number + 1
        elif kind == "report":
            self.curves.setdefault(number, []).append((event["epoch"], event["metrics"]))
        elif kind == "retry":
            self.retries[number] = self.retries.get(number, 0) + 1
        elif kind == "told":
            values = {name: value for name, value in event.items() if name != "event"}
            asked = self.asked.pop(number, None)
            if asked is not None:
                values |= {"genotype": asked.proposal.genotype, "note": asked.proposal.note, "key": asked.key,
                           "seed": asked.seed}  # fmt: skip
            elif number != self.proposals:
                raise ValueError(f"trial {number} was never asked, or told twice")
            else:
                self.proposals = number + 1
            self.trials.append(Trial(**values))
        else:
            raise ValueError(f"unknown event {kind!r}")

    # -- files of trials ---------------------------------------------------------------------------------------

    def workdir(self, number: int) -> Path:
        """The folder in which a trial may leave checkpoints while it runs."""
        return self.path / "trials" / f"{number:05d}"

    def weights(self, number: int) -> Path:
        """Where the trained weights of a front trial are kept (safetensors)."""
        return self.path / "weights" / f"{number:05d}.safetensors"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing: other readers never see half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch, and mappings that are no dictionaries, as JSON knows them."""
    return value.item() if hasattr(value, "item") else dict(value)


def find_runs(folder: Path) -> Sequence[Path]:
    """Run folders inside `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if (path / "run.json").is_file()]
    return sorted(found, key=lambda path: (path / "run.json").stat().st_mtime)

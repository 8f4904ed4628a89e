"""Files of a run at a URL: object storage, or anything else that fsspec knows."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, RunError
from nas.executors.base import Job, OnReport
from nas.executors.cluster import prune, scratch

EVERY = 30.0
"""Seconds after which the files of a running trial are saved again; at rungs and at the end they are anyhow."""


@dataclass(frozen=True)
class Storage:
    """A folder at a URL such as `s3://bucket/run`. Names of files in it are relative, with slashes.

    A file is there whole or not at all. Raises ConfigError for a URL of a kind that this machine cannot reach, and
    RunError for whatever goes wrong there.
    """

    url: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system and the folder's path in it."""
        import fsspec  # type: ignore[import-untyped]

        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # every file system raises its own, and so do the packages that it needs
            raise ConfigError(f"storage {self.url}: {_one_line(error)}") from None
        return system, path.rstrip("/")

    def files(self, under: str = "") -> list[str]:
        """Names of the files below a folder, none if there is no such folder."""
        with self._errors("listed"):
            system, root = self._place
            system.invalidate_cache()
            found = system.find(f"{root}/{under}".rstrip("/"))
            return [name for path in found if not (name := path[len(root) + 1 :]).rpartition("/")[2].startswith(".")]

    def read(self, name: str) -> bytes | None:
        """A file's content, None if there is no such file."""
        with self._errors("read"):
            system, root = self._place
            try:
                content: bytes = system.cat_file(f"{root}/{name}")
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Put a file there."""
        with self._new(name) as (system, path):
            system.pipe_file(path, content)

    def put(self, file: Path, name: str) -> None:
        """Copy a file there."""
        with self._new(name) as (system, path):
            system.put_file(str(file), path)

    def get(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        with self._errors("read"):
            system, root = self._place
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{os.getpid()}")
            system.get_file(f"{root}/{name}", str(temporary))
            temporary.replace(file)

    def move(self, name: str, target: str) -> None:
        """Give a file another name."""
        with self._errors("written"):
            system, root = self._place
            if not system.async_impl:
                system.makedirs(f"{root}/{target}".rpartition("/")[0], exist_ok=True)
            system.mv(f"{root}/{name}", f"{root}/{target}")
            self._leave(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._errors("written"):
            system, root = self._place
            with suppress(FileNotFoundError):
                system.rm_file(f"{root}/{name}")
            self._leave(name)

    def _leave(self, name: str) -> None:
        """Remove the folder of a file that is gone, if it was the last; object storage has no folders."""
        system, root = self._place
        if not system.async_impl:
            with suppress(OSError):
                system.rmdir(f"{root}/{name}".rpartition("/")[0])

    @contextmanager
    def _new(self, name: str) -> Iterator[tuple[Any, str]]:
        """Where to write a file: object storage shows it when it is whole, elsewhere it is renamed then."""
        with self._errors("written"):
            system, root = self._place
            path = f"{root}/{name}"
            if system.async_impl:  # as all of fsspec's object stores are
                yield system, path
                return
            folder, _, last = path.rpartition("/")
            temporary = f"{folder}/.{last}.{os.getpid()}"
            system.makedirs(folder, exist_ok=True)
            yield system, temporary
            system.mv(temporary, path)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (ConfigError, RunError):
            raise
        except Exception as error:  # every file system has errors of its own
            raise RunError(f"storage {self.url} cannot be {what}: {_one_line(error)}") from error


@contextmanager
def staged(storage: Storage | None, job: Job, on_report: OnReport) -> Iterator[tuple[Job, OnReport]]:
    """A job in a folder of this machine's own, whose files come from the storage and go there.

    They are saved at rungs, every `EVERY` seconds, and at the end. Without a storage the job stays as it is.
    Raises RunError, also out of the report.
    """
    if storage is None:
        yield job, on_report
        return
    prune()
    root = scratch()
    trial = _Folder(storage, f"trials/{job.workdir.name}", root / job.workdir.name)
    saved, before = time.monotonic(), 0.0

    def report(of: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        nonlocal saved, before
        at_rung = any(before < rung <= epoch for rung in job.rungs)
        before = epoch
        if at_rung or time.monotonic() - saved >= EVERY:
            trial.push()
            saved = time.monotonic()
        on_report(of, epoch, metrics)

    try:
        trial.pull()
        yield replace(job, workdir=trial.folder), report
        trial.push()
    finally:
        shutil.rmtree(root, ignore_errors=True)


class _Folder:
    """A trial's folder, here and there."""

    def __init__(self, storage: Storage, name: str, folder: Path) -> None:
        self.folder, self._storage, self._name = folder, storage, name
        self._there: dict[str, tuple[int, int]] = {}  # name to time (ns) and size of the file that was last saved

    def pull(self) -> None:
        """Fetch what an earlier attempt has left."""
        for name in self._storage.files(self._name):
            file = self.folder / name.removeprefix(f"{self._name}/")
            self._storage.get(name, file)
        self._there = self._here()

    def push(self) -> None:
        """Save what is new, and remove there what was removed here."""
        here = self._here()
        for name, state in here.items():
            if self._there.get(name) != state:
                self._storage.put(self.folder / name, f"{self._name}/{name}")
        for name in self._there.keys() - here.keys():
            self._storage.remove(f"{self._name}/{name}")
        self._there = here

    def _here(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                facts = path.stat()
                found[path.relative_to(self.folder).as_posix()] = (facts.st_mtime_ns, facts.st_size)
        return found


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__

"""A connection to Ray: processes of our own on this machine, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from nas.errors import ConfigError, RunError
from nas.executors.base import Hear

PREFIX = "nas-ray-"
ANSWER = 5.0
"""Seconds in which a cluster's address must answer; Ray itself would try for minutes."""

PAUSE = 0.2
"""Seconds for which Ray is waited for at most: only then can Ctrl-C be heard."""

LONGEST = 40
"""Characters of a temporary folder's path; Ray's socket names below it must stay under 108."""


class Cluster:
    """Where Ray runs the workers. `open` connects or starts it, `close` leaves or ends it.

    Args:
        workers: how many are wanted.
        cpus: of each worker; None shares out this machine, and is 1 on a cluster.
        gpus: of each worker; a fraction packs several on one GPU.
        address: `host:port` of a cluster, or `auto` to find it; None starts Ray on this machine.
        runtime_env: Ray's description of what workers need: packages, code, variables.
        patience: seconds to wait for a cluster to grow until it holds one worker.
        verbose: show Ray's own log.
    """

    def __init__(
        self, *, workers: int = 1, cpus: float | None = None, gpus: float = 0.0, address: str | None = None,
        runtime_env: Mapping[str, Any] | None = None, patience: float = 0.0, verbose: bool = False,
    ) -> None:  # fmt: skip
        self.workers, self.gpus, self.address, self.verbose = workers, gpus, address, verbose
        self.cpus = cpus if cpus is not None else 1.0 if address else float(max(1, cores() // workers))
        self._runtime_env, self._patience = dict(runtime_env or {}), patience
        self._folder: Path | None = None
        self._ours = False

    @property
    def threads(self) -> int:
        """Of torch in each worker: its CPUs."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> Mapping[str, float]:
        """What Ray is asked for per worker."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}

    def open(self) -> None:
        """Connect, unless this process is connected already.

        Raises ConfigError where nothing answers, or where no worker could ever be placed: Ray would wait in silence.
        """
        import ray

        if not ray.is_initialized():
            self._connect()
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End what `open` started."""
        import ray

        if self._ours:
            ray.shutdown()
            self._ours = False
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def run_once(
        self, function: Callable[..., Any], resources: Mapping[str, float], hear: Hear | None = None
    ) -> Future[Any]:
        """Call a function on some machine, with `CPU` and `GPU` of `resources`; waits for it, and hears it meanwhile.

        The future has a RunError if that machine, or the process, is lost.
        """
        import ray

        amounts = {"num_cpus": resources.get("CPU", self.cpus), "num_gpus": resources.get("GPU", 0)}
        task = ray.remote(_call).options(max_retries=0, num_returns="streaming", **amounts)
        packed = ray.cloudpickle.dumps(function)  # type: ignore[no-untyped-call]
        stream: Any = task.remote(packed, Place.here(amounts["num_gpus"]), hear is not None)
        future: Future[Any] = Future()
        try:
            while not future.done():
                ready, _ = ray.wait([stream], timeout=PAUSE)
                said = ray.get(next(stream)) if ready else None
                if isinstance(said, bytes):
                    future.set_result(ray.cloudpickle.loads(said))
                elif said is not None and hear is not None:
                    hear(*said)
        except ray.exceptions.RayTaskError as error:  # many pages; what was raised there is one line
            future.set_exception(error.cause)
        except ray.exceptions.RayError as error:
            future.set_exception(
                RunError(f"the worker of the long job before the first trial was lost: {_first_line(error)}")
            )
        return future

    def _connect(self) -> None:
        import ray

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network calls that nobody asked for
        options: dict[str, Any] = {"log_to_driver": self.verbose, "runtime_env": self._environment()}
        options["logging_level"] = logging.INFO if self.verbose else logging.ERROR
        if self.address is None:
            prune()
            where = self._folder = scratch()
            options |= {"address": "local", "num_cpus": cores(), "include_dashboard": False, "_temp_dir": str(where)}
        else:
            options["address"] = _probe(self.address)
            where = scratch()
        # Workers put the folder in which Ray is started before everything else on their path, and there a user's
        # networkx.py would hide the library. They move to the real folder, and put it last, in `settle`.
        with contextlib.chdir(where), _token_somewhere(where), _said(self.verbose):
            try:
                ray.init(**options)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise ConfigError(f"Ray cannot be started: {_first_line(error)}") from error
        self._ours = True
        if self.address is not None:
            where.rmdir()

    def _environment(self) -> dict[str, Any]:
        """The runtime environment: the user's, and what ours needs."""
        environment = {**self._runtime_env}
        variables = {"GOMP_SPINCOUNT": "2000", **environment.get("env_vars", {})}  # see `nas.cli.main`
        environment["env_vars"] = variables
        if self.address is not None and "working_dir" not in environment:
            modules = [*environment.get("py_modules", ()), *user_code()]
            environment |= {"py_modules": modules} if modules else {}  # Ray Train breaks on an empty list
        return environment

    def _check(self) -> None:
        """Wait until a worker has a place. Raises ConfigError if there never will be one."""
        if not (places := self.places()) and self._patience:
            places = self._wait_for_places()
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        if not places:
            later = "" if self.address is None else "; if it grows on demand, say for how long to wait with --wait"
            raise ConfigError(
                f"no machine here can hold a worker with {each}: there is {self._describe()}; "
                f"ask for less with --cpus-per-trial and --gpus-per-trial{later}"
            )
        if self.address is None and places < self.workers:
            raise ConfigError(
                f"{self.workers} workers with {each} each do not fit: there is {self._describe()}; use "
                f"--workers={places}, or ask for less with --cpus-per-trial and --gpus-per-trial"
            )

    def _wait_for_places(self) -> int:
        """Ask the cluster's autoscaler for room, and wait for it."""
        from ray.autoscaler.sdk import request_resources

        each = {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}
        request_resources(bundles=[each] * self.workers)
        end = time.monotonic() + self._patience
        while not (places := self.places()) and time.monotonic() < end:
            time.sleep(1)
        request_resources(bundles=[])  # from now on the workers that wait for a place say so themselves
        return places

    def places(self) -> int:
        """How many workers the cluster holds, as large as it is now."""
        return sum(self._fits(resources) for resources in self._machines())

    @property
    def about(self) -> str:
        """Who does the work, in a line."""
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        missing = self.workers - self.places()
        where = f"the cluster at {self.address}" if self.address else "this machine"
        waiting = f"; {missing} wait for it to grow" if missing > 0 else ""
        return f"{self.workers} with {each} each, on {where}{waiting}"

    def _machines(self) -> list[Mapping[str, float]]:
        """What each machine of the cluster has."""
        import ray

        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [node["Resources"] for node in nodes if node["Alive"]]

    def _fits(self, resources: Mapping[str, float]) -> int:
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min(
            (int(resources.get(name, 0) / amount + 1e-6) for name, amount in wanted.items() if amount),
            default=self.workers,
        )

    def _describe(self) -> str:
        each = [f"{m.get('CPU', 0):g} CPU, {m.get('GPU', 0):g} GPU" for m in self._machines()]
        counts = [f"{each.count(text)} x ({text})" for text in dict.fromkeys(each)]
        return " and ".join(counts) or "no machine"


def read_runtime_env(file: str | None) -> Mapping[str, Any]:
    """Ray's description of a runtime environment, from YAML or JSON. Raises ConfigError."""
    if file is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env: {file} cannot be read: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--runtime-env: {file} must hold a table such as pip: [package], got {content!r}")
    return content


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Place:
    """Where the driver works and finds modules; `gpus` that a worker was given."""

    folder: str
    path: tuple[str, ...]
    gpus: float

    @classmethod
    def here(cls, gpus: float) -> Place:
        """That of this process."""
        folder = os.getcwd()
        return cls(folder, tuple(os.path.abspath(entry) for entry in [*sys.path, folder]), gpus)


def settle(place: Place) -> None:
    """In a worker: work where the driver does, and find modules where it does, but after all libraries."""
    if not place.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves all in sight of who was given none
    if Path(place.folder).is_dir():
        os.chdir(place.folder)
    sys.path.extend(entry for entry in dict.fromkeys(place.path) if entry not in sys.path and Path(entry).is_dir())


def _call(packed: bytes, place: Place, heard: bool) -> Iterator[Any]:
    """What the function says, as it says it, and at last its result in bytes.

    Bytes, because arrays would be views of Ray's memory, which is gone when the driver leaves the cluster.
    """
    import ray

    settle(place)  # before the function is unpacked: it may be of a class that is found only then
    function = ray.cloudpickle.loads(packed)
    if not heard:
        yield ray.cloudpickle.dumps(function())  # type: ignore[no-untyped-call]
        return
    said: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        try:
            said.put(ray.cloudpickle.dumps(function(lambda *words: said.put(words))))  # type: ignore[no-untyped-call]
        except BaseException as error:  # raised where it reaches the driver
            said.put(error)

    Thread(target=work, daemon=True).start()
    while not isinstance(words := said.get(), bytes):
        if isinstance(words, BaseException):
            raise words
        yield words
    yield words


def user_code() -> list[str]:
    """Files and folders of the current folder from which modules have been imported: a user's own plug-ins."""
    here, installed = Path.cwd(), Path(sys.prefix)
    found: dict[str, None] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name == "__main__" or name.split(".")[0] == "nas":
            continue
        path = Path(file)
        if path.is_relative_to(here) and not path.is_relative_to(installed) and path.is_file():
            found[str(here / path.relative_to(here).parts[0])] = None
    return list(found)


def scratch() -> Path:
    """A new temporary folder, which `prune` removes if this process does not live to do so."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=_temporary()))


def prune() -> None:
    """Remove the temporary folders of killed processes: searches leave Ray's files, workers those of a trial."""
    for folder in Path(_temporary()).glob(f"{PREFIX}[0-9]*-*"):
        pid = folder.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _temporary() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= LONGEST else "/tmp"


def _probe(address: str) -> str:
    """The address, if something listens there. Raises ConfigError."""
    target = address
    if address == "auto":
        remembered = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        target = os.environ.get("RAY_ADDRESS") or (remembered.read_text().strip() if remembered.exists() else "")
        if not target:
            raise ConfigError(
                "--address=auto: no Ray cluster runs on this machine; start one with `ray start --head`, "
                "give its host:port, or leave --address away"
            )
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or "//" in host:
        raise ConfigError(f"--address: expected auto or host:port such as 10.0.0.1:6379, got {target!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except OSError as error:
        raise ConfigError(
            f"--address: nothing answers at {target} ({error.strerror or error}); is the cluster up? `ray status` says"
        ) from None
    return target


@contextlib.contextmanager
def _token_somewhere(folder: Path) -> Iterator[None]:
    """Ray keeps the key of a local cluster in the home folder; where that cannot be written, keep it in `folder`."""
    home = Path.home()
    chosen = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not chosen and not os.access(home, os.W_OK):
        import secrets

        path = folder / "token"
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    yield


@contextlib.contextmanager
def _said(verbose: bool) -> Iterator[None]:
    """Keep Ray's advice on how to start it off the terminal."""
    logger = logging.getLogger("ray")
    before = logger.level
    if not verbose:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if not verbose:
            logger.setLevel(max(before, logging.ERROR))


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]

"""Cells of a comparison, each one method on one table with one seed: run in parallel, kept as they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import inf, isfinite
from pathlib import Path

import numpy as np

from nas.bench.methods import Evaluations, method
from nas.bench.problem import Problem, Source
from nas.errors import RunError, plugin_errors
from nas.pareto import Array
from nas.store import write_atomically

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Cell:
    """One method on one table with one seed.

    Args:
        source: the table.
        method: a strategy or a peer.
        seed: of everything random.
        most: evaluations to spend.
        distinct: whether networks evaluated before are not counted.
    """

    source: Source
    method: str
    seed: int
    most: int
    distinct: bool = False

    def file(self, folder: Path) -> Path:
        """Where its outcome is kept."""
        name = re.sub(r"[^\w.=-]+", "-", self.method).strip("-")
        digest = sha256(f"{self.source} {self.method} {self.distinct}".encode()).hexdigest()[:6]
        return folder / "cells" / self.source.name / f"{name}-{digest}-{self.seed}.json"


@dataclass(frozen=True)
class Outcome:
    """What a cell gave.

    Attributes:
        asked: evaluations it was given; there are fewer where the method had nothing more to propose.
        costs: of each evaluation (n, objectives), to be minimised; infinite where it failed.
        proposals: evaluations and what was not counted.
        milliseconds: CPU time per proposal of the method alone.
    """

    asked: int
    costs: Array
    proposals: int
    milliseconds: float


def run(cell: Cell, problem: Problem) -> Outcome:
    """Run a cell in this process. Raises NasError."""
    chosen = method(cell.method)
    asked = cell.most if chosen.most is None else min(cell.most, chosen.most)
    evaluate = Evaluations(problem, asked, distinct=cell.distinct)
    started = time.process_time()
    with plugin_errors(chosen.run):
        chosen.run(evaluate, cell.seed)
    spent = time.process_time() - started - evaluate.seconds
    costs = np.array(evaluate.costs, dtype=np.float64).reshape(-1, len(problem.objectives))
    return Outcome(asked, costs, evaluate.proposals, spent / max(1, evaluate.proposals) * 1e3)


def kept(cell: Cell, folder: Path) -> Outcome | None:
    """The outcome of a cell that ended before; None if there is none, or one with fewer evaluations."""
    try:
        data = json.loads(cell.file(folder).read_text())
        costs = [[inf if value is None else value for value in row] for row in data["costs"]]
        objectives = len(cell.source.objectives.split(","))
        found = Outcome(
            data["asked"], np.array(costs, float).reshape(-1, objectives), data["proposals"], data["milliseconds"]
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{cell.file(folder)} cannot be read ({error}); delete it to run it again") from None
    capped = method(cell.method).most
    return found if found.asked >= (cell.most if capped is None else min(cell.most, capped)) else None


def _keep(cell: Cell, folder: Path, outcome: Outcome) -> None:
    costs = [[value if isfinite(value) else None for value in row] for row in outcome.costs.tolist()]
    path = cell.file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    described = {**asdict(cell), "asked": outcome.asked, "proposals": outcome.proposals,
                 "milliseconds": outcome.milliseconds, "costs": costs}  # fmt: skip
    write_atomically(path, json.dumps(described) + "\n")


# -- all of them ---------------------------------------------------------------------------------------------------


def run_all(
    cells: Sequence[Cell], folder: Path, *, workers: int, problems: Mapping[Source, Problem],
    on_cell: Callable[[Cell], None],
) -> dict[Cell, Outcome]:  # fmt: skip
    """Outcomes of all cells: those in the folder, and the others run now and put there.

    Args:
        cells: what is wanted.
        folder: where outcomes are kept.
        workers: processes; 1 for this one.
        problems: the tables in memory; other processes load their own.
        on_cell: called after each cell.

    Raises NasError for a cell that cannot be run. However it ends, what has ended is kept.
    """
    outcomes: dict[Cell, Outcome] = {}
    left = []
    for cell in cells:
        known = kept(cell, folder)
        if known is None:
            left.append(cell)
        else:
            outcomes[cell] = known
            on_cell(cell)
    count = min(workers, len(left))
    ran = _here(left, problems) if count <= 1 else _elsewhere(left, count, list(problems))
    for cell, outcome in ran:
        _keep(cell, folder, outcome)
        outcomes[cell] = outcome
        on_cell(cell)
    return outcomes


def _here(cells: Sequence[Cell], problems: Mapping[Source, Problem]) -> Iterator[tuple[Cell, Outcome]]:
    for cell in cells:
        yield cell, run(cell, problems[cell.source])


def _elsewhere(cells: Sequence[Cell], workers: int, sources: Sequence[Source]) -> Iterator[tuple[Cell, Outcome]]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with _quiet():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=(list(sources),))
        futures = {pool.submit(_run, cell): cell for cell in cells}
    try:
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise RunError("a process of the comparison died; the same command goes on with what is left") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()


@contextmanager
def _quiet() -> Iterator[None]:
    """Processes started here compute on one thread each, and leave Ctrl-C, which reaches all, to this one."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_problems: dict[Source, Problem] = {}
"""Of a worker process."""


def _open(sources: Sequence[Source]) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _problems.update({source: source.load() for source in sources})


def _end_with_the_parent() -> None:
    """A pool's processes would wait for ever for what a killed parent does not send."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(cell: Cell) -> Outcome:
    return run(cell, _problems[cell.source])

"""A search as it is watched: live on a terminal, plain lines elsewhere; Ctrl-C; and what is shown at the end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.status import Status

from nas.errors import RunError
from nas.honesty import recorded
from nas.preparation import Progress
from nas.report import honesty, plot, tables
from nas.search import Search
from nas.session import load
from nas.trial import Trial, format_metric, format_number
from nas.warmstart import describe

OnTrial = Callable[[Search, Trial], None]
OnPrepare = Callable[[Search, Progress], None]

REMEMBERED = 0.005
"""Seconds after the last one within which an epoch is not trained, but remembered from before an interruption."""


def watch(make: Callable[[OnTrial, OnPrepare], Search]) -> None:
    """Run the search that `make` builds, show how it goes, and print the front at the end."""
    console = Console()
    display = _Live(console) if console.is_terminal else _Lines(console)
    with console.status("starting") as status:  # Ray takes seconds, and a long job before the first trial hours
        preparing = _Preparing(console, status)
        try:
            search = make(display.on_trial, preparing.on_prepare)
        except KeyboardInterrupt:
            if preparing.search is not None:
                _stopped(preparing.search, console)
            raise
    if preparing.search is None:
        _introduce(search, console)
    try:
        with _interruptible(search, console), display.showing(search):
            search.run()
    except KeyboardInterrupt:
        _stopped(search, console)
        raise
    _finish(search, console)


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal's standard error, for work that is counted: call it with (done, a few words)."""
    console = Console(stderr=True)
    columns = (BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done, words="": shown.update(task, completed=done, description=f"{what} {words}")


def _introduce(search: Search, console: Console) -> None:
    about = search.store.config.get("task", {}).get("about")
    workers = search.workers
    lines = [f"run {search.store.path}", f"data {about}" if about else "", f"workers {workers}" if workers else ""]
    lines += [str(how) for how in search.store.config.get("about", {}).values()]
    lines += [f"start {describe(proposal)}" for proposal in search.starts[search.store.proposals :]]
    for line in filter(None, lines):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _stopped(search: Search, console: Console) -> None:
    line = f"stopped; go on with: nas resume {search.store.path}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _finish(search: Search, console: Console) -> None:
    path = search.store.path
    if search.stopped:
        more = " with a larger --time" if search.stopped == "the time is up" else ""
        console.print(
            f"ended early: {search.stopped}; go on with: nas resume {path}{more}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    results = load(path)
    tables.print_run(results)
    found = recorded(results.trials, results.objectives, results.proxies)
    if found is not None:
        honesty.print_honesty(found)
    if not results.front:
        errors = [trial.error for trial in results.trials if trial.error]
        raise RunError(
            f"no trial of {path} succeeded" + (f"; the last error: {errors[-1]}" if errors else "; none was feasible")
        )
    results.save_front()
    picture = plot.save_front(results, path / "front.png")
    search.store.publish()
    console.print(f"front  {picture}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"next   nas export {path} --arch best", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _interruptible(search: Search, console: Console) -> Iterator[None]:
    """First Ctrl-C: finish the running trial and stop. Second: stop now. Both can be resumed."""

    def handle(number: int, frame: FrameType | None) -> None:
        if search.stopped is not None:
            raise KeyboardInterrupt
        search.stop("interrupted")
        console.print("finishing the running trial; Ctrl-C again stops now", highlight=False, markup=False)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _status(search: Search) -> str:
    """Trials, best, front size, time left."""
    parts = [f"{search.evaluated}/{search.plan.trials} trials"]
    if search.front:
        first = search.plan.objectives[0]
        best = min(search.front, key=lambda t: first.cost(t.metrics)).metrics[first.metric]
        parts += [f"best {first.metric} {_shown(search, first.metric, best)}", f"front {len(search.front)}"]
    left = _seconds_left(search)
    return "  ".join(parts if left is None else [*parts, f"{_clock(left)} left"])


def _seconds_left(search: Search) -> float | None:
    if search.pace is None:
        return search.plan.seconds
    by_trials = search.pace * (search.plan.trials - search.evaluated)
    by_clock = search.plan.seconds - search.seconds if search.plan.seconds is not None else by_trials
    return max(0.0, min(by_trials, by_clock))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(search: Search, trial: Trial) -> str:
    metrics = "  ".join(
        f"{o.metric} {_shown(search, o.metric, trial.metrics[o.metric])}"
        for o in search.plan.objectives
        if o.metric in trial.metrics
    )
    error = f"  {trial.error}" if trial.error else ""
    return f"trial {trial.number}  {trial.state}  {metrics}{error}"


def _shown(search: Search, name: str, value: float) -> str:
    known = {metric.name: metric for metric in search.evaluator.metrics}
    return format_metric(value, known.get(name))


class _Preparing:
    """The long job before the first trial: on a terminal its last word, elsewhere a line per epoch.

    Attributes:
        search: whose job it is; None until there is one.
    """

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status = console, status
        self.search: Search | None = None
        self._name, self._since, self._from, self._last = "", 0.0, 0.0, 0.0

    def on_prepare(self, search: Search, progress: Progress) -> None:
        now = time.monotonic()
        if self.search is None:
            self.search = search
            _introduce(search, self._console)
        if self._name != progress.name or now - self._last < REMEMBERED:
            self._name, self._since, self._from = progress.name, now, progress.epoch
        self._last = now
        line = self._line(progress, now)
        if self._console.is_terminal:
            self._status.update(line)
        elif progress.epoch:
            print(line, flush=True)

    def _line(self, progress: Progress, now: float) -> str:
        of = "" if progress.of is None else f"/{progress.of:g}"
        parts = [progress.name, f"{progress.unit} {progress.epoch:g}{of}" if progress.epoch else "preparing"]
        parts += [f"{name} {format_number(value)}" for name, value in progress.metrics.items()]
        done = progress.epoch - self._from
        if progress.of is not None and done > 0:
            parts.append(f"{_clock((now - self._since) / done * (progress.of - progress.epoch))} left")
        return "  ".join(parts)


class _Lines:
    """One line per evaluated trial."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def showing(self, search: Search) -> Iterator[None]:
        yield

    def on_trial(self, search: Search, trial: Trial) -> None:
        if trial.evaluated:
            print(f"{_line(search, trial)}  [{_status(search)}]", flush=True)


class _Live:
    """A progress bar that stays at the bottom; only what went wrong leaves a line."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), BarColumn(24), TextColumn("{task.description}"))
        self._progress = Bar(*columns, console=console, transient=True)
        self._task = self._progress.add_task("starting", total=None)
        self._shown = 0.0

    @contextmanager
    def showing(self, search: Search) -> Iterator[None]:
        with self._progress:
            self._update(search)
            yield

    def on_trial(self, search: Search, trial: Trial) -> None:
        if trial.evaluated and not trial.ok:
            self._progress.console.print(_line(search, trial), highlight=False, markup=False)
        now = time.monotonic()
        if trial.evaluated or now - self._shown > 0.2:  # infeasible proposals come by the thousand
            self._shown = now
            self._update(search)

    def _update(self, search: Search) -> None:
        self._progress.update(
            self._task, total=search.plan.trials, completed=search.evaluated, description=_status(search)
        )

"""From a configuration to a search, and from a run folder to its results: the Python API."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nas import pareto
from nas.architecture import Architecture
from nas.beside import Beside, composed
from nas.config import Config
from nas.errors import ConfigError, NasError, PluginError, RunError, plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Executor, OnReport
from nas.fidelity import check_rungs
from nas.ops import Shape
from nas.plugins import check_options, defaults_of, find, make_evaluator, make_space, make_strategy
from nas.preparation import Progress
from nas.screening import Screen, Screening
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run, write_atomically
from nas.trial import ANALYSIS_METRICS, Metric, Objective, Proposal, Trial, parse_limit, parse_objectives
from nas.warmstart import starts

RUNS = Path("runs")
SMALL = 16 * 16
OnTrial = Callable[[Search, Trial], None]
OnPrepare = Callable[[Search, Progress], None]


def start(config: Config, *, on_trial: OnTrial | None = None, on_prepare: OnPrepare | None = None) -> Search:
    """A new search in a new run folder, ready to `run`.

    Args:
        on_trial: called after each told trial.
        on_prepare: called while a plug-in's long job before the first trial runs, which is done when this returns.

    Raises NasError for what is wrong with the configuration. Interrupted in the long job, the run can be resumed.
    """
    if Path(config.data).exists():
        config = replace(config, data=str(Path(config.data).resolve()))  # so that it can be resumed from anywhere
    if config.runtime_env:
        config = replace(config, runtime_env=str(Path(config.runtime_env).resolve()))
    config = replace(config, start=tuple(str(Path(n).resolve()) if Path(n).exists() else n for n in config.start))
    config = replace(config, options=_with_files(config))
    parts = _Parts(config)
    first = starts(config.start, parts.space)
    folder = Path(config.out) if config.out else fresh(RUNS, f"{config.space}-{config.strategy}")
    task = parts.task
    saved: dict[str, Any] = {
        "config": replace(config, out=str(folder)).to_json(),
        "task": _described(task),
        "versions": versions(),
        "objectives": [asdict(objective) for objective in parts.plan.objectives],
    }
    about = {name: part.about for name, part in parts.evaluator.parts().items() if part.about}
    if about:
        saved["about"] = about
    if first:  # all that is needed of them: the run goes on when the files that they came from are gone
        saved["starts"] = [vars(proposal) for proposal in first]
    if parts.space.recipe is not None:
        saved["space"] = parts.space.recipe
    run = Run.create(folder, saved)
    try:
        _mirrored(run, config)
        return parts.search(run, on_trial, on_prepare)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and (folder / "prepare").exists():
            run.close()
        else:
            run.discard()
        raise


def _with_files(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """The options with absolute paths where an evaluator says that they name files."""
    options = {section: dict(values) for section, values in config.options.items()}
    for name, part in composed(config)[0].parts().items():
        for option in part.files:
            given = options.get(name, {}).get(option)
            if isinstance(given, str):
                options[name][option] = str(Path(given).resolve())
    return options


def _described(task: Task) -> dict[str, Any]:
    """What a network's user must know of the data: written to `run.json`, and into exported files."""
    facts: dict[str, Any] = {"data": task.data, "input_shape": list(task.input_shape), "classes": task.classes}
    data = task.loaded
    if data is not None:
        facts |= {"about": data.describe(), "class_names": list(data.class_names)}
        facts |= {"mean": list(data.mean), "std": list(data.std)}
    return facts


def _mirrored(run: Run, config: Config) -> None:
    """Have the run folder copied to its storage, if it has one."""
    if config.storage is not None:
        from nas.mirror import Mirror
        from nas.storage import Storage

        run.mirror = Mirror(run.path, Storage(config.storage))


def resume(
    path: str | Path, *, trials: int | None = None, time: float | None = None, out: Path | None = None,
    on_trial: OnTrial | None = None, on_prepare: OnPrepare | None = None,
) -> Search:  # fmt: skip
    """The search of a run folder, ready to go on.

    Args:
        path: the folder, or the URL of its copy, which is fetched first.
        trials, time: replace those of the run (time in seconds).
        out: where to put what is fetched; None for the URL's last part under `runs/`.
        on_trial, on_prepare: as for `start`.
    """
    storage = str(path) if "://" in str(path) else None
    if storage is not None:
        from nas.mirror import restore
        from nas.storage import Storage

        path = out or RUNS / storage.rstrip("/").rpartition("/")[2]
        restore(Storage(storage), path)
    elif out is not None:
        raise ConfigError("--out: a run folder goes on where it is; only the copy at a URL is put into a new one")
    path = Path(path)
    run = Run.open(path, write=True)
    try:
        config = _config(run)
        if storage is not None:
            config = replace(config, out=str(path), storage=storage)
        if trials is not None:
            config = replace(config, trials=trials)
        if time is not None:
            config = replace(config, time=time)
        parts = _Parts(config, run.config.get("space"))
        shape, classes = _task_of(run)
        if (parts.task.input_shape, parts.task.classes) != (shape, classes):
            raise RunError(
                f"run {path} searched networks for {classes} classes of {shape} images; {config.data} now has "
                f"{parts.task.classes} classes of {parts.task.input_shape}: put the old data back, or start a new run"
            )
        _mirrored(run, config)
        if config != _config(run):
            run.configure({**run.config, "config": config.to_json()})  # it is this that the next resume goes on with
        return parts.search(run, on_trial, on_prepare)
    except BaseException:
        run.close()
        raise


def load(path: str | Path) -> Results:
    """What a run folder holds, without its data or the process that wrote it."""
    return Results(Run.open(Path(path)))


class _Parts:
    """The plug-ins of a configuration, checked against each other before anything is written."""

    def __init__(self, config: Config, own: tuple[str, Mapping[str, Any]] | None = None) -> None:
        self.config = config
        self.evaluator, metrics = composed(config)
        parts = self.evaluator.parts().values()
        self.device = _device(config, self.evaluator)
        screening = None if config.screen is None else Screening.parse(config.screen)
        scout = None if screening is None else make_evaluator(screening.evaluator, config.option("screen"), "screen")
        self.task = task_for(config, self.evaluator if scout is None or self.evaluator.needs_data else scout)
        name, options = own or (config.space, config.option("space"))  # a strategy's own space, when a run goes on
        space = make_space(name, self.task.input_shape, self.task.classes, options)
        for part in parts:
            prices: Any = getattr(part, "prices", None)
            if prices is not None:
                with plugin_errors(part):
                    space.prices += tuple(prices(space))
        objectives = parse_objectives(config.objectives, metrics)
        limits = tuple(parse_limit(text, metrics) for text in config.limits)
        if isinstance(self.evaluator, Beside):
            self.evaluator.limits = [limit for limit in limits if not limit.exact]
        self.strategy = make_strategy(config.strategy, space, objectives, limits, options=config.option("strategy"))
        self.space = self.strategy.space
        self.screen: Screen | None = None
        if screening is not None and scout is not None:
            self.screen = Screen(screening, scout, self.space, objectives, limits)
        for part in parts:
            use: Any = getattr(part, "use", None)
            if use is not None:
                with plugin_errors(part):
                    use(self.space)
        if len(objectives) > 1 and not self.strategy.multi_objective:
            raise ConfigError(
                f"strategy {config.strategy!r} takes one objective, got {','.join(config.objectives)}; "
                "give one with --objectives, or use --strategy=evolution"
            )
        if config.start and self.space is not space:
            raise ConfigError(
                f"start: strategy {config.strategy!r} searches a space of its own; use another one with --start"
            )
        rungs = check_rungs(config.rungs, config.eta, self.evaluator.budget)
        self.plan = Plan(
            objectives,
            limits,
            trials=config.trials,
            seconds=config.time,
            trial_timeout=config.trial_timeout,
            rungs=rungs,
            eta=config.eta,
            seed=config.seed,
        )

    def search(self, run: Run, on_trial: OnTrial | None, on_prepare: OnPrepare | None) -> Search:
        first = [Proposal(**proposal) for proposal in run.config.get("starts", ())]
        search = Search(
            run,
            self.space,
            self.strategy,
            self.evaluator,
            self.plan,
            self._executor,
            on_trial=on_trial,
            starts=first,
            screen=self.screen,
        )
        gpus = self.config.prepare_gpus if self.config.prepare_gpus is not None else self.config.gpus_per_trial
        search.prepare(
            self.task,
            device=self.device,
            resources={"GPU": gpus},
            threads=self._threads if self.evaluator.needs_data else None,
            on_progress=None if on_prepare is None else partial(on_prepare, search),
        )
        return search

    @property
    def _threads(self) -> int | None:
        """Of torch in one process; None for what Ray gives it."""
        _, height, width = self.task.input_shape
        # Where the images are small, handing out the work to threads costs more than the work.
        threads = self.config.threads or (1 if height * width <= SMALL else None)
        return threads or (len(os.sched_getaffinity(0)) if self.config.runs_on == "local" else None)

    def _executor(self, on_report: OnReport) -> Executor:
        """The executor that the configuration asks for; nothing of the others is imported."""
        config, kind = self.config, self.config.runs_on
        common: dict[str, Any] = {"device": self.device, "threads": self._threads or 0, "on_report": on_report,
                                  "storage": config.storage}  # fmt: skip
        if kind == "local":
            from nas.executors.local import Local

            return Local(self.evaluator, self.task, **common)
        try:
            from nas.executors.cluster import Cluster, read_runtime_env
        except ImportError as error:
            raise ConfigError(f"executor {kind!r} needs Ray ({error}): pip install 'ray[tune]'") from None
        cluster = Cluster(
            workers=config.workers,
            cpus=config.cpus_per_trial,
            gpus=config.gpus_per_trial,
            address=config.address,
            runtime_env=read_runtime_env(config.runtime_env),
            patience=config.wait or 0.0,
            verbose=config.verbose,
        )
        if kind == "tune":
            from nas.executors.tune import Tune

            return Tune(cluster, self.evaluator, self.task, **common)
        from nas.executors.ray import Pool

        return Pool(cluster, self.evaluator, self.task, **common)


def _device(config: Config, evaluator: Evaluator) -> str:
    """The device of whoever evaluates, by name; this process may have no GPU where the workers have one."""
    if config.runs_on != "local":
        if config.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: {config.device!r} is for Ray to choose; expected auto, cpu or cuda")
        return config.device if config.device != "auto" else "cuda" if config.gpus_per_trial else "cpu"
    if not (evaluator.needs_data or evaluator.needs_device):
        return "cpu"  # nothing is computed with torch, so it need not even be imported
    from nas.torch.runtime import pick_device

    return str(pick_device(config.device))


def task_for(config: Config, evaluator: Evaluator) -> Task:
    """What an evaluator is to work on: images only if it reads any. Raises ConfigError or DataError."""
    if evaluator.needs_data:
        return task_of(config)
    # The space's own defaults say what it is for; an evaluator without data has no images to ask.
    defaults = defaults_of(find("search_spaces", config.space))
    return Task(None, defaults.get("input_shape", (3, 32, 32)), defaults.get("classes", 10))


def task_of(config: Config) -> Task:
    """The task of classifying a configuration's images. Raises ConfigError or DataError."""
    from nas.torch.data import load

    options = config.option("data")
    check_options(load, options, "data", "data", skip=1)
    with plugin_errors(load):
        return Task.of(config.data, **options)


def threads_for(shape: Shape) -> int:
    """Threads of torch for images of this shape, alone on the machine.

    Where the images are small, handing out the work to threads costs more than the work.
    """
    _, height, width = shape
    return 1 if height * width <= SMALL else len(os.sched_getaffinity(0))


def space_for(config: Config, images: str | None = None, classes: int = 10) -> Space:
    """The space of a configuration, made for its data, or for other images.

    Args:
        images: `CxHxW` instead of the data's.
        classes: of those images.

    Raises NasError.
    """
    if images is None:
        task = task_of(config)
        return make_space(config.space, task.input_shape, task.classes, config.option("space"))
    sizes = re.fullmatch(r"(\d+)x(\d+)x(\d+)", images)
    if not sizes or "0" in sizes.groups() or classes < 1:
        raise ConfigError(f"input: expected CHANNELSxHEIGHTxWIDTH such as 3x224x224, and classes, got {images!r}")
    return make_space(config.space, tuple(map(int, sizes.groups())), classes, config.option("space"))


def _config(run: Run) -> Config:
    try:
        return Config.of(run.config["config"])
    except (KeyError, TypeError):
        raise RunError(f"{run.path / 'run.json'} has no configuration; was it written by another program?") from None


def _task_of(run: Run) -> tuple[Shape, int]:
    """Input shape and number of classes that a run is about."""
    try:
        task = run.config["task"]
        return tuple(int(n) for n in task["input_shape"]), int(task["classes"])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{run.path / 'run.json'} does not say what the data are; was it edited?") from None


class Results:
    """A run folder, read.

    Attributes:
        trials: told trials in order.
        front: the non-dominated ones, best first objective first.
        objectives: of the run.
        metrics: what its objectives could have been, by name.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.path = run.path
        self.config = _config(run)
        self.trials = run.trials
        self.metrics: Mapping[str, Metric] = {metric.name: metric for metric in self._metrics()}
        self.objectives = self._objectives()
        self.front = pareto.front(run.trials, self.objectives)

    def _metrics(self) -> Iterable[Metric]:
        """All that the run's evaluators give; where those are not installed, what is known of every network."""
        try:
            return composed(self.config)[1]
        except PluginError:
            if "objectives" not in self.run.config:
                raise
            return ANALYSIS_METRICS

    def _objectives(self) -> tuple[Objective, ...]:
        """As the run says; runs of earlier versions leave it to the evaluator."""
        if "objectives" not in self.run.config:
            return parse_objectives(self.config.objectives, self.metrics.values())
        try:
            return tuple(Objective(**values) for values in self.run.config["objectives"])
        except TypeError as error:
            raise RunError(f"{self.path / 'run.json'}: objectives cannot be read ({error}); was it edited?") from None

    @property
    def space(self) -> Space:
        """The space that was searched."""
        name, options = self.run.config.get("space") or (self.config.space, self.config.option("space"))
        return make_space(name, *_task_of(self.run), options)

    @property
    def proxies(self) -> list[str]:
        """Zero-cost proxies among the metrics that were measured beside the evaluator's."""
        try:
            part = composed(self.config)[0].parts().get("proxy")
        except PluginError:  # not installed here
            return []
        return [] if part is None else [metric.name for metric in part.metrics]

    def best(self, metric: str | None = None) -> Found:
        """The front's best trial by a metric (by default the first objective). Raises RunError if there is none."""
        if not self.front:
            raise RunError(f"run {self.path} has no finished trial yet; let it go on with `nas resume {self.path}`")
        chosen = next((o for o in self.objectives if metric in (None, o.metric)), None)
        if chosen is None:
            names = ", ".join(o.metric for o in self.objectives)
            raise RunError(f"run {self.path} has no objective {metric!r}; expected one of {names}")
        return Found(self, min(self.front, key=lambda trial: chosen.cost(trial.metrics)))

    def trial(self, number: int) -> Found:
        """A trial by number. Raises RunError if there is none."""
        for trial in self.trials:
            if trial.number == number:
                return Found(self, trial)
        raise RunError(f"run {self.path} has no finished trial {number}; it has {len(self.trials)}, see `nas show`")

    def select(self, which: str) -> Found:
        """`best`, `best:METRIC` or a trial's number. Raises RunError."""
        if which.isdecimal():
            return self.trial(int(which))
        name, _, metric = which.partition(":")
        if name != "best":
            raise RunError(f"architecture {which!r}: expected best, best:METRIC or a trial's number")
        return self.best(metric or None)

    def save_front(self) -> Path:
        """Write `front.json`: metrics and architecture of each front trial."""
        entries = [
            {"number": t.number, "metrics": dict(t.metrics), "architecture": Found(self, t).architecture.to_json()}
            for t in self.front
        ]
        path = self.path / "front.json"
        write_atomically(path, json.dumps({"format": 1, "front": entries}, indent=1) + "\n")
        return path

    def saved_front(self) -> Mapping[int, Mapping[str, Any]]:
        """What `front.json` has, by trial number; nothing where there is none that can be read."""
        try:
            entries = json.loads((self.path / "front.json").read_text())["front"]
            return {entry["number"]: entry for entry in entries}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


class Found:
    """One trial of a run: its architecture, module and weights."""

    def __init__(self, results: Results, trial: Trial) -> None:
        self.trial = trial
        self._results = results

    @property
    def architecture(self) -> Architecture:
        """The architecture, rebuilt from the genotype; from `front.json` where the space cannot be found any more."""
        try:
            made = self._results.space.architecture(self.trial.genotype)
        except PluginError:
            saved = self._results.saved_front().get(self.trial.number)
            if saved is None:
                raise
            return Architecture.from_json(saved["architecture"])
        return replace(made, name=f"{made.name}-{self.trial.number}")

    @property
    def weights(self) -> Path | None:
        """File of the trained weights, None where none were kept (they are for the front)."""
        path = self._results.run.weights(self.trial.number)
        return path if path.exists() else None

    def module(self, *, weights: bool = False) -> Any:
        """The network as an `nn.Module` on the CPU; with the searched weights if asked. Raises RunError without any."""
        module = self.architecture.module(seed=self.trial.seed)
        if weights:
            if self.weights is None:
                number = self.trial.number
                raise RunError(f"run {self._results.path} kept no weights of trial {number}, only the front's")
            from nas.export.weights import load as load_weights

            load_weights(self.weights, module)
        return module


def stem(name: str) -> str:
    """A name as part of a file's: without separators and the like."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def fresh(folder: Path, name: str) -> Path:
    """Make a folder that did not exist: `folder/name-1`, `-2`, ...; searches that start at once each get their own."""
    number = 1
    while True:
        path = folder / f"{stem(name)}-{number}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError:
            return path  # `Run.create` says what is wrong
        else:
            return path


def versions() -> Mapping[str, str]:
    """Versions of what a run depends on."""
    found = {"python": platform.python_version()}
    for package in ("nas", "torch", "numpy", "networkx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


__all__ = ["Found", "NasError", "Results", "fresh", "load", "resume", "start", "stem", "versions"]

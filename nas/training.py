"""`nas train`: the full training of architectures, each in a folder of its own, and what came of it.

Here alone test images are looked at, and only after the last epoch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nas.architecture import Architecture
from nas.config import parse_value
from nas.errors import ConfigError, RunError, SpaceError
from nas.plugins import check_options, reference, reference_names
from nas.session import RUNS, load, stem, threads_for
from nas.store import write_atomically
from nas.torch.recipe import FULL, Recipe

if TYPE_CHECKING:
    from nas.torch.data import Data

CONFIG, RESULT, WEIGHTS, CHECKPOINT, CURVE = (
    "config.json", "result.json", "weights.safetensors", "checkpoint.pt", "curve.csv",
)  # fmt: skip
FORMAT = 1
FREE = ("device", "threads", "workers", "address")
"""What may be other when a training goes on."""


@dataclass(frozen=True)
class Job:
    """One training of one architecture: all that a process needs to do it.

    Attributes:
        architecture: as JSON.
        data, data_options: source of the images, and keyword arguments of `nas.torch.data.load`.
        recipe: how it goes.
        seed: of weights, order and augmentation. The splits are the data's own.
        folder: where everything is written.
        searched: metrics of the search, to be shown beside.
        init, freeze, old_rate: see `nas.torch.transfer`.
        teacher, teacher_weight, temperature: see `nas.torch.distill`.
        device, threads: of each process; 0 threads for what suits the images.
        workers, address: processes that share each batch, here or on a Ray cluster.
    """

    architecture: Mapping[str, Any]
    data: str
    recipe: Recipe
    seed: int
    folder: str
    data_options: Mapping[str, Any] = field(default_factory=dict)
    searched: Mapping[str, float] = field(default_factory=dict)
    init: str | None = None
    freeze: str = "none"
    old_rate: float = 1.0
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 4.0
    device: str = "auto"
    threads: int = 0
    workers: int = 1
    address: str | None = None

    @property
    def name(self) -> str:
        """Of the architecture."""
        return str(self.architecture["name"])

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.folder)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": FORMAT, **found}

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The job of a folder. Raises RunError."""
        try:
            return cls.of(json.loads((folder / CONFIG).read_text()), folder)
        except FileNotFoundError:
            raise RunError(f"{folder} is no folder of `nas train` (no {CONFIG})") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{folder / CONFIG} cannot be read: {error}; was it edited?") from None

    @classmethod
    def of(cls, data: Mapping[str, Any], folder: Path) -> Self:
        """The inverse of `to_json`, for a folder that may have moved since."""
        if data["format"] > FORMAT:
            raise RunError(f"{folder / CONFIG} was written by a newer version; upgrade nas")
        values = {name: value for name, value in data.items() if name != "format"}
        return cls(**{**values, "recipe": Recipe(**values["recipe"]), "folder": str(folder)})

    def prepare(self) -> None:
        """Make the folder, or check that what was trained in it is this training. Raises RunError."""
        if (self.path / CONFIG).exists() and any((self.path / name).exists() for name in (CHECKPOINT, RESULT)):
            before, now = Job.read(self.path).to_json(), self.to_json()
            for name in FREE:
                before.pop(name), now.pop(name)
            for section, old, new in (("", before, now), ("train.", before.pop("recipe"), now.pop("recipe"))):
                for name in new:
                    if old.get(name) != new[name] and name != "folder":
                        raise RunError(
                            f"{self.path} holds another training: {section}{name} was {_short(old.get(name))} and is "
                            f"{_short(new[name])}; give the same options, another --out, or delete it"
                        )
        self.path.mkdir(parents=True, exist_ok=True)
        for torn in self.path.glob(f"{CHECKPOINT}.*"):  # of a process that was killed while it wrote
            torn.unlink(missing_ok=True)
        write_atomically(self.path / CONFIG, json.dumps(self.to_json(), indent=1) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def is_training(folder: Path) -> bool:
    """Whether a folder is one of `nas train`, finished or not."""
    return (folder / CONFIG).is_file() and not (folder / "run.json").exists()


def finished(folder: Path) -> tuple[Architecture, Path]:
    """Architecture and weights of a training that is done. Raises RunError."""
    job = Job.read(folder)
    if not all((folder / name).exists() for name in (WEIGHTS, RESULT)):
        raise RunError(f"{folder} is not done yet: let its training end first")
    return Architecture.from_json(job.architecture), folder / WEIGHTS


# -- what is to be trained ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Architectures to train, each with the metrics of its search, and where the images are."""

    found: Sequence[tuple[Architecture, Mapping[str, float]]]
    data: Data
    data_options: Mapping[str, Any]
    folder: Path


def source(
    name: str, which: str, *, data: str | None = None, data_options: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> Source:  # fmt: skip
    """What the command line's words mean.

    Args:
        name: a run folder, a name of the zoo, or an architecture's JSON file.
        which: of a run, separated by commas: `best`, `best:METRIC`, a trial's number, `front`, `front:K` (K of the
            front, spread over it), or a name of the zoo, to be compared with.
        data, data_options: None for those of the run, or digits.
        out: where the folders of the trainings are made; None for `train` in the run's folder, or under `runs/`.

    Architectures from elsewhere are built for the images' shape and classes. Raises NasError.
    """
    from nas.torch.data import load as load_data

    path = Path(name)
    options = dict(data_options or {})
    found: list[tuple[Architecture, Mapping[str, float]]] = []
    if path.is_dir():
        results = load(path)
        if data is None or data == results.config.data:
            data, options = results.config.data, {**results.config.option("data"), **options}
        for word in which.split(","):
            found += _of_run(results, word.strip())
        folder = path / "train"
    elif which != "best":
        raise ConfigError(f"--arch {which}: only a run folder has several architectures; {name!r} is none")
    else:
        found, folder = [(_given(name), {})], RUNS / "train"
    data = data or "digits"
    check_options(load_data, options, "data", "data", skip=1)
    images = load_data(data, **options)
    if data != "digits" and Path(data).exists():
        data = str(Path(data).resolve())
    fitted: dict[str, tuple[Architecture, Mapping[str, float]]] = {}
    for architecture, metrics in found:
        shape = images.input_shape if not metrics else (images.input_shape[0], *architecture.input_shape[1:])
        if (architecture.input_shape, architecture.classes) != (shape, images.classes):
            architecture = architecture.fitted(shape, images.classes)
        name = stem(architecture.name)
        if name in fitted and fitted[name][0].key() != architecture.key():
            raise ConfigError(f"--arch {which}: two architectures are called {name!r}; rename one in its JSON file")
        fitted.setdefault(name, (architecture, metrics))
    return Source(list(fitted.values()), replace(images, source=data), options, out or folder)


def _of_run(results: Any, which: str) -> Iterator[tuple[Architecture, Mapping[str, float]]]:
    name, _, count = which.partition(":")
    if name == "front":
        results.best()  # raises where there is none
        front = results.front
        if count:
            if not count.isdecimal() or int(count) < 1:
                raise ConfigError(f"--arch {which}: expected front:K with a whole number K of at least 1")
            last, few = len(front) - 1, min(int(count), len(front))
            front = [front[round(i * last / max(1, few - 1))] for i in range(few)]
        for trial in front:
            yield results.trial(trial.number).architecture, trial.metrics
    elif name == "best" or which.isdecimal():
        found = results.select(which)
        yield found.architecture, found.trial.metrics
    elif which in reference_names() or which.endswith(".json"):
        yield _given(which), {}
    else:
        raise ConfigError(
            f"--arch {which!r}: expected best, best:METRIC, front, front:K, a trial's number, a name of the zoo or an "
            "architecture's JSON file"
        )


def _given(name: str) -> Architecture:
    if not name.endswith(".json"):
        return reference(name)
    try:
        return Architecture.from_json(json.loads(Path(name).read_text()))
    except (OSError, ValueError) as error:
        raise SpaceError(f"architecture file {name} cannot be read: {error}") from None


def recipe_of(epochs: int | None, settings: Sequence[str]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that `--epochs` and `--set train.NAME=VALUE` ask for, and the options of `--set data.NAME=VALUE`."""
    changes: dict[str, dict[str, Any]] = {"train": {} if epochs is None else {"epochs": epochs}, "data": {}}
    known = [f.name for f in fields(Recipe) if f.name != "shrink"]
    for text in settings:
        left, _, value = text.partition("=")
        section, _, name = left.partition(".")
        if section not in changes or not name or "=" not in text:
            raise ConfigError(f"--set {text!r} is not train.NAME=VALUE or data.NAME=VALUE, such as train.lr=0.1")
        if section == "train" and name not in known:
            raise ConfigError(f"--set {text!r}: there is no train.{name}; expected one of {', '.join(known)}")
        changes[section][name] = None if value == "none" else parse_value(value)
    given = {**FULL, **changes["train"]}
    if "warmup" not in changes["train"]:  # which a single epoch has no room for
        given["warmup"] = min(given["warmup"], given["epochs"] / 5) if isinstance(given["epochs"], int) else 0
    return Recipe(**given), changes["data"]


def jobs_of(source: Source, recipe: Recipe, seeds: Sequence[int], **options: Any) -> list[Job]:
    """A job for each architecture and seed; `options` are fields of `Job`."""
    return [
        Job(
            architecture.to_json(),
            source.data.source,
            recipe,
            seed,
            str(source.folder / f"{stem(architecture.name)}-seed{seed}"),
            data_options=source.data_options,
            searched=searched,
            **options,
        )
        for architecture, searched in source.found
        for seed in seeds
    ]


# -- doing it ----------------------------------------------------------------------------------------------------------

OnEpoch = Callable[[int, Mapping[str, float]], None]
OnLook = Callable[[float, float], None]


def run(job: Job, on_epoch: OnEpoch, on_look: OnLook) -> dict[str, Any]:
    """Train, or go on with a training, or read what came of one that is done.

    Args:
        on_epoch: called with (epochs done, metrics), from the first one also where a training goes on.
        on_look: called now and then with (epochs done, training loss).

    Raises NasError.
    """
    if (job.path / RESULT).exists():
        job.prepare()
        return read_result(job.path)
    if job.recipe.batch % job.workers:
        raise ConfigError(
            f"workers: {job.workers} cannot share batches of {job.recipe.batch} alike; set train.batch to a multiple"
        )
    if job.workers > 1 and job.recipe.batch < 2 * job.workers:
        raise ConfigError(
            f"workers: {job.workers} have less than two images each of a batch of {job.recipe.batch}; expected fewer"
        )
    if job.workers > 1 and ":" in job.device:
        raise ConfigError(f"device: {job.workers} workers need a GPU each, got {job.device!r} for all; name no number")
    job.prepare()
    if job.address is not None:
        from nas.torch.cluster import on_ray

        return on_ray(job, on_epoch)
    from nas.torch.job import perform

    if job.workers == 1:
        return perform(job, on_epoch=on_epoch, on_look=on_look)
    with _helpers(job) as meeting:
        return perform(job, rank=0, meeting=meeting, on_epoch=on_epoch, on_look=on_look)


_NUMBERS = (
    ("validation", "accuracy"), ("test", "accuracy"), *[(name, "") for name in (
        "seed", "epochs", "test_images", "params", "flops", "latency_ms", "seconds",
    )],
)  # fmt: skip


def read_result(folder: Path) -> dict[str, Any]:
    """What came of a training. Raises RunError."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text())
        for part, number in _NUMBERS:
            float(found[part][number] if number else found[part])
        for name, kind in (("name", str), ("latency_of", str), ("searched", dict)):
            if not isinstance(found[name], kind):
                raise TypeError(f"{name} is {found[name]!r}")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / RESULT} cannot be read: {error}; delete it to have it written again") from None


@contextmanager
def _helpers(job: Job) -> Iterator[str]:
    """Processes for all ranks but the first, which is this one; gives the address where they meet."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        command = [sys.executable, "-m", "nas.torch.job", str(job.path), meeting]
        path = os.pathsep.join(p for p in [os.environ.get("PYTHONPATH", ""), *sys.path] if p)
        helpers = [
            subprocess.Popen([*command, str(rank)], env={**os.environ, "PYTHONPATH": path})
            for rank in range(1, job.workers)
        ]
        try:
            yield meeting
            for helper in helpers:
                helper.wait()
        finally:
            for helper in helpers:
                helper.kill()
                helper.wait()


def threads_of(job: Job, shape: tuple[int, ...]) -> int:
    """Threads of torch in each process."""
    return job.threads or max(1, threads_for(shape) // job.workers)

"""One validated configuration for the command line, TOML files and Python."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from nas.errors import ConfigError
from nas.screening import Screening

SECTIONS = ("space", "strategy", "evaluator", "data", "screen")
"""Sections of options that there always are; others are called like an evaluator that stands beside the main one."""

EXECUTORS = ("auto", "local", "ray", "tune")


@dataclass(frozen=True)
class Config:
    """Everything a search needs; the defaults are those of `nas search`.

    Args:
        space, strategy, evaluator: plug-in names, or `package.module:Name`.
        data: where the images are.
        start: known architectures to begin with: names of the zoo, run folders, JSON files (`nas.warmstart`).
        screen: such as `proxy:200:20`: an evaluator scores 200 random architectures, and the search begins with the
            best 20, by default a tenth (`nas.screening`); None for none.
        objectives: `name`, or `name:max` / `name:min`.
        limits: such as `flops=300M`.
        trials: how many architectures to evaluate.
        time: seconds, or text such as `10m`; None for no limit.
        trial_timeout: the same, per trial.
        seed: of everything random.
        rungs, eta: epochs at which all but the best 1/eta of the trials end, such as `1,3,9`; empty for full training.
        device: `auto`, `cpu`, `cuda`, ...
        threads: of torch on the CPU; 0 for one per core of the worker, and one alone for images up to 16x16.
        executor: `auto`, `local` (this process), `ray` (a pool of workers) or `tune` (trials of Ray Tune).
        workers: how many architectures are evaluated at once.
        cpus_per_trial: None to share out this machine's.
        gpus_per_trial: may be a fraction.
        prepare_gpus: of a strategy's or evaluator's long job before the first trial; None for those of a trial.
        address: of a Ray cluster, `host:port` or `auto`; None for this machine alone.
        wait: how long to wait for a cluster to grow until it holds a worker.
        runtime_env: a YAML or JSON file that says what Ray's workers need.
        verbose: show Ray's log.
        out: the run folder; None for a fresh one under `runs/`.
        storage: URL such as `s3://bucket/run` at which a copy of the run folder is kept, and through which the files
            of trials travel; None if all machines see the run folder.
        options: per section the options that `--set` sets: of the `space`, `strategy`, `evaluator` and `data`, and of
            an evaluator that measures beside the main one (`nas.beside`) under its name.

    Raises ConfigError for a value of the wrong type or range.
    """

    space: str = "mobile"
    strategy: str = "evolution"
    evaluator: str = "train"
    data: str = "digits"
    objectives: tuple[str, ...] = ("accuracy", "flops")
    limits: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    screen: str | None = None
    trials: int = 36
    time: float | None = None
    trial_timeout: float | None = None
    rungs: tuple[float, ...] = ()
    eta: float = 3.0
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    executor: str = "auto"
    workers: int = 1
    cpus_per_trial: float | None = None
    gpus_per_trial: float = 0.0
    prepare_gpus: float | None = None
    address: str | None = None
    wait: float | None = None
    runtime_env: str | None = None
    verbose: bool = False
    out: str | None = None
    storage: str | None = None
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        for name in ("space", "strategy", "evaluator", "data", "device", "executor"):
            _expect(name, getattr(self, name), str)
        for name, least in (("trials", 1), ("seed", 0), ("threads", 0), ("workers", 1)):
            value = _expect(name, getattr(self, name), int)
            if value < least:
                raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value}")
        for name in ("cpus_per_trial", "gpus_per_trial", "prepare_gpus", "eta"):
            amount = getattr(self, name)
            if amount is not None and (not isinstance(amount, int | float) or isinstance(amount, bool) or amount < 0):
                raise ConfigError(f"{name}: expected a number of at least 0, got {amount!r}")
        if self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(
                f"gpus_per_trial: expected a fraction of one GPU or a whole number, got {self.gpus_per_trial}"
            )
        put("rungs", _numbers("rungs", self.rungs))
        if self.executor not in EXECUTORS:
            raise ConfigError(f"executor: expected one of {', '.join(EXECUTORS)}, got {self.executor!r}")
        _expect("verbose", self.verbose, bool)
        for name in ("objectives", "limits", "start"):
            value = getattr(self, name)
            parts = value.split(",") if isinstance(value, str) else list(_expect(name, value, Sequence))
            put(name, tuple(str(_expect(name, part, str)).strip() for part in parts))
        put("start", tuple(part.strip() for several in self.start for part in several.split(",") if part.strip()))
        for name in ("out", "storage", "address", "runtime_env", "screen"):
            if getattr(self, name) is not None:
                _expect(name, getattr(self, name), str)
        if self.storage is not None and "://" not in self.storage:
            raise ConfigError(f"storage: expected a URL such as s3://bucket/run, got {self.storage!r}")
        if not self.objectives:
            raise ConfigError("objectives: expected at least one, such as accuracy,flops")
        for name in ("time", "trial_timeout", "wait"):
            put(name, parse_seconds(name, getattr(self, name)))
        for section, values in _expect("options", self.options, Mapping).items():
            if not _is_section(section):
                raise ConfigError(
                    f"options: unknown section {section!r}; expected one of {', '.join(SECTIONS)}, or the name of an "
                    "evaluator that measures beside the main one, such as latency"
                )
            _expect(f"options.{section}", values, Mapping)
        if self.screen is not None:
            Screening.parse(self.screen)
        elif "screen" in self.options:
            raise ConfigError("options of 'screen' without a screen; give one with --screen, such as proxy:200")

    @classmethod
    def load(cls, file: Path | None, overrides: Mapping[str, Any], settings: Sequence[str] = ()) -> Self:
        """A TOML file, overridden by flags that were given, overridden by `--set section.name=value`.

        Raises ConfigError for an unreadable file, an unknown key or a bad value.
        """
        values = _read(file) if file is not None else {}
        values |= {name: value for name, value in overrides.items() if value is not None}
        given = _expect("options", values.pop("options", {}), Mapping)
        options = {section: dict(_expect(f"options.{section}", table, Mapping)) for section, table in given.items()}
        for setting in settings:
            section, name, value = _setting(setting)
            options.setdefault(section, {})[name] = value
        return cls.of({**values, "options": options})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From plain data; raises ConfigError for an unknown key."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                close = get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"configuration: unknown key {name!r}{hint} Known: {', '.join(known)}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for `run.json`."""
        return asdict(self)

    def command(self) -> str:
        """The `nas search` that gives this configuration: what differs from the defaults, ready for a shell."""
        words, default = ["nas", "search"], type(self)()
        for each in fields(self):
            value, flag = getattr(self, each.name), "--" + each.name.replace("_", "-")
            if value == getattr(default, each.name) or each.name == "options":
                continue
            if each.name in ("limits", "start"):  # flags that are given once for each
                words += [word for one in value for word in (flag.removesuffix("s"), one)]
            elif isinstance(value, bool):
                words.append(flag)
            else:
                parts = value if isinstance(value, tuple) else (value,)
                words += [flag, ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)]
        for section, options in self.options.items():
            for name, option in options.items():
                text = option if isinstance(option, str) and parse_value(option) == option else json.dumps(option)
                words += ["--set", f"{section}.{name}={text}"]
        return shlex.join(words)

    @property
    def runs_on(self) -> str:
        """The executor: in this process unless something asks for more."""
        if self.executor != "auto":
            return self.executor
        is_more = self.workers > 1 or self.address or self.gpus_per_trial or self.cpus_per_trial
        return "ray" if is_more else "local"

    def option(self, section: str) -> Mapping[str, Any]:
        """Options of one section."""
        return self.options.get(section, {})


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError(f"configuration file {file} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from None


def _setting(text: str) -> tuple[str, str, Any]:
    match = re.fullmatch(r"([\w-]+)\.(\w+)=(.*)", text, flags=re.DOTALL)
    if not match or not _is_section(match[1]):
        raise ConfigError(
            f"--set {text!r} is not SECTION.NAME=VALUE with a section among {', '.join(SECTIONS)} and the names of "
            "evaluators, such as strategy.population=32"
        )
    return match[1], match[2], parse_value(match[3])


def _is_section(name: str) -> bool:
    if name in SECTIONS:
        return True
    from nas.plugins import available

    return name in available("evaluators")


def parse_value(text: str) -> Any:
    """A TOML value (`32`, `0.5`, `true`, `[1, 2]`, `"text"`); anything else is text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_seconds(name: str, value: Any) -> float | None:
    """Seconds of `90s`, `10m`, `2h`, `1d` or a number; None stays None. Raises ConfigError."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9.]+)\s*(s|m|h|d|)", str(value).strip())
    try:
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]] if match else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ConfigError(f"{name}: expected a time such as 90s, 10m or 2h, got {value!r}")
    return seconds


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    """Of `1,3,9` or a list of numbers. Raises ConfigError."""
    parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected numbers such as 1,3,9, got {value!r}") from None


def _expect(name: str, value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        word = {str: "text", int: "a whole number", Mapping: "a table", Sequence: "a list"}.get(kind, kind.__name__)
        raise ConfigError(f"{name}: expected {word}, got {value!r}")
    return value

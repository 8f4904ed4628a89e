"""Everything that can go wrong, as one tree.

A message is one line that a user can act on: what it is about, what was expected, what came, and
what to do. `NasError` and its children are caught by the command line, printed without a
traceback, and end the process with exit code 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class NasError(Exception):
    """Root of all errors raised on purpose by this package."""


class ConfigError(NasError):
    """A flag, a configuration file or an option has a wrong value."""


class PluginError(NasError):
    """A space, strategy, evaluator or user function cannot be found or does not fit the contract."""


class SpaceError(NasError):
    """A template, genotype or search space is malformed or exhausted."""


class GraphError(NasError):
    """A block wires an impossible graph: shapes that do not fit, a name used twice."""


class DataError(NasError):
    """The data cannot be read or cannot be learned from."""


class RunError(NasError):
    """A run folder is missing, corrupted, or belongs to another configuration."""


class ExportError(NasError):
    """An architecture cannot be written in the asked form, or the written form computes something else."""


class EvaluationError(NasError):
    """One trial ended without a result. `state` is the trial state that the journal records.

    Args:
        metrics: what was measured nevertheless.
    """

    state = "failed"

    def __init__(self, message: str = "", metrics: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.metrics = metrics or {}


class Infeasible(EvaluationError):
    """What was measured before training breaks a limit."""

    state = "infeasible"


class Diverged(EvaluationError):
    """The loss or a metric became NaN or infinite."""

    state = "diverged"


class OutOfMemory(EvaluationError):
    """The device or the host has too little memory for this architecture."""

    state = "out_of_memory"


class TimedOut(EvaluationError):
    """The trial used up its time."""

    state = "timed_out"


@contextmanager
def plugin_errors(plugin: object) -> Iterator[None]:
    """What a plug-in raises that is no NasError becomes a PluginError of one line, caused by it."""
    try:
        yield
    except (NasError, Stop):
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{type(plugin).__module__}:{type(plugin).__qualname__} failed: {what}") from error


class Stop(Exception):
    """Raised by `report` to end a trial early; the metrics reported last are its result."""

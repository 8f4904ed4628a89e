"""One file that holds the state of one training: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from nas.errors import EvaluationError, RunError

FORMAT = 1
LARGEST_SHARE = 0.05  # of the time, spent on writing
ADVICE = "delete it to start afresh"


class Checkpoint:
    """A file of tensors and plain values that is rewritten as often as costs little.

    Arguments:
        path: None keeps nothing. Its folder must exist.
        identity: what the training is, in plain values; a file of another one is refused.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = {"format": FORMAT, **identity}
        self._epochs_saved, self._saved_at, self._cost = 0, time.monotonic(), 0.0

    def load(self, apply: Callable[[Mapping[str, Any]], None]) -> None:
        """Hand the state to `apply`, if there is a file.

        Raises EvaluationError if it is not a checkpoint, is another training's, or cannot be applied.
        """
        if self.path is None or not self.path.exists():
            return
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            found, epochs, state = dict(content["identity"]), int(content["epochs"]), dict(content["state"])
        except Exception as error:
            raise EvaluationError(f"{self.path}: not a checkpoint of a training; {ADVICE}") from error
        for name, value in self._identity.items():
            if found.get(name) != value:
                changed = f"{name} was {found.get(name)!r} and is {value!r}"
                raise EvaluationError(f"{self.path}: belongs to another training: {changed}; {ADVICE}")
        try:
            apply(state)
        except Exception as error:
            raise EvaluationError(f"{self.path}: belongs to another architecture; {ADVICE}") from error
        self._epochs_saved = epochs

    def save(self, epochs: int, state: Callable[[], Mapping[str, Any]], *, now: bool) -> None:
        """Write the state after so many epochs, unless it is there already.

        Unless it must be `now`, wait until the last writing is a small share of the time since.
        Raises RunError if it cannot be written.
        """
        start = time.monotonic()
        is_due = self._cost <= LARGEST_SHARE * (start - self._saved_at)
        if self.path is None or epochs == self._epochs_saved or not (now or is_due):
            return
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                torch.save({"identity": self._identity, "epochs": epochs, "state": dict(state())}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(f"{self.path}: {error.strerror or error}; free some space, then resume the run") from error
        self._epochs_saved, self._saved_at = epochs, time.monotonic()
        self._cost = self._saved_at - start

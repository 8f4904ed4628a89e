"""One file that holds the state of one training: written whole or not at all, read without running code."""

from __future__ import annotations

import io
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
        defaults: of the identity, where the file is of a version that did not know it yet.
    """

    def __init__(
        self, path: Path | None, identity: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._identity, self._defaults = {"format": FORMAT, **identity}, defaults or {}
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
            before = found.get(name, self._defaults.get(name))
            if before != value:
                changed = f"{name} was {before!r} and is {value!r}"
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
        content = io.BytesIO()  # torch itself says of a full disk what nobody understands
        torch.save({"identity": self._identity, "epochs": epochs, "state": dict(state())}, content)
        try:
            try:
                with temporary.open("wb") as file:
                    file.write(content.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{self.path}: {error.strerror or error}; free some space, then resume the run") from error
        self._epochs_saved, self._saved_at = epochs, time.monotonic()
        self._cost = self._saved_at - start

"""Writing an architecture in forms that need nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Exported:
    """Files that were written, and how far their outputs are from the module's: max|difference| / max|output|."""

    files: tuple[Path, ...]
    difference: float
    trained: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"files": [str(path) for path in self.files], "difference": self.difference, "trained": self.trained}


def export_run(run: Path, which: str = "best", folder: Path | None = None, name: str | None = None) -> Exported:
    """Write an architecture of a run as a Python file, with its trained weights if the run kept them.

    Args:
        run: the run's folder.
        which: `best`, `best:METRIC` or a trial's number.
        folder: where to write; by default `export` in the run's folder.
        name: of the files; by default that of the architecture, as Python can import it.

    Raises RunError if there is no such trial, ExportError if the file cannot be written or computes something else.
    """
    from nas.export.files import export
    from nas.export.weights import read
    from nas.session import load

    results = load(run)
    found = results.select(which)
    state = read(found.weights)[0] if found.weights else None
    name = name or found.architecture.name.replace("-", "_")  # a file that Python can import
    notes = _notes(results.run.config["task"], found.trial.metrics if state else {})
    return export(found.architecture, state, folder or run / "export", name, notes)


def _notes(task: Mapping[str, Any], metrics: Mapping[str, float]) -> list[str]:
    """How images were prepared, what the classes are, and what the network reached."""
    notes = []
    if "mean" in task:
        mean, std = (", ".join(f"{v:.4f}" for v in task[name]) for name in ("mean", "std"))
        notes.append(f"Pixels were scaled to 0..1, then normalised: mean ({mean}), standard deviation ({std}).")
    if "class_names" in task and len(task["class_names"]) <= 100:
        notes.append(f"Classes: {', '.join(task['class_names'])}.")
    if "accuracy" in metrics:
        notes.append(f"Validation accuracy with the weights of the search: {metrics['accuracy']:.4f}.")
    return notes

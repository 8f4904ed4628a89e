"""Writing an architecture in forms that need nothing of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Exported:
    """Files of one format, and how far their outputs are from the module's: max|difference| / max|output|.

    `trained`: they have, or were checked with, weights of a training; otherwise initial ones.
    """

    format: str
    files: tuple[Path, ...]
    difference: float
    trained: bool

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        files = [str(path) for path in self.files]
        return {"format": self.format, "files": files, "difference": self.difference, "trained": self.trained}


def export_run(
    run: Path, which: str = "best", folder: Path | None = None, name: str | None = None,
    formats: Sequence[str] = ("source",), *, weights: bool = True,
) -> list[Exported]:  # fmt: skip
    """Write an architecture of a run, with its trained weights if the run kept them.

    Args:
        run: the run's folder.
        which: `best`, `best:METRIC` or a trial's number.
        folder: where to write; by default `export` in the run's folder.
        name: of the files; by default that of the architecture, as Python can import it.
        formats: `source`, `state`, `onnx`, `program`, `json`; see `nas.export.formats`.
        weights: False leaves the trained weights out.

    Raises RunError if there is no such trial, ExportError if a file cannot be written or computes something else.
    """
    from nas.export.files import export
    from nas.export.weights import read
    from nas.session import load

    results = load(run)
    found = results.select(which)
    state = read(found.weights)[0] if weights and found.weights else None
    architecture = found.architecture
    name = name or architecture.name.replace("-", "_")  # a file that Python can import
    notes = _notes(results.run.config["task"], found.trial.metrics if state else {})
    return export(architecture, state, folder or run / "export", name, notes, formats)


def export_training(
    folder: Path, target: Path | None = None, name: str | None = None, formats: Sequence[str] = ("source",), *,
    weights: bool = True,
) -> list[Exported]:  # fmt: skip
    """Write the network of a folder of `nas train`, with the weights that it ended with; arguments as for `export_run`.

    Raises RunError if the training has not ended, ExportError as `export_run` does.
    """
    from nas.export.files import export
    from nas.export.weights import read
    from nas.training import finished, read_result

    architecture, file = finished(folder)
    result = read_result(folder)
    state = read(file)[0] if weights else None
    notes = _notes(result.get("task", {}), {})
    if weights:
        accuracy, images = result["test"]["accuracy"], result["test_images"]
        notes.append(f"Test accuracy after {result['epochs']} epochs: {accuracy:.4f} of {images:,} images.")
    name = name or architecture.name.replace("-", "_")
    return export(architecture, state, target or folder / "export", name, notes, formats)


def read_network(path: str | Path) -> nn.Module:
    """The network of a `.safetensors` file that `--format source` or `state` wrote, with its weights, on the CPU.

    Nothing in the file is run. Raises ExportError if it is no such file.
    """
    import json

    from nas.architecture import Architecture
    from nas.errors import ExportError
    from nas.export.weights import fits, read_all

    tensors, facts = read_all(path)
    if "network" not in facts:
        raise ExportError(f"{path} does not say of which network its weights are; was it written by `nas export`?")
    try:
        data = json.loads(facts["network"])
    except ValueError as error:
        raise ExportError(f"{path}: the architecture in it is no JSON: {error}") from None
    module = Architecture.from_json(data).module()
    fits(tensors, module, str(path))
    module.load_state_dict(tensors)
    return module.eval()


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

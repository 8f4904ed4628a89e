"""An architecture as two files: plain Python source, and its weights; checked before they count as written."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export import Exported
from nas.export.check import case, check_many, vary
from nas.export.source import compose
from nas.export.weights import fits, save
from nas.store import write_atomically
from nas.torch.build import build


def export(
    architecture: Architecture, state: Mapping[str, Tensor] | None, folder: str | Path, name: str,
    notes: Sequence[str] = (),
) -> Exported:  # fmt: skip
    """Write `<name>.py`, and trained weights as `<name>.safetensors`, and check that they compute what the module does.

    Args:
        architecture: the network.
        state: its trained weights; None: the file is checked with random ones, which are not kept.
        folder: made if it is not there.
        name: of the files and, in camel case, of the network's class.
        notes: what else its user must know, for the file's docstring.

    Raises ExportError for weights of another network, a name that is no file name, or a file that computes something
    else than the module; nothing is written then.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ExportError(f"{name!r} is no name for a file; use letters, digits, '-', '_' and '.'")
    graph = architecture.graph()
    module = build(graph, seed=0)
    if state is None:
        vary(module)
    else:
        fits(state, module, "the given state")
        module.load_state_dict(state)
    source = compose(architecture, name=name, notes=notes)
    with tempfile.TemporaryDirectory() as scratch:
        script, weights = Path(scratch) / f"{name}.py", Path(scratch) / f"{name}.safetensors"
        script.write_text(source.text, encoding="utf-8")
        save(module, weights, key=architecture.key())
        shapes = [graph.shapes[i] for i in graph.inputs]
        (difference,) = check_many([case(script, weights, module, shapes, foreign=bool(source.imports))])
    files = [Path(folder) / f"{name}.py"]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    write_atomically(files[0], source.text)
    if state is not None:
        files.append(Path(folder) / f"{name}.safetensors")
        save(module, files[1], key=architecture.key())
    return Exported(tuple(files), difference, state is not None)

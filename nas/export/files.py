"""An architecture as files, checked before they count as written."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export import Exported
from nas.export.check import check_many
from nas.export.formats import WRITERS, Network
from nas.export.weights import fits


def export(
    architecture: Architecture, state: Mapping[str, Tensor] | None, folder: str | Path, name: str,
    notes: Sequence[str] = (), formats: Sequence[str] = ("source",),
) -> list[Exported]:  # fmt: skip
    """Write a network in some formats, and check that each computes what the module does.

    Args:
        architecture: the network.
        state: its trained weights; None: there are none, and the formats that must have some get initial ones.
        folder: made if it is not there.
        name: of the files and, in camel case, of the network's class.
        notes: what else its user must know, for the file's docstring.
        formats: of `nas.export.formats.WRITERS`.

    Raises ExportError for weights of another network, a name that is no file name, an unknown format, what a format
    needs and lacks, or a file that computes something else than the module; nothing is written then.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ExportError(f"{name!r} is no name for a file; use letters, digits, '-', '_' and '.'")
    for wanted in formats:
        if wanted not in WRITERS:
            raise ExportError(f"--format: {wanted!r} is not one of {', '.join(WRITERS)}")
    place = Path(folder).resolve()
    own = place if (place / "run.json").exists() else place.parent if place.name in ("weights", "trials") else None
    if own is not None and (own / "run.json").exists():  # one of its files may have that name
        raise ExportError(
            f"--out {folder}: holds files of the run {own.name}; choose another folder, such as its export"
        )
    module = architecture.module(seed=0)
    if state is not None:
        fits(state, module, "the given state")
        module.load_state_dict(state)
    network = Network(architecture, module.eval(), state is not None, notes)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as scratch:
        drafts = [WRITERS[wanted](network, Path(scratch), name) for wanted in dict.fromkeys(formats)]
        differences = check_many([draft.case for draft in drafts])
        found = []
        for wanted, draft, difference in zip(dict.fromkeys(formats), drafts, differences, strict=True):
            files = tuple(target / file.name for file in draft.files)
            found.append(Exported(wanted, files, difference, state is not None))
        for file in {file for draft in drafts for file in draft.files}:
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.replace(target / file.name)
    return found

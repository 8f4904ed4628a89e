"""Which files of trials stay in a run folder: the trained weights of the front, and what explains an error."""

from __future__ import annotations

import shutil
from collections.abc import Collection

from nas.store import Run


def after(run: Run, number: int, front: Collection[int], left: Collection[int]) -> None:
    """Tidy up after trial `number`, given the front's numbers and those of the trials that it pushed out."""
    if run.mirror is not None:  # the files are at its storage
        run.mirror.after(number, front)
        return
    folder = run.workdir(number)
    weights = folder / "weights.safetensors"
    if number in front and weights.exists():
        target = run.weights(number)
        target.parent.mkdir(exist_ok=True)
        weights.replace(target)
    if (folder / "error.txt").exists():
        for file in folder.glob("checkpoint*"):
            file.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
    for other in left:
        run.weights(other).unlink(missing_ok=True)


def everything(run: Run, front: Collection[int]) -> None:
    """Tidy up the whole folder: a run that was killed may have been in the middle of it."""
    if run.mirror is not None:
        run.mirror.everything(run.asked, run.proposals, front)
    folders = run.path / "trials"
    for folder in sorted(folders.iterdir()) if folders.is_dir() and run.mirror is None else ():
        if folder.name.isdecimal() and int(folder.name) not in run.asked:
            after(run, int(folder.name), front, ())
    saved = run.path / "weights"
    for file in saved.glob("*.safetensors") if saved.is_dir() else ():
        if file.stem.isdecimal() and int(file.stem) not in front:
            file.unlink()

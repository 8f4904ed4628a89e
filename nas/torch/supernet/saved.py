"""A trained supernet's weights as arrays and as a file, and whose they are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nas.errors import ExportError, GraphError, RunError
from nas.export.weights import fits, read_all, save
from nas.torch.supernet.store import Supernet

if TYPE_CHECKING:
    from nas.architecture import Architecture
    from nas.space import Space

FILE = "supernet.safetensors"
PLACE = Path("prepare") / "evaluator" / FILE
"""Where a run folder has it."""

LOOKS = 100
"""Random networks that are tried until one lies in a supernet's space."""


@dataclass(frozen=True, eq=False)
class Saved:
    """The state of a supernet as arrays by name, and what is known of it, as text.

    Arrays, because Ray's workers then share one copy per machine.
    """

    weights: Mapping[str, np.ndarray[Any, Any]]
    facts: Mapping[str, str]

    @classmethod
    def of(cls, supernet: Supernet, **facts: object) -> Saved:
        """A copy of the weights; `facts` are kept beside those that say which space they are for."""
        weights = {name: value.detach().cpu().numpy().copy() for name, value in supernet.state_dict().items()}
        return cls(weights, {"supernet": fingerprint(supernet), "space": _named(supernet.space), **_texts(facts)})

    @classmethod
    def read(cls, path: Path) -> Saved:
        """From a file. Raises RunError for one that is damaged or no supernet's."""
        try:
            tensors, facts = read_all(path)
        except ExportError as error:
            raise RunError(f"{error}; expected a supernet's weights") from None
        if "supernet" not in facts:
            raise RunError(f"{path} holds no supernet's weights but those of one network; expected a run's {PLACE}")
        return cls({name: tensor.numpy() for name, tensor in tensors.items()}, facts)

    def write(self, path: Path) -> None:
        """Into a file, whole or not at all."""
        save(_tensors(self.weights), path, facts=self.facts)

    def check(self, space: Space, where: str) -> None:
        """Raises RunError if it is not of this space."""
        self.supernet(space, where)

    def supernet(self, space: Space, where: str) -> Supernet:
        """The supernet. Its weights are views of the arrays. Raises RunError if it is not of this space."""
        supernet = Supernet(space)
        if fingerprint(supernet) != self.facts["supernet"]:
            raise RunError(
                f"{where}: its supernet is for the space {self.facts.get('space', 'of another version')}; expected one "
                f"for {_named(space)} as it is now; train one, or search the space that it is for"
            )
        tensors = _tensors(self.weights)
        try:
            fits(tensors, supernet, where)
        except ExportError as error:
            raise RunError(f"{error}; the file is damaged: delete it, and train anew") from None
        supernet.load_state_dict(tensors, assign=True)
        return supernet.requires_grad_(False)


@dataclass(eq=False)
class Lender:
    """The supernet of a run, and the space that it was trained for.

    Args:
        run: the run folder.
    """

    run: str
    space: Space
    saved: Saved
    _supernet: Supernet | None = field(default=None, init=False)

    @classmethod
    def of(cls, run: str) -> Lender:
        """Read a run folder. Raises RunError if it has no supernet, or one of another space than it says."""
        from nas.session import load

        file = find(run)
        if file == Path(run):
            raise RunError(f"{run} is a file; expected the run folder that it is from, which says what its space is")
        return cls(run, load(run).space, Saved.read(file))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_supernet": None}  # each process makes its own; the arrays are shared

    @property
    def about(self) -> str:
        """The space."""
        return _named(self.space)

    def path(self, architecture: Architecture) -> Any:
        """A network with the borrowed weights. Raises GraphError if it does not lie in the space."""
        if self._supernet is None:
            self._supernet = self.saved.supernet(self.space, self.run)
        return self._supernet.path(architecture)

    def lend(self, architecture: Architecture, module: torch.nn.Module) -> None:
        """Fill the module of an architecture. Raises GraphError if it does not lie in the space."""
        try:
            module.load_state_dict(self.path(architecture).weights())
        except GraphError as error:
            raise GraphError(f"it cannot start from the supernet of {self.run} ({self.about}): {error}") from None

    def fits(self, space: Space) -> bool:
        """Whether any of some random networks of a space lies in this one."""
        rng = np.random.default_rng(0)
        for _ in range(LOOKS):
            try:
                self.path(space.architecture(space.sample(rng)))
            except GraphError:
                continue
            return True
        return False


def find(source: str | Path) -> Path:
    """The file of a run folder's supernet, or the file itself. Raises RunError if there is none."""
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(f"there is no {path}; expected a run folder, or a supernet's .safetensors file")
    if (path / PLACE).is_file():
        return path / PLACE
    if not (path / "run.json").is_file():
        raise RunError(f"{path} is not a run folder (no run.json); `nas list` shows the runs there are")
    raise RunError(f"run {path} has no supernet ({PLACE}); expected one searched with --evaluator=supernet")


def fingerprint(supernet: Supernet) -> str:
    """What all weights of a space have in common: names, sizes, and where the channels of parts begin."""
    parts = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in supernet.state_dict().items()]
    parts += [f"{key} {part} {size}" for (key, part), size in supernet.extents.parts.items()]
    return sha256("\n".join(sorted(parts)).encode()).hexdigest()[:16]


def _named(space: Space) -> str:
    return f"{space.name!r} on {'x'.join(map(str, space.input_shape))} images of {space.classes} classes"


def _texts(facts: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}


def _tensors(weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor does anybody write
        return {name: torch.from_numpy(array) for name, array in weights.items()}

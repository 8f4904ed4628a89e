"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as their author packed them for Python: pickles of arrays.

A pickle can call anything, so these are not unpickled but replayed: the few names that such files hold
stand for the recorders below, every other name is refused, and numpy only ever sees plain bytes.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import DataError
from nas.torch.data.arrays import Array, from_arrays
from nas.torch.data.parts import Raw, first_line


class _Layout(NamedTuple):
    meta: str  # the file of class names
    parts: Mapping[str, tuple[str, ...]]
    labels: str  # keys of the dicts in the files
    names: str


LAYOUTS = (
    _Layout(
        "batches.meta",
        {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        labels="labels",
        names="label_names",
    ),
    _Layout("meta", {"train": ("train",), "test": ("test",)}, labels="fine_labels", names="fine_label_names"),
)
FILES = frozenset(name for layout in LAYOUTS for names in (*layout.parts.values(), (layout.meta,)) for name in names)


class _Array:
    """Records what numpy would be told: _reconstruct(...), then the state with shape, dtype and content."""

    def __init__(self, *arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def bytes(self) -> Array:
        """Return the recorded array of unsigned bytes, in C or Fortran order."""
        _, shape, dtype, fortran, content = self.state
        if dtype.code not in (b"u1", "u1"):
            raise TypeError(f"expected bytes, got {dtype.code}")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Records dtype(code, align, copy); its state (byte order and the like) says nothing about bytes."""

    def __init__(self, code: object, *arguments: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _latin1(text: str, encoding: str) -> bytes:
    """Stand for _codecs.encode(text, "latin1"): how Python 3 writes bytes in old protocols."""
    return text.encode("latin1")


KNOWN_NAMES: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN_NAMES:
            raise DataError(f"refused: it asks for {module}.{name}, which is not part of a CIFAR batch")
        return KNOWN_NAMES[module, name]


def unpickle(where: str, content: bytes) -> dict[str, Any]:
    """Read a pickled dict of lists, strings and arrays of bytes, running no code from it.

    Raises DataError if it asks for anything else, or is damaged.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        values = (value.bytes() if isinstance(value, _Array) else value for value in batch.values())
        return dict(zip(map(_text, batch), values, strict=True))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:  # damaged pickles raise anything
        raise DataError(f"{where}: not a CIFAR batch, or damaged: {error!r}; fetch it again") from error


def is_cifar(folder: Path) -> bool:
    """Whether a folder looks like cifar-10-batches-py or cifar-100-python, perhaps an incomplete one."""
    return any((folder / name).is_file() for name in ("data_batch_1", "batches.meta", "meta"))


def read_cifar(path: Path) -> Raw:
    """Read a folder that `is_cifar`, or the .tar.gz of one."""
    files = _read_files(path)
    layout = next((layout for layout in LAYOUTS if layout.meta in files), None)
    if layout is None:
        expected = " or ".join(layout.meta for layout in LAYOUTS)
        raise DataError(f"{path}: expected CIFAR's python batches with a file {expected}, found none")
    parts = {}
    for part, names in layout.parts.items():
        for name in names:
            if name not in files:
                raise DataError(f"{path}: the file {name} is missing; fetch the archive again")
        batches = [unpickle(f"{path}/{name}", files[name]) for name in names]
        try:
            images = np.concatenate([np.reshape(batch["data"], (-1, 3, 32, 32)) for batch in batches])
            parts[part] = images, np.concatenate([np.asarray(batch[layout.labels]) for batch in batches])
        except (KeyError, ValueError) as error:
            expected = f"data of shape (N, 3072) and {layout.labels}"
            raise DataError(f"{path}: {part}: expected {expected}: {error!r}") from error
    class_names = unpickle(f"{path}/{layout.meta}", files[layout.meta]).get(layout.names)
    if not (isinstance(class_names, list) and class_names):
        raise DataError(f"{path}/{layout.meta}: expected a list {layout.names}, got {class_names!r:.40}")
    return from_arrays(str(path), parts, [_text(name) for name in class_names])


def _read_files(path: Path) -> dict[str, bytes]:
    """The files by name, from a folder or an archive (in memory: nothing is extracted)."""
    if path.is_dir():
        return {name: (path / name).read_bytes() for name in sorted(FILES) if (path / name).is_file()}
    files = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name in FILES and member.isfile() else None
                if file is not None:
                    files[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or damaged: {first_line(error)}; fetch it again") from error
    return files


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

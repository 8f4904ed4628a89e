"""Weights as safetensors files: tensors by name and a few strings, never code. Written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from nas.errors import ExportError

FORMAT = 1


def save(
    weights: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    key: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the state dictionary of a module (or one given as such) to `path`; folders are made.

    `key`: structural key of the architecture, kept beside the tensors, as are other `facts` by name. Raises ExportError
    where a state is no tensor.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ExportError(f"state {name!r} is {type(value).__name__}; only tensors can be saved as safetensors")
        # A copy of its own for each: names that share memory (tied layers) are refused by the format.
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(to_bytes(tensors, {**(facts or {}), "nas": str(FORMAT), "architecture": key}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file, and the key of the architecture they belong to. Raises ExportError."""
    tensors, facts = read_all(path)
    return tensors, facts.get("architecture", "")


def read_all(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and all facts that were written beside them. Raises ExportError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except FileNotFoundError:
        raise ExportError(f"there is no weights file {path}") from None
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} is not a readable safetensors file: {error}") from None
    version = metadata.get("nas", str(FORMAT))
    if not version.isdecimal() or int(version) > FORMAT:
        raise ExportError(f"{path} has format {version}, newer than {FORMAT}; upgrade this package")
    return tensors, dict(metadata)


def load(path: str | Path, module: nn.Module, *, key: str = "") -> None:
    """Fill a module with the weights of a file, in place.

    `key`: of the module's architecture; a file that names another one is refused. Raises ExportError if anything
    does not fit; the module is unchanged then.
    """
    tensors, written = read(path)
    if key and written and key != written:
        raise ExportError(f"{path} holds the weights of architecture {written}, not of {key}")
    fits(tensors, module, str(path))
    module.load_state_dict(tensors)


def fits(tensors: Mapping[str, Any], module: nn.Module, where: str) -> None:
    """Raises ExportError naming the first tensor that the module and the mapping do not have in common."""
    state = module.state_dict()
    for name in (*state, *tensors):
        if name not in tensors or name not in state:
            verb = "lacks" if name in state else "has"
            raise ExportError(f"{where} {verb} {name!r}: {len(tensors)} tensors for a network of {len(state)}")
        if tensors[name].shape != state[name].shape:
            shapes = f"{list(tensors[name].shape)}, the network expects {list(state[name].shape)}"
            raise ExportError(f"{where}: {name!r} has the shape {shapes}")

"""One set of weights for all networks of a space (Pham et al. 2018, Guo et al. 2019), and searches that need it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.torch.supernet.path import Path as Path
    from nas.torch.supernet.relaxed import Relaxed as Relaxed
    from nas.torch.supernet.store import Supernet as Supernet

# Imported when first used: settings are read where torch need not be.
_EXPORTS = {"Path": "path", "Relaxed": "relaxed", "Supernet": "store"}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"nas.torch.supernet.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'nas.torch.supernet' has no attribute {name!r}")

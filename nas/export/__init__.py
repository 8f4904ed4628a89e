"""Writing an architecture in forms that need nothing of this package."""

from __future__ import annotations

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

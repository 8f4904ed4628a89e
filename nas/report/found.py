"""What later commands left in a run folder, as rows of a table. What cannot be read is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROXY = ("proxy", "kendall", "spearman", "low", "high", "n")
NOT_SHOWN = ("format", "seconds", "history", "curve")

Row = Mapping[str, Any]


def proxies(run: Path) -> list[Row]:
    """Rank correlations of zero-cost proxies with the run's results (`proxies.json`)."""
    rows = _read(run / "proxies.json")
    if not isinstance(rows, list):
        return []
    kept = [{name: row[name] for name in PROXY if name in row} for row in rows if isinstance(row, dict)]
    return [row for row in kept if "proxy" in row]


def retrained(run: Path) -> list[Row]:
    """Plain numbers and words of each `train/*/result.json`."""
    found: list[Row] = []
    for path in sorted(run.glob("train/*/result.json")):
        data = _read(path)
        if isinstance(data, dict):
            flat = {**data, **data.get("metrics", {})} if isinstance(data.get("metrics", {}), dict) else data
            plain = {k: v for k, v in flat.items() if isinstance(v, int | float | str) and k not in NOT_SHOWN}
            found.append({"training": path.parent.name, **plain})
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

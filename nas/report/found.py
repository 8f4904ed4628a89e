"""What other commands left in a run folder, as rows of a table. What cannot be read is not there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.honesty import recorded

if TYPE_CHECKING:
    from nas.session import Results

PROXY = ("proxy", "kendall", "low", "high", "spearman", "over_flops", "networks", "verdict")
TRAINING = (
    "name", "seed", "epochs", "searched accuracy", "validation accuracy", "test accuracy", "test_images", "params",
    "flops", "latency_ms",
)  # fmt: skip

Row = Mapping[str, Any]


def proxies(results: Results) -> list[Row]:
    """Rank correlations with the run's results: those of `nas proxies`, else of FLOPs and what the run computed."""
    data = _read(results.path / "proxies.json")
    rows = data.get("proxies") if isinstance(data, dict) else None
    if not isinstance(rows, list):
        found = recorded(results.trials, results.objectives, results.proxies)
        rows = [] if found is None else found.to_json()["proxies"]
    return [_picked(row, PROXY) for row in rows if isinstance(row, dict) and "proxy" in row]


def retrained(run: Path) -> list[Row]:
    """Figures of each `train/*/result.json`; those of a group such as `test` are called `test accuracy`."""
    found: list[Row] = []
    for path in sorted(run.glob("train/*/result.json")):
        data = _read(path)
        if isinstance(data, dict):
            groups = {name: group for name, group in data.items() if isinstance(group, dict)}
            inner = {f"{name} {key}": value for name, group in groups.items() for key, value in group.items()}
            found.append({"training": path.parent.name, **_picked({**data, **inner}, TRAINING)})
    return found


def _picked(row: Row, names: Sequence[str]) -> Row:
    return {name: row[name] for name in names if isinstance(row.get(name), int | float | str)}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

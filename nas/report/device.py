"""How a table of a device's blocks comes about, and what it says."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from nas.device.profile import Hear
from nas.device.table import Table
from nas.report.tables import print_rows

PAUSE = 10.0
"""Seconds between two lines where there is no terminal."""


def watch(make: Callable[[Hear], Table]) -> Table:
    """The table that `make` measures, showing on standard error how far it is."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), BarColumn(24), TextColumn("{task.description}"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    shown = time.monotonic()

    def hear(what: str, done: int, of: int) -> None:
        nonlocal shown
        line = f"{what} {done:,}/{of:,}" if of else what
        bar.update(task, description=line, completed=done, total=of or None)
        if not console.is_terminal and time.monotonic() - shown > PAUSE:
            shown = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    with bar:
        task = bar.add_task("starting", total=None)
        try:
            return make(hear)
        except KeyboardInterrupt:
            bar.stop()
            print("stopped; the same command goes on", file=sys.stderr)
            raise


def to_json(table: Table) -> dict[str, Any]:
    """What is printed, as data; seconds."""
    assert table.check is not None
    check = table.check
    predicted = [check.scale * total + check.offset for total, _ in check.held_out]
    return {
        "table": str(table.path), "settings": table.settings.to_json(), "device": dict(table.device),
        "space": dict(table.space), "blocks": len(table.blocks), "fitted": len(check.fitted), "scale": check.scale,
        "offset": check.offset, "median_error": check.error, "largest_error": max(check.errors),
        "spearman": check.spearman,
        "held_out": [{"predicted": p, "measured": m} for p, (_, m) in zip(predicted, check.held_out, strict=True)],
    }  # fmt: skip


def print_table(table: Table) -> None:
    """Device, blocks, prediction beside measurement, and the next command."""
    data = to_json(table)
    name = data["space"]["name"]
    print(f"device  {', '.join(f'{key} {value}' for key, value in data['device'].items())}")
    print(f"runs    {table.settings}, on {table.settings.device}")
    print(f"blocks  {data['blocks']:,} of space {name} on {'x'.join(map(str, data['space']['input_shape']))} images")
    print_rows("networks", [
        {"predicted (ms)": row["predicted"] * 1e3, "measured (ms)": row["measured"] * 1e3,
         "error": f"{row['predicted'] / row['measured'] - 1:+.1%}"}
        for row in data["held_out"]
    ])  # fmt: skip
    print(f"check   {table.check} (scale {data['scale']:.3f}, offset {data['offset'] * 1e3:+.3f} ms from "
          f"{data['fitted']} others)")  # fmt: skip
    print(f"wrote   {table.path}")
    print(f"next    nas search --space {name} ... --objectives accuracy,latency --set latency.table={table.path}")

"""What proxies are worth, on the terminal."""

from __future__ import annotations

from math import isfinite

from nas.honesty import Honesty, Interval
from nas.report.tables import print_table


def print_honesty(found: Honesty) -> None:
    """A line for each proxy, the best first."""
    print(f"rank correlation with {found.metric}, {found.networks} networks; in brackets 95 % intervals")
    rows = [
        [row.proxy, shown(row.kendall), shown(row.spearman), "" if row.over_flops is None else shown(row.over_flops),
         row.verdict if row.networks == found.networks else f"{row.verdict}; defined for {row.networks}"]
        for row in found.rows
    ]  # fmt: skip
    print_table(["proxy", "Kendall's tau", "Spearman's rho", "tau over FLOPs", ""], rows)


def shown(interval: Interval) -> str:
    """Such as `.52 (.31 to .70)`."""
    value, low, high = (f"{x:+.2f}".replace("0.", ".").lstrip("+") if isfinite(x) else "?" for x in interval)
    return f"{value} ({low} to {high})"

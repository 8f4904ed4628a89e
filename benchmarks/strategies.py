"""The published comparison on NAS-Bench-Macro: ours beside Optuna's samplers and pymoo's NSGA-II, and the verdicts.

    python benchmarks/strategies.py [--seeds 50] [--first-seed 1000] [--out runs/strategies] [--distinct]

Three calls of what `nas bench` does, resumable like it: accuracy against FLOPs, the best accuracy alone, and the
reinforcement learner against random for longer. Every method sees the mean accuracy of three trainings; every proposal
counts, with `--distinct` only networks that were not seen before. Exit code 1 if a verdict is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.bench.comparison import Bench, Comparison, compare

Verdict = tuple[str, bool]
RL = "random,rl,rl(policy=lstm)"


def front(found: Comparison) -> Iterator[Verdict]:
    """Accuracy against FLOPs."""
    volume = {entry["method"]: volumes(entry) for entry in found.summary}
    yield from ahead("evolution", ("pymoo-nsga2", "optuna-nsga2", "random"), volume)
    yield from above("predictor", {50: 0.975, 100: 0.995}, volume)
    yield from above("local-search", {50: 0.903, 100: 0.949, 200: 0.981}, volume)
    yield from ahead("tpe", ("optuna-tpe",), volume)


def best(found: Comparison) -> Iterator[Verdict]:
    """Evaluations until within 0.1 points of the best mean accuracy."""
    taken = {entry["method"]: entry["reached"][1] for entry in found.summary}
    for name, most in (("predictor", 20), ("local-search", 30)):
        yield f"{name} takes {taken[name]} evaluations, at most {most}", (taken[name] or 1e9) <= most
    ours, theirs = taken["tpe"], taken["optuna-tpe"]
    yield f"tpe takes {ours} evaluations, Optuna by hand {theirs}", (ours or 1e9) <= (theirs or 1e9)


def longer(found: Comparison) -> Iterator[Verdict]:
    """The reinforcement learner, at 200 and 500."""
    volume = {entry["method"]: volumes(entry) for entry in found.summary}
    yield from ahead("rl", ("random",), volume)
    yield from ahead("rl(policy=lstm)", ("random",), volume)


def volumes(entry: Mapping[str, Any]) -> dict[int, float]:
    """Mean hypervolume by budget."""
    return {int(budget): measured["hypervolume"][0] for budget, measured in entry["budgets"].items()}


def ahead(name: str, others: tuple[str, ...], volume: Mapping[str, Mapping[int, float]]) -> Iterator[Verdict]:
    """At every budget that both have."""
    for other in others:
        margins = [mine - volume[other][budget] for budget, mine in volume[name].items() if budget in volume[other]]
        yield f"{name} ahead of {other} by {', '.join(f'{m:+.4f}' for m in margins)}", min(margins) > 0


def above(name: str, least: Mapping[int, float], volume: Mapping[str, Mapping[int, float]]) -> Iterator[Verdict]:
    """At these budgets, to three digits."""
    for budget, bar in least.items():
        mine = volume[name][budget]
        yield f"{name} at {budget}: {mine:.4f}, at least {bar}", round(mine, 3) >= bar


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=1000, help="the designs were chosen on other seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--workers", type=int)
    parser.add_argument("--distinct", action="store_true", help="a network seen before is not counted")
    given = parser.parse_args()
    common: dict[str, Any] = {"seeds": given.seeds, "first_seed": given.first_seed, "workers": given.workers,
                              "distinct": given.distinct}  # fmt: skip
    parts = (
        (front, Bench(out=given.out / "front", **common)),
        (best, Bench(out=given.out / "best", objectives="accuracy", **common)),
        (longer, Bench(out=given.out / "longer", strategies=RL, peers="none", budgets="200,500", **common)),
    )
    verdicts: list[Verdict] = []
    for judge, bench in parts:
        found = compare(bench)
        found.print()
        verdicts += judge(found)
    for text, good in verdicts:
        print("ok " if good else "NOT", text)
    return 0 if all(good for _, good in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())

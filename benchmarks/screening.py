"""What scoring many architectures before a search is worth, on NAS-Bench-Macro.

    python benchmarks/screening.py

Hypervolume of accuracy against FLOPs after so many trainings (looked up), relative to that of the whole table, mean of
the seeds and standard error: the strategy alone, and beginning with those that screening by proxies picks. Screening
costs no training; the time that it takes on one core is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from nas.bench.problem import Source
from nas.config import Config
from nas.session import load, start

BUDGETS = (10, 20, 40, 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100, help="below 100: the rule was chosen on them")
    parser.add_argument("--screen", default="proxy:200:20")
    parser.add_argument("--strategies", default="random,evolution")
    args = parser.parse_args()
    problem = Source("nas-bench-macro", None, "accuracy,flops").load()
    print(f"{'':28}" + "".join(f"{f'{budget} trainings':>18}" for budget in BUDGETS))
    for strategy in args.strategies.split(","):
        for screen in (None, args.screen):
            curves, seconds = [], []
            for seed in range(args.first_seed, args.first_seed + args.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    config = Config(
                        space="nasbench-macro", strategy=strategy, evaluator="table", screen=screen, seed=seed,
                        trials=max(BUDGETS), out=str(Path(folder) / "run"),
                        options={"screen": {"noise": True}} if screen else {},
                    )  # fmt: skip
                    began = time.process_time()
                    search = start(config)
                    seconds.append(time.process_time() - began)
                    search.run()
                    trials = [trial for trial in load(config.out or "").trials if trial.evaluated]
                    costs = np.array([[o.cost(trial.metrics) for o in problem.objectives] for trial in trials])
                    curves.append(problem.measure.curve(costs))
            cells = [np.array([curve[budget - 1] for curve in curves]) for budget in BUDGETS]
            error = [cell.std(ddof=1) / len(cell) ** 0.5 for cell in cells]
            name = f"{strategy}, {screen}" if screen else strategy
            row = "".join(f"{f'{c.mean():.3f} +- {e:.3f}':>18}" for c, e in zip(cells, error, strict=True))
            print(f"{name:28}{row}   {np.mean(seconds):.1f} s", flush=True)


if __name__ == "__main__":
    main()

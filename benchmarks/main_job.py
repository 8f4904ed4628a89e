"""The main job end to end: `nas search --space=mobile --strategy=evolution`, on digits and on Fashion-MNIST.

    python benchmarks/main_job.py digits
    python benchmarks/main_job.py fashion --data ../shared/data/fashion-mnist/fashion_mnist.npz

Prints the time, the front, the factor in FLOPs that it spans, and the best validation accuracy. Digits must end in two
minutes; Fashion-MNIST has a budget of ten and must find a network of at least 90 %.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nas.session import load

FASHION = [
    "--time=10m", "--trials=1000", "--limit=flops=6M", "--set=evaluator.epochs=3", "--set=evaluator.batch=64",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("digits", "fashion"))
    parser.add_argument("--data", help="Fashion-MNIST as .npz, or the folder of its IDX files")
    given, more = parser.parse_known_args()
    if given.which == "fashion" and given.data is None:
        parser.error("fashion needs --data")
    arguments = [f"--data={given.data}", *FASHION] if given.which == "fashion" else []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = ["search", "--space=mobile", "--strategy=evolution", *arguments, *more]
        print("nas", *command, flush=True)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "nas", *command, f"--out={run}"], check=True)
        seconds = time.perf_counter() - started
        results = load(run)
    flops = [trial.metrics["flops"] for trial in results.front]
    accuracy = [trial.metrics["accuracy"] for trial in results.front]
    print(
        f"{sum(t.evaluated for t in results.trials)} trials in {seconds:.0f} s; front of {len(flops)}: "
        f"FLOPs {min(flops):,.0f} to {max(flops):,.0f} (factor {max(flops) / min(flops):.1f}), "
        f"validation accuracy {min(accuracy):.4f} to {max(accuracy):.4f}"
    )
    good = seconds < 120 and max(flops) > 4 * min(flops) if given.which == "digits" else max(accuracy) >= 0.9
    print("as it should be" if good else "NOT as it should be")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

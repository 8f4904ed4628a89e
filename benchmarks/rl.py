"""The reinforcement learner: what each part is worth, what it costs, and how long a run takes to resume.

    python benchmarks/rl.py quality [--seeds 50] [--problem macro|mobile|couples]
    python benchmarks/rl.py cost

Hypervolume after 50, 100, 200 and 500 evaluations; every proposal counts, duplicates too. Problems:

- macro: NAS-Bench-Macro, measured and scaled as in `benchmarks/strategies.py`.
- mobile: the mobile space with invented accuracies: they grow with log FLOPs, and every option adds an effect of its
  own. Scaled by the range of 1,000 random architectures.
- couples: a chain of 12 layers in which neighbours must fit each other, and no option is good by itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from math import log10
from typing import Any

import numpy as np
from nas.strategies.rl import Reinforcement

from nas import pareto
from nas.bench.problem import Source
from nas.blocks import Chain, Conv, Head
from nas.choices import Genotype, OneOf
from nas.plugins import make_space, make_strategy
from nas.space import Space
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS
from nas.trial import Trial

BUDGETS = (50, 100, 200, 500)
Metrics = Mapping[str, float]


class Macro:
    def __init__(self) -> None:
        self.table = Source("nas-bench-macro", None, "accuracy,flops").load()
        self.space = self.table.space

    def evaluate(self, genotype: Genotype) -> tuple[str, Metrics]:
        key = self.table.key(genotype)
        return key, self.table.metrics[key]

    def volume(self, metrics: list[Metrics]) -> float:
        return self.table.measure.hypervolume(np.array([(-m["accuracy"], m["flops"]) for m in metrics]))


class Invented:
    """A space with accuracies that cost nothing; two genotypes are two networks."""

    def __init__(self, space: Space, accuracy: Callable[[Genotype, Metrics], float]) -> None:
        self.space, self.accuracy = space, accuracy
        rng = np.random.default_rng(0)
        values = self.values([self.evaluate(space.sample(rng))[1] for _ in range(1000)])
        self.low, self.span = values.min(0), np.ptp(values, axis=0)

    def evaluate(self, genotype: Genotype) -> tuple[str, Metrics]:
        exact = self.space.architecture(genotype).metrics()
        return str(tuple(genotype.items())), {**exact, "accuracy": self.accuracy(genotype, exact)}

    def values(self, metrics: list[Metrics]) -> np.ndarray:
        return np.array([(-m["accuracy"], np.log(m["flops"])) for m in metrics])

    def volume(self, metrics: list[Metrics]) -> float:
        return pareto.hypervolume((self.values(metrics) - self.low) / self.span, [1.0, 1.0])


def mobile() -> Invented:
    space, rng = make_space("mobile", (3, 32, 32), 10, {}), np.random.default_rng(1)
    effect = {(path, label): rng.normal() for path, labels in space.paths.items() for label in labels}

    def accuracy(genotype: Genotype, exact: Metrics) -> float:
        effects = sum(effect[item] for item in genotype.items()) / len(genotype) ** 0.5
        return float(0.6 + 0.08 * log10(exact["flops"] / 1e6) + 0.02 * effects)

    return Invented(space, accuracy)


def couples() -> Invented:
    layers = {f"layer{i}": Conv(width=OneOf(8, 16, 24, 32), kernel=1) for i in range(12)}
    space = Space(Chain(**layers, head=Head(10)), input_shape=(3, 8, 8), classes=10, name="couples")
    rng = np.random.default_rng(1)
    fit = [rng.permuted(np.arange(16) % 4 == 0).reshape(4, 4) for _ in range(11)]

    def accuracy(genotype: Genotype, exact: Metrics) -> float:
        widths = [int(str(width)) // 8 - 1 for width in genotype.values()]
        fits = sum(table[a, b] for table, a, b in zip(fit, widths, widths[1:], strict=False))
        return float(0.5 + 0.03 * fits + 0.02 * log10(exact["flops"] / 1e4))

    return Invented(space, accuracy)


PROBLEMS: Mapping[str, Callable[[], Any]] = {"macro": Macro, "mobile": mobile, "couples": couples}


def rl(**options: Any) -> Callable[[Space], Strategy]:
    return lambda space: Reinforcement(space, [ACCURACY, FLOPS], **options)


def named(name: str) -> Callable[[Space], Strategy]:
    return lambda space: make_strategy(name, space, [ACCURACY, FLOPS], (), options={})


METHODS: Mapping[str, Callable[[Space], Strategy]] = {
    "random": named("random"),
    "logits, REINFORCE": rl(),
    "logits, PPO": rl(algorithm="ppo"),
    "logits, REINFORCE, no imitation": rl(imitation=0),
    "logits, PPO, no imitation": rl(algorithm="ppo", imitation=0),
    "LSTM, REINFORCE": rl(policy="lstm"),
    "LSTM, PPO": rl(policy="lstm", algorithm="ppo"),
    "LSTM, REINFORCE, no imitation": rl(policy="lstm", imitation=0),
    "LSTM, PPO, no imitation": rl(policy="lstm", algorithm="ppo", imitation=0),
}


def run(problem: Any, strategy: Strategy, seed: int, n: int) -> list[Metrics]:
    found: list[Metrics] = []
    first: dict[str, int] = {}
    for number in range(n):
        proposal = strategy.ask(1, np.random.default_rng([seed, number]), [])[0]
        key, metrics = problem.evaluate(proposal.genotype)
        known = first.setdefault(key, number)
        strategy.tell(
            Trial(number, proposal.genotype, key, "ok", metrics, seed=seed * 1_000_003 + number, note=proposal.note,
                  duplicate_of=None if known == number else known)
        )  # fmt: skip
        found.append(metrics)
    return found


def quality(name: str, methods: str, seeds: int, first: int, most: int) -> None:
    problem, budgets = PROBLEMS[name](), [b for b in BUDGETS if b <= most]
    print(f"{name}: mean of {seeds} seeds ± standard error\n{'':34}" + "".join(f"{b:>18}" for b in budgets))
    for label, make in METHODS.items():
        if methods not in label:
            continue
        rows = []
        for seed in range(first, first + seeds):
            metrics = run(problem, make(problem.space), seed, budgets[-1])
            rows.append([problem.volume(metrics[:budget]) for budget in budgets])
        mean, error = np.mean(rows, 0), np.std(rows, 0, ddof=1) / seeds**0.5
        cells = "".join(f"{m:>9.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True))
        print(f"{label:34}{cells}", flush=True)


def cost() -> None:
    """CPU milliseconds of one `ask` and one `tell`, mean over the last 100 trials, and seconds to tell all again."""
    for name, sizes in (("nasbench-macro", (100, 1000)), ("mobile", (100, 1000, 10_000))):
        space, rng = make_space(name, (3, 32, 32), 10, {}), np.random.default_rng(0)
        for kind in ("logits", "lstm"):
            strategy = Reinforcement(space, [ACCURACY, FLOPS], policy=kind)
            trials: list[Trial] = []
            spent: list[float] = []
            for number in range(max(sizes)):
                started = time.process_time()
                proposal = strategy.ask(1, np.random.default_rng([0, number]), [])[0]
                asked = time.process_time() - started
                architecture = space.architecture(proposal.genotype)
                metrics = {**architecture.metrics(), "accuracy": rng.random()}
                trial = Trial(number, proposal.genotype, architecture.key(), "ok", metrics, note=proposal.note)
                started = time.process_time()
                strategy.tell(trial)
                spent.append(asked + time.process_time() - started)
                trials.append(trial)
            again, replayed = Reinforcement(space, [ACCURACY, FLOPS], policy=kind), trials[:5000]
            started = time.process_time()
            for trial in replayed:
                again.tell(trial)
            seconds = time.process_time() - started
            cells = ", ".join(f"{np.mean(spent[n - 100 : n]) * 1e3:.2f} at {n:,}" for n in sizes)
            print(
                f"{name}, {kind}: ms per proposal {cells}; {len(replayed):,} trials told in {seconds:.1f} s", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "cost"))
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=1000, help="the design was chosen on 1000 to 1015")
    parser.add_argument("--most", type=int, default=500, help="evaluations")
    parser.add_argument("--problem", choices=PROBLEMS, default="macro")
    parser.add_argument("--methods", default="", help="only those with this in their name")
    given = parser.parse_args()
    if given.what == "cost":
        cost()
    else:
        quality(given.problem, given.methods, given.seeds, given.first, given.most)


if __name__ == "__main__":
    main()

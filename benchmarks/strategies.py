"""Hypervolume on NAS-Bench-Macro after 50, 100 and 200 evaluations: ours beside Optuna's and pymoo's NSGA-II.

    python benchmarks/strategies.py [--seeds 100] [--first 1000]

Every method sees the mean accuracy of three trainings and the FLOPs; a network seen before is answered for free and
not counted. Measure: accuracy error from the best to 10 points worse and FLOPs from the least to the most, both
scaled to 0..1, reference (1, 1), divided by the true front's. Mean over seeds and its standard error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from nas.search_spaces.nasbench_macro import genotype, nasbench_macro

from nas import pareto
from nas.evaluator import Report, Task
from nas.plugins import make_evaluator, make_strategy
from nas.testing import ACCURACY, FLOPS
from nas.trial import Trial

BUDGETS = (50, 100, 200)
MOST = max(BUDGETS)
Codes = Sequence[str]


class Problem:
    """The table in memory: metrics and key of each of the 6,561 codes."""

    def __init__(self) -> None:
        self.space = nasbench_macro()
        self.space.architecture = cache_by_genotype(self.space.architecture)  # type: ignore[method-assign]
        table = make_evaluator("table", {})
        table.open(Task(None, (3, 32, 32), 10), device="cpu", threads=1)
        report = Report(lambda epoch, metrics: None)
        self.metrics: dict[str, dict[str, float]] = {}
        self.key: dict[str, str] = {}
        for code in map("".join, product("012", repeat=8)):
            architecture = self.space.architecture(genotype(code))
            accuracy = table.evaluate(architecture, seed=0, budget=None, workdir=Path(), report=report)
            self.metrics[code] = {**architecture.metrics(), **accuracy}
            self.key[code] = architecture.key()
        values = np.array([self.values(code) for code in self.metrics])
        self.low, self.span = values.min(0), np.array([0.1, np.ptp(values[:, 1])])
        self.true = self._volume(values)

    def values(self, code: str) -> tuple[float, float]:
        """Accuracy error and FLOPs, to be minimised."""
        return 1 - self.metrics[code]["accuracy"], self.metrics[code]["flops"]

    def _volume(self, values: np.ndarray) -> float:
        return pareto.hypervolume((values - self.low) / self.span, [1.0, 1.0])

    def score(self, codes: Codes) -> list[float]:
        """Hypervolume after each budget, relative to the true front's."""
        values = np.array([self.values(code) for code in codes])
        return [self._volume(values[:budget]) / self.true for budget in BUDGETS]


def cache_by_genotype(function: Callable) -> Callable:  # type: ignore[type-arg]
    """Lowering is not what is compared here: each genotype is built once for all methods and seeds."""
    cached = cache(lambda items: function(dict(items)))
    return lambda found: cached(tuple(found.items()))


class Distinct:
    """Codes in order of first evaluation, each network once."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.codes, self.seen = problem, [], set[str]()

    def __call__(self, code: str) -> tuple[float, float]:
        key = self.problem.key[code]
        if key not in self.seen:
            self.seen.add(key)
            self.codes.append(code)
        return self.problem.values(code)

    @property
    def full(self) -> bool:
        return len(self.codes) >= MOST


def ours(name: str) -> Callable[[Problem, int], Codes]:
    def run(problem: Problem, seed: int) -> Codes:
        from nas.search_spaces.nasbench_macro import code as code_of

        strategy = make_strategy(name, problem.space, [ACCURACY, FLOPS], (), options={})
        evaluate, number = Distinct(problem), 0
        first: dict[str, int] = {}
        while not evaluate.full:
            proposal = strategy.ask(1, np.random.default_rng([seed, number]), [])[0]
            code = code_of(proposal.genotype)
            evaluate(code)
            key = problem.key[code]
            known = first.setdefault(key, number)
            strategy.tell(
                Trial(number, proposal.genotype, key, "ok", problem.metrics[code], note=proposal.note,
                      duplicate_of=None if known == number else known)
            )  # fmt: skip
            number += 1
        return evaluate.codes

    return run


def optuna_nsga2(problem: Problem, seed: int) -> Codes:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.NSGAIISampler(seed=seed))
    evaluate = Distinct(problem)
    while not evaluate.full:
        trial = study.ask()
        code = "".join(trial.suggest_categorical(f"layer{i}", ["0", "1", "2"]) for i in range(8))
        study.tell(trial, evaluate(code))
    return evaluate.codes


def pymoo_nsga2(problem: Problem, seed: int) -> Codes:
    """Population 20, with the operators that pymoo's documentation gives for integers."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    evaluate = Distinct(problem)

    class Macro(ElementwiseProblem):  # type: ignore[misc]  (pymoo ships no types)
        def __init__(self) -> None:
            super().__init__(n_var=8, n_obj=2, xl=0, xu=2, vtype=int)

        def _evaluate(self, x: np.ndarray, out: dict, *args: object, **kwargs: object) -> None:  # type: ignore[type-arg]
            out["F"] = evaluate("".join(str(int(v)) for v in x))

    repair = RoundingRepair()
    algorithm = NSGA2(
        pop_size=20, sampling=IntegerRandomSampling(), eliminate_duplicates=True,
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=repair),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=repair),
    )  # fmt: skip
    algorithm.setup(Macro(), termination=("n_gen", 1000), seed=seed, verbose=False)
    while not evaluate.full and algorithm.has_next():
        algorithm.next()
    return evaluate.codes


METHODS: dict[str, Callable[[Problem, int], Codes]] = {
    "evolution": ours("evolution"),
    "random": ours("random"),
    "Optuna NSGA-II": optuna_nsga2,
    "pymoo NSGA-II, population 20": pymoo_nsga2,
}


def compare(seeds: Sequence[int]) -> Iterator[tuple[str, np.ndarray, float]]:
    """Name, scores (seeds, budgets), and milliseconds per evaluation of each method."""
    problem = Problem()
    for name, method in METHODS.items():
        started = time.perf_counter()
        scores = np.array([problem.score(method(problem, seed)) for seed in seeds])
        yield name, scores, (time.perf_counter() - started) / len(seeds) / MOST * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=1000, help="the design was chosen on other seeds")
    given = parser.parse_args()
    seeds = given.seeds
    print(f"hypervolume relative to the true front, mean of {seeds} seeds ± standard error")
    print(f"{'':30}" + "".join(f"{budget:>18}" for budget in BUDGETS) + "   ms/evaluation")
    means = {}
    for name, scores, milliseconds in compare(range(given.first, given.first + seeds)):
        means[name] = scores.mean(0)
        errors = scores.std(0, ddof=1) / np.sqrt(seeds) if seeds > 1 else 0 * scores[0]
        cells = "".join(f"{m:>10.4f} ± {e:.4f}" for m, e in zip(means[name], errors, strict=True))
        print(f"{name:30}{cells}{milliseconds:>12.2f}", flush=True)
    best = np.max([m for name, m in means.items() if name != "evolution"], axis=0)
    verdict = "ahead of all" if (means["evolution"] > best).all() else "NOT ahead of all"
    print(f"evolution is {verdict} at every budget; margin {', '.join(f'{d:+.4f}' for d in means['evolution'] - best)}")


if __name__ == "__main__":
    main()

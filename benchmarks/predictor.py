"""Model-based search: which surrogate, how good it is on a table and on problems of another kind, and what it costs.

    python benchmarks/predictor.py surrogates     rank correlation on networks not seen, by model, with and without warp
    python benchmarks/predictor.py table          NAS-Bench-Macro, measured as in benchmarks/strategies.py
    python benchmarks/predictor.py synthetic      invented accuracies on the mobile and the toy space, new for each seed
    python benchmarks/predictor.py cost           CPU milliseconds per proposal at 100, 1,000 and 10,000 trials

On the table every proposal counts as an evaluation, duplicates too. `--seeds N --first SEED` choose the seeds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from nas.strategies.predictor import Predictor
from nas.strategies.surrogates import Features, GaussianProcess, Scale, Warp

from nas import pareto
from nas.bench.problem import Source
from nas.plugins import make_space, make_strategy
from nas.space import Space
from nas.strategy import Candidate, Strategy
from nas.testing import ACCURACY, FLOPS, toy_space
from nas.trial import Objective, Proposal, Trial

Metrics = Callable[[Proposal], dict[str, float]]


class Trees:
    """Extremely randomised trees; their spread is the deviation."""

    def __init__(self, x: np.ndarray, y: np.ndarray, like: Any = None) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.model = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0).fit(x, y)

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        each = np.array([tree.predict(x) for tree in self.model.estimators_])
        return each.mean(0), each.std(0) + 1e-4


class Networks:
    """Five small networks (White et al. 2021); their spread is the deviation."""

    def __init__(self, x: np.ndarray, y: np.ndarray, like: Any = None) -> None:
        from sklearn.neural_network import MLPRegressor

        options = {"hidden_layer_sizes": (20, 20), "solver": "lbfgs", "alpha": 0.1, "max_iter": 150, "tol": 1e-3}
        self.models = [MLPRegressor(**options, random_state=seed).fit(x, y) for seed in range(5)]

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        each = np.array([model.predict(x) for model in self.models])
        return each.mean(0), each.std(0) + 1e-4


SURROGATES = {"Gaussian process": GaussianProcess, "extra trees": Trees, "5 networks": Networks}


class Synthetic:
    """An accuracy that nobody measured: it saturates in FLOPs, options help or harm alone and in pairs, and training
    adds noise. Everything but the form is drawn from the seed."""

    def __init__(self, space: Space, seed: int, noise: float = 0.002) -> None:
        rng = np.random.default_rng([77, seed])
        self.space, self.noise, self.seed = space, noise, seed
        size, width = len(space.paths), max(map(len, space.paths.values()))
        self.alone = rng.normal(size=(size, width + 1)) / np.sqrt(size)
        self.pairs = rng.integers(size, size=(size, 2))
        self.together = rng.normal(size=(size, width + 1, width + 1)) / np.sqrt(size)
        logs = [np.log(Candidate(space, space.sample(rng)).costs["flops"]) for _ in range(50)]
        self.centre, self.unit = np.mean(logs), np.std(logs)

    def __call__(self, proposal: Proposal) -> dict[str, float]:
        architecture = self.space.architecture(proposal.genotype)
        metrics, e = architecture.metrics(), self.space.encode(proposal.genotype)
        effect = self.alone[np.arange(len(e)), e].sum()
        effect += self.together[np.arange(len(e)), e[self.pairs[:, 0]], e[self.pairs[:, 1]]].sum() / 2
        size = 1.5 * (np.log(metrics["flops"]) - self.centre) / self.unit
        error = 0.05 + 0.05 * np.exp(-(size + 0.7 * effect) / 1.5)
        digest = np.random.default_rng([self.seed, int(architecture.key()[:8], 16)])
        return {**metrics, "accuracy": float(1 - min(0.9, error) + self.noise * digest.normal())}


def search(strategy: Strategy, metrics: Metrics, trials: int, seed: int) -> list[dict[str, float]]:
    """Metrics of each proposal in turn."""
    first: dict[str, int] = {}
    found = []
    for number in range(trials):
        proposal = strategy.ask(1, np.random.default_rng([seed, number]), [])[0]
        key = strategy.space.architecture(proposal.genotype).key()
        known = first.setdefault(key, number)
        found.append(metrics(proposal))
        strategy.tell(
            Trial(number, proposal.genotype, key, "ok", found[-1], note=proposal.note,
                  duplicate_of=None if known == number else known)
        )  # fmt: skip
    return found


def cells(values: np.ndarray) -> str:
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    return "".join(f"{m:>10.4f} ± {e:.4f}" for m, e in zip(values.mean(0), error, strict=True))


def surrogates(seeds: Sequence[int]) -> None:
    problem = Source("nas-bench-macro", None, "accuracy,flops").load()
    mobile = make_space("mobile", (3, 32, 32), 10, {})
    print("Spearman rank correlation with the accuracy of 500 networks not seen: all, the best fifth; ms to fit\n")
    for name in ("nasbench-macro", "mobile, synthetic"):
        for n in (20, 50, 100):
            rows: dict[str, list[list[float]]] = {}
            for seed in seeds:
                space = problem.space if name == "nasbench-macro" else mobile
                rng = np.random.default_rng(seed)
                sample = [space.sample(rng) for _ in range(n + 500)]
                table = (
                    Synthetic(mobile, seed) if space is mobile else lambda p: problem.metrics[problem.key(p.genotype)]
                )
                y = np.array([table(Proposal(g))["accuracy"] for g in sample])
                costs = np.array([list(Candidate(space, g).costs.values()) for g in sample], float)
                blocks = Features(space)(np.array([space.encode(g) for g in sample]), costs, np.zeros(len(y)))
                x = Scale([block[:n] for block in blocks])(blocks)
                warp = Warp(y[:n])
                for label, model in SURROGATES.items():
                    for scaled, how in ((warp(y), "warped"), ((y - y[:n].mean()) / y[:n].std(), "raw")):
                        started = time.process_time()
                        fitted = model(x[:n], scaled[:n])
                        seconds = time.process_time() - started
                        rows.setdefault(f"{label}, {how}", []).append(
                            [*_correlations(fitted.predict(x[n:])[0], y[n:]), seconds * 1e3]
                        )
            for label, values in rows.items():
                everything, best, ms = np.mean(values, 0)
                print(f"{name:20}{n:>5} {label:26}{everything:>8.3f}{best:>8.3f}{ms:>8.0f}", flush=True)


def _correlations(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    from scipy.stats import spearmanr

    best = true >= np.quantile(true, 0.8)
    return spearmanr(predicted, true)[0], spearmanr(predicted[best], true[best])[0]


def table(seeds: Sequence[int]) -> None:
    problem = Source("nas-bench-macro", None, "accuracy,flops").load()
    best = max(metrics["accuracy"] for metrics in problem.metrics.values())
    scores, needed, started = [], [], time.process_time()

    def metrics(proposal: Proposal) -> dict[str, float]:
        return problem.metrics[problem.key(proposal.genotype)]

    for seed in seeds:
        found = search(Predictor(problem.space, [ACCURACY, FLOPS]), metrics, 100, seed)
        values = np.array([(-m["accuracy"], m["flops"]) for m in found])
        scores.append([problem.measure.hypervolume(values[:budget]) for budget in (50, 100)])
    milliseconds = (time.process_time() - started) / len(seeds) / 100 * 1e3
    print(f"{len(seeds)} seeds from {seeds[0]}; hypervolume at 50, 100:{cells(np.array(scores))}", flush=True)
    print(f"{milliseconds:.0f} ms of CPU per evaluation, on average", flush=True)
    for seed in seeds:
        found = search(Predictor(problem.space, [ACCURACY]), metrics, 60, seed)
        needed.append(next((i + 1 for i, m in enumerate(found) if m["accuracy"] >= best - 0.001), 61))
    quarters = np.quantile(needed, [0.25, 0.5, 0.75, 0.9])
    print(f"evaluations to within 0.1 of the best accuracy: quartiles {quarters[:3]}, nine in ten {quarters[3]}")


def synthetic(seeds: Sequence[int]) -> None:
    print(
        "hypervolume after 50 and 100, relative to all methods' fronts together; one objective: best of 50, in points"
    )
    for space in (make_space("mobile", (3, 32, 32), 10, {}), toy_space()):
        rows: dict[str, list[list[float]]] = {}
        for seed in seeds:
            problem = Synthetic(space, seed)
            runs = {}
            for name in ("nas.strategies.predictor:Predictor", "evolution", "random"):
                runs[name] = _errors(name, problem, [ACCURACY, FLOPS], 100), _errors(name, problem, [ACCURACY], 50)
            everything = np.vstack([both for both, _ in runs.values()])
            low, span = everything.min(0), np.array([0.1, np.ptp(everything[:, 1])])
            volume = partial(pareto.hypervolume, reference=[1.0, 1.0])
            for name, (both, one) in runs.items():
                ratios = [volume((both[:n] - low) / span) / volume((everything - low) / span) for n in (50, 100)]
                rows.setdefault(name, []).append([*ratios, 100 * (1 - one[:, 0].min())])
        for name, values in rows.items():
            print(f"{space.name:8}{name.split(':')[-1]:12}{cells(np.array(values))}", flush=True)


def _errors(name: str, problem: Synthetic, objectives: Sequence[Objective], trials: int) -> np.ndarray:
    """Error and log-FLOPs of each trial of a strategy."""
    found = search(make_strategy(name, problem.space, objectives, (), options={}), problem, trials, problem.seed)
    return np.array([(1 - m["accuracy"], np.log(m["flops"])) for m in found])


def cost(seeds: Sequence[int]) -> None:
    print("CPU ms per proposal at 100, 1,000, 10,000 trials: after the first at that number, and the first itself")
    mobile = make_space("mobile", (3, 32, 32), 10, {})
    for space in (toy_space(), mobile):
        rng, problem = np.random.default_rng(0), Synthetic(space, 0)
        strategy, told = Predictor(space, [ACCURACY, FLOPS]), 0
        for trials in (100, 1000, 10_000):
            while told < trials:
                proposal = Proposal(space.sample(rng))
                key = f"{told}"  # building graphs is not what is measured
                strategy.tell(Trial(told, proposal.genotype, key, "ok", problem(proposal)))
                told += 1
            times = []
            for i in range(12):
                if i:  # one more trial: the models are fitted again, as in a search
                    proposal = strategy.ask(1, np.random.default_rng(i), [])[0]
                    strategy.tell(Trial(told, proposal.genotype, f"{told}", "ok", problem(proposal)))
                    told += 1
                started = time.process_time()
                strategy.ask(1, np.random.default_rng(i), [])
                times.append((time.process_time() - started) * 1e3)
            print(f"{space.name:8}{trials:>7}{np.median(times[1:]):>8.1f}{times[0]:>10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"surrogates": surrogates, "table": table, "synthetic": synthetic, "cost": cost}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=5000, help="the design was chosen on other seeds")
    given = parser.parse_args()
    parts[given.part](range(given.first, given.first + given.seeds))


if __name__ == "__main__":
    main()

"""What is compared: our strategies, and peers from other libraries used as their documentation says."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from typing import Any

import numpy as np

from nas.bench.names import Named
from nas.bench.problem import Problem
from nas.choices import Decision, Genotype
from nas.errors import ConfigError, plugin_errors
from nas.plugins import available, find, make_strategy
from nas.search import FUTILE
from nas.strategy import Strategy
from nas.trial import Trial

Costs = tuple[float, ...]


class Evaluations:
    """What a method has found so far: the costs of each evaluation in turn, infinite where the table has nothing.

    Args:
        problem: the table.
        most: evaluations to spend.
        distinct: whether a network that was evaluated before is answered for nothing and not counted.

    Attributes:
        costs: of each evaluation.
        first: number of the proposal that a network was first proposed by, by its key.
        proposals: how many there were.
        seconds: CPU time spent in looking up, which is not the method's.
    """

    def __init__(self, problem: Problem, most: int, *, distinct: bool) -> None:
        self.problem, self.most, self.distinct = problem, most, distinct
        self.costs: list[Costs] = []
        self.first: dict[str, int] = {}
        self.proposals = 0
        self.seconds = 0.0
        self._idle = 0

    def __call__(self, genotype: Genotype) -> Costs | None:
        """Costs to be minimised, None for a network that the table does not have."""
        started = time.process_time()
        key = self.problem.key(genotype)
        known = self.first.setdefault(key, self.proposals) < self.proposals
        self.proposals += 1
        self._idle = self._idle + 1 if known else 0
        costs = self.problem.costs.get(key)
        if not (known and self.distinct):
            self.costs.append(costs or (inf,) * len(self.problem.objectives))
        self.seconds += time.process_time() - started
        return costs

    @property
    def full(self) -> bool:
        """Whether to stop: all is spent, or nothing new has come for long."""
        return len(self.costs) >= self.most or (self.distinct and self._idle >= FUTILE)


@dataclass(frozen=True)
class Method:
    """Something that searches: `run(evaluations, seed)` goes on until `evaluations.full`, or until it has no more.

    `most`: evaluations after which it is ended, because its proposals are dear.
    """

    run: Callable[[Evaluations, int], None]
    most: int | None = None


def method(name: str) -> Method:
    """A peer by name, else a strategy. Raises NasError."""
    return PEERS[name] if name in PEERS else Method(_Ours(Named.parse(name)))


def fitting(problem: Problem) -> tuple[list[str], dict[str, str]]:
    """Names of the strategies that can be compared on a problem, and why the others cannot."""
    fit, others = [], {}
    for name in sorted(available("strategies")):
        why = unfit(name, problem)
        if why:
            others[name] = why
        else:
            fit.append(name)
    return fit, others


def unfit(name: str, problem: Problem) -> str | None:
    """Why a strategy cannot be compared on a problem, None if it can. Raises NasError for an unknown one."""
    named = Named.parse(name)
    kind = find("strategies", named.name)
    if not getattr(kind, "multi_objective", True) and len(problem.objectives) > 1:
        return "it takes one objective"
    if hasattr(kind, "prepare"):
        return "it trains before it proposes"
    strategy = make_strategy(named.name, problem.space, problem.objectives, (), options=named.options)
    return None if strategy.space is problem.space else "it brings its own space"


def installed() -> list[str]:
    """Names of the peers that can be imported."""
    return [name for name in PEERS if find_spec(name.partition("-")[0])]


def peers(names: list[str]) -> list[str]:
    """The names themselves. Raises ConfigError for a peer that is unknown or not installed."""
    for name in names:
        if name not in PEERS:
            raise ConfigError(f"--peers: {name!r} is not one of all, none, {', '.join(PEERS)}")
        if name not in installed():
            raise ConfigError(f"--peers: {name} needs a package: pip install {name.partition('-')[0]}")
    return names


@dataclass(frozen=True)
class _Ours:
    """A strategy, asked and told as the search loop does it."""

    named: Named

    def __call__(self, evaluate: Evaluations, seed: int) -> None:
        problem = evaluate.problem
        strategy = make_strategy(self.named.name, problem.space, problem.objectives, (), options=self.named.options)
        with plugin_errors(strategy):
            while not evaluate.full:
                number = evaluate.proposals
                proposals = strategy.ask(1, np.random.default_rng([seed, number]), [])
                if not proposals:
                    return
                evaluate(proposals[0].genotype)
                strategy.tell(_trial(evaluate, strategy, proposals[0].genotype, proposals[0].note, seed))


def _trial(evaluate: Evaluations, strategy: Strategy, genotype: Genotype, note: Mapping[str, Any], seed: int) -> Trial:
    """What the search loop would tell of the latest proposal."""
    problem, number = evaluate.problem, evaluate.proposals - 1
    key = problem.key(genotype)
    known, metrics = evaluate.first[key], problem.metrics.get(key)
    common: dict[str, Any] = {
        "number": number, "genotype": genotype, "key": key, "note": note,
        "seed": int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1,
        "duplicate_of": None if known == number else known,
    }  # fmt: skip
    if not key:
        return Trial(state="infeasible", violations={"graph": 1.0}, **common)
    return Trial(state="failed", **common) if metrics is None else Trial(state="ok", metrics=metrics, **common)


# -- peers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Optuna:
    """A sampler of Optuna, used by hand: a category per active decision."""

    sampler: str
    options: Mapping[str, Any]

    def __call__(self, evaluate: Evaluations, seed: int) -> None:
        import optuna

        space = evaluate.problem.space
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = getattr(optuna.samplers, self.sampler)(seed=seed, **self.options)
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(evaluate.problem.objectives)
        study = optuna.create_study(directions=directions, sampler=sampler)
        while not evaluate.full:
            trial = study.ask()

            def decide(decision: Decision, trial: Any = trial) -> int:
                labels, name = decision.labels, decision.path
                if space.paths[name] != labels:  # Optuna wants the options of a name to be always the same
                    name = f"{name} of {', '.join(map(str, labels))}"
                return labels.index(trial.suggest_categorical(name, labels))

            costs = evaluate(space.walk(decide))
            if costs is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                study.tell(trial, costs)


def _pymoo_nsga2(evaluate: Evaluations, seed: int) -> None:
    """Population 20, with the operators that pymoo's documentation gives for integers: one per decision."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    table = evaluate.problem
    paths = {path: (i, labels) for i, (path, labels) in enumerate(table.space.paths.items())}
    worst = np.max(list(table.costs.values()), axis=0)

    class Search(ElementwiseProblem):  # type: ignore[misc]  # pymoo ships no types
        def __init__(self) -> None:
            upper = [len(labels) - 1 for _, labels in paths.values()]
            super().__init__(n_var=len(paths), n_obj=len(worst), xl=0, xu=np.array(upper), vtype=int)

        def _evaluate(self, x: Any, out: dict[str, Any], *args: object, **kwargs: object) -> None:
            def decide(decision: Decision) -> int:
                i, labels = paths[decision.path]
                label = labels[int(x[i])]
                return decision.labels.index(label) if label in decision.labels else int(x[i]) % len(decision)

            out["F"] = evaluate(table.space.walk(decide)) or worst

    repair = RoundingRepair()
    algorithm = NSGA2(
        pop_size=20, sampling=IntegerRandomSampling(), eliminate_duplicates=True,
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=repair),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=repair),
    )  # fmt: skip
    algorithm.setup(Search(), termination=("n_gen", FUTILE), seed=seed, verbose=False)
    while not evaluate.full and algorithm.has_next():
        algorithm.next()
    del evaluate.costs[evaluate.most :]  # a generation is evaluated as a whole


PEERS: Mapping[str, Method] = {
    "optuna-tpe": Method(_Optuna("TPESampler", {"multivariate": True, "group": True})),
    "optuna-nsga2": Method(_Optuna("NSGAIISampler", {})),
    "optuna-gp": Method(_Optuna("GPSampler", {"warn_independent_sampling": False}), most=100),
    "pymoo-nsga2": Method(_pymoo_nsga2),
}
"""Peers by name; each begins with the package that it needs."""

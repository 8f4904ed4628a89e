"""What strategies themselves cost: CPU ms of ask + tell with a history of 100, 1,000 and 10,000 trials, beside Optuna's
bare samplers; and CPU seconds to resume a run of 5,000 trials.

    python benchmarks/overhead.py [--methods evolution tpe optuna:TPESampler ...]

The mobile space, invented accuracies against FLOPs; the history is random. A cell is the mean of up to 200 proposals
after a first one that is not counted, fewer where they take longer than 10 s in all; 10,000 trials only where 20 would
not take a minute. A run is resumed through `nas.search.Search`: reading the journal, telling every trial, keeping
the front. Its 5,000 proposals are the strategy's own where they cost less than 2 ms each, else (marked r) random ones.
For Optuna: the 5,000 trials added to a fresh study in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nas.architecture import Architecture
from nas.bench.methods import fitting
from nas.bench.names import Named
from nas.bench.problem import Source
from nas.choices import Decision
from nas.cli import COLLECTIONS
from nas.evaluator import Evaluator, Report, Task
from nas.executors.local import Local
from nas.plugins import make_space, make_strategy
from nas.search import Plan, Search
from nas.space import Space
from nas.store import Run
from nas.strategy import Strategy
from nas.testing import ACCURACY, FLOPS
from nas.trial import Proposal, Trial

HISTORIES = (100, 1000, 10_000)
RESUMED = 5000
STEPS, SECONDS, FEW, DEAR = 200, 10.0, 20, 60.0
OWN = 2.0
"""CPU ms below which a strategy's own proposals fill the run that is resumed."""

SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "TPESampler": {"multivariate": True, "group": True},
    "NSGAIISampler": {},
    "GPSampler": {"warn_independent_sampling": False},
}


class Side(Protocol):
    """Ours or Optuna's: told a history, then asked and told."""

    def fill(self, history: Sequence[Trial]) -> None: ...

    def step(self, seed: int) -> float:
        """CPU seconds of one proposal."""


def invented(architecture: Architecture) -> dict[str, float]:
    """Accuracy grows with size; the rest is the body's own."""
    exact = architecture.metrics()
    own = np.random.default_rng([int(exact["params"]), int(exact["flops"])]).normal()
    return {**exact, "accuracy": 0.6 + 0.03 * log(exact["flops"]) / log(10) + 0.02 * own}


def told(space: Space, proposal: Proposal, number: int) -> Trial:
    """The result of a proposal; a counter stands for its key, since building graphs is not what is measured."""
    architecture = space.architecture(proposal.genotype)
    return Trial(
        number, proposal.genotype, f"{number:016x}", "ok", invented(architecture), note=proposal.note, seed=number
    )


def made(space: Space, name: str) -> Strategy:
    """A strategy, with options in brackets if any."""
    named = Named.parse(name)
    return make_strategy(named.name, space, [ACCURACY, FLOPS], (), options=named.options)


class Ours:
    def __init__(self, space: Space, name: str) -> None:
        self.space, self.strategy, self.number = space, made(space, name), 0

    def fill(self, history: Sequence[Trial]) -> None:
        for trial in history:
            self.strategy.tell(trial)
        self.number += len(history)

    def step(self, seed: int) -> float:
        rng = np.random.default_rng(seed)
        started = time.process_time()
        proposal = self.strategy.ask(1, rng, [])[0]
        spent = time.process_time() - started
        trial = told(self.space, proposal, self.number)
        started = time.process_time()
        self.strategy.tell(trial)
        self.number += 1
        return spent + time.process_time() - started


class Optuna:
    def __init__(self, space: Space, name: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.optuna = space, optuna
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = getattr(optuna.samplers, name)(seed=0, **SAMPLERS[name])
        self.study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)

    def fill(self, history: Sequence[Trial]) -> None:
        for trial in history:
            params: dict[str, Any] = {}
            distributions: dict[str, Any] = {}
            for decision in self.space.decisions(trial.genotype):
                name = self._name(decision)
                params[name] = trial.genotype[decision.path]
                distributions[name] = self.optuna.distributions.CategoricalDistribution(decision.labels)
            frozen = self.optuna.trial.create_trial(params=params, distributions=distributions, values=_values(trial))
            self.study.add_trial(frozen)

    def step(self, seed: int) -> float:
        started = time.process_time()
        trial = self.study.ask()
        genotype = self.space.walk(
            lambda decision: decision.labels.index(trial.suggest_categorical(self._name(decision), decision.labels))
        )
        spent = time.process_time() - started
        values = _values(told(self.space, Proposal(genotype), 0))
        started = time.process_time()
        self.study.tell(trial, values)
        return spent + time.process_time() - started

    def _name(self, decision: Decision) -> str:
        """Optuna wants the options of a name to be always the same."""
        same = self.space.paths[decision.path] == decision.labels
        return decision.path if same else f"{decision.path} of {decision.labels}"


def _values(trial: Trial) -> list[float]:
    return [ACCURACY.cost(trial.metrics), FLOPS.cost(trial.metrics)]


def proposals(side: Side, history: Sequence[Trial]) -> list[float]:
    """CPU ms per proposal at each history; none where it is too dear."""
    found: list[float] = []
    done = 0
    for size in HISTORIES:
        if found and found[-1] * size / HISTORIES[HISTORIES.index(size) - 1] * FEW / 1e3 > DEAR:
            break
        started = time.process_time()
        side.fill(history[done:size])
        if time.process_time() - started > DEAR:
            break
        done = size
        first, times = side.step(size), list[float]()
        while len(times) < STEPS and sum(times) + first < SECONDS:
            times.append(side.step(size + len(times) + 1))
        found.append(float(np.mean(times or [first])) * 1e3)
    return found


# -- resuming ------------------------------------------------------------------------------------------------------


class Unused(Evaluator):
    """Nothing is left to evaluate."""

    needs_data = False

    def open(self, task: Task, *, device: str, threads: int) -> None: ...

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        raise NotImplementedError


def own(space: Space, name: str) -> Iterator[Trial]:
    """What a strategy proposes."""
    strategy = made(space, name)
    for number in range(RESUMED):
        trial = told(space, strategy.ask(1, np.random.default_rng([0, number]), [])[0], number)
        strategy.tell(trial)
        yield trial


def write(folder: Path, trials: Sequence[Trial]) -> None:
    """A run folder that holds these trials, as the search loop would have written it."""
    Run.create(folder, {}).close()
    with (folder / "trials.jsonl").open("w") as file:
        for trial in trials:
            common = {"number": trial.number, "budget": None}
            asked = {"event": "asked", **common, "genotype": dict(trial.genotype), "note": dict(trial.note),
                     "key": trial.key, "seed": trial.seed}  # fmt: skip
            result = {"event": "told", **common, "state": "ok", "metrics": dict(trial.metrics), "elapsed": trial.number}
            file.write(f"{json.dumps(asked)}\n{json.dumps(result)}\n")


def resume(space: Space, name: str, folder: Path) -> float:
    """CPU seconds until a run is where it was."""
    strategy, evaluator = made(space, name), Unused()
    plan = Plan((ACCURACY, FLOPS), trials=RESUMED)
    task = Task(None, space.input_shape, space.classes)
    started = time.process_time()
    search = Search(
        Run.open(folder, write=True), space, strategy, evaluator, plan,
        lambda on_report: Local(evaluator, task, device="cpu", threads=1, on_report=on_report),
    )  # fmt: skip
    search.run()
    spent = time.process_time() - started
    assert search.evaluated == RESUMED
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", help="strategies, and optuna:SAMPLER")
    given = parser.parse_args()
    gc.set_threshold(*COLLECTIONS)  # as the command line does
    ours, _ = fitting(Source("nas-bench-macro", None, "accuracy,flops").load())
    methods = given.methods or [*ours, "rl(policy=lstm)", *(f"optuna:{name}" for name in SAMPLERS)]
    space, rng = make_space("mobile", (3, 32, 32), 10, {}), np.random.default_rng(0)
    history = [told(space, Proposal(space.sample(rng)), number) for number in range(max(HISTORIES))]
    print(f"{'CPU ms per proposal at':26}" + "".join(f"{size:>10,}" for size in HISTORIES) + f"   resume {RESUMED:,}")
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "random"
        write(shared, history[:RESUMED])
        for name in methods:
            is_optuna = name.startswith("optuna:")
            side: Side = Optuna(space, name.partition(":")[2]) if is_optuna else Ours(space, name)
            times = proposals(side, history)
            if is_optuna:
                fresh = Optuna(space, name.partition(":")[2])
                started = time.process_time()
                fresh.fill(history[:RESUMED])
                seconds = f"{time.process_time() - started:.1f} s"
            elif max(times[:2]) < OWN:
                write(Path(folder) / f"own-{name}", list(own(space, name)))
                seconds = f"{resume(space, name, Path(folder) / f'own-{name}'):.1f} s"
            else:
                seconds = f"{resume(space, name, shared):.1f} s r"
            cells = "".join(f"{ms:>10.3g}" for ms in times) + f"{'-':>10}" * (len(HISTORIES) - len(times))
            print(f"{name:26}{cells}{seconds:>15}", flush=True)


if __name__ == "__main__":
    main()

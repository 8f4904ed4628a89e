"""Our spaces and strategies inside a `tune.Tuner` of your own, with Tune's schedulers, loggers and storage.

from ray import tune
from ray.tune.schedulers import ASHAScheduler

from nas.evaluator import Task
from nas.executors.tuner import NasSearch, trainable
from nas.plugins import make_evaluator, make_space
from nas.trial import ANALYSIS_METRICS, parse_limit, parse_objectives

evaluator = make_evaluator("train", {"epochs": 9})
task = Task.of("digits")
space = make_space("mobile", task.input_shape, task.classes, {})
metrics = (*evaluator.metrics, *ANALYSIS_METRICS)
objectives = parse_objectives("accuracy,flops", metrics)
limits = [parse_limit("params=200K", metrics)]

tuner = tune.Tuner(
    tune.with_resources(trainable(evaluator, task, space), {"cpu": 1}),
    tune_config=tune.TuneConfig(
        metric="accuracy", mode="max", num_samples=50, max_concurrent_trials=4, reuse_actors=True,
        search_alg=NasSearch(space, "evolution", objectives, limits, seed=0),
        scheduler=ASHAScheduler(max_t=9, grace_period=1, reduction_factor=3),
    ),
    run_config=tune.RunConfig(checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1)),
)
best = tuner.fit().get_best_result()
network = space.architecture(best.config["genotype"])
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search import Searcher

from nas.architecture import Architecture
from nas.errors import EvaluationError, GraphError, RunError, SpaceError, plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Job
from nas.executors.stepwise import Stepwise
from nas.plugins import make_strategy
from nas.search import FUTILE, WAITING
from nas.space import Space
from nas.store import Asked
from nas.strategy import Strategy
from nas.trial import Limit, Objective, Proposal, Result, State, Trial

FORMAT = 1


class NasSearch(Searcher):
    """A strategy as Tune's `search_alg`; it proposes `{"genotype": ..., "seed": ...}` to a `trainable`.

    What a limit that is known beforehand forbids is told to the strategy at once and never run, and so is a network
    that was evaluated before. A trial that Tune's scheduler ends early is told as `stopped` with the epochs it had,
    an error as `failed`, NaN as `diverged`. Its state is JSON; restored, the strategy is told everything again.

    Args:
        strategy: name of a plug-in, or `package.module:Class`.
        objectives, limits: for the strategy; the trials' metrics must have the objectives.
        options: the strategy's.
        seed: all randomness comes from it.
    """

    def __init__(
        self, space: Space, strategy: str, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *,
        options: Mapping[str, Any] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._space, self._name, self._options, self._seed = space, strategy, dict(options or {}), seed
        self._objectives, self._limits = tuple(objectives), tuple(limits)
        self._clear()

    def _clear(self) -> None:
        self._strategy: Strategy = make_strategy(
            self._name, self._space, self._objectives, self._limits, options=self._options
        )
        self.trials: list[Trial] = []
        """What the strategy was told."""
        self._proposals = 0
        self._known: dict[str, Trial] = {}  # key to the trial that evaluated it
        self._running: dict[str, Asked] = {}  # by Tune's name of the trial
        self._waiting: list[Asked] = []  # the same network, asked again meanwhile
        self._last: dict[str, Mapping[str, Any]] = {}  # a scheduler may end a paused trial without its result

    # -- asking ------------------------------------------------------------------------------------------------

    def suggest(self, trial_id: str) -> Any:
        for _ in range(FUTILE):
            if len(self._waiting) >= WAITING:
                return None
            asked = self._propose()
            if asked is not None:
                self._running[trial_id] = asked
                return {"genotype": dict(asked.proposal.genotype), "seed": asked.seed}
        if self._running:
            return None
        if not self._known:
            raise SpaceError(
                f"{FUTILE} proposals in a row were infeasible; loosen the limits, or choose a larger space"
            )
        return Searcher.FINISHED

    def _propose(self) -> Asked | None:
        """The next proposal, None if the strategy could be told at once or has to wait for a running trial."""
        number = self._proposals
        pending = sorted([*self._running.values(), *self._waiting], key=lambda asked: asked.number)
        with plugin_errors(self._strategy):
            rng = np.random.default_rng([self._seed, number])
            proposal = self._strategy.ask(1, rng, [asked.proposal for asked in pending])[0]
        self._proposals += 1
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0]) >> 1
        architecture = self._space.architecture(proposal.genotype)
        asked = Asked(number, Proposal(dict(architecture.genotype), dict(proposal.note)), "", seed, None)
        try:
            asked, exact = replace(asked, key=architecture.key()), self._space.metrics(architecture)
        except GraphError as error:
            self._tell(_trial(asked, "infeasible", error=str(error), violations={"graph": 1.0}))
            return None
        violations = {limit.metric: v for limit in self._limits if limit.exact and (v := limit.violation(exact)) > 0}
        if violations:
            self._tell(_trial(asked, "infeasible", metrics=exact, violations=violations))
        elif asked.key in self._known:
            self._tell(_copy(self._known[asked.key], asked))
        elif any(asked.key == other.key for other in self._running.values()):
            self._waiting.append(asked)
        else:
            return asked
        return None

    # -- telling -----------------------------------------------------------------------------------------------

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._last[trial_id] = result

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        last = self._last.pop(trial_id, None)
        asked = self._running.pop(trial_id, None)
        if asked is None:  # a trial that failed, was told, and was run again by `Tuner.restore`
            return
        self._tell(self._judge(asked, None if error else result or last))
        for again in [other for other in self._waiting if other.key == asked.key]:
            self._waiting.remove(again)
            self._tell(_copy(self._known[asked.key], again))

    def _judge(self, asked: Asked, result: Mapping[str, Any] | None) -> Trial:
        """What became of a proposal, from the last result of its trial."""
        if result is None:
            return _trial(asked, "failed", error="the trial failed; see its error.txt")
        exact = self._space.costs(asked.proposal.genotype)
        wanted = [o.metric for o in self._objectives] + [limit.metric for limit in self._limits]
        metrics = {**exact, **{name: float(result[name]) for name in wanted if name in result}}
        common = {"budget": result.get("epoch"), "seconds": float(result.get("time_total_s", 0.0))}
        missing = [o.metric for o in self._objectives if o.metric not in metrics]
        if missing:
            return _trial(asked, "failed", error=f"the trial reported no {missing[0]!r}", **common)
        wild = [name for name, value in metrics.items() if not isfinite(value)]
        if wild:
            return _trial(asked, "diverged", error=f"the metric {wild[0]!r} is {metrics[wild[0]]}", **common)
        violations = {limit.metric: v for limit in self._limits if (v := limit.violation(metrics)) > 0}
        state: State = "ok" if result.get("state") == "ok" else "stopped"
        return _trial(asked, state, metrics=metrics, violations=violations, **common)

    def _tell(self, trial: Trial) -> None:
        with plugin_errors(self._strategy):
            self._strategy.tell(trial)
        self.trials.append(trial)
        if trial.evaluated:
            self._known[trial.key] = trial

    # -- Tune's checkpoints ------------------------------------------------------------------------------------

    def save(self, checkpoint_path: str) -> None:
        state = {
            "format": FORMAT, "seed": self._seed, "proposals": self._proposals,
            "trials": [asdict(trial) for trial in self.trials],
            "running": {name: asdict(asked) for name, asked in self._running.items()},
            "waiting": [asdict(asked) for asked in self._waiting],
        }  # fmt: skip
        Path(checkpoint_path).write_text(json.dumps(state, allow_nan=False, default=lambda value: value.item()))

    def restore(self, checkpoint_path: str) -> None:
        """Raises RunError for a file that was written by something else or with another seed."""
        try:
            state = json.loads(Path(checkpoint_path).read_text())
            if (state["format"], state["seed"]) != (FORMAT, self._seed):
                raise ValueError(f"format {state['format']}, seed {state['seed']}")
            self._clear()
            for told in state["trials"]:
                self._tell(Trial(**told))
            self._proposals = int(state["proposals"])
            self._running = {name: _asked(asked) for name, asked in state["running"].items()}
            self._waiting = [_asked(asked) for asked in state["waiting"]]
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{checkpoint_path} is not the state of this search ({type(error).__name__} {error}); expected "
                f"format {FORMAT}, seed {self._seed}"
            ) from None


def _trial(asked: Asked, state: State, **values: Any) -> Trial:
    proposal = asked.proposal
    return Trial(asked.number, proposal.genotype, asked.key, state, seed=asked.seed, note=proposal.note, **values)


def _copy(known: Trial, asked: Asked) -> Trial:
    """The result of a trial for a proposal of the same network."""
    proposal = asked.proposal
    return replace(
        known, number=asked.number, genotype=proposal.genotype, note=proposal.note, seed=asked.seed, seconds=0.0,
        duplicate_of=known.number,
    )  # fmt: skip


def _asked(data: Mapping[str, Any]) -> Asked:
    return Asked(**{**data, "proposal": Proposal(**data["proposal"])})


def trainable(
    evaluator: Evaluator, task: Task, space: Space, *, device: str = "auto", threads: int = 1
) -> type[tune.Trainable]:
    """What Tune runs for `NasSearch`: an evaluator, on a space's architectures.

    It reports every epoch: the evaluator's metrics, the exact ones (flops, params...), `epoch`, `key` (the network's
    structural hash) and `state`, which is `ok` with the last. `training_iteration` is the epoch. The last epoch is
    reported with the final metrics. A network that diverges ends with NaN, one that fails otherwise with an error.
    Checkpoints, for which `tune.CheckpointConfig` asks, hold what the evaluator leaves in its folder.

    Population based training takes no searcher: give it genotypes in `param_space`, as
    `{"genotype": tune.grid_search([space.sample(rng) for _ in range(8)])}`. What it mutates are attributes of the
    evaluator: a mapping `evaluator` in the configuration sets them for one trial.

    Args:
        device, threads: passed to `Evaluator.open`.
    """
    use: Any = getattr(evaluator, "use", None)
    if use is not None:
        use(space)
    given = {"task": task, "space": space, "device": device, "threads": threads}
    made: type[tune.Trainable] = tune.with_parameters(Evaluation, evaluator=evaluator, **given)
    return made


class Evaluation(Stepwise):
    """One architecture's evaluation as Tune sees it; see `trainable`."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        super().setup(config, **given)
        self._space: Space = given["space"]
        self._opened = self._evaluator
        self._begin()

    def _begin(self) -> None:
        self._reported = 0.0
        self._leave()
        # A name of its own: the actor that had a paused trial before may be tidying up while this one goes on with it.
        self._folder = Path(tempfile.mkdtemp(dir=self.logdir, prefix="evaluation-"))

    def _leave(self) -> None:
        if hasattr(self, "_folder"):
            shutil.rmtree(self._folder, ignore_errors=True)

    def job(self) -> Job:
        options = self.config.get("evaluator", {})
        self._evaluator = copy(self._opened) if options else self._opened
        for name, value in options.items():
            setattr(self._evaluator, name, value)
        self._architecture: Architecture = self._space.architecture(self.config["genotype"])
        seed = int(self.config.get("seed", 0))
        return Job(0, self._architecture, seed, self._evaluator.budget, self._folder)

    def reported(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> dict[str, Any] | None:
        """Not what a checkpoint has seen before, and not the last epoch, which comes with the result."""
        if epoch <= self._reported or (job.budget is not None and epoch >= job.budget):
            return None
        self._reported = epoch
        return self._values(epoch, metrics, "running")

    def finished(self, result: Result) -> dict[str, Any]:
        if result.state not in ("ok", "stopped", "diverged"):
            raise EvaluationError(f"{result.state}: {result.error}")
        unknown = {metric.name: nan for metric in self._evaluator.metrics}
        return self._values(result.budget, {**unknown, **result.metrics}, result.state)

    def _values(self, epoch: float | None, metrics: Mapping[str, float], state: str) -> dict[str, Any]:
        values: dict[str, Any] = {**self._architecture.metrics(), **metrics, "key": self._architecture.key()}
        if epoch is not None:
            values |= {"epoch": epoch, "training_iteration": int(epoch)}
        return {**values, "state": state}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        free = super().reset_config(new_config)
        if free:
            self._begin()
        return free

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """While the evaluator waits for its report to be taken, so its folder is whole."""
        shutil.copytree(self._folder, Path(checkpoint_dir) / "evaluation")
        (Path(checkpoint_dir) / "reported.json").write_text(json.dumps(self._reported))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self._begin()
        shutil.copytree(Path(checkpoint) / "evaluation", self._folder, dirs_exist_ok=True)
        self._reported = float(json.loads((Path(checkpoint) / "reported.json").read_text()))

    def cleanup(self) -> None:
        super().cleanup()
        self._leave()

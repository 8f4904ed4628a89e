"""The loop: ask, check, evaluate, journal, tell."""

from __future__ import annotations

import time
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nas import keep, pareto, reach
from nas.architecture import Architecture
from nas.errors import GraphError, SpaceError, Stop, plugin_errors
from nas.evaluator import Evaluator, Task
from nas.executors.base import Executor, Job, OnReport, Outcome
from nas.fidelity import Halving
from nas.preparation import OnProgress, Preparation, prepared
from nas.screening import Screen
from nas.space import Space
from nas.store import Asked, Run
from nas.strategy import Strategy
from nas.trial import Limit, Objective, Proposal, Result, Trial

FUTILE = 1000
"""Proposals in a row that need no evaluation (infeasible, known already) before a search gives up."""

WAITING = 8
"""Proposals of networks that are being evaluated, after which nothing more is asked until one is done."""

REJECTED = 200
"""Networks in a row that break a limit on what is measured before training, after which a search gives up."""

RETRIES = 2
"""How often a trial is started again after its worker was lost."""

KNOWING = ("ok", "stopped", "infeasible")
"""States of which the metrics are kept."""


@dataclass(frozen=True)
class Plan:
    """What to search for, and how long.

    Args:
        objectives, limits: what is good, and what is allowed.
        trials: proposals to evaluate; infeasible ones and duplicates do not count.
        seconds: wall-clock time after which no trial is started, None for no limit.
        trial_timeout: seconds per trial, None for no limit.
        rungs, eta: epochs at which all but the best 1/eta of the trials end (`nas.fidelity`); none for full training.
        seed: all randomness of the run comes from it.
    """

    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...] = ()
    trials: int = 50
    seconds: float | None = None
    trial_timeout: float | None = None
    rungs: tuple[float, ...] = ()
    eta: float = 3.0
    seed: int = 0


class Search:
    """One search in one run folder; `run` goes on from whatever the folder's journal holds.

    Args:
        run: the folder, open for writing.
        space, strategy, evaluator: what is searched, by whom, judged how.
        plan: objectives, limits, budgets, seed.
        executor: makes the executor for this search, given the function to call for each report.
        on_trial: called after each told trial.
        starts: proposals that come before the strategy is asked, the same ones each time the run goes on.
        screen: finds more of them, before the first trial.

    Attributes:
        front: the non-dominated trials so far.
        evaluated: number of trials that count.
    """

    def __init__(
        self, run: Run, space: Space, strategy: Strategy, evaluator: Evaluator, plan: Plan,
        executor: Callable[[OnReport], Executor], *, on_trial: Callable[[Search, Trial], None] | None = None,
        starts: Sequence[Proposal] = (), screen: Screen | None = None,
    ) -> None:  # fmt: skip
        self.store, self.space, self.strategy, self.evaluator, self.plan = run, space, strategy, evaluator, plan
        self.front: list[Trial] = []
        self.evaluated = 0
        self.stopped: str | None = None
        """Why the search ended early, if it did."""
        self._executor = executor(self._report)
        self._on_trial = on_trial
        self.starts = tuple(starts)
        self._screen = screen
        self._exact = [limit for limit in plan.limits if limit.exact]
        self._known: dict[str, Trial] = {}  # key to the trial that evaluated it
        self._running: dict[str, int] = {}  # key to the number of the trial being evaluated
        self._waiting: defaultdict[str, list[Asked]] = defaultdict(list)  # the same network, asked again meanwhile
        self._halving = Halving(plan.rungs, plan.eta, plan.objectives)
        self._to_submit: list[Job] = []
        self._durations: list[float] = []  # of evaluated trials (s), sorted
        self._futile = self._rejected = 0
        self._started = time.monotonic()
        self._earlier = max((trial.elapsed for trial in run.trials), default=0.0)
        self._began = 0.0, 0

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> list[Trial]:
        """Search until the plan is fulfilled or `stop` is called; returns the front.

        Closes the run folder. Raises SpaceError after `FUTILE` proposals in a row that are infeasible or known.
        """
        try:
            self._recover()
            self._began = self.seconds, self.evaluated
            while True:
                self._fill()
                self.store.sync()  # all that was told and asked in this round, at once: the dearest part of a round
                while self._to_submit:
                    self._executor.submit(self._to_submit.pop(0))
                if not self._running:
                    break
                for outcome in self._executor.wait():
                    self._finish(outcome)
        except BaseException:
            self._executor.close(now=True)
            raise
        finally:
            self.store.close()
        self._executor.close()
        return self.front

    def prepare(
        self, task: Task, *, device: str, resources: Mapping[str, float] | None = None, threads: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:  # fmt: skip
        """What comes before the first trial: the plug-ins' own `prepare` as one long job, and open workers.

        Args:
            task, device: passed on.
            resources: of the long job, such as `{"GPU": 1}`; an executor without other machines ignores them.
            threads: of torch in the long job; None leaves it as it is.
            on_progress: called when a long job begins, and whenever it has come further.
        """
        try:
            plugins: dict[str, Any] = {"strategy": self.strategy, **self.evaluator.parts()}
            if self._screen is not None:
                plugins["screen"] = self._screen
            for name, plugin in plugins.items():
                if hasattr(plugin, "prepare"):
                    folder = self.store.path / "prepare" / name
                    folder.mkdir(parents=True, exist_ok=True)
                    job = Preparation(plugin, task, folder, self.plan.seed, device, threads)
                    # Set from outside: the job may have run on a copy of the plug-in, on another machine.
                    plugin.prepared = prepared(job, self._executor, resources or {}, on_progress)
            if self._screen is not None:
                self.starts = (*self.starts, *(self._screen.prepared or ()))
            self._executor.start()
        except BaseException:
            self._executor.close(now=True)
            raise

    def stop(self, reason: str) -> None:
        """Ask for nothing more; running trials are finished."""
        self.stopped = reason

    @property
    def workers(self) -> str:
        """Who does the work, in a line; empty for this process."""
        return self._executor.about

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent, those of earlier sessions of this run included."""
        return self._earlier + time.monotonic() - self._started

    @property
    def pace(self) -> float | None:
        """Seconds per evaluated trial since `run` was called, None before the first."""
        seconds, evaluated = self._began
        return (self.seconds - seconds) / (self.evaluated - evaluated) if self.evaluated > evaluated else None

    def _recover(self) -> None:
        """Tell the journal again, and start again what had been asked and not told."""
        for trial in self.store.trials:
            self._learn(trial)
        if self.plan.rungs:
            self._recall()
        for asked in list(self.store.asked.values()):
            self._start(asked)
        keep.everything(self.store, {trial.number for trial in self.front})

    def _recall(self) -> None:
        """Report to the halving what the journal says was reported, in its order."""
        exact = {trial.number: trial.metrics for trial in self.store.trials if "flops" in trial.metrics}
        genotypes = {t.number: t.genotype for t in self.store.trials if t.number not in exact}
        genotypes |= {asked.number: asked.proposal.genotype for asked in self.store.asked.values()}
        for number, genotype in genotypes.items():
            if number in self.store.curves:
                exact[number] = self.space.costs(genotype)
        for _, event in self.store.events():
            if event["event"] == "report":
                number = event["number"]
                self._halving.report(number, event["epoch"], {**exact[number], **event["metrics"]})

    def _fill(self) -> None:
        while self._room() and not self._stuck():
            done = self.store.proposals
            proposals = list(self.starts[done : done + self._room()])
            if not proposals:
                rng = np.random.default_rng([self.plan.seed, done])
                pending = [asked.proposal for asked in self.store.asked.values()]
                with plugin_errors(self.strategy):
                    proposals = self.strategy.ask(self._room(), rng, pending)
            if not proposals:  # it waits for what is running, or has come to its end
                if not self.store.proposals:
                    raise SpaceError(f"strategy {type(self.strategy).__name__} proposed nothing to begin with")
                if not self._running:
                    self.stop("the strategy has nothing more to propose")
                return
            for proposal in proposals:
                self._propose(proposal)

    def _stuck(self) -> bool:
        """Whether to wait for running trials because nothing else than them is proposed any more."""
        waiting = sum(map(len, self._waiting.values()))
        return bool(self._running) and (waiting >= WAITING or self._futile >= FUTILE)

    def _room(self) -> int:
        """How many evaluations to start now."""
        if self.plan.seconds is not None and self.stopped is None and self._late():
            self.stop("the time is up")
        if self.stopped is not None:
            return 0
        running = len(self._running)
        return max(0, min(self._executor.capacity - running, self.plan.trials - self.evaluated - running))

    def _late(self) -> bool:
        """Whether a typical trial would not end in time."""
        assert self.plan.seconds is not None
        typical = self._durations[len(self._durations) // 2] if self._durations else 0.0
        return self.seconds + typical > self.plan.seconds

    # -- one proposal ------------------------------------------------------------------------------------------

    def _propose(self, proposal: Proposal) -> None:
        """Answer a proposal that needs no evaluation at once, start the others."""
        number = self.store.proposals
        seed = int(np.random.SeedSequence([self.plan.seed, number]).generate_state(1)[0]) >> 1
        architecture = self.space.architecture(proposal.genotype)
        common: dict[str, Any] = {"number": number, "genotype": dict(architecture.genotype), "seed": seed,
                                  "note": dict(proposal.note)}  # fmt: skip
        try:
            key, exact = architecture.key(), self.space.metrics(architecture)
        except GraphError as error:
            self._tell(Trial(key="", state="infeasible", error=str(error), violations={"graph": 1.0}, **common))
            return
        violations = {limit.metric: v for limit in self._exact if (v := limit.violation(exact)) > 0}
        if violations:
            self._tell(Trial(key=key, state="infeasible", metrics=exact, violations=violations, **common))
        elif key in self._known:
            self._tell(_copy(self._known[key], common))
        else:
            self._start(self.store.ask(proposal, key=key, seed=seed, budget=self.evaluator.budget), architecture)

    def _start(self, asked: Asked, architecture: Architecture | None = None) -> None:
        if asked.key in self._known:  # a duplicate whose first evaluation ended before the run was interrupted
            self._tell(_copy(self._known[asked.key], _common(asked)))
        elif asked.key in self._running:
            self._waiting[asked.key].append(asked)
            self._count_futile()
        else:
            self._futile = 0
            self._running[asked.key] = asked.number
            self._to_submit.append(self._job(asked, architecture))

    def _job(self, asked: Asked, architecture: Architecture | None) -> Job:
        architecture = architecture or self.space.architecture(asked.proposal.genotype)
        workdir = self.store.workdir(asked.number)
        timeout, rungs = self.plan.trial_timeout, self.plan.rungs
        return Job(asked.number, architecture, asked.seed, asked.budget, workdir, timeout, rungs)

    def _report(self, job: Job, epoch: float, metrics: Mapping[str, float]) -> None:
        self.store.report(job.number, epoch, metrics)
        if not self._halving.report(job.number, epoch, {**self.space.metrics(job.architecture), **metrics}):
            raise Stop(f"not among the best 1/{self.plan.eta:g} at epoch {epoch:g}")

    def _finish(self, outcome: Outcome) -> None:
        job, result = outcome.job, outcome.result
        asked = self.store.asked[job.number]
        if outcome.retry:
            if self.store.retries.get(job.number, 0) < RETRIES:
                self.store.retry(job.number, result.error or "the worker was lost")
                self._to_submit.append(job)
                return
            result = Result("failed", error=f"{result.error or 'the worker was lost'} ({RETRIES + 1} times)")
        metrics = {**self.space.metrics(job.architecture), **result.metrics} if result.state in KNOWING else {}
        wanted = [o.metric for o in self.plan.objectives] if result.state == "ok" else []
        missing = [name for name in wanted if name not in metrics]
        if missing:
            given = ", ".join(result.metrics) or "nothing"
            result = replace(
                result, state="failed", error=f"there is no metric {missing[0]!r}; the evaluator gave {given}"
            )
            metrics = {}
        violations = {limit.metric: v for limit in self.plan.limits if (v := limit.violation(metrics)) > 0}
        del self._running[asked.key]
        self._futile = 0
        self._rejected = self._rejected + 1 if result.state == "infeasible" else 0
        trial = Trial(
            state=result.state, metrics=metrics, budget=result.budget, seconds=result.seconds, worker=result.worker,
            error=result.error, violations=violations, key=asked.key, **_common(asked),
        )  # fmt: skip
        self._tell(trial)
        if self._rejected == REJECTED:
            raise SpaceError(
                f"{REJECTED} networks in a row broke a limit on what is measured: "
                f"{reach.measured(self.store.trials, self.plan.limits)}; loosen the limits, or choose another space"
            )
        for again in self._waiting.pop(asked.key, []):
            self._tell(_copy(trial, _common(again)))

    def _tell(self, trial: Trial) -> None:
        trial = replace(trial, elapsed=round(self.seconds, 3))
        self.store.tell(trial)
        before = self.front
        self._learn(trial)
        if trial.ran:
            front = {t.number for t in self.front}
            left = {t.number for t in before} - front if self.front is not before else ()
            keep.after(self.store, trial.number, front, left)
        else:
            self._count_futile()
        if self._on_trial is not None:
            self._on_trial(self, trial)

    def _learn(self, trial: Trial) -> None:
        """What telling changes in memory: the same when a run goes on as when it is replayed."""
        with plugin_errors(self.strategy):
            self.strategy.tell(trial)
        if trial.ran:
            self._known[trial.key] = trial
        if not trial.evaluated:
            return
        self.evaluated += 1
        insort(self._durations, trial.seconds)
        if trial.ok and not self._dominated(trial):
            self.front = pareto.front([*self.front, trial], self.plan.objectives)

    def _dominated(self, trial: Trial) -> bool:
        """Whether the front has one that is as good in everything, as nearly always."""
        mine = [o.cost(trial.metrics) for o in self.plan.objectives]
        costs = ([o.cost(t.metrics) for o in self.plan.objectives] for t in self.front)
        return any(all(a <= b for a, b in zip(theirs, mine, strict=True)) for theirs in costs)

    # -- giving up ---------------------------------------------------------------------------------------------

    def _count_futile(self) -> None:
        self._futile += 1
        if self._futile < FUTILE or self._running:
            return
        if reach.exhausted(self.space, self._known, self._exact):
            self.stop("every feasible architecture of the space has been evaluated")
            self._futile = 0
            return
        raise SpaceError(
            f"{FUTILE} proposals in a row were infeasible or known already; "
            f"{reach.describe(self.space, self._known, self._exact, self.plan.seed)}; "
            "loosen the limits, choose a larger space, or ask for fewer trials"
        )


def _common(asked: Asked) -> dict[str, Any]:
    return {"number": asked.number, "genotype": dict(asked.proposal.genotype), "seed": asked.seed,
            "note": dict(asked.proposal.note)}  # fmt: skip


def _copy(known: Trial, common: Mapping[str, Any]) -> Trial:
    """The result of a trial told again to a proposal of the same network."""
    return Trial(
        key=known.key, state=known.state, metrics=known.metrics, budget=known.budget, error=known.error,
        violations=known.violations, duplicate_of=known.number, **common,
    )  # fmt: skip


def summary(trials: Sequence[Trial]) -> dict[str, int]:
    """Number of trials by state; `duplicate` for those answered from an earlier one."""
    counts: dict[str, int] = defaultdict(int)
    for trial in trials:
        counts["duplicate" if trial.duplicate_of is not None else trial.state] += 1
    return dict(counts)

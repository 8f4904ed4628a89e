"""Optuna's samplers as a strategy: the tree-structured Parzen estimator, and others by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.choices import Decision, Genotype, Label
from nas.errors import ConfigError, SpaceError
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy, informs
from nas.trial import Limit, Objective, Proposal, Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState
    from optuna.trial import Trial as Sampling

    from .optuna_study import Overlay

WORK = 400
"""Mutations that are looked at where the sampler itself finds nothing new, at most."""


class Tpe(Strategy):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023), or another of its samplers.

    TPE models decisions jointly (`multivariate`), groups them by the condition under which they are active (`group`),
    and keeps away from what is pending (`constant_liar`). Each decision is a category. Limits are constraints; a trial
    that diverged, ran out of memory or of time counts as worse than all that ended, one that failed is not learnt
    from. A duplicate, or a network outside a limit known beforehand, is sampled again; after `tries` of them the last
    is mutated until it is new and inside.

    Where decisions are conditional, GPSampler and the NSGAs handle those that all trials have in common, and draw the
    others at random.

    Every `ask` works on a study that is thrown away after it, with a new sampler seeded by `rng`. What a sampler notes
    in the study (NSGA-II: the generation and its parents) travels in the proposal's note.

    Args:
        sampler: a class of `optuna.samplers`: TPESampler, GPSampler, NSGAIISampler, NSGAIIISampler, RandomSampler.
        startup: random trials before a model is fitted (TPE, GP).
        candidates: what TPE draws for each proposal, of which it takes the best.
        population: individuals of a generation (NSGA-II, NSGA-III).
        tries: samples for one proposal.

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *,
        sampler: str = "TPESampler", startup: int = 10, candidates: int = 24, population: int = 50, tries: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        options = {"startup": startup, "candidates": candidates, "population": population, "tries": tries}
        for name, value in options.items():
            least = {"startup": 0, "population": 3}.get(name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"strategy.{name}: expected a whole number of at least {least}, got {value!r}")
        settings: dict[str, dict[str, Any]] = {
            "TPESampler": {"n_startup_trials": startup, "n_ei_candidates": candidates, "multivariate": True,
                           "group": True, "constant_liar": True},
            "GPSampler": {"n_startup_trials": startup, "warn_independent_sampling": False},
            "NSGAIISampler": {"population_size": population},
            "NSGAIIISampler": {"population_size": population},
            "RandomSampler": {},
        }  # fmt: skip
        if sampler not in settings:
            close = get_close_matches(str(sampler), settings, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"strategy.sampler: {sampler!r} is no sampler of Optuna that can choose among categories; {hint}"
                f"expected one of {', '.join(settings)}"
            )
        self.sampler, self.tries = sampler, tries
        self._settings = settings[sampler]
        self._exact = [limit for limit in limits if limit.exact]
        self._seen = Seen(space)
        self._told: list[FrozenTrial] = []
        self._notes: dict[str, Any] = {}
        self._first: BaseSampler | None = None
        self._parameters: dict[tuple[str, tuple[Label, ...]], tuple[str, CategoricalDistribution]] = {}

    def tell(self, trial: Trial) -> None:
        from optuna.trial import TrialState

        self._seen.tell(trial)
        for key, value in trial.note.get("study", {}).items():
            self._notes.setdefault(key, value)
        constraints: Mapping[str, float] = {}
        state, known = TrialState.FAIL, dict[str, Any]()
        if trial.ok and trial.duplicate_of is None:
            state, known = TrialState.COMPLETE, {"values": [o.cost(trial.metrics) for o in self.objectives]}
            constraints = {str(limit): _over(limit, trial.metrics) for limit in self.limits}
        elif trial.state != "failed" and trial.duplicate_of is None:
            state, constraints = TrialState.PRUNED, trial.violations
            if informs(trial, self.objectives) and len(self.objectives) == 1:  # Optuna ranks these by step and value
                known = {"intermediate_values": {round(trial.budget or 0): self.objectives[0].cost(trial.metrics)}}
        told = self._frozen(trial.genotype, trial.note, state, **known)
        for name, over in constraints.items():
            told.set_constraint(name, over)
        told.number = told._trial_id = len(self._told)
        self._told.append(told)

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        from optuna import load_study
        from optuna.trial import TrialState

        from .optuna_study import STUDY, Overlay

        self._seen.follow(pending)
        notes = dict(self._notes)
        for proposal in pending:
            notes = {**proposal.note.get("study", {}), **notes}
        storage = Overlay(len(self.objectives), self._told, notes)
        for proposal in pending:
            storage.create_new_trial(0, self._frozen(proposal.genotype, proposal.note, TrialState.RUNNING))
        study = load_study(study_name=STUDY, storage=storage, sampler=self._sampler(int(rng.integers(2**32))))
        asked: list[Proposal] = []
        for _ in range(n):
            earlier = set(storage.noted)
            genotype, attributes = self._sampled(study, storage, rng)
            noted = {key: value for key, value in storage.noted.items() if key not in earlier}
            asked.append(Proposal(genotype, {k: v for k, v in (("trial", attributes), ("study", noted)) if v}))
            self._seen.add(asked[-1])
        return asked

    def _sampled(self, study: Study, storage: Overlay, rng: np.random.Generator) -> tuple[Genotype, dict[str, int]]:
        """A genotype that is new and within the limits, and what the sampler noted in its trial."""
        for _ in range(self.tries):
            sampling = study.ask()
            candidate = Candidate(self.space, self.space.walk(partial(self._suggested, sampling)))
            # Numbers only: TPE and GP note the whole sample too, which the genotype says already.
            attributes = {
                key: value
                for key, value in storage.get_trial(sampling.number).system_attrs.items()
                if isinstance(value, int)
            }
            if not candidate.excess(self._exact) and candidate not in self._seen:
                return candidate.genotype, attributes
            # It stays in the study as running until the end of `ask`, so that the next sample keeps away from it.
        return self._repaired(candidate, rng), attributes

    def _repaired(self, candidate: Candidate, rng: np.random.Generator) -> Genotype:
        """Mutated until it is within the limits and new; what came nearest if nothing is."""
        excess = candidate.excess(self._exact)
        for _ in range(WORK):
            try:
                step = Candidate(self.space, self.space.mutate(candidate.genotype, rng))
            except SpaceError:  # the space is a single architecture
                break
            less = step.excess(self._exact)
            if less <= excess:
                candidate, excess = step, less
                if not excess and candidate not in self._seen:
                    break
        return candidate.genotype

    def _suggested(self, sampling: Sampling, decision: Decision) -> int:
        if len(decision) == 1:
            return 0
        return sampling.suggest_categorical(self._parameter(decision)[0], range(len(decision)))

    def _parameter(self, decision: Decision) -> tuple[str, CategoricalDistribution]:
        """Name and options for Optuna, which wants the options of a name to be always the same."""
        from optuna.distributions import CategoricalDistribution

        path, labels = decision.path, decision.labels
        if (path, labels) not in self._parameters:
            name = path if self.space.paths[path] == labels else f"{path} of {', '.join(map(str, labels))}"
            self._parameters[path, labels] = name, CategoricalDistribution(range(len(labels)))
        return self._parameters[path, labels]

    def _frozen(self, genotype: Genotype, note: Mapping[str, Any], state: TrialState, **known: Any) -> FrozenTrial:
        from .optuna_study import frozen

        params: dict[str, int] = {}
        distributions: dict[str, CategoricalDistribution] = {}
        for decision in self.space.decisions(genotype):
            index = decision.index_in(genotype)
            if len(decision) > 1 and index is not None:
                name, distributions[name] = self._parameter(decision)
                params[name] = index
        attributes = dict(note.get("trial", {}))
        return frozen(state, params=params, distributions=distributions, system_attrs=attributes, **known)

    def _sampler(self, seed: int) -> BaseSampler:
        import optuna

        from .optuna_study import Reseeded

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
            fresh: BaseSampler = getattr(optuna.samplers, self.sampler)(seed=seed, **self._settings)
        if self.sampler == "TPESampler":  # needs all trials each time anyway
            return fresh
        self._first = self._first or fresh
        return Reseeded(fresh, self._first)


def _over(limit: Limit, metrics: Mapping[str, float]) -> float:
    """How far a limit is exceeded, relative to its bound; below 0 inside."""
    over = metrics.get(limit.metric, limit.bound) - limit.bound
    return (-over if limit.at_least else over) / (abs(limit.bound) or 1.0)

"""What an Optuna study is made of that is used once and thrown away."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna.study._frozen import FrozenStudy  # Optuna does not export the type

STUDY = "nas"
"""Name of the one study."""


class Overlay(BaseStorage):
    """The told trials of a study, which are shared and never written to, and what is sampled on top of them.

    Optuna's own storages cannot forget: a trial that was asked stays, and so does what a sampler noted in the study.
    Here both live as long as the object, so that to sample changes nothing. A trial's id is its number.

    Args:
        objectives: how many values a trial has, all to be minimised.
        told: finished trials in order, numbered from 0.
        notes: what samplers noted in the study so far.

    Attributes:
        noted: what a sampler notes from now on.
    """

    def __init__(self, objectives: int, told: Sequence[FrozenTrial], notes: Mapping[str, Any]) -> None:
        self._directions = [StudyDirection.MINIMIZE] * objectives
        self._trials = list(told)
        self._told = len(told)
        self._notes = notes
        self.noted: dict[str, Any] = {}

    # -- the study ---------------------------------------------------------------------------------------------

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return STUDY

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self._directions

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {**self._notes, **self.noted}

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self.noted[key] = value

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    # -- its trials --------------------------------------------------------------------------------------------

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self._trials)
        trial = template_trial or frozen(TrialState.RUNNING)
        trial.number = trial._trial_id = number
        self._trials.append(trial)
        return number

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == (TrialState.WAITING,):  # asked for at each new trial; there are none
            return []
        return list(self._trials) if states is None else [t for t in self._trials if t.state in states]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._fresh(trial_id)
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        trial = self._fresh(trial_id)
        trial.state = state
        if values is not None:
            trial.values = list(values)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._fresh(trial_id).intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._fresh(trial_id).user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._fresh(trial_id).system_attrs[key] = value

    def _fresh(self, trial_id: int) -> FrozenTrial:
        assert trial_id >= self._told, "a told trial is never changed"
        return self._trials[trial_id]

    # -- what a single study has no use for --------------------------------------------------------------------

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise NotImplementedError

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError

    def get_all_studies(self) -> list[FrozenStudy]:
        raise NotImplementedError

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        raise NotImplementedError


def frozen(state: TrialState, **known: Any) -> FrozenTrial:
    """A trial with what is known of it: `values`, `params`, `distributions`, `system_attrs`, ..."""
    empty: dict[str, Any] = {"params": {}, "distributions": {}, "user_attrs": {}, "system_attrs": {},
                             "intermediate_values": {}}  # fmt: skip
    return FrozenTrial(
        number=-1, trial_id=-1, state=state, value=None, datetime_start=None, datetime_complete=None,
        **{**empty, **known},
    )  # fmt: skip


class Reseeded(BaseSampler):
    """A new sampler that takes over from the first one which decisions all trials have in common.

    The first one follows them from trial to trial; a new one would go through all trials again.
    """

    def __init__(self, fresh: BaseSampler, first: BaseSampler) -> None:
        self._fresh, self._first = fresh, first

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._first.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._fresh.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._fresh.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._fresh.before_trial(study, trial)

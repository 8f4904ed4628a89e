"""A run as an Optuna study, for optuna-dashboard; and its training curves as TensorBoard's event files."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.choices import Label
from nas.errors import ConfigError, PluginError, RunError
from nas.trial import Trial

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from nas.session import Results


def study(results: Results) -> BaseStorage:
    """An Optuna storage in memory with one study, whose trials are those of the run that were evaluated.

    Every decision is a categorical parameter, and those that were not active are not there, as in Optuna's own
    conditional studies. Objectives are the values, all metrics are user attributes; epochs are steps with the first
    objective. Trials that halving stopped are pruned; those without a result failed, with the error as an attribute.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.study import StudyDirection

    storage = optuna.storages.InMemoryStorage()
    directions = [
        StudyDirection.MAXIMIZE if o.direction == "max" else StudyDirection.MINIMIZE for o in results.objectives
    ]
    made = optuna.create_study(storage=storage, study_name=results.path.resolve().name, directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made.set_metric_names([o.metric for o in results.objectives])
    for name in ("space", "strategy", "evaluator", "data", "seed"):
        made.set_user_attr(name, getattr(results.config, name))
    parameters = _parameters(results)
    begin = _begin(results)
    made.add_trials([_frozen(results, trial, parameters, begin) for trial in results.trials if trial.evaluated])
    return storage


def _parameters(results: Results) -> dict[str, CategoricalDistribution]:
    """The options of every decision: the space's, then those that only the run's trials know."""
    from optuna.distributions import CategoricalDistribution

    found: dict[str, dict[Label, None]] = {}
    with suppress(PluginError):  # the space is not here any more
        found = {path: dict.fromkeys(labels) for path, labels in results.space.paths.items()}
    for trial in results.trials:
        for path, label in trial.genotype.items():
            found.setdefault(path, {}).setdefault(label)
    return {path: CategoricalDistribution(tuple(labels)) for path, labels in found.items()}


def _begin(results: Results) -> datetime:
    """When the search would have begun, had it never been interrupted: the journal ends with its last trial."""
    end = datetime.fromtimestamp((results.path / "trials.jsonl").stat().st_mtime)
    return end - timedelta(seconds=max((trial.elapsed for trial in results.trials), default=0.0))


def _frozen(
    results: Results, trial: Trial, parameters: dict[str, CategoricalDistribution], begin: datetime
) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    complete = trial.ok and all(o.metric in trial.metrics for o in results.objectives)
    state = TrialState.COMPLETE if complete else TrialState.PRUNED if trial.state == "stopped" else TrialState.FAIL
    first = results.objectives[0].metric
    curve = results.run.curves.get(trial.number, ())
    told: dict[str, Any] = {"trial": trial.number, "state": trial.state, **trial.metrics, "worker": trial.worker}
    told |= {"error": trial.error} if trial.error else {}
    made = create_trial(
        state=state,
        values=[trial.metrics[o.metric] for o in results.objectives] if complete else None,
        params=dict(trial.genotype),
        distributions={path: parameters[path] for path in trial.genotype},
        user_attrs=told,
        intermediate_values={int(epoch): metrics[first] for epoch, metrics in curve if first in metrics},
    )
    made.datetime_complete = begin + timedelta(seconds=trial.elapsed)
    made.datetime_start = made.datetime_complete - timedelta(seconds=trial.seconds)
    return made


def serve(results: Results, *, host: str, port: int) -> None:
    """Show the run in optuna-dashboard until Ctrl-C.

    Raises ConfigError where it is not installed, or the port cannot be used.
    """
    try:
        from optuna_dashboard import run_server
    except ImportError:
        raise ConfigError("dashboard needs optuna-dashboard: pip install 'nas[dashboard]'") from None
    with _quiet():
        storage = study(results)
    try:
        run_server(storage, host=host, port=port)
    except OSError as error:
        raise ConfigError(
            f"dashboard: {host}:{port} cannot be used ({error.strerror}); choose another --port"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna reports every study that it makes."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def write_events(results: Results, folder: Path) -> Path:
    """Write what was reported while trials trained as event files: a sub-folder per trial, a scalar per metric.

    So are the curves of `nas train` in the run's folder, with a sub-folder each. Files of an earlier call are replaced.

    Raises RunError if there are no curves, ConfigError without tensorboardX.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError("event files need tensorboardX: pip install tensorboardX") from None
    from nas.torch.job import read_curve
    from nas.training import CURVE

    curves = {f"{number:05d}": curve for number, curve in sorted(results.run.curves.items())}
    for path in sorted(results.path.glob(f"train/*/{CURVE}")):
        curves[path.parent.name] = [(row["epoch"], row) for row in read_curve(path)]
    if not curves:
        raise RunError(f"run {results.path} has no training curves: {results.config.evaluator} reported none")
    for name, curve in curves.items():
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        with SummaryWriter(str(target)) as writer:
            for epoch, metrics in curve:
                for metric, value in metrics.items():
                    writer.add_scalar(metric, value, int(epoch))
    return folder

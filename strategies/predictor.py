"""Model-based search: measured metrics are predicted, known ones never are, and the most promising network is next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import NormalDist
from typing import ClassVar, TypeAlias

import numpy as np

from nas import pareto
from nas.architecture import Architecture
from nas.choices import Genotype
from nas.errors import ConfigError, PluginError
from nas.plugins import find
from nas.space import Space
from nas.strategy import Candidate, Strategy
from nas.trial import Limit, Objective, Proposal, Trial

from .surrogates import Array, Features, GaussianProcess, Model, Scale, Surrogate

PATIENCE = 20
"""Mutations without progress towards the limits, after which a candidate is given up."""

DRAWS = 16
"""Values that stand for the distribution of a prediction."""

TUNED = 200
"""Trials that hyperparameters are searched on, at most."""


Proxy: TypeAlias = Callable[[Architecture], float]


class _Point:
    """A proposal as the models see it: what is known of it, and what came of it if it was told."""

    def __init__(self, space: Space, candidate: Candidate, trial: Trial | None, proxies: Mapping[str, Proxy]) -> None:
        self.candidate, self.trial = candidate, trial
        self.code = space.encode(candidate.genotype)
        self.costs = list(candidate.costs.values())
        if self.costs:
            self.costs += [_measured(name, proxy, candidate.architecture) for name, proxy in proxies.items()]
        self.budget = np.log(trial.budget) if trial is not None and trial.budget else None

    def value(self, metric: str) -> float:
        """The measured metric, NaN where there is none."""
        value = self.trial.metrics.get(metric, np.nan) if self.trial is not None else np.nan
        return value if np.isfinite(value) else np.nan


class Predictor(Strategy):
    """Bayesian optimisation over architectures, for any number of objectives.

    1. Initial design: of `pool` random candidates, the one whose known costs are furthest from all others'.
    2. One Gaussian process for each measured metric, over the decisions, how often each option is taken, and the exact
       costs. Metrics are warped to look normal first, which matters most of all (see `benchmarks/predictor.py`).
    3. Candidates are mutations and crossovers of the front, and fresh samples. The next proposal has the largest
       expected improvement (Jones et al. 1998) with one objective, expected hypervolume improvement (Emmerich et al.
       2006) with several, times its chances to keep the measured limits and to be trained without failing.

    Pending proposals count as if they had turned out as predicted, so that a batch is diverse. No candidate is a
    duplicate, or outside a limit known beforehand. Trials stopped early are learnt from at their budget.

    Args:
        initial: trials of the initial design.
        pool: candidates compared for each trial of the initial design.
        candidates: candidates compared for each later proposal.
        fresh: share of fresh samples among them.
        capacity: trials that the models are fitted to, at most: those near the front, and others spread over the run.
        proxies: zero-cost proxies by name (`nwot,synflow`), or functions of yours, as `package.module:name`, from an
            `Architecture` to a finite number that says something of its quality; they are features like the costs.
            Called for every candidate: cheap ones only.

    Raises ConfigError for an option out of range, PluginError for a proxy that is not there or cannot be imported.
    """

    model: ClassVar[type[Surrogate]] = GaussianProcess

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *, initial: int = 8,
        pool: int = 64, candidates: int = 200, fresh: float = 0.1, capacity: int = 400,
        proxies: str | Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        sizes = {"initial": (initial, 2), "pool": (pool, 1), "candidates": (candidates, 1), "capacity": (capacity, 10)}
        for name, (value, least) in sizes.items():
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"strategy.{name}: expected a whole number of at least {least}, got {value!r}")
        if not 0 <= fresh <= 1:
            raise ConfigError(f"strategy.fresh: expected a share, 0 to 1, got {fresh}")
        self.initial, self.pool, self.candidates, self.fresh, self.capacity = initial, pool, candidates, fresh, capacity
        self._known = [limit for limit in limits if limit.exact]
        self._unknown = [limit for limit in limits if not limit.exact]
        names = [name.strip() for name in proxies.split(",")] if isinstance(proxies, str) else proxies
        self._proxies = {name: _proxy(name) for name in names}
        self._features = Features(space)
        self._points: list[_Point] = []
        self._complete: list[_Point] = []  # those with every metric
        self._values: list[list[float]] = []  # of their objectives, to be minimised
        self._outside: list[bool] = []  # whether they break a limit
        self._told: set[str] = set()
        self._codes: set[bytes] = set()
        self._fitted: tuple[int, Scale, dict[str, Model]] | None = None  # caches: pure functions of what was told
        self._tuned: tuple[int, Scale, dict[str, Model]] | None = None

    # -- the contract ------------------------------------------------------------------------------------------

    def tell(self, trial: Trial) -> None:
        self._told.add(trial.key)
        if trial.ran:
            point = self._point(trial.genotype, trial)
            self._points.append(point)
            self._codes.add(point.code.tobytes())
            if trial.ok:
                self._complete.append(point)
                self._values.append([o.cost(trial.metrics) for o in self.objectives])
                self._outside.append(any(trial.violations.values()))

    def _point(self, genotype: Genotype, trial: Trial | None = None) -> _Point:
        return _Point(self.space, Candidate(self.space, genotype), trial, self._proxies)

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        waiting = [self._point(p.genotype) for p in pending]
        asked: list[_Point] = []
        for _ in range(n):
            chosen = self._propose(rng, [point for point in (*waiting, *asked) if point.costs])
            asked.append(self._point(chosen.genotype))
        return [Proposal(point.candidate.genotype) for point in asked]

    def _propose(self, rng: np.random.Generator, waiting: Sequence[_Point]) -> Candidate:
        taken = self._told.union(point.candidate.key for point in waiting if point.candidate.key)
        if len(self._complete) + len(waiting) < self.initial or len(self._complete) < min(4, self.initial):
            found = self._candidates(rng, self.pool, [])
            scores = self._distances(found, waiting)
        else:
            found = self._candidates(rng, self.candidates, self._parents())
            scores = self._scores(found, waiting)
        ordered = [found[int(i)].candidate for i in np.argsort(-scores, kind="stable")]
        # Where nothing new is near, the search itself knows what to do with a duplicate.
        new = next((candidate for candidate in ordered if candidate.key not in taken), None)
        return new or Candidate(self.space, self.space.sample(rng))

    # -- candidates --------------------------------------------------------------------------------------------

    def _parents(self) -> list[Genotype]:
        """The front, and the fronts behind it while there are fewer than 5; those outside a limit come last."""
        outside = np.array(self._outside)
        ranks = pareto.ranks(np.array(self._values)) + len(outside) * outside
        last = np.sort(ranks)[min(5, len(ranks)) - 1]
        return [self._complete[i].candidate.genotype for i in np.flatnonzero(ranks <= last)]

    def _candidates(self, rng: np.random.Generator, count: int, parents: Sequence[Genotype]) -> list[_Point]:
        """Up to `count` candidates within the known limits, each code once, none that was told."""
        found: dict[bytes, _Point] = {}
        left = 2 * count + 2 * PATIENCE
        while left > 0 and len(found) < count:
            candidate = Candidate(self.space, self._child(rng, parents))
            excess, idle, left = candidate.excess(self._known), 0, left - 1
            while excess and left > 0 and idle < PATIENCE:
                step = Candidate(self.space, self.space.mutate(candidate.genotype, rng))
                less, left = step.excess(self._known), left - 1
                idle = 0 if less < excess else idle + 1
                if less <= excess:
                    candidate, excess = step, less
            if not excess:
                point = _Point(self.space, candidate, None, self._proxies)
                code = point.code.tobytes()
                if code not in self._codes:
                    found.setdefault(code, point)
        return list(found.values())

    def _child(self, rng: np.random.Generator, parents: Sequence[Genotype]) -> Genotype:
        if len(parents) < 2 or rng.random() < self.fresh:
            return self.space.sample(rng)
        a, b = (parents[i] for i in rng.choice(len(parents), 2, replace=False))
        child = self.space.crossover(a, b, rng) if rng.random() < 0.5 else a
        for _ in range(int(child is a) + int(rng.random() < 0.3)):
            child = self.space.mutate(child, rng)
        return child

    def _distances(self, found: Sequence[_Point], waiting: Sequence[_Point]) -> Array:
        """Distance to the nearest other point in the logarithms of the known costs; at first, closeness to the mean."""
        if not found:
            return np.zeros(0)
        others = [*self._points, *waiting]
        logs = np.log1p(np.abs([point.costs for point in [*found, *others] if point.costs]))
        spread = logs.std(0)
        logs = (logs - logs.mean(0)) / np.where(spread > 0, spread, 1)
        here, there = logs[: len(found)], logs[len(found) :]
        if not len(there):
            return np.asarray(-np.linalg.norm(here, axis=1))
        distances: Array = np.linalg.norm(here[:, None] - there, axis=2).min(1)
        return distances

    # -- models ------------------------------------------------------------------------------------------------

    def _exact(self, objective: Objective) -> bool:
        """Whether a candidate's value is known."""
        return objective.exact and objective.metric in self.space.exact

    def _inputs(self, points: Sequence[_Point]) -> list[Array]:
        """Feature blocks; what has no budget of its own has the full one."""
        spent = [p.budget for p in points if p.budget is not None] or [p.budget or 0.0 for p in self._points]
        full = max(spent, default=0.0)
        budgets = np.array([full if p.budget is None else p.budget for p in points])
        return self._features(np.array([p.code for p in points]), np.array([p.costs for p in points], float), budgets)

    def _targets(self, points: Sequence[_Point]) -> dict[str, Array]:
        """What is to be predicted, larger being better: measured objectives and limits, and whether training ends."""
        signs = {str(limit): (limit.metric, 1.0 if limit.at_least else -1.0) for limit in self._unknown}
        unknown = [o for o in self.objectives if not self._exact(o)]
        signs |= {o.metric: (o.metric, 1.0 if o.direction == "max" else -1.0) for o in unknown}
        targets = {name: sign * np.array([p.value(metric) for p in points]) for name, (metric, sign) in signs.items()}
        known = ("ok", "stopped", "infeasible")  # of the last it is not known whether training ends: it did not begin
        ends = np.array([p.trial is not None and p.trial.state in known for p in points], float)
        return targets if ends.all() else targets | {"": ends}

    def _models(self) -> tuple[Scale, dict[str, Model]]:
        """The models of all that was told; their hyperparameters are searched again whenever a tenth more was told."""
        told, known = len(self._points), min(self.initial, len(self._points))
        while (later := int(1.1 * known) + 1) <= told:
            known = later
        if self._tuned is None or self._tuned[0] != known:
            scale, models = self._fit(self._points[:known], TUNED, None, {})
            self._tuned = known, scale, models
        if self._fitted is None or self._fitted[0] != told:
            scale, models = self._fit(self._points, self.capacity, self._tuned[1], self._tuned[2])
            self._fitted = told, scale, models
        return self._fitted[1:]

    def _fit(
        self, points: Sequence[_Point], most: int, scale: Scale | None, like: dict[str, Model]
    ) -> tuple[Scale, dict[str, Model]]:
        points = [point for point in points if point.costs]
        points = self._chosen(points, most)
        inputs = self._inputs(points)
        scale = scale or Scale(inputs)
        x = scale(inputs)
        targets = self._targets(points)
        if like:  # that training can fail is modelled once it has been tuned
            targets = {metric: values for metric, values in targets.items() if metric or metric in like}
        enough = {metric: values for metric, values in targets.items() if np.isfinite(values).sum() > 1}
        return scale, {m: Model(self.model, x, values, like.get(m)) for m, values in enough.items()}

    def _chosen(self, points: list[_Point], most: int) -> list[_Point]:
        """At most so many: half of them nearest to the front, half spread evenly over the others."""
        if len(points) <= most:
            return points
        complete = np.array([i for i, p in enumerate(points) if p.trial is not None and p.trial.ok], int)
        ranks = pareto.ranks(np.array(self._values[: len(complete)]))
        near = set(complete[np.argsort(ranks, kind="stable")][: most // 2].tolist())
        others = [i for i in range(len(points)) if i not in near]
        spread = np.linspace(0, len(others) - 1, most - len(near)).astype(int)
        return [points[i] for i in sorted(near | {others[j] for j in spread})]

    # -- what is promising -------------------------------------------------------------------------------------

    def _scores(self, found: Sequence[_Point], waiting: Sequence[_Point]) -> Array:
        """Expected improvement by each candidate times its chances."""
        if not found:
            return np.zeros(0)
        scale, models = self._models()
        x = scale(self._inputs(found))
        draws = DRAWS if len(self.objectives) < 3 else DRAWS // 4  # the hypervolume is slow to compute then
        told = np.array(self._values)
        front = told[~np.array(self._outside)]
        if waiting:
            there = scale(self._inputs(waiting))
            front = np.vstack([front, self._expected(waiting, there, models, 1)[0]])
            models = {metric: model.believing(there) for metric, model in models.items()}
        values = self._expected(found, x, models, draws)
        chances = self._chances(x, models)
        if not len(front):
            return chances
        # Known objectives from the least to the most; measured ones without the worst tenth, which may be far away.
        exact = np.array([self._exact(o) for o in self.objectives])
        low = np.where(exact, np.minimum(told.min(0), values[0].min(0)), told.min(0))
        high = np.where(exact, np.maximum(told.max(0), values[0].max(0)), np.quantile(told, 0.9, axis=0))
        span = np.where(high > low, high - low, 1)
        front, values = (front - low) / span, (values - low) / span
        scores: Array = _improvement(front, values).mean(0) * chances - 1e-9 * values.mean((0, 2))
        return scores

    def _expected(self, points: Sequence[_Point], x: Array, models: dict[str, Model], draws: int) -> Array:
        """Objective values (draws, points, objectives): known ones exactly, others at quantiles of the prediction."""
        quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / draws) for i in range(draws)])
        values = np.empty((draws, len(points), len(self.objectives)))
        for j, objective in enumerate(self.objectives):
            if self._exact(objective):
                values[:, :, j] = [objective.cost(point.candidate.costs) for point in points]
            else:
                mean, deviation = models[objective.metric].predict(x)
                # Each measured objective in another order, so that they are independent.
                order = np.random.default_rng(j).permutation(draws)
                values[:, :, j] = -models[objective.metric].warp.inverse(mean + quantiles[order, None] * deviation)
        return values

    def _chances(self, x: Array, models: dict[str, Model]) -> Array:
        """Probability (architectures,) of keeping the measured limits and of being trained to the end."""
        chances = np.ones(len(x))
        if "" in models:
            never, always = models[""].warp(np.array([0.0, 1.0]))
            chances *= np.clip((models[""].predict(x)[0] - never) / (always - never), 0.02, 1)
        for limit in self._unknown:
            if str(limit) in models:
                model = models[str(limit)]
                mean, deviation = model.predict(x)
                bound = model.warp(np.array([limit.bound if limit.at_least else -limit.bound]))
                chances *= [NormalDist().cdf(z) for z in (mean - bound) / deviation]
        return chances


def _proxy(name: str) -> Proxy:
    found = find("proxies", name)
    proxy: Proxy = found() if isinstance(found, type) else found  # ours are classes, their instances functions
    return proxy


def _measured(name: str, proxy: Proxy, architecture: Architecture) -> float:
    value = float(proxy(architecture))
    if not isfinite(value):
        raise PluginError(f"strategy.proxies: {name} gave {value}, not a finite number")
    return value


def _improvement(front: Array, values: Array) -> Array:
    """What each of the values (draws, architectures, objectives) would add to the front, both scaled to 0..1."""
    if front.shape[1] == 1:
        better: Array = np.maximum(front.min() - values[:, :, 0], 0)
        return better
    front = front[pareto.ranks(front) == 0]
    points = values.reshape(-1, front.shape[1])
    added = np.zeros(len(points))
    new = ~(front[:, None] <= points).all(2).any(0)
    added[new] = pareto.gains(front, points[new], [1.1] * front.shape[1])
    return added.reshape(values.shape[:2])

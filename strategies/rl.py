"""Reinforcement learning: one controller that covers the whole front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf, isfinite

import numpy as np

from nas import pareto
from nas.errors import ConfigError
from nas.space import Space
from nas.strategy import Candidate, Seen, Strategy
from nas.trial import Limit, Objective, Proposal, Trial

from .lstm import Lstm
from .policies import Array, Logits, Policy, Tokens, Vocabulary

TRIES = 30
"""Architectures that are drawn for one proposal until one is new and within the limits."""

HEATING = 0.5
"""By how much the temperature rises with each that is known: a settled policy still finds something new."""

RECENT, BEFORE = 16, 64
"""Trials told last that the policy gradient is taken over, and that its baseline is the mean of."""

DECAY, NEAR = 0.95, 0.2
"""Weight of a trial in the baseline: per trial since (as in NASNet and TuNAS), and per distance of preferences."""

CLIP, DUAL = 0.2, 3.0
"""PPO: changes of a probability beyond these are not rewarded (the second for bad trials, Ye et al. 2020)."""

PREFERENCES, EACH, FEWEST = 16, 3, 5
"""Imitation: preferences drawn for a step, trials imitated for each of them, and trials these are among, at least."""

GROWTH = 150
"""Trials after which learning is half as frequent as in the beginning."""

KEPT = 512
"""Trials that are remembered; of twice as many the worst are forgotten."""


class Reinforcement(Strategy):
    """A controller trained by policy gradient (Zoph & Le 2017), conditioned on a preference.

    1. A proposal draws a preference, weights of the objectives (uniform), and an architecture from the policy for it.
       One that is known or outside a limit known beforehand is drawn again for another preference, hotter if known.
    2. The reward of a trial under any preference: half the weighted mean of its utilities, half the worst weighted
       shortfall (augmented Chebyshev, Knowles 2006: reaches fronts that are not convex). A utility is the share of
       trials that are worse, so metrics may have any scale (rank shaping, as in NES, Wierstra et al. 2014).
    3. Policy gradient over the trials told last: REINFORCE (Williams 1992), its baseline a moving average around
       the trial's preference, or PPO (Schulman et al. 2017), with the probability in the note for its ratio.
    4. Imitation: a network is good under other preferences than the one it was drawn for (hindsight, Andrychowicz et
       al. 2017). For preferences drawn anew, the best `risk` of all trials are made more likely, in proportion to
       how far they exceed the rest (self-imitation, Oh et al. 2018; a quantile as baseline, Petersen et al. 2021).

    Failed trials have the least reward. Those outside a limit come next, the nearer the better, then stopped ones.
    All learning is in `tell`, its randomness seeded by the trial.

    On NAS-Bench-Macro the LSTM is not ahead of independent logits, and costs more (`benchmarks/rl.py`).

    Args:
        policy: `logits` (independent decisions) or `lstm` (autoregressive).
        algorithm: `reinforce` or `ppo`.
        reward: `scalarised`, as above. Or one reward without preferences, from a quality q and a cost c with a target
            T: `mnasnet`, q (c/T)^exponent (Tan et al. 2019), or `tunas`, q + exponent |c/T - 1| (Bender et al. 2020).
        target: T, in the unit of the second objective. To `mnasnet` it is only a factor on all rewards: there the
            exponent decides.
        exponent: of these two rewards.
        imitation: weight of step 4; 0 leaves the policy gradient alone.
        risk: share of the trials that are imitated for a preference.
        entropy: weight of the policy's entropy.
        rate: factor on the step sizes of Adam, .1 for logits and .01 for the LSTM's weights.
        warmup: trials before anything is learnt.
        every: new trials per step of learning, at first; by default 1 for logits, 4 for the LSTM. With more trials it
            rises in proportion, so that a long run is resumed in seconds.
        units, constant: of the LSTM.

    Raises ConfigError for an option out of range.
    """

    def __init__(
        self, space: Space, objectives: Sequence[Objective], limits: Sequence[Limit] = (), *, policy: str = "logits",
        algorithm: str = "reinforce", reward: str = "scalarised", target: float | None = None,
        exponent: float = -0.07, imitation: float = 1.0, risk: float = 0.1, entropy: float = 0.03,
        rate: float = 1.0, warmup: int = 10, every: int | None = None, units: int = 64, constant: float = 2.5,
    ) -> None:  # fmt: skip
        super().__init__(space, objectives, limits)
        lstm = policy == "lstm"
        every = (4 if lstm else 1) if every is None else every
        _among("policy", policy, ("logits", "lstm"))
        _among("algorithm", algorithm, ("reinforce", "ppo"))
        _among("reward", reward, ("scalarised", "mnasnet", "tunas"))
        _at_least({"imitation": imitation, "entropy": entropy}, 0)
        _at_least({"rate": rate, "risk": risk, "constant": constant}, 1e-9)
        _at_least({"warmup": warmup, "every": every, "units": units}, 1)
        if reward != "scalarised":
            if [o.direction for o in objectives] != ["max", "min"]:
                raise ConfigError(
                    f"strategy.reward: {reward} needs two objectives, a quality and a cost, in this order"
                )
            if target is None or not target > 0:
                raise ConfigError(f"strategy.target: {reward} needs the cost to aim at, a number above 0, got {target}")
        self.algorithm, self.reward, self.target, self.exponent = algorithm, reward, target or 1.0, exponent
        self.imitation, self.risk, self.entropy = imitation, risk, entropy
        self.rate, self.warmup, self.every = rate, warmup, every
        self.width = len(self.objectives) if reward == "scalarised" else 1
        self._words = Vocabulary(space)
        self.policy: Policy = (
            Lstm(self._words, self.width, units=units, constant=constant) if lstm else Logits(self._words, self.width)
        )
        self._limits = [limit for limit in limits if limit.exact]
        self._memory = _Memory(self.width, len(self._words.sizes))
        self._seen = Seen(space)
        self._told = self._fresh = 0

    # -- proposals ---------------------------------------------------------------------------------------------

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        self._seen.follow(pending)
        asked: list[Proposal] = []
        for _ in range(n):
            asked.append(self._propose(rng))
            self._seen.add(asked[-1])
        return asked

    def _propose(self, rng: np.random.Generator) -> Proposal:
        """The first draw that is new and within the limits, else the nearest to them."""
        best, least, known = None, inf, 0
        for _ in range(TRIES):
            preference = rng.dirichlet(np.ones(self.width)).round(4)
            temperature = 1 + HEATING * known
            genotype, probability = self.policy.draw(preference, temperature, rng)
            note = {"preference": preference.tolist(), "temperature": temperature, "log_probability": probability}
            proposal, candidate = Proposal(genotype, note), Candidate(self.space, genotype)
            seen = candidate in self._seen
            known += seen
            excess = inf if seen else candidate.excess(self._limits)
            if not excess:
                return proposal
            if best is None or excess < least:
                best, least = proposal, excess
        assert best is not None
        return best

    # -- learning ----------------------------------------------------------------------------------------------

    def tell(self, trial: Trial) -> None:
        self._seen.tell(trial)
        if trial.duplicate_of is not None:
            return
        preference = trial.note.get("preference", ())
        if len(preference) != self.width:  # not from here: nothing is known of the probability
            preference = [np.nan] * self.width
        self._memory.add(
            self._words.encode(trial.genotype), *self._judged(trial), preference, trial.note.get("log_probability", 0.0)
        )
        self._told += 1
        self._fresh += 1
        if self._told >= self.warmup and self._fresh >= self.every * (1 + self._told / GROWTH):
            self._fresh = 0
            self._learn(np.random.default_rng([trial.seed, trial.number]))

    def _judged(self, trial: Trial) -> tuple[float, list[float]]:
        """How far the trial is from being a full and allowed result (0: it is one), and its costs."""
        names = [o.metric for o in self.objectives]
        there = trial.state == "infeasible" or all(isfinite(trial.metrics.get(name, inf)) for name in names)
        if not there or trial.state not in ("ok", "stopped", "infeasible"):
            return inf, [0.0] * self.width
        if trial.state == "infeasible":
            return 1 + sum(trial.violations.values()), [0.0] * self.width
        short = 1 / (1 + (trial.budget or 0.0)) if trial.state == "stopped" else 0.0
        behind = 1 + sum(trial.violations.values()) if trial.violations else short
        costs = [o.cost(trial.metrics) for o in self.objectives]
        if self.reward == "scalarised":
            return behind, costs
        quality, ratio = -costs[0], costs[1] / self.target
        if self.reward == "mnasnet":
            return behind, [-quality * ratio**self.exponent]
        return behind, [-quality - self.exponent * abs(ratio - 1)]

    def _learn(self, rng: np.random.Generator) -> None:
        """One step uphill: the policy gradient over recent trials, and imitation of the best."""
        memory = self._memory
        utilities = memory.utilities()
        recent, advantages = self._recent(utilities)
        good, preferences, weights = self._good(utilities, rng)
        n = len(recent)
        behaviour = memory.log_probability[recent]

        def credit(log_probability: Array) -> Array:
            gain = advantages
            if self.algorithm == "ppo":
                ratio = np.exp(np.clip(log_probability[:n] - behaviour, -20, 20))
                inside = np.where(gain > 0, ratio < 1 + CLIP, (ratio > 1 - CLIP) & (ratio < DUAL))
                gain = gain * ratio * inside
            return np.concatenate([gain, weights])

        batch = np.concatenate([recent, good])
        if not len(batch):
            return
        tokens = memory.tokens[batch]
        tokens = tokens[:, : int((tokens >= 0).sum(1).max())]
        preferences = np.concatenate([memory.preference[recent], preferences])
        self.policy.step(tokens, preferences, credit, entropy=self.entropy / len(batch), rate=self.rate)

    def _recent(self, utilities: Array) -> tuple[Tokens, Array]:
        """The trials drawn last, and their advantages (of sum 1 in a step where all are one deviation off)."""
        memory, n = self._memory, len(utilities)
        before = np.arange(max(0, n - BEFORE), n)
        before = before[~np.isnan(memory.preference[before, 0])]
        recent = before[-RECENT:]
        preferences = memory.preference[recent]
        rewards = _rewards(utilities[before], preferences)
        apart = np.square(preferences[:, None] - memory.preference[before]).sum(2)
        weights = np.exp(-apart / (2 * NEAR**2)) * DECAY ** (n - 1 - before)
        baseline = (weights * rewards).sum(1) / weights.sum(1)
        advantages = np.diagonal(rewards, len(before) - len(recent)) - baseline
        return recent, advantages / ((advantages.std() if len(recent) else 1) + 1e-6) / max(1, len(recent))

    def _good(self, utilities: Array, rng: np.random.Generator) -> tuple[Tokens, Array, Array]:
        """Trials worth imitating, the preferences under which they are, and weights of sum `imitation`."""
        if not self.imitation:
            return np.empty(0, np.int64), np.empty((0, self.width)), np.empty(0)
        preferences = rng.dirichlet(np.ones(self.width), PREFERENCES)
        rewards = _rewards(utilities, preferences)
        few = min(len(utilities) - 1, max(FEWEST, ceil(self.risk * len(utilities))))
        best = np.argpartition(-rewards, few, axis=1)[:, : few + 1]
        gains = np.take_along_axis(rewards, best, 1)
        gains = np.cumsum(gains - gains.min(1, keepdims=True), axis=1)
        marks = rng.random((EACH, PREFERENCES, 1)) * gains[:, -1:]
        picks = np.minimum((gains <= marks).sum(2), few)
        weights = np.tile((gains[:, -1] > 0) * self.imitation / (EACH * PREFERENCES), EACH)
        return best[np.arange(PREFERENCES), picks].ravel(), np.tile(preferences, (EACH, 1)), weights


class _Memory:
    """The trials to learn from, in the order they were told: `KEPT` to twice as many, the best and the latest."""

    def __init__(self, objectives: int, length: int) -> None:
        self.n = 0
        self.behind = np.empty(2 * KEPT)
        self.costs = np.empty((2 * KEPT, objectives))
        self.preference = np.empty((2 * KEPT, objectives))
        self.log_probability = np.empty(2 * KEPT)
        self.tokens = np.empty((2 * KEPT, length), np.int64)

    def add(
        self, tokens: Sequence[int], behind: float, costs: Sequence[float], preference: Sequence[float],
        log_probability: float,
    ) -> None:  # fmt: skip
        if self.n == 2 * KEPT:
            self._forget()
        row = self.n
        self.behind[row], self.costs[row], self.preference[row] = behind, costs, preference
        self.log_probability[row] = log_probability
        self.tokens[row], self.tokens[row, : len(tokens)] = -1, tokens
        self.n += 1

    def utilities(self) -> pareto.Array:
        """Share of the trials that are worse (n, objectives)."""
        n, behind = self.n, self.behind[: self.n]
        out = np.empty((n, self.costs.shape[1]))
        for j, cost in enumerate(self.costs[:n].T):
            order = np.lexsort((cost, behind))
            a, b = behind[order], cost[order]
            last = np.append((a[1:] > a[:-1]) | (b[1:] > b[:-1]), True)  # of those that are equal
            after = np.flatnonzero(last)
            out[order, j] = 1 - (after[np.cumsum(last) - last] + 1) / n
        return out

    def _forget(self) -> None:
        ranks = pareto.ranks(-self.utilities())
        ranks[-BEFORE:] = -1
        kept = np.sort(np.argsort(ranks, kind="stable")[:KEPT])
        for values in (self.behind, self.costs, self.preference, self.log_probability, self.tokens):
            values[:KEPT] = values[kept]
        self.n = KEPT


def _rewards(utilities: Array, preferences: Array) -> Array:
    """Of each trial under each preference: (preferences, trials)."""
    mean: Array = preferences @ utilities.T
    if preferences.shape[1] == 1:
        return mean
    shortfalls = [w[:, None] * (1 - u) for w, u in zip(preferences.T, utilities.T, strict=True)]
    rewards: Array = 0.5 * (mean - np.maximum.reduce(shortfalls))
    return rewards


def _among(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"strategy.{name}: expected one of {', '.join(known)}, got {value!r}")


def _at_least(values: Mapping[str, float], least: float) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float) or not value >= least or (least == 1 and not isinstance(value, int)):
            what = "a whole number of at least 1" if least == 1 else "a number above 0" if least else "0 or more"
            raise ConfigError(f"strategy.{name}: expected {what}, got {value!r}")

"""Policies of the reinforcement learner: what to take at each decision, given a preference.

The gradients are written out in numpy: a policy draws one architecture at a time and learns from a few, and there a
tensor library spends its time on itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from math import log
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nas.choices import Decision, Genotype, Label
from nas.space import Space

Array: TypeAlias = NDArray[np.floating[Any]]
Tokens: TypeAlias = NDArray[np.int64]
Credit: TypeAlias = Callable[[Array], Array]

WALKS = 50
"""Walks in a row that meet no new decision, after which a vocabulary is complete."""


RATES = {"logits": 0.1}
"""Step sizes by parameter; .01 for others (the weights of an LSTM)."""


class Vocabulary:
    """The decisions of a space as rows, and their options as tokens 0, 1, ... in one numbering.

    A row is a decision with its labels: the kernel of a convolution and that of an inverted residual are two, even at
    the same path. They are found by walking the space. A row that is not met is drawn uniformly and not learnt.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.rows: dict[tuple[str, tuple[Label, ...]], int] = {}
        taken: dict[tuple[str, tuple[Label, ...]], list[int]] = {}
        idle = 0

        def decide(decision: Decision) -> int:
            nonlocal idle
            key = decision.path, decision.labels
            if key not in self.rows:
                self.rows[key], taken[key], idle = len(self.rows), [0] * len(decision), 0
            counts = taken[key]
            rarest = counts.index(min(counts))
            counts[rarest] += 1
            return rarest

        while idle < WALKS:
            idle += 1
            space.walk(decide)
        self.sizes = np.array([len(labels) for _, labels in self.rows])
        self.first = np.cumsum(self.sizes) - self.sizes
        """First token of each row."""
        self.row = np.repeat(np.arange(len(self.sizes)), self.sizes)
        """Row of each token."""
        self.spans: dict[tuple[str, tuple[Label, ...]], tuple[int, int]] = {
            key: (first, first + len(key[1])) for key, first in zip(self.rows, self.first.tolist(), strict=True)
        }

    def __len__(self) -> int:
        return len(self.row)

    def encode(self, genotype: Genotype) -> list[int]:
        """Tokens of the active decisions, in reading order."""
        found: list[int] = []

        def decide(decision: Decision) -> int:
            index = decision.index_in(genotype) or 0  # one that is left out has a single option
            span = self.spans.get((decision.path, decision.labels))
            if span is not None:
                found.append(span[0] + index)
            return index

        self.space.walk(decide)
        return found


class Policy(ABC):
    """A distribution over the architectures of a space for each preference (non-negative weights (m,) of sum 1).

    Sequences of tokens come as (batch, length), filled up with -1; preferences as (batch, m).
    """

    def __init__(self, vocabulary: Vocabulary, parameters: Mapping[str, Array]) -> None:
        self.vocabulary = vocabulary
        self.parameters = dict(parameters)
        self._moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in self.parameters.items()}
        self._steps = 0

    @abstractmethod
    def draw(self, preference: Array, temperature: float, rng: np.random.Generator) -> tuple[Genotype, float]:
        """An architecture and the logarithm of its probability; logits are divided by `temperature`."""

    @abstractmethod
    def gradient(
        self, tokens: Tokens, preferences: Array, credit: Credit, entropy: float = 0.0
    ) -> tuple[Mapping[str, Array], Array, Array]:
        """Gradient of sum(credit x log-probability + entropy x entropy), log-probabilities and entropies (batch,).

        `credit` is given the log-probabilities. The entropy is that of the decisions on the way, summed.
        """

    def log_probability(self, tokens: Tokens, preferences: Array) -> Array:
        """Of each sequence (batch,)."""
        return self.gradient(tokens, preferences, np.zeros_like)[1]

    def step(self, tokens: Tokens, preferences: Array, credit: Credit, *, entropy: float, rate: float) -> None:
        """One step of Adam (Kingma & Ba 2015) uphill, with moments of .9 and .99; `rate` is a factor on `RATES`."""
        gradient, _, _ = self.gradient(tokens, preferences, credit, entropy)
        self._steps += 1
        for name, g in gradient.items():
            mean, square = self._moments[name]
            mean += 0.1 * (g - mean)
            square += 0.01 * (g * g - square)
            root = np.sqrt(square / (1 - 0.99**self._steps)) + 1e-8
            self.parameters[name] = (
                self.parameters[name] + rate * RATES.get(name, 0.01) * mean / (1 - 0.9**self._steps) / root
            )


class Logits(Policy):
    """Independent decisions (as in TuNAS, Bender et al. 2020), their logits linear in the preference.

    Each objective has a logit for each option, and a preference mixes them. Where rewards are sums over decisions,
    this is exactly the best policy of a given entropy, for every preference at once.
    """

    def __init__(self, vocabulary: Vocabulary, objectives: int) -> None:
        super().__init__(vocabulary, {"logits": np.zeros((objectives, len(vocabulary)), np.float32)})

    def draw(self, preference: Array, temperature: float, rng: np.random.Generator) -> tuple[Genotype, float]:
        words = self.vocabulary
        logs = self._log_softmax(preference[None].astype(np.float32) @ self.parameters["logits"] / temperature)[0]
        sums = np.cumsum(np.exp(logs, dtype=np.float64))
        before = np.concatenate([[0.0], sums])[words.first]
        bounds, gains, total = (sums - before[words.row]).tolist(), logs.tolist(), 0.0

        def decide(decision: Decision) -> int:
            nonlocal total
            span = words.spans.get((decision.path, decision.labels))
            if span is None:
                total -= log(len(decision))
                return int(rng.random() * len(decision))
            token = bisect_right(bounds, rng.random(), span[0], span[1] - 1)
            total += gains[token]
            return token - span[0]

        return words.space.walk(decide), total

    def gradient(
        self, tokens: Tokens, preferences: Array, credit: Credit, entropy: float = 0.0
    ) -> tuple[Mapping[str, Array], Array, Array]:
        words, preferences = self.vocabulary, preferences.astype(self.parameters["logits"].dtype)
        logs = self._log_softmax(preferences @ self.parameters["logits"])
        p = np.exp(logs)
        disorder = -np.add.reduceat(p * logs, words.first, axis=1)
        at, slot = np.nonzero(tokens >= 0)
        taken = tokens[at, slot]
        active = np.zeros_like(disorder)
        active[at, words.row[taken]] = 1
        found: Array = np.bincount(at, logs[at, taken], len(tokens)).astype(p.dtype)
        due = credit(found).astype(p.dtype)
        push = -p * (due[:, None] + entropy * (logs + disorder[:, words.row])) * active[:, words.row]
        push[at, taken] += due[at]
        return {"logits": preferences.T @ push}, found, (active * disorder).sum(1)

    def _log_softmax(self, logits: Array) -> Array:
        """Within each row of the vocabulary; (batch, tokens)."""
        words = self.vocabulary
        logits = logits - np.maximum.reduceat(logits, words.first, axis=1)[:, words.row]
        shifted: Array = logits - np.log(np.add.reduceat(np.exp(logits), words.first, axis=1))[:, words.row]
        return shifted

"""Random search: the baseline that everything must beat (Li & Talwalkar 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.strategy import Strategy
from nas.trial import Proposal, Trial


class Random(Strategy):
    """Every decision uniformly at random. The search never evaluates a network twice, so neither does this."""

    def ask(self, n: int, rng: np.random.Generator, pending: Sequence[Proposal]) -> list[Proposal]:
        return [Proposal(self.space.sample(rng)) for _ in range(n)]

    def tell(self, trial: Trial) -> None:
        """Nothing to learn."""

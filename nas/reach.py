"""What a space holds within its limits: asked when proposal after proposal leads nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import islice
from math import inf

import numpy as np

from nas.errors import GraphError
from nas.space import Space
from nas.trial import Limit, Trial, format_number

SMALL = 10_000
"""Genotypes up to which a space is looked through."""


def exhausted(space: Space, known: Collection[str], limits: Sequence[Limit]) -> bool:
    """Whether the keys in `known` are all that a small space has within exact limits; False for a large space."""
    if space.size() > SMALL:
        return False
    for genotype in space.enumerate():
        architecture = space.architecture(genotype)
        try:
            metrics, key = space.metrics(architecture), architecture.key()
        except GraphError:
            continue
        if key not in known and not any(limit.violation(metrics) for limit in limits):
            return False
    return True


def describe(space: Space, known: Collection[str], limits: Sequence[Limit], seed: int) -> str:
    """Smallest and largest value of each limited metric among random architectures, for an error message."""
    rng = np.random.default_rng(seed)
    low: dict[str, float] = defaultdict(lambda: inf)
    high: dict[str, float] = defaultdict(lambda: -inf)
    for genotype in islice(iter(lambda: space.sample(rng), None), 200):
        try:
            metrics = space.costs(genotype)
        except GraphError:
            continue
        for limit in limits:
            low[limit.metric] = min(low[limit.metric], metrics[limit.metric])
            high[limit.metric] = max(high[limit.metric], metrics[limit.metric])
    if not low:
        return f"the space has {space.size():,} genotypes, {len(known)} networks were evaluated"
    ranges = [
        f"{limit.metric} is {format_number(low[limit.metric])} to {format_number(high[limit.metric])} "
        f"(limit {limit.bound:g})"
        for limit in limits
    ]
    return f"of 200 random architectures {', '.join(ranges)}"


def measured(trials: Sequence[Trial], limits: Sequence[Limit]) -> str:
    """Smallest and largest value measured of each limited metric that a trial broke, for an error message."""
    broken = [limit for limit in limits if any(limit.metric in trial.violations for trial in trials if trial.ran)]
    values = {limit: [t.metrics[limit.metric] for t in trials if limit.metric in t.metrics] for limit in broken}
    return ", ".join(
        f"{limit.metric} is {format_number(min(found))} to {format_number(max(found))} (limit {limit.bound:g})"
        for limit, found in values.items()
    )

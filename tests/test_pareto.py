"""Fronts, ranks, crowding, hypervolume, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nas import pareto
from nas.testing import ACCURACY, FLOPS
from nas.trial import Trial

SMALL = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4).map(float))


@given(SMALL)
def test_ranks_peel_fronts(values: np.ndarray) -> None:
    left = list(range(len(values)))
    expected = np.zeros(len(values), int)
    rank = 0
    while left:
        front = [
            i for i in left
            if not any((values[j] <= values[i]).all() and (values[j] < values[i]).any() for j in left)
        ]  # fmt: skip
        expected[front] = rank
        left = [i for i in left if i not in front]
        rank += 1
    assert (pareto.ranks(values) == expected).all()


@given(SMALL)
def test_hypervolume_is_the_share_of_the_box(values: np.ndarray) -> None:
    axes = [np.arange(5) + 0.5] * values.shape[1]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    covered = (values[None] <= grid[:, None]).all(-1).any(1).sum()
    assert pareto.hypervolume(values, [5.0] * values.shape[1]) == pytest.approx(covered)


def test_hypervolume_of_nothing_inside_is_zero() -> None:
    assert pareto.hypervolume(np.array([[2.0, 2.0]]), [1, 1]) == 0
    assert pareto.hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_crowding_prefers_the_ends_and_the_gaps() -> None:
    distance = pareto.crowding(np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [3.5, 0.5], [4.0, 0.0]]))
    assert np.isinf(distance[[0, 4]]).all()
    assert distance[2] > distance[3]


def test_the_front_has_complete_trials_within_limits_once_each() -> None:
    def trial(number: int, accuracy: float, flops: float, **more: object) -> Trial:
        metrics = {"accuracy": accuracy, "flops": flops}
        return Trial(number, {}, str(number), **{"state": "ok", "metrics": metrics, **more})  # type: ignore[arg-type]

    trials = [
        trial(0, 0.9, 10), trial(1, 0.8, 10), trial(2, 0.95, 20), trial(3, 0.99, 5, state="stopped"),
        trial(4, 0.99, 6, violations={"memory": 1.0}), trial(5, 0.9, 10), trial(6, 0.5, 1, duplicate_of=2),
        Trial(7, {}, "7", "failed"), trial(8, 0.4, 2),
    ]  # fmt: skip
    assert [t.number for t in pareto.front(trials, [ACCURACY, FLOPS])] == [2, 0, 8]
    assert [t.number for t in pareto.front(trials, [ACCURACY])] == [2]
    assert pareto.front([], [ACCURACY]) == []

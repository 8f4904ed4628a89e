"""What model-based search learns with: features of an architecture, and a model of one metric over them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.choices import Label
from nas.space import Space

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

STEPS = np.linspace(-1, 5, 61)
"""Exponents that a warp chooses from; 1 leaves the values as they are."""


class Features:
    """An architecture in numbers, in blocks that say the same in different ways; nothing depends on a space's names.

    - Decisions: an indicator for each option; one number for a decision between numbers; zeros where it is not active.
    - Counts: how often each option is taken in a stage (`stage1.*.block`) and in all of them (`stage*.*.block`).
      Networks that differ only in the order of their layers are alike here.
    - Costs: the logarithm of all that is known exactly (FLOPs, parameters, memory, depth).
    - Budget: the logarithm of the epochs spent, so that trials stopped early teach what they can.
    """

    def __init__(self, space: Space) -> None:
        columns: list[tuple[str, Label]] = []
        paths = space.paths
        # Position -1 in a code is an inactive decision: its value is 0, written to a last column that is cut off.
        self._column = np.full((len(paths), 1 + max(map(len, paths.values()), default=0)), -1)
        self._value = np.zeros(self._column.shape)
        for at, (path, labels) in enumerate(paths.items()):
            ordinal = len(labels) > 1 and all(type(label) in (int, float) for label in labels)
            for i, label in enumerate(labels):
                if i == 0 or not ordinal:
                    columns.append((path, None if ordinal else label))
                self._column[at, i] = len(columns) - 1
                self._value[at, i] = i / (len(labels) - 1) - 0.5 if ordinal else 0.5**0.5
        groups: dict[tuple[str, Label], list[int]] = {}
        for at, (path, label) in enumerate(columns):
            stage = re.sub(r"\.\d+(?=\.|$)", "", path)
            for name in {stage, re.sub(r"\d+", "", stage)}:
                groups.setdefault((name, label), []).append(at)
        kept = sorted({tuple(group) for group in groups.values() if len(group) > 1})
        self._counts = np.zeros((len(columns), len(kept)))
        for j, group in enumerate(kept):
            self._counts[list(group), j] = 1

    def __call__(self, codes: Codes, costs: Array, budgets: Array) -> list[Array]:
        """The blocks (architectures, columns) of codes (architectures, decisions), costs and log-budgets."""
        at = np.arange(codes.shape[1])
        decisions = np.zeros((len(codes), len(self._counts) + 1))
        decisions[np.arange(len(codes))[:, None], self._column[at, codes]] = self._value[at, codes]
        decisions = decisions[:, :-1]
        logs = np.sign(costs) * np.log1p(np.abs(costs))
        return [decisions, decisions @ self._counts, logs, budgets[:, None]]


class Scale:
    """Puts feature blocks side by side so that each spreads the same on the given sample, however wide it is."""

    def __init__(self, blocks: Sequence[Array]) -> None:
        self._means = [block.mean(0) for block in blocks]
        self._factors: list[Array] = []
        for at, block in enumerate(blocks):
            spread = block.std(0)
            # Costs have units of their own; indicators and counts share one, and a rare option is to stay small.
            factor = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-9) if at == 2 else spread * 0 + 1
            self._factors.append(factor / (np.linalg.norm(spread * factor) or 1))

    def __call__(self, blocks: Sequence[Array]) -> Array:
        """Features (architectures, columns)."""
        parts = zip(blocks, self._means, self._factors, strict=True)
        return np.hstack([(block - mean) * factor for block, mean, factor in parts])


class Warp:
    """A monotone map from a metric, on any scale, to values that look normal, and back (Yeo & Johnson 2000).

    Accuracies have a long tail of bad networks; unwarped, it hides the small differences between the good ones.
    """

    def __init__(self, values: Array) -> None:
        low, centre, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
        self._centre = float(centre)
        self._unit = float(high - low) / 1.35 or float(values.std()) or 1.0
        z = (values - self._centre) / self._unit
        warped = np.array([_yeo_johnson(z, step) for step in STEPS])
        variance = np.maximum(warped.var(1), 1e-300)
        likelihood = -len(z) / 2 * np.log(variance) + (STEPS - 1) * (np.sign(z) * np.log1p(np.abs(z))).sum()
        best = int(np.argmax(likelihood)) if len(z) > 3 and z.any() else int(np.argmin(abs(STEPS - 1)))
        self._step = float(STEPS[best])
        self._mean, self._std = float(warped[best].mean()), float(warped[best].std()) or 1.0

    def __call__(self, values: Array) -> Array:
        warped: Array = (_yeo_johnson((values - self._centre) / self._unit, self._step) - self._mean) / self._std
        return warped

    def inverse(self, warped: Array) -> Array:
        """Values whose warp is `warped`; beyond the ends of the map, the values that are there."""
        w = warped * self._std + self._mean
        out: Array = np.where(w >= 0, _power(np.abs(w), self._step), -_power(np.abs(w), 2 - self._step))
        return out * self._unit + self._centre


def _yeo_johnson(z: Array, step: float) -> Array:
    magnitude = np.log1p(np.abs(z))
    out: Array = np.where(z >= 0, _grown(magnitude, step), -_grown(magnitude, 2 - step))
    return out


def _grown(magnitude: Array, step: float) -> Array:
    """((1 + z)^step - 1) / step for magnitude = log(1 + z)."""
    return magnitude if abs(step) < 1e-9 else np.expm1(np.clip(step * magnitude, -50, 50)) / step


def _power(w: Array, step: float) -> Array:
    """The inverse of `_grown`, as z."""
    magnitude = w if abs(step) < 1e-9 else np.log(np.maximum(1 + step * w, 1e-9)) / step
    return np.expm1(np.minimum(magnitude, 20))


class Surrogate(Protocol):
    """A model of one warped metric. `like`: a model whose settings to take over, instead of searching for them."""

    def __init__(self, x: Array, y: Array, like: Any = None) -> None: ...

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (architectures,) of the metric without its noise."""


class GaussianProcess:
    """A Gaussian process with a Matern 5/2 kernel and noise; scikit-learn searches for its hyperparameters.

    Amplitude, length scale and noise are those of the highest posterior under wide log-normal priors: with a dozen
    trials, the likelihood alone often takes everything for noise, or nothing.
    """

    PRIOR = np.log([1.0, 1.5, 0.02]), np.array([1.0, 1.0, 1.5])
    """Mean and standard deviation of the logarithms; features and values have unit scale."""

    def __init__(self, x: Array, y: Array, like: GaussianProcess | None = None) -> None:
        from scipy.linalg import cho_solve, cholesky

        self._x = x
        self._settings: tuple[float, float, float] = _searched(x, y) if like is None else like._settings
        noise = self._settings[2]
        # What scikit-learn's `fit` and `predict` give, in a third of their time: proposals wait for it.
        self._factor = cholesky(self._covariance(x) + (noise + 1e-8) * np.eye(len(x)), lower=True)
        self._weights = cho_solve((self._factor, True), y)

    def predict(self, x: Array) -> tuple[Array, Array]:
        from scipy.linalg import solve_triangular

        near = self._covariance(x)
        explained = solve_triangular(self._factor, near.T, lower=True, check_finite=False)
        variance = self._settings[0] - np.einsum("ij,ij->j", explained, explained)
        return near @ self._weights, np.sqrt(np.maximum(variance, 1e-8))

    def _covariance(self, x: Array) -> Array:
        """Of the metric at `x` (n, columns) with that at all points that are known (n, known)."""
        amplitude, length, _ = self._settings
        squares = (x**2).sum(1)[:, None] + (self._x**2).sum(1) - 2 * x @ self._x.T
        distance = np.sqrt(5 * np.maximum(squares, 0)) / length
        covariance: Array = amplitude * (1 + distance + distance**2 / 3) * np.exp(-distance)
        return covariance


def _searched(x: Array, y: Array) -> tuple[float, float, float]:
    """The best amplitude, length scale and noise."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(1.5, (0.05, 50), nu=2.5) + WhiteKernel(0.02, (1e-4, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a hyperparameter is at its bound: the bounds are meant
        model = GaussianProcessRegressor(kernel, alpha=1e-8, optimizer=_maximum_posterior).fit(x, y)
    amplitude, length, noise = np.exp(model.kernel_.theta).tolist()
    return amplitude, length, noise


def _maximum_posterior(negative: Any, start: Array, bounds: Array) -> tuple[Array, float]:
    """The optimizer that scikit-learn calls: from the negative log-likelihood to the best hyperparameters."""
    from scipy.optimize import minimize

    centre, width = GaussianProcess.PRIOR

    def loss(theta: Array) -> tuple[float, Array]:
        value, slope = negative(theta)
        off = (theta - centre) / width
        return value + off @ off / 2, slope + off / width

    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 40})
    return found.x, float(found.fun)


class Model:
    """Predicts a metric, larger being better, at full budget."""

    def __init__(self, make: type[Surrogate], x: Array, values: Array, like: Model | None = None) -> None:
        here = np.isfinite(values)
        self._make, self._x, self._values = make, x[here], values[here]
        self.warp = Warp(self._values)
        self._surrogate: Surrogate = make(self._x, self.warp(self._values), None if like is None else like._surrogate)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the warped metric."""
        return self._surrogate.predict(x)

    def believing(self, x: Array) -> Model:
        """The model if what it predicts at `x` had been measured there: less is to be learnt near it."""
        believed = self.warp.inverse(self.predict(x)[0])
        return Model(self._make, np.vstack([self._x, x]), np.append(self._values, believed), self)

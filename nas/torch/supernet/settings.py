"""How a differentiable search goes, checked in one place; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from nas.errors import ConfigError

_NUMBERS: Mapping[str, tuple[type, float, float, str]] = {
    "epochs": (int, 1, math.inf, "a whole number of at least 1"),
    "batch": (int, 2, math.inf, "a whole number of at least 2"),
    "order": (int, 1, 2, "1 or 2"),
    "points": (int, 1, math.inf, "a whole number of at least 1"),
    "penalty": (float, 0, math.inf, "a number of at least 0"),
    "lr": (float, 0, math.inf, "a number above 0"),
    "alpha_lr": (float, 0, math.inf, "a number above 0"),
    "warmup": (int, 0, math.inf, "a whole number of at least 0"),
    "partial": (int, 1, math.inf, "a whole number of at least 1"),
    "beta": (float, 0, math.inf, "a number of at least 0"),
    "perturb": (float, 0, math.inf, "a number of at least 0"),
    "stop": (float, 0, math.inf, "0, or a factor above 1"),
}


@dataclass(frozen=True)
class Settings:
    """How the search goes; the defaults are the paper's, but for `points` and `penalty`.

    Args:
        epochs: passes over the half of the training images that the weights learn from.
        batch: images per step, of either half.
        order: 1, or 2 for the gradient through one step of the weights, by finite differences.
        points: architectures that are derived, for as many preferences between accuracy and FLOPs.
        penalty: weight of log FLOPs in the loss where FLOPs are preferred most.
        lr: of the weights (SGD, momentum .9, weight decay 3e-4, clipped at 5), falling to a 25th (cosine).
        alpha_lr: of the architecture (Adam, betas .5 and .999, weight decay 1e-3).
        warmup: epochs in which only the weights learn.
        gumbel: single paths drawn by Gumbel softmax, its temperature falling from 10 to .1.
        partial: edges of cells work on one in so many channels; edges get weights of their own.
        beta: weight of beta decay after the last epoch, from 0 on linearly.
        perturb: noise on the architecture while the weights learn, up to so much, from 0 on linearly.
        stop: end when the dominant eigenvalue has grown by this factor (RobustDARTS: 1.3), 0 never.

    Raises ConfigError for a value out of range.
    """

    epochs: int = 50
    batch: int = 64
    order: int = 1
    points: int = 8
    penalty: float = 0.3
    lr: float = 0.025
    alpha_lr: float = 3e-4
    warmup: int = 0
    gumbel: bool = False
    partial: int = 1
    beta: float = 0.0
    perturb: float = 0.0
    stop: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in _NUMBERS:
                if not isinstance(value, bool):
                    raise ConfigError(f"strategy.{field.name}: expected true or false, got {value!r}")
                continue
            kind, low, high, expected = _NUMBERS[field.name]
            is_number = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
            above = "above" in expected and value == 0 and field.name != "stop"
            if (
                not is_number
                or not math.isfinite(value)
                or not low <= value <= high
                or above
                or (field.name == "stop" and 0 < value <= 1)
            ):
                raise ConfigError(f"strategy.{field.name}: expected {expected}, got {value!r}")
        if self.warmup >= self.epochs:
            raise ConfigError(f"strategy.warmup: expected fewer than all {self.epochs} epochs, got {self.warmup}")

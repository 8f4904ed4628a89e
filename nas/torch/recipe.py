"""How a training goes: everything that is not the network or the data, checked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from nas.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16", "float16"]

SMALLEST = 8
"""Batch below which none is halved: batch norm needs a few images."""

_PRECISIONS = ("auto", "float32", "bfloat16", "float16")
_NUMBER = (int, float)
_RULES: Mapping[str, tuple[type | tuple[type, ...], Callable[[Any], bool], str]] = {
    "epochs": (int, lambda v: v >= 1, "a whole number of at least 1"),
    "batch": (int, lambda v: v >= 2, "a whole number of at least 2"),
    "optimizer": (str, ("sgd", "adamw").__contains__, "sgd or adamw"),
    "lr": (_NUMBER, lambda v: 0 < v < math.inf, "a number above 0"),
    "momentum": (_NUMBER, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "weight_decay": (_NUMBER, lambda v: 0 <= v < math.inf, "a number of at least 0"),
    "warmup": (_NUMBER, lambda v: 0 <= v < math.inf, "a number of epochs of at least 0"),
    "label_smoothing": (_NUMBER, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "clip": ((*_NUMBER, type(None)), lambda v: v is None or v > 0, "a gradient norm above 0, or none"),
    "augment": (bool, lambda v: True, "true or false"),
    "precision": (str, _PRECISIONS.__contains__, ", ".join(_PRECISIONS)),
    "channels_last": (bool, lambda v: True, "true or false"),
    "shrink": (bool, lambda v: True, "true or false"),
    "schedule": (str, ("cosine", "step").__contains__, "cosine or step"),
    "milestones": ((tuple, list), lambda v: all(type(x) in _NUMBER and 0 < x < 1 for x in v), "shares between 0 and 1"),
    "ema": ((*_NUMBER, type(None)), lambda v: v is None or 0 < v < 1, "a decay per step between 0 and 1, or none"),
    "flip": (bool, lambda v: True, "true or false"),
    "resized_crop": (_NUMBER, lambda v: 0 < v <= 1, "a share of the area above 0, up to 1"),
    "jitter": (_NUMBER, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "hue": (_NUMBER, lambda v: 0 <= v <= 0.5, "a share of the colour wheel, 0 to 0.5"),
    "randaugment": (int, lambda v: 0 <= v <= 10, "a whole number of operations, 0 to 10"),
    "magnitude": (_NUMBER, lambda v: 0 <= v <= 10, "a number from 0 to 10"),
    "mixup": (_NUMBER, lambda v: 0 <= v < math.inf, "a number of at least 0"),
    "cutmix": (_NUMBER, lambda v: 0 <= v < math.inf, "a number of at least 0"),
    "dropout": (_NUMBER, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "drop_path": (_NUMBER, lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "compile": (bool, lambda v: True, "true or false"),
    "graph": (bool, lambda v: True, "true or false"),
}

DECAY = 0.1
"""What the learning rate is multiplied by at each milestone."""

FULL: Mapping[str, Any] = {
    "epochs": 30, "batch": 64, "lr": 0.2, "warmup": 1.0, "augment": True, "ema": 0.999,
}  # fmt: skip
"""Where the training of a network for use differs from the short ones of a search: the defaults of `nas train`."""


@dataclass(frozen=True)
class Recipe:
    """How a training goes. The defaults are for short ones: `benchmarks/training.py` measures what they are worth.

    Arguments:
        epochs: of the full training; over them the learning rate falls to 0 (cosine).
        batch: images per step. Small ones learn more from as many images, and on a CPU cost no more; a
            GPU wants larger ones, with a learning rate that grows as the root.
        optimizer: "sgd" (Nesterov) or "adamw".
        lr: peak learning rate, reached after the warm-up.
        momentum: of SGD, or the first beta of AdamW.
        weight_decay: of convolutions and linear layers; never of norms, biases and PReLU.
        warmup: epochs in which the learning rate rises linearly.
        label_smoothing: share of the target that is spread over all classes.
        clip: largest norm of the gradient of all parameters together; None does not clip. It is what
            networks without norms need to survive the learning rate.
        augment: random shifts and mirroring; for whoever makes the batches, as is `batch`. Below about six
            epochs training is better without.
        precision: of the forward pass; "auto" is float32 on a CPU, and on a GPU bfloat16 or, where that
            is not in hardware, float16.
        channels_last: memory format of activations and weights.
        shrink: start a trial that runs out of memory again with half the batch, and so on down to 8; then the
            metric "batch" says which it was. The learning rate falls by the root of 2 each time.
        schedule: after the warm-up a "cosine" to 0, or in "step"s to a tenth.
        milestones: of the steps, as shares of the epochs after the warm-up.
        ema: decay per step of an exponential moving average of the weights, which is then what is measured and kept.
        flip: mirror grey images too, which `augment` alone does not.
        resized_crop: instead of shifts a random part of each image, of at least this share of its area, stretched to
            the whole (Szegedy et al. 2015, who took 0.08: for photographs); 1 for none.
        jitter: brightness, contrast and saturation are multiplied by 1 - jitter to 1 + jitter.
        hue: colours are turned by up to this share of the wheel, in either direction.
        randaugment: random operations per image (Cubuk et al. 2020); 0 for none.
        magnitude: of these, 0 to 10.
        mixup: parameter of the beta distribution of the share of another image (Zhang et al. 2018); 0 for none.
        cutmix: the same, of the area of a rectangle from another image (Yun et al. 2019). With both, each batch has
            one or the other.
        dropout: of the features before the classifier, beside what the network has itself.
        drop_path: rate at which the last residual branch is dropped (stochastic depth, Huang et al. 2016), falling
            linearly to the first; see `nas.torch.regularise`.
        compile: run the network through `torch.compile`.
        graph: on a GPU, launch the training step as one CUDA graph where that is possible (`nas.torch.step`).

    Raises ConfigError if a value is out of range.
    """

    epochs: int = 5
    batch: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.5
    label_smoothing: float = 0.1
    clip: float | None = 1.0
    augment: bool = False
    precision: Precision = "auto"
    channels_last: bool = True
    shrink: bool = False
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    ema: float | None = None
    flip: bool = False
    resized_crop: float = 1.0
    jitter: float = 0.0
    hue: float = 0.0
    randaugment: int = 0
    magnitude: float = 9.0
    mixup: float = 0.0
    cutmix: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    compile: bool = False
    graph: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            kinds, is_valid, expected = _RULES[field.name]
            value = getattr(self, field.name)
            is_misplaced = isinstance(value, bool) and kinds is not bool
            if is_misplaced or not isinstance(value, kinds) or not is_valid(value):
                raise ConfigError(f"{field.name}: expected {expected}, got {value!r}")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.warmup >= self.epochs:
            raise ConfigError(f"warmup: expected fewer than all {self.epochs} epochs, got {self.warmup}")

    def halved(self) -> Recipe | None:
        """The recipe for half the batch, None if it is small enough as it is."""
        if not self.shrink or self.batch < 2 * SMALLEST:
            return None
        return replace(self, batch=self.batch // 2, lr=self.lr / math.sqrt(2))

    def lr_at(self, epoch: float) -> float:
        """Learning rate of the step that ends `epoch` epochs after the start, 0 < epoch <= epochs."""
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        done = (epoch - self.warmup) / (self.epochs - self.warmup)
        if self.schedule == "step":
            return self.lr * DECAY ** sum(done > share for share in self.milestones)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

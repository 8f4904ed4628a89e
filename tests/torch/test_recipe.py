from __future__ import annotations

import math
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.torch.recipe import Recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 2.0),
        ("epochs", "many"),
        ("epochs", True),
        ("batch", 1),
        ("optimizer", "adam"),
        ("lr", 0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("momentum", 1),
        ("weight_decay", -1e-4),
        ("warmup", -1),
        ("label_smoothing", 1.0),
        ("clip", 0),
        ("clip", False),
        ("augment", 1),
        ("precision", "float64"),
        ("channels_last", None),
    ],
)
def test_a_wrong_value_is_named_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected .*, got ") as caught:
        Recipe(**{field: value})
    assert repr(value) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_warmup_must_leave_epochs_to_train() -> None:
    with pytest.raises(ConfigError, match="warmup: expected fewer than all 2 epochs, got 2"):
        Recipe(epochs=2, warmup=2)


def test_whole_numbers_pass_for_real_ones() -> None:
    assert Recipe(lr=1, warmup=1, clip=5, momentum=0).lr_at(1) == 1


def test_rises_linearly_and_falls_as_a_cosine() -> None:
    recipe = Recipe(epochs=5, lr=0.4, warmup=1)
    assert [recipe.lr_at(epoch) for epoch in (0.25, 0.5, 1, 3, 5)] == pytest.approx([0.1, 0.2, 0.4, 0.2, 0])
    assert Recipe(epochs=5, lr=0.4, warmup=0).lr_at(1e-9) == pytest.approx(0.4)


def test_defaults_can_be_cut_to_one_epoch() -> None:
    assert Recipe(epochs=1).lr_at(1) == pytest.approx(0)


def test_steps_to_a_tenth_at_each_milestone() -> None:
    recipe = Recipe(epochs=10, lr=1.0, warmup=2, schedule="step", milestones=(0.25, 0.75))
    assert [recipe.lr_at(epoch) for epoch in (1, 2, 4, 4.1, 8, 8.1, 10)] == pytest.approx(
        [0.5, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schedule", "linear"),
        ("milestones", (0.5, 1)),
        ("milestones", 0.5),
        ("ema", 1.0),
        ("resized_crop", 0.0),
        ("jitter", 1.1),
        ("randaugment", 2.0),
        ("magnitude", 11),
        ("mixup", -0.1),
        ("cutmix", math.inf),
        ("dropout", 1),
        ("drop_path", True),
        ("compile", 1),
    ],
)
def test_a_wrong_value_of_the_full_training_too(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: expected .*, got "):
        Recipe(**{field: value})

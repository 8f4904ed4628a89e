"""Metrics, objectives and limits as text."""

from __future__ import annotations

import pytest

from nas.errors import ConfigError
from nas.trial import ANALYSIS_METRICS, Limit, Metric, format_number, parse_limit, parse_number, parse_objectives

METRICS = (Metric("accuracy"), Metric("latency", "min", "s"), *ANALYSIS_METRICS)


@pytest.mark.parametrize(
    ("text", "value"),
    [("300M", 3e8), ("1.5G", 1.5e9), ("20ms", 0.02), ("40%", 0.4), ("0.9", 0.9), ("64 KiB", 65536), ("1e6", 1e6)],
)
def test_numbers_with_units(text: str, value: float) -> None:
    assert parse_number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "M", "3 apples", "1..2", "--5"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_number(text)


@pytest.mark.parametrize(
    ("value", "text"), [(3e8, "300M"), (1.524e9, "1.52G"), (0.9134, "0.9134"), (12, "12"), (-2e3, "-2K")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_objectives_take_their_direction_from_the_metric() -> None:
    accuracy, flops, mine = parse_objectives("accuracy, flops,mine:min", METRICS)
    assert (accuracy.direction, accuracy.exact) == ("max", False)
    assert (flops.direction, flops.exact) == ("min", True)
    assert mine.direction == "min"
    assert accuracy.cost({"accuracy": 0.9}) == -0.9


@pytest.mark.parametrize("text", ["acuracy", "accuracy:up", "", "flops,flops"])
def test_wrong_objectives_are_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match="objectives: ") as caught:
        parse_objectives(text, METRICS)
    assert "\n" not in str(caught.value)


def test_limits() -> None:
    assert parse_limit("flops=300M", METRICS) == Limit("flops", 3e8, exact=True)
    assert parse_limit("accuracy=90%", METRICS) == Limit("accuracy", 0.9, at_least=True)
    assert parse_limit("params>=1M", METRICS) == Limit("params", 1e6, at_least=True, exact=True)
    assert parse_limit("latency=20ms", METRICS).bound == pytest.approx(0.02)


@pytest.mark.parametrize("text", ["flops", "flops=lots", "speed=3", "flops<3", "flops=1e999"])
def test_wrong_limits_are_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match="limit: ") as caught:
        parse_limit(text, METRICS)
    assert "\n" not in str(caught.value)


def test_violation_is_relative_and_zero_inside() -> None:
    limit = Limit("flops", 100)
    assert limit.violation({"flops": 150}) == pytest.approx(0.5)
    assert limit.violation({"flops": 100}) == 0
    assert Limit("accuracy", 0.8, at_least=True).violation({"accuracy": 0.6}) == pytest.approx(0.25)
    assert limit.violation({}) == 0

"""The evaluator that looks inside: its numbers are those of `nas diagnose`, and a search can run on it alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from nas.evaluators.diagnose import Diagnose
from torch import Tensor, nn

import nas
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, Wrap
from nas.errors import ConfigError, Diverged
from nas.evaluator import Report, Task
from nas.plugins import make_evaluator, reference
from nas.torch.diagnose import diagnose
from nas.trial import parse_limit

TASK = Task.of("digits", limit=300)


def evaluated(architecture: Architecture, seed: int = 0, **options: int) -> dict[str, float]:
    evaluator = Diagnose(**options)
    evaluator.open(TASK, device="cpu", threads=1)
    report = Report(lambda epoch, metrics: None)
    return dict(evaluator.evaluate(architecture, seed=seed, budget=None, workdir=Path(), report=report))


def plain(activation: str, layers: int) -> Architecture:
    convs = {f"c{i}": Conv(12, activation=activation, norm="none") for i in range(layers)}
    return Architecture(Chain(**convs, head=Head(10)), (1, 8, 8), 10)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_numbers_are_those_of_a_diagnosis(steps: int) -> None:
    architecture = plain("relu", 6)
    found = diagnose(architecture, TASK.load(), steps=steps, batch=16, seed=3)
    moment = found.end or found.start
    sizes = moment.sensitivities.values()
    assert evaluated(architecture, 3, steps=steps, batch=16) == {
        "dead_units": pytest.approx(moment.dead_share),
        "gradient_spread": pytest.approx(math.log10(max(sizes) / min(sizes))),
        "effective_field": pytest.approx(moment.field.size / 8),
    }


def test_it_tells_sound_networks_from_others() -> None:
    sound, sick = evaluated(reference("resnet20_cifar")), evaluated(plain("sigmoid", 20))
    assert sound["gradient_spread"] < 2 < 6 < sick["gradient_spread"]
    assert evaluated(plain("relu", 1))["effective_field"] < evaluated(plain("relu", 4))["effective_field"] <= 1
    assert sound["dead_units"] == 0


class Times(nn.Module):
    """Moved and scaled."""

    def __init__(self, shift: float, scale: float) -> None:
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.shift) * self.scale * self.scale


def after(width: int, **options: float) -> Architecture:
    parts = {"times": Wrap(Times, tuple(sorted(options.items()))), "stem": Conv(width, norm="none"), "head": Head(10)}
    return Architecture(Chain(**parts), (1, 8, 8), 10)


def test_dead_units_are_counted() -> None:
    """All images are much the same: half of the ReLUs are off in the middle, fewer of them at the border too."""
    assert 0.05 < evaluated(after(128, shift=-1e4, scale=0.1))["dead_units"] < 0.5


def test_numbers_that_are_none_are_a_diverged_trial() -> None:
    with pytest.raises(Diverged, match="the loss or a gradient is not a number"):
        evaluated(after(8, shift=0.0, scale=1e30))


def test_it_is_meant_to_stand_beside_others_and_takes_a_limit_in_percent() -> None:
    evaluator = make_evaluator("diagnose", {"batch": 8})
    assert evaluator.beside  # type: ignore[attr-defined]
    limit = parse_limit("dead_units=40%", evaluator.metrics)
    assert (limit.bound, limit.at_least) == (0.4, False)
    assert parse_limit("effective_field=0.5", evaluator.metrics).at_least


@pytest.mark.parametrize("options", [{"steps": -1}, {"steps": True}, {"batch": 1}, {"batch": "many"}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"evaluator\.(steps|batch): expected a whole number of at least"):
        make_evaluator("diagnose", options)


def test_a_search_on_it_alone(tmp_path: Path) -> None:
    config = nas.Config(
        space="lecture", strategy="random", evaluator="diagnose", objectives=("gradient_spread", "flops"), trials=4,
        limits=("dead_units=40%",), options={"data": {"limit": 100}}, out=str(tmp_path / "run"),
    )  # fmt: skip
    nas.start(config).run()
    trials = nas.load(tmp_path / "run").trials
    assert [trial.state for trial in trials if trial.evaluated] == ["ok"] * 4
    assert all(set(trial.metrics) > {"dead_units", "gradient_spread", "effective_field"} for trial in trials)

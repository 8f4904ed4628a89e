from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from trainings import RECIPE, batches, images, network, run, same

from nas.torch.ema import Average
from nas.torch.recipe import Recipe
from nas.torch.train import evaluate

EMA = Recipe(epochs=3, batch=16, lr=0.05, ema=0.9)


def test_average_by_hand() -> None:
    module = nn.BatchNorm1d(2)
    average = Average(module, 0.3)
    expected, decays = torch.ones(2), []
    for step in range(1, 5):
        with torch.no_grad():
            module.weight += step
        module.num_batches_tracked += 1
        average.update()
        decays.append(min(0.3, (1 + step) / (10 + step)))
        expected = decays[-1] * expected + (1 - decays[-1]) * module.weight.detach()
    assert decays[0] < 0.3 == decays[-1]
    assert torch.allclose(average.module.get_parameter("weight"), expected)
    assert int(average.module.get_buffer("num_batches_tracked")) == 4


def test_what_is_measured_and_left_is_the_average(tmp_path: Path) -> None:
    validation = batches(images(40, seed=1), 32)
    metrics, module = run(recipe=EMA, validation=validation, checkpoint=tmp_path / "c")
    found = evaluate(module, validation, device="cpu")
    assert found == {name: metrics[name] for name in found}
    _, raw = run(recipe=RECIPE)
    assert not same(module, raw)
    state = torch.load(tmp_path / "c", weights_only=True)["state"]
    assert all(torch.equal(value, state["module"][name]) for name, value in raw.state_dict().items())


@pytest.mark.parametrize("stop", [1, 2])
def test_continued_equals_uninterrupted(tmp_path: Path, stop: int) -> None:
    metrics, uninterrupted = run(recipe=EMA)
    run(recipe=EMA, checkpoint=tmp_path / "c", epochs=stop)
    continued, module = run(network(seed=5), EMA, checkpoint=tmp_path / "c")
    assert continued == metrics
    assert same(module, uninterrupted)

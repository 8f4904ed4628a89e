"""All of the captured step but the recording itself, which needs a GPU: here a recording is the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import network, run

from nas.torch import step
from nas.torch import train as training
from nas.torch.recipe import Recipe
from nas.torch.step import WARM_UP, Captured


class Device:
    """Stands for a GPU, and counts."""

    def __init__(self) -> None:
        self.recorded, self.replayed, self.reads = 0, 0, []

    def beside(self, device: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        return function(*inputs)

    def record(self, device: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
        self.recorded += 1
        result = torch.zeros(())

        def replay() -> Tensor:
            self.replayed += 1
            return result.copy_(function(*inputs))  # always at the same address, as with a graph

        return replay


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(step, "beside", device.beside)
    monkeypatch.setattr(step, "record", device.record)
    return device


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_captured_training_is_the_eager_one(gpu: Device, monkeypatch: pytest.MonkeyPatch, optimizer: Any) -> None:
    recipe = Recipe(epochs=3, batch=16, lr=0.05, optimizer=optimizer, ema=0.9)
    metrics, eager = run(recipe=recipe)

    class Capturing(training._Training):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.captured = Captured(self._compute, self.device)

    monkeypatch.setattr(training, "_Training", Capturing)
    found, captured = run(recipe=recipe)
    assert (gpu.recorded, gpu.replayed) == (1, 3 * 4 - WARM_UP)
    assert found == pytest.approx(metrics, rel=1e-5)
    for name, value in eager.state_dict().items():
        assert torch.allclose(value, captured.state_dict()[name], atol=1e-6), name


def test_other_shapes_are_normal_calls(gpu: Device) -> None:
    seen: list[int] = []

    def function(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.sum()

    call = Captured(function, torch.device("cpu"))
    sums = [float(call(torch.full((size,), float(i)))) for i, size in enumerate([4, 4, 3, 4, 4, 3, 4])]
    assert sums == [0, 4, 6, 12, 16, 15, 24]
    assert gpu.replayed == 2


def test_what_cannot_be_recorded_is_called(gpu: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(step, "record", refuse)
    call = Captured(lambda x: x.sum(), torch.device("cpu"))
    assert [float(call(torch.full((2,), float(i)))) for i in range(6)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestGpu:
    """Not run on the machines that the rest of this suite was written on."""

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_graph_and_eager_agree(self, optimizer: Any) -> None:
        results = []
        for graph in (False, True):
            recipe = Recipe(epochs=3, batch=16, lr=0.05, optimizer=optimizer, precision="float32", graph=graph, ema=0.9)
            module: nn.Module = network()
            metrics, _ = run(module, recipe, device="cuda")
            results.append((metrics, module))
        assert results[0][0]["loss"] == pytest.approx(results[1][0]["loss"], rel=0.05)

    def test_new_dropout_in_every_replay(self) -> None:
        call = Captured(lambda x: nn.functional.dropout(x, 0.5).sum(), torch.device("cuda"))
        sums = [float(call(torch.ones(10_000, device="cuda"))) for _ in range(12)]
        assert len(set(sums)) > 8

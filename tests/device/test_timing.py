"""Seconds and bytes of a run."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import pytest
import torch

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, Residual
from nas.device import timing
from nas.device.settings import Settings
from nas.device.timing import Bench, medians, seconds
from nas.errors import ConfigError, OutOfMemory
from nas.graph import Graph
from nas.plugins import make_space

NETWORK = Architecture(Chain(stem=Conv(8), body=Residual(8), head=Head(4)), (3, 12, 12), 4)


def out_of_place(graph: Graph, batch: int) -> int:
    """Bytes that live at most when no operation works in place, the images all along."""
    sizes = [4 * batch * prod(shape) for shape in graph.shapes]
    last = {i: at for at, node in enumerate(graph.nodes) for i in node.inputs} | {0: len(graph.nodes)}
    living = peak = 0
    for at, node in enumerate(graph.nodes):
        living += sizes[at]
        peak = max(peak, living)
        living -= sum(sizes[i] for i in set(node.inputs) if last[i] == at)
    return peak


@pytest.mark.parametrize("space", ["mobile", "lecture"])
@pytest.mark.parametrize("settings", [Settings(), Settings(batch=3, channels_last=True)])
def test_memory_is_what_lives_at_the_same_time(space: str, settings: Settings) -> None:
    made, rng = make_space(space, (3, 32, 32), 10, {}), np.random.default_rng(1)
    bench = Bench(settings)
    for _ in range(3):
        architecture = made.architecture(made.sample(rng))
        graph = architecture.graph()
        with bench.ready():
            measured = bench.memory(graph)
        norms = sum(2 * graph.shapes[i][0] * 4 + 8 for i, n in enumerate(graph.nodes) if type(n.op).__name__ == "Norm")
        weights = 4 * architecture.analysis.params + norms
        assert measured == weights + out_of_place(graph, settings.batch)
        # The exact cost is that of the best there is: norms and activations in place.
        assert architecture.analysis.memory * settings.batch <= measured - weights


class Clock:
    """Runs that say given times, and the order in which they were called."""

    def __init__(self, **times: list[float]) -> None:
        self.calls: list[str] = []
        self.runs = [self._run(name, iter(values)) for name, values in times.items()]

    def _run(self, name: str, times: Iterator[float]) -> timing.Run:
        def run() -> float:
            self.calls.append(name)
            return next(times)

        return run


def test_the_smallest_median_counts_and_runs_take_turns() -> None:
    # warm-up, then rounds of three: a busy while, a quiet one, and one that agrees with it
    clock = Clock(a=[9.0, 5, 6, 5, 1, 8, 1, 1.01, 1, 1.02], b=[9.0, 3, 9, 3, 2, 2, 2, 2, 2, 7])
    assert seconds(clock.runs, warmup=1, rounds=3) == [1, 2]
    assert clock.calls == ["a", "b"] * 10


def test_measuring_goes_on_until_two_medians_agree_or_the_time_is_up() -> None:
    clock = Clock(a=[5.0, 4, 3, 2, 1.01, 1, 7])
    assert seconds(clock.runs, warmup=0, rounds=1) == [1]
    assert len(clock.calls) == 6
    clock = Clock(a=[5.0, 4, 3, 2, 1])
    assert seconds(clock.runs, warmup=0, rounds=1, longest=0) == [3]
    assert medians(Clock(a=[5.0, 1, 2, 9]).runs, warmup=1, rounds=3) == [2]


def test_threads_are_those_of_the_settings_and_then_as_before() -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []
    bench = Bench(Settings(threads=2))
    with bench.ready():
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
    assert seen == [(2, True)]
    assert torch.get_num_threads() == before
    with pytest.raises(OutOfMemory, match="batch 1, 2 threads"), bench.ready():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), bench.ready():
        raise ZeroDivisionError


def test_a_run_takes_longer_with_more_images() -> None:
    one, many = (Bench(Settings(batch=batch)) for batch in (1, 64))
    with one.ready():
        runs = [bench.run(NETWORK.graph()) for bench in (one, many)]
        first, second = seconds(runs)
    assert 0 < first < second


def test_settings_that_make_no_sense_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, expected in (
        ({"batch": 0}, "batch"), ({"threads": 1.5}, "threads"), ({"channels_last": 1}, "channels_last"),
        ({"runtime": "tvm"}, "torch or onnx"), ({"runtime": "onnx", "device": "cuda"}, "drop device"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=expected):
            Settings(**given)
    monkeypatch.setattr("nas.device.onnx.NEEDED", ("onnx", "no_such_runtime"))
    with pytest.raises(ConfigError, match=r"pip install .*no_such_runtime"):
        Bench(Settings(runtime="onnx"))


def test_onnx_runtime_computes_the_same() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    bench = Bench(Settings(runtime="onnx", batch=2))
    with bench.ready():
        (latency,) = seconds([bench.run(NETWORK.graph())])
    assert latency > 0

"""One training step, launched as a CUDA graph where it can be: for small networks the launches are what takes time.

Written for GPUs, and not run on one yet. What can be tested without one is: everything but the recording itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the recording: libraries choose their kernels, the optimiser makes its state."""

Function = Callable[..., Tensor]


class Captured:
    """A function of tensors that is called normally at first, then recorded and replayed.

    All calls count: those before the recording compute what they would have anyway. A call with tensors of other shapes
    than the first one's is a normal call. If the function cannot be recorded (because it waits for the device, say),
    every call stays a normal one.

    Arguments:
        function: takes tensors and returns one; reads and changes nothing else that is not at a fixed address.
        device: a GPU.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self._function, self._device = function, device
        self._calls = 0
        self._inputs: tuple[Tensor, ...] | None = None
        self._replay: Callable[[], Tensor] | None = None
        self._is_possible = True

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self._inputs is None:
            self._inputs = tuple(x.clone() for x in inputs)  # the addresses that the graph reads
        alike = [(x.shape, x.dtype, x.stride()) for x in inputs] == [
            (x.shape, x.dtype, x.stride()) for x in self._inputs
        ]
        if not (alike and self._is_possible):
            return self._function(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        if self._calls < WARM_UP:
            self._calls += 1
            return beside(self._device, self._function, *self._inputs)
        if self._replay is None:
            try:
                self._replay = record(self._device, self._function, *self._inputs)
            except RuntimeError:
                self._is_possible = False
                return self._function(*inputs)
        return self._replay().clone()


def beside(device: torch.device, function: Function, *inputs: Tensor) -> Tensor:
    """Call on a stream of its own, as has to be done before a recording."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = function(*inputs)
    torch.cuda.current_stream(device).wait_stream(stream)
    return result


def record(device: torch.device, function: Function, *inputs: Tensor) -> Callable[[], Tensor]:
    """What calls `function` again on what `inputs` hold then. Recording computes nothing yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = function(*inputs)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay

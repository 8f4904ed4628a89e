"""Seconds per run of networks, and the memory that one takes.

Other processes, interrupts and a cold clock only ever make a run slower. So networks run in rounds, the median of some
rounds is one measurement, and the smallest of several such medians counts. Measuring ends when the two smallest agree.
Networks that are measured together take turns: each finds the caches as another one has left them, as a block does
within a network, and what disturbs the machine for a while disturbs them all.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.device.settings import Settings
from nas.errors import OutOfMemory
from nas.graph import Graph
from nas.torch.build import build
from nas.torch.runtime import is_out_of_memory, keep_freed_memory

Run: TypeAlias = Callable[[], float]
"""Runs a network once and says how many seconds it took."""

AGREEING = 0.02
"""Relative difference of the two smallest medians at which measuring ends."""

LEAST = 3
"""Medians at least."""


class Bench:
    """Runs networks as the settings say. Weights and images are random, norms use their running statistics."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        keep_freed_memory()  # as a training in this process does: otherwise the first to measure would pay for it
        self._layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        if settings.runtime == "onnx":
            from nas.device.onnx import require

            require()

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The process as the settings say; afterwards as it was. Running out of memory becomes OutOfMemory."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.settings.threads)
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"{self.settings}: {error}") from None
            raise
        finally:
            torch.set_num_threads(before)

    def run(self, graph: Graph) -> Run:
        """What runs a network; to be called inside `ready`."""
        module, images = self._made(graph)
        if self.settings.runtime == "onnx":
            from nas.device.onnx import session

            return session(module, images, self.settings.threads)
        return _on_gpu(module, images) if self.device.type == "cuda" else _on_cpu(module, images)

    def memory(self, graph: Graph) -> int:
        """Peak bytes of one run: images, weights, and all tensors that live at the same time.

        On a GPU what torch's allocator says (`torch.cuda.max_memory_allocated`; not run on one yet). On a CPU every
        tensor that an operation gives is followed until it is freed; what an operation takes and frees within itself
        is not seen.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            module, images = self._made(graph)
            module(*images)
            return int(torch.cuda.max_memory_allocated(self.device)) - before
        module, images = self._made(graph)
        with _Following() as living:
            for tensor in (*images, *module.parameters(), *module.buffers()):
                living.see(tensor)
            module(*images)
        return int(living.peak)

    def _made(self, graph: Graph) -> tuple[torch.nn.Module, list[Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = [torch.randn(self.settings.batch, *graph.shapes[i], generator=generator) for i in graph.inputs]
        with torch.inference_mode(False):  # parameters of the ordinary kind: ONNX's exporter wants them
            module = build(graph, seed=0).eval().to(self.device)
        for tensor in module.parameters() if self.settings.channels_last else ():
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=self._layout)
        return module, [x.to(self.device, memory_format=self._layout if x.dim() == 4 else None) for x in images]


def _on_cpu(module: torch.nn.Module, images: Sequence[Tensor]) -> Run:
    def run() -> float:
        begin = time.perf_counter()
        module(*images)
        return time.perf_counter() - begin

    return run


def _on_gpu(module: torch.nn.Module, images: Sequence[Tensor]) -> Run:
    """Timed by events on the GPU; not run on one yet."""
    event: Any = torch.cuda.Event
    begin, end = event(enable_timing=True), event(enable_timing=True)

    def run() -> float:
        begin.record()
        module(*images)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return run


def seconds(runs: Sequence[Run], *, warmup: int = 3, rounds: int = 5, longest: float = 2.0) -> list[float]:
    """Seconds per run of each, by the rule of this module.

    Args:
        runs: take turns.
        warmup: runs of each that do not count.
        rounds: of which a median is taken.
        longest: seconds after which no further median is begun, for each of the runs.
    """
    found = [medians(runs, warmup=warmup, rounds=rounds)]
    begin = time.perf_counter()
    while len(found) < LEAST or (not _agree(found) and time.perf_counter() - begin < longest * len(runs)):
        found.append(medians(runs, warmup=0, rounds=rounds))
    smallest: list[float] = np.min(found, axis=0).tolist()
    return smallest


def medians(runs: Sequence[Run], *, warmup: int, rounds: int) -> list[float]:
    """One median of each; see `seconds`."""
    for _ in range(warmup):
        for run in runs:
            run()
    found: list[float] = np.median([[run() for run in runs] for _ in range(rounds)], axis=0).tolist()
    return found


def _agree(found: Sequence[Sequence[float]]) -> bool:
    """Whether the smallest and the second smallest medians do, over all that was measured together."""
    first, second = np.partition(found, 1, axis=0)[:2].sum(axis=1)
    return bool(second <= (1 + AGREEING) * first)


class _Following(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class
    """Bytes of all storages that live, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self.see(value)
        return out

    def see(self, tensor: Tensor) -> None:
        """Follow a tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = self._seen[storage] = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size

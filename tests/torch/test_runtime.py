from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from nas.errors import ConfigError
from nas.torch import runtime
from nas.torch.runtime import is_out_of_memory, keep_freed_memory, pick_device, prepare

FAULTS = """
import resource, sys, threading, torch
from nas.torch.runtime import prepare

def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        activations = [torch.ones(size << 18) for size in mebibytes]
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def work():
    patterns = [9] * 20, [36, 1] * 6
    first = [faults(pattern) for pattern in patterns]  # the heap grows
    print(sum(faults(pattern) for pattern in patterns))

if sys.argv[1] == "prepared":
    prepare(torch.device("cpu"), 1)
    assert torch.get_num_threads() == 1
if sys.argv[2] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


@pytest.mark.parametrize("place", ["main", "thread"])
def test_freed_memory_is_reused(place: str) -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("the C library is not glibc")

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode, place]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("prepared") < faults("default") / 50


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False

    def unavailable(name: None) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(runtime.ctypes, "CDLL", unavailable)
    assert keep_freed_memory() is False


def test_threads_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="threads: expected at least 1, got 0"):
        prepare(torch.device("cpu"), 0)


def test_a_gpu_is_chosen_and_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the calls replaced, for want of a GPU: torch accepts a device to choose only with its number."""
    chosen: list[torch.device] = []
    precisions: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    for name in ("cuda", "cuda:1"):
        prepare(torch.device(name), 1)
    assert chosen == [torch.device("cuda", 1)]
    assert torch.backends.cudnn.benchmark
    assert precisions == ["high", "high"]


def test_devices_that_are_here() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "cpu:0"])
def test_a_device_that_is_not_here_is_named_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^device: expected auto or .*cpu.*, got '{name}'$"):
        pick_device(name)


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"\(cpu, cuda, cuda:0, cuda:1\), got 'cuda:2'"):
        pick_device("cuda:2")


def test_the_allocator_of_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_lack_of_memory_by_type_and_words(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected

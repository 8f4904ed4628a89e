"""Setting a process up for fast training, and knowing the ways in which memory runs out."""

from __future__ import annotations

import ctypes

import torch

from nas.errors import ConfigError

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
LARGEST_INT = 2**31 - 1


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises ConfigError if torch has no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{index}" for index in range(gpus))]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    if name not in present:
        raise ConfigError(f"device: expected auto or one found here ({', '.join(present)}), got {name!r}")
    return torch.device(name)


def prepare(device: torch.device, threads: int) -> None:
    """Set up this process, once and before it starts threads, to train on `device`.

    Limits torch to `threads` threads; keeps glibc from giving memory back to the kernel; on a GPU lets
    convolutions be tuned to their shapes and float32 matrix products use TF32.

    Raises ConfigError unless `threads` is at least 1.
    """
    if threads < 1:
        raise ConfigError(f"threads: expected at least 1, got {threads}")
    torch.set_num_threads(threads)
    keep_freed_memory()
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)  # or this process would take some memory of the first GPU too
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def keep_freed_memory() -> bool:
    """Make malloc reuse freed memory; return whether it could (the C library is glibc).

    By default glibc maps each large block afresh and unmaps it when freed: every activation of every
    step is then paid for in page faults, with large batches more than half of the time on a CPU
    (`benchmarks/training.py`). So: no mapped blocks, no trimming, and one arena, because the heaps of
    the others are too small for large blocks, which matters where training runs in a thread. The price
    is that memory stays at its peak.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (raises where the library is not glibc)
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST_INT), (M_ARENA_MAX, 1))
    done = [libc.mallopt(parameter, value) for parameter, value in settings]  # 1 each, or 0
    return all(done)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory, in any of the ways torch says so."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    message = str(error).lower()
    signs = ("out of memory", "defaultcpuallocator", "status_alloc_failed")
    return isinstance(error, RuntimeError) and any(sign in message for sign in signs)

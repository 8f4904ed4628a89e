"""How a network is run when it is measured: a latency without that says nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.errors import ConfigError

RUNTIMES = ("torch", "onnx")


@dataclass(frozen=True)
class Settings:
    """How a network is run.

    Args:
        batch: images per run.
        threads: of the CPU within an operation.
        channels_last: layout of images and weights; for torch alone.
        runtime: `torch` (eager, `inference_mode`), or `onnx`: ONNX Runtime on the CPU, which fuses and rearranges.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises ConfigError for a value out of range, and for settings that do not go together.
    """

    batch: int = 1
    threads: int = 1
    channels_last: bool = False
    runtime: str = "torch"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch", "threads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not isinstance(self.channels_last, bool):
            raise ConfigError(f"channels_last: expected true or false, got {self.channels_last!r}")
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"runtime: expected {' or '.join(RUNTIMES)}, got {self.runtime!r}")
        if self.runtime == "onnx" and (self.channels_last or self.device not in ("cpu", "auto")):
            raise ConfigError("runtime: onnx runs on the CPU and chooses the layout itself; drop device, channels_last")

    def __str__(self) -> str:
        layout = ", channels_last" if self.channels_last else ""
        return f"batch {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}, {self.runtime}{layout}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def describe(settings: Settings) -> Mapping[str, str | int]:
    """The device in words, and the version of what runs there."""
    import torch

    found: dict[str, str | int] = {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))}
    if settings.device.startswith("cuda"):
        found["name"] = torch.cuda.get_device_name(settings.device)
    else:
        found["name"] = _cpu()
    if settings.runtime == "onnx":
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    return found


def _cpu() -> str:
    """Name of the processor; only Linux says more than its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

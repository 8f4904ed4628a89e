"""Running a network in ONNX Runtime, where that is installed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from nas.errors import ConfigError

NEEDED = ("onnx", "onnxruntime")


def require() -> None:
    """Raises ConfigError where a package is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"runtime: onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")


def session(module: nn.Module, images: Sequence[Tensor], threads: int) -> Callable[[], float]:
    """What runs a module in ONNX Runtime on the CPU with all its graph optimisations, and says how long it took."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    with TemporaryDirectory() as folder, torch.inference_mode(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own affairs
        # The newer exporter takes seconds for a block, and a table has thousands of them.
        torch.onnx.export(module, tuple(x.clone() for x in images), f"{folder}/network.onnx", dynamo=False)
        made = onnxruntime.InferenceSession(f"{folder}/network.onnx", options, providers=["CPUExecutionProvider"])
    feed = {entry.name: x.numpy() for entry, x in zip(made.get_inputs(), images, strict=True)}

    def run() -> float:
        begin = time.perf_counter()
        made.run(None, feed)
        return time.perf_counter() - begin

    return run

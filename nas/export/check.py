"""Exported files are run in a fresh interpreter that cannot import this package, and compared with the module."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nas.errors import ExportError

TOLERANCE = 1e-5  # of max|difference| / max|output|
BATCH = 2

# Run with -I: neither the current folder nor PYTHONPATH is searched, and this package is kept out even if installed.
SCRIPT = """
import importlib.util, json, sys

with open(sys.argv[1]) as file:
    cases = json.load(file)
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(cases["threads"])
sys.path += cases["path"]
if not cases["path"]:
    sys.modules["nas"] = None
for case in cases["cases"]:
    spec = importlib.util.spec_from_file_location("exported", case["source"])
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        model = module.load(case["weights"])
        inputs = load_file(case["inputs"])
        with torch.no_grad():
            outputs = model(*[inputs[str(i)] for i in range(len(inputs))])
    except Exception as error:
        sys.exit(f"{case['source']}: {type(error).__name__}: {' '.join(str(error).split())}")
    save_file({"y": outputs.contiguous()}, case["outputs"])
"""


class Case(NamedTuple):
    """A file to check: what it must compute on `inputs` with the weights of a file. `foreign`: it imports others."""

    source: Path
    weights: Path
    inputs: tuple[Tensor, ...]
    output: Tensor
    foreign: bool = False


def case(source: Path, weights: Path, module: nn.Module, shapes: Sequence[Sequence[int]], *, foreign: bool) -> Case:
    """What a file must compute: the outputs of `module` in evaluation mode on random inputs of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(BATCH, *shape, generator=generator) for shape in shapes)
    was_training = module.training
    with torch.no_grad():
        output = module.eval()(*inputs)
    module.train(was_training)
    return Case(source.resolve(), weights.resolve(), inputs, output, foreign)


def vary(module: nn.Module) -> None:
    """Give norms and biases values as after training, in place: those they begin with would hide a swapped layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.4)


def check_many(cases: Sequence[Case]) -> list[float]:
    """Run files in one fresh interpreter, and return how far each one's outputs are: max|difference| / max|output|.

    Raises ExportError for a file that fails, or is further away than `TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for i, one in enumerate(cases):
            files = {"inputs": f"{folder}/{i}.in", "outputs": f"{folder}/{i}.out"}
            save_file({str(k): x for k, x in enumerate(one.inputs)}, files["inputs"])
            jobs.append({"source": str(one.source), "weights": str(one.weights), **files})
        foreign = any(one.foreign for one in cases)  # a user's own layers must be found where they are found here
        path = [str(Path(p).resolve()) for p in sys.path] if foreign else []
        job = Path(folder) / "cases.json"
        job.write_text(json.dumps({"threads": torch.get_num_threads(), "path": path, "cases": jobs}))
        done = subprocess.run(
            [sys.executable, "-I", "-c", SCRIPT, str(job)], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportError(f"an exported file does not run by itself: {last}")
        return [_difference(one, load_file(jobs[i]["outputs"])["y"]) for i, one in enumerate(cases)]


def _difference(one: Case, found: Tensor) -> float:
    if not torch.isfinite(one.output).all():
        raise ExportError(f"{one.source}: the network's outputs are not finite; its weights have diverged")
    if found.shape != one.output.shape:
        raise ExportError(f"{one.source} returns the shape {list(found.shape)}, not {list(one.output.shape)}")
    scale = one.output.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((found - one.output).abs().max() / scale)
    if not difference <= TOLERANCE:
        raise ExportError(f"{one.source} computes something else: it is {difference:.1e} away, at most {TOLERANCE:.0e}")
    return difference

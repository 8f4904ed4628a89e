"""Exported files are run and compared with the module: outside, in a fresh interpreter that cannot import this package,
where a file needs nothing of it, and here where it does."""

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

from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export.weights import load, read_all

TOLERANCES = {"source": 1e-5, "program": 1e-5, "onnx": 1e-4, "state": 1e-5, "json": 1e-5}
"""By kind of file: largest max|difference| / max|output|. ONNX Runtime fuses and reorders what torch does not."""
TOLERANCE = TOLERANCES["source"]
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

def source(path, weights):
    spec = importlib.util.spec_from_file_location("exported", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(weights)

def program(path, weights):
    return torch.export.load(path).module()

def onnx(path, weights):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cases["threads"]
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda *x: torch.from_numpy(session.run(None, dict(zip(names, [each.numpy() for each in x])))[0])

kinds = {"source": source, "program": program, "onnx": onnx}
for case in cases["cases"]:
    try:
        model = kinds[case["kind"]](case["file"], case["weights"])
        inputs = load_file(case["inputs"])
        x = [inputs[str(i)] for i in range(len(inputs))]
        with torch.no_grad():
            outputs, first = model(*x), model(*[each[:1] for each in x])
    except Exception as error:
        sys.exit(f"{case['file']}: {type(error).__name__}: {' '.join(str(error).split())}")
    save_file({"y": outputs.contiguous(), "first": first.contiguous()}, case["outputs"])
"""


class Case(NamedTuple):
    """A file to check: what it must compute on `inputs`.

    `weights`: the file of its weights, if they are apart. `foreign`: it imports files of a user's. `kind`: of
    `TOLERANCES`.
    """

    file: Path
    weights: Path
    inputs: tuple[Tensor, ...]
    output: Tensor
    foreign: bool = False
    kind: str = "source"


def case(
    file: Path, weights: Path, module: nn.Module, shapes: Sequence[Sequence[int]], *, foreign: bool = False,
    kind: str = "source",
) -> Case:  # fmt: skip
    """What a file must compute: the outputs of `module` in evaluation mode on random inputs of the given shapes."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(torch.randn(BATCH, *shape, generator=generator) for shape in shapes)
    was_training = module.training
    with torch.no_grad():
        output = module.eval()(*inputs)
    module.train(was_training)
    return Case(file.resolve(), weights.resolve(), inputs, output, foreign, kind)


def vary(module: nn.Module) -> None:
    """Give norms and biases values as after training, in place: those they begin with would hide a swapped layer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point() and tensor.dim() < 2:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.4)


def check_many(cases: Sequence[Case]) -> list[float]:
    """Run files, and return how far each one's outputs are: max|difference| / max|output|.

    Those that need nothing of this package run in one fresh interpreter, with the whole batch and with one image alone.
    Raises ExportError for a file that fails, or is further away than its kind of `TOLERANCES`.
    """
    outside = [one for one in cases if one.kind not in ("state", "json")]
    found = dict(zip(map(id, outside), _outside(outside), strict=True))
    return [found[id(one)] if id(one) in found else _inside(one) for one in cases]


def _outside(cases: Sequence[Case]) -> list[float]:
    if not cases:
        return []
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for i, one in enumerate(cases):
            files = {"inputs": f"{folder}/{i}.in", "outputs": f"{folder}/{i}.out"}
            save_file({str(k): x for k, x in enumerate(one.inputs)}, files["inputs"])
            jobs.append({"kind": one.kind, "file": str(one.file), "weights": str(one.weights), **files})
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
        differences = []
        for i, one in enumerate(cases):
            outputs = load_file(jobs[i]["outputs"])
            alone = _difference(one, outputs["first"], one.output[:1])
            differences.append(max(alone, _difference(one, outputs["y"], one.output)))
        return differences


def _inside(one: Case) -> float:
    """A file from which this package makes the network again: `state` with its weights, `json` without."""
    if one.kind == "state":
        data = json.loads(read_all(one.file)[1]["network"])
    else:
        data = json.loads(one.file.read_text(encoding="utf-8"))
    architecture = Architecture.from_json(data)
    module = architecture.module().eval()
    load(one.weights, module, key=architecture.key())
    with torch.no_grad():
        return _difference(one, module(*one.inputs), one.output)


def _difference(one: Case, found: Tensor, expected: Tensor) -> float:
    if not torch.isfinite(expected).all():
        raise ExportError(f"{one.file}: the network's outputs are not finite; its weights have diverged")
    if found.shape != expected.shape:
        raise ExportError(f"{one.file} returns the shape {list(found.shape)}, not {list(expected.shape)}")
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference, limit = float((found - expected).abs().max() / scale), TOLERANCES[one.kind]
    if not difference <= limit:
        raise ExportError(f"{one.file} computes something else: it is {difference:.1e} away, at most {limit:.0e}")
    return difference

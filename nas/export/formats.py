"""The formats in which a network can be written: what each needs, and the files that it makes."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export.check import Case, case, vary
from nas.export.source import compose
from nas.export.weights import save

OPSET = 25
"""Of ONNX: the newest that PyTorch's exporter writes of itself, and ONNX Runtime reads it."""
TRACED = 3
"""Images in the batch with which a network is traced; any other number must then do as well."""
BATCH = ({0: Dim("batch")},)


@dataclass(frozen=True)
class Network:
    """What is written.

    Attributes:
        module: with its weights, on the CPU, in evaluation mode.
        trained: they are weights of a training; otherwise initial ones.
        notes: what else its user must know.
    """

    architecture: Architecture
    module: nn.Module
    trained: bool
    notes: Sequence[str] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image: (channels, height, width)."""
        return self.architecture.input_shape

    @cached_property
    def program(self) -> ExportedProgram:
        """The module as traced by `torch.export`, for any number of images."""
        image = torch.zeros(TRACED, *self.shape)
        with _one_line("cannot be traced by torch.export"):
            program = torch.export.export(self.module, (image,), dynamic_shapes=BATCH)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        return program


class Draft(NamedTuple):
    """Files in a scratch folder, and how to check them."""

    files: tuple[Path, ...]
    case: Case


Writer: TypeAlias = Callable[[Network, Path, str], Draft]


def write_source(network: Network, folder: Path, name: str) -> Draft:
    """`<name>.py`, which imports torch alone, and trained weights as `<name>.safetensors`."""
    module = network.module
    if not network.trained:  # they are not kept
        module = copy.deepcopy(module)
        vary(module)
    made = compose(network.architecture, name=name, notes=network.notes)
    script, weights = folder / f"{name}.py", folder / f"{name}.safetensors"
    script.write_text(made.text, encoding="utf-8")
    save(module, weights, key=network.architecture.key(), facts=_facts(network))
    files = (script, weights) if network.trained else (script,)
    return Draft(files, case(script, weights, module, [network.shape], foreign=bool(made.imports)))


def write_state(network: Network, folder: Path, name: str) -> Draft:
    """`<name>.safetensors`: the weights, and the architecture as JSON beside them (`nas.export.read_network`)."""
    if not network.trained:
        raise ExportError("--format state writes trained weights, and there are none; the front's are kept by a run")
    weights = folder / f"{name}.safetensors"
    save(network.module, weights, key=network.architecture.key(), facts=_facts(network))
    return Draft((weights,), case(weights, weights, network.module, [network.shape], kind="state"))


def write_json(network: Network, folder: Path, name: str) -> Draft:
    """`<name>.json`: the architecture, and its graph for programs that do not know our blocks. No weights."""
    file, weights = folder / f"{name}.json", folder / f".{name}.safetensors"
    data = {**network.architecture.to_json(), "graph": network.architecture.graph().to_json()}
    file.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    save(network.module, weights, key=network.architecture.key())
    return Draft((file,), case(file, weights, network.module, [network.shape], kind="json"))


def write_program(network: Network, folder: Path, name: str) -> Draft:
    """`<name>.pt2`: graph and weights for `torch.export.load`."""
    file = folder / f"{name}.pt2"
    with _one_line("cannot be saved by torch.export"):
        torch.export.save(network.program, file)
    return Draft((file,), case(file, file, network.module, [network.shape], kind="program"))


def write_onnx(network: Network, folder: Path, name: str) -> Draft:
    """`<name>.onnx`: input `image` (batch, channels, height, width), output `logits` (batch, classes)."""
    missing = [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]
    if missing:
        raise ExportError(f"--format onnx needs {', '.join(missing)}: pip install 'nas[onnx]'")
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    file = folder / f"{name}.onnx"
    with _one_line("cannot be written as ONNX"):
        made = torch.onnx.export(
            network.program, dynamo=True, opset_version=OPSET, dynamic_shapes=BATCH, input_names=["image"],
            output_names=["logits"], verbose=False,
        )  # fmt: skip
        assert made is not None
        ClearMetadataAndDocStringPass()(made.model)  # paths of this machine
        made.model.doc_string = " ".join([network.architecture.name, *network.notes])
        made.save(file, external_data=False)
        onnx.checker.check_model(str(file), full_check=True)
    return Draft((file,), case(file, file, network.module, [network.shape], kind="onnx"))


WRITERS: Mapping[str, Writer] = {
    "source": write_source, "state": write_state, "onnx": write_onnx, "program": write_program, "json": write_json,
}  # fmt: skip


def _facts(network: Network) -> dict[str, str]:
    return {"network": json.dumps(network.architecture.to_json())}


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Whatever torch raises about a network becomes an ExportError; what it warns of is its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ExportError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ExportError(f"the network {what}: {type(error).__name__}: {text}") from error
    finally:
        logger.setLevel(level)

"""Every format: written, run elsewhere, compared; and what is said where one cannot be written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nas import blocks as b
from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export import formats, read_network
from nas.export.check import TOLERANCES, check_many, vary
from nas.export.files import export
from nas.export.formats import OPSET, WRITERS, Network
from nas.export.weights import save
from nas.graph import Graph


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(architecture: Architecture) -> nn.Module:
    module = architecture.module(seed=0)
    vary(module)
    return module.eval()


@pytest.fixture(scope="module")
def small() -> Architecture:
    chain = b.Chain(stem=b.Conv(8), block=b.InvertedResidual(8, se=b.SqueezeExcite(), drop_path=0.1), head=b.Head(3))
    return Architecture(chain, (3, 12, 12), 3, "small")


@pytest.fixture(scope="module")
def written(small: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network in all formats, and its state as a reference."""
    folder = tmp_path_factory.mktemp("formats")
    found = export(small, trained(small).state_dict(), folder, "small", ["Seen: cats."], list(WRITERS))
    assert [each.format for each in found] == list(WRITERS)
    assert all(each.trained and each.difference <= TOLERANCES[each.format] for each in found)
    names = {"small.py", "small.safetensors", "small.onnx", "small.pt2", "small.json"}
    assert {path.name for path in folder.iterdir()} == names
    return folder


def test_state_and_json_give_the_network_back(small: Architecture, written: Path) -> None:
    expected = trained(small).state_dict()
    network = read_network(written / "small.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    data = json.loads((written / "small.json").read_text())
    assert Architecture.from_json(data).key() == Graph.from_json(data["graph"]).key() == small.key()


def test_onnx_names_its_ends_and_tells_nothing_of_this_machine(written: Path) -> None:
    import onnx

    model = onnx.load(written / "small.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == ["batch", 3, 12, 12]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 3]
    assert {(each.domain, each.version) for each in model.opset_import} == {("", OPSET)}
    assert model.doc_string == "small Seen: cats."
    for name in ("small.onnx", "small.pt2", "small.json", "small.py"):
        assert str(Path(formats.__file__).parents[2]).encode() not in (written / name).read_bytes()


@pytest.mark.parametrize("name", ["program", "onnx", "state", "json"])
def test_the_check_finds_other_weights(name: str, small: Architecture, tmp_path: Path) -> None:
    """The file is right, the module that it is compared with is another: one bias differs."""
    module = trained(small)
    draft = WRITERS[name](Network(small, module, trained=True), tmp_path, "small")
    if name == "json":  # it has no weights of its own: the network must differ
        text = draft.files[0].read_text()
        draft.files[0].write_text(re.sub(r'"activation": "\w+"', '"activation": "tanh"', text))
        save(module, draft.case.weights)
    changed = draft.case._replace(output=draft.case.output + (0 if name == "json" else 0.01))
    with pytest.raises(ExportError, match="computes something else") as caught:
        check_many([changed])
    assert "\n" not in str(caught.value)


def test_a_batch_that_is_baked_in_is_found(small: Architecture, tmp_path: Path) -> None:
    module, file = trained(small), tmp_path / "fixed.pt2"
    draft = WRITERS["program"](Network(small, module, trained=True), tmp_path, "right")
    torch.export.save(torch.export.export(module, draft.case.inputs), file)
    with pytest.raises(ExportError, match=r"fixed\.pt2: .*"):
        check_many([draft.case._replace(file=file)])


def test_without_weights(small: Architecture, tmp_path: Path) -> None:
    found = export(small, None, tmp_path, "small", (), ["source", "program", "json"])
    assert not any(each.trained for each in found)
    assert {path.name for path in tmp_path.iterdir()} == {"small.py", "small.pt2", "small.json"}
    initial = small.module(seed=0).eval().state_dict()
    kept = torch.export.load(tmp_path / "small.pt2").state_dict
    assert all(torch.equal(value, initial[name]) for name, value in kept.items())


def test_what_cannot_be_written_is_one_line(
    small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="--format: 'tf' is not one of source, state, onnx, program, json"):
        export(small, None, tmp_path, "small", (), ["source", "tf"])
    with pytest.raises(ExportError, match="--format state writes trained weights, and there are none"):
        export(small, None, tmp_path, "small", (), ["source", "state"])
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(ExportError, match=r"needs onnxruntime: pip install 'nas\[onnx\]'"):
        export(small, None, tmp_path, "small", (), ["onnx"])
    branching = Architecture(b.Chain(a=b.Wrap(Branching), head=b.Head(2)), (3, 8, 8), 2)
    with pytest.raises(ExportError, match=r"cannot be traced by torch\.export") as caught:
        export(branching, None, tmp_path, "small", (), ["program"])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """What it does depends on the image: no tracer can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if not x.is_meta and x.sum() > 0 else x + 0


def test_a_file_that_is_no_network(tmp_path: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "w.safetensors")
    with pytest.raises(ExportError, match="does not say of which network"):
        read_network(tmp_path / "w.safetensors")
    save(nn.Linear(2, 2), tmp_path / "x.safetensors", facts={"network": "{"})
    with pytest.raises(ExportError, match="is no JSON"):
        read_network(tmp_path / "x.safetensors")


def test_reading_imports_nothing_that_a_file_names(written: Path) -> None:
    """A safetensors file and JSON are data: `torch.load` and pickle have no part in reading them."""
    code = (
        "import pickle, torch, sys; from nas.export import read_network\n"
        "def no(*a, **k): raise SystemExit('unpickled')\n"
        "torch.load = pickle.load = pickle.loads = pickle.Unpickler = no\n"
        "print(sum(p.numel() for p in read_network(sys.argv[1]).parameters()))"
    )
    command = [sys.executable, "-c", code, str(written / "small.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


@pytest.mark.parametrize("name", ["lecture"])
def test_random_architectures_in_all_formats(name: str, tmp_path: Path) -> None:
    """One of each space; benchmarks/export.py checks fifty, and the zoo."""
    space = getattr(import_module(f"nas.search_spaces.{name}"), name)((3, 32, 32), 10)
    architecture = space.architecture(space.sample(np.random.default_rng(1)))
    found = export(architecture, trained(architecture).state_dict(), tmp_path, "net", (), ["onnx", "program", "json"])
    assert len(found) == 3


def test_parts_of_a_kind_that_read_different_numbers_of_values(tmp_path: Path) -> None:
    """In this cell `node3` sums two values in one place and three in another: they are two classes."""
    space = import_module("nas.search_spaces.nasbench201").nasbench201((3, 32, 32), 10)
    cell = {"node1.from0": "nor_conv_1x1", "node2.from0": "none", "node2.from1": "none",
            "node3.from0": "nor_conv_1x1", "node3.from1": "skip_connect", "node3.from2": "nor_conv_3x3"}  # fmt: skip
    (found,) = export(space.architecture(cell), None, tmp_path, "net")
    assert found.difference <= TOLERANCES["source"]

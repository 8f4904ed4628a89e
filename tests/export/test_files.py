"""Weights as safetensors, and exported files that prove themselves in an interpreter without this package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nas import blocks as b
from nas.architecture import Architecture
from nas.errors import ExportError
from nas.export.check import TOLERANCE, Case, case, check_many, vary
from nas.export.files import export
from nas.export.source import compose
from nas.export.weights import load, read, save


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- weights -----------------------------------------------------------------------------------------------------------


def make(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def test_weights_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    ours = make().to(memory_format=torch.channels_last)
    save(ours, path, key="abc")
    theirs = make()
    load(path, theirs, key="abc")
    assert all(torch.equal(a, c) for a, c in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert read(path)[1] == "abc"
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"nas": "1", "architecture": "abc"}


def test_tied_weights_are_saved_under_every_name(tmp_path: Path) -> None:
    layer = nn.Linear(3, 3)
    save(nn.Sequential(layer, layer), tmp_path / "w")
    assert torch.equal(read(tmp_path / "w")[0]["1.weight"], layer.weight)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w"
    save(make(), path)
    before = path.read_bytes()
    with pytest.raises(ExportError, match="state 'x' is int"):
        save({"x": 3}, path)  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w"]


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "w", make(5)
    save(make(), path, key="abc")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    newer, broken = tmp_path / "newer", tmp_path / "broken"
    save_file({"a": torch.zeros(1)}, newer, {"nas": "2"})
    broken.write_bytes(path.read_bytes()[:-8])
    for file, key, network, message in [
        (path, "", target, r"'0.weight' has the shape \[4, 3, 3, 3\], the network expects \[5, 3, 3, 3\]"),
        (path, "", nn.Sequential(*make(), nn.Linear(2, 2)), "lacks '2.weight': 7 tensors for a network of 9"),
        (path, "", nn.Conv2d(3, 4, 3), "lacks 'weight'"),
        (path, "", nn.Sequential(make()[0]), "has '1.bias'"),
        (path, "xyz", make(), "weights of architecture abc, not of xyz"),
        (newer, "", target, "format 2, newer than 1"),
        (tmp_path / "no", "", target, "no weights file"),
        (broken, "", target, "not a readable safetensors file"),
        (Path(__file__), "", target, "not a readable safetensors file"),
        (tmp_path, "", target, "not a readable safetensors file"),
    ]:
        with pytest.raises(ExportError, match=message) as caught:
            load(file, network, key=key)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def architecture() -> Architecture:
    chain = b.Chain(stem=b.Conv(8), block=b.InvertedResidual(8, se=b.SqueezeExcite(), drop_path=0.1), head=b.Head(3))
    return Architecture(chain, (3, 12, 12), 3, "small")


def test_export_writes_two_files(architecture: Architecture, tmp_path: Path) -> None:
    trained = architecture.module(seed=1)
    (exported,) = export(architecture, trained.state_dict(), tmp_path / "out", "small")
    assert exported.trained
    assert exported.difference <= TOLERANCE
    assert [path.name for path in exported.files] == ["small.py", "small.safetensors"]
    tensors, key = read(exported.files[1])
    assert key == architecture.key()
    assert all(torch.equal(tensors[name], value) for name, value in trained.state_dict().items())
    assert exported.to_json()["files"] == [str(path) for path in exported.files]


def test_export_without_weights_writes_no_weights(architecture: Architecture, tmp_path: Path) -> None:
    (exported,) = export(architecture, None, tmp_path, "small")
    assert not exported.trained
    assert [path.name for path in tmp_path.iterdir()] == ["small.py"]


def test_export_refuses_other_weights_and_writes_nothing(architecture: Architecture, tmp_path: Path) -> None:
    state = architecture.module().state_dict()
    state.pop("stem.conv.weight")
    with pytest.raises(ExportError, match=r"the given state lacks 'stem\.conv\.weight'"):
        export(architecture, state, tmp_path, "small")
    with pytest.raises(ExportError, match="is no name for a file"):
        export(architecture, None, tmp_path, "../small")
    assert list(tmp_path.iterdir()) == []


def test_diverged_weights_are_said_to_be_so(architecture: Architecture, tmp_path: Path) -> None:
    state = architecture.module(seed=1).state_dict()
    state["head.classifier.bias"][0] = torch.nan
    with pytest.raises(ExportError, match="not finite"):
        export(architecture, state, tmp_path, "small")


def written(architecture: Architecture, folder: Path, change: tuple[str, str] = ("", "")) -> Case:
    """A file to check, with a mistake in it."""
    network = architecture.module(seed=0)
    vary(network)
    made = compose(architecture, name="small")
    assert change[0] in made.text
    script, weights = folder / "small.py", folder / "small.safetensors"
    script.write_text(made.text.replace(*change))
    save(network, weights)
    return case(script, weights, network, [architecture.input_shape], foreign=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return x + y", "return x - y"), "computes something else"),
        (("self.act(self.norm(self.conv(x)))", "self.norm(self.act(self.conv(x)))"), "computes something else"),
        (("import torch\n", "import torch\nimport nas.ops\n"), "No module named 'nas.ops'"),
        (("import torch\n", "import torch\nimport toys\n"), "No module named 'toys'"),
        (("kernel_size // 2", "kernel_size"), "returns the shape|RuntimeError|computes something else"),
        (("self.head", "self.tail"), "RuntimeError: Error.s. in loading state_dict"),
    ],
)
def test_the_check_finds_mistakes(
    architecture: Architecture, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        check_many([written(architecture, tmp_path, change)])
    assert "small.py" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_keeps_its_mode(architecture: Architecture, tmp_path: Path) -> None:
    network = architecture.module(seed=0).train()
    case(tmp_path / "a", tmp_path / "b", network, [architecture.input_shape], foreign=False)
    assert network.training


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_files_with_a_users_module_are_checked_too(tmp_path: Path) -> None:
    chain = b.Chain(scale=b.Wrap(Scale, (("width", 3),)), head=b.Head(2))
    (exported,) = export(Architecture(chain, (3, 8, 8), 2), None, tmp_path, "scaled")
    assert f"import {__name__}\n" in exported.files[0].read_text()


@pytest.mark.parametrize("name", ["mobile", "lecture", "nasbench_macro", "nasbench201", "darts"])
def test_random_architectures_in_a_fresh_interpreter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten of each space; benchmarks/export.py checks a hundred."""
    monkeypatch.chdir(tmp_path)  # nothing depends on where it is started
    space = getattr(import_module(f"nas.search_spaces.{name}"), name)((3, 32, 32), 10)
    rng = np.random.default_rng(0)
    cases = []
    for i in range(10):
        architecture = space.architecture(space.sample(rng))
        made, network = compose(architecture, name=f"net{i}"), architecture.module(seed=i)
        script, weights = tmp_path / f"net{i}.py", tmp_path / f"net{i}.safetensors"
        script.write_text(made.text)
        vary(network)
        save(network, weights)
        cases.append(case(script, weights, network, [architecture.input_shape], foreign=False))
    assert max(check_many(cases)) <= TOLERANCE

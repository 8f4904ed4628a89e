from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from trainings import RECIPE, run

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head
from nas.errors import ConfigError, ExportError
from nas.export.weights import save
from nas.torch.transfer import Layers, take_over


def architecture(classes: int = 4) -> Architecture:
    return Architecture(Chain(stem=Conv(8), stage1=Conv(8), stage2=Conv(12), head=Head(classes)), (1, 8, 8), classes)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save(architecture(7).module(seed=9), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def moved(module: nn.Module, **options: object) -> set[str]:
    """Children whose parameters or statistics change in a training."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    run(module, RECIPE, **options)
    return {name.split(".")[0] for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_other_classes_get_a_new_head_and_all_else_is_old(weights: Path) -> None:
    module, source = architecture().module(seed=0), architecture(7).module(seed=9).state_dict()
    head = dict(module.named_parameters())["head.classifier.weight"].clone()
    old = take_over(module, weights)
    new = {name for name, _ in module.named_parameters()} - old
    assert new == {"head.classifier.weight", "head.classifier.bias"}
    state = module.state_dict()
    assert torch.equal(state["head.classifier.weight"], head)
    assert all(torch.equal(state[name], source[name]) for name in old)


def test_another_network_is_refused(weights: Path) -> None:
    other = Architecture(Chain(stem=Conv(16), stage1=Conv(8), stage2=Conv(12), head=Head(4)), (1, 8, 8), 4)
    with pytest.raises(ExportError, match=r"'stem\.conv\.weight' has the shape"):
        take_over(other.module(seed=0), weights)


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("none", {"stem", "stage1", "stage2", "head"}),
        ("all", {"head"}),
        ("stem,stage1", {"stage2", "head"}),
        ("gradual", {"stage1", "stage2", "head"}),  # three epochs
        ("gradual:2", {"stage2", "head"}),
    ],
)
def test_frozen_stages_keep_weights_and_statistics(weights: Path, freeze: str, expected: set[str]) -> None:
    module = architecture().module(seed=0)
    layers = Layers(module, take_over(module, weights), freeze)
    assert moved(module, layers=layers) == expected


def test_feature_extraction_of_the_same_classes_trains_the_classifier(tmp_path: Path) -> None:
    save(architecture().module(seed=9), tmp_path / "w.safetensors")
    module = architecture().module(seed=0)
    old = take_over(module, tmp_path / "w.safetensors")
    assert moved(module, layers=Layers(module, old, "all")) == {"head"}


def test_old_layers_move_by_their_share(weights: Path) -> None:
    steps = []
    for rate in (1.0, 0.01):
        module = architecture().module(seed=0)
        layers = Layers(module, take_over(module, weights), old_rate=rate)
        before = dict(module.named_parameters())["stem.conv.weight"].detach().clone()
        run(module, RECIPE, layers=layers)
        steps.append(float((dict(module.named_parameters())["stem.conv.weight"].detach() - before).norm()))
    assert steps[1] < 0.05 * steps[0]


@pytest.mark.parametrize("freeze", ["gradual", "stem"])
def test_continued_equals_uninterrupted(weights: Path, tmp_path: Path, freeze: str) -> None:
    results = []
    for stops in ((3,), (1, 2, 3)):
        for stop in stops:
            module = architecture().module(seed=0)
            layers = Layers(module, take_over(module, weights), freeze, 0.1)
            run(module, RECIPE, layers=layers, checkpoint=tmp_path / f"{len(stops)}", epochs=stop)
        results.append(module.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_what_cannot_be_frozen_is_said(weights: Path) -> None:
    module = architecture().module(seed=0)
    old = take_over(module, weights)
    with pytest.raises(ConfigError, match="there is no stage 'tail', only stem, stage1, stage2, head"):
        Layers(module, old, "stem,tail")
    with pytest.raises(ConfigError, match="random weights"):
        Layers(module, frozenset(), "all")
    with pytest.raises(ConfigError, match="old-rate"):
        Layers(module, old, "none", 0.0)

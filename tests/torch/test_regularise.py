from __future__ import annotations

import pytest
import torch

from nas import ops
from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, Residual
from nas.choices import Repeat
from nas.plugins import reference
from nas.torch.regularise import module_to_train, regularise


def residual(times: int = 3) -> Architecture:
    body = Chain(stem=Conv(8), stage=Repeat(Residual(width=8), times), wider=Residual(width=16, stride=2), head=Head(4))
    return Architecture(body, (1, 8, 8), 4)


def rates(architecture: Architecture, rate: float) -> dict[str, float]:
    graph = regularise(architecture.graph(), drop_path=rate)
    graph.verify()
    return {node.name: node.op.rate for node in graph.nodes if isinstance(node.op, ops.DropPath)}


def test_every_residual_branch_is_dropped_at_a_rate_that_grows() -> None:
    found = rates(residual(), 0.4)
    assert len(found) == 4  # the projected one too
    assert list(found.values()) == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_it_is_the_branch_and_not_the_shortcut() -> None:
    graph = regularise(residual(1).graph(), drop_path=0.5)
    (first, *_) = [node for node in graph.nodes if isinstance(node.op, ops.DropPath)]
    dropped = graph.nodes[first.inputs[0]]
    assert dropped.name.startswith("stage.0")
    assert not dropped.name.startswith("stem")


@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "mobilenet_v2", "nin_cifar", "fractalnet20_cifar", "darts_v2_cifar"]
)
def test_the_zoo_keeps_its_keys_and_what_it_computes(name: str) -> None:
    architecture = reference(name).fitted((3, 32, 32), 5)
    plain = architecture.module(seed=3).eval()
    trained = module_to_train(architecture, seed=3, dropout=0.3, drop_path=0.3).eval()
    assert list(plain.state_dict()) == list(trained.state_dict())
    x = torch.randn(2, *architecture.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain(x), trained(x))


def test_dropped_branches_leave_the_shortcut() -> None:
    module = module_to_train(residual(1), seed=0, drop_path=0.999).train()
    plain = residual(1).module(seed=0).train()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.allclose(module(x), plain(x))


def test_dropout_stands_before_the_classifier_once() -> None:
    graph = regularise(residual().graph(), dropout=0.3)
    at = next(i for i, node in enumerate(graph.nodes) if isinstance(node.op, ops.Dropout))
    (reader,) = [node for node in graph.nodes if at in node.inputs]
    assert isinstance(reader.op, ops.Linear)
    own = regularise(reference("mobilenet_v2").graph(), dropout=0.3)
    assert [node.op.rate for node in own.nodes if isinstance(node.op, ops.Dropout)] == [0.2]

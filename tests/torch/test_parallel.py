"""Shares of a batch; what processes do together: `nas train --workers 2` in tests/test_train_command.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from trainings import batches, images

from nas.errors import ConfigError
from nas.torch.loader import Augment
from nas.torch.parallel import joined, synchronised


def test_shards_are_the_batch() -> None:
    whole = list(batches(images(64), 16, augment=Augment(1, True)).epoch(1))
    parts = [list(batches(images(64), 16, augment=Augment(1, True), shard=(rank, 2)).epoch(1)) for rank in (0, 1)]
    for (x, y), (a, b), (c, d) in zip(whole, *parts, strict=True):
        assert torch.equal(x, torch.cat([a, c]))
        assert torch.equal(y, torch.cat([b, d]))
    held = [list(batches(images(40), 8, shard=(rank, 2)).epoch()) for rank in (0, 1)]
    assert [len(part) for part in held] == [3, 2]
    with pytest.raises(ConfigError, match="cannot be shared by 3 workers"):
        batches(images(64), 16, augment=Augment(1, True), shard=(0, 3))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_synchronised_norms_are_pytorchs(
    kind: type[nn.BatchNorm1d | nn.BatchNorm2d], options: dict[str, object], precision: torch.dtype, tmp_path: Path
) -> None:
    """Of one process, where they must be the same; two are compared in tests/test_train_command.py."""
    device = torch.device("cpu")
    one, other = kind(5, **options), kind(5, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, *([] if kind is nn.BatchNorm1d else [3, 3]), generator=generator).to(precision)
    with joined(0, 1, f"file://{tmp_path}/meeting", device):
        synchronised(other, device)
        results = []
        for layer in (one, other):
            read = x.clone().requires_grad_()
            for _ in range(2):
                y = layer(read)
            assert y.dtype == precision
            (slope,) = torch.autograd.grad((y * y * x).sum(), read)
            results.append((y, slope, layer.running_mean, layer.running_var, layer.eval()(x)))
    near = 1e-5 if precision is torch.float32 else 0.1
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert not isinstance(a, Tensor) or torch.allclose(a.float(), b.float(), atol=near)
    assert one.state_dict().keys() == other.state_dict().keys()

"""Shares of a batch; what processes do together: `nas train --workers 2` in tests/test_train_command.py."""

from __future__ import annotations

import pytest
import torch
from trainings import batches, images

from nas.errors import ConfigError
from nas.torch.loader import Augment


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

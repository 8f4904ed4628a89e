"""Two processes train what one does, on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainings import RECIPE, batches, images, network, run

from nas.errors import ConfigError
from nas.torch.loader import Augment

SCRIPT = """
import sys
from pathlib import Path
import torch
from trainings import RECIPE, batches, images, network, run
from nas.torch.loader import Augment
from nas.torch.parallel import joined, synchronised

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
cpu = torch.device("cpu")
with joined(rank, 2, f"file://{folder}/meeting", cpu) as group:
    shard = rank, 2
    module = synchronised(network(dropout=0), cpu)
    metrics, _ = run(
        module, RECIPE, group=group, checkpoint=folder / "c", epochs=3,
        train=batches(images(64), augment=Augment(1, True), shard=shard),
        validation=batches(images(40, seed=1), 8, shard=shard),
    )
torch.save({"metrics": metrics, "module": module.state_dict()}, folder / f"{rank}.pt")
"""


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    path = [str(Path(__file__).parents[1]), *sys.path]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{SCRIPT}", str(tmp_path)]
    both = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    metrics, module = run(
        network(dropout=0), RECIPE, train=batches(images(64), augment=Augment(1, True)),
        validation=batches(images(40, seed=1), 8),
    )  # fmt: skip
    assert found[0]["metrics"] == found[1]["metrics"] == pytest.approx(metrics, rel=1e-4)
    start, one = (torch.nn.utils.parameters_to_vector(m.parameters()) for m in (network(dropout=0), module))
    start, one = start.detach(), one.detach()
    for name, value in found[0]["module"].items():
        assert torch.equal(value, found[1]["module"][name]), name
        assert torch.allclose(value, module.state_dict()[name], atol=1e-4), name
    two = torch.cat([found[0]["module"][name].flatten() for name, _ in module.named_parameters()])
    assert float((two - one).norm()) < 1e-3 * float((one - start).norm())


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

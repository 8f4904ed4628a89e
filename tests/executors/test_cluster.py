"""Several nodes on one machine, with pretended GPUs."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nas.strategies.random import Random
from toys import Looks

from nas.errors import ConfigError
from nas.evaluator import Evaluator, Task
from nas.executors.base import OnReport
from nas.executors.cluster import Cluster
from nas.executors.ray import Pool
from nas.search import Plan, Search
from nas.store import Run
from nas.testing import ACCURACY, FLOPS, toy_space

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TASK = Task(None, (3, 16, 16), 10)


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head without room for workers; nodes are added by the tests."""
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


def search(folder: Path, nodes: Any, evaluator: Evaluator, trials: int, **wanted: Any) -> Search:
    space, objectives = toy_space(), (ACCURACY, FLOPS)

    def pool(on_report: OnReport) -> Pool:
        cluster = Cluster(address=nodes.address, **wanted)
        return Pool(cluster, evaluator, TASK, device="cpu", threads=0, on_report=on_report)

    plan = Plan(objectives, trials=trials)
    made = Search(Run.create(folder, {}), space, Random(space, objectives), evaluator, plan, pool)
    made.prepare(TASK, device="cpu")
    return made


def test_fractions_of_gpus_hold_as_many_workers_as_asked(tmp_path: Path, nodes: Any) -> None:
    nodes.add_node(num_cpus=2, num_gpus=2)
    made = search(tmp_path / "run", nodes, Looks(delay=0.1), 16, workers=4, cpus=0.5, gpus=0.5)
    made.run()
    seen = {(t.metrics["pid"], t.metrics["gpu"]) for t in made.store.trials if t.evaluated}
    assert len({pid for pid, _ in seen}) == len(seen) == 4, "a worker sees one GPU, and always the same"
    assert Counter(gpu for _, gpu in seen) == {0: 2, 1: 2}


def test_workers_join_and_leave_with_their_nodes(tmp_path: Path, nodes: Any) -> None:
    first = nodes.add_node(num_cpus=1)
    made = search(tmp_path / "run", nodes, Looks(delay=0.15), 40, workers=2, cpus=1)
    nodes.add_node(num_cpus=1)  # as an autoscaler does when workers wait for room

    def lose() -> None:
        while len({t.metrics["pid"] for t in made.store.trials if t.evaluated}) < 2:
            time.sleep(0.05)
        nodes.remove_node(first, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    made.run()
    thread.join()
    trials = [t for t in made.store.trials if t.evaluated]
    assert len(trials) == 40
    assert {t.state for t in trials} == {"ok"}
    counts = Counter(t.worker for t in trials)
    assert len(counts) == 2
    last = [t.worker for t in trials[-5:]]
    assert len(set(last)) == 1, "all that came last is from the node that was left"
    assert not made.store.retries, "the loss of a node is no fault of a trial"


def test_a_cluster_that_is_too_small_is_waited_for(tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is 1 x \(0 CPU, 0 GPU\).* with --wait"):
        search(tmp_path / "no", nodes, Looks(), 2, workers=1, cpus=1)
    look = Cluster.places

    def grow(self: Cluster) -> int:
        found = look(self)
        if not found:
            nodes.add_node(num_cpus=1)
        return found

    monkeypatch.setattr(Cluster, "places", grow)
    made = search(tmp_path / "yes", nodes, Looks(), 2, workers=1, cpus=1, patience=60)
    made.run()
    assert made.evaluated == 2


def gpus_in_sight() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_the_long_job_gets_the_gpus_that_it_asks_for(nodes: Any) -> None:
    nodes.add_node(num_cpus=2, num_gpus=2)
    cluster = Cluster(address=nodes.address, workers=1, cpus=1)
    pool = Pool(cluster, Looks(), TASK, device="cpu", threads=0, on_report=lambda *_: None)
    seen = [pool.run_once(gpus_in_sight, {"GPU": gpus}).result() for gpus in (2, 1, 0)]
    pool.close()
    assert [len(text.split(",")) if text else 0 for text in seen] == [2, 1, 0]

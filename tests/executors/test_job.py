"""How a search and a user's own code get to a cluster: `ray job submit`, nodes that do not see the user's folder."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from nas.executors.cluster import scratch
from nas.store import Run

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

BIN = Path(sys.executable).parent
WHERE = """
def here():
    return __file__
"""
EVALUATOR = """
from nas.evaluator import Evaluator
from nas.trial import Metric

from {where} import here

class Mine(Evaluator):
    metrics, needs_data = (Metric("accuracy"),), False

    def __init__(self, *, told=""):
        self.told = told

    def open(self, task, *, device, threads):
        pass

    def evaluate(self, arch, *, seed, budget, workdir, report):
        with open(self.told, "a") as file:
            print(__file__, here(), sep="\\n", file=file)
        return {{"accuracy": 1 / (1 + seed)}}
"""
STRATEGY = """
from nas.strategies.random import Random

class Mine(Random):
    pass
"""


def own_code(folder: Path) -> None:
    """A user's modules: one alone, and folders that are called as ours are."""
    folder.mkdir()
    (folder / "where.py").write_text(WHERE)
    (folder / "mine.py").write_text(EVALUATOR.format(where="where"))
    for name, text in (("strategies", STRATEGY), ("evaluators", EVALUATOR.format(where=".where"))):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
        (folder / name / "mine.py").write_text(text)
    (folder / "evaluators" / "where.py").write_text(WHERE)


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def marked(mark: str) -> list[int]:
    """Processes of ours that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"NAS_TEST={mark}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.fixture
def head() -> Iterator[tuple[str, Mapping[str, str]]]:
    """The job server of a head node of our own, and the environment in which to talk to it."""
    if find_spec("aiohttp_cors") is None:
        pytest.skip("the job server needs ray[default]")
    folder, mark, server = scratch(), secrets.token_hex(8), port()
    env = {
        **os.environ, "NAS_TEST": mark, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # fmt: skip
    env.pop("RAY_ADDRESS", None)
    ports = {"port": port(), "dashboard-port": server, "dashboard-agent-listen-port": port(),
             "ray-client-server-port": port()}  # fmt: skip
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={folder}"]
    command += [f"--{name}={number}" for name, number in ports.items()]
    log = folder / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=file, start_new_session=True)
    try:
        while "runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{server}", env
    finally:
        for _ in range(100):
            for pid in (left := marked(mark)):
                os.kill(pid, signal.SIGKILL)
            if not left:
                break
            time.sleep(0.1)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_searches_with_the_users_own_plug_ins(
    tmp_path: Path, head: tuple[str, Mapping[str, str]]
) -> None:
    address, env = head
    own_code(tmp_path / "app")
    run, told = tmp_path / "run", tmp_path / "told"
    search = [
        "search", "--space=lecture", "--evaluator=mine:Mine", "--strategy=strategies.mine:Mine", "--trials=6",
        "--address=auto", "--workers=2", "--cpus-per-trial=0.5", f"--out={run}", f"--set=evaluator.told={told}",
    ]  # fmt: skip
    submit = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", tmp_path / "app", "--", BIN / "nas"]
    for _ in range(30):  # the server is up before what runs its jobs
        done = subprocess.run([*submit, *search], env=env, cwd=tmp_path, capture_output=True, text=True)
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "6 ok" in done.stdout
    trials = [trial for trial in Run.open(run).trials if trial.evaluated]
    assert [trial.state for trial in trials] == ["ok"] * 6
    assert len(json.loads((run / "front.json").read_text())["front"]) >= 1
    assert (run / "front.png").exists()
    files = set(told.read_text().split())
    assert {Path(file).name for file in files} == {"mine.py", "where.py"}
    assert not [file for file in files if Path(file).is_relative_to(tmp_path)], "it was not shipped"


DRIVER = """
import os, sys
from pathlib import Path
from nas.config import Config
from nas.executors import ray
from nas.session import start

folder, address, evaluator, out, told = sys.argv[1:]
os.chdir(folder)
hire = ray.Pool._hire

def leave(pool, *arguments):  # connected, code sent: now the folder is out of the workers' sight
    if Path(folder).exists():
        os.chdir("/")
        Path(folder).rename(folder + "-elsewhere")
    hire(pool, *arguments)

ray.Pool._hire = leave
options = {"evaluator": {"told": told}}
search = start(Config(space="lecture", evaluator=evaluator, strategy="strategies.mine:Mine", trials=4, workers=2,
                      address=address, out=out, options=options))
search.run()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes; one has room for workers."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes.add_node(num_cpus=2)
    yield nodes.address
    nodes.shutdown()


@pytest.mark.parametrize("module", ["mine", "evaluators.mine"])
def test_a_plug_in_reaches_workers_that_do_not_see_its_folder(tmp_path: Path, address: str, module: str) -> None:
    app, run, told = tmp_path / "app", tmp_path / "run", tmp_path / "told"
    own_code(app)
    arguments = [sys.executable, "-c", DRIVER, app, address, f"{module}:Mine", run, told]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not app.exists()
    trials = [trial for trial in Run.open(run).trials if trial.evaluated]
    assert [trial.state for trial in trials] == ["ok"] * 4
    parts = {tuple(Path(file).parts) for file in told.read_text().split()}
    assert {part[-1] for part in parts} == {"mine.py", "where.py"}
    assert all("runtime_resources" in part for part in parts), "found elsewhere than among Ray's own files"

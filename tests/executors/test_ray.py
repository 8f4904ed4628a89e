"""The Ray pool: every fault is caused, to real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from nas.evaluators.supernet import Supernet
from nas.evaluators.train import Train
from nas.strategies.random import Random
from toys import Accident, Looks, Toy

from nas.architecture import Architecture
from nas.errors import ConfigError, PluginError, RunError
from nas.evaluator import Evaluator, Report, Task
from nas.executors.base import OnReport
from nas.executors.cluster import Cluster, cores, prune
from nas.executors.ray import Pool
from nas.export.weights import read
from nas.plugins import make_space
from nas.preparation import Preparation
from nas.search import Plan, Search
from nas.store import Run
from nas.testing import ACCURACY, FLOPS, toy_metrics, toy_space
from nas.torch.supernet.saved import FILE, PLACE
from nas.trial import Trial

ray = pytest.importorskip("ray", reason="Ray is not installed")

# Ray's own code leaves sockets and files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

TASK = Task(None, (3, 16, 16), 10)
WORKERS = min(2, cores())


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    """One Ray for all tests of this file."""
    cluster = Cluster(workers=WORKERS)
    cluster.open()
    yield
    cluster.close()


def make(folder: Path, evaluator: Evaluator, *, workers: int = WORKERS, **plan: object) -> Search:
    settings = Plan(**{"objectives": (ACCURACY, FLOPS), "trials": 8, **plan})  # type: ignore[arg-type]
    run = Run.open(folder, write=True) if (folder / "run.json").exists() else Run.create(folder, {})
    space = toy_space()

    def pool(on_report: OnReport) -> Pool:
        return Pool(Cluster(workers=workers), evaluator, TASK, device="cpu", threads=0, on_report=on_report)

    search = Search(run, space, Random(space, settings.objectives), evaluator, settings, pool)
    try:
        search.prepare(TASK, device="cpu")
    except BaseException:
        run.close()
        raise
    return search


def finish(folder: Path, evaluator: Evaluator, **plan: object) -> dict[int, Trial]:
    """Run a search to its end; its trials by number, each there once."""
    search = make(folder, evaluator, **plan)
    search.run()
    trials = Run.open(folder).trials
    assert sum(trial.evaluated for trial in trials) == search.plan.trials
    assert sorted(trial.number for trial in trials) == list(range(len(trials)))
    return {trial.number: trial for trial in trials}


def retries(folder: Path) -> int:
    return (folder / "trials.jsonl").read_text().count('"event":"retry"')


def test_what_the_workers_find_is_what_one_process_finds(tmp_path: Path) -> None:
    slow = Toy(delay=0.2)  # so that a worker that opens late finds something to do
    trials = [trial for trial in finish(tmp_path / "run", slow, trials=12).values() if trial.evaluated]
    space = toy_space()
    for trial in trials:
        expected = toy_metrics(space.architecture(trial.genotype))
        assert trial.metrics == {**expected, "accuracy": expected["accuracy"] + trial.seed % 1000 / 1e6}
    curves = Run.open(tmp_path / "run").curves
    assert all([epoch for epoch, _ in curves[trial.number]] == [1, 2, 3] for trial in trials)
    assert len({trial.worker for trial in trials}) == WORKERS


def test_threads_are_the_cpus_of_a_worker_and_gpus_are_out_of_sight(tmp_path: Path) -> None:
    trials = [t for t in finish(tmp_path / "run", Looks()).values() if t.evaluated]
    assert {t.metrics["threads"] for t in trials} == {max(1, cores() // WORKERS)}
    assert {t.metrics["gpu"] for t in trials} == {-1}


@pytest.mark.parametrize("fault", ["kill", "segfault"])
def test_a_worker_that_dies_is_replaced_and_its_job_tried_again(tmp_path: Path, fault: str) -> None:
    trials = finish(tmp_path / "run", Accident(fault=fault, on="1", times=2))
    assert {trial.state for trial in trials.values() if trial.evaluated} == {"ok"}
    assert retries(tmp_path / "run") == 2


def test_a_job_that_kills_three_workers_has_failed(tmp_path: Path) -> None:
    trials = finish(tmp_path / "run", Accident(fault="kill", on="2", times=99, delay=0.01))
    assert trials[2].state == "failed"
    assert re.search(r"worker \S+:\d+ died: the process was killed, or crashed.* \(3 times\)", trials[2].error or "")
    assert all(trial.state == "ok" for number, trial in trials.items() if number != 2 and trial.evaluated)
    assert retries(tmp_path / "run") == 2
    assert len((tmp_path / "run/accidents-2").read_text()) == 3


def test_an_evaluation_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.executors.ray.GRACE", 0.5)
    trials = finish(tmp_path / "run", Accident(fault="hang", on="0", times=99), trial_timeout=2.0)
    assert trials[0].state == "timed_out"
    assert "time limit of 2 s" in (trials[0].error or "")
    assert all(trial.state == "ok" for number, trial in trials.items() if number and trial.evaluated)


def test_a_full_disk_ends_the_search_with_its_journal_intact(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    evaluator = Accident(fault="full", on="3", times=1)
    with pytest.raises(OSError, match="No space left"):
        make(folder, evaluator).run()
    told = {trial.number for trial in Run.open(folder).trials}
    assert 3 not in told
    trials = finish(folder, evaluator)  # somebody made room
    assert trials[3].state == "ok"
    assert told <= trials.keys()


class Shut(Toy):
    """Does not open."""

    def open(self, task: Task, *, device: str, threads: int) -> None:
        raise ValueError("the data\nare gone")


def test_an_evaluator_that_does_not_open_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="Shut failed: ValueError: the data are gone") as caught:
        make(tmp_path / "run", Shut(), workers=1)
    assert "\n" not in str(caught.value)


def test_impossible_resources_are_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match=r"no machine here can hold a worker with 1 CPU and 8 GPU: there is 1 x"):
        Cluster(workers=1, cpus=1, gpus=8).open()
    with pytest.raises(ConfigError, match=rf"use --workers={cores()}"):
        Cluster(workers=999, cpus=1).open()


def test_addresses_that_do_not_answer_are_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.executors import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address, message in (
        ("127.0.0.1:1", "nothing answers at 127.0.0.1:1"),
        ("nowhere", "expected auto or host:port"),
        ("ray://host:10001", "expected auto or host:port"),
    ):
        with pytest.raises(ConfigError, match=message):
            cluster._probe(address)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="nothing answers"):
        cluster._probe("auto")


def test_halving_waits_for_the_answer_at_rungs_only(tmp_path: Path) -> None:
    # One objective, of which a quarter goes on: with two the results may come in an order in which all do.
    trials = finish(tmp_path / "run", Toy(delay=0.005), trials=16, rungs=(1.0,), eta=4.0, objectives=(ACCURACY,))
    states = [trial.state for trial in trials.values() if trial.evaluated]
    assert set(states) == {"ok", "stopped"}
    run = Run.open(tmp_path / "run")
    for trial in trials.values():
        if trial.evaluated:
            assert len(run.curves[trial.number]) == (3 if trial.ok else 1)
            assert trial.budget == (3 if trial.ok else 1)
    assert {trial.number for trial in run.trials if trial.ok} >= {int(f.stem) for f in (run.path / "weights").iterdir()}


class Prepares(Looks):
    """Has a long job first."""

    prepared: object = None

    def prepare(self, task: Task, workdir: Path, *, seed: int, device: str, report: object) -> dict[str, object]:
        (workdir / "weights").write_text("trained")
        return {"file": str(workdir / "weights"), "pid": os.getpid()}

    def open(self, task: Task, *, device: str, threads: int) -> None:
        super().open(task, device=device, threads=threads)
        assert isinstance(self.prepared, dict)
        assert Path(self.prepared["file"]).read_text() == "trained"


def test_prepare_runs_on_a_worker_and_its_result_reaches_all(tmp_path: Path) -> None:
    evaluator = Prepares()
    finish(tmp_path / "run", evaluator, trials=3)
    assert isinstance(evaluator.prepared, dict)
    assert evaluator.prepared["pid"] != os.getpid()


class Maps(Toy):
    """Where the images are: in memory that all processes of the machine share, or a copy."""

    needs_data = True

    def open(self, task: Task, *, device: str, threads: int) -> None:
        super().open(task, device=device, threads=threads)
        address = task.load().train.images.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            if low <= address < high:
                if "/dev/shm" not in line and "plasma" not in line:
                    raise ValueError(f"a copy: {line}")
                return
        raise ValueError("nowhere")


def test_images_are_read_from_the_object_store_without_a_copy(tmp_path: Path) -> None:
    task = Task.of("digits")
    evaluator = Maps()
    pool = Pool(Cluster(workers=WORKERS), evaluator, task, device="cpu", threads=0, on_report=lambda *_: None)
    pool.start()
    pool.close()


class Cramped(Train):
    """On a device where no more than 20 images have room."""

    def open(self, task: Task, *, device: str, threads: int) -> None:
        import torch

        super().open(task, device=device, threads=threads)

        def check(module: object, inputs: tuple[torch.Tensor, ...]) -> None:
            if torch.is_grad_enabled() and len(inputs[0]) > 20:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

        torch.nn.modules.module.register_module_forward_pre_hook(check)


@pytest.mark.parametrize("shrink", [False, True])
def test_out_of_device_memory_is_a_state_or_a_smaller_batch(tmp_path: Path, shrink: bool) -> None:
    task = Task.of("digits", limit=200)
    space = make_space("mobile", task.input_shape, task.classes, {})
    evaluator = Cramped(epochs=1, batch=64, shrink=shrink)
    plan = Plan((ACCURACY, FLOPS), trials=2)

    def pool(on_report: OnReport) -> Pool:
        return Pool(Cluster(workers=1), evaluator, task, device="cpu", threads=1, on_report=on_report)

    search = Search(Run.create(tmp_path / "run", {}), space, Random(space, plan.objectives), evaluator, plan, pool)
    search.prepare(task, device="cpu")
    search.run()
    trials = [trial for trial in search.store.trials if trial.evaluated]
    assert {trial.state for trial in trials} == {"ok" if shrink else "out_of_memory"}
    if shrink:
        assert {trial.metrics["batch"] for trial in trials} == {16}
    else:
        assert all("a smaller network or batch needs less" in (trial.error or "") for trial in trials)


# -- whole processes -----------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    tests = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nas", *arguments]


def new(folder: Path, *more: str) -> list[str]:
    return command(
        "search", "--space=toys:toy_space", "--evaluator=toys:Toy", "--strategy=random", "--workers=2", "--trials=40",
        "--cpus-per-trial=0.5", f"--out={folder}", *more,
    )  # fmt: skip


def reported(folder: Path, times: int, process: subprocess.Popen[str]) -> None:
    """Wait until the journal has so many reports."""
    journal = folder / "trials.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_text().count('"report"') < times):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


def descendants(pid: int) -> dict[int, bytes]:
    """The command lines of all that has the mark of `pid` in its environment."""
    found: dict[int, bytes] = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and f"NAS_TEST={pid}".encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def test_a_killed_driver_leaves_nothing_running_and_is_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    mark = os.getpid()
    env = {**environment(), "NAS_TEST": str(mark)}
    process = subprocess.Popen(new(folder, "--set=evaluator.delay=0.1"), env=env, text=True, stdout=subprocess.PIPE)
    reported(folder, 6, process)
    assert len(descendants(mark)) > 3  # the driver, Ray's own processes, two workers
    process.kill()
    process.communicate()
    told = {trial.number for trial in Run.open(folder).trials}
    # Sometimes Ray's agents try to tell the dead driver of its end first, for a minute: all others go at once.
    agents = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
    for _ in range(600):
        left = descendants(mark)
        if all(line.startswith(agents) for line in left.values()):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"something is still running: {left}")
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    done = subprocess.run(command("resume", str(folder), "--trials=10"), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = Run.open(folder).trials
    assert told <= {trial.number for trial in trials}
    assert sum(trial.evaluated for trial in trials) == 10
    events = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    asked = [event["number"] for event in events if event["event"] == "asked"]
    assert len(asked) == len(set(asked)) == 10
    # Quiet: our own lines and nothing else, and what the killed one had left of Ray's files is gone.
    assert done.stderr == ""
    assert all(
        re.match(r"(run|workers|trial|front|next|flops|rank|proxy|params|depth|\d+ |\S+: \d+ ok)", line)
        for line in done.stdout.splitlines()
    )
    prune()
    assert not descendants(mark)


def test_ctrl_c_once_finishes_what_runs_and_twice_stops_now(tmp_path: Path) -> None:
    for presses, delay, code in ((1, 0.4, 0), (2, 2, 130)):
        folder = tmp_path / f"run{presses}"
        process = subprocess.Popen(
            new(folder, f"--set=evaluator.delay={delay}"), env=environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        reported(folder, 4, process)
        for _ in range(presses):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everybody
            time.sleep(0.3)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, (out, err)
        run = Run.open(folder)
        assert bool(run.asked) == (presses == 2)
        assert f"nas resume {folder}" in out.replace("\n", " ")
        assert all(trial.ok for trial in run.trials)


def test_a_worker_without_memory_is_killed_and_the_search_goes_on(tmp_path: Path) -> None:
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    used = 1 - memory["MemAvailable"] / memory["MemTotal"]
    threshold = used + 2e6 / memory["MemTotal"]
    if threshold > 0.9:
        pytest.skip("too little memory is free here to use up some of it")
    folder = tmp_path / "run"
    env = {**environment(), "RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    arguments = ["--set=evaluator.fault=memory", "--set=evaluator.on=1", "--set=evaluator.times=99", "--trials=4"]
    start = [a.replace("toys:Toy", "toys:Accident") for a in new(folder, *arguments)]
    done = subprocess.run(start, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, (done.stdout, done.stderr)
    trials = {trial.number: trial for trial in Run.open(folder).trials}
    assert trials[1].state in ("failed", "out_of_memory")
    assert "ran out of memory" in (trials[1].error or "")
    assert sum(trial.ok for trial in trials.values()) == 3


def test_a_run_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(new(Path("/proc/nowhere/run")), env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "choose one that can be written" in done.stderr


def test_modules_of_the_current_folder_hide_no_library(tmp_path: Path) -> None:
    (tmp_path / "networkx.py").write_text("raise RuntimeError('hidden')\n")
    for name in ("strategies", "evaluators"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('hidden')\n")
    (tmp_path / "mine.py").write_text(
        "from nas.evaluator import Evaluator\n"
        "from nas.trial import Metric\n"
        "class Mine(Evaluator):\n"
        "    metrics, needs_data = (Metric('accuracy'),), False\n"
        "    def open(self, task, *, device, threads): pass\n"
        "    def evaluate(self, arch, *, seed, budget, workdir, report):\n"
        "        return {'accuracy': 0.5}\n"
    )
    nas = Path(sys.executable).with_name("nas")
    arguments = ["search", "--space=lecture", "--evaluator=mine:Mine", "--workers=2", "--cpus-per-trial=0.5"]
    done = subprocess.run(
        [nas, *arguments, "--trials=4"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "4 ok" in done.stdout


class Watched(Supernet):
    """Says what its workers see; its long job does not see the folder of the run."""

    def prepare(self, task: Task, workdir: Path, **how: Any) -> Any:
        with (workdir.parent / "jobs").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().prepare(task, workdir.parent / "elsewhere", **how)

    def evaluate(self, arch: Architecture, **how: Any) -> Mapping[str, float]:
        assert self.prepared is not None
        writable = sum(array.flags.writeable for array in self.prepared.weights.values())
        return {**super().evaluate(arch, **how), "writable": float(writable), "pid": float(os.getpid())}


def test_workers_share_the_supernet_that_one_job_has_trained(tmp_path: Path) -> None:
    task = Task.of("digits", limit=200)
    space = make_space("mobile", task.input_shape, task.classes, {})
    evaluator, here = (Watched(epochs=2, warmup=0, calibration=64) for _ in range(2))
    evaluator.use(space)
    here.use(space)
    heard: list[tuple[str, float, float | None]] = []
    search = Search(
        Run.create(tmp_path / "run", {}), space, Random(space, (ACCURACY,)), evaluator, Plan((ACCURACY,), trials=6),
        lambda report: Pool(Cluster(workers=WORKERS), evaluator, task, device="cpu", threads=1, on_report=report),
    )  # fmt: skip
    search.prepare(task, device="cpu", threads=1, on_progress=lambda p: heard.append((p.name, p.epoch, p.of)))
    search.run()
    assert heard == [("watched", 0.0, None), ("watched", 1.0, 2), ("watched", 2.0, 2)]
    trials = [trial for trial in Run.open(tmp_path / "run").trials if trial.evaluated]
    assert {trial.state for trial in trials} == {"ok"}
    assert {trial.metrics["writable"] for trial in trials} == {0.0}
    jobs = (tmp_path / "run/prepare/jobs").read_text().split()
    assert len(jobs) == 1
    assert int(jobs[0]) not in {os.getpid(), *(trial.metrics["pid"] for trial in trials)}

    (tmp_path / "here").mkdir()
    here.prepared = Preparation(here, task, tmp_path / "here" / "it", 0, "cpu", 1)(lambda *words: None)
    here.keep(here.prepared, tmp_path / "here")
    here.open(task, device="cpu", threads=1)
    ours, theirs = read(tmp_path / "here" / FILE)[0], read(tmp_path / "run" / PLACE)[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours), "another process, the same weights"
    for trial in trials:
        arch, report = space.architecture(trial.genotype), Report(lambda *words: None)
        metrics = here.evaluate(arch, seed=0, budget=None, workdir=tmp_path, report=report)
        assert metrics["loss"] == trial.metrics["loss"]


def test_a_long_job_whose_worker_dies(tmp_path: Path) -> None:
    def die(hear: Any) -> None:
        hear(1.0, {}, None)
        os.kill(os.getpid(), signal.SIGKILL)

    cluster, heard = Cluster(workers=1), list[tuple[Any, ...]]()
    cluster.open()
    with pytest.raises(RunError, match=r"the worker of the long job before the first trial was lost"):
        cluster.run_once(die, {}, lambda *words: heard.append(words)).result()
    assert len(heard) <= 1

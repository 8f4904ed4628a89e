"""A run whose files are at a URL: workers and driver share no folder, and the copy alone is enough to go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper  # type: ignore[import-untyped]
from toys import Toy

from nas import keep
from nas.architecture import Architecture
from nas.config import Config
from nas.errors import ConfigError, PluginError, RunError
from nas.evaluator import Report
from nas.executors.base import Job
from nas.mirror import Mirror, restore
from nas.session import load, resume, start
from nas.storage import Storage, staged
from nas.store import Run
from nas.trial import Metric, Proposal, Trial


class Away(Toy):
    """Notes the folder of each trial and where it starts from; the first attempt at trial `dies` ends its process."""

    metrics = (Metric("accuracy"), Metric("began"))

    def __init__(self, *, notes: str, dies: int = -1, bug: int = -1, delay: float = 0.0) -> None:
        super().__init__(delay=delay)
        self.notes, self.dies, self.bug = Path(notes), dies, bug

    def evaluate(
        self, arch: Architecture, *, seed: int, budget: float | None, workdir: Path, report: Report
    ) -> Mapping[str, float]:
        number, checkpoint = int(workdir.name), workdir / "checkpoint.json"
        with self.notes.open("a") as file:
            print(workdir.parent, file=file)
        began = json.loads(checkpoint.read_text())["epoch"] if checkpoint.exists() else 0
        once = self.notes.with_name("died")
        if number == self.bug:
            raise ZeroDivisionError("a bug")

        def passed(epoch: float, metrics: Mapping[str, float]) -> None:
            report(epoch, metrics)
            if number == self.dies and epoch == 2 and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        found = super().evaluate(arch, seed=seed, budget=budget, workdir=workdir, report=passed)  # type: ignore[arg-type]
        return {**found, "began": began}


def config(folder: Path, **more: object) -> Config:
    options = {"evaluator": {"notes": str(folder / "notes"), **more.pop("evaluator", {})}}  # type: ignore[dict-item]
    values = {"space": "toys:toy_space", "evaluator": "test_storage:Away", "strategy": "random", "trials": 12}
    return Config.of({**values, "out": str(folder / "run"), "storage": url(folder), "options": options, **more})


def url(folder: Path) -> str:
    return f"file://{folder}/copy"


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_storage", sys.modules[__name__])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["disk", "objects"])
def test_files_are_put_got_moved_and_removed(tmp_path: Path, kind: str) -> None:
    storage = Storage(f"file://{tmp_path}/there" if kind == "disk" else f"memory://{tmp_path}")
    if kind == "objects":  # fsspec's object stores are asynchronous, and have no folders
        system, root = storage._place
        storage.__dict__["_place"] = AsyncFileSystemWrapper(system, asynchronous=False), root
    assert storage.files() == []
    assert storage.read("a/b") is None
    storage.write("a/b", b"1")
    storage.write("a/b", b"2")
    (tmp_path / "c").write_bytes(b"3")
    storage.put(tmp_path / "c", "a/d/c")
    system, root = storage._place
    system.pipe_file(f"{root}/a/.torn.1", b"half of a file")
    assert sorted(storage.files()) == ["a/b", "a/d/c"]
    assert storage.files("a/d") == ["a/d/c"]
    storage.move("a/d/c", "e/c")
    storage.get("e/c", tmp_path / "new/c")
    assert (tmp_path / "new/c").read_bytes() == b"3"
    assert storage.read("a/b") == b"2"
    storage.remove("a/b")
    storage.remove("a/b")
    assert storage.files() == ["e/c"]
    assert storage.files("nothing") == []


def test_what_a_crash_leaves_half_written_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(f"file://{tmp_path}/there")
    storage.write("a", b"old")
    system, _ = storage._place

    def tear(path: str, content: bytes) -> None:
        Path(path).write_bytes(content[:2])
        raise OSError("the network is gone")

    monkeypatch.setattr(system, "pipe_file", tear)
    with pytest.raises(RunError, match=r"cannot be written: OSError: the network is gone"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert storage.files() == ["a"]


@pytest.mark.parametrize(
    ("place", "kind", "message"),
    [
        ("nowhere://bucket/run", ConfigError, "Protocol not known: nowhere"),
        ("file:///proc/no/run", RunError, "cannot be written"),
    ],
)
def test_errors_are_one_line_that_names_the_storage(place: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        Storage(place).write("a", b"")
    assert str(caught.value).startswith(f"storage {place}")
    assert "\n" not in str(caught.value)


def test_a_configuration_wants_a_url() -> None:
    with pytest.raises(ConfigError, match=r"storage: expected a URL such as s3://bucket/run, got 'bucket'"):
        Config(storage="bucket")


# -- a trial's folder ----------------------------------------------------------------------------------------------


def test_a_trial_starts_from_what_an_earlier_attempt_has_saved_at_a_rung(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/there")
    job = Job(3, None, 0, None, tmp_path / "run/trials/00003", rungs=(2.0,))  # type: ignore[arg-type]
    folders = []

    def first() -> None:
        with staged(storage, job, lambda *_: None) as (here, report):
            folders.append(here.workdir)
            here.workdir.mkdir()
            for epoch in (1, 2, 3):
                (here.workdir / "checkpoint").write_text(str(epoch))
                (here.workdir / f"only-{epoch}").touch()
                report(here, epoch, {})
                (here.workdir / f"only-{epoch}").unlink()
            raise KeyboardInterrupt  # as a kill does: nothing more is saved

    with pytest.raises(KeyboardInterrupt):
        first()
    with staged(storage, job, lambda *_: None) as (here, _):
        folders.append(here.workdir)
        assert {path.name: path.read_text() for path in here.workdir.iterdir()} == {"checkpoint": "2", "only-2": ""}
        (here.workdir / "only-2").unlink()
        (here.workdir / "weights.safetensors").touch()
    assert sorted(storage.files()) == ["trials/00003/checkpoint", "trials/00003/weights.safetensors"]
    assert not job.workdir.exists()
    assert not any(folder.parent.exists() for folder in folders), "a temporary folder stays behind"


# -- whole searches ------------------------------------------------------------------------------------------------


def test_the_copy_is_the_run_folder(tmp_path: Path) -> None:
    search = start(config(tmp_path, evaluator={"bug": 2}))
    search.run()
    load(tmp_path / "run").save_front()
    search.store.publish()
    here = files(tmp_path / "run")
    assert here == files(tmp_path / "copy")
    assert set(here) == {
        "run.json", "trials.jsonl", "front.json", "trials/00002/error.txt",
        *(f"weights/{trial.number:05d}.safetensors" for trial in search.front),
    }  # fmt: skip
    for trial in search.front:
        assert here[f"weights/{trial.number:05d}.safetensors"] == f"weights of {trial.seed}".encode()
    worked = {Path(line) for line in (tmp_path / "notes").read_text().split()}
    assert not any(folder.is_relative_to(tmp_path) or folder.exists() for folder in worked)


def killed(folder: Path, *arguments: str, reports: int) -> None:
    """Run a search until its copy has seen so many reports, and kill it with its run folder."""
    tests = Path(__file__).parent
    code = (
        "import nas.mirror, nas.storage, sys; nas.mirror.EVERY = 0.02; nas.storage.EVERY = 0.02;"
        "from nas.cli import main; sys.argv[0] = 'nas'; main()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=subprocess.DEVNULL)
    journal = folder / "copy/trials.jsonl"
    while process.poll() is None and (not journal.exists() or journal.read_text().count('"report"') < reports):
        time.sleep(0.005)
    assert process.poll() is None, "the search ended before it could be killed"
    process.kill()
    process.wait()


def comparable(folder: Path) -> list[dict[str, object]]:
    """What a run found; where a trial began depends on when it was killed."""
    trials = [{**vars(trial), "seconds": 0, "elapsed": 0} for trial in Run.open(folder).trials]
    return [{**t, "metrics": {k: v for k, v in t["metrics"].items() if k != "began"}} for t in trials]


def test_a_killed_run_goes_on_in_a_new_folder_from_its_copy_alone(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    start(config(tmp_path / "whole", strategy="evolution")).run()
    killed(
        tmp_path, "search", "--space=toys:toy_space", "--evaluator=test_storage:Away", "--strategy=evolution",
        "--trials=12", f"--out={tmp_path}/run", f"--storage={url(tmp_path)}", "--set=evaluator.delay=0.1",
        f"--set=evaluator.notes={tmp_path}/notes", reports=8,
    )  # fmt: skip
    shutil.rmtree(tmp_path / "run")
    assert len(Run.open(tmp_path / "copy").trials) >= 2
    killed(tmp_path, "resume", url(tmp_path), f"--out={tmp_path}/second", reports=17)
    shutil.rmtree(tmp_path / "second")
    resume(url(tmp_path), out=tmp_path / "third").run()
    assert comparable(tmp_path / "third") == comparable(tmp_path / "whole/run")
    assert files(tmp_path / "third/weights") == files(tmp_path / "whole/run/weights")
    assert files(tmp_path / "third") == files(tmp_path / "copy")
    trials = [trial for trial in Run.open(tmp_path / "third").trials if trial.evaluated]
    assert max(trial.metrics["began"] for trial in trials) > 0, "a trial goes on from its checkpoint"
    assert Run.open(tmp_path / "third").config["config"]["out"] == str(tmp_path / "third")


def test_workers_send_the_files_of_trials_through_the_storage(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    search = start(config(tmp_path, workers=2, cpus_per_trial=0.5, rungs=(2.0,), eta=2.0, evaluator={"dies": 1}))
    search.run()
    assert search.store.retries == {1: 1}
    trials = {trial.number: trial for trial in search.store.trials if trial.evaluated}
    assert len(trials) == 12
    assert trials[1].budget == 2 or trials[1].metrics["began"] == 2, "the rung's checkpoint came to the second worker"
    kept = {f"weights/{trial.number:05d}.safetensors" for trial in search.front}
    assert set(files(tmp_path / "run")) == {"run.json", "trials.jsonl", *kept}
    assert files(tmp_path / "run") == files(tmp_path / "copy")
    worked = {Path(line) for line in (tmp_path / "notes").read_text().split()}
    assert not any(folder.is_relative_to(tmp_path) for folder in worked)


# -- what is in the way --------------------------------------------------------------------------------------------


def test_a_copy_of_another_run_or_of_more_is_not_overwritten(tmp_path: Path) -> None:
    first = config(tmp_path, trials=2)
    start(first).run()
    with pytest.raises(RunError, match=r"already holds a run; resume it with `nas resume file://"):
        start(config(tmp_path, out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()
    resume(url(tmp_path), out=tmp_path / "second", trials=4).run()
    before = files(tmp_path / "copy")
    with pytest.raises(RunError, match=r"the run went on elsewhere; go on with it by `nas resume file://"):
        resume(tmp_path / "run")
    with pytest.raises(RunError, match=r"second already holds a run: go on with"):
        resume(url(tmp_path), out=tmp_path / "second")
    with pytest.raises(RunError, match=r"holds no run"):
        resume(f"file://{tmp_path}/nothing")
    with pytest.raises(ConfigError, match=r"--out: a run folder goes on where it is"):
        resume(tmp_path / "second", out=tmp_path / "third")
    assert files(tmp_path / "copy") == before


def test_a_search_that_cannot_start_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Away, "open", lambda *_, **__: 1 / 0)
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        start(config(tmp_path))
    assert files(tmp_path) == {}


def trial(run: Run, number: int) -> Trial:
    asked = run.ask(Proposal({}), key=str(number), seed=0, budget=None)
    made = Trial(number, {}, str(number), "ok")
    assert asked.number == number
    run.tell(made)
    return made


def test_what_fails_is_tried_again_and_at_the_end_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.mirror.EVERY", 0.01)
    storage = Storage(url(tmp_path))
    run = Run.create(tmp_path / "run", {})
    run.mirror = Mirror(run.path, storage)
    keep.everything(run, ())
    shutil.move(tmp_path / "copy", tmp_path / "hidden")
    (tmp_path / "copy").touch()  # a file where the folder was: nothing can be written
    trial(run, 0)
    keep.after(run, 0, {0}, ())
    time.sleep(0.1)
    (tmp_path / "copy").unlink()
    shutil.move(tmp_path / "hidden", tmp_path / "copy")
    storage.write("trials/00000/weights.safetensors", b"w")
    for _ in range(500):
        if (tmp_path / "copy/weights/00000.safetensors").exists():
            break
        time.sleep(0.01)
    assert (tmp_path / "run/weights/00000.safetensors").read_bytes() == b"w"
    assert (tmp_path / "copy/trials.jsonl").read_bytes() == (tmp_path / "run/trials.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "copy").touch()
    trial(run, 1)
    with pytest.raises(RunError, match=rf"is whole: `nas resume {run.path}` copies the rest") as caught:
        run.close()
    assert "\n" not in str(caught.value)
    (tmp_path / "copy").unlink()
    run.mirror.publish()


def test_an_error_on_its_way_is_not_covered_up(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", {})
    run.mirror = Mirror(run.path, Storage(url(tmp_path)))
    keep.everything(run, ())
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "copy").touch()
    trial(run, 0)

    def fail() -> None:
        try:
            raise ValueError("the real one")
        finally:
            run.close()

    with pytest.raises(ValueError, match="the real one"):
        fail()


def test_a_storage_that_fails_in_mid_search_ends_it_with_a_whole_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, puts = Storage.put, []

    def fail(self: Storage, file: Path, name: str) -> None:
        puts.append(name)
        if name.startswith("trials/00003/"):
            raise RunError("storage s3://bucket cannot be written: ConnectionError: gone")
        put(self, file, name)

    monkeypatch.setattr(Storage, "put", fail)
    with pytest.raises(RunError, match="ConnectionError: gone"):
        start(config(tmp_path, trials=6)).run()
    run = Run.open(tmp_path / "run")
    assert (set(run.asked), len(run.trials)) == ({3}, 3), "it is no fault of the trial"
    monkeypatch.setattr(Storage, "put", put)
    resume(tmp_path / "run").run()
    assert [trial.state for trial in Run.open(tmp_path / "run").trials if trial.evaluated] == ["ok"] * 6


def test_files_of_a_proposal_that_the_copy_lost_are_not_given_to_the_next_of_its_number(tmp_path: Path) -> None:
    storage = Storage(url(tmp_path))
    run = Run.create(tmp_path / "run", {})
    run.mirror = Mirror(run.path, storage)
    run.ask(Proposal({}), key="a", seed=0, budget=None)
    storage.write("trials/00000/checkpoint", b"asked")
    storage.write("trials/00001/checkpoint", b"of a network that nobody knows any more")
    keep.everything(run, ())
    assert [name for name in storage.files() if name.startswith("trials/")] == ["trials/00000/checkpoint"]
    run.close()


def test_restoring_leaves_the_files_of_running_trials_to_their_workers(tmp_path: Path) -> None:
    storage = Storage(url(tmp_path))
    for name in ("run.json", "trials.jsonl", "weights/00001.safetensors", "trials/00002/checkpoint"):
        storage.write(name, name.encode())
    restore(storage, tmp_path / "run")
    assert set(files(tmp_path / "run")) == {"run.json", "trials.jsonl", "weights/00001.safetensors"}

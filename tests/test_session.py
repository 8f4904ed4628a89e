"""A search from Python, and what its folder gives back."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import nas
from nas.errors import ConfigError, PluginError, RunError
from nas.search import Search
from nas.session import fresh
from nas.torch.loader import Batches
from nas.torch.train import evaluate

OPTIONS = {"evaluator": {"epochs": 2, "batch": 16}, "data": {"limit": 300}, "strategy": {"population": 4}}


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Search:
    """Four networks trained for two epochs."""
    out = tmp_path_factory.mktemp("session") / "run"
    made = nas.start(nas.Config(trials=4, out=str(out), options=OPTIONS))
    made.run()
    return made


def test_the_best_network_comes_back_with_what_it_learned(search: Search) -> None:
    best = nas.load(search.store.path).best("accuracy")
    data = nas.Task.of("digits", **OPTIONS["data"]).load()
    size = best.architecture.input_shape[1:]
    batches = Batches(
        data.validation, mean=data.mean, std=data.std, batch=256, device="cpu",
        resolution=(size[0], size[1]), channels_last=True,
    )  # fmt: skip
    found = evaluate(best.module(weights=True), batches, device="cpu")
    assert found["accuracy"] == pytest.approx(best.trial.metrics["accuracy"], abs=1e-6)
    untrained = evaluate(best.module(), batches, device="cpu")
    assert untrained["accuracy"] < found["accuracy"]


def test_the_front_is_written_with_its_architectures(search: Search) -> None:
    results = nas.load(search.store.path)
    entries = json.loads(results.save_front().read_text())["front"]
    assert [e["number"] for e in entries] == [t.number for t in results.front]
    for entry, trial in zip(entries, results.front, strict=True):
        assert nas.Architecture.from_json(entry["architecture"]).key() == trial.key


def test_what_is_selected(search: Search) -> None:
    results = nas.load(search.store.path)
    smallest = results.select("best:flops").trial
    assert smallest.metrics["flops"] == min(t.metrics["flops"] for t in results.front)
    assert results.select(str(smallest.number)).trial == smallest
    for wrong in ("worst", "99", "best:size"):
        with pytest.raises(RunError):
            results.select(wrong)
    dominated = [t for t in results.trials if t not in results.front]
    for trial in dominated:
        with pytest.raises(RunError, match="kept no weights"):
            results.trial(trial.number).module(weights=True)


def test_the_run_says_how_it_was_made(search: Search) -> None:
    saved = json.loads((search.store.path / "run.json").read_text())
    assert saved["versions"].keys() >= {"python", "nas", "torch", "numpy"}
    assert saved["task"]["classes"] == 10
    assert "240 train" in saved["task"]["about"]
    assert nas.Config.of(saved["config"]).trials == 4


def test_extending_keeps_what_was_done(search: Search) -> None:
    before = [t.number for t in nas.load(search.store.path).trials]
    more = nas.resume(search.store.path, trials=5)
    more.run()
    assert [t.number for t in more.store.trials][: len(before)] == before
    assert more.evaluated == 5


def test_a_pairing_that_makes_no_sense_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    class Single(nas.Strategy):
        multi_objective = False

        def ask(self, n, rng, pending):  # type: ignore[no-untyped-def]
            raise AssertionError("never asked")

        def tell(self, trial):  # type: ignore[no-untyped-def]
            raise AssertionError("never told")

    import toys

    toys.Single = Single  # type: ignore[attr-defined]
    config = nas.Config(strategy="toys:Single", space="nasbench-macro", evaluator="table", out=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"takes one objective, got accuracy,flops; .* use --strategy=evolution"):
        nas.start(config)
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_a_run_is_named(search: Search, tmp_path: Path) -> None:
    saved = json.loads((search.store.path / "run.json").read_text())
    for key, message in (("config", "has no configuration"), ("task", "does not say what the data are")):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({name: value for name, value in saved.items() if name != key}))
        with pytest.raises(RunError, match=message):
            nas.resume(folder)
    other = tmp_path / "other"
    other.mkdir()
    task = {**saved["task"], "input_shape": [3, 32, 32]}
    (other / "run.json").write_text(json.dumps({**saved, "task": task}))
    with pytest.raises(RunError, match=r"put the old data back, or start a new run"):
        nas.resume(other)


def test_fresh_folders_never_collide(tmp_path: Path) -> None:
    assert fresh(tmp_path, "a:b").name == "a-b-1"
    with ThreadPoolExecutor(8) as threads:  # at once
        names = [path.name for path in threads.map(lambda _: fresh(tmp_path, "a:b"), range(40))]
    assert sorted(names) == sorted(f"a-b-{number}" for number in range(2, 42))
    (tmp_path / "none").write_text("")
    assert fresh(tmp_path / "none", "a") == tmp_path / "none" / "a-1"  # for `Run.create` to refuse


def test_a_run_is_read_where_its_plug_ins_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's space and evaluator are modules of their own; on another machine there is the run folder alone."""
    from nas.export import export_run

    here = tmp_path / "here"
    here.mkdir()
    (here / "own_space.py").write_text(
        "import toys\nfrom nas.trial import Metric\n"
        "def space(input_shape, classes):\n    return toys.toy_space(input_shape, classes)\n"
        "def score(module, task):\n    return {'quality': sum(p.numel() for p in module.parameters())}\n"
        "score.metrics = [Metric('quality', 'min')]\n"
    )
    monkeypatch.syspath_prepend(here)
    config = nas.Config(space="own_space:space", evaluator="own_space:score", objectives=("quality",), trials=3,
                        strategy="random", out=str(tmp_path / "run"), options={"data": {"limit": 100}})  # fmt: skip
    nas.start(config).run()
    nas.load(tmp_path / "run").save_front()
    found = nas.load(tmp_path / "run").best()
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "own_space")
    elsewhere = nas.load(tmp_path / "run")
    assert elsewhere.objectives == (nas.Objective("quality", "min"),)
    assert elsewhere.best().architecture == found.architecture
    exported = export_run(tmp_path / "run", formats=["source", "json"])
    assert [each.format for each in exported] == ["source", "json"]
    others = [trial for trial in elsewhere.trials if trial not in elsewhere.front]
    with pytest.raises(PluginError, match="own_space"):
        _ = elsewhere.trial(others[0].number).architecture


def test_runs_of_before_the_objectives_were_written(search: Search, tmp_path: Path) -> None:
    old = shutil.copytree(search.store.path, tmp_path / "old")
    saved = json.loads((old / "run.json").read_text())
    del saved["objectives"]
    (old / "run.json").write_text(json.dumps(saved))
    assert nas.load(old).objectives == nas.load(search.store.path).objectives
    (old / "run.json").write_text(json.dumps({**saved, "objectives": [{"name": "accuracy"}]}))
    with pytest.raises(RunError, match="objectives cannot be read"):
        nas.load(old)

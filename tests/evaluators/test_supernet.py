"""The supernet evaluator: scores that depend on nothing else, preparation that survives anything, reuse of weights."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nas.evaluators.supernet import Supernet, sample
from nas.evaluators.train import Train
from test_kill import command, environment

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head
from nas.cli import main
from nas.config import Config
from nas.errors import ConfigError, GraphError, PluginError, RunError
from nas.evaluator import Report, Task
from nas.export.weights import load, read, save
from nas.plugins import available, make_space
from nas.preparation import Preparation
from nas.session import load as results_of
from nas.session import resume, start
from nas.store import Run
from nas.torch.data import Split
from nas.torch.loader import Augment
from nas.torch.supernet.saved import PLACE, Saved

EPOCHS = 8
QUICK: dict[str, Any] = {"epochs": EPOCHS, "warmup": 0.5, "calibration": 64}
DATA = {"limit": 200}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task.of("digits", **DATA)


def nothing(*words: object) -> None:
    """Hears of no progress."""


def prepared(evaluator: Supernet, task: Task, folder: Path, space: str = "mobile") -> Supernet:
    evaluator.use(make_space(space, task.input_shape, task.classes, {}))
    evaluator.prepared = Preparation(evaluator, task, folder, 0, "cpu")(nothing)
    return evaluator


@pytest.fixture(scope="module")
def trained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Supernet:
    evaluator = prepared(Supernet(**QUICK), task, tmp_path_factory.mktemp("supernet"))
    evaluator.open(task, device="cpu", threads=1)
    return evaluator


def architectures(evaluator: Supernet, n: int) -> list[Architecture]:
    assert evaluator.space is not None
    rng = np.random.default_rng(1)
    return [evaluator.space.architecture(evaluator.space.sample(rng)) for _ in range(n)]


def score(evaluator: Supernet | Train, arch: Architecture, folder: Path, seed: int = 0) -> Mapping[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    return evaluator.evaluate(arch, seed=seed, budget=None, workdir=folder, report=Report(nothing))


def state(path: Path) -> dict[str, torch.Tensor]:
    return read(path)[0]


def equal(a: Path, b: Path) -> bool:
    one, other = state(a), state(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- scores ----------------------------------------------------------------------------------------------------


def test_a_score_depends_on_the_network_alone(trained: Supernet, task: Task, tmp_path: Path) -> None:
    archs = architectures(trained, 6)  # of more sizes than are kept
    first = [score(trained, arch, tmp_path / f"a{i}") for i, arch in enumerate(archs)]
    again = [score(trained, arch, tmp_path / f"b{i}", seed=9) for i, arch in reversed(list(enumerate(archs)))]
    assert first == again[::-1]
    assert len({metrics["loss"] for metrics in first}) == 6
    for i in range(6):
        assert equal(tmp_path / f"a{i}" / "weights.safetensors", tmp_path / f"b{i}" / "weights.safetensors")


def test_the_saved_weights_are_those_that_were_scored(trained: Supernet, task: Task, tmp_path: Path) -> None:
    for i, arch in enumerate(architectures(trained, 3)):
        metrics = score(trained, arch, tmp_path / str(i))
        module = arch.module().eval()
        load(tmp_path / str(i) / "weights.safetensors", module, key=arch.key())
        data = task.load()
        x = data.validation.images.float().div(255).sub(data.mean[0]).div(data.std[0])
        x = torch.nn.functional.interpolate(x, arch.input_shape[1:], mode="bilinear", antialias=True)
        accuracy = float((module(x).argmax(1) == data.validation.labels).float().mean())
        assert accuracy == pytest.approx(metrics["accuracy"], abs=0.04)  # bytes are resized there, numbers here


def test_the_sample_is_of_all_classes_as_they_are_in_the_data() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 100)
    split = Split(torch.arange(1000, dtype=torch.int64).view(1000, 1, 1, 1).to(torch.uint8), labels)
    chosen = sample(split, 100)
    assert torch.bincount(chosen.labels).tolist() == [60, 30, 10]
    assert (chosen.labels[:30] != 0).any(), "batches are of all classes"
    assert torch.equal(chosen.labels, sample(split, 100).labels)
    assert len(sample(split, 5000)) == 1000
    assert len(sample(split, 2).labels.unique()) == 2


def test_what_is_not_of_the_space_fails_with_the_reason(trained: Supernet, tmp_path: Path) -> None:
    other = Architecture(Chain(stem=Conv(999), head=Head(10)), (1, 8, 8), 10)
    with pytest.raises(GraphError, match=r"the supernet has no weights.*is it of another space"):
        score(trained, other, tmp_path)


def test_it_offers_no_augmentation_that_it_leaves_out() -> None:
    assert not {field.name for field in fields(Augment)} & set(inspect.signature(Supernet).parameters)


def test_what_was_forgotten_is_named(task: Task, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"does not know its space; call use\(space\)"):
        Preparation(Supernet(), task, tmp_path, 0, "cpu")(nothing)
    evaluator = Supernet()
    with pytest.raises(PluginError, match=r"does not know its space"):
        evaluator.open(task, device="cpu", threads=1)
    evaluator.use(make_space("mobile", task.input_shape, task.classes, {}))
    with pytest.raises(PluginError, match=r"has no weights; set its `prepared`"):
        evaluator.open(task, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "random"}, r"scheme: expected uniform or sandwich, got 'random'"),
        ({"calibration": 1}, r"calibration: expected a whole number of at least 2 images, got 1"),
        ({"weights": 3}, r"weights: expected a run folder or a .safetensors file, got 3"),
        ({"epochs": 0}, r"epochs: expected a whole number"),
    ],
)
def test_options_out_of_range(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Supernet(**options)


# -- runs ------------------------------------------------------------------------------------------------------


def config(folder: Path, **more: Any) -> Config:
    options = {"evaluator": {**QUICK, **more.pop("evaluator", {})}, "data": DATA, "strategy": more.pop("own", {})}
    return Config(
        **{"evaluator": "supernet", "trials": 4, "out": str(folder), "options": options, "threads": 1, **more}
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a supernet."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    start(config(folder)).run()
    return folder


@pytest.mark.parametrize("strategy", sorted(available("strategies")))
def test_every_strategy_can_use_it(strategy: str, run: Path, tmp_path: Path) -> None:
    if strategy in ("scaling", "darts"):
        pytest.skip("searches in a way of its own")
    objectives = ("accuracy", "flops") if strategy in ("evolution", "random", "predictor") else ("accuracy",)
    search = start(
        config(tmp_path, strategy=strategy, objectives=objectives, evaluator={"weights": str(run)}, trials=5)
    )
    search.run()
    assert {trial.state for trial in Run.open(tmp_path).trials if trial.evaluated} == {"ok"}
    assert equal(tmp_path / PLACE, run / PLACE)


def test_a_space_that_the_strategy_brings(tmp_path: Path) -> None:
    own = {"base": "mobilenet_v2", "phi": 1}
    try:
        search = start(config(tmp_path, strategy="scaling", own=own, trials=2, evaluator={"epochs": 1, "warmup": 0}))
    except ConfigError as error:
        pytest.fail(str(error))
    assert search.evaluator.space is search.space  # type: ignore[attr-defined]
    search.run()
    assert all(trial.ok for trial in Run.open(tmp_path).trials if trial.evaluated)


def test_a_finished_preparation_is_not_done_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not (run / "prepare/evaluator/checkpoint.pt").exists()
    before = (run / PLACE).read_bytes()
    monkeypatch.setattr(Supernet, "prepare", lambda *_, **__: pytest.fail("trained again"))
    search = resume(run, trials=5)
    search.run()
    assert search.evaluated == 5
    assert (run / PLACE).read_bytes() == before


def test_weights_of_the_front_are_kept(run: Path) -> None:
    best = results_of(run).best("accuracy")
    module = best.module(weights=True)
    assert sum(p.numel() for p in module.parameters()) == best.trial.metrics["params"]


def test_what_does_not_fit_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torn, network, empty = tmp_path / "torn.safetensors", tmp_path / "network.safetensors", tmp_path / "empty"
    torn.write_bytes((run / PLACE).read_bytes()[:-100])
    save(torch.nn.Linear(2, 2), network)
    empty.mkdir()
    Run.create(tmp_path / "other", {}).close()
    cases = {
        "weights=nowhere": "there is no nowhere; expected a run folder, or a supernet's .safetensors file",
        f"weights={torn}": f"{torn} is not a readable safetensors file",
        f"weights={network}": "holds no supernet's weights but those of one network",
        f"weights={empty}": "is not a run folder (no run.json)",
        f"weights={tmp_path / 'other'}": "has no supernet (prepare/evaluator/supernet.safetensors); expected one",
        "weight=1": "has no option 'weight', did you mean evaluator.weights?",
    }
    for setting, message in cases.items():
        assert_fails(["--set", f"evaluator.{setting}"], message, tmp_path, capsys, monkeypatch)
    elsewhere = ["--space=lecture", "--set", f"evaluator.weights={run}"]
    message = "its supernet is for the space 'mobile' on 1x8x8 images of 10 classes; expected one for 'lecture'"
    assert_fails(elsewhere, message, tmp_path, capsys, monkeypatch)


def assert_fails(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    arguments = ["nas", "search", "--evaluator=supernet", "--set=data.limit=200", f"--out={out}", *words]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.count("\n") == 1
    assert not out.exists(), "nothing has happened in that run"


def test_a_supernet_of_a_space_that_has_changed(run: Path) -> None:
    saved = Saved.read(run / PLACE)
    wider = make_space("mobile", (1, 8, 8), 11, {})
    with pytest.raises(
        RunError, match=r"is for the space 'mobile' on 1x8x8 images of 10 classes; expected one for .*11"
    ):
        saved.check(wider, "it")


# -- interruptions ---------------------------------------------------------------------------------------------


def new(folder: Path, **more: object) -> list[str]:
    options = {**QUICK, **more}
    return command(
        "search", "--evaluator=supernet", "--trials=4", f"--out={folder}", "--set=data.limit=200", "--threads=1",
        *[f"--set=evaluator.{name}={value}" for name, value in options.items()],
    )  # fmt: skip


def test_a_preparation_killed_again_and_again_gives_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut"
    checkpoint, kills = cut / "prepare/evaluator/checkpoint.pt", 0
    for delay in (0.0, 0.003, 0.02):
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        start = command("resume", str(cut)) if (cut / "run.json").exists() else new(cut)
        process = subprocess.Popen(start, env=environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen):
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert not (cut / PLACE).exists()
    assert kills == 3
    monkeypatch.setattr(sys, "argv", ["nas", "resume", str(cut)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (None, 0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("supernet  epoch")]
    assert [line.split("  ")[1] for line in lines] == [f"epoch {i}/{EPOCHS}" for i in range(1, EPOCHS + 1)]
    assert all("  train_loss " in line for line in lines)
    assert lines[-1].endswith("  0:00 left")
    assert equal(cut / PLACE, run / PLACE)
    facts = [[(t.genotype, t.metrics) for t in Run.open(folder).trials[:4]] for folder in (cut, run)]
    assert facts[0] == facts[1]


def test_ctrl_c_ends_a_preparation_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = new(folder, epochs=500, scheme="sandwich")
    process = subprocess.Popen(
        arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )  # fmt: skip
    while process.poll() is None and not (folder / "prepare/evaluator/checkpoint.pt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped; go on with: nas resume {folder}" in out.replace("\n", "")
    assert out.startswith(f"run {folder}")
    assert "Traceback" not in err
    run = Run.open(folder)
    assert not run.trials
    assert (folder / "prepare/evaluator/checkpoint.pt").exists()


# -- the train evaluator ---------------------------------------------------------------------------------------


def test_training_can_start_from_a_supernets_weights(run: Path, task: Task, tmp_path: Path) -> None:
    space = results_of(run).space
    arch = space.architecture(space.sample(np.random.default_rng(2)))
    scores = {}
    for name, init in (("random", None), ("borrowed", f"supernet:{run}")):
        evaluator = Train(epochs=1, warmup=0, lr=1e-9, momentum=0.0, init=init)
        evaluator.use(space)
        evaluator.open(task, device="cpu", threads=1)
        scores[name] = score(evaluator, arch, tmp_path / name)
    borrowed = Saved.read(run / PLACE).supernet(space, "it").path(arch).weights()
    written = state(tmp_path / "borrowed" / "weights.safetensors")
    learned = [name for name, value in borrowed.items() if value.is_floating_point() and "running" not in name]
    assert all(torch.allclose(written[name], borrowed[name], atol=1e-5) for name in learned)
    assert scores["random"] != scores["borrowed"]


def test_what_training_cannot_start_from(run: Path, task: Task, tmp_path: Path) -> None:
    for init in ("supernet:", "runs/x", "imagenet:x"):
        with pytest.raises(
            ConfigError, match=r"init: expected none, or supernet: and a run folder such as runs/x, got"
        ):
            Train(init=init)
    lecture = make_space("lecture", (3, 8, 8), 10, {})
    with pytest.raises(RunError, match=r"there is no nowhere"):
        Train(init="supernet:nowhere").use(lecture)
    with pytest.raises(RunError, match=r"is a file; expected the run folder"):
        Train(init=f"supernet:{run / PLACE}").use(lecture)
    with pytest.raises(ConfigError, match=r"no network of the space 'lecture' lies in that of .* 'mobile' on 1x8x8"):
        Train(init=f"supernet:{run}").use(lecture)
    evaluator = Train(epochs=1, warmup=0, init=f"supernet:{run}")
    evaluator.open(task, device="cpu", threads=1)  # without `use`
    arch = lecture.architecture(lecture.sample(np.random.default_rng(0)))
    with pytest.raises(GraphError, match=r"it cannot start from the supernet of .*is it of another space"):
        score(evaluator, arch, tmp_path)

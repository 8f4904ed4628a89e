"""`nas train` as a user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import nas

from nas.architecture import Architecture
from nas.blocks import Chain, Conv, Head, Residual
from nas.errors import ConfigError, RunError
from nas.export import read_network
from nas.export.weights import read
from nas.report.training import Watch, kendall, summary
from nas.torch.data import load
from nas.torch.job import read_curve
from nas.torch.loader import Batches
from nas.training import Job, jobs_of, recipe_of, source

ROOT = Path(__file__).parents[1]
QUICK = ("--set=data.limit=200", "--set=train.batch=32", "--epochs=2", "--threads=1")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small residual network as a file."""
    body = Chain(stem=Conv(8), stage1=Residual(width=8), stage2=Residual(width=12, stride=2), head=Head(10))
    path = tmp_path_factory.mktemp("arch") / "small.json"
    path.write_text(json.dumps(Architecture(body, (1, 8, 8), 10, "small").to_json()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four networks."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("--set=evaluator.epochs=1", "--set=evaluator.batch=16", "--set=data.limit=200")
    done = nas("search", "--space=mobile", "--strategy=random", "--trials=4", *options, f"--out={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_front_with_seeds_beside_what_the_search_said(run: Path) -> None:
    done = nas(
        "train", str(run), "--arch=front,resnet20_cifar", "--seeds=2", "--epochs=1", "--set=train.batch=32", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["results"]
    front = json.loads((run / "front.json").read_text())["front"]
    names = [f"{entry['architecture']['name']}" for entry in front]
    assert [result["name"] for result in found] == [n for name in (*names, "resnet20_cifar") for n in (name, name)]
    for entry, result in zip(front, found[::2], strict=False):
        assert result["searched"] == entry["metrics"]
        assert result["params"] == entry["metrics"]["params"]
    assert found[-1]["searched"] == {}
    assert found[-1]["test_images"] == 299  # of digits, whatever the limit
    table = nas(
        "train", str(run), "--arch=front,resnet20_cifar", "--seeds=2", "--epochs=1", "--set=train.batch=32"
    ).stdout
    assert " ± " in table
    assert all(name in table for name in names)
    assert f"wrote  {run / 'train' / 'resnet20_cifar-seed1'}" in table


def test_what_is_in_the_folder(file: Path, tmp_path: Path) -> None:
    done = nas("train", str(file), f"--out={tmp_path}", *QUICK, "--set=train.drop_path=0.2", "--set=train.dropout=0.1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "small-seed0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.pt", "config.json", "curve.csv", "curve.png", "result.json", "weights.safetensors",
    ]  # fmt: skip
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    rows = read_curve(folder / "curve.csv")
    result = json.loads((folder / "result.json").read_text())
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["accuracy"] == result["validation"]["accuracy"]
    assert rows[-1]["seconds"] == result["seconds"] > rows[0]["seconds"] > 0
    assert rows[-1]["lr"] == pytest.approx(0)

    module = Architecture.from_json(json.loads(file.read_text())).module(seed=0)
    tensors, key = read(folder / "weights.safetensors")
    module.load_state_dict(tensors)
    assert key == result["key"]
    data = load("digits", limit=200)
    ((x, y),) = Batches(data.test, mean=data.mean, std=data.std, batch=299).epoch()
    with torch.no_grad():
        accuracy = float((module.eval()(x).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(result["test"]["accuracy"], abs=1 / 290)

    done = nas("export", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    (exported,) = json.loads(done.stdout)
    assert exported["trained"]
    assert [Path(name).name for name in exported["files"]] == ["small.py", "small.safetensors"]
    text = (folder / "export" / "small.py").read_text()
    assert f"Test accuracy after 2 epochs: {result['test']['accuracy']:.4f} of 299 images." in text
    assert "Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9." in text
    written = read_network(folder / "export" / "small.safetensors").state_dict()
    assert all(torch.equal(written[name], value) for name, value in tensors.items())
    (folder / "weights.safetensors").unlink()
    assert "is not done yet: let its training end first" in nas("export", str(folder)).stderr
    assert "is one training" in nas("export", str(folder), "--arch=3").stderr
    assert "small" in nas("show", str(folder)).stdout


def test_weights_go_on_to_other_classes_and_a_teacher(file: Path, tmp_path: Path) -> None:
    assert nas("train", str(file), f"--out={tmp_path}", *QUICK).returncode == 0
    first = tmp_path / "small-seed0"
    images = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "three.npz", x=images, y=np.arange(120) % 3)
    done = nas(
        "train", str(file), f"--out={tmp_path / 'new'}", f"--data={tmp_path / 'three.npz'}", "--epochs=1",
        "--set=train.batch=32", f"--init={first / 'weights.safetensors'}", "--freeze=all",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    old, new = (read(path / "weights.safetensors")[0] for path in (first, tmp_path / "new" / "small-seed0"))
    assert new["head.classifier.weight"].shape == (3, 12)
    assert torch.equal(old["stem.conv.weight"], new["stem.conv.weight"])
    taught = nas("train", str(file), f"--out={tmp_path / 'taught'}", *QUICK, f"--teacher={first}")
    assert taught.returncode == 0, taught.stderr
    curves = [(folder / "curve.csv").read_text() for folder in (first, tmp_path / "taught" / "small-seed0")]
    assert curves[0] != curves[1]


def test_killed_at_a_random_moment_it_ends_with_the_same_weights(file: Path, tmp_path: Path) -> None:
    options = ["--set=data.limit=500", "--set=train.batch=16", "--epochs=10", "--threads=1", "--set=train.mixup=0.2"]
    assert nas("train", str(file), f"--out={tmp_path / 'whole'}", *options).returncode == 0
    whole, cut = (tmp_path / name / "small-seed0" for name in ("whole", "cut"))
    command = [sys.executable, "-m", "nas", "train", str(file), f"--out={cut.parent}", *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    rng = np.random.default_rng()  # another moment every time
    epochs = rng.integers(1, 7)
    while process.poll() is None and len(read_curve(cut / "curve.csv")) < epochs:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (cut / "result.json").exists()
    assert nas("train", str(file), f"--out={cut.parent}", *options).returncode == 0
    one, other = (read(folder / "weights.safetensors")[0] for folder in (whole, cut))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, cut)]
    assert results[0]["test"] == results[1]["test"]
    assert len(read_curve(cut / "curve.csv")) == 10


def test_two_processes_end_where_one_does(file: Path, tmp_path: Path) -> None:
    """With batch norms, crops and averaged weights, to what floats allow."""
    found = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        done = nas("train", str(file), f"--out={out}", *QUICK, f"--workers={workers}", "--json")
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        tensors = read(out / "small-seed0" / "weights.safetensors")[0]
        found.append((torch.cat([value.flatten() for value in tensors.values()]).double(), result))
    (one, alone), (two, together) = found
    module = Architecture.from_json(json.loads(file.read_text())).module(seed=0)
    start = torch.cat([value.flatten() for value in module.state_dict().values()])
    assert float((two - one).norm()) < 1e-3 * float((one - start).norm())
    for part in ("validation", "test"):
        assert alone[part]["loss"] == pytest.approx(together[part]["loss"], rel=1e-3)


def test_a_finished_training_is_read_and_another_one_refused(file: Path, tmp_path: Path) -> None:
    done = [nas("train", str(file), f"--out={tmp_path}", *QUICK, "--json") for _ in range(2)]
    assert done[0].stdout == done[1].stdout
    other = nas("train", str(file), f"--out={tmp_path}", *QUICK, "--set=train.lr=0.1")
    assert other.returncode == 2
    assert "train.lr was 0.2 and is 0.1" in other.stderr
    place = tmp_path / "small-seed0" / "result.json"
    found = json.loads(place.read_text())
    del found["latency_ms"]
    place.write_text(json.dumps(found))
    broken = nas("train", str(file), f"--out={tmp_path}", *QUICK)
    assert (broken.returncode, broken.stderr.count("\n")) == (2, 1)
    assert "delete it to have it written again" in broken.stderr
    (tmp_path / "small-seed0" / "config.json").write_text("[]")
    with pytest.raises(RunError, match="was it edited"):
        Job.read(tmp_path / "small-seed0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no reference architecture 'nothing'"),
        (["resnet20_cifar", "--arch=front"], "only a run folder has several architectures"),
        (["resnet20_cifar", "--set=train.speed=1"], "there is no train.speed"),
        (["resnet20_cifar", "--set=lr=1"], "is not train.NAME=VALUE"),
        (["resnet20_cifar", "--set=train.mixup=-1"], "mixup: expected a number of at least 0"),
        (["resnet20_cifar", "--seeds=0"], "seeds: expected a whole number of at least 1"),
        (["resnet20_cifar", "--workers=3", "--set=train.batch=32"], "3 cannot share batches of 32 alike"),
        (["resnet20_cifar", "--workers=16", "--set=train.batch=16"], "less than two images each"),
        (["resnet20_cifar", "--workers=2", "--device=cuda:1"], "workers need a GPU each"),
        (["resnet20_cifar", f"--seed={2**64}"], "seed: expected a whole number"),
        (["resnet20_cifar", "--set=data.limit=many"], "limit: expected a whole number"),
        (["resnet20_cifar", "--old-rate=0.1"], "--old-rate is of layers that came with --init"),
        (["resnet20_cifar", "--temperature=2"], "are of a teacher"),
        (["resnet20_cifar", "--freeze=all"], "leaves layers at random weights"),
        (["resnet20_cifar", "--init=no.safetensors"], "there is no weights file"),
        (["resnet20_cifar", "--teacher=nobody"], "teacher: expected a run folder"),
        (["alexnet"], "use a larger resolution"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = nas("train", *arguments, *(() if "--epochs" in arguments else ("--epochs=1",)), f"--out={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_that_diverges_does_not_stop_the_others(file: Path, tmp_path: Path) -> None:
    wild = ("--set=train.clip=none", "--set=train.lr=1e20", "--set=train.warmup=0")
    done = nas("train", str(file), f"--out={tmp_path}", *QUICK, *wild, "--seeds=2")
    assert done.returncode == 2
    for seed in (0, 1):
        assert f"{tmp_path / f'small-seed{seed}'}: the training loss became" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_names_and_folders(file: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)  # where a folder has the name of the images that are built in
    assert source(str(file), "best").data.source == "digits"
    written = json.loads(file.read_text())
    (tmp_path / "up.json").write_text(json.dumps({**written, "name": "../up"}))
    (job,) = jobs_of(source("up.json", "best", out=tmp_path / "out"), recipe_of(1, [])[0], [0])
    assert job.path == tmp_path / "out" / "..-up-seed0"
    ((first, _),) = source(str(run), "0").found
    (tmp_path / "twin.json").write_text(json.dumps({**written, "name": first.name}))
    (tmp_path / "same.json").write_text(json.dumps(first.to_json()))
    with pytest.raises(ConfigError, match="two architectures are called"):
        source(str(run), "0,twin.json")
    ((kept, metrics),) = source(str(run), "0,same.json").found
    assert kept.key() == first.key()
    assert metrics["accuracy"] > 0


def test_the_time_left_counts_no_training_that_was_done_before(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    jobs = jobs_of(source(str(file), "best"), recipe_of(30, [])[0], [0, 1])
    watch = Watch(jobs)
    watch.begin(jobs[0])
    watch.end()
    watch.begin(jobs[1])
    now = 60.0
    watch.on_epoch(1, {"accuracy": 0.5, "train_loss": 1.0})
    assert watch._words(1, 1.0).endswith("29:00 left")


def test_a_training_from_the_start_forgets_an_old_curve(file: Path, tmp_path: Path) -> None:
    assert nas("train", str(file), f"--out={tmp_path}", *QUICK).returncode == 0
    folder = tmp_path / "small-seed0"
    lines = (folder / "curve.csv").read_text().splitlines()
    old = [lines[0], *[",".join([*line.split(",")[:-1], "5000"]) for line in lines[1:]]]
    (folder / "curve.csv").write_text("\n".join(old) + "\n")
    for name in ("checkpoint.pt", "result.json"):
        (folder / name).unlink()
    (folder / "checkpoint.pt.123").write_bytes(b"torn")
    assert nas("train", str(file), f"--out={tmp_path}", *QUICK).returncode == 0
    assert json.loads((folder / "result.json").read_text())["seconds"] < 5000
    assert [path.name for path in folder.glob("checkpoint*")] == ["checkpoint.pt"]


def test_which_of_a_run(run: Path) -> None:
    front = json.loads((run / "front.json").read_text())["front"]
    names = [a.name for a, _ in source(str(run), "front").found]
    assert names == [entry["architecture"]["name"] for entry in front]
    spread = [a.name for a, _ in source(str(run), "front:2").found]
    assert spread == ([names[0], names[-1]] if len(names) > 1 else names)
    (number,) = source(str(run), "2").found
    assert number[0].name.endswith("-2")
    with pytest.raises(ConfigError, match="expected best"):
        source(str(run), "worst")
    with pytest.raises(ConfigError, match="expected best"):
        source(str(run), "²")
    with pytest.raises(ConfigError, match="whole number K"):
        source(str(run), "front:none")
    assert source(str(run), "best").data_options == {"limit": 200}


def test_the_recipe_of_a_full_training() -> None:
    recipe, data = recipe_of(None, ["train.ema=none", "data.limit=9", "train.milestones=[0.3]", "train.schedule=step"])
    assert (recipe.ema, recipe.augment, recipe.milestones, data) == (None, True, (0.3,), {"limit": 9})
    assert recipe_of(1, [])[0].warmup < 1


def test_rank_correlation_allows_for_ties() -> None:
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    for _ in range(5):
        pairs = [(float(a), float(b)) for a, b in rng.integers(0, 5, (9, 2))]
        assert kendall(pairs) == pytest.approx(kendalltau(*zip(*pairs, strict=True)).statistic)
    assert kendall([(1.0, 2.0), (1.0, 3.0)]) == 0.0
    few = [{"name": str(i), "searched": {"accuracy": i}, "test": {"accuracy": -i}} for i in range(3)]
    assert summary(few)["rank_correlation"] == {"kendall": -1.0, "architectures": 3}
    assert summary(few[:2])["rank_correlation"] is None

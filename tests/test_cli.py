"""The command line as a user meets it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from nas import cli


@dataclass(frozen=True)
class Done:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


def nas(*arguments: str, cwd: Path | None = None) -> Done:
    """Run the command line in this process: importing torch once is enough."""
    out, err = io.StringIO(), io.StringIO()
    folder = contextlib.chdir(cwd) if cwd else contextlib.nullcontext()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with folder, streams[0], streams[1], mock.patch.object(sys, "argv", ["nas", *arguments]):
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on the table."""
    folder = tmp_path_factory.mktemp("cli")
    done = nas("search", "--space=nasbench-macro", "--evaluator=table", "--trials=30", "--out=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_search_ends_with_the_front_and_the_next_command(run: Path) -> None:
    done = nas("resume", str(run), "--trials=31")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"run {run}"
    assert "[31/31 trials" in lines[1]
    assert lines[-1] == f"next   nas export {run} --arch best"
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    front = json.loads((run / "front.json").read_text())["front"]
    assert len(front) == int(next(line for line in lines if "on the front" in line).split()[-4])


def test_show_and_inspect_agree(run: Path) -> None:
    shown = json.loads(nas("show", str(run), "--json").stdout)
    best = max(shown["trials"], key=lambda trial: trial["metrics"]["accuracy"])
    inspected = json.loads(nas("inspect", str(run), "--json").stdout)
    assert inspected["flops"] == best["metrics"]["flops"]
    assert inspected["key"] == best["key"]
    assert sum(block["flops"] for block in inspected["blocks"]) == inspected["flops"]
    assert sum(block["params"] for block in inspected["blocks"]) == inspected["params"]
    everything = json.loads(nas("show", str(run), "--all", "--json").stdout)
    assert sum(everything["states"].values()) == len(everything["trials"]) >= 30
    assert nas("show", str(run), "--all").returncode == 0


def test_inspect_prints_the_zoo(run: Path) -> None:
    done = nas("inspect", "resnet50")
    assert "25,557,032" in done.stdout
    assert "4,089,184,256" in done.stdout
    file = run / "resnet50.json"
    from nas.search_spaces.zoo import get

    file.write_text(json.dumps(get("resnet50").to_json()))
    assert json.loads(nas("inspect", str(file), "--json").stdout)["params"] == 25_557_032


def test_show_an_architecture(run: Path) -> None:
    table = nas("show", "resnet50").stdout
    assert table == nas("inspect", "resnet50").stdout
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line}
    assert rows["stage3"][1:4] == ["6", "blocks", "1024x14x14"]
    parts = [int(rows[f"stage3.{i}"][3].replace(",", "")) for i in range(6)]
    assert int(rows["stage3"][4].replace(",", "")) == sum(parts)
    best = json.loads(nas("show", str(run), "--arch=best:flops", "--json").stdout)
    smallest = min(json.loads(nas("show", str(run), "--json").stdout)["trials"], key=lambda t: t["metrics"]["flops"])
    assert best["key"] == smallest["key"]


def test_the_command_of_a_run_is_the_one_that_was_given(tmp_path: Path) -> None:
    """What the report says reproduces a run: read again, it gives the same configuration."""
    from nas.config import Config

    given = Config(
        space="lecture", strategy="tpe", objectives=("accuracy", "flops"), limits=("flops=1M", "params<=2K"),
        start=("resnet20_cifar", "my run"), time=90.0, rungs=(1.0, 3.0), seed=3, workers=2, gpus_per_trial=0.5,
        verbose=True, options={"strategy": {"population": 4, "note": "a b", "odd": "3"}, "data": {"limit": 9}},
    )  # fmt: skip
    words = shlex.split(given.command())
    assert words[:2] == ["nas", "search"]
    with (
        mock.patch("nas.report.progress.watch", lambda begin: begin(None, None)),
        mock.patch("nas.session.start") as start,
    ):
        done = nas(*words[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert start.call_args.args == (given,)
    assert Config().command() == "nas search"


def test_export_a_reference_in_some_formats(tmp_path: Path) -> None:
    done = nas("export", "resnet20_cifar", "--format=source,json", "--json", "--name=net", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [entry["files"] for entry in json.loads(done.stdout)] == [["net.py"], ["net.json"]]
    shown = json.loads(nas("show", str(tmp_path / "net.json"), "--json").stdout)
    assert shown["params"] == 269_722
    again = nas("export", str(tmp_path / "net.json"), "--format=source", "--name=again", cwd=tmp_path)
    assert "check  source: same outputs as the network" in again.stdout


@pytest.mark.parametrize("what", ["spaces", "strategies", "evaluators", "zoo"])
def test_lists(what: str) -> None:
    rows = json.loads(nas("list", what, "--json").stdout)
    names = {row["name"] for row in rows}
    assert names > {"spaces": {"mobile"}, "strategies": {"random"}, "evaluators": {"train"}, "zoo": {"resnet50"}}[what]
    assert nas("list", what).stdout.count("\n") == len(rows) + 1


def test_list_shows_runs_and_what_is_wrong_with_them(run: Path) -> None:
    broken = run.parent / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    rows = {Path(row["run"]).name: row for row in json.loads(nas("list", "--folder", str(run.parent), "--json").stdout)}
    assert rows["run"]["space"] == "nasbench-macro"
    assert "cannot be read" in rows["broken"]["remark"]
    assert "no runs here" in nas("list", "--folder", str(run / "nothing")).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--strategy=evolutoin"], "no strategy is called 'evolutoin'; did you mean 'evolution'?"),
        (["search", "--space=nope"], "no space is called 'nope'"),
        (["search", "--space=nope:Nope"], "cannot be imported: ModuleNotFoundError"),
        (["search", "--space=json:dumps"], "space 'json:dumps'"),
        (["search", "--evaluator=toys:nothing"], "has no 'nothing'"),
        (["search", "--set", "strategy.populaton=3"], "has no option 'populaton', did you mean strategy.population?"),
        (["search", "--set", "strategy.population=none"], "strategy.population: expected a whole number"),
        (["search", "--set", "evaluator.epochs=0"], "epochs: expected a whole number of at least 1, got 0"),
        (["search", "--set", "data.limits=3"], "no option 'limits', did you mean data.limit?"),
        (["search", "--set", "space.width=-1"], "width must be positive"),
        (["search", "--limit", "flops=lots"], "limit: 'lots' in 'flops=lots' is not a number"),
        (["search", "--limit", "speed=3"], "with a metric among accuracy, loss, flops"),
        (["search", "--objectives", "acuracy"], "objectives: 'acuracy' is not a metric"),
        (["search", "--data", "/no/such/folder"], "no such file or folder"),
        (["search", "--device", "tpu"], "device: expected auto"),
        (["search", "--trials", "0"], "trials: expected a whole number of at least 1"),
        (["search", "--time", "soon"], "time: expected a time such as"),
        (["search", "--config", "none.toml"], "does not exist"),
        (["search", "--evaluator=table", "--space=mobile"], "no trial of"),
        (["resume", "nothing"], "nothing is not a run folder"),
        (["show", "nothing"], "nothing is not a run folder"),
        (["export", "nothing"], "nothing is not a run folder"),
        (["export", "resnet20_cifar", "--format=tf"], "'tf' is not one of source, state, onnx, program, json"),
        (["show", "resnet51"], "resnet50"),
        (["report", "nothing"], "nothing is not a run folder"),
        (["dashboard", "nothing"], "nothing is not a run folder"),
        (["inspect", "resnet51"], "resnet50"),
        (["inspect", "none.json"], "cannot be read"),
        (["list", "cats"], "list: 'cats' is not one of"),
        (["diagnose", "resnet51"], "resnet50"),
        (["diagnose", "resnet20_cifar", "--batch=1"], "batch: expected at least 2 images"),
        (["diagnose", "resnet20_cifar", "--steps=-1"], "steps: expected a whole number of at least 0"),
        (["diagnose", "resnet20_cifar", "--size=0"], "scale: expected positive factors"),
        (["diagnose", "resnet20_cifar", "--data=nowhere"], "no such file or folder"),
        (["profile-space", "mobil"], "no space is called 'mobil'; did you mean 'mobile'?"),
        (["profile-space", "lecture", "--samples=0"], "samples: expected a whole number of at least 1"),
        (["profile-space", "lecture", "--set=strategy.x=1"], "nothing here takes it"),
        (["profile-space", "lecture", "--evaluator=toys:nothing"], "has no 'nothing'"),
        (["profile-space", "."], "is not a run folder"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    if arguments[0] == "search":
        arguments = [*arguments, "--out=run", *([] if "--trials" in arguments else ["--trials=2"])]
    done = nas(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if "no trial of" not in message:
        assert not (tmp_path / "run").exists(), "a run folder was made before the mistake was seen"


def test_diagnose_a_runs_best_a_file_and_a_reference(run: Path, tmp_path: Path) -> None:
    picture, quick = tmp_path / "inside.png", ["--steps=1", "--batch=4"]
    done = nas("diagnose", str(run), "--data=digits", *quick, f"--plot={picture}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote  {picture}"
    assert "verdict          " in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    file = tmp_path / "net.json"
    from nas.search_spaces.zoo import get

    file.write_text(json.dumps(get("resnet20_cifar").to_json()))
    found = json.loads(nas("diagnose", str(file), *quick, "--json", "--size=16", f"--plot={picture}").stdout)
    assert (found["input_shape"], found["steps"], found["findings"]) == ([3, 16, 16], 1, [])
    again = json.loads(nas("diagnose", "resnet20_cifar", *quick, "--json", "--size=16").stdout)
    assert again == found
    other = json.loads(nas("diagnose", "resnet20_cifar", *quick, "--json", "--size=16", "--seed=1").stdout)
    assert other["moments"] != found["moments"]


def test_diagnose_looks_with_the_data_of_the_run(tmp_path: Path) -> None:
    search = ["search", "--space=lecture", "--evaluator=diagnose", "--objectives=gradient_spread", "--trials=1",
              "--set=data.size=12", "--set=data.limit=60", "--out=run"]  # fmt: skip
    assert nas(*search, cwd=tmp_path).returncode == 0
    found = json.loads(nas("diagnose", "run", "--steps=0", "--json", cwd=tmp_path).stdout)
    assert found["input_shape"] == [1, 12, 12]


def test_profile_spaces_and_runs(run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "spaces.png"
    done = nas("profile-space", "lecture", "nasbench-macro", "--samples=20", f"--plot={picture}")
    assert done.returncode == 0, done.stderr
    assert "nasbench-macro: 6,561 genotypes (6.56e+03); 20 at random" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(
        nas("profile-space", str(run), "lecture", "--samples=5", "--evaluator=diagnose", "--json").stdout
    )
    assert [profile["random"] for profile in found] == [False, True]
    assert "error" in found[0]["metrics"]
    assert len(found[1]["metrics"]["dead_units"]["values"]) == 5


def test_proxies_are_those_of_the_evaluator(tmp_path: Path) -> None:
    """`--proxies` is short for an option of the evaluator that computes them, here one of a user's own."""
    options = ["--samples=4", "--proxies=nwot,synflow", "--json"]
    found = json.loads(nas("profile-space", "lecture", "--evaluator=toys:Proxies", *options).stdout)
    assert list(found[0]["metrics"])[-2:] == ["nwot", "synflow"]


def test_export_names_what_is_missing(run: Path) -> None:
    assert "no finished trial 9999" in nas("export", str(run), "--arch=9999").stderr
    assert "no objective 'loss'" in nas("export", str(run), "--arch=best:loss").stderr
    assert "expected best" in nas("export", str(run), "--arch=worst").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "RUN", "--out=RUN/run.json"], "ending in .html"),
        (["export", "RUN", "--out=RUN", "--name=run", "--format=json"], "holds files of the run"),
        (["export", "RUN", "--out=RUN/weights", "--format=state"], "holds files of the run"),
        (["compare", "RUN", "--out=figure.json"], "ending in .png"),
        (["diagnose", "resnet20_cifar", "--plot=page.html"], "ending in .png"),
        (["diagnose", "resnet20_cifar", "--seed=-1"], "seed: expected a whole number of at least 0"),
        (["profile-space", "mobile", "--plot=."], "ending in .png"),
        (["dashboard", "RUN", "--port=70000"], "from 1 to 65535"),
        (["proxies", "RUN", "--networks=-1"], "networks: expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_done(run: Path, arguments: list[str], message: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = nas(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.count("\n") == 1
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

"""Every command and example of the README is run here (with fewer trials and images, so that it takes seconds)."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import nas

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.strip().splitlines()]
EXAMPLES = [text for kind, text in BLOCKS if kind == "python"]
FEW_BLOCKS = ["kernels=[3]", "expansions=[3]", 'activations=["relu"]', "resolutions=[1.0]"]
QUICK = ["--trials=2", "--set=data.limit=200", "--set=evaluator.batch=16"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: photos of two kinds, an archive of grey images, and the README's examples as a module."""
    rng, fashion = np.random.default_rng(0), {}
    for kind, level in (("cats", 60), ("dogs", 190)):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(level - 50, level + 50, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{i}.png")
    for name, count in (("train", 60), ("test", 20)):
        fashion[f"x_{name}"] = rng.integers(256, size=(count, 28, 28), dtype=np.uint8)
        fashion[f"y_{name}"] = np.arange(count) % 3
    np.savez(tmp_path / "fashion_mnist.npz", **fashion)
    (tmp_path / "my_module.py").write_text(f"{EXAMPLES[0]}\n\n{EXAMPLES[1]}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_commands_work_in_their_order(project: Path) -> None:
    ours = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("nas ")]
    names = [
        "search",
        "export",
        "report",
        "search",
        "resume",
        "train",
        "train",
        "search",
        "train",
        "train",
        "search",
        "search",
        "compare",
        "bench",
        *["search"] * 4,
        "proxies",
        "search",
        "diagnose",
        "profile-space",
        "search",
        "profile-device",
        "search",
    ]
    assert [words[0] for words in ours] == names
    for words in ours:
        few = [] if {"--rungs", "proxy"} & set(words) else ["--set=evaluator.epochs=1"]
        few += ["--set=strategy.epochs=1"] if "--strategy=darts" in words else []
        if "--screen" in words:  # as many trainings as a rank correlation needs
            few += ["--screen=proxy:9:4", "--set=screen.reference=4", "--trials=8"]
        if any("device.json" in word for word in words):
            few += [f"--set=space.{option}" for option in FEW_BLOCKS]
        profiled = [word for word in few if "space." in word]
        fast = {
            "search": [*QUICK, *few], "bench": ["--seeds=1", "--peers=none"], "proxies": ["--set=proxy.reference=4"],
            "profile-space": ["--samples=20"], "profile-device": profiled,
            "train": ["--epochs=1", "--set=train.batch=16", "--set=data.limit=200"],
        }  # fmt: skip
        done = nas(*words, *fast.get(words[0], []))
        assert done.returncode == 0, f"nas {shlex.join(words)}: {done.stderr}"
    assert list((project / "runs/mobile-evolution-1/export").glob("*.py"))


def test_the_commands_of_make_are_what_the_makefile_runs() -> None:
    others = [command for command in COMMANDS if not command.startswith("nas ")]
    assert others == ["make search", "pip install -c constraints.txt -e ."]
    dry = subprocess.run(["make", "--dry-run", "-B", "search"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "install -q -c constraints.txt -e ." in dry.stdout
    assert "nas search --space=mobile --strategy=evolution" in dry.stdout
    assert "nas search --space=mobile --strategy=evolution" in COMMANDS


def test_the_table_of_commands_is_complete() -> None:
    from typer.main import get_command

    from nas import cli

    command = get_command(cli.app)
    assert set(re.findall(r"^\| `nas ([\w-]+)", README, flags=re.MULTILINE)) == set(command.commands)  # type: ignore[attr-defined]
    options = {option for p in command.commands["search"].params for option in p.opts}  # type: ignore[attr-defined]
    row = next(line for line in README.splitlines() if line.startswith("| `nas search`"))
    assert set(re.findall(r"--\w+", row)) <= options


def test_a_space_and_a_function_of_ones_own(project: Path) -> None:
    done = nas("search", "--space=my_module:mine", "--evaluator=my_module:score", "--trials=3", "--data=photos")
    assert done.returncode == 0, done.stderr
    assert "3 ok" in done.stdout


def test_the_python_example(project: Path) -> None:
    options = {"evaluator": {"epochs": 1, "batch": 16}, "data": {"limit": 200}}
    code = EXAMPLES[2].replace("trials=20", f"trials=2, options={options}")
    assert code != EXAMPLES[2]
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert sum(p.numel() for p in scope["network"].parameters()) == scope["best"].trial.metrics["params"]  # type: ignore[attr-defined]


def test_what_there_is_is_all_there_is() -> None:
    from nas.plugins import available

    table = README[README.index("## What there is") :]
    for row, kind in (("spaces", "search_spaces"), ("strategies", "strategies"), ("evaluators", "evaluators")):
        line = next(line for line in table.splitlines() if line.startswith(f"| {row}"))
        assert set(re.findall(r"`([\w-]+)`", line)) == set(available(kind))  # type: ignore[arg-type]

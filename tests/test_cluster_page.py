"""What `docs/cluster.md` shows is at least well-formed, and names options that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from nas import cli
from nas.config import Config
from nas.executors.cluster import read_runtime_env

PAGE = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
SCRIPTS = [text for kind, text in BLOCKS if kind in ("sh", "bash")]
MANIFESTS = [text for kind, text in BLOCKS if kind == "yaml"]
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
LAUNCHER, RAYJOB, RUNTIME = (yaml.safe_load(text) for text in MANIFESTS)


def commands(program: str) -> list[list[str]]:
    """The words after `program` wherever the page shows it with an option or argument."""
    texts = [*SCRIPTS, RAYJOB["spec"]["entrypoint"], *INLINE]
    lines = [line.partition(" #")[0] for text in texts for line in text.splitlines()]
    found = re.findall(rf"(?<![\w-]){program} (\w[^';&\n]*)", "\n".join(lines))
    return [shlex.split(words.replace('"', "")) for words in found]


def options(command: Any, words: list[str]) -> tuple[set[str], set[str]]:
    """Options among the words of a command line, and those that the command has."""
    ours = words[: words.index("--")] if "--" in words else list(words)
    while hasattr(command, "commands"):
        command = command.commands[ours.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    return {word.partition("=")[0] for word in ours if word.startswith("--")}, known


def test_options_are_those_of_the_commands() -> None:
    ours = commands("nas")
    assert len(ours) >= 8
    for words in ours:
        given, known = options(get_command(cli.app), words)
        assert given <= known, words
    assert {word for words in ours for word in words if word.startswith("--")} >= {"--address", "--wait", "--storage"}
    named = {text.split()[0] for text in INLINE if text.startswith("--")} - {"--working-dir"}
    known = {name for command in get_command(cli.app).commands.values() for p in command.params for name in p.opts}  # type: ignore[attr-defined]
    assert named <= known


def test_options_of_ray_are_those_of_its_commands() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="the commands need ray[default]")
    theirs = [words for words in commands("ray") if words[0] in ("start", "job", "submit", "exec", "up", "down")]
    each = re.search(r"^each=\((.*)\)$", PAGE, flags=re.MULTILINE)
    assert each
    theirs.append(["start", *each[1].split()])
    assert len(theirs) >= 8
    for words in theirs:
        given, known = options(scripts.cli, words)
        assert given <= known, words


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_shell(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_launchers_file_fits_rays_schema() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="the launcher needs ray[default]")
    pytest.importorskip("jsonschema", reason="the launcher needs ray[default]")
    util.validate_config(util.prepare_config(LAUNCHER))
    assert LAUNCHER["head_node_type"] in LAUNCHER["available_node_types"]
    with pytest.raises(Exception, match="unknown"):
        util.validate_config(util.prepare_config({**LAUNCHER, "unknown": 1}))


def test_the_job_of_kuberay_has_a_head_and_workers() -> None:
    assert (RAYJOB["apiVersion"], RAYJOB["kind"]) == ("ray.io/v1", "RayJob")
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())


def test_the_runtime_environment_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "environment.yaml").write_text(MANIFESTS[-1])
    assert read_runtime_env(str(tmp_path / "environment.yaml")) == RUNTIME
    environment = pytest.importorskip("ray.runtime_env").RuntimeEnv(**RUNTIME)
    assert environment.env_vars() == {"AWS_PROFILE": "search"}


def test_the_python_file_has_a_valid_configuration() -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    made = re.search(r"nas\.(Config\(.*\))\)", code)
    assert made
    config = eval(made[1], {"Config": Config})
    assert (config.runs_on, config.wait, config.storage) == ("ray", 900, "s3://bucket/photos")

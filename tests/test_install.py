"""Editable and plain installs, started from anywhere and from the repository's root."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = (
    "nas",
    "nas.search_spaces.mobile",
    "nas.strategies.evolution",
    "nas.evaluators.table",
    "nas.evaluators.proxies",
)
PROBE = f"import importlib; print(*[importlib.import_module(name).__file__ for name in {MODULES}])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing in this one."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    kept = ("nas", "search_spaces", "strategies", "evaluators", "pyproject.toml", "README.md", "LICENSE")
    folder.mkdir()
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.mark.parametrize("editable", [True, False], ids=["editable", "wheel"])
def test_an_install_works_from_anywhere(checkout: Path, tmp_path: Path, editable: bool) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    packages = next((environment / "lib").glob("python*/site-packages"))
    # Borrow the libraries of this environment; a path added so does not run the .pth files that lie in it, so this
    # environment's own editable install stays out.
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    pip += ["--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *(["-e"] if editable else []), str(checkout)], check=True)

    for folder in (tmp_path, checkout):
        run = subprocess.run([python, "-c", PROBE], cwd=folder, capture_output=True, text=True, check=True)
        inside = checkout if editable or folder == checkout else environment
        assert all(Path(file).is_relative_to(inside) for file in run.stdout.split()), run.stdout
        for start in ([environment / "bin/nas"], [python, "-m", "nas"]):
            command = [*start, "search", "--space=nasbench-macro", "--evaluator=table", "--strategy=random"]
            command += ["--trials=2", "--out", str(tmp_path / f"{folder.name}-{len(start)}")]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            assert "on the front" in done.stdout

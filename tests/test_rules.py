"""The shape of the code: who may import whom, what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("search_spaces", "strategies", "evaluators")


def imports(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports; relative imports inside a plug-in folder are left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or path.parent.parent.name in PLUGINS, f"{path} reaches out of its folder"
    return found


def test_the_kernel_never_imports_a_plug_in() -> None:
    for path in (ROOT / "nas").rglob("*.py"):
        for name in imports(path):
            assert not name.startswith(tuple(f"nas.{folder}" for folder in PLUGINS)), f"{path} imports {name}"


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plug_in_imports_its_siblings_relatively_and_only_the_kernel_else(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] not in PLUGINS, f"{path} imports {name}"
            assert not name.startswith(tuple(f"nas.{other}" for other in PLUGINS)), f"{path} imports {name}"


def loaded_by(code: str) -> set[str]:
    """Top-level modules that are loaded after running `code` in a fresh interpreter."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


HEAVY = {"torch", "ray", "optuna", "matplotlib", "sklearn", "PIL", "pymoo", "scipy", "pandas"}


@pytest.mark.parametrize(
    "code",
    [
        "import nas",
        "import nas.blocks, nas.space, nas.search, nas.session, nas.plugins, nas.pareto",
        "import nas.search_spaces.mobile, nas.search_spaces.lecture, nas.strategies.evolution, nas.evaluators.train",
        "import nas\nnas.OneOf, nas.Space, nas.start, nas.load",
    ],
)  # fmt: skip
def test_an_import_pulls_in_nothing_heavy(code: str) -> None:
    assert not loaded_by(code) & HEAVY


def test_help_answers_at_once() -> None:
    """At most 0.35 s of CPU; a ratio to bare Python and its heaviest need keeps the test true on a slower machine."""

    def seconds(*arguments: str) -> float:
        code = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
            "usage = resource.getrusage(resource.RUSAGE_CHILDREN); print(usage.ru_utime + usage.ru_stime)"
        )
        command = [sys.executable, "-c", code, *arguments]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT) for _ in range(3)]
        return min(float(run.stdout) for run in runs)

    libraries = seconds(sys.executable, "-c", "import typer, rich.console, numpy, networkx")
    assert seconds(sys.executable, "-m", "nas", "--help") <= max(0.35, 1.2 * libraries)

"""Shared fixtures."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["GOMP_SPINCOUNT"] = "2000"  # as nas.cli does, before anything loads torch

settings.register_profile("noisy", deadline=None)  # a busy machine is no failure
settings.load_profile("noisy")
sys.path.insert(0, str(Path(__file__).parent))  # `toys` is named on the command line as a user's module would be


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several test processes (`make test`), one has all tests that start Ray: two clusters at once are slow."""
    for item in items:
        if item.path.parent.name == "executors":
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of measured tables beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the measured tables (../shared/data) are not on this machine")
    return folder.resolve()

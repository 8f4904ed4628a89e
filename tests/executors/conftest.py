"""Tests of executors leave no garbage behind that another file's tests would be blamed for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Ray leaves sockets and files to the garbage collector; it runs here, where their warnings are ignored."""
    yield
    gc.collect()

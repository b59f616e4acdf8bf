"""Processes and servers that a test may kill: each test has its own."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.processes import Commands, Valkey


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A running Valkey of the test's own."""
    home = Path(tempfile.mkdtemp(prefix="wos-"))  # a socket's path must be short
    server = Valkey(home)
    server.start()
    yield server
    server.thaw()
    server.kill()
    shutil.rmtree(home)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    """Starts our commands in an empty folder; all are gone after the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    started = Commands(folder)
    yield started
    started.sweep_away()

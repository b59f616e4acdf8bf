"""The quick start of the README: every command, run as written, in a fresh clone in an empty folder.

Two things are substituted: REPOSITORY is this checkout, and a free port replaces 8000. `pip` uses its usual cache.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import eventually
from tests.support.shell import Shell, processes_in, read_steps, shell_in
from tests.support.stack.machine import ROOT, free_ports

QUICK_START = (ROOT / "README.md").read_text().split("\n## Quick start\n")[1].split("\n## ")[0]
PROGRAMS = ("git", "curl", "openssl", "sqlite3")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install)"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout"),
]


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in the empty folder, whose `python3` is the interpreter of these tests."""
    monkeypatch.setenv("PATH", f"{sys.base_exec_prefix}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    with shell_in(folder) as opened:
        yield opened


@pytest.mark.timeout(900)
def test_the_commands_of_the_quick_start_do_what_it_says(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *start, query = read_steps(QUICK_START)
    [port] = free_ports(1)
    shell.run(f"export PORT={port}")
    for command, output in start:
        printed = shell.run(command.replace("REPOSITORY", str(ROOT)).replace("localhost:8000", f"localhost:{port}"))
        assert printed == output or not output, printed
    assert query.output
    eventually(lambda: shell.run(query.command) == query.output, 60)  # on a busy machine later than after its `sleep 1`
    [stop] = re.findall(r"Stop the processes with `(kill [^`]+)`", QUICK_START)
    shell.run(stop)
    for job in re.findall(r"%\d", stop):
        shell.run(f"wait {job}")
    assert [process.name() for process in processes_in(folder)] == ["bash"]

"""The quick start of the README: every command, run as written, in a fresh clone in an empty folder.

Two things are substituted: REPOSITORY is this checkout, and a free port replaces 8000. `pip` uses its usual cache.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.support.processes import alive, environment, eventually, suppress_gone
from tests.support.stack.machine import ROOT, free_ports

QUICK_START = (ROOT / "README.md").read_text().split("\n## Quick start\n")[1].split("\n## ")[0]
PROGRAMS = ("git", "curl", "openssl", "sqlite3")
END = "\x1e"
"""Printed after each command, before its exit code."""
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install)"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout"),
]


class Step(NamedTuple):
    """A command, and the output that the README shows for it; empty if it shows none."""

    command: str
    output: str


def read_steps() -> list[Step]:
    """The steps of the quick start: `$` starts a command, indented lines continue it, other lines are output."""
    text = "".join(re.findall(r"^```console\n(.*?)^```$", QUICK_START, re.MULTILINE | re.DOTALL))
    found = re.findall(r"^\$ (.*(?:\n .*)*)\n((?:[^$\s].*\n)*)", text, re.MULTILINE)
    assert "".join(f"$ {command}\n{output}" for command, output in found) == text, "a line belongs to no step"
    return [Step(*step) for step in found]


class Shell:
    """One bash that runs commands in turn, as a person types them: folder, variables and background jobs persist."""

    def __init__(self, folder: Path) -> None:
        settings = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
        self._log = folder / "stderr.log"
        with self._log.open("wb") as log:
            self._bash = subprocess.Popen(
                ["bash", "-o", "pipefail"],  # noqa: S607
                cwd=folder,
                env=settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, command: str) -> str:
        """Run a command to its end and return what it printed; AssertionError unless it succeeds."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f"{command}\nprintf '{END}%d\\n' $?\n")
        self._bash.stdin.flush()
        printed = ""
        while END not in printed:
            line = self._bash.stdout.readline()
            assert line, f"the shell ended in: {command}\n{self._errors()}"
            printed += line
        output, _, code = printed.partition(END)
        assert int(code) == 0, f"exit code {code.strip()}: {command}\n{output}{self._errors()}"
        return output

    def _errors(self) -> str:
        return self._log.read_text()[-2000:]

    def close(self) -> None:
        """End the shell."""
        self._bash.communicate()


@pytest.fixture
def folder(quick_folder: Path) -> Iterator[Path]:
    """An empty folder. Its path leaves room for the name of a socket."""
    (made := quick_folder / "start").mkdir()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in the empty folder, whose `python3` is the interpreter of these tests."""
    monkeypatch.setenv("PATH", f"{sys.base_exec_prefix}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    opened = Shell(folder)
    yield opened
    for process in processes_in(folder):
        with suppress_gone():
            process.kill()
    opened.close()


def processes_in(folder: Path) -> list[psutil.Process]:
    """The living processes whose working directory is `folder` or below it."""
    found = psutil.process_iter(["cwd"])
    return [each for each in found if Path(each.info["cwd"] or "/").is_relative_to(folder) and alive(each)]


@pytest.mark.timeout(900)
def test_the_commands_of_the_quick_start_do_what_it_says(
    shell: Shell, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *start, query = read_steps()
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

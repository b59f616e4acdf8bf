"""The demo: exit code, last line, and no process or folder left behind."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.stack.machine import environment

pytestmark = pytest.mark.long

COMPILED = Path(tempfile.gettempdir()) / "workos-sync-tests-bytecode"
VERDICT = re.compile(r"mirror equals WorkOS: [1-9]\d* workspaces, [1-9]\d* members, [1-9]\d* domains")


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder for the demo's own folder. tmp_path is too long for a Unix socket below it."""
    made = Path(tempfile.mkdtemp(prefix="wos-"))
    yield made
    shutil.rmtree(made)


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "demo", *arguments],
        env=environment(COMPILED) | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def family(folder: Path, pid: int) -> set[psutil.Process]:
    """The process, its descendants, and processes with its folder on the command line (PostgreSQL detaches itself)."""
    roots = {psutil.Process(pid)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                roots.add(process)
    return roots | {child for root in roots for child in root.children(recursive=True)}


def living(processes: set[psutil.Process]) -> list[str]:
    """The processes that still run. Zombies count as ended: in a container, orphans may not be reaped."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def number_of(name: str, output: str) -> int:
    """A number in the table of the run."""
    found = re.search(rf"│ +{name} +│ ([0-9]+) ", output)
    assert found, output
    return int(found[1])


def test_demo_ends_with_a_mirror_equal_to_workos(folder: Path) -> None:
    demo = start(folder, "--events", "200", "--companies", "6")
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    assert VERDICT.fullmatch(output.splitlines()[-1]), output
    lost, caught_up = number_of("webhooks lost", output), number_of("fetched from the events API", output)
    assert lost == caught_up > 0 and "1 deleted, 1 added, 3 updated" in output, output
    assert re.search(r"invited\.guest@example\.org +│ member +│ 20", output), output
    assert not list(folder.glob("workos-sync-*"))


def test_ctrl_c_stops_every_process(folder: Path) -> None:
    demo = start(folder, "--events", "100000", "--database", "postgres")
    assert demo.stdout is not None
    assert any(" applied " in line for line in demo.stdout), "it ended before it played"
    before = family(folder, demo.pid)
    names = {process.name() for process in before}
    assert {"postgres", "valkey-server"} <= names, names
    os.killpg(demo.pid, signal.SIGINT)  # as a terminal does
    output, _ = demo.communicate()
    assert demo.returncode == 128 + signal.SIGINT, output
    assert living(before) == []
    assert not list(folder.glob("workos-sync-*"))

"""docs/development.md: a laptop session without `web`, with every command run as written, in an empty folder.

One thing is substituted: a free port replaces 8010.
"""

import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from models.database import open_engine
from tests.support import read
from tests.support.processes import eventually
from tests.support.shell import Shell, files_of, read_steps, shell_in
from tests.support.stack.machine import ROOT, call, free_ports
from worker.repair.catch_up import count_missed_webhooks

PAGE = (ROOT / "docs" / "development.md").read_text()
GAPS = 12
"""More events without a webhook than an installation that expects them may have."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (shutil.which("curl") and shutil.which("sqlite3")), reason="curl or sqlite3 is missing"),
]


@pytest.fixture
def shell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with shell_in(folder) as opened:
        yield opened


@pytest.mark.timeout(300)
def test_a_laptop_session_needs_no_webhooks(shell: Shell, folder: Path) -> None:
    [port] = free_ports(1)
    (folder / "seed.json").write_text(files_of(PAGE)["seed.json"])
    shell.run("export GAP_SECONDS=1 TAIL_SECONDS=1 WORKER_PROCESSES=1")
    steps = read_steps(PAGE)
    assert len(steps) > 10
    for command, output in steps:
        here = command.replace("localhost:8010", f"localhost:{port}").replace(" sandbox ", f" sandbox --port {port} ")
        if output:
            eventually(partial(shell.prints, here, output), 60)
        else:
            shell.run(here)

    for number in range(GAPS):
        user = {"operation": "create_user", "email": f"{number}@acme.example"}
        call("POST", f"http://localhost:{port}/sandbox/operations", user)
    engine = open_engine(f"sqlite:///{folder}/.workos-sync/mirror.db")
    eventually(lambda: read(engine, count_missed_webhooks, 1)[0] >= GAPS, 60)
    engine.dispose()
    status = json.loads(shell.run("workos-sync status --json"))
    assert status["gaps"] >= GAPS
    assert (status["severity"], status["conditions"], status["webhooks_expected"]) == ("ok", [], False)
    shell.run("for job in %1 %2 %3; do kill $job; wait $job; done")


def test_the_comparison_with_a_handler_shows_each_difference() -> None:
    [query] = [each.split("```")[0] for each in PAGE.split("```sql\n")[1:]]
    with sqlite3.connect(":memory:") as database:
        database.executescript(
            "CREATE TABLE handler_members (organization_id, user_id, role);"
            "CREATE TABLE workspace_members (organization_id, user_id, workos_role);"
            "INSERT INTO handler_members VALUES ('org', 'same', 'admin'), ('org', 'late', 'member'), ('org', 'r', 'a');"
            "INSERT INTO workspace_members VALUES ('org', 'same', 'admin'), ('org', 'new', 'member'), ('org', 'r', 'b')"
        )
        found = {user: (handler, mirror) for _, user, handler, mirror in database.execute(query)}
    database.close()
    assert found == {"late": ("member", None), "new": (None, "member"), "r": ("a", "b")}

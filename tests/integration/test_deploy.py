"""A deploy and its rollback while deliveries arrive, as docs/deploy/README.md describes them for one machine.

The next release is this code with one more migration. The socket is held by this process, as systemd holds it.
"""

import http.client
import itertools
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from sqlalchemy import Engine

from models.database import open_engine
from models.revisions import current_revision, newest_revision
from tests.support import sign, statuses
from tests.support.inbox import count, pending
from tests.support.processes import Command, Commands, Valkey, eventually
from tests.support.stack.machine import ROOT
from tests.support.stories import encoded, user, written_once

pytestmark = pytest.mark.long

NEXT = "9999"
MIGRATION = f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{NEXT}", "{newest_revision()}", None, None


def upgrade() -> None:
    op.add_column("users", sa.Column("favourite_colour", sa.Text()))
    op.create_index("users_by_favourite_colour", "users", ["favourite_colour"])
"""


class Deliveries(threading.Thread):
    """Posts events of new users one after the other, each on its own connection, until the block ends."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self._over = port, threading.Event()
        self.accepted = 0
        self.refused: list[object] = []

    def run(self) -> None:
        for number in itertools.count():
            if self._over.wait(0.01):
                return
            self._post(encoded(user(f"user_{number:05}", f"event_{number:05}", 0)))

    def _post(self, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/webhooks/workos", body, {"WorkOS-Signature": sign(body)})
            answer = connection.getresponse()
            result = answer.status, answer.read()
        except OSError as error:
            result = 0, repr(error).encode()
        connection.close()
        self.accepted += result[0] == 200
        self.refused += [result] * (result[0] != 200)

    def wait_for(self, number: int = 30) -> None:
        """Return once `number` more deliveries were accepted, or one was refused."""
        wanted = self.accepted + number
        eventually(lambda: self.refused or self.accepted >= wanted, 60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.join()


class Installation:
    """Web, worker and clock over one database and one socket; `restart` changes the release."""

    def __init__(self, commands: Commands, engine: Engine, endpoint: socket.socket) -> None:
        self._commands, self._engine, self._socket = commands, engine, endpoint
        commands.executed = True  # each with the modules of its release
        self._running: dict[str, Command] = {}

    def restart(self, release: Path) -> None:
        """Stop each command by SIGTERM and start that of `release`, web first: new connections wait in the socket."""
        for name in ("web", "worker", "clock"):
            if name in self._running:
                self._running[name].stop(40)
            code = {"PYTHONPATH": f"{release}:{ROOT}"}
            start = partial(self._commands.activate, self._socket) if name == "web" else self._commands.start
            self._running[name] = start(name, **code)

    def migrate(self, release: Path) -> Command:
        """Run `migrate` of a release to its end."""
        migrate = self._commands.start("migrate", PYTHONPATH=f"{release}:{ROOT}")
        migrate.process.wait(60)
        return migrate

    def wait_until_applied(self, number: int = 30) -> None:
        """Return once `number` more events were applied."""
        wanted = self._applied() + number
        eventually(lambda: self._applied() >= wanted, 60)

    def _applied(self) -> int:
        return count(self._engine) - pending(self._engine)

    def stop(self) -> None:
        for command in self._running.values():
            command.stop(40)


def next_release(folder: Path) -> Path:
    """This code with one more migration."""
    for package in ("models", "worker", "webhooks"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "models/migrations/versions" / f"{NEXT}_next.py").write_text(MIGRATION)
    return folder


@pytest.fixture
def url(make_database: Callable[[str], str]) -> str:
    return make_database("postgresql")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.mark.timeout(400)
def test_a_deploy_and_its_rollback_lose_no_delivery(
    url: str, engine: Engine, valkey: Valkey, commands: Commands, tmp_path: Path
) -> None:
    old, new = ROOT, next_release(tmp_path / "release")
    commands.settings |= {"DATABASE_URL": url, "REDIS_URL": valkey.url, "WORKER_PROCESSES": 1, "WEB_PROCESSES": 1}
    with socket.create_server(("0.0.0.0", 0), backlog=1024) as endpoint:  # noqa: S104 - as systemd's
        commands.settings["PORT"] = endpoint.getsockname()[1]
        installation = Installation(commands, engine, endpoint)
        installation.restart(old)
        with Deliveries(endpoint.getsockname()[1]) as deliveries:
            deliveries.wait_for()
            assert installation.migrate(new).process.returncode == 0
            assert current_revision(engine) == NEXT
            for release in (new, old):  # at the end the old code starts on the newer schema
                installation.restart(release)
                deliveries.wait_for()
                installation.wait_until_applied()
        assert deliveries.refused == []
        refusal = installation.migrate(old)
        assert refusal.process.returncode == 2 and "needs a newer release" in refusal.output()
    eventually(lambda: pending(engine) == 0, 60)
    assert statuses(engine) == {"done": deliveries.accepted}
    written_once(engine)
    installation.stop()

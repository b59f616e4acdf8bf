"""Helpers of the tests of bounded staleness: tail once, let time pass, ask."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, update

from models.access import Access, Stale, access_of
from models.database import in_transaction, session
from models.tables import FailedEffect, MirrorState, Run, Tail
from models.types import db_now, db_now_plus, db_plus
from tests.support import JSON, rows
from tests.support.processes import Command
from tests.support.repair import settings
from tests.support.resync import Clock
from tests.support.stack.machine import ROOT
from worker.queue.doorbell import Doorbell, TailBell
from worker.repair.tail import TAIL_ID, TAILS, EventTail, publish
from worker.workos_api.client import WorkOSClient

_QUERY = re.search(r"```sql\n(SELECT member.role, .*?)```", (ROOT / "docs" / "integration.md").read_text(), re.DOTALL)
assert _QUERY is not None
DOCUMENTED_SQL = _QUERY[1]
"""The query in docs/integration.md that asks with a bound."""


class TailProcess:
    """A process that tails, until `close`. `given` are settings."""

    def __init__(self, engine: Engine, workos: WorkOSClient, bell: Doorbell, **given: Any) -> None:
        self._held = ExitStack()
        lease = self._held.enter_context(TAILS.lease(engine, TAIL_ID))
        assert lease is not None
        given = {"catch_up_lag_seconds": 60.0} | given
        tail = EventTail(engine, workos, lease, settings(**given), bell, TailBell(bell.queue.connection))
        self.read, self.follow = tail.read, tail.follow
        self.close = self._held.close


@contextmanager
def following(engine: Engine, workos: WorkOSClient, bell: Doorbell, **given: Any) -> Iterator[None]:
    """Tail in a thread, as a process does. At the end, stop it."""
    stop = threading.Event()
    with closing(TailProcess(engine, workos, bell, **given)) as process:
        thread = threading.Thread(target=process.follow, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)
    assert not thread.is_alive()


def tail(engine: Engine, workos: WorkOSClient, bell: Doorbell, **given: Any) -> bool:
    """Read once, in a new process; returns whether all that was read is applied."""
    with closing(TailProcess(engine, workos, bell, **given)) as process:
        return process.read()


def publish_applied(engine: Engine) -> None:
    """Publish how far the mirror is complete, as the tail does while events are applied."""
    in_transaction(engine, publish)


def filled(engine: Engine) -> None:
    """End the backfill."""
    values = {"backfilled_at": db_now(), "last_resync_at": db_now()}
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(values)))


def tail_pids(command: Command) -> list[int]:
    """The processes of a command that have tailed, the newest last."""
    lines = [json.loads(line) for line in command.output().splitlines() if '"tail_started"' in line]
    return [line["pid"] for line in lines]


def state(engine: Engine) -> JSON:
    return rows(engine, Tail)[0]


def pass_time(engine: Engine, clock: Clock, seconds: float) -> None:
    """Let time pass, at WorkOS and by the database's clock: as that cannot be set, what it stamped is moved back."""
    clock.advance(seconds=seconds)

    def age(tx: Connection) -> None:
        for table, columns in ((Tail, ("read_at", "complete_at")), (FailedEffect, ("since",)), (Run, ("created_at",))):
            tx.execute(update(table).values({name: db_plus(getattr(table, name), -seconds) for name in columns}))

    in_transaction(engine, age)


def fresh(engine: Engine, age_seconds: float = 0.0) -> None:
    """Make the mirror complete up to `age_seconds` ago, as after a read of the tail."""
    at = db_now_plus(-age_seconds)
    values = {"read_to": at, "read_at": at, "complete_to": at, "complete_at": at}
    in_transaction(engine, lambda tx: tx.execute(update(Tail).values(values)))


def ask(engine: Engine, user_id: str, organization_id: str, max_staleness: float | None = 60) -> Access | str:
    """The answer to a question with a bound; if it is stale, the reason."""
    with session(engine) as opened:
        try:
            return access_of(opened, user_id, organization_id, max_staleness)
        except Stale as stale:
            return stale.reason

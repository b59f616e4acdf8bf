"""Upgrade: how long writers wait while `migrate` brings a large database of release 1.0.0 to this release."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count

from sqlalchemy import Connection, Engine, text

from models.database import CHANGES_LOCK, advisory_lock, in_transaction, write_transaction
from models.migrate import upgrade
from tests.benchmarks.history import fill_inbox, settle
from tests.benchmarks.runner import OURS, Mark, Row, Sample
from tests.benchmarks.servers import POSTGRESQL, Bench
from tests.support.catalog import drop_schema

RELEASE_1_0_0 = "0010"
LONGEST_EVENT = "longest insert of an event, ms"
LONGEST_CHANGE = "longest insert of a change, ms"
SECONDS = "upgrade, s"
USERS = """
    INSERT INTO users (id, email, email_normalized, revision)
    SELECT 'user_' || n, 'user' || n || '@acme.example', 'user' || n || '@acme.example', 1
    FROM generate_series(1, :number) AS g(n)"""
CHANGES = """
    INSERT INTO changes (kind, object_id, organization_id, before, after, cause, cause_id)
    SELECT 'membership', 'om_' || n % 100000, 'org_' || n % 1000, '{"state": "active", "status": "active"}',
           '{"state": "active", "status": "inactive"}', 'event', 'event_' || n
    FROM generate_series(1, :number) AS g(n)"""
DECISIONS = """
    INSERT INTO changes (kind, object_id, organization_id, before, after, cause, cause_id)
    SELECT 'join', 'user_' || n, 'org_1', '{"state": "blocked", "reasons": ["removed"]}',
           '{"state": "lifted", "why": "hired again"}', 'operator', 'ann'
    FROM generate_series(1, 1000) AS g(n)"""
NEW_EVENT = """
    INSERT INTO events (id, type, source, body)
    VALUES ('event_new_' || :number, 'user.created', 'webhook', CAST('{}' AS bytea))"""
NEW_CHANGE = """
    INSERT INTO changes (kind, object_id, before, after, cause, cause_id)
    VALUES ('user', 'user_1', '{"n": 1}', '{"n": 2}', 'event', 'event_1')"""


def rows(bench: Bench) -> Iterator[Row]:
    """Yield the one row."""
    number, users = bench.size((10_000_000, 100_000) if bench.large else (1_000_000, 100_000), (2_000, 200))

    def ours() -> Sample:
        with ExitStack() as stack:
            engine = stack.enter_context(bench.engine(stack.enter_context(bench.database(POSTGRESQL))))
            drop_schema(engine)
            upgrade(engine, RELEASE_1_0_0)
            fill_inbox(engine, number, users)
            with write_transaction(engine) as tx:
                tx.execute(text(USERS), {"number": users})
                tx.execute(text(CHANGES), {"number": number})
                tx.execute(text(DECISIONS))
            settle(engine)
            events, changes = (Writer(write, engine) for write in (_insert_event, _insert_change))
            with events, changes:
                began = time.perf_counter()
                upgrade(engine)
                took = time.perf_counter() - began
        return {LONGEST_EVENT: events.longest * 1000, LONGEST_CHANGE: changes.longest * 1000, SECONDS: took}

    what = f"upgrade, {POSTGRESQL}: {number:,} rows each of the inbox and of changes"
    marks = [Mark(LONGEST_EVENT, most=1000), Mark(LONGEST_CHANGE, most=1000), Mark(SECONDS)]
    yield Row(what, {OURS: ours}, marks, most_rounds=1)


_numbers = count(1)


def _insert_event(engine: Engine) -> None:
    in_transaction(engine, lambda tx: tx.execute(text(NEW_EVENT), {"number": str(next(_numbers))}))


def _insert_change(engine: Engine) -> None:
    in_transaction(engine, _new_change)


def _new_change(tx: Connection) -> None:
    advisory_lock(tx, CHANGES_LOCK)
    tx.execute(text(NEW_CHANGE))


class Writer(threading.Thread):
    """Writes without a pause while the block lasts, on a connection of its own; keeps the longest time of a write."""

    def __init__(self, write: Callable[[Engine], None], engine: Engine) -> None:
        super().__init__(daemon=True)
        self._write, self._engine, self._over = write, engine, threading.Event()
        self.longest = 0.0

    def run(self) -> None:
        """Write until the block ends."""
        while not self._over.wait(0.005):
            began = time.perf_counter()
            self._write(self._engine)
            self.longest = max(self.longest, time.perf_counter() - began)

    def __enter__(self) -> None:
        self._write(self._engine)  # connected, prepared
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

"""Pending events of a large inbox are found without reading finished ones, by prepared statements too."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text, update

from models.database import in_transaction, open_engine, write_transaction
from models.tables import Tail
from models.types import db_now
from tests.benchmarks.history import fill_inbox
from tests.support import JSON
from tests.support.stories import store, user
from worker.inbox.drain import Drain, DrainLimits
from worker.inbox.store import backlog, needs_drain
from worker.repair.catch_up import update_complete_to
from worker.repair.tail import publish

DONE = 20_000
FEW = 200
"""Upper bound on the rows that one transaction reads: a few for each pending event, and the failed ones."""
PREPARED_AFTER = 7
"""Executions until psycopg has prepared a statement; PostgreSQL then plans it without its parameters."""


@pytest.fixture
def large(make_database: Callable[[str], str]) -> Iterator[Engine]:
    """A large inbox, on a server that plans each prepared statement once."""
    url = make_database("postgresql")
    engine = open_engine(f"{url}{'&' if '?' in url else '?'}options=-c%20plan_cache_mode%3Dforce_generic_plan")
    fill_inbox(engine, DONE, 1_000)
    yield engine
    engine.dispose()


@pytest.fixture
def read(large: Engine) -> list[int]:
    """Rows of the inbox that each transaction read."""
    found: list[int] = []
    counted = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) FROM pg_stat_xact_user_tables"

    def note(connection: Connection) -> None:
        found.append(int(connection.exec_driver_sql(f"{counted} WHERE relname = 'events'").scalar_one()))

    event.listen(large, "commit", note)
    return found


def waiting(turn: int) -> list[JSON]:
    return [user(f"user_{turn}_{place}", f"event_{turn}_{place}", turn) for place in range(3)]


@pytest.mark.parametrize(
    "step",
    [
        lambda engine: in_transaction(engine, backlog),
        update_complete_to,
        lambda engine: needs_drain(engine, older_than=0.0),
        lambda engine: Drain(engine, DrainLimits())(),
        lambda engine: in_transaction(engine, publish),
    ],
    ids=["backlog", "settling", "sweep", "drain", "publishing"],
)
def test_finished_events_are_not_read(large: Engine, read: list[int], step: Callable[[Engine], object]) -> None:
    with write_transaction(large) as tx:
        tx.execute(text("UPDATE mirror SET inbox_at = now()"))
        tx.execute(text("UPDATE tail SET read_to = now(), read_at = now()"))
    for turn in range(PREPARED_AFTER):
        store(large, waiting(turn))
        read.clear()
        step(large)
        assert read and max(read) < FEW, (turn, read)


def test_publishing_reads_only_pending_events_on_sqlite(make_database: Callable[[str], str]) -> None:
    engine = open_engine(make_database("sqlite"))
    with write_transaction(engine) as tx:
        tx.execute(update(Tail).values(read_to=db_now(), read_at=db_now()))
    plans: list[str] = []

    def explain(connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "FROM events" in statement and "EXPLAIN" not in statement:
            plans.append(str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()))

    event.listen(engine, "before_cursor_execute", explain)
    assert in_transaction(engine, publish)
    engine.dispose()
    [plan] = plans
    assert "USING INDEX ix_events_pending" in plan

"""Pending events of a large inbox are found without reading finished ones, by prepared statements too."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, event, text

from models.database import open_engine, write_transaction
from tests.benchmarks.history import fill_inbox
from tests.support import JSON
from tests.support.stories import store, user
from worker.inbox.drain import Drain, DrainLimits
from worker.inbox.store import backlog, needs_drain
from worker.repair.catch_up import update_complete_to

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
        backlog,
        update_complete_to,
        lambda engine: needs_drain(engine, older_than=0.0),
        lambda engine: Drain(engine, DrainLimits())(),
    ],
    ids=["backlog", "settling", "sweep", "drain"],
)
def test_finished_events_are_not_read(large: Engine, read: list[int], step: Callable[[Engine], object]) -> None:
    with write_transaction(large) as tx:
        tx.execute(text("UPDATE mirror SET inbox_at = now()"))
    for turn in range(PREPARED_AFTER):
        store(large, waiting(turn))
        read.clear()
        step(large)
        assert read and max(read) < FEW, (turn, read)

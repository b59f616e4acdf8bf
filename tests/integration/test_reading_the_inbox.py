"""What waits in a large inbox is found without reading what is done, by prepared statements too."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection, Engine, event, text

from models.database import open_engine, write_transaction
from tests.benchmarks.history import fill_inbox
from tests.support import JSON
from tests.support.stories import store, user
from worker.inbox.drain import Policy, drain
from worker.inbox.store import backlog, needs_drain
from worker.repair.catch_up import update_complete_to

DONE = 20_000
FEW = 200
"""Rows read by one transaction: some for each event that waits, and those that failed."""
PREPARED_AFTER = 7
"""Times that a statement is sent until psycopg prepares it; the plan that PostgreSQL then makes knows no parameter."""


@pytest.fixture
def large(make_database: Callable[[str], str]) -> Iterator[Engine]:
    """An inbox with a past, on a server that plans a prepared statement once, as it does where that looks cheaper."""
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
    "look",
    [
        backlog,
        update_complete_to,
        lambda engine: needs_drain(engine, older_than=0.0),
        lambda engine: drain(engine, Policy()),
    ],
    ids=["backlog", "settling", "sweep", "drain"],
)
def test_what_is_done_is_not_read(large: Engine, read: list[int], look: Callable[[Engine], object]) -> None:
    with write_transaction(large) as tx:
        tx.execute(text("UPDATE mirror SET inbox_at = now()"))
    for turn in range(PREPARED_AFTER):
        store(large, waiting(turn))
        read.clear()
        look(large)
        assert read and max(read) < FEW, (turn, read)

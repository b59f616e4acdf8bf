"""A backlog of events costs no more per event than a short one."""

from collections.abc import Callable

from sqlalchemy import text

from models.database import open_engine
from tests.support.stories import new_users, store
from worker.inbox.drain import Drain, DrainLimits

PENDING = 500
BATCH = 10


def test_choosing_a_batch_reads_only_what_it_may_take(make_database: Callable[[str], str]) -> None:
    engine = open_engine(make_database("postgresql"))
    read = text("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE indexrelname LIKE 'ix_events_pending%'")
    applied: list[float] = []
    events = new_users(2 * PENDING)
    earlier, later = events[:PENDING], events[PENDING:]
    store(engine, earlier)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("UPDATE events SET status = 'done'"))
        connection.execute(text("VACUUM ANALYZE events"))  # so that PostgreSQL expects no pending event
    store(engine, later)
    drain = Drain(engine, DrainLimits(batch_size=BATCH), applied.extend, should_stop=lambda: bool(applied))
    assert not drain()
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        connection.commit()
        entries_read = connection.execute(read).scalar_one()
    engine.dispose()
    assert len(applied) == BATCH
    assert entries_read < 10 * BATCH

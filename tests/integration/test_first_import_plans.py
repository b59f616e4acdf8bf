"""A first import looks rows up by an index on PostgreSQL, although the tables were empty when it began."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, func, select, text

from models.database import in_transaction, open_engine, read_transaction, write_transaction
from tests.support import NOON, made
from tests.support.actors import by
from worker.repair.resync.apply_page import apply_pages
from worker.repair.resync.listings import Key, Open
from worker.repair.resync.resync import start
from worker.workos_api.client import Page

IMPORTED = 50_000
"""Rows in the table when pages are applied: with current plans, PostgreSQL uses the index from fewer rows on."""


@pytest.fixture
def engine(make_database: Callable[[str], str]) -> Iterator[Engine]:
    engine = open_engine(make_database("postgresql"))
    yield engine
    engine.dispose()


def test_a_first_import_does_not_scan_what_it_has_imported(engine: Engine) -> None:
    run_id = start(engine, by("test", "why"))

    def import_pages(first: int, last: int) -> None:
        for number in range(first, last):
            users = [made("user.updated", id=f"user_{number}_{place}")["data"] for place in range(100)]
            page = Page(users, f"after_{number}", NOON)
            in_transaction(engine, apply_pages, run_id, [(Open(Key("users", ""), None, NOON), page)], dry_run=False)

    def scanned() -> int:
        with read_transaction(engine) as tx:
            tx.execute(select(func.pg_stat_force_next_flush()))
        with read_transaction(engine) as tx:
            read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'users'"
            return int(tx.execute(text(read)).scalar_one())

    import_pages(0, 10)  # PostgreSQL plans a statement for all values when it executes it for the sixth time
    with write_transaction(engine) as tx:
        wide = "SELECT 'user_x' || n, repeat('x', 300) FROM generate_series(1, :number) AS n"
        tx.execute(text(f"INSERT INTO users (id, email) {wide}"), {"number": IMPORTED})
    before = scanned()
    import_pages(10, 13)
    assert scanned() - before < IMPORTED

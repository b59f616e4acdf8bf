"""The views: `migrate` brings them up to date, keeps grants on them, and their rows stay the same."""

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text, update

from models import views
from models.database import database_url, open_engine, read_transaction, write_transaction
from models.migrate import upgrade
from models.revisions import current_revision, newest_revision
from models.tables import AutoJoinMode, MirrorState
from models.views import VIEWS, update_views
from tests.support.catalog import drop_schema
from tests.support.former_views import BLOCKS, DOMAINS, INVITED
from tests.support.processes import eventually
from tests.support.random_rows import put_random_rows
from worker.mirror.auto_join import eligible, neither_member_nor_blocked
from worker.mirror.auto_join_policy import eligible_members
from worker.reports.listings import Place, missing_members_page

SEED = 7
SIZES = {"user": 40, "org": 8, "domain": 10}
READER = "host_reader"


def test_the_database_has_the_declared_views_and_columns(engine: Engine) -> None:
    with read_transaction(engine) as tx:
        found = inspect(tx)
        assert set(found.get_view_names()) == set(VIEWS)
        for name, view in VIEWS.items():
            assert [column["name"] for column in found.get_columns(name)] == [
                column.name for column in view.table.columns
            ]
            tx.execute(view.table.select()).all()


def test_only_views_that_changed_are_replaced(engine: Engine) -> None:
    with write_transaction(engine) as tx:
        assert update_views(tx) == []
        tx.execute(text("DROP VIEW workspaces"))
        tx.execute(text("CREATE VIEW workspaces AS SELECT id AS organization_id FROM organizations"))
    upgrade(engine)
    with write_transaction(engine) as tx:
        assert tx.execute(VIEWS["workspaces"].table.select()).all() == []
        assert update_views(tx) == []


def test_a_column_is_added_to_a_view_by_changing_its_declaration(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = VIEWS["workspaces"].query.replace("\nFROM", ", 'new' AS further\nFROM")
    monkeypatch.setitem(VIEWS, "workspaces", views.View(VIEWS["workspaces"].table, query))
    with write_transaction(engine) as tx:
        assert update_views(tx) == ["workspaces"]
        tx.execute(text("INSERT INTO organizations (id) VALUES ('org_1')"))
        assert tx.execute(text("SELECT further FROM workspaces")).scalar_one() == "new"


@pytest.fixture
def at_1_0_0(make_database: Any) -> Iterator[Engine]:
    """A PostgreSQL database at the revision of release 1.0.0."""
    engine = open_engine(make_database("postgresql"))
    drop_schema(engine)
    upgrade(engine, "0010")
    yield engine
    engine.dispose()


def test_migrate_keeps_grants_on_views(at_1_0_0: Engine, postgres_server: Engine) -> None:
    with postgres_server.connect() as connection:
        connection.execute(text(f"CREATE ROLE {READER} LOGIN"))
    try:
        with write_transaction(at_1_0_0) as tx:
            granted = inspect(tx).get_view_names()
            tx.execute(text(f"GRANT SELECT ON {', '.join(granted)} TO {READER}"))
        upgrade(at_1_0_0)
        reader = create_engine(database_url(at_1_0_0.url.render_as_string(hide_password=False)))
        with reader.connect() as connection:
            connection.execute(text(f"SET ROLE {READER}"))
            for name in granted:
                connection.execute(VIEWS[name].table.select()).all()
        reader.dispose()
    finally:
        with write_transaction(at_1_0_0) as tx:
            tx.execute(text(f"DROP OWNED BY {READER}"))
        with postgres_server.connect() as connection:
            connection.execute(text(f"DROP ROLE {READER}"))


WAITS_FOR_MIRROR = """
    SELECT EXISTS (SELECT 1 FROM pg_locks AS held JOIN pg_database AS of ON of.oid = held.database
                   WHERE of.datname = :database AND held.relation = CAST('mirror' AS regclass) AND NOT held.granted)"""


def test_migrate_waits_for_a_transaction_that_reads_views(at_1_0_0: Engine) -> None:
    migrating = threading.Thread(target=upgrade, args=(at_1_0_0,), daemon=True)
    with at_1_0_0.connect() as reader:
        existing = inspect(reader).get_view_names()
        reader.execute(text("SELECT * FROM mirror")).all()
        migrating.start()
        with at_1_0_0.connect().execution_options(isolation_level="AUTOCOMMIT") as watcher:
            of_this = {"database": at_1_0_0.url.database}
            eventually(lambda: watcher.execute(text(WAITS_FOR_MIRROR), of_this).scalar_one(), 60)
        for view in existing:
            reader.execute(text(f"TABLE {view}")).all()
    migrating.join(60)
    assert not migrating.is_alive() and current_revision(at_1_0_0) == newest_revision()


# The SQL of release 1.0.0 and of the revision that added addresses, against today's, over random rows.


@pytest.mark.parametrize(
    ("name", "former"), [("auto_join_blocks", f"{BLOCKS} UNION ALL {INVITED}"), ("auto_join_domains", DOMAINS)]
)
def test_a_view_returns_the_rows_of_sql_written_in_another_way(engine: Engine, name: str, former: str) -> None:
    dice = random.Random(SEED)
    view = VIEWS[name].table
    seen = 0
    for _ in range(20):
        with write_transaction(engine) as tx:
            put_random_rows(tx, dice)
            queries = (view.select(), text(former).columns(*view.columns))
            now, before = (sorted(map(repr, tx.execute(query))) for query in queries)
        assert now == before
        seen += len(now)
    assert seen > 20


@pytest.mark.long
def test_missing_members_are_those_of_the_rule_by_which_people_join(engine: Engine) -> None:
    """`eligible_members` and its pages state the rule again, in an order that is fast for all people at once."""
    dice = random.Random(SEED)
    rule = eligible().where(neither_member_nor_blocked(VIEWS["auto_join_domains"].table.c.organization_id))
    seen = 0
    for _ in range(60):
        with write_transaction(engine) as tx:
            tx.execute(update(MirrorState).values(auto_join=AutoJoinMode.PROVISION))
            put_random_rows(tx, dice)
            names = ("organization_id", "user_id", "email", "domain", "default_role")
            found, wanted = (
                sorted(tuple(map(str, (row[name] for name in names))) for row in tx.execute(query).mappings())
                for query in (eligible_members(), rule)
            )
        page = missing_members_page(engine, Place(limit=1))
        listed = page.rows
        while page.after is not None:
            page = missing_members_page(engine, Place(page.after, limit=1))
            listed += page.rows
        assert found == wanted == sorted(tuple(str(row[name]) for name in names) for row in listed)
        seen += len(found)
    assert seen > 20

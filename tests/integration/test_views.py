"""The views: `migrate` brings them up to date, keeps what was granted on them, and they say what they said before."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, text

from models import views
from models.database import database_url, open_engine, read_transaction, write_transaction
from models.migrate import upgrade
from models.views import VIEWS, update_views
from tests.support.catalog import drop_schema
from tests.support.former_views import BLOCKS, DOMAINS

SEED = 7
PEOPLE = 40
READER = "host_reader"


def test_the_database_has_the_views_and_columns_that_are_declared(engine: Engine) -> None:
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
        drop = "DROP VIEW workspaces"
        tx.execute(text(drop))
        tx.execute(text("CREATE VIEW workspaces AS SELECT id AS organization_id FROM organizations"))
    upgrade(engine)
    with write_transaction(engine) as tx:
        assert tx.execute(VIEWS["workspaces"].table.select()).all() == []
        assert update_views(tx) == []


def test_a_column_is_added_to_a_view_by_changing_its_declaration(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = VIEWS["workspaces"].query.replace("updated_at", "updated_at, 'new' AS further")
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


def test_a_role_that_may_only_read_the_views_may_still_read_them_after_migrate(
    at_1_0_0: Engine, postgres_server: Engine
) -> None:
    with postgres_server.connect() as connection:
        connection.execute(text(f"CREATE ROLE {READER} LOGIN"))
    try:
        with write_transaction(at_1_0_0) as tx:
            tx.execute(text(f"GRANT SELECT ON {', '.join(VIEWS)} TO {READER}"))
        upgrade(at_1_0_0)
        reader = create_engine(database_url(at_1_0_0.url.render_as_string(hide_password=False)))
        with reader.connect() as connection:
            connection.execute(text(f"SET ROLE {READER}"))
            for view in VIEWS.values():
                connection.execute(view.table.select()).all()
        reader.dispose()
    finally:
        with write_transaction(at_1_0_0) as tx:
            tx.execute(text(f"DROP OWNED BY {READER}"))
        with postgres_server.connect() as connection:
            connection.execute(text(f"DROP ROLE {READER}"))


# The SQL of release 1.0.0 and of the revision that added addresses, against today's, over random rows.


def random_rows(engine: Engine, dice: random.Random) -> None:
    """Few workspaces, people and addresses, so that they meet; every column that the views look at varies."""

    def some(*values: object) -> object:
        return dice.choice(values)

    def at(hours: int = 4) -> str:
        return f"2026-01-01T{dice.randrange(hours):02}:00:00.000000+00:00"

    versions = "event_at, event_id, deleted_by, created_at"

    def version() -> list[object]:
        return [some(None, at()), f"event_{dice.randrange(5)}", some(None, None, "event", "resync"), some(None, at())]

    people, workspaces = [f"user_{n}" for n in range(PEOPLE)], [f"org_{n}" for n in range(8)]
    names = [f"d{n}.example" for n in range(10)]
    inserts: list[tuple[str, str, list[list[object]]]] = [
        ("organizations", f"id, {versions}", [[id, *version()] for id in workspaces[:-1]]),
        ("users", f"id, email_normalized, {versions}", [[id, some(None, id), *version()] for id in people[:-3]]),
        (
            "user_addresses",
            "user_id, email_hash",
            sorted([id, f"hash_{n}"] for id in people[:-3] for n in range(30) if dice.random() < 0.05),
        ),
        (
            "memberships",
            f"id, organization_id, user_id, status, {versions}",
            [
                [
                    f"om_{n}",
                    some(*workspaces),
                    some(None, *people),
                    some(None, "active", "active", "inactive", "pending", "x"),
                ]
                + version()
                for n in range(200)
            ],
        ),
        (
            "unblocked_memberships",
            "membership_id, who, why",
            [[f"om_{n}", "ann", "why"] for n in range(200) if dice.random() < 0.1],
        ),
        (
            "joins",
            "organization_id, user_id, state, reason, cause, cause_id",
            [
                [org, user, some("pending", "blocked", "undone", "joined"), "by ann", "event", "e"]
                for org in workspaces
                for user in people
                if dice.random() < 0.08
            ],
        ),
        (
            "domains",
            f"id, organization_id, normalized, verification, {versions}",
            [
                [
                    f"domain_{n}",
                    some(None, *workspaces),
                    some(None, *names),
                    some(None, "verified", "legacy_verified", "failed"),
                ]
                + version()
                for n in range(40)
            ],
        ),
        ("public_domains", "domain", [[names[0]]]),
        (
            "workspace_settings",
            "organization_id, auto_join, default_role, who, why",
            [[org, some(None, True, True, False), some(None, "admin"), "ann", "why"] for org in workspaces[:4]],
        ),
    ]
    with write_transaction(engine) as tx:
        for table, columns, lines in inserts:
            tx.execute(text(f"DELETE FROM {table}"))
            marks = ", ".join(f":{column.strip()}" for column in columns.split(","))
            given = [dict(zip((column.strip() for column in columns.split(",")), line, strict=True)) for line in lines]
            if given:
                tx.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), given)


@pytest.mark.parametrize(("name", "former"), [("auto_join_blocks", BLOCKS), ("auto_join_domains", DOMAINS)])
def test_a_rewritten_view_says_what_its_former_sql_says(engine: Engine, name: str, former: str) -> None:
    dice = random.Random(SEED)
    columns = ", ".join(column.name for column in VIEWS[name].table.columns)
    seen = 0
    for _ in range(20):
        random_rows(engine, dice)
        with read_transaction(engine) as tx:
            now, before = (
                sorted(map(repr, tx.execute(text(f"SELECT {columns} FROM {source} AS found"))))
                for source in (name, f"({former})")
            )
        assert now == before
        seen += len(now)
    assert seen > 20

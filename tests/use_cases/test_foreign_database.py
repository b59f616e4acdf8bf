"""A database with the tables of another program is left alone; a schema of our own may lie beside them."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, inspect, text

from models.database import open_engine, read_transaction, write_transaction
from models.migrate import upgrade
from models.revisions import outdated, why_unusable
from tests.support import apply_all, made, statuses
from tests.support.catalog import catalog, drop_schema
from tests.support.cli import run
from tests.support.stories import store

pytestmark = pytest.mark.long

FOREIGN = {
    "its own alembic_version": [
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('ab12cd34ef56')",
    ],
    "one of our revisions": [
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('0010')",
    ],
    "two heads": [
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('ab12cd34ef56'), ('9f8e7d6c5b4a')",
    ],
    "its own users": ["CREATE TABLE users (id INTEGER PRIMARY KEY)"],
    "another table": ["CREATE TABLE invoices (id INTEGER PRIMARY KEY)"],
    "a view": ["CREATE VIEW members AS SELECT 1 AS one"],
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    """A database of another program."""
    drop_schema(engine)
    with write_transaction(engine) as tx:
        for statement in FOREIGN[request.param]:
            tx.execute(text(statement))
    return engine


def test_migrate_refuses_and_changes_nothing(foreign: Engine, db_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = catalog(foreign)
    monkeypatch.setenv("DATABASE_URL", db_url)
    error = run("migrate", exit_code=2).stderr
    assert error.count("\n") == 1 and "holds other tables" in error and "of its own" in error
    assert ("DATABASE_SCHEMA" in error) == (foreign.dialect.name == "postgresql")
    assert catalog(foreign) == before


@pytest.mark.parametrize("command", ["web", "worker", "clock", "status", "members org_1"])
def test_starts_refuse(
    command: str, foreign: Engine, db_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outdated(foreign)
    for name, value in {"DATABASE_URL": db_url, "REDIS_URL": redis_url, "WORKOS_WEBHOOK_SECRETS": "x" * 30}.items():
        monkeypatch.setenv(name, value)
    assert "holds other tables" in run(*command.split(), exit_code=2).stderr


@pytest.fixture
def own_schema(make_database: Callable[[str], str]) -> Iterator[Engine]:
    """An engine on the schema `workos`, beside the tables of another program in `public`."""
    url = make_database("postgresql")
    shared = open_engine(url)
    drop_schema(shared)
    with write_transaction(shared) as tx:
        for statement in FOREIGN["one of our revisions"] + FOREIGN["its own users"]:
            tx.execute(text(statement))
    shared.dispose()
    engine = open_engine(url, schema="workos")
    yield engine
    engine.dispose()


def test_a_schema_of_our_own_lies_beside_other_tables(own_schema: Engine) -> None:
    assert why_unusable(own_schema) == "the database has no schema workos: run workos-sync migrate"
    for _ in range(2):
        upgrade(own_schema)
    assert why_unusable(own_schema) is None
    store(own_schema, [made("organization.created", id="org_1", name="Acme", domains=[])])
    apply_all(own_schema)
    assert statuses(own_schema) == {"done": 1}
    with read_transaction(own_schema) as tx:
        assert sorted(inspect(tx).get_table_names(schema="public")) == ["alembic_version", "users"]
        assert tx.execute(text("SELECT version_num FROM public.alembic_version")).scalar_one() == "0010"
        assert tx.execute(text("SELECT state FROM workos.workspaces")).scalar_one() == "active"


def test_a_relation_of_an_extension_is_not_another_programs(
    make_database: Callable[[str], str],
) -> None:
    engine = open_engine(make_database("postgresql"))
    drop_schema(engine)
    with write_transaction(engine) as tx:
        available = tx.execute(text("SELECT 1 FROM pg_available_extensions WHERE name = 'pg_stat_statements'")).all()
        if not available:
            pytest.skip("this PostgreSQL has no extension with a relation of its own to install")
        tx.execute(text("CREATE EXTENSION pg_stat_statements"))
    upgrade(engine)
    assert why_unusable(engine) is None
    engine.dispose()


def test_sqlite_has_no_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", "workos")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///mirror.db")
    assert "DATABASE_SCHEMA cannot be used with SQLite" in run("migrate", exit_code=2).stderr


@pytest.mark.parametrize("name", ["Workos", "a b", "pg_own", 'a"b', "1st", "ä"])
def test_a_schema_name_is_a_plain_word(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_SCHEMA", name)
    monkeypatch.setenv("DATABASE_URL", "postgresql://nowhere/mirror")
    assert "DATABASE_SCHEMA is not a schema name" in run("migrate", exit_code=2).stderr

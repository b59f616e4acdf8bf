"""PostgreSQL settings that the code relies on hold, whatever the server sets; what cannot be set is refused."""

import json
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine, select, text

from models import requirements
from models.database import PINNED, in_transaction, not_in_force, open_engine, read_transaction
from models.migrate import upgrade
from models.revisions import why_unusable
from tests.support import apply_all, made, rows
from tests.support.cli import run
from tests.support.pooler import Pooler, session_pooler
from tests.support.stories import store
from worker.kinds.organization import Organization

HOSTILE = {
    "datestyle": "'German, DMY'",
    "intervalstyle": "'sql_standard'",
    "client_encoding": "'LATIN1'",
    "timezone": "'Asia/Tokyo'",
    "bytea_output": "'escape'",
    "standard_conforming_strings": "off",
    "default_transaction_isolation": "'serializable'",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "statement_timeout": "100",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
}
"""Settings that a database may make for every connection to it."""


@pytest.fixture
def url(make_database: Callable[[str], str]) -> str:
    return make_database("postgresql")


@pytest.fixture
def hostile(url: str, postgres_server: Engine) -> Iterator[Engine]:
    """An engine on a migrated database that sets all of `HOSTILE`."""
    name = url.rpartition("/")[2].partition("?")[0]
    with postgres_server.connect() as connection:
        for setting, value in HOSTILE.items():
            connection.execute(text(f"ALTER DATABASE {name} SET {setting} = {value}"))
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def pooler(url: str) -> Iterator[Pooler]:
    with session_pooler(open_engine(url).url) as running:
        yield running


def test_settings_of_the_database_change_nothing(hostile: Engine) -> None:
    expected = {name: PINNED[name] for name in PINNED if name in HOSTILE} | {
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "30s",
        "lock_timeout": "5s",
        "synchronous_commit": "on",
    }
    for _ in range(2):  # they hold after a rollback, and for the next user of the connection
        with hostile.connect() as connection:
            found = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in HOSTILE}
            assert found == expected
            connection.rollback()
    with hostile.connect() as connection:
        assert connection.execute(text("SELECT pg_sleep(0.2) IS NOT NULL, now()")).one()
        assert connection.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"


def test_events_are_applied_under_hostile_settings(hostile: Engine) -> None:
    store(hostile, [made("organization.created", id="org_1", name="日本 Łódź", domains=[])])
    apply_all(hostile)
    assert [row["name"] for row in rows(hostile, Organization)] == ["日本 Łódź"]
    with read_transaction(hostile) as tx:
        created_at = tx.execute(select(Organization.created_at)).scalar_one()
    assert created_at is not None and created_at.tzinfo is not None


def test_a_stricter_synchronous_commit_is_kept(url: str, postgres_server: Engine) -> None:
    name = url.rpartition("/")[2].partition("?")[0]
    with postgres_server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = 'remote_apply'"))
    engine = open_engine(url)
    with engine.connect() as opened:
        assert opened.execute(text("SHOW synchronous_commit")).scalar_one() == "remote_apply"
    engine.dispose()


def test_a_session_pooler_is_not_an_obstacle(pooler: Pooler) -> None:
    engine = open_engine(pooler.url)
    assert why_unusable(engine) is None and not_in_force(engine) == []
    engine.dispose()
    assert pooler.parameters and all("options" not in parameters for parameters in pooler.parameters)


def test_settings_cost_one_round_trip_for_each_new_connection(pooler: Pooler) -> None:
    engine = open_engine(pooler.url)
    with engine.connect() as first, engine.connect():
        first.execute(text("SELECT 1"))
        before = pooler.round_trips
        with engine.connect():
            assert pooler.round_trips == before + 1
    engine.dispose()


def test_settings_that_a_pooler_loses_are_found(url: str) -> None:
    engine = open_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SET lock_timeout = 0"))
        connection.commit()
    with pytest.raises(ValueError, match=": lock_timeout is 0; use the pooler in session mode"):
        upgrade(engine)
    engine.dispose()


@pytest.fixture
def make_sql_ascii(postgres_server: Engine) -> Iterator[str]:
    """The URL of an empty database that keeps any bytes."""
    name = "ascii_only"
    with postgres_server.connect() as connection:
        connection.execute(
            text(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        )
    yield postgres_server.url.set(database=name).render_as_string(hide_password=False)
    with postgres_server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.parametrize("command", ["migrate", "status", "members org_1", "web", "worker", "clock"])
def test_another_encoding_is_refused_in_one_line(
    command: str, make_sql_ascii: str, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", make_sql_ascii)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("WORKOS_WEBHOOK_SECRETS", "a-secret-of-some-length")
    error = run(*command.split(), exit_code=2).stderr
    assert error.count("\n") == 1 and "SQL_ASCII" in error and "ENCODING 'UTF8'" in error


def test_doctor_shows_another_encoding_as_a_row(
    make_sql_ascii: str, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", make_sql_ascii)
    monkeypatch.setenv("REDIS_URL", redis_url)
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json", exit_code=1).stdout)}
    assert checks["database"]["level"] == "failure" and "SQL_ASCII" in checks["database"]["saw"]


def test_an_old_server_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "OLDEST_POSTGRESQL", 99)
    engine = open_engine(url)
    assert "is too old: use PostgreSQL 99 or newer" in (why_unusable(engine) or "")
    engine.dispose()


def test_a_search_path_without_a_schema_is_refused(url: str, postgres_server: Engine) -> None:
    name = url.rpartition("/")[2].partition("?")[0]
    with postgres_server.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = ''"))
    engine = open_engine(url)
    assert "set DATABASE_SCHEMA" in (why_unusable(engine) or "")
    engine.dispose()
    named = open_engine(url, schema="public")
    assert why_unusable(named) is None
    in_transaction(named, lambda tx: tx.execute(select(Organization.id)).all())
    named.dispose()

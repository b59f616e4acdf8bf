"""Migrations on both databases: from nothing, from release 1.0.0, and by two processes at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from models import migrate
from models.addresses import normalize_address
from models.database import open_engine, read_transaction, write_transaction
from models.migrate import upgrade
from models.revisions import VERSIONS, current_revision, known_revisions, newest_revision, outdated
from models.tables import Base, Change, Event, FailedEffect, Run
from models.types import db_now_plus
from tests import support
from tests.support import apply_all, statuses
from tests.support.catalog import catalog, drop_schema
from tests.support.processes import eventually
from tests.support.stories import new_users, store

RELEASE_1_0_0 = Path(support.__file__).parent / "release_1_0_0"


@pytest.fixture
def empty_url(db_url: str, engine: Engine) -> str:
    """The URL of a database without any table."""
    drop_schema(engine)
    return db_url


def test_file_names_begin_with_their_revision_and_sort_in_order() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert list(known_revisions()) == [script.revision for script in scripts.walk_revisions()][::-1]


@pytest.mark.long
def test_migrations_at_once_wait_for_each_other(empty_url: str, engine: Engine) -> None:
    engines = [open_engine(empty_url, lock_timeout_ms=100) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(upgrade, engines))
    for opened in engines:
        opened.dispose()
    assert current_revision(engine) == newest_revision()
    store(engine, new_users(2))
    apply_all(engine)
    assert statuses(engine) == {"done": 2}


@pytest.mark.long
def test_migrations_at_once_wait_for_each_other_in_a_schema_that_they_make(make_database: Callable[[str], str]) -> None:
    url = make_database("postgresql")
    engines = [open_engine(url, schema="own", lock_timeout_ms=100) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(upgrade, engines))
    assert {current_revision(each) for each in engines} == {newest_revision()}
    for each in engines:
        each.dispose()


@pytest.mark.usefixtures("empty_url")
def test_revision_0010_creates_the_schema_of_release_1_0_0(engine: Engine) -> None:
    upgrade(engine, "0010")
    expected = (RELEASE_1_0_0 / f"{engine.dialect.name}.txt").read_text().splitlines()
    assert catalog(engine) == sorted(expected)


@pytest.mark.long
@pytest.mark.usefixtures("empty_url")
def test_migrations_create_the_declared_tables_and_are_idempotent(engine: Engine) -> None:
    upgrade(engine)
    made = catalog(engine)
    upgrade(engine)
    assert catalog(engine) == made
    with read_transaction(engine) as tx:
        context = MigrationContext.configure(tx, opts={"version_table": VERSIONS.name})
        assert compare_metadata(context, Base.metadata) == []


def at_revision(engine: Engine, revision: str) -> None:
    with write_transaction(engine) as tx:
        tx.execute(update(VERSIONS).values(version_num=revision))


INDEX = "ix_changes_at_id"


def indexes_of_changes(engine: Engine) -> set[str | None]:
    return {index["name"] for index in inspect(engine).get_indexes("changes")}


def test_a_missing_index_of_a_large_table_is_created_without_blocking_writers(engine: Engine) -> None:
    with write_transaction(engine) as tx:
        tx.execute(text(f"DROP INDEX {INDEX}"))
    change = insert(Change).values(kind="user", object_id="user_1", after={}, cause="operator", cause_id="ann")
    if engine.dialect.name == "sqlite":
        upgrade(engine)
    else:
        with write_transaction(engine) as open_one, ThreadPoolExecutor() as pool:
            open_one.execute(change)
            migrating = pool.submit(upgrade, engine)  # waits for the open transaction
            eventually(lambda: INDEX in indexes_of_changes(engine), 10)
            with write_transaction(engine) as other:
                other.execute(text("SET LOCAL lock_timeout = 1000"))
                other.execute(change)
            assert not migrating.done()
            open_one.commit()
            migrating.result(30)
    assert INDEX in indexes_of_changes(engine)


@pytest.mark.long
def test_an_index_whose_build_was_interrupted_is_built_again(make_database: Callable[[str], str]) -> None:
    engine = open_engine(make_database("postgresql"))
    change = insert(Change).values(kind="user", object_id="user_1", after={}, cause="operator", cause_id="ann")
    with write_transaction(engine) as tx:
        tx.execute(change)
        tx.execute(change)
        tx.execute(text(f"DROP INDEX {INDEX}"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        with pytest.raises(IntegrityError):
            connection.execute(text(f"CREATE UNIQUE INDEX CONCURRENTLY {INDEX} ON changes (object_id)"))
        upgrade(engine)
        valid = text("SELECT indisvalid AND NOT indisunique FROM pg_index WHERE indexrelid = to_regclass(:name)")
        assert connection.execute(valid, {"name": INDEX}).scalar_one()
    engine.dispose()


def test_a_database_from_before_1_0_0_is_refused_with_the_remedy(engine: Engine) -> None:
    at_revision(engine, "0009")
    assert outdated(engine)
    with pytest.raises(ValueError, match=r"at revision 0009.* upgrade it to release 1"):
        upgrade(engine)


@pytest.mark.long
@pytest.mark.usefixtures("empty_url")
def test_revision_0011_hashes_addresses_as_the_code_does(engine: Engine) -> None:
    upgrade(engine, "0010")
    emails = {f"user_{number:05}": f"p{number}@acme.example" for number in range(5_001)}  # two pages
    add = text("INSERT INTO users (id, email_normalized) VALUES (:id, :email)")
    with write_transaction(engine) as tx:
        tx.execute(add, [{"id": id, "email": email} for id, email in emails.items()])
        tx.execute(add, {"id": "user_none", "email": None})
    upgrade(engine, "0011")
    hashed = {(id, address.hash) for id, email in emails.items() if (address := normalize_address(email))}
    with read_transaction(engine) as tx:
        stored = tx.execute(text("SELECT user_id, email_hash FROM user_addresses")).all()
    assert {tuple(row) for row in stored} == hashed


@pytest.mark.usefixtures("empty_url")
def test_revision_0015_makes_everything_uncertain_that_failed_since_the_last_full_resync_began(engine: Engine) -> None:
    upgrade(engine, "0014")
    resync: dict[str, Any] = {
        "task": "resync",
        "requested_by": "ann",
        "status": "done",
        "created_at": db_now_plus(-3600),
    }
    events: list[dict[str, Any]] = [
        {"id": "before", "status": "failed", "processed_at": db_now_plus(-7200), "attempts": 1},
        {"id": "after", "status": "failed", "processed_at": db_now_plus(-60), "attempts": 1},
        {"id": "waiting", "status": "pending", "attempts": 2},
        {"id": "new", "status": "pending"},
        {"id": "done", "status": "done", "processed_at": db_now_plus(-60), "attempts": 1},
        {"id": "dismissed", "status": "dismissed", "processed_at": db_now_plus(-60), "attempts": 1},
    ]
    with write_transaction(engine) as tx:
        tx.execute(insert(Run).values(id="full", **resync))
        tx.execute(insert(Run).values(id="dry", **resync | {"dry_run": True, "created_at": db_now_plus(-1)}))
        tx.execute(insert(Run).values(id="one", **resync | {"organization_id": "org_1", "created_at": db_now_plus(-1)}))
        for row in events:
            tx.execute(insert(Event).values(type="user.updated", source="webhook", **row))
    upgrade(engine)
    with read_transaction(engine) as tx:
        rows = tx.execute(select(FailedEffect.event_id, FailedEffect.organization_id, FailedEffect.user_id)).all()
    assert {tuple(row) for row in rows} == {("after", "", ""), ("waiting", "", "")}


def test_a_database_of_a_newer_release_is_refused_by_migrate_only(engine: Engine) -> None:
    at_revision(engine, "9999")
    assert not outdated(engine)
    with pytest.raises(ValueError, match=r"at revision 9999.* needs a newer release"):
        upgrade(engine)

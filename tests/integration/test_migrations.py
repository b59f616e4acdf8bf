"""Migrations on both databases: by two processes at once, with data up and down, equal to the tables' definitions."""

from datetime import timedelta
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    insert,
    inspect,
    literal_column,
    select,
    table,
    update,
)

from models import migrate
from models.database import reading, writing
from models.migrate import downgrade, upgrade
from models.revisions import current_revision, known_revisions, newest_revision
from models.tables import Base
from tests.integration.processes import Commands
from tests.integration.stories import new_users, store
from tests.support import NOON, apply_all, mirrored, statuses

REVISIONS = [script.revision for script in ScriptDirectory.from_config(migrate._config()).walk_revisions()][::-1]
MIRRORED = ("organizations", "users", "memberships", "domains", "roles")

Contents = dict[str, dict[tuple[Any, ...], dict[str, Any]]]
"""Table → key → column → value, as the database has it."""


@pytest.fixture
def empty_url(db_url: str, engine: Engine) -> str:
    """The URL of a database without any table."""
    downgrade(engine, "base")
    return db_url


def test_the_name_of_each_file_begins_with_its_revision() -> None:
    assert list(known_revisions()) == REVISIONS


@pytest.mark.long
def test_two_processes_migrate_at_once(empty_url: str, engine: Engine, commands: Commands) -> None:
    commands.settings |= {"DATABASE_URL": empty_url}
    both = [commands.start("migrate") for _ in range(2)]
    for command in both:
        assert command.process.wait(90) == 0, command.output()
    assert current_revision(engine) == newest_revision()
    store(engine, new_users(2))
    apply_all(engine)
    assert statuses(engine) == {"done": 2}


def test_up_down_and_up_again_leaves_what_the_models_say(empty_url: str, engine: Engine) -> None:
    with reading(engine) as tx:
        assert set(inspect(tx).get_table_names()) <= {"alembic_version"} and inspect(tx).get_view_names() == []
    upgrade(engine)
    upgrade(engine)
    store(engine, new_users(2))
    apply_all(engine)
    first = mirrored(engine)
    downgrade(engine, "base")
    assert current_revision(engine) is None
    upgrade(engine)
    store(engine, new_users(2))
    apply_all(engine)
    assert mirrored(engine) == first
    with reading(engine) as tx:
        assert compare_metadata(MigrationContext.configure(tx), Base.metadata) == []
        views = {"workspace_members", "auto_join_domains", "auto_join_blocks", "sign_in_methods"}
        assert views | {"workspaces", "mirror_status"} == set(inspect(tx).get_view_names())


@pytest.mark.long  # rows through each revision, three times
@pytest.mark.usefixtures("empty_url")
def test_every_revision_carries_its_rows_up_and_down_and_up_again(engine: Engine) -> None:
    for place, revision in enumerate(REVISIONS):
        before = contents(engine)
        upgrade(engine, revision)
        risen = contents(engine)
        assert lost(before, risen) == []
        fill(engine, place)
        full = contents(engine)
        downgrade(engine, REVISIONS[place - 1] if place else "base")
        down = contents(engine)
        assert lost(down, full) == [] and {name: set(down[name]) for name in down} == {n: set(full[n]) for n in down}
        assert down.keys() == before.keys()
        upgrade(engine, revision)
        again = contents(engine)
        assert lost(down, again) == []
        # What the revision itself wrote is what it wrote the first time; the time of it is not, and the one row of
        # `mirror` was filled meanwhile.
        assert [of for of in lost(risen, again) if of[0] != "mirror" and of[2] != "touched_at"] == []
        fill(engine, len(REVISIONS) + place)
    assert current_revision(engine) == newest_revision()


def test_what_came_before_there_was_an_events_api_came_by_webhook_and_counts_as_touched_now(engine: Engine) -> None:
    downgrade(engine, "0001")
    fill(engine, 1)
    upgrade(engine, "0002")
    stored = contents(engine)
    events = stored["events"].values()
    assert len(events) == 2 and all(row["webhook_at"] == row["received_at"] for row in events)
    assert all(row["api_at"] is None for row in events)
    rows = [row for name in MIRRORED for row in stored[name].values()]
    assert len(rows) == 2 * len(MIRRORED) and all(row["touched_at"] and not row["erased"] for row in rows)


def test_addresses_are_normalized_page_by_page_where_they_are_addresses(engine: Engine) -> None:
    downgrade(engine, "0006")
    emails = {"user_a": "Ann@B\u00fccher.example.", "user_b": "no address", "user_c": "@acme.example", "user_d": None}
    emails |= {f"user_{number:05}": f"P{number}@ACME.example" for number in range(10_001)}  # three pages
    with writing(engine) as tx:
        users = Table("users", MetaData(), autoload_with=tx)
        tx.execute(insert(users), [{"id": id, "email": email} for id, email in emails.items()])
    upgrade(engine, "0007")
    found = {key[0]: (row["email_normalized"], row["email_domain"]) for key, row in contents(engine)["users"].items()}
    assert found["user_a"] == ("ann@xn--bcher-kva.example", "xn--bcher-kva.example")
    assert {found[id] for id in ("user_b", "user_c", "user_d")} == {(None, None)}
    assert all(found[f"user_{n:05}"] == (f"p{n}@acme.example", "acme.example") for n in range(10_001))
    assert contents(engine)["mirror"][1,]["recheck_after"] == ""  # auto-join states are still to be worked out


def contents(engine: Engine) -> Contents:
    """Every row of every table; the views can be read too."""
    metadata = MetaData()
    with reading(engine) as tx:
        metadata.reflect(tx)
        for view in inspect(tx).get_view_names():
            tx.execute(select(literal_column("*")).select_from(table(view)))
        return {
            one.name: {
                tuple(row[column.name] for column in one.primary_key): dict(row)
                for row in tx.execute(select(one)).mappings()
            }
            for one in metadata.sorted_tables
            if one.name != "alembic_version"
        }


def lost(before: Contents, after: Contents) -> list[tuple[Any, ...]]:
    """What of `before` is not the same in `after`: table, key, column, and the two values."""
    return [
        (name, key, column, value, found)
        for name, stored in before.items()
        for key, row in stored.items()
        for column, value in row.items()
        if (found := after.get(name, {}).get(key, {}).get(column, "missing")) != value
    ]


def fill(engine: Engine, number: int) -> None:
    """Put two rows into every table, one with all columns and one with those that it must have; `mirror` has one."""
    metadata = MetaData()
    with writing(engine) as tx:
        metadata.reflect(tx)
        for one in metadata.sorted_tables:
            whole = {column.name: _value(column, 2 * number + 2) for column in one.columns}
            if one.name == "mirror":
                tx.execute(update(one).values({name: value for name, value in whole.items() if name != "id"}))
            elif one.name != "alembic_version":
                needed = [column for column in one.columns if not column.nullable]
                tx.execute(insert(one).values(whole))
                tx.execute(insert(one).values({column.name: _value(column, 2 * number + 3) for column in needed}))


def _value(column: Column[Any], number: int) -> Any:
    kind = column.type
    if isinstance(kind, Boolean):
        return True
    if isinstance(kind, Integer):
        return number
    if isinstance(kind, DateTime):
        return NOON + timedelta(days=number)
    if isinstance(kind, JSON):
        return {"number": number}
    return f"{column.name} {number}".encode() if isinstance(kind, LargeBinary) else f"{column.name} {number}"

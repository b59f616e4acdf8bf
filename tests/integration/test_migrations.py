"""Migrations on both databases: by two processes at once, down and up again, equal to the tables' definitions."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect

from models.database import reading
from models.migrate import current_revision, downgrade, newest_revision, upgrade
from models.tables import Base
from tests.integration.processes import Commands
from tests.integration.stories import new_users, store
from tests.support import apply_all, mirrored, statuses


@pytest.fixture
def empty_url(db_url: str, engine: Engine) -> str:
    """The URL of a database without any table."""
    downgrade(engine, "base")
    return db_url


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

"""Migrations, run from the installed package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from models.database import MIGRATION_LOCK, advisory_lock, reading, writing


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def newest_revision() -> str:
    """Return the revision this code needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("the package holds no migrations")
    return head


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database stands at; None for an empty one."""
    with reading(engine) as tx:
        return MigrationContext.configure(tx).get_current_revision()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to `revision`, one process at a time, in one transaction."""
    with writing(engine) as tx:
        advisory_lock(tx, MIGRATION_LOCK)
        config = _config()
        config.attributes["connection"] = tx
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Bring the database back to `revision` (`base`: empty), in one transaction."""
    with writing(engine) as tx:
        advisory_lock(tx, MIGRATION_LOCK)
        config = _config()
        config.attributes["connection"] = tx
        command.downgrade(config, revision)

"""Migrations, run from the installed package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from models.database import MIGRATION_LOCK, advisory_lock, reading, writing
from models.public_domains import refresh


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


def outdated(engine: Engine) -> bool:
    """Whether the database stands at an older revision than this code needs, or at none.

    A revision that this code does not know is a newer one: during a deploy old processes go on with it.
    """
    current = current_revision(engine)
    return current is None or current in _known() - {newest_revision()}


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to `revision`, one process at a time, in one transaction; at the newest, fill what is listed.

    Raises:
        ValueError: the database stands at a revision that this code does not know.
    """
    current = current_revision(engine)
    if current is not None and current not in _known():
        raise ValueError(f"the database stands at revision {current}, which is newer than this code: upgrade the code")
    with writing(engine) as tx:
        advisory_lock(tx, MIGRATION_LOCK)
        config = _config()
        config.attributes["connection"] = tx
        command.upgrade(config, revision)
        if revision == "head":
            refresh(tx)


def downgrade(engine: Engine, revision: str) -> None:
    """Bring the database back to `revision` (`base`: empty), in one transaction."""
    with writing(engine) as tx:
        advisory_lock(tx, MIGRATION_LOCK)
        config = _config()
        config.attributes["connection"] = tx
        command.downgrade(config, revision)

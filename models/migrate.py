"""Migrations, run by Alembic from the installed package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine

from models.database import MIGRATION_LOCK, advisory_lock, writing
from models.public_domains import refresh
from models.revisions import current_revision, known_revisions


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the database to `revision`, one process at a time, in one transaction; at the newest, fill what is listed.

    Raises:
        ValueError: the database stands at a revision that this code does not know.
    """
    current = current_revision(engine)
    if current is not None and current not in known_revisions():
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

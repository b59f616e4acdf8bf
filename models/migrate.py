"""Migrations, run by Alembic from the installed package."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine

from models.database import MIGRATION_LOCK, advisory_lock, write_transaction
from models.public_domains import refresh
from models.revisions import current_revision, known_revisions, newest_revision
from models.views import update_views

Noted = Callable[[Connection, str | None, str], None]
"""Called in the transaction of a migration with the revision before (None for a new database) and after."""


def upgrade(engine: Engine, revision: str = "head", noted: Noted | None = None) -> None:
    """Migrate the database to `revision` in one transaction. Other processes that migrate wait.

    Migrating to the newest revision also updates the views (`models.views`) and the list of public mail domains, and
    calls `noted` if the revision changed. Raises
    `ValueError`, with the remedy, for a revision that is older than release 1.0.0 or known only to a newer release.
    """
    current = current_revision(engine)
    if current is not None and current not in known_revisions():
        older = current < known_revisions()[0]
        remedy = "upgrade it to release 1.0.0 first" if older else "it needs a newer release of workos-sync"
        raise ValueError(f"the database is at revision {current}, which this release cannot migrate: {remedy}")
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with write_transaction(engine) as tx:
        advisory_lock(tx, MIGRATION_LOCK)
        before = current_revision(engine)  # another process may have migrated meanwhile
        config.attributes["connection"] = tx
        command.upgrade(config, revision)
        if revision == "head":
            update_views(tx)
            refresh(tx)
            if noted is not None and before != newest_revision():
                noted(tx, before, newest_revision())

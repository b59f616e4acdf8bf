"""The migration revision of a database, and the one this release needs. Every process compares them at its start."""

from functools import cache
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from models.database import read_transaction

VERSIONS = Path(__file__).parent / "migrations" / "versions"


@cache
def known_revisions() -> tuple[str, ...]:
    """Return the revisions this release knows, oldest first. Each file name begins with its revision."""
    return tuple(sorted(path.stem.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py")))


def newest_revision() -> str:
    """Return the revision this release needs."""
    return known_revisions()[-1]


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the database, or None if it was never migrated."""
    with read_transaction(engine) as tx:
        if not inspect(tx).has_table("alembic_version"):
            return None
        return tx.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def outdated(engine: Engine) -> bool:
    """Return whether the database must be migrated before this release can use it.

    A higher revision is not outdated: during a deploy, processes of the old release keep running on the new schema.
    """
    current = current_revision(engine)
    return current is None or current < newest_revision()

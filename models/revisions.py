"""Which revision a database stands at, and which one this code needs; asked by every process as it starts."""

from functools import cache
from pathlib import Path

from sqlalchemy import Engine, inspect, text

from models.database import reading

VERSIONS = Path(__file__).parent / "migrations" / "versions"


@cache
def known_revisions() -> tuple[str, ...]:
    """Return the revisions that this code knows, oldest first: each begins the name of its file."""
    return tuple(sorted(path.stem.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py")))


def newest_revision() -> str:
    """Return the revision this code needs."""
    return known_revisions()[-1]


def current_revision(engine: Engine) -> str | None:
    """Return the revision the database stands at; None for an empty one."""
    with reading(engine) as tx:
        if not inspect(tx).has_table("alembic_version"):
            return None
        return tx.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def outdated(engine: Engine) -> bool:
    """Whether the database stands at an older revision than this code needs, or at none.

    A revision that this code does not know is a newer one: during a deploy old processes go on with it.
    """
    current = current_revision(engine)
    return current is None or current in known_revisions()[:-1]

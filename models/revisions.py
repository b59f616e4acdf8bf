"""The migration revision of a database, and the one this release needs. Every process compares them at its start."""

from functools import cache
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, inspect, select, text

from models.database import is_missing, place_of, read_transaction
from models.requirements import unmet_requirement

SCRIPTS = Path(__file__).parent / "migrations" / "versions"
VERSIONS, FORMER_VERSIONS = (
    Table(name, MetaData(), Column("version_num", String(32), primary_key=True))
    for name in ("workos_sync_version", "alembic_version")
)
"""Alembic's table, under a name that no other program uses, and under its name in 1.0.0.

`models.migrate` keeps the former one up to date, because processes of an older release read it.
"""
OWN_TABLES = frozenset(("mirror", "events", "batches", "ticks"))
"""Tables of every release. With all of them, `alembic_version` is ours and not that of another program."""
MAX_NAMED = 3
"""Upper bound on the tables of another program that a message names."""

RELATIONS = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_'",
    # Without the relations of extensions, such as `pg_stat_statements`.
    "postgresql": """
        SELECT relation.relname AS name
        FROM pg_class AS relation
        JOIN pg_namespace AS schema ON schema.oid = relation.relnamespace AND schema.nspname = current_schema()
        WHERE relation.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND NOT EXISTS (
            SELECT 1 FROM pg_depend AS link
            WHERE link.classid = 'pg_class'::regclass AND link.objid = relation.oid AND link.deptype = 'e')
    """,
}


@cache
def known_revisions() -> tuple[str, ...]:
    """Return the revisions this release knows, oldest first. Each file name begins with its revision."""
    return tuple(sorted(path.stem.partition("_")[0] for path in SCRIPTS.glob("[0-9]*.py")))


def newest_revision() -> str:
    """Return the revision this release needs."""
    return known_revisions()[-1]


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the database, or None if it was never migrated."""
    with read_transaction(engine) as tx:
        return stored_revision(tx)


def stored_revision(tx: Connection) -> str | None:
    """Return the revision in the version table: our own, or the former one if it is ours; None if there is none."""
    found = inspect(tx)
    if found.has_table(VERSIONS.name):
        return tx.execute(select(VERSIONS.c.version_num)).scalar_one_or_none()
    if not found.has_table(FORMER_VERSIONS.name) or not all(map(found.has_table, OWN_TABLES)):
        return None
    revisions = tx.execute(select(FORMER_VERSIONS.c.version_num)).scalars().all()
    return revisions[0] if len(revisions) == 1 else None


def outdated(engine: Engine) -> bool:
    """Return whether the database must be migrated before this release can use it.

    A higher revision is not outdated: during a deploy, processes of the old release keep running on the new schema.
    """
    return _is_old(current_revision(engine))


def _is_old(revision: str | None) -> bool:
    return revision is None or revision < newest_revision()


def refused(tx: Connection) -> str | None:
    """Return why neither `migrate` nor a process may use the database, with the remedy; None if they may.

    It does not meet the requirements, holds tables of another program but no mirror, or is older than release 1.0.0.
    """
    if problem := unmet_requirement(tx):
        return problem
    revision = stored_revision(tx)
    if revision is None and (others := sorted(tx.execute(text(RELATIONS[tx.dialect.name])).scalars())):
        named = ", ".join(others[:MAX_NAMED]) + (", ..." if len(others) > MAX_NAMED else "")
        own = "set DATABASE_SCHEMA to a schema of its own, or " if tx.dialect.name == "postgresql" else ""
        return f"the database holds other tables ({named}) and no mirror: {own}use a database of its own"
    if revision is not None and revision < known_revisions()[0]:
        return f"the database is at revision {revision}, which is too old: upgrade it to release 1.0.0 first"
    return None


def why_unusable(engine: Engine) -> str | None:
    """Return why this release cannot run on the database, with the remedy; None if it can. Creates no file."""
    if is_missing(engine):
        return f"DATABASE_URL: {place_of(engine.url)} does not exist; run: workos-sync migrate"
    with read_transaction(engine) as tx:
        if problem := refused(tx):
            return problem
        revision = stored_revision(tx)
    return "the database is not migrated; run: workos-sync migrate" if _is_old(revision) else None

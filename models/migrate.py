"""Migrations, run by Alembic from the installed package."""

import time
from collections.abc import Callable
from io import StringIO
from itertools import chain
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Index, func, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateSchema, DropIndex

from models.database import (
    INDEX_LOCK,
    MIGRATION_LOCK,
    POOLER_REMEDY,
    SCHEMA_KEY,
    advisory_lock,
    create_folder,
    not_in_force,
    write_transaction,
)
from models.public_domains import refresh
from models.revisions import FORMER_VERSIONS, VERSIONS, known_revisions, newest_revision, refused, stored_revision
from models.tables import Base
from models.views import postgresql_statements, update_views

UNFINISHED = text("""
SELECT EXISTS (
    SELECT FROM pg_index AS index
    WHERE index.indexrelid = to_regclass(:name) AND NOT index.indisvalid
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index AS now WHERE now.index_relid = index.indexrelid))
""")
"""Whether an index is left over from a build that was interrupted."""
SCRIPT_LOCATION = Path(__file__).parent / "migrations"
FIRST_WITHOUT_ROWS = "0012"
"""Later revisions are plain SQL. The two before it, of release 1.0.0, compute what they store from rows."""
PSQL = """\
\\set ON_ERROR_STOP on
SET client_encoding = 'UTF8';
{schema}BEGIN;
SELECT pg_advisory_xact_lock({lock}, hashtext(current_schema()));
SET LOCAL lock_timeout = '5s';
{before}{migrations}{former}COMMIT;

-- These take long on large tables and block no writer. They cannot run in a transaction.
SET lock_timeout = 0;
{indexes}"""
"""A script for psql. If anything but an index fails, it changes nothing."""
AT_REVISION = """\
DO $$ BEGIN
  IF (SELECT version_num FROM workos_sync_version) IS DISTINCT FROM '{start}' THEN
    RAISE EXCEPTION 'the database is not at revision {start}';
  END IF;
END $$;
"""
FORMER = """\
DO $$ BEGIN
  IF to_regclass('alembic_version') IS NOT NULL THEN
    UPDATE alembic_version SET version_num = '{end}'
    WHERE version_num = '{start}' AND (SELECT count(*) FROM alembic_version) = 1;
  END IF;
END $$;
"""
Noted = Callable[[Connection, str | None, str], None]
"""Called in the transaction of a migration with the revision before (None for a new database) and after."""


def upgrade(engine: Engine, revision: str = "head", noted: Noted | None = None) -> None:
    """Migrate the database to `revision` in one transaction. Other processes that migrate wait.

    Creates the schema of the engine, if it names one. Migrating to the newest revision also updates the views
    (`models.views`) and the list of public mail domains, and calls `noted` if the revision changed. Raises
    `ValueError`, with the remedy, for a database that cannot be used (`models.revisions.refused`), has a revision of a
    newer release, or is behind a pooler in transaction mode. Nothing is changed then.
    """
    config = Config()
    config.set_main_option("script_location", str(SCRIPT_LOCATION).replace("%", "%%"))
    create_folder(engine)
    if lost := not_in_force(engine):  # the pooler would keep `INDEX_LOCK`, and the next migration would wait for it
        raise ValueError(f"the database: settings are not kept: {', '.join(lost)}; {POOLER_REMEDY}")
    with write_transaction(engine) as tx:
        _wait_for_other_migrations(tx)
        _create_schema(tx)
        if problem := refused(tx):
            raise ValueError(problem)
        before = stored_revision(tx)
        if before is not None and before not in known_revisions():
            raise ValueError(f"the database is at revision {before}: it needs a newer release of workos-sync")
        _take_over_version_table(tx, before)
        config.attributes["connection"] = tx
        command.upgrade(config, revision)
        if inspect(tx).has_table(FORMER_VERSIONS.name):
            # Processes of 1.0.0 read it during a deploy. If it holds anything else, it is another program's.
            former = tx.execute(select(FORMER_VERSIONS.c.version_num)).scalars().all()
            if former == [before]:
                tx.execute(update(FORMER_VERSIONS).values(version_num=stored_revision(tx)))
        if revision == "head":
            update_views(tx)
            refresh(tx)
            if noted is not None and before != newest_revision():
                noted(tx, before, newest_revision())
    if revision == "head":
        _create_large_indexes(engine)


def upgrade_sql(start: str | None = None, schema: str | None = None) -> str:
    """Return what `upgrade` does on PostgreSQL as a script for psql. Connects to nothing.

    `start` is the revision of the database; None for a new one. The script leaves out the list of public mail domains,
    which `workos-sync worker` fills when it starts, and the row of the audit.

    Raises:
        ValueError: this release knows no revision `start`, or cannot upgrade from it without reading rows.
    """
    if start is not None and start not in known_revisions():
        raise ValueError(f"revision {start} is unknown; this release knows {', '.join(known_revisions())}")
    if start is not None and start < FIRST_WITHOUT_ROWS:
        raise ValueError(f"from revision {start}, stored rows must be rewritten: run workos-sync migrate instead")
    script = StringIO()
    config = Config(output_buffer=script)
    config.set_main_option("script_location", str(SCRIPT_LOCATION).replace("%", "%%"))
    command.upgrade(config, f"{start}:head" if start else "head", sql=True)
    views = "".join(f"{statement};\n" for statement in postgresql_statements())
    parts = {
        "schema": f"CREATE SCHEMA IF NOT EXISTS {schema};\nSET search_path = {schema};\n" if schema else "",
        "lock": MIGRATION_LOCK,
        "before": AT_REVISION.format(start=start) if start else "",
        "migrations": script.getvalue() + views,
        "former": FORMER.format(start=start, end=newest_revision()) if start else "",
        "indexes": "".join(_index_sql(index) for index in _large_indexes()),
    }
    return PSQL.format_map(parts)


def _index_sql(index: Index) -> str:
    """Return the statements that create an index unless it exists, after dropping what an interrupted build left."""
    unfinished = str(UNFINISHED).strip().replace(":name", f"'{index.name}'")
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types for it
    create = str(CreateIndex(index, if_not_exists=True).compile(dialect=dialect)).strip()
    return f"SELECT 'DROP INDEX {index.name}' WHERE ({unfinished}) \\gexec\n{create};\n"


def _wait_for_other_migrations(tx: Connection) -> None:
    """Wait for another migration, however long it takes. The locks of this one are still limited by `lock_timeout`."""
    if tx.dialect.name == "postgresql":
        usual = tx.execute(select(func.current_setting("lock_timeout"))).scalar_one()
        tx.exec_driver_sql("SET LOCAL lock_timeout = 0")
        advisory_lock(tx, MIGRATION_LOCK)
        tx.execute(select(func.set_config("lock_timeout", usual, True)))


def _create_schema(tx: Connection) -> None:
    """Create the schema that the engine names, if there is none."""
    schema = tx.engine.get_execution_options().get("workos_sync_schema")
    if schema is not None and not inspect(tx).has_schema(schema):
        tx.execute(CreateSchema(schema))


def _large_indexes() -> list[Index]:
    of_tables = (table.indexes for table in Base.metadata.tables.values())
    return [each for each in chain.from_iterable(of_tables) if each.dialect_options["postgresql"]["concurrently"]]


def _create_large_indexes(engine: Engine) -> None:
    """Create the missing indexes that are marked `postgresql_concurrently`: those that a release added to large tables.

    On PostgreSQL this blocks no writer. Within the migration, it would block every writer until the migration ends.
    """
    indexes = _large_indexes()
    if engine.dialect.name == "sqlite":
        with write_transaction(engine) as tx:
            for index in indexes:
                tx.execute(CreateIndex(index, if_not_exists=True))
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # the pool's connections keep their `lock_timeout`
        connection.exec_driver_sql("SET lock_timeout = 0")
        # PostgreSQL waits for older statements before it completes an index. One that waits for a lock would be among
        # them, and both would wait for each other; so this asks again and again instead.
        while not connection.execute(select(func.pg_try_advisory_lock(INDEX_LOCK, SCHEMA_KEY))).scalar_one():
            time.sleep(1)
        for index in indexes:
            if connection.execute(UNFINISHED, {"name": index.name}).scalar_one():
                connection.execute(DropIndex(index))
            connection.execute(CreateIndex(index, if_not_exists=True))


def _take_over_version_table(tx: Connection, revision: str | None) -> None:
    """Make our own version table for a database that keeps its revision in the former one."""
    if revision is not None and not inspect(tx).has_table(VERSIONS.name):
        VERSIONS.create(tx)
        tx.execute(insert(VERSIONS).values(version_num=revision))

"""Requirements of a database server: its version, its encoding, and a schema for the tables."""

import sqlite3

from sqlalchemy import Connection, text

OLDEST_POSTGRESQL = 15
OLDEST_SQLITE = (3, 35)
SERVER = text(
    "SELECT current_setting('server_version_num')::int / 10000 AS major, current_setting('server_version') AS version,"
    " current_setting('server_encoding') AS encoding, current_schema() AS schema"
)


def describe_server(tx: Connection) -> str:
    """Return kind, version, encoding and schema of the database, for operators."""
    if tx.dialect.name == "sqlite":
        return f"SQLite {sqlite3.sqlite_version}"
    server = tx.execute(SERVER).one()
    return f"PostgreSQL {server.version}, encoding {server.encoding}, schema {server.schema}"


def unmet_requirement(tx: Connection) -> str | None:
    """Return why this release cannot use the database server, with the remedy; None if it can."""
    if tx.dialect.name == "sqlite":
        wanted = ".".join(map(str, OLDEST_SQLITE))
        old = sqlite3.sqlite_version_info < OLDEST_SQLITE
        return f"SQLite {sqlite3.sqlite_version} is too old: use SQLite {wanted} or newer" if old else None
    server = tx.execute(SERVER).one()
    if server.major < OLDEST_POSTGRESQL:
        return f"PostgreSQL {server.version} is too old: use PostgreSQL {OLDEST_POSTGRESQL} or newer"
    if server.encoding != "UTF8":
        remedy = "create the database with ENCODING 'UTF8' TEMPLATE template0"
        return f"the encoding of the database is {server.encoding}, which cannot hold every name: {remedy}"
    if server.schema is None:
        if schema := tx.engine.get_execution_options().get("workos_sync_schema"):
            return f"the database has no schema {schema}: run workos-sync migrate"
        return "the search_path of the database user names no schema: set DATABASE_SCHEMA"
    return None

"""The schema of a database as lines of text, for comparison."""

import re

from sqlalchemy import Engine, MetaData, inspect, text

from models.database import read_transaction, write_transaction

SQLITE = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
POSTGRESQL = """
    SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
           || COALESCE(' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'v')
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 'sequence ' || c.relname || ' of ' || o.refobjid::regclass
    FROM pg_class AS c JOIN pg_depend AS o ON o.objid = c.oid AND o.deptype = 'a'
    WHERE c.relkind = 'S' AND c.relnamespace = 'public'::regnamespace
    UNION ALL
    SELECT 'view ' || viewname || ' ' || definition FROM pg_views WHERE schemaname = 'public'
"""


def catalog(engine: Engine) -> list[str]:
    """Return one line for each column, constraint, index and view, sorted; Alembic's own tables are left out."""
    with read_transaction(engine) as tx:
        if engine.dialect.name == "postgresql":
            lines = list(tx.execute(text(POSTGRESQL)).scalars())
        else:
            found = tx.execute(text(SQLITE)).all()
            lines = [f"{row.type} {row.name} {row.sql}" for row in found if row.type != "table"]
            for name in [row.name for row in found if row.type == "table"]:
                columns = tx.execute(text(f"PRAGMA table_info({name})")).all()
                lines += [f"column {name}.{' '.join(map(str, column[1:]))}" for column in columns]
            lines += [f"autoincrement {row.name}" for row in found if "AUTOINCREMENT" in row.sql]
    lines = [line for line in lines if not re.search("(alembic|workos_sync)_version", line)]
    return sorted(re.sub(r"\s+", " ", line).strip() for line in lines)


def drop_schema(engine: Engine) -> None:
    """Drop every table and view, as in a database that was never migrated."""
    with write_transaction(engine) as tx:
        cascade = "CASCADE" if tx.dialect.name == "postgresql" else ""
        for view in inspect(tx).get_view_names():
            tx.execute(text(f"DROP VIEW IF EXISTS {view} {cascade}"))
        metadata = MetaData()
        metadata.reflect(tx)
        metadata.drop_all(tx)

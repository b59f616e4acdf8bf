"""Statements for many rows.

On PostgreSQL, new rows are sent by COPY and other rows as one JSON parameter. The statement's text is then the same for
any number of rows, and is parsed and planned once. A single row is sent as parameters, with a plan that looks up its
key. So is every row on SQLite, which runs in this process.

All rows of one call have the same columns. Keyword arguments are values or expressions of further columns, the same for
each row.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.selectable import TableValuedAlias

from models.types import TextArray

Rows = Sequence[Mapping[str, object]]
Table = type[DeclarativeBase]


def is_any_of(
    tx: sa.Connection, found: sa.SQLColumnExpression[str] | sa.SQLColumnExpression[str | None], values: Iterable[str]
) -> sa.ColumnElement[bool]:
    """Return the condition that a text column is one of `values`."""
    given = list(values)
    return found == sa.func.any(sa.literal(given, TextArray())) if _on_postgresql(tx) else found.in_(given)


def is_in_parameter(dialect: str, found: sa.SQLColumnExpression[str], name: str) -> sa.ColumnElement[bool]:
    """Return the condition that a text column is one of the list that is given as the parameter `name`.

    It does not depend on the values, so a statement with it is built only once. Building takes longer than sending.
    """
    if dialect == "postgresql":
        return found == sa.func.any(sa.bindparam(name, type_=TextArray()))
    return found.in_(sa.bindparam(name, expanding=True))


def insert_rows(tx: sa.Connection, table: Table, rows: Rows) -> None:
    """Insert `rows` in this order, so that generated ids ascend."""
    if _by_values(tx, rows):
        tx.execute(sa.insert(table), list(rows))
    elif rows:
        _copy(tx, table, rows)


def _copy(tx: sa.Connection, table: Table, rows: Rows) -> None:
    names = list(rows[0])
    statement = f"COPY {table.__tablename__} ({', '.join(names)}) FROM STDIN"
    driver: Any = tx.connection.driver_connection  # psycopg's, which SQLite users need not import
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row([_copied(row[name]) for name in names])
    except tx.dialect.loaded_dbapi.Error as error:  # as SQLAlchemy raises it for a statement
        kind = tx.dialect.loaded_dbapi.Error
        raise DBAPIError.instance(statement, None, error, kind, hide_parameters=True) from error


def _copied(value: object) -> object:
    """Return a value as COPY expects it."""
    return orjson.dumps(value, default=_plain).decode() if isinstance(value, (dict, list)) else value


def insert_new(tx: sa.Connection, table: Table, rows: Rows, **same: object) -> None:
    """Insert those of `rows` whose key does not exist yet, in this order."""
    statement = dialect_insert(tx, table).on_conflict_do_nothing()
    if _by_values(tx, rows):
        tx.execute(statement.values(**same), list(rows))
    elif rows:
        names, columns = list(rows[0]), table.__table__.c
        given = _given([*(columns[name] for name in names), sa.Column("place", sa.Integer)])
        chosen = sa.select(*(given.c[name] for name in names), *same.values()).order_by(given.c.place)
        placed = ({**row, "place": place} for place, row in enumerate(rows))
        tx.execute(statement.from_select([*names, *same], chosen), _parameter(placed))


def update_rows(tx: sa.Connection, table: Table, rows: Rows, **same: object) -> None:
    """Update, for each of `rows`, the row with its `id`, the primary key. No id may occur twice.

    Pass the same objects in `same` on each call: a statement is built only once for them.
    """
    if rows:
        by_values = _by_values(tx, rows)
        statement = _update(table, tuple(rows[0]), by_values, tuple(same.items()))
        renamed = ({f"new_{name}": value for name, value in row.items()} for row in rows)
        tx.execute(statement, list(renamed) if by_values else _parameter(rows))


@functools.lru_cache(maxsize=256)
def _update(table: Table, names: Sequence[str], by_values: bool, same: Iterable[tuple[str, object]]) -> sa.Update:
    columns = table.__table__.c
    new: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
    if not by_values:
        new = dict(_given([columns[name] for name in names]).c)
    return sa.update(table).where(columns.id == new.pop("id")).values(**new, **dict(same))


def dialect_insert(tx: sa.Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return the insert of `tx`'s dialect, with ON CONFLICT."""
    return postgresql.insert(table) if _on_postgresql(tx) else sqlite.insert(table)


def _on_postgresql(tx: sa.Connection) -> bool:
    return tx.dialect.name == "postgresql"


def _by_values(tx: sa.Connection, rows: Rows) -> bool:
    return len(rows) == 1 or (len(rows) > 1 and not _on_postgresql(tx))


def _given(columns: Iterable[sa.ColumnElement[Any]]) -> TableValuedAlias:
    """Return the parameter `rows` as a table with these columns."""
    typed = [sa.column(found.name, found.type) for found in columns]
    parameter = sa.cast(sa.bindparam("rows", type_=sa.Text()), postgresql.JSON)
    return sa.func.json_to_recordset(parameter).table_valued(*typed).render_derived("given", with_types=True)


def _parameter(rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    return {"rows": orjson.dumps(list(rows), default=_plain).decode()}


def _plain(value: object) -> str:
    if isinstance(value, datetime):  # a subclass, as when tests freeze time; orjson handles the class itself
        return value.isoformat()
    raise TypeError

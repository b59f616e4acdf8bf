"""Many rows in one statement.

On PostgreSQL, new rows are sent by COPY and others as one JSON parameter: the text of the statement is then the same
for any number of rows and is parsed and planned once. A single row is sent as parameters, with a plan that looks up its
key. So is every row on SQLite, which runs in this process.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    SQLColumnExpression,
    Text,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.selectable import TableValuedAlias

from models.types import TextArray

Rows = Sequence[Mapping[str, object]]
Table = type[DeclarativeBase]


def is_any_of(
    tx: Connection, found: SQLColumnExpression[str] | SQLColumnExpression[str | None], values: Iterable[str]
) -> ColumnElement[bool]:
    """Return the condition that a text column is one of `values`."""
    given = list(values)
    return found == func.any(literal(given, TextArray())) if _on_postgresql(tx) else found.in_(given)


def insert_rows(tx: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows` in this order: generated ids ascend. All rows have the same columns."""
    if not rows:
        return
    if _by_values(tx, rows):
        tx.execute(insert(table), list(rows))
    else:
        _copy(tx, table, rows)


def _copy(tx: Connection, table: Table, rows: Rows) -> None:
    names = list(rows[0])
    statement = f"COPY {table.__tablename__} ({', '.join(names)}) FROM STDIN"
    driver: Any = tx.connection.driver_connection
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


def insert_new(tx: Connection, table: Table, rows: Rows, **same: object) -> None:
    """Insert those of `rows` whose key does not exist yet, in this order.

    Args:
        tx: the caller's transaction.
        table: a mapped class.
        rows: all with the same columns.
        same: values or expressions of further columns, the same for each row.
    """
    if not rows:
        return
    statement = dialect_insert(tx, table).on_conflict_do_nothing()
    if _by_values(tx, rows):
        tx.execute(statement.values(**same), list(rows))
        return
    names, columns = list(rows[0]), table.__table__.c
    given = _given([*(columns[name] for name in names), Column("place", Integer)])
    chosen = select(*(given.c[name] for name in names), *same.values()).order_by(given.c.place)
    placed = ({**row, "place": place} for place, row in enumerate(rows))
    tx.execute(statement.from_select([*names, *same], chosen), _parameter(placed))


def update_rows(tx: Connection, table: Table, rows: Rows, **same: object) -> None:
    """Update, for each of `rows`, the row with its `id`.

    Args:
        tx: the caller's transaction.
        table: a mapped class with the primary key `id`.
        rows: all with the same columns, one of them `id`; no id twice.
        same: values or expressions of further columns, the same for each row.
    """
    if not rows:
        return
    names = [name for name in rows[0] if name != "id"]
    if _by_values(tx, rows):
        renamed = [{f"new_{name}": value for name, value in row.items()} for row in rows]
        values: dict[str, object] = {name: bindparam(f"new_{name}") for name in names}
        tx.execute(update(table).where(table.__table__.c.id == bindparam("new_id")).values(**values, **same), renamed)
        return
    columns = table.__table__.c
    given = _given([columns[name] for name in ("id", *names)])
    values_given = {name: given.c[name] for name in names}
    tx.execute(update(table).where(table.__table__.c.id == given.c.id).values(**values_given, **same), _parameter(rows))


def dialect_insert(tx: Connection, table: Table) -> Any:
    """Return the insert of `tx`'s dialect, with ON CONFLICT. The two dialects' inserts have no common type."""
    return (postgresql.insert if tx.dialect.name == "postgresql" else sqlite.insert)(table)


def _on_postgresql(tx: Connection) -> bool:
    return tx.dialect.name == "postgresql"


def _by_values(tx: Connection, rows: Rows) -> bool:
    return len(rows) == 1 or not _on_postgresql(tx)


def _given(columns: Iterable[ColumnElement[Any]]) -> TableValuedAlias:
    """Return the parameter `rows` as a table with these columns."""
    typed = [column(found.name, found.type) for found in columns]
    parameter = cast(bindparam("rows", type_=Text()), postgresql.JSON)
    return func.json_to_recordset(parameter).table_valued(*typed).render_derived("given", with_types=True)


def _parameter(rows: Iterable[Mapping[str, object]]) -> dict[str, str]:
    return {"rows": orjson.dumps(list(rows), default=_plain).decode()}


def _plain(value: object) -> str:
    if isinstance(value, datetime):  # a subclass, as when tests freeze time; orjson handles the class itself
        return value.isoformat()
    raise TypeError

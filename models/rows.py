"""Rows of the database as dictionaries, by column name."""

from sqlalchemy import Connection, Engine, Executable

from models.database import read_transaction
from models.types import Record


def all_rows(tx: Connection, query: Executable) -> list[Record]:
    """Return all rows of a query."""
    return [dict(row) for row in tx.execute(query).mappings()]


def read_rows(engine: Engine, query: Executable) -> list[Record]:
    """Return all rows of a query, in a transaction of its own."""
    with read_transaction(engine) as tx:
        return all_rows(tx, query)


def one_row(tx: Connection, query: Executable) -> Record | None:
    """Return the only row of a query; None if it has none."""
    row = tx.execute(query).mappings().one_or_none()
    return dict(row) if row else None

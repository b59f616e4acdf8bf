"""Rows of the database in the form in which reports return them: a dictionary for each row."""

from sqlalchemy import Connection, Executable

from models.types import Record


def all_rows(tx: Connection, query: Executable) -> list[Record]:
    """Return all rows of a query."""
    return [dict(row) for row in tx.execute(query).mappings()]


def one_row(tx: Connection, query: Executable) -> Record | None:
    """Return the only row of a query; None if it has none."""
    row = tx.execute(query).mappings().one_or_none()
    return dict(row) if row else None

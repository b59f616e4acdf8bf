"""The least work that could do the same."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple, cast

import psycopg
from flask import Flask, Response, jsonify, request
from sqlalchemy import FromClause, Table, make_url

from models.tables import AutoJoin, Change, Event
from tests.benchmarks.servers import SQLITE
from tests.support import SECRET
from webhooks.signature import verify
from worker.errors import InvalidSignatureError
from worker.kinds import KINDS

DECIDED = ("status", "outcome", "decided_by", "processed_at", "occurred_at", "kind", "object_id", "organization_id")
"""The columns that a drain writes to rows of the inbox."""


def application() -> Flask:
    """Return an application that checks a delivery's signature and does no more."""
    app = Flask("limit")
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024  # as ours
    app.add_url_rule("/healthz", view_func=dict)

    @app.post("/webhooks/workos")
    def deliver() -> Response | tuple[Response, int]:
        try:
            verify(request.get_data(cache=False), request.headers.get("WorkOS-Signature"), [SECRET], 180)
        except InvalidSignatureError:
            return jsonify(error="signature refused"), 401
        return jsonify(status="accepted")

    return app


class Statement(NamedTuple):
    """One statement, for many rows."""

    sql: str
    rows: list[tuple[Any, ...]]


def finished(url: str) -> list[Statement]:
    """Return what writes the mirror, the inbox's outcomes and the changes as they are in the database `url`."""
    tables = cast("list[Table]", [*(kind.table.__table__ for kind in KINDS.values()), AutoJoin.__table__])
    changes = [name for name in _names(Change.__table__) if name not in ("id", "at")]
    with _connected(url) as (connection, mark):

        def read(table: str, names: Sequence[str]) -> list[tuple[Any, ...]]:
            # As text, so that Python has nothing to convert, here or when it is written.
            columns = ", ".join(name if mark == "?" else f"{name}::text" for name in names)
            return list(connection.execute(f"SELECT {columns} FROM {table}").fetchall())  # noqa: S608 - our own names

        return [
            *(Statement(_upsert(table, mark), read(table.name, _names(table))) for table in tables),
            Statement(_update(mark), read("events", (*DECIDED, "id"))),
            Statement(_insert("changes", changes, mark), read("changes", changes)),
        ]


def write(url: str, statements: Sequence[Statement]) -> None:
    """Write all of it in one transaction."""
    with _connected(url) as (connection, _):
        cursor = connection.cursor()
        for sql, rows in statements:
            if rows:
                cursor.executemany(sql, rows)
        connection.commit()


@contextmanager
def _connected(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the driver's own connection, durable as ours is, and how it marks a parameter."""
    if make_url(url).get_backend_name() != SQLITE:
        with psycopg.connect(url) as connection:
            yield connection, "%s"
        return
    with closing(sqlite3.connect(make_url(url).database or "")) as file:
        file.execute("PRAGMA synchronous=FULL")
        yield file, "?"


def _names(table: FromClause) -> list[str]:
    return [column.name for column in table.columns]


def _insert(table: str, names: Sequence[str], mark: str) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join([mark] * len(names))})"  # noqa: S608 - our own names


def _upsert(table: Table, mark: str) -> str:
    names, keys = _names(table), [column.name for column in table.primary_key]
    new = ", ".join(f"{name} = excluded.{name}" for name in names if name not in keys)
    return f"{_insert(table.name, names, mark)} ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {new}"


def _update(mark: str) -> str:
    return f"UPDATE {Event.__tablename__} SET {', '.join(f'{name} = {mark}' for name in DECIDED)} WHERE id = {mark}"  # noqa: S608

"""Column types that behave alike on SQLite and PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BindParameter, Dialect, Text, TypeDecorator, literal
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine, UserDefinedType


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. Takes any aware datetime, returns it in UTC; a naive one raises `ValueError`.

    PostgreSQL keeps `timestamptz`. SQLite keeps ISO 8601 text of fixed width with its offset, which sorts as time
    does and tells other readers of the file the zone.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of `dialect`."""
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Return `value` as the driver of `dialect` takes it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.isoformat(timespec="microseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return what the driver of `dialect` gave, as an aware datetime in UTC."""
        if value is None:
            return None
        return (value if dialect.name == "postgresql" else datetime.fromisoformat(value)).astimezone(UTC)


JsonValue = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""JSON; `jsonb` on PostgreSQL. Python's None is SQL's NULL."""


def inline_literal(value: str) -> BindParameter[str]:
    """Return a text that is written into the statement, never sent beside it; only for words of our own.

    A statement that PostgreSQL has prepared finds rows by a partial index only if it says itself what the index is of.
    """
    return literal(value, Text(), literal_execute=True)


class TextArray(UserDefinedType[list[str]]):
    """A parameter for PostgreSQL's `text[]`, written as text: its driver takes a multiple of the time for a list."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's name."""
        return "TEXT[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[list[str] | None], str]:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what writes a list as PostgreSQL reads it."""
        return lambda given: "{" + ",".join(map(_quoted, given or ())) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


class db_now(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """The database's own time: machinery is timed by it, so that no process's wrong clock can stall another."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "now()"


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')"


class db_now_plus(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """The database's time plus a number of seconds (float, may be negative)."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(db_now_plus, "postgresql")
def _postgresql_in(element: db_now_plus, compiler: SQLCompiler, **kw: Any) -> str:
    return f"now() + make_interval(secs => CAST({compiler.process(element.clauses, **kw)} AS double precision))"


@compiles(db_now_plus, "sqlite")
def _sqlite_in(element: db_now_plus, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now', CAST({seconds} AS text) || ' seconds')"


class db_plus(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """An instant of the database plus a number of seconds (float, may be negative)."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(db_plus, "postgresql")
def _postgresql_plus(element: db_plus, compiler: SQLCompiler, **kw: Any) -> str:
    at, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{at} + make_interval(secs => CAST({seconds} AS double precision))"


@compiles(db_plus, "sqlite")
def _sqlite_plus(element: db_plus, compiler: SQLCompiler, **kw: Any) -> str:
    at, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strftime('%Y-%m-%dT%H:%M:%f000+00:00', {at}, CAST({seconds} AS text) || ' seconds')"

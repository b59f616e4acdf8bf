"""Column types and time functions that behave alike on SQLite and PostgreSQL."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar, cast

from sqlalchemy import JSON, BindParameter, ColumnElement, Dialect, Text, TypeDecorator, literal
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeEngine, UserDefinedType

E = TypeVar("E", bound=StrEnum)

MAX_ID = 2**63 - 1
"""The largest id that a database counts up to."""
JsonObject = dict[str, Any]
"""A JSON object in Python."""
Record = dict[str, Any]
"""A row of a table or a report, by column name: for what is only shown or written."""
JsonValue = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""JSON; `jsonb` on PostgreSQL. Python's None is SQL's NULL."""


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. Takes any aware datetime, returns it in UTC; a naive one raises `ValueError`.

    PostgreSQL stores `timestamptz`. SQLite stores ISO 8601 text of fixed width with its offset: it sorts by time, and
    other readers of the file see the zone.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column type of `dialect`."""
        return dialect.type_descriptor(TIMESTAMP(timezone=True) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        """Return `value` as the driver of `dialect` expects it."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a zone cannot be stored")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.isoformat(timespec="microseconds")

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return what the driver returned as an aware datetime in UTC."""
        at = datetime.fromisoformat(value) if isinstance(value, str) else value
        return None if at is None else at.astimezone(UTC)


class EnumText(TypeDecorator[E]):
    """A member of a `StrEnum`, stored as text.

    Writing any other text raises `ValueError`. Text that this release does not know, written by a newer one, is read as
    a plain string, so that a list with such a row can still be shown.
    """

    impl = Text
    cache_ok = True

    def __init__(self, words: type[E]) -> None:
        self.words = words
        self._members = {member.value: member for member in words}
        super().__init__()

    def process_bind_param(self, value: E | str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the text to write."""
        return None if value is None else self.words(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the enum's member, or the text itself if the enum has no such member."""
        return None if value is None else self._members.get(value, cast("E", value))


class TextArray(UserDefinedType[list[str]]):
    """A parameter of PostgreSQL's type `text[]`, sent as text: the driver's own conversion of lists is much slower."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name."""
        return "TEXT[]"

    def bind_processor(self, dialect: Dialect) -> Callable[[list[str] | None], str]:  # noqa: ARG002 - SQLAlchemy's signature
        """Return the function that writes a list as a PostgreSQL array literal."""
        return lambda given: "{" + ",".join(map(_quoted, given or ())) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'


def inline_literal(value: str) -> BindParameter[str]:
    """Return a constant that is rendered into the statement's text. Never pass it outside input.

    PostgreSQL uses a partial index for a prepared statement only if the index's condition is in the statement's text.
    """
    return literal(value, Text(), literal_execute=True)


class db_now(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """The database's time. Leases and schedules use it, so that a wrong clock of one process cannot stall another."""

    type = UtcDateTime()
    inherit_cache = True


class db_clock(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """The database's time at this statement. On PostgreSQL, `db_now` is the time at which the transaction began."""

    type = UtcDateTime()
    inherit_cache = True


class recorded_time(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """An instant, from the ISO 8601 text in UTC with which `changes` records it."""

    type = UtcDateTime()
    inherit_cache = True


class any_case(GenericFunction[str]):  # noqa: N801 - a SQL function, named as SQL functions are
    """A text to compare by LIKE with a pattern of lower-case ASCII letters, which matches letters of both cases."""

    type = Text()
    inherit_cache = True


class no_lookup(GenericFunction[str]):  # noqa: N801 - a SQL function, named as SQL functions are
    """A column by whose value SQLite must not look up rows, so that it reads the table in the order of an index."""

    type = Text()
    inherit_cache = True


class minute_of(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """The start of the minute that contains a stored instant."""

    type = UtcDateTime()
    inherit_cache = True


class db_plus(GenericFunction[datetime]):  # noqa: N801 - a SQL function, named as SQL functions are
    """An instant plus a number of seconds (float, may be negative)."""

    type = UtcDateTime()
    inherit_cache = True


def db_now_plus(seconds: float) -> ColumnElement[datetime]:
    """Return the database's time plus `seconds`, which may be negative."""
    return db_plus(db_now(), seconds)


def db_ago(period: timedelta) -> ColumnElement[datetime]:
    """Return the database's time `period` ago."""
    return db_now_plus(-period.total_seconds())


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: object) -> str:
    return "now()"


@compiles(db_clock, "postgresql")
def _postgresql_clock(element: db_clock, compiler: SQLCompiler, **kw: object) -> str:
    return "clock_timestamp()"


@compiles(recorded_time, "postgresql")
def _postgresql_recorded(element: recorded_time, compiler: SQLCompiler, **kw: object) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS timestamptz)"


@compiles(recorded_time, "sqlite")
def _sqlite_recorded(element: recorded_time, compiler: SQLCompiler, **kw: object) -> str:
    # Stored times are compared as text of equal length, so add the fraction if it is missing.
    text = compiler.process(element.clauses, **kw)
    return f"CASE WHEN {text} LIKE '%.%' THEN {text} ELSE replace({text}, '+00:00', '.000000+00:00') END"


@compiles(db_clock, "sqlite")
@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now | db_clock, compiler: SQLCompiler, **kw: object) -> str:
    return "strftime('%Y-%m-%dT%H:%M:%f000+00:00', 'now')"


@compiles(any_case, "postgresql")
def _postgresql_any_case(element: any_case, compiler: SQLCompiler, **kw: object) -> str:
    # Half as long as by the database's own collation.
    return f'lower({compiler.process(element.clauses, **kw)} COLLATE "C")'


@compiles(any_case, "sqlite")
def _sqlite_any_case(element: any_case, compiler: SQLCompiler, **kw: object) -> str:
    return f"({compiler.process(element.clauses, **kw)})"  # LIKE ignores the case of ASCII letters


@compiles(no_lookup, "postgresql")
def _postgresql_no_lookup(element: no_lookup, compiler: SQLCompiler, **kw: object) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(no_lookup, "sqlite")
def _sqlite_no_lookup(element: no_lookup, compiler: SQLCompiler, **kw: object) -> str:
    return f"+{compiler.process(element.clauses, **kw)}"  # SQLite, Query Planning, section 2.1


@compiles(minute_of, "postgresql")
def _postgresql_minute(element: minute_of, compiler: SQLCompiler, **kw: object) -> str:
    return f"date_trunc('minute', {compiler.process(element.clauses, **kw)})"


@compiles(minute_of, "sqlite")
def _sqlite_minute(element: minute_of, compiler: SQLCompiler, **kw: object) -> str:
    return f"substr({compiler.process(element.clauses, **kw)}, 1, 16) || ':00.000000+00:00'"


@compiles(db_plus, "postgresql")
def _postgresql_plus(element: db_plus, compiler: SQLCompiler, **kw: object) -> str:
    at, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{at} + make_interval(secs => CAST({seconds} AS double precision))"


@compiles(db_plus, "sqlite")
def _sqlite_plus(element: db_plus, compiler: SQLCompiler, **kw: object) -> str:
    at, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strftime('%Y-%m-%dT%H:%M:%f000+00:00', {at}, CAST({seconds} AS text) || ' seconds')"

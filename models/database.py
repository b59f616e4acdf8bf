"""Engines and transactions for SQLite and PostgreSQL."""

import fcntl
import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import orjson
import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Integer,
    bindparam,
    delete,
    event,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from models.private_files import close_to_others
from models.types import db_clock

P = ParamSpec("P")
R = TypeVar("R")

DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
LOCK_TIMEOUT_MS = 5_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 30_000
RETRY_SECONDS = 4.0
"""The last retry starts before this. Together with the lock time-out it is far below the age of an orphaned batch."""
SQLITE_BUSY_TIMEOUT_S = 5.0
SQLITE_BATCH = 250
"""Events in a batch on SQLite, so that the webhook endpoint never waits a second."""
SQLITE_FILES = ("", "-wal", "-shm", "-journal", "-line", "-turn")
"""Suffixes of a database's files. SQLite gives its own files the mode of the first."""
KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""libpq's settings by which a lost server is detected within about ten seconds."""

PINNED = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
}
"""PostgreSQL settings of each connection, whatever the server, the database or the user sets. Times in milliseconds.

`lock_timeout`, `synchronous_commit` and, with DATABASE_SCHEMA, `search_path` are set with them.
"""
SYNCHRONOUS_COMMIT = "CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END"
"""At least `on`: with `off`, a crash of the server would lose events that were answered with 200."""
SCHEMA_NAME = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")

CLAIM_LOCK = 0x776F_0001
"""PostgreSQL advisory lock: one drain at a time chooses a batch."""
CHANGES_LOCK = 0x776F_0002
"""PostgreSQL advisory lock: held from the assignment of ids in `changes` to the commit."""
MIGRATION_LOCK = 0x776F_0003
"""PostgreSQL advisory lock: one migration at a time."""
INDEX_LOCK = 0x776F_0004
"""PostgreSQL advisory lock of a session: one process at a time builds indexes concurrently."""
POOLER_REMEDY = "use the pooler in session mode, or connect directly (docs/deploy, PostgreSQL)"
"""The remedy for what `not_in_force` returns."""


def database_url(raw: str) -> URL:
    """Return `raw` as a URL with its driver; raises `ValueError` unless it is a URL of SQLite or PostgreSQL."""
    try:
        url = make_url(raw)
    except (ArgumentError, ValueError):
        # The original message may quote a password that contains @ or :.
        raise ValueError("is not a database URL; write sqlite:///file.db or postgresql://user@host/name") from None
    name = url.get_backend_name()
    if name not in DRIVERS:
        raise ValueError(f"names {name}; use sqlite or postgresql")
    return url.set(drivername=DRIVERS[name])


def open_engine(
    raw_url: str,
    *,
    schema: str | None = None,
    pool_size: int = 5,
    pool_timeout: float = 30.0,
    pre_ping: bool = True,
    lock_timeout_ms: int = LOCK_TIMEOUT_MS,
) -> Engine:
    """Return an engine for `raw_url`, without connecting; raises `ValueError` as `database_url`, or for a wrong schema.

    For SQLite, removes all access of group and others to the files of a database that this user owns. Parameters of
    statements never appear in error messages, because they contain payloads.

    All other arguments apply to PostgreSQL only. With `schema`, all tables are in this schema. If no connection is free
    within `pool_timeout` seconds, a statement raises `sqlalchemy.exc.TimeoutError`. Without `pre_ping`, a statement
    fails if the server has closed its connection: use `reconnecting`. Each new connection sets `PINNED` by a statement,
    because a connection pooler such as PgBouncer refuses options at the start of a session.
    """
    url = database_url(raw_url)
    if url.get_backend_name() == "sqlite":
        if schema is not None:
            raise ValueError("DATABASE_SCHEMA needs PostgreSQL: SQLite has no schemas")
        if file := _sqlite_file(url):
            for end in SQLITE_FILES:
                close_to_others(Path(f"{file}{end}"))
        waits = {"timeout": SQLITE_BUSY_TIMEOUT_S}
        engine = sqlalchemy.create_engine(url, hide_parameters=True, json_deserializer=orjson.loads, connect_args=waits)
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
        event.listen(engine, "handle_error", _convert_error)
        return engine
    if schema is not None and not SCHEMA_NAME.fullmatch(schema):
        raise ValueError("DATABASE_SCHEMA is not a schema name: use lower-case letters, digits and underscores")
    engine = sqlalchemy.create_engine(  # not by its name alone: `worker.traces` replaces it
        url,
        hide_parameters=True,
        json_deserializer=orjson.loads,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        pool_pre_ping=pre_ping,
        connect_args={"connect_timeout": 5, **KEEPALIVE},
        execution_options={"workos_sync_schema": schema},
    )
    # First, so that SQLAlchemy's own first query already gets text in UTF-8.
    event.listen(engine, "connect", _pin(schema, lock_timeout_ms), insert=True)
    event.listen(engine, "handle_error", _convert_error)
    return engine


def _pin(schema: str | None, lock_timeout_ms: int) -> Callable[[DBAPIConnection, ConnectionPoolEntry], None]:
    """Return a listener that sets `PINNED`, and records the values in force as `info["pinned"]` of the connection."""
    wanted = {name: f"'{value}'" for name, value in PINNED.items()}
    wanted |= {"lock_timeout": f"'{lock_timeout_ms}'", "synchronous_commit": SYNCHRONOUS_COMMIT}
    if schema is not None:
        wanted["search_path"] = f"'{schema}'"
    statement = "SELECT " + ", ".join(f"set_config('{name}', {value}, false)" for name, value in wanted.items())

    def pin(dbapi_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        with ExitStack() as opened:
            opened.callback(dbapi_connection.close)  # unless it succeeds: the pool would leave the connection open
            dbapi_connection.autocommit = True  # in a transaction, a rollback would undo it
            cursor = dbapi_connection.cursor()
            cursor.execute(statement)
            entry.info["pinned"] = dict(zip(wanted, cursor.fetchone() or (), strict=True))
            cursor.close()
            dbapi_connection.autocommit = False
            opened.pop_all()

    return pin


def not_in_force(engine: Engine) -> list[str]:
    """Return the pinned settings that a later transaction of a connection has lost, one line for each.

    If there are any, a pooler gives each transaction another connection to the server. Empty for SQLite.
    """
    if engine.dialect.name != "postgresql":
        return []
    with engine.connect() as connection, engine.connect() as other:
        pinned: dict[str, str] = connection.info["pinned"]
        current = [f"current_setting('{name}')" for name in pinned]
        values = text(f"SELECT {', '.join(current)}, pg_backend_pid()")
        pid = connection.execute(values).one()[-1]
        connection.rollback()
        other.execute(text("SELECT 1"))  # in a transaction: a pooler must give the first connection another one
        *found, pid_now = connection.execute(values).one()
    in_force = zip(pinned, found, strict=True)
    wrong = [f"{name} is {value}" for name, value in in_force if value != pinned[name]]
    if not wrong and pid != pid_now:
        return ["the connection to the server changes between transactions"]
    return wrong


def _sqlite_file(url: URL) -> Path | None:
    """Return the file of an SQLite database, which may be given as a `file:` URI; None for any other database."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database).removeprefix("file:"))


def is_missing(engine: Engine) -> bool:
    """Return whether the engine names an SQLite file that does not exist. Connecting would create it."""
    file = _sqlite_file(engine.url)
    return file is not None and not file.exists()


def create_folder(engine: Engine) -> None:
    """Create the folder of an SQLite file."""
    if file := _sqlite_file(engine.url):
        with suppress(OSError):  # connecting reports the problem
            file.parent.mkdir(parents=True, exist_ok=True)


def _sqlite_connect(dbapi_connection: DBAPIConnection, _record: object) -> None:
    # Otherwise the driver begins transactions that, if they read before they write, cannot wait for another writer.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("workos_sync_read", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def place_of(url: URL) -> str:
    """Return which database a URL names, for messages: kind, host, port, name and user, and never the password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite file {_sqlite_file(url) or 'in memory'}"
    given = {name: ",".join([value] if isinstance(value, str) else value) for name, value in url.query.items()}
    host = url.host or given.get("host") or given.get("service") or "the default host"
    port = "" if ":" in host and url.host is None else f":{url.port or given.get('port', 5432)}"
    parts = [f"PostgreSQL at {host}{port}"]
    parts += [f"database {name}"] if (name := url.database or given.get("dbname")) else []
    parts += [f"user {user}"] if (user := url.username or given.get("user")) else []
    return ", ".join(parts)


REMEDIES = {
    "25006": "point DATABASE_URL to the primary",
    "28": "correct the user or password in DATABASE_URL",
    "3D": "create the database, or correct DATABASE_URL",
    "3F": "set DATABASE_SCHEMA, or give the user a search_path",
    "42501": "grant it to the user in DATABASE_URL",
    "42P01": "run: workos-sync migrate",
    "42703": "run: workos-sync migrate",
    "53": "free space or connections on the server",
}
"""By SQLSTATE, or its class (PostgreSQL, appendix A)."""
SAFE_SQLSTATES = ("08", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58")
"""Classes whose message names objects of the schema or the server, and never a value."""
NO_VALUES = {"OperationalError", "DatabaseError", "InternalError", "ConnectionTimeout"}
"""Errors without SQLSTATE whose message contains no value: psycopg's of connecting, and those of SQLite."""


def what_is_wrong(error: SQLAlchemyError) -> tuple[str, str]:
    """Return, for operators, which database answered what, and the remedy.

    Contains no password, and no value of a row: for errors that quote values, only the class of the error.
    """
    if isinstance(error, PoolTimeoutError):
        return "the database: all connections of this process are in use", "try again later"
    answer = next(iter(getattr(error, "__notes__", ())), f"the database: {type(error).__name__}")
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    for prefix, remedy in REMEDIES.items():
        if state.startswith(prefix):
            return answer, remedy
    if answer.startswith("SQLite"):
        return answer, "check that its folder exists, is writable and has space, or correct DATABASE_URL"
    return answer, "see the log of the server" if state else "start it, or correct DATABASE_URL"


def _convert_error(context: ExceptionContext) -> SQLAlchemyError | None:
    """Add a note to an error: which database it is about, and why. Turn Python's own exceptions into DBAPI errors.

    The driver raises those, such as `UnicodeEncodeError`, for values that it cannot convert.
    """
    error, converted = context.sqlalchemy_exception, None
    original = context.original_exception
    if error is None and isinstance(original, Exception) and type(original).__module__ == "builtins":
        error = converted = InterfaceError(context.statement, None, original, hide_parameters=True)
    if error is not None and context.dialect is not None:
        url = context.engine.url if context.engine is not None else None
        error.add_note(f"{place_of(url) if url else 'the database'}: {_reason(original, url)}")
    return converted


def _reason(error: BaseException, url: URL | None) -> str:
    """Return the server's reason in one line, without the password; only the class if the message may quote values."""
    state: str | None = getattr(error, "sqlstate", None)
    if state is not None and state.startswith(SAFE_SQLSTATES):
        reason = str(getattr(getattr(error, "diag", None), "message_primary", None) or error)
    elif state is None and type(error).__name__ in NO_VALUES:
        reason = str(error)
    else:
        return type(error).__name__
    lines = [line for line in reason.splitlines() if line.strip()] or [type(error).__name__]
    # libpq names the server in front of each reason, which `place_of` has done.
    line = next((line for line in reversed(lines) if "failed: " in line), lines[0]).rpartition("failed: ")[2]
    line = re.sub(r"^[A-Z]+: +", "", line)
    given = (url.password, url.query.get("password"), url.query.get("sslpassword")) if url is not None else ()
    for secret in filter(None, given):
        line = line.replace(str(secret), "***")
    return line


@contextmanager
def sqlite_write_lock(engine: Engine) -> Iterator[None]:
    """On SQLite, wait for the write lock in a queue. On PostgreSQL, do nothing.

    SQLite has one writer and no queue: a waiting writer polls every 25 ms, so a process that writes in a loop would
    always be faster. Here the next writer holds the lock on `-line` until it gets the lock on `-turn`.
    """
    file = _sqlite_file(engine.url)
    with ExitStack() as held:
        if file is not None:
            with suppress(OSError):  # writing reports the problem
                line = held.enter_context(Path(f"{file}-line").open("w"))
                writer = held.enter_context(Path(f"{file}-turn").open("w"))
                fcntl.flock(line, fcntl.LOCK_EX)
                fcntl.flock(writer, fcntl.LOCK_EX)
                fcntl.flock(line, fcntl.LOCK_UN)
        yield


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a transaction that may write. It commits at the end and rolls back on any exception."""
    with sqlite_write_lock(engine), engine.begin() as tx:
        yield tx


@contextmanager
def single_statement(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that commits each statement by itself: on PostgreSQL, one round trip instead of three."""
    if engine.dialect.name == "sqlite":
        with write_transaction(engine) as tx:
            yield tx
    else:
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            yield connection


def reconnecting(step: Callable[[], R]) -> R:
    """Return `step()`, which must be safe to repeat: it runs again if the server had closed its connection."""
    try:
        return step()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        return step()


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a read-only transaction with one consistent snapshot. It never waits for a writer."""
    options = {"workos_sync_read": True, "isolation_level": "REPEATABLE READ"}
    if engine.dialect.name == "sqlite":
        del options["isolation_level"]
    with engine.execution_options(**options).begin() as tx:
        yield tx


@contextmanager
def session(engine: Engine) -> Iterator[Session]:
    """Yield a session in a read-only transaction, for `models.access`."""
    with read_transaction(engine) as tx, Session(bind=tx) as opened:
        yield opened


# There is no current schema before `migrate` has created it, and a lock with a key of NULL is none.
SCHEMA_KEY = func.hashtext(func.coalesce(func.current_schema(), func.current_setting("search_path")))
"""The second key of PostgreSQL's advisory locks: environments with a schema each do not wait for one another."""
_GRANTED = select(db_clock()).select_from(
    func.pg_advisory_xact_lock(bindparam("key", type_=Integer), SCHEMA_KEY).table_valued("granted")
)
"""A function in FROM has returned before the clock is read."""


def advisory_lock(tx: Connection, key: int) -> datetime:
    """Wait for a lock of this schema, hold it until `tx` ends, and return the database's time when it was granted.

    SQLite has a single writer and needs no such lock.
    """
    if tx.dialect.name == "postgresql":
        return tx.execute(_GRANTED, {"key": key}).scalar_one()
    return tx.execute(select(db_clock())).scalar_one()


def plan_without_sort(tx: Connection) -> None:
    """Let PostgreSQL read rows in the order of an index for the rest of `tx`, even if it expects too few to need it.

    Its statistics are as old as the last ANALYZE. If few events were pending then, it reads and sorts all that are
    pending now, however few of them a statement asks for.
    """
    if tx.dialect.name == "postgresql":
        tx.execute(text("SET LOCAL enable_sort = off"))


def plan_for_values(tx: Connection) -> None:
    """Let PostgreSQL plan each statement of `tx` for its values, and not once for all values.

    Otherwise it plans a statement that it knows already for a workspace of average size, and then reads the one with
    10,000 members in the same way.
    """
    if tx.dialect.name == "postgresql":
        tx.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))


TRANSIENT_SQLSTATES = (
    "08",  # connection
    "25006",  # read-only: a replica, or a fail-over in progress
    "25P03",  # idle-in-transaction time-out
    "40",  # serialization failure, deadlock
    "53",  # disk, memory or connections are used up
    "55P03",  # lock time-out
    "57",  # cancelled, stopping, crashed, starting
    "58",  # input and output
)
"""SQLSTATEs, or their classes, of temporary failures (PostgreSQL, appendix A)."""


DATABASE_ERRORS = (DBAPIError, PoolTimeoutError)
"""Errors of an unavailable database. A `DBAPIError` may also mean that the statement is wrong."""


def is_unforeseen(error: BaseException) -> bool:
    """Return whether an error was one of Python's own exceptions, which `_convert_error` turned into a DBAPI error."""
    return isinstance(error, DBAPIError) and type(error.orig).__module__ == "builtins"


def is_transient(error: BaseException) -> bool:
    """Return whether an error is temporary: a lost connection, a deadlock, a busy database, a time-out."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError)
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated:
        return True
    if sqlstate is None:  # raised by the driver, also as a subclass: psycopg's `ConnectionTimeout`
        return any(each.__name__ in {"OperationalError", "InterfaceError"} for each in type(error.orig).__mro__)
    return sqlstate.startswith(TRANSIENT_SQLSTATES)


_RETRY = Retrying(
    retry=retry_if_exception(is_transient),
    stop=stop_after_attempt(6) | stop_after_delay(RETRY_SECONDS),
    wait=wait_random_exponential(multiplier=0.02, max=1.0),
    reraise=True,
)


def in_transaction(
    engine: Engine, step: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Run `step(tx, *args, **kwargs)` in one transaction and return its result.

    A transient failure is retried: up to six attempts in four seconds. The failure of the last attempt is raised.
    """

    def transaction() -> R:
        with write_transaction(engine) as tx:
            return step(tx, *args, **kwargs)

    return _RETRY.copy()(transaction)


def transactional(step: Callable[Concatenate[Connection, P], R]) -> Callable[Concatenate[Engine, P], R]:
    """Decorate `step(tx, ...)`: it takes an engine, and runs in a transaction of its own, as by `in_transaction`."""

    @functools.wraps(step)
    def run(engine: Engine, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return in_transaction(engine, step, *args, **kwargs)

    return run


def delete_some(tx: Connection, table: type[DeclarativeBase], *which: ColumnElement[bool], limit: int) -> int:
    """Delete at most `limit` rows that meet all conditions; return how many. A longer delete would hold locks."""
    key = tuple(table.__table__.primary_key)
    return tx.execute(delete(table).where(tuple_(*key).in_(select(*key).where(*which).limit(limit)))).rowcount

"""Engines and transactions for SQLite and PostgreSQL."""

import fcntl
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import orjson
from sqlalchemy import ColumnElement, Connection, Engine, create_engine, delete, event, select, text, tuple_
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Session
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from models.private_files import close_to_others

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

CLAIM_LOCK = 0x776F_0001
"""PostgreSQL advisory lock: one drain at a time chooses a batch."""
CHANGES_LOCK = 0x776F_0002
"""PostgreSQL advisory lock: held from the assignment of ids in `changes` to the commit."""
MIGRATION_LOCK = 0x776F_0003
"""PostgreSQL advisory lock: one migration at a time."""


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
    raw_url: str, *, pool_size: int = 5, pool_timeout: float = 30.0, lock_timeout_ms: int = LOCK_TIMEOUT_MS
) -> Engine:
    """Return an engine for `raw_url`, without connecting; raises `ValueError` as `database_url`.

    For SQLite, creates the file's folder, and removes all access of group and others to the files of a database that
    this user owns. Parameters of statements never appear in error messages, because they contain payloads.

    The keyword arguments apply to PostgreSQL only. If no connection is free within `pool_timeout` seconds, a statement
    raises `sqlalchemy.exc.TimeoutError`.
    """
    url = database_url(raw_url)
    if url.get_backend_name() == "sqlite":
        if file := _sqlite_file(url):
            with suppress(OSError):  # connecting reports the problem
                file.parent.mkdir(parents=True, exist_ok=True)
            for end in SQLITE_FILES:
                close_to_others(Path(f"{file}{end}"))
        waits = {"timeout": SQLITE_BUSY_TIMEOUT_S}
        engine = create_engine(url, hide_parameters=True, json_deserializer=orjson.loads, connect_args=waits)
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    given = url.query.get("options", "")
    options = (
        f"{given if isinstance(given, str) else ' '.join(given)} -c lock_timeout={lock_timeout_ms} "
        f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_TIMEOUT_MS} -c timezone=UTC"
    ).strip()
    return create_engine(
        url,
        hide_parameters=True,
        json_deserializer=orjson.loads,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=pool_timeout,
        pool_pre_ping=True,
        connect_args={"options": options, "connect_timeout": 5, **KEEPALIVE},
    )


def _sqlite_file(url: URL) -> Path | None:
    """Return the file of an SQLite database, which may be given as a `file:` URI; None for any other database."""
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    return Path(str(url.database).removeprefix("file:"))


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


def advisory_lock(tx: Connection, key: int) -> None:
    """Wait for the lock `key` and hold it until the end of `tx`. SQLite has a single writer and needs no such lock."""
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


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


def is_transient(error: BaseException) -> bool:
    """Return whether an error is temporary: a lost connection, a deadlock, a busy database, a time-out."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, PoolTimeoutError)
    sqlstate: str | None = getattr(error.orig, "sqlstate", None)
    if error.connection_invalidated:
        return True
    if sqlstate is None:
        return type(error.orig).__name__ in {"OperationalError", "InterfaceError"}
    return sqlstate.startswith(TRANSIENT_SQLSTATES)


_RETRY = Retrying(
    retry=retry_if_exception(is_transient),
    stop=stop_after_attempt(6) | stop_after_delay(RETRY_SECONDS),
    wait=wait_random_exponential(multiplier=0.02, max=1.0),
    reraise=True,
)


def delete_some(tx: Connection, table: type[DeclarativeBase], *which: ColumnElement[bool], most: int) -> int:
    """Delete at most `most` rows that meet all conditions; return how many. A longer delete would hold locks."""
    key = tuple(table.__table__.primary_key)
    return tx.execute(delete(table).where(tuple_(*key).in_(select(*key).where(*which).limit(most)))).rowcount


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

"""The Redis client of every process. After a fail-over it finds the new primary."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from redis import Connection, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - redis-py's name
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry
from rq.exceptions import StopRequested
from rq.timeouts import BaseTimeoutException

from worker.env.redis_keys import redis_key
from worker.errors import ConfigurationError, unexpected
from worker.throttle import LogThrottle

log = structlog.get_logger()

NOT_PRIMARY = frozenset(("READONLY", "UNBLOCKED", "LOADING", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "MOVED"))
"""Error codes of a server that is not the primary. Each means that the command was not executed."""
DISCARDED = "Transaction discarded because of: "
WITH_ARGUMENTS = ", with args beginning with"
PROBE = redis_key("probe")
PROBE_MS = 1_000
OLDEST_REDIS = (6, 2)
"""RQ needs BLMOVE, which is new in Redis 6.2. Every Valkey has it, and reports Redis 7.2.4 or newer."""
INTERRUPTS = (StopRequested, BaseTimeoutException)
"""Raised into whatever code is running, by a signal. They say nothing about Redis."""


class NotPrimaryError(ConnectionError):
    """The server is not the primary. `code` is its error code, such as READONLY.

    A `ConnectionError`, so that RQ and redis-py treat the connection as lost.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"the server is not the primary: {code}")
        self.code = code


class UnexpectedRedisError(ConnectionError):
    """Code raised something else than `RedisError` while it used a connection. The cause is that error."""


def open_redis(url: str, **timeouts: float) -> Redis:
    """Return a client for a URL redis://, rediss:// or unix://; it does not connect yet.

    If a server answers that it is not the primary, all connections to it are closed, and the command is retried once on
    a new connection, which resolves the host name again. If that server is not the primary either, the command raises
    `NotPrimaryError`. `timeouts` are options of `redis.ConnectionPool`, in seconds.

    Any failure of a connection raises `redis.exceptions.RedisError`, with a note that names the server.
    """
    return Redis.from_pool(_Pool.from_url(url, retry=Retry(NoBackoff(), 1, (NotPrimaryError,)), **timeouts))


def require_writable(redis: Redis) -> None:
    """Write a key that expires within a second; raise `redis.exceptions.RedisError` if Redis refuses it."""
    redis.set(PROBE, 1, px=PROBE_MS)


def server_version(redis: Redis) -> str:
    """Return name and version of the server, for operators.

    Raises:
        ConfigurationError: it is older than `OLDEST_REDIS`.
        redis.exceptions.RedisError: Redis is unavailable, or its user may not run INFO.
    """
    server: dict[str, object] = redis.info("server")
    if "valkey_version" in server:
        return f"Valkey {server['valkey_version']}"
    version = str(server.get("redis_version", "?"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_REDIS and version != "?":
        oldest = ".".join(map(str, OLDEST_REDIS))
        raise ConfigurationError(f"REDIS_URL: Redis {version} is too old: use Redis {oldest} or newer, or Valkey")
    return f"Redis {version}"


def what_is_wrong(error: RedisError) -> tuple[str, str]:
    """Return what Redis answered, with host, port, database and user, and the remedy. Contains no password."""
    place = next((f" at {note}" for note in getattr(error, "__notes__", ())), "")
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")  # the remedy follows
    if isinstance(error, NotPrimaryError):
        return f"is not the primary{place}: it answers {error.code}", "point REDIS_URL to the primary; events are kept"
    if isinstance(error, NoPermissionError):
        return f"refuses a command{place}: {reason}", "allow it to the user in REDIS_URL; events are kept"
    if isinstance(error, ResponseError):
        return f"refuses writes{place}: {reason}", "see its log; events are kept"
    return (
        f"does not answer{place}: {reason}",
        "start it, or correct REDIS_URL (for the embedded Valkey, start clock or up); events are kept",
    )


class _Pool(ConnectionPool):
    """A pool that closes all its connections when a server answers that it is not the primary."""

    # `Any`: the options of redis-py have no common type.
    def __init__(self, connection_class: type[Connection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_checking(connection_class), **options)
        self._may_log = LogThrottle()

    def make_connection(self) -> ConnectionInterface:
        """Return a new connection that knows this pool."""
        try:
            connection = super().make_connection()
        except TypeError as error:  # redis-py passes on whatever the URL's query names
            raise ConnectionError("REDIS_URL has a parameter that redis-py does not know") from error
        connection.pool = self  # type: ignore[attr-defined]
        return connection

    def leave(self, code: str) -> None:
        """Close idle connections now, and those in use when they are returned."""
        self.disconnect_free_connections()
        self.update_active_connections_for_reconnect()
        if self._may_log():  # REDIS_URL may name a replica for hours
            log.warning("redis_not_primary", answer=code)


def _checking(kind: type[Connection]) -> type[Connection]:
    """Return a subclass of `kind` that checks every answer, and raises nothing but `RedisError`.

    redis-py connects, sends and reads in these methods only.
    """

    class Checking(kind):  # type: ignore[misc, valid-type]
        pool: _Pool

        def connect_check_health(self, *args: object, **options: object) -> object:
            with _converted(self):
                return super().connect_check_health(*args, **options)

        def send_packed_command(self, *args: object, **options: object) -> object:
            with _converted(self):
                return super().send_packed_command(*args, **options)

        def can_read(self, *args: object, **options: object) -> object:
            with _converted(self):
                return super().can_read(*args, **options)

        def read_response(self, *args: object, **options: object) -> object:
            with _converted(self):
                try:
                    return super().read_response(*args, **options)
                except (ResponseError, BusyLoadingError) as error:
                    if (code := _not_primary_code(error)) is None:
                        raise
                    self.disconnect()
                    self.pool.leave(code)
                    raise NotPrimaryError(code) from error

    return Checking


def _not_primary_code(error: ResponseError | BusyLoadingError) -> str | None:
    """Return the code of an answer that means that the server is not the primary; None for any other."""
    code = error.status_code
    if code not in NOT_PRIMARY:
        # redis-py leaves codes that it does not know in the text. EXEC quotes the failed command's code.
        code = str(error).removeprefix(DISCARDED).partition(" ")[0]
    return code if code in NOT_PRIMARY else None


@contextmanager
def _converted(connection: Connection) -> Iterator[None]:
    """Turn any other exception into an `UnexpectedRedisError`, and note on each error which server it is about."""
    try:
        yield
    except INTERRUPTS:
        raise
    except RedisError as error:
        if not hasattr(error, "__notes__"):
            error.add_note(_place(connection))
            if WITH_ARGUMENTS in str(error):  # of a command that the server does not know: perhaps a password
                error.args = (str(error).partition(WITH_ARGUMENTS)[0], *error.args[1:])
        raise
    except Exception as error:
        connection.disconnect()  # type: ignore[no-untyped-call]  # redis-py has no types for it
        converted = UnexpectedRedisError(f"unexpected {unexpected(error)}")
        converted.add_note(_place(connection))
        raise converted from error


def _place(connection: Connection) -> str:
    """Return host and port, or the socket, with database and user; never the password."""
    where = getattr(connection, "path", None) or f"{connection.host}:{connection.port}"
    user = f", user {connection.username}" if connection.username else ""
    return f"{where}, database {connection.db}{user}"

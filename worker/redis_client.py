"""The Redis client of every process. After a fail-over it finds the new primary."""

import time
from typing import Any

import structlog
from redis import Connection, ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import BusyLoadingError, ConnectionError, RedisError, ResponseError  # noqa: A004 - redis-py's name
from redis.retry import Retry

log = structlog.get_logger()

NOT_PRIMARY = frozenset(("READONLY", "UNBLOCKED", "LOADING", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN", "MOVED"))
"""Error codes of a server that is not the primary. Each means that the command was not executed."""
DISCARDED = "Transaction discarded because of: "
LOG_SECONDS = 10.0
"""Minimum time between two log lines `redis_not_primary`: REDIS_URL may name a replica for hours."""
PROBE = "workos-sync:probe"
PROBE_MS = 1_000


class NotPrimaryError(ConnectionError):
    """The server is not the primary. `code` is its error code, such as READONLY.

    A `ConnectionError`, so that RQ and redis-py treat the connection as lost.
    """

    def __init__(self, code: str) -> None:
        super().__init__(f"the server is not the primary: {code}")
        self.code = code


def open_redis(url: str, **timeouts: float) -> Redis:
    """Return a client for a URL redis://, rediss:// or unix://; it does not connect yet.

    If a server answers that it is not the primary, all connections to it are closed, and the command is retried once on
    a new connection, which resolves the host name again. If that server is not the primary either, the command raises
    `NotPrimaryError`. `timeouts` are options of `redis.ConnectionPool`, in seconds.
    """
    return Redis.from_pool(_Pool.from_url(url, retry=Retry(NoBackoff(), 1, (NotPrimaryError,)), **timeouts))


def require_writable(redis: Redis) -> None:
    """Write a key that expires within a second; raise `redis.exceptions.RedisError` if Redis refuses it."""
    redis.set(PROBE, 1, px=PROBE_MS)


def what_is_wrong(error: RedisError) -> tuple[str, str]:
    """Return a description of `error` for operators, and the remedy."""
    if isinstance(error, NotPrimaryError):
        return f"is not the primary: it answers {error.code}", "point REDIS_URL to the primary; events are kept"
    if isinstance(error, ResponseError):
        return f"refuses writes: {error}", "see its log; events are kept"
    return (
        f"does not answer: {type(error).__name__}",
        "start it, or correct REDIS_URL (start clock for the embedded Valkey); events are kept",
    )


class _Pool(ConnectionPool):
    """A pool that closes all its connections when a server answers that it is not the primary."""

    _logged_at = -LOG_SECONDS

    # `Any`: the options of redis-py have no common type.
    def __init__(self, connection_class: type[Connection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_checking(connection_class), **options)

    def make_connection(self) -> ConnectionInterface:
        """Return a new connection that knows this pool."""
        connection = super().make_connection()
        connection.pool = self  # type: ignore[attr-defined]
        return connection

    def leave(self, code: str) -> None:
        """Close idle connections now, and those in use when they are returned."""
        self.disconnect_free_connections()
        self.update_active_connections_for_reconnect()
        if time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = time.monotonic()
            log.warning("redis_not_primary", answer=code)


def _checking(kind: type[Connection]) -> type[Connection]:
    """Return a subclass of `kind` that checks every answer. redis-py reads all answers in this one method."""

    class Checking(kind):  # type: ignore[misc, valid-type]
        pool: _Pool

        def read_response(self, *args: object, **options: object) -> object:
            try:
                return super().read_response(*args, **options)
            except (ResponseError, BusyLoadingError) as error:
                code = error.status_code
                if code not in NOT_PRIMARY:
                    # redis-py leaves codes that it does not know in the text. EXEC quotes the failed command's code.
                    code = str(error).removeprefix(DISCARDED).partition(" ")[0]
                if code not in NOT_PRIMARY:
                    raise
                self.disconnect()
                self.pool.leave(code)
                raise NotPrimaryError(code) from error

    return Checking

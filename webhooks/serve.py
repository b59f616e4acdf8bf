"""Runs the web processes: Granian parses HTTP, `webhooks.asgi` answers."""

import asyncio
import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server
from uvloop import new_event_loop

from models.database import in_transaction
from webhooks.app import create_app
from webhooks.asgi import Gateway
from worker import oidc_issuer
from worker.bootstrap import build_services
from worker.errors import ConfigurationError
from worker.processes.clock import PeriodicTask, run
from worker.repair.schedule import WEB_TICK, WEB_TICK_SECONDS, take_tick
from worker.settings import Settings

log = structlog.get_logger()

BACKLOG = 1_024
KEEP_ALIVE_SECONDS = 75
"""Time limit for the head of a request, and so for an idle connection. Longer than a load balancer's 60 seconds, so
that the balancer never reuses a connection that is being closed."""
UNREAD_SECONDS = 30
"""A connection ends if its client reads nothing of a response for this long."""
MAX_HEAD_BYTES = 65_536
MAX_CONNECTIONS = 16_384
"""Connections of a process. Further ones wait in the listen queue."""
OTHER_FILES = 200
"""File descriptors for everything but connections."""
FIRST_SOCKET = 3
"""The first file descriptor that systemd passes (sd_listen_fds(3))."""
CLOSING_SECONDS = 0.5
SETTLING_SECONDS = 0.1
QUIET_SECONDS = 2.0
STOP_SECONDS = 20.0
"""The steps of a stop, in this order, after SIGTERM:

1. For `CLOSING_SECONDS`, each response has the header `Connection: close`.
2. The kernel drops requests for new connections. For `SETTLING_SECONDS`, the last ones may send their first request.
3. The server closes idle connections. Requests may take `STOP_SECONDS` to be answered. Connections without a request
   may stay for `QUIET_SECONDS`.
"""
POLL_SECONDS = 0.05
BPF_RETURN, SO_ATTACH_FILTER, SO_DETACH_FILTER = 0x06, 26, 27
"""Of Linux (socket(7)). Python has no names for them."""


def require_usable(settings: Settings) -> None:
    """Raise `ConfigurationError` if the web processes could not start: an extra that the settings need is missing."""
    if settings.oidc_issuer:
        oidc_issuer.require_installed()


def listen(settings: Settings) -> list[socket.socket]:
    """Return the listening sockets: those that systemd opened, or new ones on BIND and PORT, one for each web process.

    The kernel distributes connections over sockets evenly, but not over processes that share one. The supervisor keeps
    all of them open, so that connections to a process that died wait for the next one.

    Raises:
        ConfigurationError: the address or port cannot be used, or LISTEN_FDS names a descriptor that is not a
            listening socket.
    """
    if settings.listen_fds:
        sockets = [_systemd_socket(FIRST_SOCKET + place) for place in range(settings.listen_fds)]
    else:
        try:
            family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
            with socket.socket(family) as free:  # without SO_REUSEPORT it refuses a port that another `web` uses
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind((settings.bind, settings.port))
                address = free.getsockname()
            sockets = [
                socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True)
                for _ in range(settings.web_processes)
            ]
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            if error.errno == errno.EADDRNOTAVAIL:
                problem = f"BIND {settings.bind} cannot be used: {reason}; choose an address of this machine"
            else:
                problem = f"PORT {settings.port} cannot be used: {reason}; choose another port"
            raise ConfigurationError(problem) from error
    for opened in sockets:
        # Connections inherit these. Without the last two, clients that vanish or never read would keep theirs forever.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1_000)
    return sockets


def _systemd_socket(descriptor: int) -> socket.socket:
    try:
        opened = socket.socket(fileno=descriptor)
        if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return opened
    except OSError:
        pass
    raise ConfigurationError(f"LISTEN_FDS: descriptor {descriptor} is not a listening socket; only systemd sets it")


def processes(settings: Settings, redis_url: str, sockets: list[socket.socket]) -> list[Callable[[], None]]:
    """Return what each web process runs."""
    return [
        partial(_run_web_process, settings, redis_url, sockets, sockets[place % len(sockets)])
        for place in range(settings.web_processes)
    ]


def _run_web_process(
    settings: Settings, redis_url: str, sockets: list[socket.socket], listening: socket.socket
) -> None:
    for other in sockets:
        if other is not listening:
            other.close()
    _take_new_connections(listening)  # if the former process was killed while it stopped
    services = build_services(settings, redis_url, endpoint=True)
    gateway = Gateway(create_app(services), settings.web_threads, services.counters)
    stop = threading.Event()
    record = partial(in_transaction, services.engine, take_tick, WEB_TICK, WEB_TICK_SECONDS)
    tasks = ([PeriodicTask("web", WEB_TICK_SECONDS, record)], stop, services.counters)
    threading.Thread(target=run, args=tasks, name="web", daemon=True).start()

    def close() -> None:
        stop.set()
        services.close()

    serve(gateway, listening, close)


def serve(gateway: Gateway, listening: socket.socket, close: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that were received, call `close`, and end the process.

    If the server fails, its error is reported, and the exit code is 1.
    """
    code = 0
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(_until_stopped(gateway, listening))
        except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor starts a new process
            gateway.report(error)
            code = 1
    close()
    os._exit(code)  # threads may still wait for clients, or for a database that hangs


async def _until_stopped(gateway: Gateway, listening: socket.socket) -> None:
    """Run the server until a stop signal, then stop it in the steps named at `STOP_SECONDS`.

    Return when it has ended, or when all requests are answered: the server would also wait for connections without a
    request. If it failed, raise its error.
    """
    server = _Server(gateway, listening)
    stopping = asyncio.Event()
    # SIGHUP is ignored here: its handler, inherited by the fork, sets an event nobody reads.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    gateway.closing = True
    await asyncio.sleep(CLOSING_SECONDS)
    _drop_new_connections(listening)
    await asyncio.sleep(SETTLING_SECONDS)
    server.stop()  # type: ignore[no-untyped-call]  # Granian gives it no types
    await asyncio.sleep(POLL_SECONDS)
    _take_new_connections(listening)  # for the next process, if there is one
    listening.close()  # otherwise connections would wait in it, and nothing would accept them
    for turn in range(int(STOP_SECONDS / POLL_SECONDS)):
        if serving.done() or (not gateway.requests and turn * POLL_SECONDS > QUIET_SECONDS):
            break
        await asyncio.sleep(POLL_SECONDS)
    if serving.done():
        serving.result()


def _drop_new_connections(listening: socket.socket) -> None:
    """Let the kernel drop requests for new connections; clients repeat them after a second.

    A server that stops closes connections that it has accepted and not read from yet.
    """
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RETURN, 0, 0, 0))  # keep 0 bytes of a packet
    with suppress(OSError):  # the kernel may permit no filters
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        if sys.platform == "linux":
            listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _take_new_connections(listening: socket.socket) -> None:
    with suppress(OSError):  # none are dropped
        if sys.platform == "linux":
            listening.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


class _Server(Server):
    """Granian in this process, on a socket that is open already."""

    def __init__(self, gateway: Gateway, listening: socket.socket) -> None:
        _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
        super().__init__(
            gateway,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            websockets=False,
            backlog=BACKLOG,
            backpressure=max(1, min(MAX_CONNECTIONS, max_files - OTHER_FILES)),
            http1_settings=HTTP1Settings(
                header_read_timeout=KEEP_ALIVE_SECONDS * 1_000, max_buffer_size=MAX_HEAD_BYTES
            ),
            log_enabled=False,
        )
        self._listening = listening

    def _init_shared_socket(self) -> None:
        # Granian has no option for it. Its own sockets, one for each process, would lose the connections that wait in
        # them when a process ends.
        held: Any = SocketHolder  # its types name no arguments
        self._shd = held(os.dup(self._listening.fileno()), False, BACKLOG)

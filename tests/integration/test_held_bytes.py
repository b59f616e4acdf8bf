"""The memory for request bodies is bounded by a sum for each web process, not by the number of connections."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.support.deliveries import deliver
from tests.support.processes import Commands
from tests.support.stories import encoded, new_users
from webhooks.asgi import MAX_HELD_BYTES

pytestmark = pytest.mark.long

SENDERS = 300
MOST = 3 * MAX_HELD_BYTES + 20_000_000
"""Bytes of growth: the bodies, what the server buffers of 300 connections, and what the allocator keeps."""
HEAD = b"POST /webhooks/workos HTTP/1.1\r\nHost: localhost\r\n"
BODIES: dict[str, bytes] = {
    "one length": HEAD + b"Content-Length: 1048570\r\n\r\n" + b"x" * 1_048_000,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"8000\r\n" + b"x" * 0x8000 + b"\r\n") * 31,
    "one chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff0\r\n" + b"x" * 1_048_000,
}


def send(stack: ExitStack, port: int, data: bytes) -> None:
    """Send a request without its end, and keep the connection open."""
    sender = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    with suppress(OSError):  # it may be refused meanwhile
        sender.sendall(data)


def test_unfinished_bodies_of_many_senders_take_little_memory(
    commands: Commands, make_database: Callable[[str], str], redis_url: str
) -> None:
    commands.settings |= {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, "WEB_PROCESSES": 1}
    web, port = commands.web()
    first, *bodies = map(encoded, new_users(1 + len(BODIES)))
    assert deliver(port, first) == 200
    [process] = psutil.Process(web.process.pid).children()
    before = process.memory_info().rss
    for (how, data), body in zip(BODIES.items(), bodies, strict=True):
        with ExitStack() as stack:
            for _ in range(SENDERS):
                send(stack, port, data)
            assert deliver(port, body) == 200, "small requests are not affected"
            grown = process.memory_info().rss - before
            print(how, f"{grown / 1e6:.0f} MB")
            assert grown < MOST, how
        time.sleep(0.5)
    assert '"reason": "memory"' in web.output()
    web.stop()

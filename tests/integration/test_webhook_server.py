"""The webhook endpoint as a real process: large bodies, keep-alive, slow senders."""

import http.client
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import Engine

from tests.support.deliveries import deliver, deliver_on
from tests.support.inbox import count
from tests.support.processes import Commands, eventually, piece
from tests.support.stories import encoded, new_users, user

pytestmark = pytest.mark.long

LIMIT = 4096


@pytest.fixture
def port(commands: Commands, redis_url: str, db_url: str) -> int:
    """The port of a `web` with one process of two threads (SQLite) or eight (PostgreSQL)."""
    settings = {"DATABASE_URL": db_url, "REDIS_URL": redis_url, "WEB_PROCESSES": 1, "WEBHOOK_MAX_BYTES": LIMIT}
    return commands.web(**settings)[1]


def head(length: str) -> bytes:
    fields = ("POST /webhooks/workos HTTP/1.1", "Host: localhost", length, "WorkOS-Signature: t=1, v1=ab")
    return "\r\n".join((*fields, "", "")).encode()


def answer_of(sender: socket.socket) -> bytes:
    try:
        return sender.recv(4096)
    except ConnectionResetError:
        return b""


def test_large_bodies_keep_alive_and_slow_senders(port: int, engine: Engine) -> None:
    first, second, third = map(encoded, new_users(3))

    with socket.create_connection(("127.0.0.1", port), timeout=5) as sender:
        sender.sendall(head(f"Content-Length: {10**10}"))
        assert answer_of(sender).startswith(b"HTTP/1.1 413 "), "answered without the body, which never comes"

    with socket.create_connection(("127.0.0.1", port), timeout=5) as sender:
        sender.sendall(head("Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 50_000_000:
                sender.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 20_000_000, "the server stops reading"

    exact = b" " * (LIMIT - len(first)) + first
    assert deliver(port, exact) == 200
    assert deliver(port, b" " + exact) == 413

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.connect()
    assert connection.sock is not None
    address = connection.sock.getsockname()
    assert [deliver_on(connection, body) for body in (first, second)] == [200, 200]
    assert connection.sock.getsockname() == address, "one connection for both"
    connection.close()

    with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
        slow.sendall(head(f"Content-Length: {len(third)}") + third[:10])
        assert deliver(port, third) == 200
    assert count(engine) == 3


def test_senders_that_stop_in_the_middle_do_not_block_others(
    commands: Commands, redis_url: str, make_database: Callable[[str], str]
) -> None:
    settings = {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, "WEB_PROCESSES": 1, "WEB_THREADS": 2}
    port = commands.web(**settings)[1]
    (story,) = map(encoded, new_users(1))
    with ExitStack() as stack:
        stuck = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(2)]
        for sender in stuck:
            sender.sendall(head(f"Content-Length: {len(story)}") + story[:10])
        assert all(answer_of(sender).startswith(b"HTTP/1.1 408 ") for sender in stuck), "each times out by itself"
    assert deliver(port, story) == 200


def test_a_connection_opened_before_sigterm_is_still_answered(
    commands: Commands, redis_url: str, make_database: Callable[[str], str]
) -> None:
    settings = {"DATABASE_URL": make_database("sqlite"), "REDIS_URL": redis_url, "WEB_PROCESSES": 1}
    web, port = commands.web(**settings)
    silent, kept = (http.client.HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(2))
    with closing(silent), closing(kept):
        silent.connect()
        assert (
            deliver_on(kept, encoded(user("user_1", "event_1", 0))) == 200
        )  # so that the first connection is accepted too
        web.process.terminate()
        eventually(lambda: is_closing(kept), 10)
        assert deliver_on(silent, encoded(user("user_2", "event_2", 0))) == 200
    web.process.wait(30)


def is_closing(connection: http.client.HTTPConnection) -> bool:
    """Whether the server closes this connection after its next answer."""
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return answer.headers["Connection"] == "close"


def test_a_delivery_during_shutdown_gets_200_or_503(db_url: str, redis_url: str) -> None:
    with piece("stopping_server", db_url, redis_url) as ending:
        answers = ending.communicate()[0].split()
    assert len(answers) == 5 and set(answers) <= {"200", "503"}

"""Senders that send slowly, stop, never read or never disconnect do not delay the others."""

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import sign
from tests.support.connections import read_all
from tests.support.deliveries import deliver
from tests.support.processes import Commands
from tests.support.stories import encoded, new_users
from webhooks.serve import KEEP_ALIVE_SECONDS

pytestmark = pytest.mark.long

SENDERS = 120
QUICK = 8.0
"""Seconds. Without buffering a delivery takes a minute and more, however fast the machine."""
HEAD = b"POST /webhooks/workos HTTP/1.1\r\nHost: localhost\r\n"
DRIPS: dict[str, bytes] = {
    "nothing": b"",
    "a head": HEAD + b"X-Slow: ",
    "a body": HEAD + b"Content-Length: 5000\r\n\r\n",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1388\r\n",
    "a chunk's size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "a second request": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nX-Slow: ",
}
STAYS: dict[str, bytes] = {
    "answered and kept": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "answered, and does not leave": b"GET /healthz HTTP/1.0\r\n\r\n",
    "refused, and does not leave": HEAD + b"Content-Length: 99999999999\r\n\r\n",
    "refused for a length beyond all numbers": HEAD + b"Content-Length: 9999999999999999999999\r\n\r\n",
    "expects a word": HEAD + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n",
}


@pytest.fixture(scope="module")
def port(valkey_server: str, sqlite_template: Path) -> Iterator[int]:
    """The port of one `web` process with two threads. It must survive every attack of this module."""
    with tempfile.TemporaryDirectory(prefix="wos-") as folder:
        shutil.copy(sqlite_template, f"{folder}/mirror.db")
        commands = Commands(Path(folder))
        settings = {"DATABASE_URL": f"sqlite:///{folder}/mirror.db", "REDIS_URL": valkey_server, "WEB_PROCESSES": 1}
        yield commands.web(**settings)[1]
        commands.sweep_away()


@contextmanager
def attack(port: int, start: bytes, drip: bytes) -> Iterator[None]:
    """Hold `SENDERS` connections; each sends `start`, then `drip` every 0.2 s. Closed connections are replaced."""
    stop = threading.Event()

    def hold() -> None:
        with ExitStack() as stack:
            senders = [stack.enter_context(connect(port)) for _ in range(SENDERS)]
            for sender in senders:
                send(sender, start)
            ready.set()
            while not stop.wait(0.2):
                for place, sender in enumerate(senders):
                    if drip and not send(sender, drip):
                        senders[place] = stack.enter_context(connect(port))
                        send(senders[place], start)

    ready = threading.Event()
    thread = threading.Thread(target=hold, name="attack")
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        stop.set()
        thread.join()


def connect(port: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port), timeout=10)
    made.setblocking(False)
    return made


def send(sender: socket.socket, data: bytes) -> bool:
    """Whether the server still accepts data."""
    try:
        sender.send(data)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def slowest(port: int, deliveries: int) -> float:
    """Send deliveries one after the other; return the seconds that the slowest took."""
    took = []
    for body in map(encoded, new_users(deliveries)):
        began = time.monotonic()
        assert deliver(port, body) == 200
        took.append(time.monotonic() - began)
        time.sleep(0.1)
    return max(took)


@pytest.mark.parametrize("how", [*DRIPS, *STAYS])
def test_a_delivery_is_answered_while_many_senders_hold_connections(port: int, how: str) -> None:
    start = DRIPS.get(how, STAYS.get(how, b""))
    with attack(port, start, b"1" if how in DRIPS and how != "nothing" else b""):
        assert slowest(port, 3) < QUICK


def test_senders_that_never_read_their_answers_occupy_no_thread(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            sender = stack.enter_context(socket.socket())
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sender.connect(("127.0.0.1", port))
            sender.setblocking(False)
            send(sender, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        assert slowest(port, 3) < 30


def test_more_senders_than_connections_do_not_block_deliveries(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(attack(port, DRIPS["a head"], b"1"))
        assert slowest(port, 3) < QUICK


def test_a_sender_that_takes_too_long_for_a_body_gets_408(port: int) -> None:
    slow = ("a body", "chunks", "a chunk's size")
    with ExitStack() as stack:
        senders = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 30)) for _ in slow]
        for sender, how in zip(senders, slow, strict=True):
            sender.sendall(DRIPS[how])
        answers = [read_all(sender).split(b"\r\n")[0] for sender in senders]
    assert answers == [b"HTTP/1.1 408 Request Timeout"] * len(slow)


def test_a_connection_without_a_whole_head_is_closed(port: int) -> None:
    began = time.monotonic()
    without_head = ("nothing", "a head", "a second request")
    with ExitStack() as stack:
        senders = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 120)) for _ in without_head]
        for sender, how in zip(senders, without_head, strict=True):
            sender.sendall(DRIPS[how])
        answers = [read_all(sender).count(b"HTTP/1.1 ") for sender in senders]
    assert answers == [0, 0, 1]
    assert time.monotonic() - began < KEEP_ALIVE_SECONDS + QUICK


def test_expect_100_continue_is_answered(port: int) -> None:
    (body,) = map(encoded, new_users(1))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
        head = f"Expect: 100-continue\r\nWorkOS-Signature: {sign(body)}\r\nContent-Length: {len(body)}\r\n\r\n"
        sender.sendall(HEAD + head.encode())
        assert sender.recv(1024).startswith(b"HTTP/1.1 100 ")
        sender.sendall(body)
        answer = b""
        while b"HTTP/1.1 200 " not in answer:
            more = sender.recv(4096)
            assert more
            answer += more


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_a_delivery_in_pieces_and_chunks_is_accepted(port: int, size: int) -> None:
    (body,) = map(encoded, new_users(1))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:50], body[50:])) + b"0\r\n\r\n"
    head = f"Transfer-Encoding: chunked\r\nWorkOS-Signature: {sign(body)}\r\n\r\n".encode()
    whole = HEAD + head + chunks
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(whole), size):
            sender.sendall(whole[at : at + size])
        assert sender.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_a_head_that_is_too_long_is_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sender:
        sender.sendall(HEAD + b"X-Long: " + b"x" * 70_000)
        assert sender.recv(4096).startswith(b"HTTP/1.1 431 ")

"""Attacks on a running `workos-sync web` over plain sockets."""

import selectors
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from tests.support import apply_all, sign
from tests.support.connections import read_all
from tests.support.deliveries import deliver
from tests.support.inbox import count
from tests.support.processes import Command, Commands, eventually
from tests.support.stories import encoded, new_users, organization, store

pytestmark = pytest.mark.long

ATTACKERS = 64
DELIVERIES = 100
QUICK = 1.0
"""Seconds: the 99th percentile of genuine deliveries stays below."""
PATH_TOKEN = "path-token-0123456789"
ENDPOINT = f"/webhooks/workos/{PATH_TOKEN}"
READER = "reader-token-0123456789"
LEAK = b"ann@acme.example"
SLOW_READERS = 48


@pytest.fixture(scope="module")
def web(valkey_server: str, sqlite_template: Path) -> Iterator[tuple[Command, int]]:
    """A running `web` of one process, and its port. It must outlive every attack here."""
    with tempfile.TemporaryDirectory(prefix="wos-") as folder:
        shutil.copy(sqlite_template, f"{folder}/mirror.db")
        commands = Commands(Path(folder))
        yield commands.web(
            DATABASE_URL=f"sqlite:///{folder}/mirror.db",
            REDIS_URL=valkey_server,
            WEB_PROCESSES=1,
            WEBHOOK_PATH_TOKEN=PATH_TOKEN,
            OPS_TOKENS="ann:ann-signs-in-with-this-token",
            API_TOKENS="product:product-reads-with-this-token",  # without them, a warning may follow the start
        )
        commands.sweep_away()


def request(path: str, *fields: str, body: bytes = b"", method: str = "POST") -> bytes:
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", "")).encode() + body


def exchange(port: int, sent: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes on a connection of their own; return all that came back until the server closed it."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        client.sendall(sent)
        return read_all(client)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def p99(port: int, deliveries: int = DELIVERIES, path: str = ENDPOINT) -> float:
    """Deliver events one after another, each of which must be accepted; return the 99th percentile, in seconds."""
    took = []
    for body in map(encoded, new_users(deliveries)):
        began = time.monotonic()
        assert deliver(port, body, path) == 200
        took.append(time.monotonic() - began)
    return sorted(took)[-1 - deliveries // 100]


class Attack:
    """`ATTACKERS` connections that send one request; each answered one is replaced by a new connection."""

    def __init__(self, port: int, sent: bytes) -> None:
        self.answers: Counter[int] = Counter()
        self._port, self._sent = port, sent
        self._selector = selectors.DefaultSelector()

    def run(self, stop: threading.Event) -> None:
        """Attack until `stop` is set and every attacker had an answer."""
        with self._selector:
            for _ in range(ATTACKERS):
                self._connect()
            while not stop.is_set() or sum(self.answers.values()) < ATTACKERS:
                for key, ready in self._selector.select(0.1):
                    self._go_on(key, ready)
            for key in list(self._selector.get_map().values()):
                self._close(key)

    def _connect(self) -> None:
        client = socket.create_connection(("127.0.0.1", self._port), timeout=10)
        client.setblocking(False)
        self._selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(self._sent))

    def _go_on(self, key: selectors.SelectorKey, ready: int) -> None:
        client: Any = key.fileobj
        try:
            if ready & selectors.EVENT_READ:
                self.answers[status(client.recv(65_536))] += 1
                self._close(key)
                self._connect()
            elif left := key.data:
                left = left[client.send(left) :]
                events = selectors.EVENT_READ | (selectors.EVENT_WRITE if left else 0)
                self._selector.modify(client, events, left)
        except OSError:  # closed while we were sending
            self._close(key)
            self._connect()

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        key.fileobj.close()  # type: ignore[union-attr]


@contextmanager
def attacked(port: int, sent: bytes) -> Iterator[Counter[int]]:
    """Attack the server meanwhile; yield how often each status was answered."""
    attack, stop = Attack(port, sent), threading.Event()
    thread = threading.Thread(target=attack.run, args=(stop,), name="attack")
    thread.start()
    try:
        yield attack.answers
    finally:
        stop.set()
        thread.join()


TINY = {
    "one byte a chunk": b"1\r\nx\r\n" * 40_000 + b"0\r\n\r\n",
    "one byte a chunk, with an extension": b"1;a=b\r\nx\r\n" * 40_000 + b"0\r\n\r\n",
    "one byte a chunk, with a long extension": (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 300 + b"0\r\n\r\n",
    "48 bytes a chunk": (b"30\r\n" + b"x" * 48 + b"\r\n") * 5_000 + b"0\r\n\r\n",
    "trailers": b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
}


@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("chunks", "path"),
    [
        ("one byte a chunk", ENDPOINT),
        ("one byte a chunk, with a long extension", ENDPOINT),
        ("trailers", ENDPOINT),
        ("48 bytes a chunk", "/no/such/path"),
    ],
)
def test_tiny_chunks_from_64_senders_do_not_delay_genuine_deliveries(
    web: tuple[Command, int], chunks: str, path: str
) -> None:
    sent = request(path, "Transfer-Encoding: chunked", body=TINY[chunks])
    with attacked(web[1], sent) as answers:
        slowest = p99(web[1])
    assert slowest < QUICK
    # A well-framed request is read, and then refused because it has no signature.
    assert set(answers) <= {0, 400, 401, 404, 405, 413, 431}, answers
    assert 500 not in answers and answers[0] < sum(answers.values())


@pytest.mark.parametrize("chunks", ["one byte a chunk", "one byte a chunk, with an extension"])
def test_more_framing_than_data_is_refused(web: tuple[Command, int], chunks: str) -> None:
    assert status(exchange(web[1], request(ENDPOINT, "Transfer-Encoding: chunked", body=TINY[chunks]))) in {400, 413}


CHUNKED = "Transfer-Encoding: chunked"
WHO = LEAK.decode()
MALFORMED: dict[str, tuple[bytes, list[str]]] = {
    "a size with 0x": (b"0x5\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "a size and an address": (b"5 ann@acme.example\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "a negative size": (b"-5\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "a signed size": (b"+5\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "a size with an underscore": (b"5_0\r\n" + b"x" * 80 + b"\r\n0\r\n\r\n", [CHUNKED]),
    "a blank before the size": (b" 5\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "no size": (b"\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "an address for a size": (LEAK + b"\r\n", [CHUNKED]),
    "a bare LF after the size": (b"5\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "a bare LF after the data": (b"5\r\nhello\n0\r\n\r\n", [CHUNKED]),
    "a bare CR in an extension": (b"5;a\rb\r\nhello\r\n0\r\n\r\n", [CHUNKED]),
    "no CRLF after the data": (b"5\r\nhello0\r\n\r\n", [CHUNKED]),
    "more data than the size": (b"5\r\nhello" + LEAK + b"\r\n0\r\n\r\n", [CHUNKED]),
    "a trailer that is no field": (b"0\r\n" + LEAK + b"\r\n\r\n", [CHUNKED]),
    "a bare LF in the trailers": (b"0\r\nX: y\nZ: 1\r\n\r\n", [CHUNKED]),
    "chunked twice": (b"0\r\n\r\n", [CHUNKED, CHUNKED]),
    "chunked twice in one line": (b"0\r\n\r\n", ["Transfer-Encoding: chunked, chunked"]),
    "gzip and chunked": (b"0\r\n\r\n", ["Transfer-Encoding: gzip, chunked"]),
    "not chunked": (b"0\r\n\r\n", ["Transfer-Encoding: identity"]),
    "an unknown coding": (b"0\r\n\r\n", [f"Transfer-Encoding: {WHO}"]),
    "a coding with a suffix": (b"0\r\n\r\n", ["Transfer-Encoding: xchunked"]),
    "a folded coding": (b"0\r\n\r\n", ["Transfer-Encoding:\r\n chunked"]),
    "a folded field": (b"", [f"X-Folded: a\r\n {WHO}"]),
    "a blank before the colon": (b"0\r\n\r\n", ["Transfer-Encoding : chunked"]),
    "a vertical tab before chunked": (b"0\r\n\r\n", ["Transfer-Encoding: \x0bchunked"]),
    "two lengths": (b"hello", ["Content-Length: 5", "Content-Length: 4"]),
    "two lengths in one line": (b"hello", ["Content-Length: 5, 5"]),
    "a signed length": (b"hello", ["Content-Length: +5"]),
    "a length in words": (b"hello", [f"Content-Length: {WHO}"]),
    "a length beyond all numbers": (b"", ["Content-Length: " + "9" * 5000]),
    "an address for a field": (b"", [WHO]),
    "a field with an address for a name": (b"", [f"{WHO}: x"]),
    "NUL in a field": (b"", [f"X: {WHO}\0"]),
    "a bare CR in a field": (b"", [f"X: {WHO}\rY: z"]),
}
LINES = {
    "a method that is no token": f"G@T /{WHO} HTTP/1.1",
    "no version": f"POST {ENDPOINT}",
    "another version": f"POST {ENDPOINT} HTTP/2.0",
    "a version that is none": f"POST {ENDPOINT} {WHO}",
    "blanks in the path": f"POST {ENDPOINT} {WHO} HTTP/1.1",
    "no path": f"{WHO}",
    "a host that cannot be one": f"GET http://[{WHO} HTTP/1.1",
}
TOLERATED: dict[str, tuple[bytes, list[int]]] = {
    "a length and chunks": (request(ENDPOINT, CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"), [401]),
    "a length with thousands of zeros": (request(ENDPOINT, "Content-Length: " + "0" * 5000), [401, 200]),
    "the same length twice": (request(ENDPOINT, "Content-Length: 5", "Content-Length: 5", body=b"hello"), [401, 200]),
    "a bare LF in a field": (request(ENDPOINT, f"X: {WHO}\nY: z"), [401, 200]),
    "bare LFs": (f"POST {ENDPOINT} HTTP/1.1\nHost: {WHO}\n\n".encode(), [401, 200]),
    "an expectation of another kind": (request(ENDPOINT, f"Expect: {WHO}"), [401, 200]),
    "a method in small letters": (f"get /{WHO} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), [404, 200]),
    "a path that is not ASCII": (f"POST {ENDPOINT}/é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), [404, 200]),
    "an authority": (f"GET {WHO}:80 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), [404, 200]),
}
"""Unusual requests that the server accepts, as RFC 9112 permits. It must know where they end: the next request is
answered, or the connection is closed (section 6.1, for a length and chunks)."""


@contextmanager
def new_lines(command: Command) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the lines that the command has printed since the start of the block."""
    already = len(command.output().splitlines())
    yield lambda: command.output().splitlines()[already:]


def assert_refused(web: tuple[Command, int], sent: bytes) -> None:
    with new_lines(web[0]) as lines:
        answer = exchange(web[1], sent, seconds=5)
        assert status(answer) == 400, answer
        # After another answer, all lines about the first are written. The server itself writes none.
        assert status(exchange(web[1], request("/healthz", "Connection: close", method="GET"))) == 200
        found = lines()
    assert len(found) <= 1, found
    assert answer.count(b"HTTP/1.1 ") == 1, "one answer: the rest is no request of its own"
    assert_not_quoted(answer, found)


def assert_not_quoted(answer: bytes, lines: list[str]) -> None:
    for text in (answer.decode("latin-1"), *lines):
        assert WHO not in text and "acme" not in text and PATH_TOKEN not in text and "Traceback" not in text


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_framing_is_refused_and_not_quoted(web: tuple[Command, int], what: str) -> None:
    body, fields = MALFORMED[what]
    assert_refused(web, request(ENDPOINT, *fields, body=body + request("/healthz", method="GET")))


@pytest.mark.parametrize("what", LINES)
def test_a_malformed_request_line_is_refused_and_not_quoted(web: tuple[Command, int], what: str) -> None:
    assert_refused(web, f"{LINES[what]}\r\nHost: localhost\r\n\r\n".encode())


def test_chunks_in_http_1_0_are_refused(web: tuple[Command, int]) -> None:
    head = f"POST {ENDPOINT} HTTP/1.0\r\nHost: localhost\r\n{CHUNKED}\r\n\r\n"
    assert_refused(web, head.encode() + b"0\r\n\r\n")


@pytest.mark.parametrize("what", TOLERATED)
def test_an_unusual_request_ends_where_it_should(web: tuple[Command, int], what: str) -> None:
    sent, statuses = TOLERATED[what]
    with new_lines(web[0]) as lines:
        answer = exchange(web[1], sent + request("/healthz", "Connection: close", method="GET"), seconds=5)
        assert [status(b"HTTP/1.1 " + part) for part in answer.split(b"HTTP/1.1 ")[1:]] == statuses
        assert_not_quoted(answer, lines())


@pytest.mark.parametrize("pieces", [1, 3, 100_000], ids=lambda size: f"{size} bytes at a time")
def test_pipelined_requests_are_read_separately(web: tuple[Command, int], pieces: int) -> None:
    (body,) = map(encoded, new_users(1))
    chunks = b"5;a=b\r\n" + body[:5] + b"\r\n" + b"%X\r\n" % (len(body) - 5) + body[5:] + b"\r\n0000\r\n"
    signed = f"WorkOS-Signature: {sign(body)}"
    sent = (
        request(ENDPOINT, signed, CHUNKED, body=chunks + b"Content-Length: 5\r\nHost: other\r\n\r\n")
        + request("/healthz", method="GET")
        + request(ENDPOINT, signed, f"Content-Length: {len(body)}", body=body)
        + request("/no/such/path", CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n")
        + request("/healthz", "Connection: close", method="GET")
    )
    with socket.create_connection(("127.0.0.1", web[1]), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), pieces):
            client.sendall(sent[at : at + pieces])
        answers = read_all(client)
    found = [status(b"HTTP/1.1 " + part) for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert found == [200, 200, 200, 404, 200]


# Requests that pretend to come through a proxy


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/x/metrics", "SCRIPT_NAME: /x"),
        ("/x/metrics", "Script-Name: /x"),
        ("/x/metrics", "X-Script-Name: /x"),
        ("/x/metrics", "X-Forwarded-Prefix: /x"),
        ("/x", "PATH_INFO: /metrics"),
        ("/x", "X-Original-URL: /metrics"),
        ("//metrics", "X: y"),
        ("///metrics", "X: y"),
        ("/%2Fmetrics", "X: y"),
        ("http://localhost//metrics", "X: y"),
        ("/ops//sign-in", "X: y"),
        ("//ops/sign-in", "X: y"),
        ("/metrics/", "X: y"),
        ("/./metrics", "X: y"),
        ("/x/../metrics", "X: y"),
    ],
)
def test_headers_and_path_spellings_do_not_bypass_the_rules_of_a_proxy(
    web: tuple[Command, int], path: str, field: str
) -> None:
    assert status(exchange(web[1], request(path, field, "Connection: close", method="GET"))) == 404


@pytest.mark.parametrize("field", ["X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"])
def test_without_a_trusted_proxy_forwarded_protocols_are_ignored(web: tuple[Command, int], field: str) -> None:
    answer = exchange(web[1], request("/ops/sign-in", field, "Connection: close", method="GET"))
    assert b"set-cookie: " in answer and b"Secure" not in answer


# Slow readers


@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("db_url", ["postgresql"], indirect=True)
def test_slow_readers_of_snapshots_do_not_delay_deliveries(
    commands: Commands, redis_url: str, db_url: str, engine: Engine
) -> None:
    names = [organization(f"org_{n:05}", f"event_org_{n:05}", 0) for n in range(2_500)]
    for event in names:
        event["data"]["name"] = "x" * 8_000
    store(engine, names)
    apply_all(engine)
    _, port = commands.web(DATABASE_URL=db_url, REDIS_URL=redis_url, WEB_PROCESSES=1, API_TOKENS=READER)
    bearer = f"Authorization: Bearer {READER}"
    stop = threading.Event()

    def ask(path: str) -> bytes:
        return exchange(port, request(path, bearer, "Connection: close", method="GET"), seconds=20)

    def read_on(readers: list[socket.socket]) -> None:
        while not stop.wait(0.2):
            for reader in readers:
                if stop.is_set():
                    return
                with suppress(OSError):
                    reader.recv(1_024)

    with ExitStack() as stack:
        readers = [stack.enter_context(socket.socket()) for _ in range(SLOW_READERS)]
        for reader in readers:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            reader.settimeout(20)
            reader.connect(("127.0.0.1", port))
            reader.sendall(request("/api/v1/snapshot", bearer, method="GET"))
        heads = [reader.recv(1_024) for reader in readers]
        for reader in readers:
            reader.settimeout(0.2)
        thread = threading.Thread(target=read_on, args=([*readers],))
        thread.start()
        try:
            slowest = p99(port, path="/webhooks/workos")
            answers = {path: status(ask(path)) for path in ("/readyz", "/metrics", "/api/v1/members", "/api/v1/events")}
            another = ask("/api/v1/snapshot")
        finally:
            stop.set()
            thread.join()
    assert slowest < QUICK
    assert set(answers.values()) == {200}, answers
    answered = Counter(map(status, heads))
    assert 1 <= answered[200] < SLOW_READERS and set(answered) <= {200, 429, 503}, answered
    assert all(b"retry-after: " in head for head in (*heads, another) if status(head) != 200)
    assert status(another) in {429, 503}
    eventually(lambda: status(ask("/api/v1/snapshot")) == 200, 20)  # the readers have disconnected
    assert count(engine) == len(names) + DELIVERIES

"""Hosts that hooks call."""

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy import Engine
from standardwebhooks.webhooks import Webhook

from tests.support import JSON
from worker.hooks.follow import Target, follow

SECRET = "whsec_" + "c2VjcmV0" * 4


def follow_all(engine: Engine, targets: Mapping[str, Target], attempts: int) -> None:
    """Send each hook the changes that it has not received, one hook after the other."""
    for name, target in targets.items():
        follow(engine, name, target, attempts)


class Web:
    """A host that hooks call over HTTP. It answers with `answers` while it is `open`, and keeps the messages."""

    def __init__(self) -> None:
        self.answers: deque[int] = deque()
        self.took: list[JSON] = []
        self.traceparents: list[str | None] = []
        self.tried = 0
        self.asked = 0
        self.connections = 0
        self.open = threading.Event()
        self.open.set()
        self._lock = threading.Lock()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                web.connections += 1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                Webhook(SECRET).verify(body, dict(self.headers.items()))
                web.asked += 1
                web.open.wait(60)
                with web._lock:
                    web.tried += 1
                    status = web.answers.popleft() if web.answers else 204
                    if status < 300:
                        web.traceparents.append(self.headers["traceparent"])
                        web.took.append(json.loads(body) | {"id": self.headers["webhook-id"]})
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def raw_host(answer: Callable[[threading.Event], Iterable[bytes]]) -> Iterator[str]:
    """Yield the URL of a host that sends each part of `answer(ended)` as it comes, until the caller hangs up."""
    ended = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            client.recv(65536)
            for part in answer(ended):
                client.sendall(part)

    def accept() -> None:
        with suppress(OSError):
            while not ended.is_set():
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def dripping(data: bytes, seconds: float = 0.5, at_once: bytes = b"") -> Callable[[threading.Event], Iterator[bytes]]:
    """An answer whose first part comes at once, and the rest a byte each `seconds`."""

    def answer(ended: threading.Event) -> Iterator[bytes]:
        yield at_once
        for byte in data:
            if ended.wait(seconds):
                return
            yield bytes([byte])

    return answer


OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def long_answer(megabytes: int | None) -> Callable[[threading.Event], Iterator[bytes]]:
    """An answer of this length; None: one without end."""

    def answer(ended: threading.Event) -> Iterator[bytes]:
        length = 10**15 if megabytes is None else megabytes * 1_000_000
        yield OK + b"Content-Length: %d\r\n\r\n" % length
        sent, part = 0, b"x" * 1_000_000
        while sent < length and not ended.is_set():
            yield part
            sent += len(part)

    return answer

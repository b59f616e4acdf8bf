"""Products that receive hooks."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DRIP_SECONDS = 0.5
SLOW_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Host:
    """A product on a port of 127.0.0.1.

    Attributes:
        url: where its hook goes.
        took: the time of the first complete arrival, in seconds since the epoch, by the id of the change.
        order: the ids of the changes of each object, in the order of their first arrival.
    """

    def __init__(self) -> None:
        self._slowed = 0
        self.took: dict[int, float] = {}
        self.order: dict[tuple[str, str], list[int]] = {}
        self._lock = threading.Lock()
        host = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                change = json.loads(self.rfile.read(int(self.headers["content-length"])))["data"]
                if host._slowed:
                    host._drip(self)
                    return
                host._note(change)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, name="host", daemon=True).start()

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """Send each answer a byte each half second."""
        with self._lock:
            self._slowed += 1
        try:
            yield
        finally:
            with self._lock:
                self._slowed -= 1

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def _note(self, change: dict[str, Any]) -> None:
        with self._lock:
            if change["id"] not in self.took:
                self.took[change["id"]] = time.time()
                self.order.setdefault((change["kind"], change["object_id"]), []).append(change["id"])

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        for place in range(len(SLOW_ANSWER)):
            if not self._slowed:
                return
            handler.wfile.write(SLOW_ANSWER[place : place + 1])
            time.sleep(DRIP_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: the faults of the drill cut connections."""

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, which the other side may have cut before."""
        with suppress(OSError):
            super().shutdown_request(request)

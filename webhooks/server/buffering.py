"""gunicorn's threaded worker, mended: no sender holds a thread, or the loop, however slowly it sends or reads.

gunicorn gives a connection to a thread as soon as it is accepted, and the thread waits for the sender: a few senders
that drip bytes keep the door shut. Here the loop gathers each request, and a thread gets it when it is whole.
"""

import errno
import select
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import Any

import structlog
from gunicorn.http import RequestParser
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import ThreadWorker

from webhooks.server.request_reader import BAD_REQUEST, HEAD_TOO_LARGE, RefusedRequestError, RequestReader
from worker.logs import places

log = structlog.get_logger()

REQUEST_SECONDS = 10.0
"""From the first byte to the last, or from connecting."""
LEAVING_SECONDS = 2.0
"""How long a connection that was answered may stay to take the answer."""
SEND_SECONDS = 5
"""How long a thread waits for a sender that does not read its answer."""
PIECE = 65_536
ACCEPTS_AT_ONCE = 16
"""Few, so that the other processes get their share."""
MAX_DISCARDED = 1_048_576
TRUST_NOBODY = {"forwarded_allow_ips": "", "forwarder_headers": "", "secure_scheme_headers": {}}
"""gunicorn's settings for proxies. By default it believes this machine, and whoever comes through a Unix socket."""


class _Gathered(Unreader):  # type: ignore[misc]  # gunicorn ships no types
    """The head of a request. A thread that reads more than that takes the request for another than it is."""

    def chunk(self, size_hint: int | None = None) -> bytes:  # noqa: ARG002 - gunicorn's own signature
        raise ConnectionResetError(errno.ECONNRESET, "the request is not whole")


class BufferingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Gathers requests in its loop. Who takes too long is dropped; where there are too many, the oldest is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, nobody in TRUST_NOBODY.items():
            self.cfg.set(name, nobody)
        self.leaving: deque[Any] = deque()
        self.pending_conns: deque[Any] = deque()

    def accept(self, listener: socket.socket) -> None:
        """Accept several at each turn of the loop: gunicorn's one at a time waits long beside those who send much."""
        for _ in range(ACCEPTS_AT_ONCE):
            before = self.nr_conns
            super().accept(listener)
            if not before < self.nr_conns < self.worker_connections:
                return

    def enqueue_req(self, conn: Any) -> None:
        """Take the next request of a connection: a new one, one that was kept, or one with more in its buffer."""
        conn.sock.setblocking(False)
        if conn.parser is None:
            conn.parser = RequestParser(self.cfg, (), conn.client)
            conn.parser.unreader = _Gathered()
            conn.data_ready = True
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        conn.incoming = RequestReader(self.wsgi.config["MAX_CONTENT_LENGTH"])
        then = self._gather(conn, conn.parser.unreader.take_buffered())
        if then is not None:
            then(conn)
            return
        self._await(conn, self.pending_conns, REQUEST_SECONDS, self.on_pending_socket_readable)

    def on_pending_socket_readable(self, conn: Any, client: socket.socket) -> None:
        """Take what came; give the request to a thread if it is whole."""
        then = self._gather(conn)
        if then is not None:
            self.poller.unregister(client)
            self.pending_conns.remove(conn)
            then(conn)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose head was parsed, in a thread."""
        req.body = BytesIO(conn.incoming.body)  # gunicorn's reader copies what is left at each read
        conn.parser.unreader.unread(conn.incoming.rest)
        return super().handle_request(req, conn)

    def handle_error(self, req: Any, client: socket.socket, _addr: Any, exc: Exception) -> None:
        """Answer and log what could not be parsed (then there is no `req`) or what failed, quoting nothing of it."""
        if req is None:
            large = isinstance(exc, LimitRequestLine | LimitRequestHeaders)
            _refuse(client, HEAD_TOO_LARGE if large else BAD_REQUEST, "head")
        else:
            log.error("request_failed", error=type(exc).__name__, places=places(exc))
            _tell(client, "500 Internal Server Error")

    def finish_request(self, conn: Any, fs: "Future[Any]") -> None:
        """Keep a connection for its next request, or see it off."""
        if fs.cancelled() or fs.exception() or not fs.result():
            self._see_off(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Drop who took too long, and where there are too many connections the oldest of the largest crowd."""
        now = time.monotonic()
        for conns in (self.leaving, self.pending_conns):
            while conns and conns[0].timeout <= now:
                self._end(conns)
        if self.nr_conns >= self.worker_connections:
            crowd = max(self.pending_conns, self.leaving, self.keepalived_conns, key=len)
            if crowd:
                self._end(crowd)

    def _cap_keepalive(self, deadline: float) -> None:
        """Do, at the end of the process, for who has not begun to send as for who was kept: wait a little, not long."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            if not conn.incoming.began:
                conn.timeout = min(conn.timeout, deadline)
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))

    def _gather(self, conn: Any, data: bytes = b"") -> Callable[[Any], None] | None:
        """Return what to do with the connection now; None: wait for more."""
        try:
            came = data or conn.sock.recv(PIECE)
            if not came:
                return self._drop
            if conn.incoming.add(came):
                conn.parser.unreader.unread(conn.incoming.head)
                return super().enqueue_req if _takes_answers(conn.sock) else self._drop
            if conn.incoming.reply:
                conn.sock.send(conn.incoming.reply)
        except RefusedRequestError as error:
            return partial(self._refuse, error=error)
        except BlockingIOError:
            return None
        except OSError:
            return self._drop
        return None

    def _await(self, conn: Any, conns: "deque[Any]", seconds: float, readable: Callable[[Any, Any], None]) -> None:
        conn.timeout = time.monotonic() + seconds
        conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(readable, conn))

    def _refuse(self, conn: Any, error: RefusedRequestError) -> None:
        _refuse(conn.sock, error.status, error.reason)
        self._see_off(conn)

    def _see_off(self, conn: Any) -> None:
        """Close a connection once the other side has: closed at once, it might lose the answer (RFC 9112, 9.6)."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
        else:
            conn.thrown_away = 0
            self._await(conn, self.leaving, LEAVING_SECONDS, self._throw_away)

    def _throw_away(self, conn: Any, client: socket.socket) -> None:
        try:
            came = len(client.recv(PIECE))
        except OSError:
            came = 0
        conn.thrown_away += came
        if not came or conn.thrown_away > MAX_DISCARDED:
            self.poller.unregister(client)
            self.leaving.remove(conn)
            self._drop(conn)

    def _end(self, conns: "deque[Any]") -> None:
        conn = conns.popleft()
        self.poller.unregister(conn.sock)
        if conns is self.pending_conns and conn.incoming.began:
            _tell(conn.sock, "408 Request Timeout")
        self._drop(conn)

    def _drop(self, conn: Any) -> None:
        self.nr_conns -= 1
        conn.close()


def _takes_answers(sock: socket.socket) -> bool:
    """Whether an answer can be sent without waiting: not to who sends requests and reads no answers."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _refuse(sock: socket.socket, status: str, reason: str) -> None:
    log.warning("request_refused", status=int(status[:3]), reason=reason)
    _tell(sock, status)


def _tell(sock: socket.socket, status: str) -> None:
    body = b'{"error": "%s"}\n' % status.partition(" ")[2].lower().encode()
    told = (f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    with suppress(OSError):
        sock.send("\r\n".join((*told, "", "")).encode() + body)

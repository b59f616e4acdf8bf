"""A gunicorn threaded worker that slow clients cannot block.

gunicorn hands a connection to a thread as soon as it is accepted, and the thread waits for the client. A few slow
clients then occupy every thread. This worker buffers each request in its event loop and hands only complete requests to
threads.
"""

import errno
import gc
import os
import select
import selectors
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache, partial
from io import BytesIO
from types import FrameType
from typing import Any

import structlog
from gunicorn.http import RequestParser
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import ThreadWorker

from webhooks.server.request_reader import BAD_REQUEST, BUSY, HEAD_TOO_LARGE, RequestReader
from worker.errors import RefusedRequestError, stack_of

log = structlog.get_logger()

REQUEST_SECONDS = 10.0
"""Time limit for receiving a request, counted from connecting or, on a reused connection, from its first byte."""
CLOSING_SECONDS = 2.0
"""How long the client may take to close its side after the response."""
SEND_SECONDS = 5
"""How long a thread waits for a client that does not read its response."""
RECV_BYTES = 65_536
MAX_HELD_BYTES = 64 * 1_048_576
"""Bytes of requests that a process holds at once, whether they are complete or not. A larger `WEBHOOK_MAX_BYTES` raises
it, so that two requests always fit."""
MAX_ACCEPTS = 16
"""Connections accepted per turn of the loop. Low, so that other processes get their share."""
MAX_DISCARDED = 1_048_576
"""Bytes discarded from a client that still sends after the response."""
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
NO_TRUSTED_PROXIES = {"forwarded_allow_ips": "", "forwarder_headers": "", "secure_scheme_headers": {}}
"""gunicorn's proxy settings. By default it trusts headers from localhost and from Unix sockets."""


Conn = Any
"""gunicorn's `TConn`: it ships no types."""


class _HeadBuffer(Unreader):  # type: ignore[misc]  # gunicorn ships no types
    """Holds the head of a request. Reading beyond it means that gunicorn parsed the head differently than we did."""

    def chunk(self, size_hint: int | None = None) -> bytes:  # noqa: ARG002 - gunicorn's own signature
        raise ConnectionResetError(errno.ECONNRESET, "the request is incomplete")


class BufferingWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn ships no types
    """Buffers requests in its event loop. Slow connections are closed, and the oldest ones when there are too many."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        for name, value in NO_TRUSTED_PROXIES.items():
            self.cfg.set(name, value)
        self.closing_conns: deque[Conn] = deque()
        self.pending_conns: deque[Conn] = deque()
        self._held = 0

        _keep_signals_for_workers()

    def run(self) -> None:
        """Serve until stopped. What was loaded stays until the end, so garbage collection need not visit it."""
        gc.freeze()  # at the exit too, where it would take a third of a second of CPU
        super().run()

    def init_signals(self) -> None:
        """Set the signal handlers, then receive what was sent to this process since its fork."""
        super().init_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish the requests that were received, then exit. A process that is still starting exits at once."""
        if not self.booted:
            sys.exit(0)
        super().handle_exit(sig, frame)

    def accept(self, listener: socket.socket) -> None:
        """Accept several connections per turn of the loop. gunicorn accepts one, which is slow while others send."""
        for _ in range(MAX_ACCEPTS):
            before = self.nr_conns
            super().accept(listener)
            if not before < self.nr_conns < self.worker_connections:
                return

    def enqueue_req(self, conn: Conn) -> None:
        """Start receiving the next request of a connection, which may be new, kept alive, or hold buffered bytes."""
        conn.sock.setblocking(False)
        if conn.parser is None:
            conn.parser = RequestParser(self.cfg, (), conn.client)
            conn.parser.unreader = _HeadBuffer()
            conn.data_ready = True
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS, 0))
        conn.incoming = RequestReader(self.wsgi.config["MAX_CONTENT_LENGTH"])
        conn.held, conn.evicted = 0, False
        action = self._receive(conn, conn.parser.unreader.take_buffered())
        if action is not None:
            action(conn)
            return
        self._wait(conn, self.pending_conns, REQUEST_SECONDS, self.on_pending_socket_readable)

    def on_pending_socket_readable(self, conn: Conn, client: socket.socket) -> None:
        """Receive what has arrived; hand the request to a thread if it is complete."""
        if conn.evicted:
            return  # in this turn of the loop, by a connection before it
        action = self._receive(conn)
        if action is not None:
            self.poller.unregister(client)
            self.pending_conns.remove(conn)
            action(conn)

    def handle_request(self, req: Any, conn: Conn) -> object:
        """Handle a request in a thread, after its head was parsed."""
        # gunicorn's own reader copies the remaining bytes on each read.
        req.body, conn.incoming.body = BytesIO(conn.incoming.body), b""
        conn.parser.unreader.unread(conn.incoming.rest)
        try:
            return super().handle_request(req, conn)
        finally:
            req.body = BytesIO()  # the connection keeps `req` until its next request

    def handle_error(self, req: object, client: socket.socket, _addr: object, exc: Exception) -> None:
        """Log an error and respond, without quoting the request. `req` is None if the request could not be parsed."""
        if req is None:
            large = isinstance(exc, LimitRequestLine | LimitRequestHeaders)
            _reject(client, HEAD_TOO_LARGE if large else BAD_REQUEST, "head")
        else:
            log.error("request_failed", error=type(exc).__name__, stack=stack_of(exc))
            _send_error(client, "500 Internal Server Error")

    def finish_request(self, conn: Conn, fs: "Future[object]") -> None:
        """Keep the connection alive for its next request, or close it."""
        self._release(conn)
        if fs.cancelled() or fs.exception() or not fs.result():
            self._close_gracefully(conn)
        else:
            super().finish_request(conn, fs)

    def murder_pending(self) -> None:
        """Close connections past their time limit; at the connection limit, the oldest one of the largest group."""
        now = time.monotonic()
        for conns in (self.closing_conns, self.pending_conns):
            while conns and conns[0].timeout <= now:
                self._time_out(conns)
        if self.nr_conns >= self.worker_connections:
            largest = max(self.pending_conns, self.closing_conns, self.keepalived_conns, key=len)
            if largest:
                self._time_out(largest)

    def _cap_keepalive(self, deadline: float) -> None:
        """At shutdown, apply the deadline of idle keep-alive connections to clients that have not started to send."""
        super()._cap_keepalive(deadline)
        for conn in self.pending_conns:
            if not conn.incoming.started:
                conn.timeout = min(conn.timeout, deadline)
        self.pending_conns = deque(sorted(self.pending_conns, key=lambda conn: conn.timeout))

    def _receive(self, conn: Conn, data: bytes = b"") -> Callable[[Conn], None] | None:
        """Receive bytes; return what to do with the connection next, or None to wait for more."""
        try:
            received = data or conn.sock.recv(RECV_BYTES)
            if not received:
                return self._drop
            complete = conn.incoming.add(received)
            self._hold(conn, conn.incoming.held)
            self._make_room(conn)
            if complete:
                conn.parser.unreader.unread(conn.incoming.head)
                return super().enqueue_req if _can_send(conn.sock) else self._drop
            if conn.incoming.reply:
                conn.sock.send(conn.incoming.reply)
        except RefusedRequestError as error:
            return partial(self._reject, error=error)
        except BlockingIOError:
            return None
        except OSError:
            return self._drop
        return None

    def _hold(self, conn: Conn, held: int) -> None:
        """Count the bytes that a connection holds."""
        self._held += held - conn.held
        conn.held = held

    def _release(self, conn: Conn) -> None:
        """Free the bytes of a request that is answered or rejected. Its connection may stay open for minutes."""
        self._hold(conn, 0)
        conn.incoming.free()

    def _make_room(self, conn: Conn) -> None:
        """While too much is held, reject the largest request that is incomplete, or else the one of `conn`."""
        most = max(MAX_HELD_BYTES, 2 * self.wsgi.config["MAX_CONTENT_LENGTH"])
        while self._held > most:
            largest = max(self.pending_conns, key=lambda waiting: int(waiting.held), default=conn)
            if largest.held <= conn.held or largest is conn:
                raise RefusedRequestError(BUSY, "memory")
            self.poller.unregister(largest.sock)
            self.pending_conns.remove(largest)
            largest.evicted = True
            self._reject(largest, RefusedRequestError(BUSY, "memory"))

    def _wait(
        self, conn: Conn, conns: "deque[Conn]", seconds: float, readable: Callable[[Conn, socket.socket], None]
    ) -> None:
        conn.timeout = time.monotonic() + seconds
        conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(readable, conn))

    def _reject(self, conn: Conn, error: RefusedRequestError) -> None:
        self._release(conn)
        _reject(conn.sock, error.status, error.reason)
        self._close_gracefully(conn)

    def _close_gracefully(self, conn: Conn) -> None:
        """Close a connection after the client has. Closing at once could lose the response (RFC 9112, section 9.6)."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(conn)
        else:
            conn.discarded = 0
            self._wait(conn, self.closing_conns, CLOSING_SECONDS, self._discard)

    def _discard(self, conn: Conn, client: socket.socket) -> None:
        try:
            received = len(client.recv(RECV_BYTES))
        except OSError:
            received = 0
        conn.discarded += received
        if not received or conn.discarded > MAX_DISCARDED:
            self.poller.unregister(client)
            self.closing_conns.remove(conn)
            self._drop(conn)

    def _time_out(self, conns: "deque[Conn]") -> None:
        conn = conns.popleft()
        self.poller.unregister(conn.sock)
        if conns is self.pending_conns and conn.incoming.started:
            _send_error(conn.sock, "408 Request Timeout")
        self._drop(conn)

    def _drop(self, conn: Conn) -> None:
        self._release(conn)
        self.nr_conns -= 1
        conn.close()


@cache
def _keep_signals_for_workers() -> None:
    """Block signals during each fork, and in the new process until it has its own handlers.

    Until then it would handle a signal as its parent does, which only notes it. The parent would wait for its graceful
    timeout, and then kill it.
    """
    os.register_at_fork(
        before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, STOPPING),
        after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, STOPPING),
    )


def _can_send(sock: socket.socket) -> bool:
    """Return whether a response can be sent without blocking. It cannot if the client reads no responses."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def _reject(sock: socket.socket, status: str, reason: str) -> None:
    log.warning("request_rejected", status=int(status[:3]), reason=reason)
    _send_error(sock, status)


def _send_error(sock: socket.socket, status: str) -> None:
    body = b'{"error": "%s"}\n' % status.partition(" ")[2].lower().encode()
    head = (f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", "Connection: close")
    with suppress(OSError):
        sock.send("\r\n".join((*head, "", "")).encode() + body)

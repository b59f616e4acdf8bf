"""The ASGI application: reads a whole request within its limits, runs Flask on it, and sends the response.

Flask is a WSGI application, which would hold a thread while a slow client sends or receives. Here such a client holds
only a coroutine. Deliveries and `/healthz` run in the event loop: they wait for nothing but a commit. Everything else
gets a thread.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from io import BytesIO
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

import structlog
from flask import Flask

from webhooks.group_commit import run_inline
from worker.errors import RefusedRequestError
from worker.metrics import Counters, Place
from worker.webhook_endpoints import WEBHOOK_PATH

log = structlog.get_logger()

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

REQUEST_SECONDS = 10.0
"""Time limit for receiving a request's body."""
MAX_HELD_BYTES = 64 * 1_048_576
"""Above this many bytes of request bodies, a process drops the largest one that it is receiving.

A larger `WEBHOOK_MAX_BYTES` raises it, so that two bodies always fit. Bodies of up to `SMALL_BYTES` may exceed it.
"""
SMALL_BYTES = 65_536
"""A request up to this size is never dropped to free memory. Deliveries usually are."""
FREE_PARTS = 2_048
PART_BYTES = 8
"""After `FREE_PARTS` parts of a body, the parts must have this many bytes on average: each costs a turn of the loop."""
MAX_DIGITS = 18
"""A `Content-Length` with more digits is too large."""
INLINE = (WEBHOOK_PATH, "/healthz")
"""Paths with these prefixes run in the event loop. They wait for nothing but a group commit; unknown ones get 404."""


class _Response(NamedTuple):
    """The status, headers and body of a WSGI response. The caller must close the body, unless it is buffered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: Iterable[bytes]

    @property
    def is_buffered(self) -> bool:
        """Whether the body is in memory already. A stream has no length."""
        return any(name == b"content-length" for name, _ in self.headers)


class _Body:
    """A body that is being received. If `dropped` is set, it was discarded to free memory."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.deadline = asyncio.timeout(REQUEST_SECONDS)
        self.dropped = False

    def drop(self) -> int:
        """Make the coroutine that receives it fail. Return how many bytes that frees."""
        freed, self.size, self.dropped = self.size, 0, True
        self.parts.clear()
        if not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time())
        return freed


class Gateway:
    """The application that a server calls for each request.

    Args:
        app: the Flask application. Its `MAX_CONTENT_LENGTH` is the size from which a body is too large.
        threads: number of threads for requests that do not run in the event loop.
        counters: count errors that Flask did not handle.
    """

    def __init__(self, app: Flask, threads: int, counters: Counters) -> None:
        self.requests = 0
        """Number of requests that are being received or answered."""
        self.closing = False
        """Whether to close each connection after its response."""
        self._app = app
        self._counters = counters
        self._size_limit = app.config["MAX_CONTENT_LENGTH"]
        self._max_held = max(MAX_HELD_BYTES, 2 * self._size_limit)
        self._held = 0
        self._bodies: set[_Body] = set()
        self._threads = ThreadPoolExecutor(threads, "request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI specification, HTTP)."""
        self.requests += 1
        body = _Body()
        try:
            try:
                content = await self._receive(body, scope, receive)
            except RefusedRequestError as error:
                log.warning("request_rejected", status=error.status, reason=error.reason)
                await _send_error(send, HTTPStatus(error.status))
                return
            await self._answer(_environ(scope, content), receive, send)
        except Exception as error:  # noqa: BLE001 - the server would log request data
            self.report(error)
            await _send_error(send, HTTPStatus.INTERNAL_SERVER_ERROR)
        finally:
            self._held -= body.size
            self.requests -= 1

    def report(self, error: Exception) -> None:
        """Log and count an error of a request, or of the server, that Flask did not handle."""
        self._counters.report(Place.REQUEST, "server", error)

    async def _receive(self, body: _Body, scope: Scope, receive: Receive) -> bytes:
        """Return the body of a request. Its size counts as held until the request is answered.

        Raises:
            RefusedRequestError: it is malformed, incomplete, too large, too slow, or there is no memory for it.
        """
        length = self._length(scope["headers"])
        if length == 0:
            return b""
        self._bodies.add(body)
        try:
            async with body.deadline:
                await self._fill(body, length, receive)
            return b"".join(body.parts)
        except TimeoutError:
            if body.dropped:
                raise RefusedRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "memory") from None
            raise RefusedRequestError(HTTPStatus.REQUEST_TIMEOUT, "slow") from None
        finally:
            self._bodies.remove(body)
            body.parts.clear()

    def _length(self, headers: Iterable[tuple[bytes, bytes]]) -> int | None:
        """Return the length of the body, or None if it is chunked.

        An ambiguous length is refused, because a proxy in front might read it differently (RFC 9112, section 6.3).
        """
        framing = [(name, value) for name, value in headers if name in (b"content-length", b"transfer-encoding")]
        match framing:
            case []:
                return 0
            case [(b"content-length", value)] if value.isdigit():
                digits = value.lstrip(b"0") or b"0"  # thousands of digits cannot be converted
                if len(digits) > MAX_DIGITS or int(digits) >= self._size_limit:
                    raise RefusedRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body")
                return int(digits)
            case [(b"transfer-encoding", value)] if value.lower() == b"chunked":
                return None
            case _:
                raise RefusedRequestError(HTTPStatus.BAD_REQUEST, "length")

    async def _fill(self, body: _Body, length: int | None, receive: Receive) -> None:
        while length is None or body.size < length:
            message = await receive()
            if message["type"] == "http.disconnect":  # also if chunks are malformed
                raise RefusedRequestError(HTTPStatus.BAD_REQUEST, "body")
            part = message["body"]
            body.parts.append(part)
            body.size += len(part)
            self._held += len(part)
            if body.size >= self._size_limit:
                raise RefusedRequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body")
            if len(body.parts) > FREE_PARTS and body.size < len(body.parts) * PART_BYTES:
                raise RefusedRequestError(HTTPStatus.BAD_REQUEST, "tiny parts")
            if self._held > self._max_held:
                largest = max(self._bodies, key=lambda each: each.size)
                self._held -= largest.drop() if largest.size > SMALL_BYTES else 0
            if body.dropped:
                raise RefusedRequestError(HTTPStatus.SERVICE_UNAVAILABLE, "memory")
            if not message["more_body"]:
                return

    async def _answer(self, environ: dict[str, Any], receive: Receive, send: Send) -> None:
        respond = partial(_respond, self._app, environ)
        if environ["PATH_INFO"].startswith(INLINE):
            response = await run_inline(respond)
        else:
            response = await self._in_thread(respond)
        if self.closing:
            response.headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": response.status, "headers": response.headers}
        if response.is_buffered:
            await send(start)
            await send({"type": "http.response.body", "body": b"".join(response.body), "more_body": False})
        else:
            await self._stream(start, response.body, receive, send)

    async def _stream(self, start: Message, body: Iterable[bytes], receive: Receive, send: Send) -> None:
        """Send parts as fast as the client reads them, until it disconnects.

        A thread is used only to produce each part. If that fails, the client finds the response incomplete.
        """
        disconnected = asyncio.create_task(_until_disconnected(receive))
        parts: Iterator[bytes] = iter(body)
        try:
            await send(start)
            while not disconnected.done():
                part = await self._in_thread(partial(next, parts, None))
                await send({"type": "http.response.body", "body": part or b"", "more_body": part is not None})
                if part is None:
                    break
        finally:
            disconnected.cancel()
            await self._in_thread(partial(_close, body))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":  # the first message may be the empty request body
        pass


def _respond(app: Flask, environ: dict[str, Any]) -> _Response:
    """Run the application. Read the body of the response, unless it is a stream."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    body = app(environ, lambda status, headers, _error=None: started.append((status, headers)))  # type: ignore[arg-type]
    [(status, fields)] = started
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    response = _Response(int(status[:3]), [*headers, (b"server", b"workos-sync")], body)
    if not response.is_buffered:
        return response
    whole = list(body)
    _close(body)
    return response._replace(body=whole)


def _close(body: Iterable[bytes]) -> None:
    if close := getattr(body, "close", None):
        close()


def _environ(scope: Scope, body: bytes) -> dict[str, Any]:
    """Return the WSGI environment of a request (PEP 3333)."""
    host, port = scope["server"] or ("", "")
    environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": scope["client"][0] if scope["client"] else "",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" in name or name in (b"content-length", b"transfer-encoding"):
            continue  # `Script_Name` would become a variable that the server sets
        key = name.decode("latin-1").upper().replace("-", "_")
        key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
        text = value.decode("latin-1")
        environ[key] = f"{environ[key]},{text}" if key in environ else text
    return environ


async def _send_error(send: Send, status: HTTPStatus) -> None:
    """Answer without quoting the request, and close the connection: the rest of the request is not read."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close"), (b"server", b"workos-sync")]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"5"))
    with suppress(RuntimeError):  # the response has started
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        body = b'{"error":"%s"}\n' % status.phrase.lower().encode()
        await send({"type": "http.response.body", "body": body, "more_body": False})

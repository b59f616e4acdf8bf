"""API routes for following the mirror: the changes feed and the snapshot."""

import errno
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import datetime

import structlog
from flask import Blueprint, Response, after_this_request
from spectree import SpecTree
from sqlalchemy import Engine, RowMapping
from werkzeug.exceptions import TooManyRequests

from webhooks.api import requests, responses
from webhooks.api.answers import answers, as_json
from worker.errors import CursorGoneError
from worker.mirror import change_feed

log = structlog.get_logger()

MAX_SNAPSHOTS = 2
"""Concurrent snapshots per process. Each holds a thread and a database connection until it has been sent."""
SNAPSHOT_SECONDS = 600.0
RETRY_SNAPSHOT_SECONDS = 5
CHUNK_CHARS = 65_536


def add(routes: Blueprint, spec: SpecTree, engine: Engine, max_threads: int) -> None:
    """Add the routes to `routes`, and their descriptions to `spec`.

    Long polls and snapshots may each hold up to `max_threads` threads of this process. Deliveries need the others.
    """
    waiting = threading.BoundedSemaphore(max_threads)
    snapshots = threading.BoundedSemaphore(min(max_threads, MAX_SNAPSHOTS))

    @routes.get("/changes")
    @spec.validate(resp=answers(responses.Changes, HTTP_410=responses.Error), tags=["feed"])
    def changes(query: requests.ChangesQuery) -> Response:
        """List the changes after an id, in commit order.

        With `wait`, the response is delayed until there is a change or the time is up. If too many clients are
        waiting, `wait` is ignored and the response may be empty.

        410: some changes after the id have been pruned. Fetch a snapshot and continue from its `changes_after`.
        """
        may_wait = bool(query.wait) and waiting.acquire(blocking=False)
        try:
            found = change_feed.changes_after(engine, query.after, query.limit, query.wait if may_wait else 0.0)
        except CursorGoneError as error:
            advice = "fetch /api/v1/snapshot and continue from its changes_after"
            return as_json(responses.Error(error=f"{error}: {advice}"), 410)
        finally:
            if may_wait:
                waiting.release()
        after = found[-1]["id"] if found else query.after
        return as_json(responses.Changes(items=[responses.Change(**row) for row in found], next=after))

    @routes.get("/snapshot")
    @spec.validate(resp=answers(responses.Snapshot, HTTP_429=responses.Error), tags=["feed"], skip_validation=True)
    def snapshot() -> tuple[Iterator[str], int, dict[str, str]]:
        """Return the whole state at one moment, and the change id to continue from.

        429: too many concurrent snapshots; retry later. The connection is closed after ten minutes.
        """
        parts = _bounded(engine, snapshots)
        _, after = next(parts)  # Before the response starts, because this may raise.

        @after_this_request
        def close_with(response: Response) -> Response:
            response.call_on_close(parts.close)
            return response

        # Not a Response: spectree would read the whole body into memory.
        return _in_chunks(_stream_json(after, parts)), 200, {"Content-Type": "application/json"}


def _bounded(engine: Engine, slots: threading.BoundedSemaphore) -> Generator[tuple[str, int | RowMapping], None, None]:
    """Yield the parts of a snapshot while holding one of `slots`.

    Raises:
        TooManyRequests: no slot is free.
        ConnectionResetError: the client took longer than `SNAPSHOT_SECONDS`. The server closes the connection.
    """
    if not slots.acquire(blocking=False):
        raise TooManyRequests("too many concurrent snapshots; retry later", retry_after=RETRY_SNAPSHOT_SECONDS)
    deadline = time.monotonic() + SNAPSHOT_SECONDS
    try:
        with closing(change_feed.snapshot(engine)) as parts:
            for part in parts:
                yield part
                if time.monotonic() > deadline:
                    log.warning("snapshot_aborted", seconds=SNAPSHOT_SECONDS)
                    raise ConnectionResetError(errno.ECONNRESET, "the client read too slowly")
    finally:
        slots.release()


def _stream_json(after: object, parts: Iterator[tuple[str, object]]) -> Iterator[str]:
    """Yield a snapshot as one JSON document. It contains every list, even an empty one."""
    yield f'{{"changes_after": {after}'
    name, row = next(parts, (None, None))
    for view in change_feed.SNAPSHOT:
        yield f',\n"{view.name}": ['
        separator = "\n"
        while name == view.name:
            yield separator + json.dumps(row, default=lambda v: v.isoformat() if isinstance(v, datetime) else dict(v))
            separator = ",\n"
            name, row = next(parts, (None, None))
        yield "]"
    yield "}\n"


def _in_chunks(texts: Iterator[str]) -> Iterator[str]:
    """Join short texts into larger chunks, because the server makes one call to send each."""
    chunk, size = [], 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARS:
            yield "".join(chunk)
            chunk, size = [], 0
    yield "".join(chunk)

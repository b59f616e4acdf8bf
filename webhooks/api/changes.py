"""The routes for a product that follows the mirror."""

import errno
import json
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

import structlog
from flask import Blueprint, Response, after_this_request
from spectree import SpecTree
from sqlalchemy import Engine
from werkzeug.exceptions import TooManyRequests

from webhooks.api import schemas
from webhooks.api.answers import answers, as_json
from worker.mirror import change_feed
from worker.mirror.change_feed import CursorGoneError

log = structlog.get_logger()

MOST_SNAPSHOTS = 2
"""At once in a process: each holds a thread and a database connection while it is read."""
SNAPSHOT_SECONDS = 600.0
RETRY_SNAPSHOT_SECONDS = 5
PIECE = 65_536
TAKE_A_SNAPSHOT = "take /api/v1/snapshot and go on from its changes_after"


def add(routes: Blueprint, spec: SpecTree, engine: Engine, most_threads: int) -> None:
    """Add them to `routes`; callers that wait hold at most `most_threads` threads of this process at once."""
    # Deliveries need threads too.
    waiting = threading.BoundedSemaphore(most_threads)
    snapshots = threading.BoundedSemaphore(min(most_threads, MOST_SNAPSHOTS))

    @routes.get("/changes")
    @spec.validate(resp=answers(schemas.Changes, HTTP_410=schemas.Error), tags=["feed"])
    def changes(query: schemas.ChangesQuery) -> Response:
        """Follow the mirror: the changes after an id, in commit order; waits for one if asked to.

        410: changes after that id are no longer all kept; take a snapshot and go on from there. Where too many wait
        already, the answer comes at once, and may be empty.
        """
        may_wait = bool(query.wait) and waiting.acquire(blocking=False)
        try:
            found = change_feed.changes_after(engine, query.after, query.limit, query.wait if may_wait else 0.0)
        except CursorGoneError as error:
            return as_json(schemas.Error(error=f"{error}: {TAKE_A_SNAPSHOT}"), 410)
        finally:
            if may_wait:
                waiting.release()
        after = found[-1]["id"] if found else query.after
        return as_json(schemas.Changes(items=[schemas.Change(**row) for row in found], next=after))

    @routes.get("/snapshot")
    @spec.validate(resp=answers(schemas.Snapshot, HTTP_429=schemas.Error), tags=["feed"], skip_validation=True)
    def snapshot() -> tuple[Iterator[str], int, dict[str, str]]:
        """Return the whole state as of one moment, and the id from which the changes go on.

        429: too many snapshots are being read; try again. A reader that takes more than ten minutes is cut off.
        """
        parts = _bounded(engine, snapshots)
        _, after = next(parts)  # before the answer begins, for it may fail

        @after_this_request
        def close_with(answer: Response) -> Response:
            answer.call_on_close(parts.close)
            return answer

        # Not a Response: spectree would read one to its end, all of it in memory.
        return _pieces(_streamed(after, parts)), 200, {"Content-Type": "application/json"}


def _bounded(engine: Engine, slots: threading.BoundedSemaphore) -> Generator[tuple[str, Any], None, None]:
    """Yield the parts of a snapshot while holding one of `slots`, for a bounded time.

    Raises:
        TooManyRequests: none of `slots` is free.
        ConnectionResetError: the reader took too long; the server ends the connection.
    """
    if not slots.acquire(blocking=False):
        raise TooManyRequests("too many snapshots are being read", retry_after=RETRY_SNAPSHOT_SECONDS)
    ends = time.monotonic() + SNAPSHOT_SECONDS
    try:
        with closing(change_feed.snapshot(engine)) as parts:
            for part in parts:
                yield part
                if time.monotonic() > ends:
                    log.warning("snapshot_cut_off", seconds=SNAPSHOT_SECONDS)
                    raise ConnectionResetError(errno.ECONNRESET, "the reader took too long")
    finally:
        slots.release()


def _streamed(after: Any, parts: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """Yield a snapshot as one JSON document, piece by piece, every list there even if it is empty."""
    yield f'{{"changes_after": {after}'
    name, row = next(parts, (None, None))
    for view in change_feed.SNAPSHOT:
        yield f',\n"{view.name}": ['
        before = "\n"
        while name == view.name:
            yield before + json.dumps(dict(row or {}), default=_time)
            before = ",\n"
            name, row = next(parts, (None, None))
        yield "]"
    yield "}\n"


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """Join texts to pieces worth sending: each of them takes the server a call of its own."""
    piece, size = [], 0
    for text in texts:
        piece.append(text)
        size += len(text)
        if size >= PIECE:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _time(value: datetime) -> str:
    return value.isoformat()

"""The routes for a product that follows the mirror."""

import json
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from flask import Blueprint, Response
from spectree import SpecTree
from sqlalchemy import Engine

from webhooks.api import schemas
from webhooks.api.answers import answers, as_json
from worker.mirror import feed
from worker.mirror.feed import CursorGoneError

TAKE_A_SNAPSHOT = "take /api/v1/snapshot and go on from its changes_after"


def add(routes: Blueprint, spec: SpecTree, engine: Engine, most_waiting: int) -> None:
    """Add them to `routes`; at most so many callers wait at once in this process."""
    # Who waits holds a thread, and deliveries need theirs.
    waiting = threading.BoundedSemaphore(most_waiting)

    @routes.get("/changes")
    @spec.validate(resp=answers(schemas.Changes, HTTP_410=schemas.Error), tags=["feed"])
    def changes(query: schemas.ChangesQuery) -> Response:
        """Follow the mirror: the changes after an id, in commit order; waits for one if asked to.

        410: changes after that id are no longer all kept; take a snapshot and go on from there. Where too many wait
        already, the answer comes at once, and may be empty.
        """
        may_wait = bool(query.wait) and waiting.acquire(blocking=False)
        try:
            found = feed.changes_after(engine, query.after, query.limit, query.wait if may_wait else 0.0)
        except CursorGoneError as error:
            return as_json(schemas.Error(error=f"{error}: {TAKE_A_SNAPSHOT}"), 410)
        finally:
            if may_wait:
                waiting.release()
        after = found[-1]["id"] if found else query.after
        return as_json(schemas.Changes(items=[schemas.Change(**row) for row in found], next=after))

    @routes.get("/snapshot")
    @spec.validate(resp=answers(schemas.Snapshot), tags=["feed"], skip_validation=True)
    def snapshot() -> Response:
        """Return the whole state as of one moment, and the id from which the changes go on."""
        parts = feed.snapshot(engine)
        _, after = next(parts)  # before the answer begins, for it may fail
        return Response(_streamed(after, parts), content_type="application/json")


def _streamed(after: Any, parts: Iterator[tuple[str, Any]]) -> Iterator[str]:
    """Yield a snapshot as one JSON document, piece by piece, every list there even if it is empty."""
    yield f'{{"changes_after": {after}'
    name, row = next(parts, (None, None))
    for view in feed.SNAPSHOT:
        yield f',\n"{view.name}": ['
        before = "\n"
        while name == view.name:
            yield before + json.dumps(dict(row or {}), default=_time)
            before = ",\n"
            name, row = next(parts, (None, None))
        yield "]"
    yield "}\n"


def _time(value: datetime) -> str:
    return value.isoformat()

"""The mirror for products that follow it: the changes after an id in commit order, and a snapshot to begin with."""

import json
import time
from collections.abc import Generator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, func, select

from models.database import read_transaction
from models.tables import Change, Mirror
from models.views import auto_join_domains, sign_in_methods, workspace_members, workspaces
from worker.errors import CursorGoneError

POLL_SECONDS = 0.25
STEP = 500
SNAPSHOT = (workspaces, workspace_members, auto_join_domains, sign_in_methods)
"""The views in a snapshot, in this order."""


def as_json(value: Any) -> str:
    """Return a value as indented JSON, times as ISO 8601 text in UTC."""
    return json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))


def changes_after(engine: Engine, after: int, limit: int, wait_seconds: float = 0.0) -> list[dict[str, Any]]:
    """Return the changes with a higher id than `after`, lowest first, at most `limit`.

    Ids come in commit order, so whoever goes on from the highest id it saw misses nothing (docs/guarantees.md).

    Args:
        engine: the database.
        after: the highest id that the caller has seen; 0 for none.
        limit: the most to return.
        wait_seconds: how long to wait for one if there is none yet.

    Raises:
        CursorGoneError: take a snapshot and go on from there.
    """
    ends = time.monotonic() + wait_seconds
    while True:
        with read_transaction(engine) as tx:
            require_kept(tx, after)
            newer = select(Change.__table__).where(Change.id > after).order_by(Change.id).limit(limit)
            found = [dict(row) for row in tx.execute(newer).mappings()]
        left = ends - time.monotonic()
        if found or left <= 0:
            return found
        time.sleep(min(POLL_SECONDS, left))


def require_kept(tx: Connection, after: int) -> None:
    """Raise `CursorGoneError` unless every change with a higher id than `after` is still here."""
    dropped = tx.execute(select(Mirror.changes_dropped_to)).scalar_one()
    if after < dropped:
        raise CursorGoneError(f"changes up to {dropped} are no longer kept")
    if after > max(dropped, newest(tx)):
        raise CursorGoneError(f"there was never a change {after} here: was the database restored from a backup?")


def newest(tx: Connection) -> int:
    """Return the highest id of a change that is kept; 0 if there is none."""
    return tx.execute(select(func.max(Change.id))).scalar_one() or 0


def snapshot(engine: Engine) -> Generator[tuple[str, int | RowMapping], None, None]:
    """Yield the whole state as of one moment: `("changes_after", id)`, then rows by the name of their view.

    One transaction with one view of the database: whoever applies it and goes on with the changes after the id has
    every change exactly once.
    """
    with read_transaction(engine) as tx:
        dropped = tx.execute(select(Mirror.changes_dropped_to)).scalar_one()
        yield "changes_after", max(dropped, newest(tx))
        for view in SNAPSHOT:
            with tx.execute(select(view), execution_options={"yield_per": STEP}) as rows:  # a reader may leave
                for row in rows.mappings():
                    yield view.name, row

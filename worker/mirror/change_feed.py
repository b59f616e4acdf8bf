"""The change feed for products: the changes after an id in commit order, and a snapshot to start from."""

import time
from collections.abc import Generator

from sqlalchemy import Connection, Engine, RowMapping, func, select

from models.database import read_transaction
from models.rows import all_rows
from models.tables import Change, MirrorState
from models.types import Record
from models.views import auto_join_domains, sign_in_methods, workspace_invitations, workspace_members, workspaces
from worker.errors import CursorGoneError

POLL_SECONDS = 0.25
FETCH_SIZE = 500
SNAPSHOT = (workspaces, workspace_members, workspace_invitations, auto_join_domains, sign_in_methods)
"""The views in a snapshot, in the order of the rows."""


def changes_after(engine: Engine, after: int, limit: int, wait_seconds: float = 0.0) -> list[Record]:
    """Return at most `limit` changes with an id greater than `after`, in ascending order; 0 is the start.

    Waits up to `wait_seconds` for the first one. Ids are in commit order, so a caller that continues from the highest
    id it has seen misses nothing (docs/guarantees.md). Raises as `require_kept`.
    """
    ends = time.monotonic() + wait_seconds
    while True:
        with read_transaction(engine) as tx:
            require_kept(tx, after)
            newer = select(Change.__table__).where(Change.id > after).order_by(Change.id).limit(limit)
            found = all_rows(tx, newer)
        left = ends - time.monotonic()
        if found or left <= 0:
            return found
        time.sleep(min(POLL_SECONDS, left))


def require_kept(tx: Connection, after: int) -> None:
    """Raise `CursorGoneError` if a change with an id greater than `after` is gone. Then only a snapshot is complete."""
    dropped = tx.execute(select(MirrorState.changes_dropped_to)).scalar_one()
    if after < dropped:
        raise CursorGoneError(f"changes up to {dropped} have been pruned")
    if after > max(dropped, newest(tx)):
        raise CursorGoneError(f"change {after} does not exist yet: was the database restored from a backup?")


def newest(tx: Connection) -> int:
    """Return the highest id of `changes`; 0 if there are none."""
    return tx.execute(select(func.max(Change.id))).scalar_one() or 0


def snapshot(engine: Engine) -> Generator[tuple[str, int | RowMapping], None, None]:
    """Yield the state at one moment: first `("changes_after", id)`, then each row with the name of its view.

    A caller that continues with the changes after `id` gets each change exactly once.
    """
    with read_transaction(engine) as tx:
        dropped = tx.execute(select(MirrorState.changes_dropped_to)).scalar_one()
        yield "changes_after", max(dropped, newest(tx))
        for view in SNAPSHOT:
            options = {"yield_per": FETCH_SIZE}
            with tx.execute(select(view), execution_options=options) as rows:  # closed if the reader stops early
                yield from ((view.name, row) for row in rows.mappings())

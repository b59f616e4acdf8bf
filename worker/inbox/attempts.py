"""Records each failed attempt to apply an event, so that its page can show all of them."""

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, insert, select

from models.bulk import is_any_of
from models.tables import FailedAttempt

MAX_KEPT = 50
"""Upper bound on the attempts kept for each event. An event that waits for the database may be tried every second."""


def note(tx: Connection, event_id: str, values: Mapping[str, object]) -> None:
    """Record that an attempt failed; `values` has the event's columns `error`, `fingerprint` and `traceback`."""
    columns = {name: values.get(name) for name in ("error", "fingerprint", "traceback")}
    tx.execute(insert(FailedAttempt).values(event_id=event_id, **columns))
    of_event = select(FailedAttempt.id).where(FailedAttempt.event_id == event_id).order_by(FailedAttempt.id.desc())
    oldest_kept = of_event.offset(MAX_KEPT - 1).limit(1).scalar_subquery()
    tx.execute(delete(FailedAttempt).where(FailedAttempt.event_id == event_id, FailedAttempt.id < oldest_kept))


def forget(tx: Connection, event_ids: Collection[str]) -> None:
    """Delete the attempts of events whose payload is not kept: an error may quote it."""
    if event_ids:
        tx.execute(delete(FailedAttempt).where(is_any_of(tx, FailedAttempt.event_id, event_ids)))

"""Up to when the mirror is complete, and whether one event is applied."""

from datetime import datetime

from sqlalchemy import Engine, select

from models.database import read_transaction
from models.tables import Event, EventStatus, Tail


def complete_to(engine: Engine) -> datetime | None:
    """Return the time by WorkOS's clock up to which every event is applied or failed; None before the first read."""
    with read_transaction(engine) as tx:
        return tx.execute(select(Tail.complete_to)).scalar_one()


def is_applied(engine: Engine, event_id: str) -> bool:
    """Return whether an event has arrived and is applied, or an operator dismissed it."""
    settled = (EventStatus.DONE, EventStatus.DISMISSED)
    with read_transaction(engine) as tx:
        found = select(Event.id).where(Event.id == event_id, Event.status.in_(settled))
        return tx.execute(found).one_or_none() is not None

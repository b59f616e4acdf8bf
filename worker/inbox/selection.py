"""The events to list or to replay."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, false, or_

from models.outcomes import Outcome
from models.tables import Event, EventStatus
from models.types import JsonObject, inline_literal


@dataclass(frozen=True, slots=True)
class Selection:
    """The events that match all given fields. Times are aware and compared with `received_at`."""

    ids: tuple[str, ...] = ()
    failed: bool = False
    status: str | None = None
    type: str | None = None
    organization_id: str | None = None
    object_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    fingerprint: str | None = None

    def as_json(self) -> JsonObject:
        """Return the given fields, with times as ISO 8601 text."""
        given = {name: value for name, value in asdict(self).items() if value}
        return {n: v.isoformat() if isinstance(v, datetime) else list(v) if n == "ids" else v for n, v in given.items()}

    @classmethod
    def from_json(cls, stored: JsonObject) -> "Selection":
        """Return the selection that `as_json` returned."""
        times = {name: datetime.fromisoformat(stored[name]) for name in ("since", "until") if name in stored}
        return cls(**stored | times | {"ids": tuple(stored.get("ids", ()))})

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the given fields as conditions on `Event`. An unknown status matches nothing."""
        equal = {
            Event.type: self.type,
            Event.organization_id: self.organization_id,
            Event.object_id: self.object_id,
            Event.fingerprint: self.fingerprint,
        }
        found = [column == value for column, value in equal.items() if value]
        if self.ids:
            found.append(Event.id.in_(self.ids))
        if status := EventStatus.FAILED if self.failed else self.status:
            found.append(Event.status == inline_literal(status) if status in list(EventStatus) else false())
        if self.since:
            found.append(Event.received_at >= self.since)
        if self.until:
            found.append(Event.received_at < self.until)
        return found

    def replayable(self) -> list[ColumnElement[bool]]:
        """Return `conditions`, and the condition that an event can be replayed.

        Pending events never match: they are processed soon anyway. Dismissed events match only by id or status. With a
        fingerprint, only failed events match unless a status is given.
        """
        failed = Event.status == inline_literal(EventStatus.FAILED)
        if self.ids or self.failed or self.status:
            return [*self.conditions(), Event.status != EventStatus.PENDING]
        if self.fingerprint:
            return [*self.conditions(), failed]
        # An ignored event without a payload would be ignored again.
        useful = or_(Event.body.is_not(None), Event.outcome != Outcome.IGNORED)
        return [*self.conditions(), or_(failed, (Event.status == EventStatus.DONE) & useful)]

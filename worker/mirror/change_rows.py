"""Rows for the table `changes`, before they get an id."""

from datetime import datetime
from typing import NamedTuple

from models.tables import Cause
from models.types import JsonObject

CausedBy = tuple[Cause, str]
"""The columns `cause` and `cause_id`: an event or run by its id, an operator or a setting by its name."""


class ChangeRow(NamedTuple):
    """A change of an object. `before` is None for a new object."""

    kind: str
    object_id: str
    organization_id: str | None
    before: JsonObject | None
    after: JsonObject
    cause: Cause
    cause_id: str
    actor_id: str | None = None
    actor_name: str | None = None
    actor_source: str | None = None
    previous_attributes: JsonObject | None = None
    workos_at: datetime | None = None
    workos_after: datetime | None = None

    @property
    def caused_by(self) -> CausedBy:
        """The columns `cause` and `cause_id`."""
        return self.cause, self.cause_id

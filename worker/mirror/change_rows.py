"""Rows for the table `changes`, before they get an id."""

from typing import TypedDict

from models.tables import Cause
from models.types import JsonObject

CausedBy = tuple[Cause, str]
"""The columns `cause` and `cause_id`: an event or run by its id, an operator or a setting by its name."""


class ChangeRow(TypedDict):
    """A change of an object. `before` is None for a new object."""

    kind: str
    object_id: str
    organization_id: str | None
    before: JsonObject | None
    after: JsonObject
    cause: Cause
    cause_id: str


def change_row(
    kind: str,
    object_id: str,
    organization_id: str | None,
    before: JsonObject | None,
    after: JsonObject,
    cause: CausedBy,
) -> ChangeRow:
    """Return a row for `worker.mirror.apply.note_changes`."""
    return {
        "kind": kind,
        "object_id": object_id,
        "organization_id": organization_id,
        "before": before,
        "after": after,
        "cause": cause[0],
        "cause_id": cause[1],
    }

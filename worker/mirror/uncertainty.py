"""Records the access that failed events may have changed (`failed_effects`). Bounded answers about it are `Stale`.

A failed event makes only answers about its object uncertain: a workspace, a person, or a person in a workspace. If the
payload does not identify the object, answers about its workspace become uncertain; if it identifies neither, all
answers do. An event that waits for its next attempt counts as failed.

The uncertainty ends when the event is applied or dismissed, or when the object is read from WorkOS after the failure.
If the object is unknown, it ends with a later resync that compares the workspace or everything.
"""

import hashlib
import json
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, exists, select, update

from models.bulk import insert_new, is_any_of
from models.outcomes import Finding
from models.tables import Drift, Event, FailedEffect, Run
from worker.decision.payload import Fields, parse_json
from worker.errors import PayloadError
from worker.kinds import READERS, Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.role import ROLE
from worker.kinds.user import USER
from worker.mirror.read_requests import request_read_for_failure, request_role_holders

ANY = ""
"""An id that means all workspaces, or all persons."""
ALL_UNCERTAIN = (FailedEffect.organization_id == ANY, FailedEffect.user_id == ANY)
"""The condition of a row for an event that may have changed anybody's access."""


class Subject(NamedTuple):
    """The object of an event, and the workspace and person in it, as far as the payload can be read."""

    kind: Kind
    data: Fields | None
    object_id: str | None
    organization_id: str | None

    @property
    def user_id(self) -> str | None:
        """The person: the object itself, or the one whose membership it is."""
        if self.kind is USER:
            return self.object_id
        return self.data.optional_id("user_id") if self.data else None


def subject_of(type: str, body: bytes) -> Subject | None:
    """Return the subject of an event; None for a type that is ignored."""
    if type not in READERS:
        return None
    kind = READERS[type][0]
    data = _data(kind, body)
    if data is None:
        return Subject(kind, None, None, None)
    named = data.optional_id("organization_id")
    object_id = _object_id(kind, type, data, named)
    of_object = object_id and kind.organization_of(object_id, {"organization_id": named})
    return Subject(kind, data, object_id, of_object or named)


def note_failure(tx: Connection, event_id: str) -> None:
    """Record the object of a failed event and the access that it may have changed, and request a read of the object."""
    event = tx.execute(select(Event.type, Event.body).where(Event.id == event_id)).one()
    subject = _note(tx, event_id, event.type, event.body or b"")
    if subject is not None:
        about = {"kind": subject.kind.name, "object_id": subject.object_id, "organization_id": subject.organization_id}
        tx.execute(update(Event).where(Event.id == event_id).values(about))


def note_unstored(tx: Connection, item: object) -> None:
    """Record the access that an event of the events API without a usable id or type may have changed."""
    body = json.dumps(item, sort_keys=True).encode()
    id = f"invalid:{hashlib.sha256(body).hexdigest()[:16]}"
    if isinstance(item, dict) and isinstance(type := item.get("event"), str):
        _note(tx, id, type, body)
    else:
        mark_all_uncertain(tx, id)


def _note(tx: Connection, event_id: str, type: str, body: bytes) -> Subject | None:
    subject = subject_of(type, body)
    if subject is None:
        return None
    rows = [
        {
            "organization_id": workspace,
            "user_id": person,
            "event_id": event_id,
            "kind": subject.kind.name,
            "object_id": subject.object_id,
        }
        for workspace, person in _affected(tx, subject)
    ]
    insert_new(tx, FailedEffect, rows)
    if subject.object_id is not None:
        request_read_for_failure(tx, subject.kind, subject.object_id, event_id)
        if type.endswith("role.deleted"):
            slug = subject.object_id.rpartition("/")[2]
            request_role_holders(tx, subject.organization_id, slug, event_id)
    return subject


def mark_all_uncertain(tx: Connection, event_id: str) -> None:
    """Record that any access may have changed, until a full resync. `event_id` says why."""
    insert_new(tx, FailedEffect, [{"organization_id": ANY, "user_id": ANY, "event_id": event_id}])


def clear_after_events(tx: Connection, event_ids: Collection[str]) -> None:
    """Delete the uncertainty of events that were applied or dismissed."""
    if event_ids:
        tx.execute(delete(FailedEffect).where(is_any_of(tx, FailedEffect.event_id, event_ids)))


def clear_after_read(tx: Connection, kind: Kind, object_id: str, began_at: datetime) -> None:
    """Delete the uncertainty of an object's events that failed by `began_at`: the database's time before its read."""
    read = (FailedEffect.kind == kind.name, FailedEffect.object_id == object_id, FailedEffect.since <= began_at)
    tx.execute(delete(FailedEffect).where(*read))


def clear_after_resync(tx: Connection, run_id: str) -> None:
    """Delete the uncertainty of failed events about unknown objects that this resync has compared.

    Events that failed after it began, or in another workspace, stay uncertain. If it found invalid objects, all do: one
    of those may be the unknown object.
    """
    run = tx.execute(select(Run.organization_id, Run.created_at).where(Run.id == run_id)).one()
    deciding = [kind.name for kind in (ORGANIZATION, USER, MEMBERSHIP, ROLE)]
    unusable = exists().where(Drift.run_id == run_id, Drift.finding == Finding.INVALID, Drift.kind.in_(deciding))
    compared = [FailedEffect.object_id.is_(None), FailedEffect.since <= run.created_at, ~unusable]
    if run.organization_id is not None:
        compared.append(FailedEffect.organization_id == run.organization_id)
    tx.execute(delete(FailedEffect).where(*compared))


def _data(kind: Kind, body: bytes) -> Fields | None:
    """Return the fields of the object in an event's payload; None if they cannot be read."""
    try:
        event = parse_json(body)
        data = event["data"]
        return Fields(data.get(kind.object, data), "data")
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError, PayloadError):
        return None


def _object_id(kind: Kind, type: str, data: Fields, organization_id: str | None) -> str | None:
    id = data.optional_id(kind.id_field)
    if id is None or (type.startswith("organization_role.") and organization_id is None):
        return None
    return kind.key(id, {"organization_id": organization_id})


def _affected(tx: Connection, subject: Subject) -> set[tuple[str, str]]:
    """Return the workspaces and persons whose access an event may have changed."""
    kind, data, object_id, organization_id = subject
    if kind is ROLE and (data is None or data.text("resource_type_slug") not in (None, ORGANIZATION.object)):
        return {(organization_id or ANY, ANY)}  # its type takes a role from the members who have its slug
    if kind not in (ORGANIZATION, USER, MEMBERSHIP):
        return set()  # these decide nobody's role
    if kind is MEMBERSHIP and object_id is not None:
        columns = (Membership.organization_id, Membership.user_id)
        pairs = {tuple(row) for row in tx.execute(select(*columns).where(Membership.id == object_id))}
        pairs.add((organization_id, subject.user_id))
        known = {(workspace, person) for workspace, person in pairs if workspace and person}
        if known:
            return known
    elif object_id is not None:
        return {(object_id, ANY) if kind is ORGANIZATION else (ANY, object_id)}
    return {((organization_id if kind is MEMBERSHIP else None) or ANY, ANY)}

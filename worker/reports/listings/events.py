"""The list of events in the inbox, failed events by their error, and the details of one event."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, select

from models.database import read_transaction
from models.rows import all_rows, one_row, read_rows
from models.tables import Cause, Change, Event, EventStatus, FailedAttempt
from models.types import Record, inline_literal
from worker.inbox.selection import Selection
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror.affected import NO_WORKSPACE, affected_workspaces
from worker.mirror.uncertainty import subject_of
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, beyond, read_page

MAX_DEPTH = 100
"""Nesting of a payload returned as JSON. JSON parsers fail at a depth of about 200 to 1,000."""
COLUMNS = (
    *(Event.id, Event.type, Event.status, Event.outcome, Event.kind, Event.object_id, Event.organization_id),
    *(Event.received_at, Event.deliveries, Event.attempts, Event.error),
)


def list_events(
    engine: Engine,
    *,
    status: str | None = None,
    type: str | None = None,
    organization_id: str | None = None,
    fingerprint: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return events, newest first, without their payloads. An unknown `status` matches nothing."""
    selection = Selection(status=status, type=type, organization_id=organization_id, fingerprint=fingerprint)
    query = _matching(selection).order_by(Event.received_at.desc(), Event.id.desc()).limit(limit)
    if after is not None:
        query = query.where(*beyond(Event.received_at, Event.id, after, descending=True))
    return read_rows(engine, query)


def events_page(engine: Engine, selection: Selection, place: Place) -> Page:
    """Return a page of the events of a selection, newest first, as `with_names`."""
    with read_transaction(engine) as tx:
        page = read_page(tx, _matching(selection), place, Event.received_at, Event.id, newest_first=True)
        return page._replace(rows=with_names(tx, page.rows))


def _matching(selection: Selection) -> Select[*tuple[Any, ...]]:
    return select(*COLUMNS).where(*selection.conditions())


def failures(engine: Engine, limit: int | None = None) -> list[Record]:
    """Return failed events grouped by the fingerprint of their error, the largest group first.

    A group has the number of its `events`, their smallest `type`, the times of the `first` and the `last`, an `example`
    with its `error` and `traceback`, and the workspaces that it is about, as `affected_workspaces`.
    """
    number = func.count()
    group = (Event.fingerprint, number.label("events"), func.min(Event.type).label("type"))
    times = (func.min(Event.received_at).label("first"), func.max(Event.received_at).label("last"))
    failed = Event.status == inline_literal(EventStatus.FAILED)
    query = select(*group, *times, func.min(Event.id).label("example")).where(failed).group_by(Event.fingerprint)
    with read_transaction(engine) as tx:
        groups = all_rows(tx, query.order_by(number.desc(), Event.fingerprint).limit(limit))
        examples = Event.id.in_([row["example"] for row in groups])
        texts = {row["id"]: row for row in all_rows(tx, select(Event.id, Event.error, Event.traceback).where(examples))}
        events, workspace = select(Event).where(failed), Event.organization_id
        affected = affected_workspaces(tx, events, [Event.fingerprint], workspace, "events")
    for row in groups:
        row.update({name: texts[row["example"]][name] for name in ("error", "traceback")})
        row.update(affected.get((row["fingerprint"],), NO_WORKSPACE))
    return groups


def show_event(engine: Engine, event_id: str) -> Record | None:
    """Return one event with its payload and changes; None if the id is unknown.

    `failed_attempts` are the newest attempts that failed, oldest first. `about` is what the event is about, even if it
    failed or is pending: `kind`, `object_id`, `label`, `organization_id`, `workspace_name`, `user_id` and `email`.
    """
    with read_transaction(engine) as tx:
        event = one_row(tx, select(Event.__table__).where(Event.id == event_id))
        if event is None:
            return None
        of_event = (Change.object_id == event["object_id"], Change.cause == Cause.EVENT, Change.cause_id == event_id)
        changes = all_rows(tx, select(Change.__table__).where(*of_event).order_by(Change.id))
        failed = select(FailedAttempt.at, FailedAttempt.error, FailedAttempt.fingerprint, FailedAttempt.traceback)
        attempts = all_rows(tx, failed.where(FailedAttempt.event_id == event_id).order_by(FailedAttempt.id))
        about = _about(tx, event)
    return event | {
        "body": _payload(event["body"]),
        "changes": changes,
        "failed_attempts": attempts,
        "about": about,
    }


def _about(tx: Connection, event: Mapping[str, Any]) -> Record:
    about: Record = {name: event[name] for name in ("kind", "object_id", "organization_id")} | {"user_id": None}
    subject = subject_of(event["type"], event["body"]) if event["body"] else None
    if subject is not None:
        payload = {"object_id": subject.object_id, "organization_id": subject.organization_id}
        about = {"kind": subject.kind.name, "user_id": subject.user_id}
        about |= {name: event[name] or value for name, value in payload.items()}
    if about["user_id"] is None and about["kind"] == "membership":
        of_membership = select(Membership.user_id).where(Membership.id == about["object_id"])
        about["user_id"] = tx.execute(of_membership).scalar_one_or_none()
    email = select(User.email).where(User.id == about["user_id"])
    return with_names(tx, [about])[0] | {"email": tx.execute(email).scalar_one_or_none()}


def _payload(body: bytes | None) -> object:
    """Return a payload, or its text if strict JSON parsers would fail: NaN, infinity, lone surrogates, deep nesting."""
    if body is None:
        return None
    try:
        payload = json.loads(body)
        json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        payload = None
    return body.decode("utf-8", "replace") if payload is None or _is_deeper(payload, MAX_DEPTH) else payload


def _is_deeper(value: object, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return bool(inner) and (depth == 0 or any(_is_deeper(each, depth - 1) for each in inner))

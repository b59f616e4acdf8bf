"""Why a row is as it is: everything that affected an object, in order, each step with its reason."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, RowMapping, and_, select, tuple_

from models.database import read_transaction
from models.outcomes import Finding, Outcome
from models.tables import (
    JOIN,
    WORKSPACE_SETTINGS,
    Cause,
    Change,
    Drift,
    DriftAction,
    Event,
    EventStatus,
    Join,
    Read,
    Run,
)
from worker.kinds import KINDS, Kind
from worker.kinds.domain import DOMAIN, Domain
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.user import USER, User
from worker.reports.access import access_of, domain_states

MAX_STEPS = 500
"""Maximum number of steps from each source. Older ones are omitted, and the report says so."""

AUTO_JOIN_FIELDS = {"auto_join", "auto_join_reason"}
"""Fields of a domain that change with other objects: its workspace, or another workspace's domain."""

Row = RowMapping
EVENT_COLUMNS = tuple(column for column in Event.__table__.columns if column.name != "body")


class Object(NamedTuple):
    """One mirrored object."""

    kind: Kind
    id: str


def explain(engine: Engine, name: str) -> dict[str, Any] | None:
    """Return an object or a person with everything that affected it; None if the mirror has no trace of it.

    Args:
        engine: the database.
        name: a WorkOS id, or a person's current e-mail address. The id of an event means the object it is about.

    Returns:
        `objects`, `access` (of a person or membership), `auto_join` (of a domain or workspace), `joins` (of a person:
        what AUTO_JOIN=provision did), `timeline` in the order of processing, and `truncated`: whether older steps are
        omitted. Times are aware, in UTC.
    """
    with read_transaction(engine) as tx:
        objects = _find(tx, name)
        if not objects:
            return None
        found = _with_related(tx, objects)
        timeline, truncated = _timeline(tx, found)
        memberships = [id for kind, id in found if kind is MEMBERSHIP]
        domains = [id for kind, id in found if kind is DOMAIN]
        return {
            "objects": [_row(tx, one) for one in objects],
            "access": access_of(tx, Membership.id.in_(memberships)) if memberships else [],
            "auto_join": domain_states(tx, Domain.id.in_(domains)) if domains else [],
            "joins": _joins(tx, [id for kind, id in found if kind is USER]),
            "timeline": timeline,
            "truncated": truncated,
        }


def _find(tx: Connection, name: str) -> list[Object]:
    if "@" in name:
        users = select(User.id).where(User.email.in_({name, name.lower()})).order_by(User.id)
        return [Object(USER, id) for id in tx.execute(users).scalars()]
    mirrored = [
        Object(kind, name)
        for kind in KINDS.values()
        if tx.execute(select(kind.table.id).where(kind.table.id == name)).one_or_none()
    ]
    to_be_read = select(Read.kind).where(Read.object_id == name).distinct()
    found = mirrored or [Object(KINDS[kind], name) for kind in tx.execute(to_be_read).scalars()]
    if found:
        return found
    event = tx.execute(select(Event.kind, Event.object_id).where(Event.id == name)).one_or_none()
    return [Object(KINDS[event.kind], event.object_id)] if event and event.kind else []


def _with_related(tx: Connection, objects: Iterable[Object]) -> list[Object]:
    """Return `objects` with those that decide about them: a person's memberships, a workspace's domains."""
    found: dict[Object, None] = {}
    for one in objects:
        found[one] = None
        related = {
            USER: (MEMBERSHIP, select(Membership.id).where(Membership.user_id == one.id)),
            ORGANIZATION: (DOMAIN, select(Domain.id).where(Domain.organization_id == one.id)),
        }
        if one.kind in related:
            kind, query = related[one.kind]
            found |= dict.fromkeys(Object(kind, id) for id in tx.execute(query.limit(MAX_STEPS)).scalars())
    return list(found)


def _joins(tx: Connection, users: Sequence[str]) -> list[dict[str, Any]]:
    found = select(Join.__table__).where(Join.user_id.in_(users)).order_by(Join.created_at)
    return [dict(row) for row in tx.execute(found).mappings()] if users else []


def _row(tx: Connection, one: Object) -> dict[str, Any]:
    table = one.kind.table
    row = tx.execute(select(table.__table__).where(table.id == one.id)).mappings()
    return {"kind": one.kind.name, **(row.one_or_none() or {"id": one.id})}


# The timeline


def _timeline(tx: Connection, objects: Sequence[Object]) -> tuple[list[dict[str, Any]], bool]:
    subjects = [subject for one in objects for subject in _subjects(one)]
    ids = [one.id for one in objects]

    def about(table: type[Event | Change | Drift | Read]) -> ColumnElement[bool]:
        # The ids use the index. The kinds are needed because a role slug may equal any id.
        return and_(table.object_id.in_(ids), tuple_(table.kind, table.object_id).in_(subjects))

    events = _newest(tx, select(*EVENT_COLUMNS), Event.received_at, about(Event))
    changes = _newest(tx, select(Change.__table__), Change.id, about(Change))
    of_run = select(Drift.__table__, Run.created_at.label("at"), Run.dry_run).join(Run, Run.id == Drift.run_id)
    drift = _newest(tx, of_run, Run.created_at, about(Drift))
    reads = _newest(tx, select(Read.__table__), Read.due_at, about(Read))
    winners = _winners(tx, events)
    steps = []
    explained: set[int] = set()
    for event in events:
        caused = [row for row in changes if _caused(event, row)]
        explained |= {row["id"] for row in caused}
        steps.append(_event_step(event, caused, winners))
    found = {(row["run_id"], row["kind"], row["object_id"]): row for row in drift}
    steps += [_change_step(row, found) for row in changes if row["id"] not in explained]
    steps += [_drift_step(row) for row in drift if row["action"] != DriftAction.REPAIRED]
    steps += [_read_step(row) for row in reads]
    steps.sort(key=lambda step: (step["at"], step["occurred_at"] or step["at"]))
    return steps, max(len(events), len(changes)) >= MAX_STEPS


def _subjects(one: Object) -> list[tuple[str, str]]:
    """Return the (kind, id) pairs under which the history of an object is recorded.

    Operators' decisions about a person or a workspace have a kind of their own.
    """
    further = {USER: JOIN, ORGANIZATION: WORKSPACE_SETTINGS}
    return [(one.kind.name, one.id)] + ([(further[one.kind], one.id)] if one.kind in further else [])


def _newest(tx: Connection, query: Any, order: Any, which: Any) -> Sequence[RowMapping]:
    return tx.execute(query.where(which).order_by(order.desc()).limit(MAX_STEPS)).mappings().all()[::-1]


def _winners(tx: Connection, events: Iterable[Row]) -> dict[str, Row]:
    ids = {event["decided_by"] for event in events if event["decided_by"]}
    found = tx.execute(select(Event.id, Event.type, Event.occurred_at).where(Event.id.in_(ids))).mappings()
    return {row["id"]: row for row in found}


def _caused(event: Row, change: Row) -> bool:
    """Return whether an event made a change itself. A confirmed read requested by the event has the same cause."""
    same = (change["kind"], change["object_id"]) == (event["kind"], event["object_id"])
    by_it = change["cause"] == Cause.EVENT and change["cause_id"] == event["id"]
    return same and by_it and bool(event["outcome"] != Outcome.TOMBSTONED or event["replays"])


def _event_step(event: Row, changes: Sequence[Row], winners: Mapping[str, Row]) -> dict[str, Any]:
    decided = event["status"] == EventStatus.DONE
    return {
        "at": event["processed_at"] if decided else event["received_at"],
        "occurred_at": event["occurred_at"],
        "arrived_at": event["received_at"],
        "kind": event["kind"],
        "object_id": event["object_id"],
        "what": event["type"],
        "by": event["id"],
        "outcome": event["outcome"] if decided else event["status"],
        "why": _why(event, changes, winners),
        "fields": _fields(changes),
        "source": event["source"],
        "deliveries": event["deliveries"],
        "attempts": event["attempts"],
        "replays": event["replays"],
    }


def _why(event: Row, changes: Sequence[Row], winners: Mapping[str, Row]) -> str:
    match event["status"]:
        case EventStatus.PENDING:
            tried = f"; attempt {event['attempts']} failed: {event['error']}" if event["error"] else ""
            return f"waiting to be processed{tried}"
        case EventStatus.FAILED:
            return f"failed after {event['attempts']} attempts: {event['error']}"
        case EventStatus.DISMISSED:
            return f"dismissed by {event['dismissed_by']}: {event['dismissed_why']} (error: {event['error']})"
    outcome = _outcome(event, changes, winners)
    if not event["replays"]:
        return outcome
    times = "once" if event["replays"] == 1 else f"{event['replays']} times"
    replayed = f"; replayed {times}, last by run {event['replay_id']}"
    first = (
        "; it made this change when it was first processed" if changes and event["outcome"] != Outcome.APPLIED else ""
    )
    return outcome + replayed + first


def _outcome(event: Row, changes: Sequence[Row], winners: Mapping[str, Row]) -> str:
    match event["outcome"]:
        case Outcome.APPLIED:
            return _applied(changes)
        case Outcome.UNCHANGED:
            return "the mirror already had this content"
        case Outcome.STALE:
            return f"older than the current state, which came from {_winner(event, winners)}"
        case Outcome.TOMBSTONED if event["decided_by"]:
            return f"permanently deleted by {_winner(event, winners)}; deletes are final"
        case Outcome.TOMBSTONED:
            return "a resync had found it deleted, so a confirmed read was requested"
    return "events of this type are not mirrored"


def _winner(event: Row, winners: Mapping[str, Row]) -> str:
    if not event["decided_by"]:
        return "a read of the WorkOS API"
    winner = winners.get(event["decided_by"])
    if winner is None:
        return f"event {event['decided_by']}"
    return f"{winner['type']} {winner['id']} at {winner['occurred_at']:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _applied(changes: Sequence[Row]) -> str:
    if not changes:
        return "newer than the previous state (the change itself has been pruned)"
    first, last = changes[0], changes[-1]
    if last["after"]["state"] == "deleted":
        return "permanently deleted"
    if first["before"] is None:
        return "new in the mirror"
    return f"newer than the previous state: changed {', '.join(sorted(_fields(changes)))}"


def _fields(changes: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the fields that `changes` changed in total, each with `[before, after]`."""
    if not changes:
        return {}
    before, after = changes[0]["before"] or {}, changes[-1]["after"]
    return {f: [before.get(f), after.get(f)] for f in after if before.get(f) != after.get(f)}


FINDINGS = {
    Finding.MISSING: "was missing in the mirror",
    Finding.EXTRA: "no longer exists in WorkOS (404)",
    Finding.STALE: "was older in the mirror than in WorkOS",
    Finding.DIFFERENT: "differed from WorkOS",
    Finding.ANOMALY: "exists in WorkOS although a delete event removed it",
    Finding.INVALID: "has an invalid field in WorkOS",
}


def _change_step(change: Row, drift: Mapping[tuple[str, str, str], Row]) -> dict[str, Any]:
    step = _step(change["at"], change, Outcome.APPLIED, _fields([change]))
    cause, cause_id = change["cause"], change["cause_id"]
    if step["fields"] and step["fields"].keys() <= AUTO_JOIN_FIELDS:
        state, reason = change["after"]["auto_join"], change["after"]["auto_join_reason"]
        return step | {"what": "auto-join", "by": cause_id, "why": f"{state}: {reason}" if reason else state}
    if change["kind"] in (JOIN, WORKSPACE_SETTINGS):
        return step | {"what": cause, "by": cause_id, "why": change["after"]["why"]}
    if cause == Cause.RESYNC:
        found = drift.get((cause_id, change["kind"], change["object_id"]))
        return step | {
            "what": "resync",
            "by": cause_id,
            "outcome": DriftAction.REPAIRED,
            "why": FINDINGS.get(found["finding"], found["finding"]) if found else FINDINGS[Finding.DIFFERENT],
        }
    if cause == Cause.EVENT:
        return step | {
            "what": "confirmed read",
            "by": cause_id,
            "why": "an event left the state uncertain",
        }
    reasons = {Cause.SETTINGS: f"changed by the setting {cause_id}", Cause.OPERATOR: f"requested by {cause_id}"}
    return step | {"what": cause, "by": cause_id, "why": reasons.get(cause, cause)}


def _drift_step(row: Row) -> dict[str, Any]:
    actions = {DriftAction.WITHHELD: "deletion waits for approval", DriftAction.REPORTED: "reported, not repaired"}
    finding = FINDINGS.get(row["finding"], row["finding"])
    why = f"{finding}: {actions[row['action']]}{' (dry run)' if row['dry_run'] else ''}"
    step = _step(row["at"], row, row["action"], row["fields"] or {})
    return step | {"what": "resync", "by": row["run_id"], "why": why}


def _read_step(read: Row) -> dict[str, Any]:
    step = _step(read["due_at"], read, "pending", {})
    requested_by = read["run_id"] or read["event_id"]
    failed = f"; attempt {read['attempts']} failed: {read['error']}" if read["error"] else ""
    return step | {
        "what": "confirmed read",
        "by": requested_by,
        "why": f"will be read from WorkOS at this time: {read['reason']}{failed}",
    }


def _step(at: Any, row: Row, outcome: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    subject = {"kind": row["kind"], "object_id": row["object_id"]}
    return {"at": at, "occurred_at": None, "arrived_at": None, **subject, "outcome": outcome, "fields": dict(fields)}

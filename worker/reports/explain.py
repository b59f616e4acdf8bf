"""Why a row is as it is: everything that affected an object, in order, each step with its reason."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    SQLColumnExpression,
    and_,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from models.database import read_transaction
from models.outcomes import Finding, Outcome
from models.rows import all_rows, one_row
from models.tables import (
    JOIN,
    WORKSPACE_SETTINGS,
    Cause,
    Change,
    Drift,
    DriftAction,
    Event,
    EventStatus,
    FailedEffect,
    Join,
    Read,
    Revocation,
    Run,
)
from models.types import Record
from worker.kinds import KINDS, Kind
from worker.kinds.addresses import has_address, sent_to
from worker.kinds.connection import CONNECTION
from worker.kinds.domain import DOMAIN, Domain
from worker.kinds.invitation import INVITATION, Invitation
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.saml_certificate import SAML_CERTIFICATE, SamlCertificate
from worker.kinds.user import USER, User
from worker.mirror.uncertainty import ANY
from worker.reports.access import (
    access_as_workos,
    access_of,
    actor_of,
    domain_states,
    invitation_states,
    uncertain_answers,
)
from worker.reports.past import Moment, moment_of, states
from worker.reports.past_workos import histories_of, moment_as_workos

MAX_STEPS = 500
"""Maximum number of steps from each source. Older ones are omitted, and the report says so."""

AUTO_JOIN_FIELDS = {"auto_join", "auto_join_reason"}
"""Fields of a domain that change with other objects: its workspace, or another workspace's domain."""
DECISIONS = {USER: JOIN, INVITATION: JOIN, ORGANIZATION: WORKSPACE_SETTINGS}
"""The kind under which `changes` records operators' decisions about a person, an invitation or a workspace."""
RELATED = {
    USER: (MEMBERSHIP, Membership.user_id),
    ORGANIZATION: (DOMAIN, Domain.organization_id),
    CONNECTION: (SAML_CERTIFICATE, SamlCertificate.connection_id),
}
"""The kind of object that decides about a person, a workspace or a connection, and its column with their id."""
EVENT_COLUMNS = tuple(column for column in Event.__table__.columns if column.name != "body")
FINDINGS = {
    Finding.MISSING: "was missing in the mirror",
    Finding.EXTRA: "no longer exists in WorkOS (404)",
    Finding.STALE: "was older in the mirror than in WorkOS",
    Finding.DIFFERENT: "differed from WorkOS",
    Finding.ANOMALY: "exists in WorkOS although a delete event removed it",
    Finding.INVALID: "has an invalid field in WorkOS",
}
OLDER = "older than the current state"
UNREPAIRED = {DriftAction.WITHHELD: "deletion waits for approval", DriftAction.REPORTED: "reported, not repaired"}


class Object(NamedTuple):
    """One mirrored object."""

    kind: Kind
    id: str


def explain(engine: Engine, name: str, at: datetime | None = None, *, as_workos: bool = False) -> Record | None:
    """Return an object or a person with everything that affected it; None if the mirror has no trace of it.

    `name` is a WorkOS id, or in any spelling a person's current e-mail address or that of an invitation. The id of an
    event means the object it is about.

    The keys are `objects`, `access` (of a person or membership), `uncertain` (of a person, membership or workspace: why
    bounded answers are stale), `auto_join` (of a domain or workspace; of a
    person: the domain of their address), `joins` (of a person: what AUTO_JOIN=provision did), `invitations` (of a
    person or an invitation), `sessions` (of a person, membership or workspace: what REVOKE_SESSIONS did), `timeline` in
    the order of processing, and `truncated`: whether older steps are omitted. Times are aware, in UTC.

    With `at`, `objects` and `access` are as the mirror answered then, and the timeline ends there; what changes with
    time or by settings is left out: `uncertain`, `auto_join`, `joins`, `invitations` and `sessions` are empty. With
    `as_workos` too, `objects` and `access` are as WorkOS had them then (`worker.reports.access.access_as_workos`), and
    the timeline is in the order of WorkOS's times.

    Raises:
        FutureTimeError: `at` has not come yet.
        NotKeptError: `at` is too long ago.
    """
    with read_transaction(engine) as tx:
        moment = None if at is None else (moment_as_workos if as_workos else moment_of)(tx, at)
        objects = _find(tx, name)
        if not objects:
            return None
        found = _with_related(tx, objects)
        timeline, truncated = _timeline(tx, found, moment, as_workos=as_workos)
        memberships, domains, users, invitations = (
            [id for kind, id in found if kind is k] for k in (MEMBERSHIP, DOMAIN, USER, INVITATION)
        )
        if moment is not None:
            domains = users = invitations = []
        which = Membership.id.in_(memberships)
        if not memberships:
            access = []
        else:
            access = access_as_workos(tx, at, which) if at and as_workos else access_of(tx, which, moment=moment)
        address = Domain.normalized.in_(select(User.email_domain).where(User.id.in_(users)))
        claims = [Domain.id.in_(domains) | (address & Domain.deleted_by.is_(None))] if domains or users else []
        joins = select(Join.__table__).where(Join.user_id.in_(users)).order_by(Join.created_at)
        return {
            "objects": [_row_as_workos(tx, one, at) if at and as_workos else _row(tx, one, moment) for one in objects],
            "access": access,
            "uncertain": [] if moment else _uncertain(tx, objects, access),
            "auto_join": domain_states(tx, *claims) if claims else [],
            "joins": all_rows(tx, joins) if users else [],
            "invitations": invitation_states(tx, Invitation.id.in_(invitations)) if invitations else [],
            "sessions": [] if moment else _revocations(tx, objects),
            "timeline": timeline,
            "truncated": truncated,
        }


def _revocations(tx: Connection, objects: Sequence[Object]) -> list[Record]:
    """Return the revocations of sessions of persons, of members and in workspaces, the newest first."""
    ids: dict[Kind, list[str]] = {}
    for kind, id in objects:
        ids.setdefault(kind, []).append(id)
    pair = (Membership.organization_id == Revocation.organization_id, Membership.user_id == Revocation.user_id)
    which = or_(
        Revocation.user_id.in_(ids.get(USER, ())),
        Revocation.organization_id.in_(ids.get(ORGANIZATION, ())),
        exists().where(Membership.id.in_(ids.get(MEMBERSHIP, ())), *pair),
    )
    return _newest(tx, select(Revocation.__table__).where(which), Revocation.created_at)[::-1]


def _find(tx: Connection, name: str) -> list[Object]:
    if "@" in name:
        users = select(User.id).where(has_address(User, name)).order_by(User.id)
        found = [Object(USER, id) for id in tx.execute(users).scalars()]
        return found or [
            Object(INVITATION, id) for id in tx.execute(_invitations(has_address(Invitation, name))).scalars()
        ]
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


def _with_related(tx: Connection, objects: Sequence[Object]) -> list[Object]:
    """Return `objects` and what decides about them, such as a person's memberships and invitations."""
    found = list(objects)
    for one in objects:
        if one.kind in RELATED:
            kind, parent = RELATED[one.kind]
            ids = tx.execute(select(kind.table.id).where(parent == one.id).limit(MAX_STEPS)).scalars()
            found += [Object(kind, id) for id in ids]
        if one.kind is USER:
            own = Invitation.id.in_(sent_to(tx, [one.id])) | (Invitation.accepted_user_id == one.id)
            found += [Object(INVITATION, id) for id in tx.execute(_invitations(own)).scalars()]
    return found


def _uncertain(tx: Connection, objects: Sequence[Object], access: Sequence[Record]) -> list[Record]:
    """Return why bounded answers are stale about these persons, memberships and workspaces."""
    kinds = (USER, MEMBERSHIP, ORGANIZATION)
    people, memberships, workspaces = ([id for kind, id in objects if kind is k] for k in kinds)
    if not (people or memberships or workspaces):
        return []
    effect = FailedEffect
    in_workspaces = effect.organization_id.in_({ANY} | {row["organization_id"] for row in access})
    about_members = effect.user_id.in_({ANY} | {row["user_id"] for row in access})
    of_memberships = and_(effect.kind == MEMBERSHIP.name, effect.object_id.in_(memberships))
    in_them = or_(effect.user_id.in_(people), effect.organization_id.in_(workspaces), of_memberships)
    return uncertain_answers(tx, or_(and_(in_workspaces, about_members), in_them))


def _invitations(which: ColumnElement[bool]) -> Select[str]:
    return select(Invitation.id).where(which).order_by(Invitation.id).limit(MAX_STEPS)


def _row(tx: Connection, one: Object, moment: Moment | None) -> Record:
    row = one_row(tx, select(states(one.kind, moment, one.kind.table.id == one.id)))
    return {"kind": one.kind.name, **(row or {"id": one.id})}


def _row_as_workos(tx: Connection, one: Object, at: datetime) -> Record:
    content = histories_of(tx, one.kind, [one.id])[one.id].content(at, early=False)
    return {"kind": one.kind.name, "id": one.id, **(content or {})}


# The timeline


def _timeline(
    tx: Connection, objects: Sequence[Object], moment: Moment | None, *, as_workos: bool
) -> tuple[list[Record], bool]:
    """Return the steps of these objects up to a moment, in the order of processing, and whether older ones are omitted.

    None is now. With `as_workos`, the steps up to the moment by WorkOS's times, in their order.
    """
    ids = [id for _, id in objects]
    subjects = [(kind.name, id) for kind, id in objects]
    subjects += [(DECISIONS[kind], id) for kind, id in objects if kind in DECISIONS]

    def about(table: type[Event | Change | Drift | Read]) -> ColumnElement[bool]:
        # The ids use the index. The kinds are needed because a role slug may equal any id.
        return and_(table.object_id.in_(ids), tuple_(table.kind, table.object_id).in_(subjects))

    def until(column: SQLColumnExpression[Any], value: object) -> list[ColumnElement[bool]]:
        return [] if moment is None else [column <= value]

    at, change_id = moment or (None, None)
    came: SQLColumnExpression[Any] = Event.received_at
    changed = until(Change.id, change_id)
    if as_workos:
        came = func.coalesce(Event.occurred_at, Event.received_at)
        changed = until(func.coalesce(Change.workos_at, Change.at), at)
    events = _newest(tx, select(*EVENT_COLUMNS).where(about(Event), *until(came, at)), came)
    changes = _newest(tx, select(Change.__table__).where(about(Change), *changed), Change.id)
    of_run = select(Drift.__table__, Run.created_at.label("at"), Run.dry_run).join(Run, Run.id == Drift.run_id)
    drift = _newest(tx, of_run.where(about(Drift), *until(Run.created_at, at)), Run.created_at)
    reads = _newest(tx, select(Read.__table__).where(about(Read), *until(Read.due_at, at)), Read.due_at)
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

    def times(step: Record) -> tuple[datetime, datetime]:
        processed, occurred = step["at"], step["occurred_at"] or step["at"]
        return (occurred, processed) if as_workos else (processed, occurred)

    if moment is not None:
        steps = [step for step in steps if times(step)[0] <= moment.at]  # an event may have been decided later
    steps.sort(key=times)
    return steps, max(len(events), len(changes)) >= MAX_STEPS


def _newest(tx: Connection, query: Select[*tuple[object, ...]], order: SQLColumnExpression[object]) -> list[Record]:
    """Return the newest `MAX_STEPS` rows of a query, oldest first."""
    return all_rows(tx, query.order_by(order.desc()).limit(MAX_STEPS))[::-1]


def _winners(tx: Connection, events: Iterable[Record]) -> dict[str, Record]:
    """Return the events, by id, that won over any of `events`."""
    ids = {event["decided_by"] for event in events if event["decided_by"]}
    found = all_rows(tx, select(Event.id, Event.type, Event.occurred_at).where(Event.id.in_(ids)))
    return {row["id"]: row for row in found}


def _caused(event: Record, change: Record) -> bool:
    """Return whether an event itself made a change; a confirmed read that it requested has the same cause."""
    same = (change["kind"], change["object_id"]) == (event["kind"], event["object_id"])
    by_it = change["cause"] == Cause.EVENT and change["cause_id"] == event["id"]
    return same and by_it and bool(event["outcome"] != Outcome.TOMBSTONED or event["replays"])


def _event_step(event: Record, changes: Sequence[Record], winners: Mapping[str, Record]) -> Record:
    if event["status"] == EventStatus.DONE:
        at, outcome = event["processed_at"], event["outcome"]
    else:
        at, outcome = event["received_at"], event["status"]
    why = _why(event, changes, winners)
    step = _step(event, at, event["type"], event["id"], outcome, why, changed_fields(changes))
    of_event = {name: event[name] for name in ("occurred_at", "source", "deliveries", "attempts", "replays")}
    return step | of_event | {"arrived_at": event["received_at"]} | _origin(changes[0] if changes else {})


def _why(event: Record, changes: Sequence[Record], winners: Mapping[str, Record]) -> str:
    match event["status"]:
        case EventStatus.PENDING:
            tried = f"; the last attempt failed: {event['error']}" if event["error"] else ""
            return f"waiting to be processed{tried}"
        case EventStatus.FAILED:
            attempts = "1 attempt" if event["attempts"] == 1 else f"{event['attempts']} attempts"
            return f"failed after {attempts}: {event['error']}"
        case EventStatus.DISMISSED:
            return f"dismissed by {event['dismissed_by']}: {event['dismissed_why']} (error: {event['error']})"
    outcome = _outcome(event, changes, winners)
    if not event["replays"]:
        return outcome
    times = "once" if event["replays"] == 1 else f"{event['replays']} times"
    last = f"last by run {event['replay_id']}" if event["replay_id"] else "since a new release mirrors its type"
    replayed = f"{outcome}; replayed {times}, {last}"
    changed_at_first = changes and event["outcome"] != Outcome.APPLIED
    return f"{replayed}; it made this change when it was first processed" if changed_at_first else replayed


def _outcome(event: Record, changes: Sequence[Record], winners: Mapping[str, Record]) -> str:
    match event["outcome"]:
        case Outcome.APPLIED:
            return _applied(changes, tied=_tied(event, winners))
        case Outcome.UNCHANGED:
            return "the mirror already had this content"
        case Outcome.STALE:
            older = "not newer than the current state of the same time" if _tied(event, winners) else OLDER
            return f"{older}, which came from {_winner(event, winners)}"
        case Outcome.TOMBSTONED if event["decided_by"]:
            return f"permanently deleted by {_winner(event, winners)}; deletes are final"
        case Outcome.TOMBSTONED:
            return "a read had found it deleted, so a confirmed read was requested"
    return "events of this type are not mirrored"


def _tied(event: Record, winners: Mapping[str, Record]) -> bool:
    """Return whether an event has the time of the event that it was compared with."""
    other = winners.get(event["decided_by"] or "")
    return other is not None and other["id"] != event["id"] and bool(other["occurred_at"] == event["occurred_at"])


def _winner(event: Record, winners: Mapping[str, Record]) -> str:
    if not event["decided_by"]:
        return "a read of the WorkOS API"
    winner = winners.get(event["decided_by"])
    if winner is None:
        return f"event {event['decided_by']}"
    return f"{winner['type']} {winner['id']} at {winner['occurred_at']:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _applied(changes: Sequence[Record], *, tied: bool) -> str:
    order = "kept over the previous state of the same time" if tied else "newer than the previous state"
    if not changes:
        return f"{order} (the change itself has been pruned)"
    first, last = changes[0], changes[-1]
    fields = ", ".join(sorted(changed_fields(changes)))
    if first["before"] and first["before"]["state"] == last["after"]["state"] == "deleted":
        return f"already deleted; only this event has {fields}"
    if last["after"]["state"] == "deleted":
        return "permanently deleted"
    if first["before"] is None:
        return "new in the mirror"
    return f"{order}: changed {fields}"


def changed_fields(changes: Sequence[Record]) -> dict[str, list[object]]:
    """Return the fields that `changes` changed in total, each with `[before, after]`."""
    if not changes:
        return {}
    before, after = changes[0]["before"] or {}, changes[-1]["after"]
    return {f: [before.get(f), after.get(f)] for f in after if before.get(f) != after.get(f)}


def _change_step(change: Record, drift: Mapping[tuple[str, str, str], Record]) -> Record:
    fields = changed_fields([change])
    what: str = change["cause"]
    outcome: str = Outcome.APPLIED
    if fields and fields.keys() <= AUTO_JOIN_FIELDS:
        state, reason = change["after"]["auto_join"], change["after"]["auto_join_reason"]
        what, why = "auto-join", f"{state}: {reason}" if reason else state
    elif change["kind"] in DECISIONS.values():
        why = change["after"]["why"]
    elif change["cause"] == Cause.RESYNC:
        found = drift.get((change["cause_id"], change["kind"], change["object_id"]))
        finding = found["finding"] if found else Finding.DIFFERENT
        outcome, why = DriftAction.REPAIRED, FINDINGS.get(finding, finding)
    elif change["cause"] == Cause.EVENT:
        what, why = "confirmed read", "an event left the state uncertain"
    elif change["cause"] == Cause.SETTINGS:
        why = f"changed by the setting {change['cause_id']}"
    else:
        by_name = change["cause"] in (Cause.OPERATOR, Cause.REFRESH)
        why = f"requested by {change['cause_id']}" if by_name else change["cause"]
    return _step(change, change["at"], what, change["cause_id"], outcome, why, fields) | _origin(change)


def _drift_step(row: Record) -> Record:
    finding = FINDINGS.get(row["finding"], row["finding"])
    why = f"{finding}: {UNREPAIRED[row['action']]}{' (dry run)' if row['dry_run'] else ''}"
    return _step(row, row["at"], "resync", row["run_id"], row["action"], why, row["fields"] or {})


def _read_step(read: Record) -> Record:
    failed = f"; attempt {read['attempts']} failed: {read['error']}" if read["error"] else ""
    why = f"will be read from WorkOS at this time: {read['reason']}{failed}"
    return _step(read, read["due_at"], "confirmed read", read["run_id"] or read["event_id"], "pending", why, {})


def _origin(change: Record) -> Record:
    """Return who made a change at WorkOS, in words, and the previous attributes; None if not known."""
    return {"actor": actor_of(change), "previous_attributes": change.get("previous_attributes")}


def _step(
    row: Record, at: datetime, what: str, by: str, outcome: str, why: str, fields: Mapping[str, object]
) -> Record:
    """Return a step of the timeline; `row` names the object."""
    step = {"at": at, "occurred_at": None, "arrived_at": None, "kind": row["kind"], "object_id": row["object_id"]}
    unknown = {"actor": None, "previous_attributes": None}
    return step | unknown | {"what": what, "by": by, "outcome": outcome, "why": why, "fields": fields}

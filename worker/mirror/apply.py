"""Applies snapshots to the mirror in the caller's transaction: locks the rows, decides, saves, records the changes."""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, Select, or_, select

from models.addresses import normalize_address
from models.bulk import insert_new, insert_rows, is_any_of, is_in_parameter, update_rows
from models.database import CHANGES_LOCK, advisory_lock
from models.outcomes import Outcome
from models.tables import Cause, Change, DeletedBy, InvitedAddress, MirrorState, UserAddress
from models.types import JsonObject, db_now
from worker.decision.decide import (
    DATE_STEP,
    ConfirmationReason,
    Content,
    State,
    Version,
    decide,
    fill_omitted,
    needs_confirmation,
    recorded_content,
)
from worker.decision.payload import EPOCH, Origin
from worker.kinds import KINDS, Kind, Snapshot
from worker.kinds.invitation import INVITATION
from worker.kinds.user import USER, User
from worker.mirror.auto_join import auto_join_changes
from worker.mirror.change_rows import ChangeRow
from worker.mirror.late_versions import LateState, note_late_versions
from worker.mirror.lost_access import note_lost_access

ACTOR_BLANKED: dict[str, Any] = {"actor_name": None, "previous_attributes": None}
"""Columns of `changes` that erasure and retention null. Erasure also blanks the personal fields of the content."""
ADDRESSES = {USER: (UserAddress, "user_id"), INVITATION: (InvitedAddress, "invitation_id")}
"""Kind with an e-mail address → the table of hashed addresses, and its column with the object's id."""


class Arrival(NamedTuple):
    """A snapshot, what caused it (`CausedBy`), and who made the change at WorkOS."""

    snapshot: Snapshot
    cause: Cause
    cause_id: str
    origin: Origin = Origin()


class Decision(NamedTuple):
    """The decision about an arrival."""

    outcome: Outcome
    compared_with: str | None
    """The event id of the stored version. Empty: that version was read from the API. None: nothing was stored."""
    needs_confirmation: ConfirmationReason | None
    """Why a confirmed read is needed; None if it is not."""


def apply(tx: Connection, arrivals: Sequence[Arrival]) -> tuple[list[Decision], list[ChangeRow]]:
    """Decide each arrival in turn and write the mirror; return the decisions, in the same order, and the changes.

    Rows are locked kind by kind, sorted by id, so that concurrent callers hardly ever deadlock; if they do, the
    transaction is retried. The caller passes the changes to `note_changes` as its last step, and commits.
    """
    decisions: dict[int, Decision] = {}
    changes: list[ChangeRow] = []
    late: list[LateState] = []
    for kind in KINDS.values():
        of_kind = [(place, arrival) for place, arrival in enumerate(arrivals) if arrival.snapshot.kind is kind]
        if not of_kind:
            continue
        stored = insert_and_lock_rows(tx, kind, sorted({arrival.snapshot.id for _, arrival in of_kind}))
        updated: dict[str, State] = {}
        seen: list[tuple[str, State]] = []
        for place, arrival in of_kind:
            id = arrival.snapshot.id
            current = updated.get(id, stored[id])
            arrived, final = arrival.snapshot.state, kind.delete_is_final
            incoming = without_erased(kind, current, arrived)
            state, outcome = decide(current, incoming, delete_is_final=final, tie_break=kind.tie_break)
            compared_with = current.version.event_id if current else None
            reason = needs_confirmation(current, incoming, delete_is_final=final)
            decisions[place] = Decision(outcome, compared_with, reason)
            # Record no address of an erased user. Record that of an erased invitation: a block may need its hash.
            if not state.erased or kind.stays_erased:
                seen.append((id, arrived))
            if state is not current or reason:  # a new revision makes a concurrent confirmed read repeat
                updated[id] = state
            if outcome is Outcome.APPLIED:
                row = change(kind, id, current, state, arrival.cause, arrival.cause_id)
                changes.append(row._replace(**_workos_times(current, state), **arrival.origin._asdict()))
            # The delete event of what a resync found deleted changes nothing, but it says when.
            if current is not None and (state.version != incoming.version or (current.by_read and incoming.deleted)):
                late.append(_late_version(kind, current, incoming, arrival))
        save_rows(tx, kind, updated, seen)
    if late:
        each = (arrival.snapshot for arrival in arrivals)
        note_late_versions(tx, late, (((str(s.kind), s.id), s.state.version.event_at) for s in each))
    return [decisions[place] for place in range(len(arrivals))], changes


def _late_version(kind: Kind, current: State, incoming: State, arrival: Arrival) -> LateState:
    """Return a state that lost, for `note_late_versions`; without personal data if the object is erased."""
    shown = fill_omitted(current, incoming)
    if current.erased:
        shown = blanked(kind, shown)
    id = arrival.snapshot.id
    place = (arrival.cause_id, kind.name, id, kind.organization_of(id, shown.content))
    return LateState(*place, recorded_state(kind, shown), shown, current, arrival.origin)


def _workos_times(before: State | None, after: State) -> dict[str, Any]:
    """Return `workos_at` and `workos_after` of a change by an event. The time of the event may be unusable."""
    if after.since != EPOCH:
        return {"workos_at": after.since}
    return {"workos_at": None, "workos_after": before.since if before else EPOCH}


def note_changes(tx: Connection, changes: Sequence[ChangeRow]) -> None:
    """Write rows of `changes`, with the rows that auto-join derives from them. Must be the last step before commit.

    The ids are assigned under one lock, held until the commit. So a reader that has seen id n never finds a smaller id
    later (docs/guarantees.md, Order and equality). The time is read under that lock too, so that it ascends with the
    ids.
    """
    if changes:
        at = advisory_lock(tx, CHANGES_LOCK)
        by_cause = {row.caused_by: row for row in changes}
        derived = [_with_actor(row, by_cause.get(row.caused_by)) for row in auto_join_changes(tx, changes)]
        rows = _without_erased_people(tx, (*changes, *derived))
        insert_rows(tx, Change, [{"at": at, **row._asdict()} for row in rows])


def _with_actor(row: ChangeRow, change: ChangeRow | None) -> ChangeRow:
    """Return a row that auto-join derived from `change`, with the actor of `change`."""
    if change is None:
        return row
    return row._replace(actor_id=change.actor_id, actor_name=change.actor_name, actor_source=change.actor_source)


def person_of(kind: str, id: str, content: Content) -> str | None:
    """Return the id of the user that an object is, belongs to, or was accepted by; None if there is none."""
    return id if kind == USER.name else content.get("user_id") or content.get("accepted_user_id")


def erased_users(tx: Connection, ids: Collection[str]) -> set[str]:
    """Return those of the users that are erased."""
    return set(tx.execute(_erased_users(tx.dialect.name), {"ids": list(ids)}).scalars()) if ids else set()


@functools.cache
def _erased_users(dialect: str) -> Select[str]:
    return select(User.id).where(is_in_parameter(dialect, User.id, "ids"), User.erased)


def _without_erased_people(tx: Connection, rows: Sequence[ChangeRow]) -> Iterator[ChangeRow]:
    """Yield `rows`, with `ACTOR_BLANKED` where the actor or the object's person is erased."""
    people = [_people_in(row) for row in rows]
    erased = erased_users(tx, set().union(*people))
    for row, named in zip(rows, people, strict=True):
        blank = not named.isdisjoint(erased) or row.after.get("erased")
        yield row._replace(**ACTOR_BLANKED) if blank else row


def _people_in(row: ChangeRow) -> set[str]:
    """Return the ids of the actor and the object's person; empty if the row has no data to blank."""
    if row.actor_name is None and row.previous_attributes is None:
        return set()
    person = person_of(row.kind, row.object_id, row.after)
    return {id for id in (row.actor_id, person) if id}


def without_erased(kind: Kind, current: State | None, incoming: State) -> State:
    """Return `incoming` with blank personal columns if `current` is erased and stays so; otherwise unchanged."""
    return blanked(kind, incoming) if current is not None and current.erased and kind.stays_erased else incoming


def blanked(kind: Kind, state: State) -> State:
    """Return a state as erased, with blank personal columns."""
    return replace(state, erased=True, content={**state.content, **dict.fromkeys(kind.personal)})


def recorded_state(kind: Kind, state: State) -> JsonObject:
    """Return a state as `changes` contains it: all columns of the kind, `state`, and `erased` if it can be erased."""
    content = {name: state.content.get(name) for name in kind.columns}
    return recorded_content(content, deleted=state.deleted) | ({"erased": state.erased} if kind.personal else {})


def change(kind: Kind, id: str, before: State | None, after: State, cause: Cause, cause_id: str) -> ChangeRow:
    """Return a row for `note_changes`; `before` is None for an object never seen."""
    old = None if before is None else recorded_state(kind, before)
    organization_id = kind.organization_of(id, after.content)
    return ChangeRow(kind.name, id, organization_id, old, recorded_state(kind, after), cause, cause_id)


def verified_times(tx: Connection, kind: Kind, ids: Collection[str]) -> dict[str, datetime]:
    """Return when a resync last verified locked rows, by WorkOS's clock. Rows written since are missing.

    A row that was inserted to be locked counts as verified: the resync found no such object.
    """
    if not ids:
        return {}
    verified_at, rows_to = tx.execute(select(MirrorState.verified_at, MirrorState.verified_rows_to)).one()
    if verified_at is None:
        return {}
    table = kind.table
    unchanged = or_(table.touched_at.is_(None), table.touched_at < rows_to)
    found = tx.execute(select(table.id).where(is_any_of(tx, table.id, ids), unchanged)).scalars()
    return dict.fromkeys(found, verified_at)


def found_change(
    kind: Kind,
    id: str,
    before: State | None,
    after: State,
    cause: Cause,
    cause_id: str,
    read_at: datetime,
    verified_at: datetime | None,
) -> ChangeRow:
    """Return a row for `note_changes` about a change that only a read of WorkOS found; `read_at` is its time there.

    WorkOS made the change after it last had the state `before`, by its event or a read, or by a resync that found
    nothing different (`verified_at`: the value in `verified_times`).
    """
    if before is None:
        had = after.content["created_at"]
    else:
        read_before = before.version.from_api and not before.by_read
        had = before.version.event_at - DATE_STEP if read_before else before.since
    last_had = max(filter(None, (had, verified_at)), default=EPOCH)
    found_at = read_at + DATE_STEP
    row = change(kind, id, before, after, cause, cause_id)
    return row._replace(workos_at=found_at, workos_after=min(last_had, found_at))


def insert_and_lock_rows(tx: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, State | None]:
    """Lock the rows of `ids`, which must be sorted, and return their states by id; None for an id never seen.

    An id never seen gets a row to lock. The caller must save a state for it, or delete the row, before the commit.
    """
    states = _lock_rows(tx, kind, ids)
    if missing := [id for id in ids if id not in states]:
        insert_new(tx, kind.table, [{"id": id} for id in missing])
        states |= _lock_rows(tx, kind, missing)  # another transaction may have inserted some
    return states


def _lock_rows(tx: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, State | None]:
    found = tx.execute(_locked_rows(kind, tx.dialect.name), {"ids": ids}).mappings()
    return {row["id"]: _state(kind, row) for row in found}


@functools.cache
def _locked_rows(kind: Kind, dialect: str) -> Select[*tuple[Any, ...]]:
    table = kind.table.__table__
    return select(table).where(is_in_parameter(dialect, table.c.id, "ids")).order_by(table.c.id).with_for_update()


def stored_rows(tx: Connection, kind: Kind, ids: Sequence[str]) -> dict[str, State]:
    """Return the states of `ids` without locking them; an id never seen is missing."""
    table = kind.table.__table__
    rows = tx.execute(select(table).where(is_any_of(tx, table.c.id, ids))).mappings()
    return {row["id"]: state for row in rows if (state := _state(kind, row)) is not None}


def _state(kind: Kind, row: RowMapping) -> State | None:
    if row["revision"] == 0:
        return None
    version = Version(row["updated_at"], row["event_at"], row["event_id"])
    own = {name: None for name in kind.optional if row[name] is not None} | (row["column_versions"] or {})
    return State(
        version,
        deleted=row["deleted_by"] is not None,
        content={name: row[name] for name in kind.columns},
        by_read=row["deleted_by"] == DeletedBy.RESYNC,
        erased=row["erased"],
        versions={name: _version(*values) if values else version for name, values in own.items()},
    )


def _version(updated_at: str, event_at: str, event_id: str) -> Version:
    return Version(datetime.fromisoformat(updated_at), datetime.fromisoformat(event_at), event_id)


def save_rows(tx: Connection, kind: Kind, states: Mapping[str, State], seen: Sequence[tuple[str, State]] = ()) -> None:
    """Save `states` to their locked rows, increment the revisions, and record whose access ended.

    For users and invitations, also records the hashes of the e-mail addresses in `states`, and in `seen`: states that
    arrived, whether they won or not.
    """
    rows = [_columns(kind, id, state) for id, state in states.items()]
    already_deleted = _deleted(tx, kind, [id for id, state in states.items() if state.by_read])
    update_rows(tx, kind.table, rows, **_touched(kind))
    if kind in ADDRESSES:
        table, key = ADDRESSES[kind]
        emails = ((id, normalize_address(state.content.get("email"))) for id, state in (*states.items(), *seen))
        hashes = {(id, address.hash) for id, address in emails if address}
        insert_new(tx, table, [{key: id, "email_hash": digest} for id, digest in sorted(hashes)])
    # A tombstone of a resync that is saved again says nothing about when access ended.
    note_lost_access(tx, kind, {id: state for id, state in states.items() if id not in already_deleted})


@functools.cache
def _touched(kind: Kind) -> dict[str, Any]:
    return {"revision": kind.table.revision + 1, "touched_at": db_now()}


def _deleted(tx: Connection, kind: Kind, ids: Collection[str]) -> set[str]:
    """Return those of the objects that are stored as deleted."""
    query = select(kind.table.id).where(is_any_of(tx, kind.table.id, ids), kind.table.deleted_by.is_not(None))
    return set(tx.execute(query).scalars()) if ids else set()


def _columns(kind: Kind, id: str, state: State) -> dict[str, object]:
    own = {
        name: None if version == state.version else [*(at.isoformat() for at in version.times), version.event_id]
        for name, version in state.versions.items()
        if version != state.version or state.content[name] is None  # others need no entry: see `_state`
    }
    return {
        "id": id,
        "updated_at": state.version.updated_at,
        "event_at": state.version.event_at,
        "event_id": state.version.event_id,
        "deleted_by": (DeletedBy.RESYNC if state.by_read else DeletedBy.EVENT) if state.deleted else None,
        "erased": state.erased,
        "column_versions": own,
        # The API does not return every column, so one may be missing for an object that was first seen there.
        **{name: state.content.get(name) for name in kind.columns},
        **kind.derive(state.content),
    }

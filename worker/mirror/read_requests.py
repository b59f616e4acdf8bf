"""Requests for confirmed reads: rows of the table `reads`, each for an object to be read from WorkOS by id.

An event requests a read if it is about an object that a read found deleted or that was read in the same second, if its
times tie with those of another state, if a parent stays missing, if it deletes a role, or if it failed. A resync
requests a read for every difference that a listing cannot decide. `worker.repair.reads` makes the reads.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, Text, cast, delete, literal, select, union_all

from models.bulk import dialect_insert, insert_new, is_any_of
from models.outcomes import Outcome
from models.tables import Read
from models.types import db_now, db_now_plus
from worker.decision.decide import ConfirmationReason
from worker.kinds import KINDS, Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.role import ROLE
from worker.mirror.apply import Arrival, Decision

PARENT_DELAY_SECONDS = 60.0
"""A missing parent is read after this time, unless its own event arrives first."""
ROLE_DELETED = "role deleted"
EVENT_FAILED = "event failed"
PARENT_MISSING = "parent missing"


def request_reads(tx: Connection, kind: Kind, ids: Iterable[str], reason: str, run_id: str) -> None:
    """Request reads of objects for a resync, except those that the run has already requested."""
    rows = [{"kind": kind.name, "object_id": id, "reason": reason, "run_id": run_id} for id in sorted(set(ids))]
    insert_new(tx, Read, rows, due_at=db_now_plus(0))


def _request_for_events(tx: Connection, events: Mapping[tuple[str, str], str], reason: str, after: float = 0.0) -> None:
    """Request reads for events, `after` seconds from now. `events` maps an object's kind and id to the event's id."""
    keys = ("kind", "object_id", "event_id", "reason")
    readable = sorted((place, event) for place, event in events.items() if KINDS[place[0]].is_readable)
    rows = [dict(zip(keys, (*place, event, reason), strict=True)) for place, event in readable]
    insert_new(tx, Read, rows, due_at=db_now_plus(after))


def request_reads_for(tx: Connection, arrivals: Sequence[Arrival], decisions: Sequence[Decision]) -> None:
    """Request the confirmed reads that applied events need; `decisions` are those about `arrivals`, in the same order.

    The memberships that had a deleted role are read because it is not known whether WorkOS sends an event for each
    (docs/workos.md, What is not known).
    """
    unconfirmed: dict[tuple[Kind, ConfirmationReason], dict[str, str]] = {}
    parents: dict[tuple[str, str], str] = {}
    for (snapshot, _, event_id, _), decision in zip(arrivals, decisions, strict=True):
        content = snapshot.state.content
        if decision.needs_confirmation is not None:
            unconfirmed.setdefault((snapshot.kind, decision.needs_confirmation), {})[snapshot.id] = event_id
        if decision.outcome is not Outcome.APPLIED:
            continue
        if not snapshot.state.deleted:
            for column, parent in snapshot.kind.parents.items():
                parents.setdefault((parent, content[column]), event_id)
        elif snapshot.kind is ROLE:
            request_role_holders(tx, content["organization_id"], content["slug"], event_id)
    for (kind, reason), events in unconfirmed.items():
        # The object has arrived, so it is not a missing parent; that request would also replace the new one.
        missing = (Read.run_id == "", Read.kind == kind.name, Read.reason == PARENT_MISSING)
        tx.execute(delete(Read).where(*missing, is_any_of(tx, Read.object_id, events)))
        _request_for_events(tx, {(kind.name, id): event for id, event in events.items()}, reason)
    known = _existing(tx, parents)
    missing_parents = {parent: event for parent, event in parents.items() if parent not in known}
    _request_for_events(tx, missing_parents, PARENT_MISSING, PARENT_DELAY_SECONDS)


def _existing(tx: Connection, objects: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of the objects, each a kind's name and an id, that the mirror has."""
    ids: dict[str, list[str]] = {}
    for name, id in objects:
        ids.setdefault(name, []).append(id)
    queries = [
        select(literal(name).label("kind"), (key := KINDS[name].table.id)).where(is_any_of(tx, key, of_kind))
        for name, of_kind in sorted(ids.items())
    ]
    return {(name, id) for name, id in tx.execute(union_all(*queries))} if queries else set()


def request_read_for_failure(tx: Connection, kind: Kind, object_id: str, event_id: str) -> None:
    """Request a read because an event about the object failed.

    It replaces another request, so that a read which began before the failure does not remove it.
    """
    if not kind.is_readable:
        return
    first = {"reason": EVENT_FAILED, "event_id": event_id, "due_at": db_now(), "attempts": 0, "error": None}
    row = dialect_insert(tx, Read).values(kind=kind.name, object_id=object_id, run_id="", **first)
    tx.execute(row.on_conflict_do_update(index_elements=[Read.kind, Read.object_id, Read.run_id], set_=first))


def request_role_holders(tx: Connection, organization_id: str | None, slug: str, event_id: str) -> None:
    """Request reads of the memberships that have a role."""
    holders = select(Membership.id).where(
        Membership.deleted_by.is_(None), cast(Membership.workos_roles, Text).contains(json.dumps(slug), autoescape=True)
    )
    if organization_id:
        holders = holders.where(Membership.organization_id == organization_id)
    found = ((MEMBERSHIP.name, id) for id in tx.execute(holders).scalars())
    _request_for_events(tx, dict.fromkeys(found, event_id), ROLE_DELETED)

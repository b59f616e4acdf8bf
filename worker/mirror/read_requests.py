"""What nothing known here can settle: written down in the table `reads`, to be read from WorkOS by its id.

Asked for by an event (an id under a resync's tombstone or read in the same second, a parent that stays missing, a role
that was deleted) or by a resync (whatever a listing cannot settle). `worker.repair.reads` does it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Text, cast, delete, select

from models.bulk import insert_new, is_any_of
from models.tables import TABLES, Kind, Membership, Read
from models.types import db_now_plus
from worker.decision.decide import ConfirmationReason, Outcome
from worker.mirror.apply import Arrival, Decision

PARENT_PATIENCE_SECONDS = 60.0
ROLE_DELETED = "role deleted"
PARENT_MISSING = "parent missing"


def request_reads(tx: Connection, kind: Kind, ids: Iterable[str], reason: str, run_id: str) -> None:
    """Ask, for a resync, for objects to be read by id. What it has asked for already is not again."""
    _ask(tx, [{"kind": kind, "object_id": id, "reason": reason, "run_id": run_id} for id in sorted(set(ids))])


def _ask_for_events(tx: Connection, kind: Kind, asking: Mapping[str, str], reason: str, after: float = 0.0) -> None:
    """Ask for objects, object id to the event that asks, `after` seconds or more from now."""
    ids = sorted(asking.items())
    _ask(tx, [{"kind": kind, "object_id": id, "reason": reason, "event_id": event} for id, event in ids], after)


def _ask(tx: Connection, rows: list[dict[str, Any]], after: float = 0.0) -> None:
    insert_new(tx, Read, rows, due_at=db_now_plus(after))


def _no_longer_ask_for_missing(tx: Connection, kind: Kind, ids: Iterable[str]) -> None:
    """Make room for a question that is not answered by an object's arrival, as that for a missing one is."""
    missing = (Read.run_id == "", Read.kind == kind, is_any_of(tx, Read.object_id, ids), Read.reason == PARENT_MISSING)
    tx.execute(delete(Read).where(*missing))


def request_reads_for(tx: Connection, arrivals: Sequence[Arrival], decisions: Sequence[Decision]) -> None:
    """Ask for what applied events leave in doubt.

    An id under a resync's tombstone; one that was read in the second of the event; a parent that is missing, unless it
    comes within a minute; and the memberships that had a deleted role, for whether each is announced is not known
    (docs/workos.md, What is not known).
    """
    doubtful: dict[tuple[Kind, ConfirmationReason], dict[str, str]] = {}
    parents: dict[Kind, dict[str, str]] = {Kind.ORGANIZATION: {}, Kind.USER: {}}
    for (snapshot, _, event_id), decision in zip(arrivals, decisions, strict=True):
        content = snapshot.state.content
        if decision.needs_confirmation is not None:
            doubtful.setdefault((snapshot.kind, decision.needs_confirmation), {})[snapshot.id] = event_id
        if decision.outcome is not Outcome.APPLIED:
            continue
        if snapshot.kind is Kind.ROLE and snapshot.state.deleted:
            _ask_for_holders(tx, content["organization_id"], content["slug"], event_id)
        if snapshot.kind in (Kind.MEMBERSHIP, Kind.DOMAIN) and not snapshot.state.deleted:
            parents[Kind.ORGANIZATION].setdefault(content["organization_id"], event_id)
            if snapshot.kind is Kind.MEMBERSHIP:
                parents[Kind.USER].setdefault(content["user_id"], event_id)
    for (kind, doubt), asking in doubtful.items():
        _no_longer_ask_for_missing(tx, kind, asking)
        _ask_for_events(tx, kind, asking, doubt)
    for kind, asking in parents.items():
        if not asking:
            continue
        known = set(tx.execute(select(TABLES[kind].id).where(is_any_of(tx, TABLES[kind].id, asking))).scalars().all())
        missing = {id: event_id for id, event_id in asking.items() if id not in known}
        _ask_for_events(tx, kind, missing, PARENT_MISSING, after=PARENT_PATIENCE_SECONDS)


def _ask_for_holders(tx: Connection, organization_id: str | None, slug: str, event_id: str) -> None:
    holders = select(Membership.id).where(
        Membership.deleted_by.is_(None), cast(Membership.workos_roles, Text).contains(json.dumps(slug), autoescape=True)
    )
    if organization_id:
        holders = holders.where(Membership.organization_id == organization_id)
    _ask_for_events(tx, Kind.MEMBERSHIP, dict.fromkeys(tx.execute(holders).scalars(), event_id), ROLE_DELETED)

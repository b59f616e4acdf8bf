"""Records who lost access, in the transaction that saves the change. `worker.repair.sessions` ends their sessions.

A loss is recorded whenever a deleted or deactivated object is saved, even if the mirror showed no access before: the
events that gave access may be late or lost. Whether the person has other access is asked before each revocation.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from operator import itemgetter

import structlog
from sqlalchemy import ColumnElement, Connection, RowMapping, case, or_, select, update

from models.bulk import dialect_insert, is_any_of
from models.database import transactional
from models.rows import one_row
from models.tables import (
    SESSIONS_REVOKED,
    Action,
    Change,
    DeletedBy,
    MirrorState,
    Revocation,
    RevocationState,
    Total,
    Via,
)
from models.types import Record, db_now, inline_literal
from worker import audit
from worker.decision.decide import State
from worker.decision.payload import EPOCH
from worker.kinds import Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER

log = structlog.get_logger()

SETTING = "REVOKE_SESSIONS"
EVERYWHERE = ""
"""The organization id of a revocation of all sessions of a deleted user."""
INACTIVE = "inactive"
"""The status of a deactivated membership."""
PENDING: ColumnElement[bool] = Revocation.state == inline_literal(RevocationState.PENDING)


@transactional
def adopt(tx: Connection, *, on: bool) -> None:
    """Store the setting `REVOKE_SESSIONS`. Turning it off drops the revocations that are pending."""
    since = tx.execute(select(MirrorState.revokes_sessions_since).with_for_update()).scalar_one()
    if on == (since is not None):
        return
    audit.note(tx, audit.Actor(SETTING, Via.SETTINGS), Action.CHANGE_REVOKE_SESSIONS, settings={SETTING: [not on, on]})
    tx.execute(update(MirrorState).values(revokes_sessions_since=db_now() if on else None))
    if not on:
        settle(tx, RevocationState.DROPPED, f"{SETTING} is off")
    log.info("revoke_sessions_changed", on=on)


def settle(
    tx: Connection, state: RevocationState, reason: str | None, *which: ColumnElement[bool]
) -> Sequence[RowMapping]:
    """Set the final state of the pending revocations that meet `which`, and return them.

    Revocations that ended sessions are recorded in the audit and added to the total.
    """
    settled = {"state": state, "reason": reason, "settled_at": db_now(), "error": None}
    statement = update(Revocation).where(PENDING, *which).values(settled).returning(Revocation.__table__)
    rows = tx.execute(statement).mappings().all()
    if ended := sum(row["sessions"] for row in rows):
        total = dialect_insert(tx, Total).values(name=SESSIONS_REVOKED, number=ended)
        tx.execute(total.on_conflict_do_update(index_elements=[Total.name], set_={"number": Total.number + ended}))
    for row in rows:
        if row["sessions"]:
            about = {"kind": USER.name, "object_id": row["user_id"], "organization_id": row["organization_id"] or None}
            details = {"sessions": row["sessions"], "because": f"{row['kind']} {row['object_id']}"} | _origin(tx, row)
            audit.note(tx, audit.Actor(SETTING, Via.SETTINGS), Action.REVOKE_SESSIONS, **about, **details)
    return rows


def _origin(tx: Connection, revocation: RowMapping) -> Record:
    """Return who ended the access at WorkOS, without the name, which would have to be erased."""
    if revocation["event_id"] is None:
        return {}
    by_event = (Change.object_id == revocation["object_id"], Change.cause_id == revocation["event_id"])
    return one_row(tx, select(Change.actor_id, Change.actor_source).where(*by_event).limit(1)) or {}


def note_lost_access(tx: Connection, kind: Kind, states: Mapping[str, State]) -> None:
    """Record whose access ended with `states`, which were just saved, since `REVOKE_SESSIONS` was turned on."""
    if not states or kind not in (MEMBERSHIP, ORGANIZATION, USER):
        return
    if kind is not MEMBERSHIP and not any(state.deleted for state in states.values()):
        return
    turned_on, now = tx.execute(select(MirrorState.revokes_sessions_since, db_now())).one()
    if turned_on is None:
        return
    ended = [*_ended_objects(kind, states, now), *_members_of_deleted(tx, kind, states, turned_on, now)]
    ended.sort(key=itemgetter("since"))  # of several losses of a person in a workspace, the latest remains
    lost = {(row["organization_id"], row["user_id"]): row for row in ended if row["since"] >= turned_on}
    if lost:
        _insert(tx, [lost[key] for key in sorted(lost)], now)


def _ended_objects(kind: Kind, states: Mapping[str, State], now: datetime) -> Iterator[Record]:
    """Yield a row for each deleted user, and each deleted or deactivated membership."""
    for id, state in states.items():
        version, content = state.version, state.content
        event_id = None if state.by_read else version.event_id or None
        about = {"kind": kind.name, "object_id": id, "event_id": event_id}
        deleted_at = now if state.by_read or version.event_at == EPOCH else version.event_at
        if kind is USER and state.deleted and not state.erased:  # erasing saves it again
            yield {"organization_id": EVERYWHERE, "user_id": id, "since": deleted_at} | about
        if kind is MEMBERSHIP and content["organization_id"] and content["user_id"]:
            pair = {"organization_id": content["organization_id"], "user_id": content["user_id"]}
            if content["status"] == INACTIVE and not state.by_read:
                yield pair | {"since": version.updated_at} | about  # it was deactivated before it was deleted
            elif state.deleted:
                yield pair | {"since": deleted_at} | about


def _members_of_deleted(
    tx: Connection, kind: Kind, states: Mapping[str, State], turned_on: datetime, now: datetime
) -> Iterator[Record]:
    """Yield a row for each active membership in a deleted workspace, if the membership or the workspace was saved.

    A workspace without a known time of deletion counts only if it was saved since `turned_on`.
    """
    if kind is USER:
        return
    saved = is_any_of(tx, Organization.id if kind is ORGANIZATION else Membership.id, states)
    columns = (Membership.organization_id, Membership.user_id, *(Organization.deleted_by, Organization.touched_at))
    live = (Membership.deleted_by.is_(None), Membership.status == "active", Membership.user_id.is_not(None))
    of_event = Organization.event_at, Organization.event_id
    query = select(*columns, *of_event).join(Organization, Organization.id == Membership.organization_id)
    for row in tx.execute(query.where(saved, Organization.deleted_by.is_not(None), *live)):
        reported = row.deleted_by == DeletedBy.EVENT
        is_dated = reported and row.event_at != EPOCH
        if not is_dated and row.touched_at < turned_on:
            continue
        yield {
            "organization_id": row.organization_id,
            "user_id": row.user_id,
            "since": row.event_at if is_dated else now,
            "kind": ORGANIZATION.name,
            "object_id": row.organization_id,
            "event_id": row.event_id if reported else None,
        }


def _insert(tx: Connection, rows: list[Record], now: datetime) -> None:
    """Insert revocations. An existing one becomes pending again if this loss is later, or by another object or event.

    A loss without a known time has `now`, by the database's clock. It cannot be compared with WorkOS's times, so it
    always counts as later.
    """
    statement = dialect_insert(tx, Revocation)
    # Not `PENDING`: SQLAlchemy refuses an inlined literal in a statement for several rows.
    new, pending = statement.excluded, Revocation.state == RevocationState.PENDING
    again = {
        **{name: new[name] for name in ("kind", "object_id", "event_id", "since")},
        **dict.fromkeys(("reason", "settled_at", "error")),
        **dict.fromkeys(("created_at", "due_at"), db_now()),
        "state": RevocationState.PENDING,
        "claim": Revocation.claim + 1,
        "attempts": 0,
        "sessions": case((pending, Revocation.sessions), else_=0),
    }
    another = or_(
        new.since > Revocation.since,
        new.since == now,
        new.object_id != Revocation.object_id,
        new.event_id.is_not(None) & new.event_id.is_distinct_from(Revocation.event_id),
    )
    key = [Revocation.organization_id, Revocation.user_id]
    tx.execute(statement.on_conflict_do_update(index_elements=key, set_=again, where=another), rows)

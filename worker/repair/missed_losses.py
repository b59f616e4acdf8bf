"""Records losses of access that an earlier release saved without recording them."""

from sqlalchemy import Connection, Engine, Select, SQLColumnExpression, case, exists, literal, or_, select

from models.database import in_transaction
from models.rows import read_rows
from models.tables import Change, DeletedBy, MirrorState, Revocation
from worker.kinds import Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER, User
from worker.mirror.apply import stored_rows
from worker.mirror.lost_access import EVERYWHERE, INACTIVE, note_lost_access

BATCH = 500
Text = SQLColumnExpression[str] | SQLColumnExpression[str | None]


def note_missed_losses(engine: Engine) -> None:
    """Record losses since `REVOKE_SESSIONS` was turned on that have no revocation: an earlier release saved them.

    Reads three tables once, at a worker's start. Finished revocations are not repeated.
    """
    over = or_(Membership.deleted_by.is_not(None), Membership.status == INACTIVE)
    closed = select(Membership.id).join(Organization, Organization.id == Membership.organization_id)
    member = Membership.organization_id, Membership.user_id
    _note_missed(engine, MEMBERSHIP, select(Membership.id).where(over), MEMBERSHIP, *member)
    _note_missed(engine, MEMBERSHIP, closed.where(Organization.deleted_by.is_not(None)), ORGANIZATION, *member)
    deleted = select(User.id).where(User.deleted_by.is_not(None))
    _note_missed(engine, USER, deleted, USER, literal(EVERYWHERE), User.id)


def _note_missed(
    engine: Engine, kind: Kind, query: Select[str], ended: Kind, organization_id: Text, user_id: Text
) -> None:
    """Record the losses of the objects of `query`, whose access ended with an object of the kind `ended`."""
    saved_at, id = ended.table.touched_at, kind.table.id
    since = select(MirrorState.revokes_sessions_since).scalar_subquery()
    # The tombstone of a resync counts only if its last write deleted it, as in `save_rows`. Erasing writes it again.
    changed_since = case((ended.table.deleted_by == DeletedBy.RESYNC, saved_at), else_=since)
    # Retention deletes the change not later than the revocation.
    change = exists().where(Change.kind == ended.name, Change.object_id == ended.table.id, Change.at >= changed_since)
    of_person = Revocation.organization_id == organization_id, Revocation.user_id == user_id
    noted = exists().where(*of_person, Revocation.created_at >= saved_at)
    missed = query.where(saved_at >= since, ~ended.table.erased, change, ~noted).order_by(id).limit(BATCH)
    last = ""
    while ids := [row["id"] for row in read_rows(engine, missed.where(id > last))]:
        in_transaction(engine, _note_stored, kind, ids)
        last = ids[-1]


def _note_stored(tx: Connection, kind: Kind, ids: list[str]) -> None:
    note_lost_access(tx, kind, stored_rows(tx, kind, ids))

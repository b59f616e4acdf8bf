"""The mirror at an earlier time, from `changes`.

The state of an object is `before` of its first change after that time; without such a change, its row. The ids of
changes are in commit order, so the changes up to an id are a state that the mirror had. A change counts from its time,
which is read as the last step before the commit.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    JSON,
    Boolean,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    case,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import aliased
from sqlalchemy.sql.elements import KeyedColumnElement

from models.bulk import is_any_of
from models.rows import all_rows
from models.tables import ROLE_MAP, Change, DeletedBy, MirrorState
from models.types import Record, UtcDateTime, db_clock, db_now, recorded_time
from models.views import members_query, workspace_members, workspaces
from worker.errors import FutureTimeError, NotKeptError
from worker.kinds import Kind
from worker.kinds.membership import MEMBERSHIP, Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.role import ROLE
from worker.kinds.user import USER
from worker.mirror.role_map import SETTING

PREFIX = "past_"
CLOCK_DIFFERENCE = timedelta(seconds=5)
"""By how much a time may be in the future, by the database's clock: it may come from a clock that is ahead."""
BATCH = 5_000
"""Members whose changes are read at once."""
OBJECTS = {"membership_id": MEMBERSHIP.name, "user_id": USER.name, "organization_id": ORGANIZATION.name}
"""Column of `workspace_members` → kind of the object that decides about the access."""
ACCESS_FIELDS = ("state", "status", "role")
"""The fields of these objects that decide."""
LATER, FIRST = (Change.__table__.alias(name) for name in ("later", "first"))
"""Made once: making an alias takes longer than a query."""
CAUSE = ("changed_at", "cause", "cause_id", "actor_id", "actor_name", "actor_source")
"""The columns that `with_causes` adds."""


class Moment(NamedTuple):
    """A time in the past, and the last change up to it: 0 if there is none."""

    at: datetime
    change_id: int


def now(tx: Connection) -> Moment:
    """Return the moment at which `tx` reads; raises `NotKeptError` while the mirror may miss people."""
    if tx.execute(select(MirrorState.last_resync_at)).scalar_one() is None:
        why = "the mirror may miss people until the first resync has finished"
        raise NotKeptError(f"{why}; to follow it, run: workos-sync runs list")
    return _moment(tx, tx.execute(select(db_now())).scalar_one())


def moment_of(tx: Connection, at: datetime) -> Moment:
    """Return the moment at an aware time.

    Raises:
        FutureTimeError: the time has not come yet, by the database's clock.
        NotKeptError: what the mirror contained then cannot be reconstructed.
    """
    present = tx.execute(select(db_clock())).scalar_one()
    if at > present + CLOCK_DIFFERENCE:
        raise FutureTimeError(f"{_iso(at)} is in the future")
    require_kept(tx, at)
    return _moment(tx, min(at, present))


def _moment(tx: Connection, at: datetime) -> Moment:
    last = select(Change.id).where(Change.at <= at).order_by(Change.at.desc(), Change.id.desc()).limit(1)
    return Moment(at, tx.execute(last).scalar_one_or_none() or 0)


def require_kept(tx: Connection, at: datetime) -> None:
    """Raise `NotKeptError` if what the mirror contained at an aware time cannot be reconstructed."""
    columns = (MirrorState.backfilled_at, MirrorState.changes_dropped_at)
    filled_at, dropped_at = tx.execute(select(*columns)).one()
    if filled_at is None:
        raise NotKeptError("the mirror is not filled yet, so it has no past; see: workos-sync status")
    if at < (earliest := max(filled_at, dropped_at or filled_at)):
        why = "when the mirror was filled" if earliest == filled_at else "because older changes have been pruned"
        raise NotKeptError(f"{_iso(at)} is too long ago: the earliest time is {_iso(earliest)}, {why}")


def _iso(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def states(kind: Kind, moment: Moment | None, *which: ColumnElement[bool], name: str = "") -> CTE:
    """Return the objects of a kind with their key, `deleted_by` and content at a moment; None is now, with all columns.

    `which` are conditions on their rows now. An object that a resync found deleted counts as deleted by an event.
    """
    table = kind.table.__table__
    name = f"{PREFIX}{name or kind.table.__tablename__}"
    if moment is None:
        return select(table).where(*which).cte(name)
    joined = table.outerjoin(LATER, LATER.c.id == _first_after(moment, kind.name, table.c.id))
    unchanged = LATER.c.id.is_(None)
    deleted = LATER.c.before["state"].as_string() == "deleted"
    deleted_by = case((unchanged, table.c.deleted_by), (deleted, literal(DeletedBy.EVENT)), else_=null())
    columns = (table.c[column] for column in kind.columns)
    content = [case((unchanged, own), else_=recorded_column(own, LATER.c.before)).label(own.name) for own in columns]
    query = select(table.c.id, deleted_by.label("deleted_by"), *content).select_from(joined)
    existed = or_(unchanged, LATER.c.before.is_not(None))
    return query.where(existed, *which).cte(name)


def _first_after(moment: Moment, kind: str, object_id: Any) -> Any:
    """Select the first change of an object after a moment.

    Written so that it can use no other index than that of the object: PostgreSQL underestimates the number of changes
    after an id, because most were made since it last counted them.
    """
    change = FIRST.c
    later = tuple_(change.object_id, change.id) > tuple_(object_id, literal(moment.change_id))
    first = func.min(change.id).filter(change.kind == kind)
    return select(first).where(change.object_id == object_id, later).scalar_subquery()


def recorded_column(column: KeyedColumnElement[Any], content: Any) -> Any:
    """Return the value of a column in the content of a change."""
    value = content[column.name]
    if isinstance(column.type, UtcDateTime):
        return recorded_time(value.as_string())
    if isinstance(column.type, Boolean):
        return value.as_boolean()
    if isinstance(column.type, JSON):
        return case((value.as_string().is_(None), null()), else_=value)  # JSON's null is not SQL's
    return value.as_string()


def _siblings(moment: Moment, *which: ColumnElement[bool]) -> CTE:
    """Return the memberships at a moment of people who have several in a workspace.

    There are few, while comparing each member with each takes long.
    """
    other = aliased(Membership)
    same = (other.organization_id == Membership.organization_id, other.user_id == Membership.user_id)
    several = exists().where(*same, other.id != Membership.id)
    return states(MEMBERSHIP, moment, *which, several, name="siblings").prefix_with("MATERIALIZED")


def role_maps(moment: Moment) -> CTE:
    """Return the table `mirror` with the role map at a moment."""
    joined = MirrorState.__table__.outerjoin(LATER, LATER.c.id == _first_after(moment, ROLE_MAP, literal(SETTING)))
    role_map = case((LATER.c.id.is_(None), MirrorState.role_map), else_=LATER.c.before["roles"])
    return select(role_map.label("role_map")).select_from(joined).cte(f"{PREFIX}mirror")


def members(tx: Connection, moment: Moment | None, *which: ColumnElement[bool]) -> FromClause:
    """Return the view `workspace_members` at a moment, with the same columns; None is now.

    `which` are conditions on the rows of memberships now, and select all those of a workspace, of a person, or of both.
    """
    if moment is None:
        return workspace_members
    sources = [states(kind, moment) for kind in (ORGANIZATION, USER, ROLE)]
    return members_over(tx, *sources, states(MEMBERSHIP, moment, *which), _siblings(moment, *which), role_maps(moment))


def members_over(tx: Connection, *sources: CTE) -> FromClause:
    """Return the view `workspace_members` over other tables than those of `models.views.SOURCES`."""
    query = text(members_query(tx.dialect.name, PREFIX)).columns(*workspace_members.c)
    return query.add_cte(*sources).subquery("members")


def workspaces_at(moment: Moment | None, *organization_ids: str) -> Select[Any]:
    """Select from the view `workspaces`, all or some; at a moment without `updated_at`. None is now."""
    if moment is None:
        return select(workspaces).where(workspaces.c.organization_id.in_(organization_ids))
    then = states(ORGANIZATION, moment, Organization.id.in_(organization_ids)).c
    state = case((then.deleted_by.is_(None), "active"), else_="deleted").label("state")
    columns = (then.name, then.external_id, state, then.created_at, then.stripe_customer_id, then.metadata)
    return select(then.id.label("organization_id"), *columns)


def with_causes(tx: Connection, rows: Sequence[Record], moment: Moment) -> list[Record]:
    """Return rows of `workspace_members`, each with `CAUSE`: the last change of the person's access up to a moment.

    It is the last change of the membership, the person or the workspace by which someone may have gained, lost or
    changed access. The values are None if it has been pruned.
    """
    changes: dict[str, Record] = {}
    for first in range(0, len(rows), BATCH):
        ids = {row[key] for row in rows[first : first + BATCH] for key in OBJECTS}
        changes |= {row["object_id"]: row for row in all_rows(tx, _last_changes(tx, ids, moment))}
    found = []
    for row in rows:
        of_row = (changes[row[key]] for key in OBJECTS if row[key] in changes)
        last = max(of_row, key=lambda change: int(change["id"]), default={})
        found.append(row | {name: last.get(name) for name in CAUSE})
    return found


def _last_changes(tx: Connection, ids: Collection[str], moment: Moment) -> Select[Any]:
    before, after = Change.before, Change.after
    of_access = [after[name].as_string().is_distinct_from(before[name].as_string()) for name in ACCESS_FIELDS]
    which = (is_any_of(tx, Change.object_id, ids), Change.kind.in_(OBJECTS.values()), Change.id <= moment.change_id)
    last = select(func.max(Change.id)).where(*which, or_(before.is_(None), *of_access)).group_by(Change.object_id)
    columns = (Change.at.label("changed_at"), *(Change.__table__.c[name] for name in CAUSE[1:]))
    return select(Change.id, Change.object_id, *columns).where(Change.id.in_(last))

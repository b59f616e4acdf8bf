"""Which objects a resync may delete: those that are live here and were missing from a complete listing.

Each is still asked for by id before it is marked deleted. Above a ceiling they are withheld until an operator approves
that run's list: a listing that failed quietly must not become a mass deletion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, false, func, or_, select, text

from models.outcomes import Finding
from models.tables import Drift, DriftAction, Listing, ListingState, Run, Seen
from worker.errors import OperatorError, UnknownIdError
from worker.kinds import KINDS, Kind
from worker.kinds.kind import ShownBy
from worker.kinds.membership import Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.role import Role
from worker.kinds.user import USER, User
from worker.mirror.read_requests import request_reads

FEW = 20
SHARE = 0.05
ALL_OF = 3
STEP = 500


@dataclass(frozen=True, slots=True)
class Chosen:
    """Objects of one kind that were not listed, in batches; `withheld` says why they must wait, if they must."""

    kind: Kind
    number: int
    withheld: str | None
    batches: Iterator[list[str]]


def prepare(tx: Connection) -> None:
    """Have PostgreSQL look at tables that a resync has just filled: without that it joins them row by row."""
    if tx.dialect.name == "postgresql":
        names = [Listing.__tablename__, Seen.__tablename__, *(kind.table.__tablename__ for kind in KINDS.values())]
        tx.execute(text(f"ANALYZE {', '.join(names)}"))


def choose(tx: Connection, run_id: str) -> Iterator[Chosen]:
    """Yield what the run's complete listings did not show, of every kind that has any."""
    for kind in KINDS.values():
        query = _candidates(run_id, kind)
        number = tx.execute(select(func.count()).select_from(query.subquery())).scalar_one()
        if number:
            batches = _batches(tx, query, kind.table.id)
            yield Chosen(kind, number, _withheld(tx, run_id, kind, number), batches)


def unknown_users(tx: Connection, run_id: str, organization_id: str | None) -> Iterator[list[str]]:
    """Yield, in batches, the users of live memberships that neither the mirror nor the run's listings know."""
    unknown = ~exists().where(User.id == Membership.user_id) & _unseen(run_id, USER, Membership.user_id)
    query = select(Membership.user_id).distinct().where(Membership.deleted_by.is_(None), unknown)
    if organization_id is not None:
        query = query.where(Membership.organization_id == organization_id)
    return _batches(tx, query, Membership.user_id)


def _batches(tx: Connection, query: Select[Any], key: Any) -> Iterator[list[str]]:
    last = ""
    while ids := list(tx.execute(query.where(key > last).order_by(key).limit(STEP)).scalars()):
        yield ids
        last = ids[-1]


def approve(tx: Connection, run_id: str, approved: str) -> None:
    """Have `run_id` read, and delete if gone, what the run `approved` withheld.

    Raises:
        UnknownIdError: there is no such run.
        OperatorError: that run withheld nothing.
    """
    withheld = (Drift.run_id == approved, Drift.action == DriftAction.WITHHELD)
    query = select(Drift.object_id).where(*withheld)
    if tx.execute(query.limit(1)).first() is None:
        if tx.execute(select(Run.id).where(Run.id == approved)).one_or_none() is None:
            raise UnknownIdError(f"there is no run {approved}")
        raise OperatorError(f"run {approved} withheld no deletions")
    for kind in KINDS.values():
        for ids in _batches(tx, select(Drift.object_id).where(*withheld, Drift.kind == kind.name), Drift.object_id):
            request_reads(tx, kind, ids, f"approved deletion of run {approved}", run_id)


def with_own_roles(tx: Connection, run_id: str) -> list[str]:
    """Return the listed organizations that use roles of their own, as far as the mirror shows."""
    own = select(Role.organization_id).where(Role.organization_id.is_not(None), Role.deleted_by.is_(None))
    known = select(Role.slug).where(Role.organization_id.is_(None), Role.deleted_by.is_(None))
    unknown = select(Membership.organization_id).where(
        Membership.deleted_by.is_(None), Membership.workos_role.is_not(None), Membership.workos_role.not_in(known)
    )
    listed = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == ORGANIZATION.name)
    users = own.union(unknown).subquery()
    query = select(users.c.organization_id).where(users.c.organization_id.in_(listed))
    return sorted(id for id in tx.execute(query).scalars() if id)


def _withheld(tx: Connection, run_id: str, kind: Kind, number: int) -> str | None:
    table = kind.table
    made = (Drift.kind == kind.name, Drift.finding == Finding.MISSING, Drift.action == DriftAction.REPAIRED)
    live = tx.execute(select(func.count()).select_from(table).where(table.deleted_by.is_(None))).scalar_one()
    new = select(func.count()).select_from(Drift).where(Drift.run_id == run_id, *made)
    live -= tx.execute(new).scalar_one()
    seen = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == kind.name).limit(1)
    if number == live and kind in (ORGANIZATION, USER) and tx.execute(seen).first() is None:
        return "the listing was empty"
    if number == live and number >= ALL_OF:
        return f"all {number}"
    if number > FEW and number > SHARE * live:
        return f"{number} of {live}"
    return None


def _candidates(run_id: str, kind: Kind) -> Select[str]:
    """Return the live objects of a kind that a listing should have shown and did not.

    Without those whose parent is gone: they are hidden with it, and do not count.
    """
    query = select(kind.table.id).where(kind.table.deleted_by.is_(None), _missing(run_id, kind))
    if (owner := kind.owner) is not None:
        lives = _owner_lives(run_id, owner)
        query = query.where(lives if owner.name in kind.parents else owner.is_(None) | lives)
    for column, name in kind.parents.items():
        if (parent := KINDS[name]) is not ORGANIZATION:
            child = getattr(kind.table, column)
            gone = parent.table.deleted_by.is_not(None) | _missing(run_id, parent)
            query = query.where(~exists().where(parent.table.id == child, gone))
    return query


def _missing(run_id: str, kind: Kind) -> ColumnElement[bool]:
    """Whether a complete listing of the run should have shown an object and no listing did.

    What was written since the listing began may be newer than it, and is left alone.
    """
    shown = [_should_show(run_id, kind, by) for by in kind.shown_by]
    return and_(or_(false(), *shown), _unseen(run_id, kind, kind.table.id))


def _should_show(run_id: str, kind: Kind, by: ShownBy) -> ColumnElement[bool]:
    complete = (Listing.run_id == run_id, Listing.name == by.listing, Listing.state == ListingState.COMPLETE)
    parent = Listing.parent == ("" if by.parent is None else by.parent)
    found = select(Listing.name).where(*complete, parent, kind.table.touched_at < Listing.began_at)
    shown = found.correlate(kind.table).exists()
    return shown if by.only is None else shown & by.only


def _owner_lives(run_id: str, organization_id: Any) -> ColumnElement[bool]:
    """Whether an organization was listed and has not been deleted since: else what is in it follows it."""
    listed = exists().where(Seen.run_id == run_id, Seen.kind == ORGANIZATION.name, Seen.object_id == organization_id)
    return listed & exists().where(Organization.id == organization_id, Organization.deleted_by.is_(None))


def _unseen(run_id: str, kind: Kind, id: Any) -> ColumnElement[bool]:
    # Named, because in a query within a query SQLAlchemy would add the table of `id` again.
    seen = exists().where(Seen.run_id == run_id, Seen.kind == kind.name, Seen.object_id == id)
    return ~seen.correlate_except(Seen)

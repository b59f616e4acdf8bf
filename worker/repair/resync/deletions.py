"""Finds objects that WorkOS no longer lists: live in the mirror, but not shown by a complete listing.

Each is then read by id, and deleted only if WorkOS answers 404. If there are too many of a kind, their deletions are
withheld until an operator approves them: a listing that fails unnoticed must not delete many objects.

Also requests reads of the opposite: users that no listing has shown, but whose memberships are listed.
"""

from collections.abc import Iterator
from functools import partial

import structlog
from sqlalchemy import ColumnElement, Connection, Select, exists, false, func, or_, select, text
from sqlalchemy.orm import InstrumentedAttribute

from models.outcomes import Finding
from models.tables import Drift, DriftAction, Listing, ListingState, Run, Seen
from worker.errors import OperatorError, UnknownIdError
from worker.kinds import KINDS, Kind
from worker.kinds.kind import ShownBy
from worker.kinds.membership import Membership
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER, User
from worker.mirror.apply import stored_rows
from worker.mirror.read_requests import request_reads
from worker.repair.resync import drift

Id = InstrumentedAttribute[str] | InstrumentedAttribute[str | None]
"""A column with ids."""

log = structlog.get_logger()

# Deletions of a kind are withheld if they are more than WITHHOLD_ABOVE and more than this share of the live objects, or
# if they are all live objects and at least WITHHOLD_ALL_FROM.
WITHHOLD_ABOVE = 20
WITHHOLD_SHARE = 0.05
WITHHOLD_ALL_FROM = 3
IDS_PER_QUERY = 500


def update_statistics(tx: Connection) -> None:
    """Analyze the tables that a resync has just filled: without statistics, PostgreSQL joins them row by row."""
    if tx.dialect.name == "postgresql":
        names = [Listing.__tablename__, Seen.__tablename__, *(kind.table.__tablename__ for kind in KINDS.values())]
        tx.execute(text(f"ANALYZE {', '.join(names)}"))


def request_reads_or_withhold(tx: Connection, run_id: str) -> None:
    """Request a confirmed read of each object that no listing showed, or withhold the deletions of its kind."""
    for kind in KINDS.values():
        unlisted = _unlisted(run_id, kind)
        number = tx.execute(select(func.count()).select_from(unlisted.subquery())).scalar_one()
        if not number:
            continue
        if why := _why_withheld(tx, run_id, kind, number):
            log.error("deletions_withheld", run=run_id, kind=kind.name, number=number, why=why)
        for ids in _batches(tx, unlisted, kind.table.id):
            if why:
                withhold = partial(drift.difference, finding=Finding.EXTRA, in_workos=None, action=DriftAction.WITHHELD)
                states = stored_rows(tx, kind, ids).items()
                drift.record(tx, run_id, [withhold(kind, id, in_mirror=state) for id, state in states])
            else:
                request_reads(tx, kind, ids, "was not listed", run_id)


def request_reads_of_unknown_users(tx: Connection, run_id: str, organization_id: str | None) -> None:
    """Request reads of users with a live membership who are neither in the mirror nor in the run's listings."""
    unknown = ~exists().where(User.id == Membership.user_id) & _not_seen(run_id, USER, Membership.user_id)
    query = select(Membership.user_id).distinct().where(Membership.deleted_by.is_(None), unknown)
    if organization_id is not None:
        query = query.where(Membership.organization_id == organization_id)
    for ids in _batches(tx, query, Membership.user_id):
        request_reads(tx, USER, ids, "its membership was listed", run_id)


def approve(tx: Connection, run_id: str, approved: str) -> None:
    """Request, for `run_id`, a confirmed read of each object whose deletion the run `approved` withheld.

    Raises:
        UnknownIdError: the run `approved` does not exist.
        OperatorError: it withheld nothing.
    """
    withheld = (Drift.run_id == approved, Drift.action == DriftAction.WITHHELD)
    query = select(Drift.object_id).where(*withheld)
    if tx.execute(query.limit(1)).first() is None:
        if tx.execute(select(Run.id).where(Run.id == approved)).one_or_none() is None:
            raise UnknownIdError(f"there is no run {approved}")
        raise OperatorError(f"run {approved} withheld no deletions")
    for kind in KINDS.values():
        for ids in _batches(tx, query.where(Drift.kind == kind.name), Drift.object_id):
            request_reads(tx, kind, ids, f"approved deletion of run {approved}", run_id)


def _batches(tx: Connection, query: Select[str] | Select[str | None], key: Id) -> Iterator[list[str]]:
    last = ""
    while ids := [id for id in tx.execute(query.where(key > last).order_by(key).limit(IDS_PER_QUERY)).scalars() if id]:
        yield ids
        last = ids[-1]


def _why_withheld(tx: Connection, run_id: str, kind: Kind, number: int) -> str | None:
    """Return why the deletion of `number` objects must be approved; None if it need not."""
    table = kind.table
    live = tx.execute(select(func.count()).select_from(table).where(table.deleted_by.is_(None))).scalar_one()
    # Without the objects that this run has added.
    added = (Drift.kind == kind.name, Drift.finding == Finding.MISSING, Drift.action == DriftAction.REPAIRED)
    live -= tx.execute(select(func.count()).select_from(Drift).where(Drift.run_id == run_id, *added)).scalar_one()
    seen = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == kind.name).limit(1)
    if number == live and kind in (ORGANIZATION, USER) and tx.execute(seen).first() is None:
        return "the listing was empty"
    if number == live and number >= WITHHOLD_ALL_FROM:
        return f"all {number}"
    if number > WITHHOLD_ABOVE and number > WITHHOLD_SHARE * live:
        return f"{number} of {live}"
    return None


def _unlisted(run_id: str, kind: Kind) -> Select[str]:
    """Select the live objects of a kind that a listing should have shown and did not.

    Objects of an unlisted parent are left out: views hide them with it, and they do not count as deletions.
    """
    query = select(kind.table.id).where(kind.table.deleted_by.is_(None), _is_unlisted(run_id, kind))
    if (owner := kind.owner) is not None:
        lives = _owner_lives(run_id, owner)
        query = query.where(lives if owner.name in kind.parents else owner.is_(None) | lives)
    for column, name in kind.parents.items():
        if (parent := KINDS[name]) is not ORGANIZATION:
            child = getattr(kind.table, column)
            gone = parent.table.deleted_by.is_not(None) | _is_unlisted(run_id, parent)
            query = query.where(~exists().where(parent.table.id == child, gone))
    return query


def _is_unlisted(run_id: str, kind: Kind) -> ColumnElement[bool]:
    """Return the condition that a complete listing of the run should have shown an object, and none did.

    An object written after its listing began may be newer than the listing, so it does not count as unlisted.
    """
    shown = [_should_show(run_id, kind, by) for by in kind.shown_by]
    return or_(false(), *shown) & _not_seen(run_id, kind, kind.table.id)


def _should_show(run_id: str, kind: Kind, by: ShownBy) -> ColumnElement[bool]:
    complete = (Listing.run_id == run_id, Listing.name == by.listing, Listing.state == ListingState.COMPLETE)
    parent = Listing.parent == ("" if by.parent is None else by.parent)
    query = select(Listing.name).where(*complete, parent, kind.table.touched_at < Listing.began_at)
    shown = query.correlate(kind.table).exists()
    return shown if by.only is None else shown & by.only


def _owner_lives(run_id: str, organization_id: ColumnElement[str] | ColumnElement[str | None]) -> ColumnElement[bool]:
    """Return the condition that an organization was listed, and has not been deleted since."""
    listed = exists().where(Seen.run_id == run_id, Seen.kind == ORGANIZATION.name, Seen.object_id == organization_id)
    return listed & exists().where(Organization.id == organization_id, Organization.deleted_by.is_(None))


def _not_seen(run_id: str, kind: Kind, id: Id) -> ColumnElement[bool]:
    # `correlate_except`, because within another subquery SQLAlchemy would add the table of `id` to this one.
    seen = exists().where(Seen.run_id == run_id, Seen.kind == kind.name, Seen.object_id == id)
    return ~seen.correlate_except(Seen)

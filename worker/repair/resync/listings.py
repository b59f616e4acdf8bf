"""The listings of a resync: how each is fetched from WorkOS, and how far each has got."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Boolean, ColumnElement, Connection, Engine, bindparam, case, func, or_, select, update

from models.bulk import insert_new
from models.database import read_transaction
from models.tables import Listing, ListingState, Seen
from models.types import db_now
from worker.errors import NotFoundError
from worker.kinds import KINDS, LISTINGS
from worker.kinds.kind import Frequency
from worker.kinds.membership import Membership
from worker.kinds.organization import ORGANIZATION
from worker.kinds.role import Role
from worker.repair.reads import fetch
from worker.workos_api.client import Page, WorkOSClient

_NEXT = bindparam("next", type_=Listing.after.type)
_INVALID = or_(Listing.invalid, bindparam("found_invalid", type_=Boolean()))
_STATE = case(
    (_NEXT.is_not(None), ListingState.OPEN),
    (_INVALID, ListingState.PARTIAL),
    else_=ListingState.COMPLETE,
)
_ATTEMPTS = case((bindparam("continued", type_=Boolean()), 0), else_=Listing.attempts)
_RECORDED = (
    update(Listing)
    .where(
        Listing.run_id == bindparam("of_run"),
        Listing.name == bindparam("of_name"),
        Listing.parent == bindparam("of_parent"),
    )
    .values(after=_NEXT, state=_STATE, invalid=_INVALID, began_at=bindparam("began"), attempts=_ATTEMPTS)
)
"""Records an applied page. Built once: a resync has one for each workspace."""


class Key(NamedTuple):
    """A listing: its name in `worker.kinds.LISTINGS`, and the organization (empty: the whole environment)."""

    name: str
    parent: str

    def fetch(self, workos: WorkOSClient, after: str | None) -> Page:
        """Return the page after a cursor (None: the first page); raise what `WorkOSClient` raises."""
        kind, listing = LISTINGS[self.name]
        if listing.path is not None:
            path = listing.path(self.parent)
            return workos.list_page(path, listing.params(self.parent), after, paged=listing.paged)
        found = fetch(workos, kind, self.parent)
        if found.item is None:
            raise NotFoundError(f"/{'/'.join(kind.read_path(self.parent))}: 404", found.read_at)
        return Page([found.item], None, found.read_at)


@dataclass(frozen=True, slots=True)
class Open:
    """An unfinished listing: the cursor of its next page, and when it began, in UTC by the database's clock."""

    key: Key
    after: str | None = field(compare=False)
    began: datetime = field(compare=False)


def named(frequency: Frequency) -> list[str]:
    """Return the names of the listings that a full resync fetches this often."""
    return [name for name, (_, listing) in LISTINGS.items() if listing.full_resync is frequency]


def add(tx: Connection, run_id: str, name: str, parents: Iterable[str]) -> None:
    """Add listings to a run. Those that it already has do not change."""
    insert_new(tx, Listing, [{"run_id": run_id, "name": name, "parent": parent} for parent in sorted(parents)])


def add_role_listings(tx: Connection, run_id: str) -> None:
    """Add the listings of roles for each listed organization that, as far as the mirror shows, has its own roles."""
    own = select(Role.organization_id).where(Role.organization_id.is_not(None), Role.deleted_by.is_(None))
    known = select(Role.slug).where(Role.organization_id.is_(None), Role.deleted_by.is_(None))
    unknown = select(Membership.organization_id).where(
        Membership.deleted_by.is_(None), Membership.workos_role.is_not(None), Membership.workos_role.not_in(known)
    )
    listed = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == ORGANIZATION.name)
    with_own_roles = own.union(unknown).subquery().c.organization_id
    ids = list(tx.execute(select(with_own_roles).where(with_own_roles.in_(listed))).scalars())
    for name in named(Frequency.ORGANIZATIONS_WITH_ROLES):
        add(tx, run_id, name, ids)


def open_listings(engine: Engine, run_id: str, limit: int) -> list[Open]:
    """Return up to `limit` unfinished listings of a run. Those that have failed come last."""
    began = func.coalesce(Listing.began_at, db_now())
    query = select(Listing.name, Listing.parent, Listing.after, began)
    # A later release may have added listings that this one does not know.
    query = query.where(Listing.run_id == run_id, Listing.state == ListingState.OPEN, Listing.name.in_(LISTINGS))
    with read_transaction(engine) as tx:
        rows = tx.execute(query.order_by(Listing.attempts).limit(limit))
        return [Open(Key(name, parent), after, at) for name, parent, after, at in rows]


class AppliedPage(NamedTuple):
    """A page that is applied."""

    listing: Open
    after: str | None
    """The cursor of the next page; None: it was the last."""
    valid: bool
    """Whether every item could be applied."""


def record_pages(tx: Connection, run_id: str, pages: Iterable[AppliedPage]) -> None:
    """Record how far the listings of applied pages have got.

    If a listing continued from a cursor, its failures are over. They do not add up over the hours that a listing of
    thousands of pages takes. One that had to begin again may fail again at the same page.
    """
    rows = [
        {
            "of_run": run_id,
            "of_name": page.listing.key.name,
            "of_parent": page.listing.key.parent,
            "next": page.after,
            "found_invalid": not page.valid,
            "began": page.listing.began,
            "continued": page.listing.after is not None,
        }
        for page in pages
    ]
    tx.execute(_RECORDED, rows)


def give_up(tx: Connection, run_id: str, key: Key) -> None:
    """Close a listing as incomplete, so that objects which it did not show do not count as deleted."""
    tx.execute(update(Listing).where(*_is(run_id, key)).values(state=ListingState.PARTIAL))


def record_failure(tx: Connection, run_id: str, key: Key) -> int:
    """Count a failed attempt, and return the number of failed attempts."""
    failed = update(Listing).where(*_is(run_id, key)).values(attempts=Listing.attempts + 1)
    attempts: int = tx.execute(failed.returning(Listing.attempts)).scalar_one()
    return attempts


def listed_kinds(tx: Connection, run_id: str) -> set[str]:
    """Return the names of the kinds whose listing of the whole environment the run has read to its end."""
    to_the_end = or_(Listing.state == ListingState.COMPLETE, Listing.invalid & Listing.after.is_(None))
    query = select(Listing.name).where(Listing.run_id == run_id, Listing.parent == "", to_the_end)
    names = set(tx.execute(query).scalars())
    return {
        kind.name for kind in KINDS.values() if any(by.parent is None and by.listing in names for by in kind.shown_by)
    }


def _is(run_id: str, key: Key) -> tuple[ColumnElement[bool], ...]:
    return Listing.run_id == run_id, Listing.name == key.name, Listing.parent == key.parent

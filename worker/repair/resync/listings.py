"""The listings of a resync: how WorkOS is asked for each, and how far each of a run's got."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, case, func, or_, select, update

from models.bulk import insert_new
from models.tables import Listing, ListingState
from models.types import db_now
from worker.errors import NotFoundError
from worker.kinds import KINDS, LISTINGS
from worker.kinds.kind import Scope
from worker.repair.reads import fetch
from worker.workos_api.client import Page, WorkOSClient


class Key(NamedTuple):
    """Which listing of a run: its name in `worker.kinds.LISTINGS`, and the organization (empty: the environment)."""

    name: str
    parent: str

    def fetch(self, workos: WorkOSClient, after: str | None) -> Page:
        """Return the page behind a cursor, the first for None; raises what `WorkOSClient` raises."""
        kind, listing = LISTINGS[self.name]
        if listing.path is not None:
            path = listing.path(self.parent)
            return workos.list_page(path, listing.params(self.parent), after, paged=listing.paged)
        found = fetch(workos, kind, self.parent)
        if found.item is None:
            raise NotFoundError(f"/{'/'.join(kind.read_path(self.parent))}: 404", found.read_at)
        return Page([found.item], None, found.read_at)


def named(scope: Scope) -> list[str]:
    """Return the names of the listings that a full resync fetches that often."""
    return [name for name, (_, listing) in LISTINGS.items() if listing.full_resync is scope]


@dataclass(frozen=True, slots=True)
class Open:
    """A listing to go on with: the cursor of its next page, and when it began, in UTC by the database's clock."""

    key: Key
    after: str | None = field(compare=False)
    began: datetime = field(compare=False)


def add(tx: Connection, run_id: str, name: str, parents: Iterable[str]) -> None:
    """Add listings to a run; those it has already stay as they are."""
    insert_new(tx, Listing, [{"run_id": run_id, "name": name, "parent": parent} for parent in sorted(parents)])


def open_listings(tx: Connection, run_id: str, limit: int) -> list[Open]:
    """Return so many of a run's listings that are not over, those that failed before last."""
    began = func.coalesce(Listing.began_at, db_now())
    query = select(Listing.name, Listing.parent, Listing.after, began)
    query = (
        query.where(Listing.run_id == run_id, Listing.state == ListingState.OPEN)
        .order_by(Listing.attempts)
        .limit(limit)
    )
    return [Open(Key(name, parent), after, at) for name, parent, after, at in tx.execute(query)]


def record_page(tx: Connection, run_id: str, key: Key, after: str | None, began: datetime, *, invalid: bool) -> None:
    """Note that a page was used, up to the cursor `after`; None: it was the last."""
    any_invalid = Listing.invalid | invalid
    ended = case((any_invalid, ListingState.PARTIAL), else_=ListingState.COMPLETE)
    state = ListingState.OPEN if after is not None else ended
    values = {"after": after, "state": state, "invalid": any_invalid, "began_at": began}
    tx.execute(update(Listing).where(*_here(run_id, key)).values(values))


def give_up(tx: Connection, run_id: str, key: Key) -> None:
    """Note that the rest of a listing cannot be had: what it did not show is not thereby gone."""
    tx.execute(update(Listing).where(*_here(run_id, key)).values(state=ListingState.PARTIAL))


def record_failure(tx: Connection, run_id: str, key: Key) -> int:
    """Count one more try that failed, and return how many there were."""
    tries = update(Listing).where(*_here(run_id, key)).values(attempts=Listing.attempts + 1)
    made: int = tx.execute(tries.returning(Listing.attempts)).scalar_one()
    return made


def listed_kinds(tx: Connection, run_id: str) -> set[str]:
    """Return the names of the kinds of which the run has read the listing of the whole environment to the end."""
    to_the_end = or_(Listing.state == ListingState.COMPLETE, Listing.invalid & Listing.after.is_(None))
    query = select(Listing.name).where(Listing.run_id == run_id, Listing.parent == "", to_the_end)
    names = set(tx.execute(query).scalars())
    return {
        kind.name for kind in KINDS.values() if any(by.parent is None and by.listing in names for by in kind.shown_by)
    }


def _here(run_id: str, key: Key) -> tuple[ColumnElement[bool], ...]:
    return Listing.run_id == run_id, Listing.name == key.name, Listing.parent == key.parent

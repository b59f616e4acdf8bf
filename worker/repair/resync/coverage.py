"""Counts the organizations that a resync has compared."""

from sqlalchemy import Connection, exists, func, select

from models.tables import Listing, ListingState
from worker.kinds import LISTINGS
from worker.kinds.kind import Frequency
from worker.kinds.organization import ORGANIZATION, Organization


def compared(tx: Connection, run_id: str) -> tuple[int, int | None]:
    """Return how many organizations the run has compared completely, and their total (None: not known yet).

    Both are 0 once the run's listings are deleted.
    """
    of_run = (Listing.run_id == run_id, Listing.parent != "")
    incomplete = func.count().filter(Listing.state != ListingState.COMPLETE)
    parents = select(Listing.parent, incomplete.label("incomplete")).where(*of_run).group_by(Listing.parent).subquery()
    done = func.count().filter(parents.c.incomplete == 0)
    number, total = tx.execute(select(done, func.count()).select_from(parents)).one()
    # Organizations are added to the run as their listing is read.
    names = [listing.name for listing in ORGANIZATION.listings if listing.full_resync is Frequency.ONCE]
    read = Listing.state == ListingState.COMPLETE
    unread = exists().where(Listing.run_id == run_id, Listing.parent == "", Listing.name.in_(names), ~read)
    return number, None if tx.execute(select(unread)).scalar_one() else total


def given_up(tx: Connection, run_id: str, max_tries: int) -> tuple[int, int]:
    """Return the number of organizations with a required listing that was abandoned, and the number of organizations.

    A listing is abandoned after `max_tries` failures, or when WorkOS answers 404 although the organization exists.
    """
    required = [name for name, (_, listing) in LISTINGS.items() if listing.required]
    exists_here = exists().where(Organization.id == Listing.parent, Organization.deleted_by.is_(None))
    unread = (Listing.attempts >= max_tries) | (~Listing.invalid & exists_here)
    skipped = Listing.name.in_(required) & (Listing.state == ListingState.PARTIAL) & unread
    parents = func.count(Listing.parent.distinct())
    query = select(parents.filter(skipped), parents).where(Listing.run_id == run_id, Listing.parent != "")
    number, total = tx.execute(query).one()
    return number, total

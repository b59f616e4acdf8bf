"""The listings of a resync: which there are, how WorkOS is asked for each, and how far each of a run's got."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, case, func, select, update

from models.bulk import insert_new
from models.tables import Listing
from models.types import db_now
from worker.workos_api.client import Page, WorkOSClient


class Name(StrEnum):
    """What is listed: of the environment, or of one organization."""

    ORGANIZATIONS = "organizations"
    ORGANIZATION = "organization"
    """One organization alone, read as a listing of it and its domains."""
    USERS = "users"
    ROLES = "roles"
    MEMBERSHIPS = "memberships"
    ORGANIZATION_ROLES = "organization_roles"
    CONNECTIONS = "connections"
    """Of the environment or of one organization. A resync makes sense without: a key may not be allowed to see them."""


OF_EVERYTHING = (Name.ORGANIZATIONS, Name.USERS, Name.ROLES, Name.CONNECTIONS)
"""What a full resync begins with; each listed organization adds its memberships, and its roles if it has any."""
OF_ONE_WORKSPACE = (Name.ORGANIZATION, Name.MEMBERSHIPS, Name.CONNECTIONS)

_FETCH: Mapping[Name, Callable[[WorkOSClient, str, str | None], Page]] = {
    Name.ORGANIZATIONS: lambda workos, _, after: workos.organizations(after),
    Name.ORGANIZATION: lambda workos, parent, _: workos.one_organization(parent),
    Name.USERS: lambda workos, _, after: workos.users(after),
    Name.ROLES: lambda workos, _parent, _after: workos.roles(),
    Name.MEMBERSHIPS: lambda workos, parent, after: workos.memberships(parent, after),
    Name.ORGANIZATION_ROLES: lambda workos, parent, _: workos.organization_roles(parent),
    Name.CONNECTIONS: lambda workos, parent, after: workos.connections(parent, after),
}


class Key(NamedTuple):
    """Which listing of a run. `parent`: the organization; empty for the environment's own."""

    name: Name
    parent: str

    def fetch(self, workos: WorkOSClient, after: str | None) -> Page:
        """Return the page behind a cursor, the first for None; raises what `directory` raises."""
        return _FETCH[self.name](workos, self.parent, after)


@dataclass(frozen=True, slots=True)
class Open:
    """A listing to go on with: the cursor of its next page, and when it began, in UTC by the database's clock."""

    key: Key
    after: str | None = field(compare=False)
    began: datetime = field(compare=False)


def add(tx: Connection, run_id: str, name: Name, parents: Iterable[str]) -> None:
    """Add listings to a run; those it has already stay as they are."""
    insert_new(tx, Listing, [{"run_id": run_id, "name": name, "parent": parent} for parent in sorted(parents)])


def open_listings(tx: Connection, run_id: str, limit: int) -> list[Open]:
    """Return so many of a run's listings that are not over, those that failed before last."""
    began = func.coalesce(Listing.began_at, db_now())
    query = select(Listing.name, Listing.parent, Listing.after, began)
    query = query.where(Listing.run_id == run_id, Listing.state == "open").order_by(Listing.attempts).limit(limit)
    return [Open(Key(Name(name), parent), after, at) for name, parent, after, at in tx.execute(query)]


def record_page(tx: Connection, run_id: str, key: Key, after: str | None, began: datetime, *, invalid: bool) -> None:
    """Note that a page was used, up to the cursor `after`; None: it was the last."""
    any_invalid = Listing.invalid | invalid
    state = case((any_invalid, "partial"), else_="complete") if after is None else "open"
    values = {"after": after, "state": state, "invalid": any_invalid, "began_at": began}
    tx.execute(update(Listing).where(*_here(run_id, key)).values(values))


def give_up(tx: Connection, run_id: str, key: Key) -> None:
    """Note that the rest of a listing cannot be had: what it did not show is not thereby gone."""
    tx.execute(update(Listing).where(*_here(run_id, key)).values(state="partial"))


def record_failure(tx: Connection, run_id: str, key: Key) -> int:
    """Count one more try that failed, and return how many there were."""
    tries = update(Listing).where(*_here(run_id, key)).values(attempts=Listing.attempts + 1)
    made: int = tx.execute(tries.returning(Listing.attempts)).scalar_one()
    return made


def _here(run_id: str, key: Key) -> tuple[ColumnElement[bool], ...]:
    return Listing.run_id == run_id, Listing.name == key.name, Listing.parent == key.parent

"""Which objects a resync may delete: those that are live here and were missing from a complete listing.

Each is still asked for by id before it is marked deleted. Above a ceiling they are withheld until an operator approves
that run's list: a listing that failed quietly must not become a mass deletion.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, exists, func, select, text

from models.tables import TABLES, Domain, Drift, Kind, Listing, Membership, Organization, Role, Run, Seen, User
from models.tables import Connection as SignIn
from worker.decision.decide import Finding
from worker.errors import OperatorError, UnknownIdError
from worker.mirror.read_requests import request_reads
from worker.repair.resync.listings import Name

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
        names = [table.__tablename__ for table in (Listing, Seen, *TABLES.values())]
        tx.execute(text(f"ANALYZE {', '.join(names)}"))


def choose(tx: Connection, run_id: str) -> Iterator[Chosen]:
    """Yield what the run's complete listings did not show, of every kind that has any."""
    for kind, query in _candidates(run_id).items():
        number = tx.execute(select(func.count()).select_from(query.subquery())).scalar_one()
        if number:
            batches = _batches(tx, query, TABLES[kind].id)
            yield Chosen(kind, number, _withheld(tx, run_id, kind, number), batches)


def unknown_users(tx: Connection, run_id: str, organization_id: str | None) -> Iterator[list[str]]:
    """Yield, in batches, the users of live memberships that neither the mirror nor the run's listings know."""
    unknown = ~exists().where(User.id == Membership.user_id) & _unseen(run_id, Kind.USER, Membership.user_id)
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
    withheld = (Drift.run_id == approved, Drift.action == "withheld")
    query = select(Drift.object_id).where(*withheld)
    if tx.execute(query.limit(1)).first() is None:
        if tx.execute(select(Run.id).where(Run.id == approved)).one_or_none() is None:
            raise UnknownIdError(f"there is no run {approved}")
        raise OperatorError(f"run {approved} withheld no deletions")
    for kind in Kind:
        for ids in _batches(tx, select(Drift.object_id).where(*withheld, Drift.kind == kind), Drift.object_id):
            request_reads(tx, kind, ids, f"approved deletion of run {approved}", run_id)


def with_own_roles(tx: Connection, run_id: str) -> list[str]:
    """Return the listed organizations that use roles of their own, as far as the mirror shows."""
    own = select(Role.organization_id).where(Role.organization_id.is_not(None), Role.deleted_by.is_(None))
    known = select(Role.slug).where(Role.organization_id.is_(None), Role.deleted_by.is_(None))
    unknown = select(Membership.organization_id).where(
        Membership.deleted_by.is_(None), Membership.workos_role.is_not(None), Membership.workos_role.not_in(known)
    )
    listed = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == Kind.ORGANIZATION)
    users = own.union(unknown).subquery()
    query = select(users.c.organization_id).where(users.c.organization_id.in_(listed))
    return sorted(id for id in tx.execute(query).scalars() if id)


def _withheld(tx: Connection, run_id: str, kind: Kind, number: int) -> str | None:
    table = TABLES[kind]
    made = (Drift.run_id == run_id, Drift.kind == kind, Drift.finding == Finding.MISSING, Drift.action == "repaired")
    live = tx.execute(select(func.count()).select_from(table).where(table.deleted_by.is_(None))).scalar_one()
    live -= tx.execute(select(func.count()).select_from(Drift).where(*made)).scalar_one()  # that were not here before
    seen = select(Seen.object_id).where(Seen.run_id == run_id, Seen.kind == kind).limit(1)
    if number == live and kind in (Kind.ORGANIZATION, Kind.USER) and tx.execute(seen).first() is None:
        return "the listing was empty"
    if number == live and number >= ALL_OF:
        return f"all {number}"
    if number > FEW and number > SHARE * live:
        return f"{number} of {live}"
    return None


def _candidates(run_id: str) -> dict[Kind, Select[str]]:
    organizations = _listing(run_id, Name.ORGANIZATIONS, Name.ORGANIZATION)
    users = _listing(run_id, Name.USERS)
    gone_user = (
        users.where(User.touched_at < Listing.began_at, _unseen(run_id, Kind.USER, User.id)).correlate(User).exists()
    )
    # The memberships of a user or organization that is gone follow it: they are hidden with it and do not count.
    user_is_gone = exists().where(User.id == Membership.user_id, User.deleted_by.is_not(None) | gone_user)
    members = _listing(run_id, Name.MEMBERSHIPS).where(Listing.parent == Membership.organization_id)
    own_roles = _listing(run_id, Name.ORGANIZATION_ROLES).where(Listing.parent == Role.organization_id)
    roles = _listing(run_id, Name.ROLES).where(Role.organization_id.is_(None))
    connections = _listing(run_id, Name.CONNECTIONS)
    one_owner = connections.where(Listing.parent == SignIn.organization_id)
    connection_owner = SignIn.organization_id.is_(None) | _owner_lives(run_id, SignIn.organization_id)
    full = _listing(run_id, Name.ORGANIZATIONS)
    role_owner = Role.organization_id.is_(None) | _owner_lives(run_id, Role.organization_id)
    return {
        Kind.ORGANIZATION: _missing(run_id, Kind.ORGANIZATION, full),
        Kind.USER: _missing(run_id, Kind.USER, users),
        Kind.MEMBERSHIP: _missing(run_id, Kind.MEMBERSHIP, members).where(
            _owner_lives(run_id, Membership.organization_id), ~user_is_gone
        ),
        Kind.DOMAIN: _missing(run_id, Kind.DOMAIN, organizations).where(_owner_lives(run_id, Domain.organization_id)),
        Kind.ROLE: _missing(run_id, Kind.ROLE, roles, own_roles).where(role_owner),
        Kind.CONNECTION: _missing(run_id, Kind.CONNECTION, connections.where(Listing.parent == ""), one_owner).where(
            connection_owner
        ),
    }


def _owner_lives(run_id: str, organization_id: Any) -> ColumnElement[bool]:
    """Whether an organization was listed and has not been deleted since: else what is in it follows it."""
    listed = exists().where(Seen.run_id == run_id, Seen.kind == Kind.ORGANIZATION, Seen.object_id == organization_id)
    return listed & exists().where(Organization.id == organization_id, Organization.deleted_by.is_(None))


def _listing(run_id: str, *names: Name) -> Select[str]:
    return select(Listing.name).where(Listing.run_id == run_id, Listing.name.in_(names), Listing.state == "complete")


def _missing(run_id: str, kind: Kind, *listings: Select[str]) -> Select[str]:
    """Return the live objects of a kind that one of `listings` should have shown and did not.

    What was written since the listing began may be newer than it, and is left alone.
    """
    table: Any = TABLES[kind]
    shown = [q.where(table.touched_at < Listing.began_at).correlate(table).exists() for q in listings]
    any_of = shown[0] if len(shown) == 1 else shown[0] | shown[1]
    return select(table.id).where(table.deleted_by.is_(None), _unseen(run_id, kind, table.id), any_of)


def _unseen(run_id: str, kind: Kind, id: Any) -> ColumnElement[bool]:
    # Named, for in a query within a query SQLAlchemy would take the table of `id` anew.
    seen = exists().where(Seen.run_id == run_id, Seen.kind == kind, Seen.object_id == id)
    return ~seen.correlate_except(Seen)

"""What the pages of a resync's listings say: objects that can be used, and rows of drift."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from models.bulk import insert_new
from models.tables import Kind, Listing
from worker.decision.decide import Finding, State
from worker.decision.handlers import RoleMap, read_object
from worker.decision.snapshots import Snapshot, is_id
from worker.directory.client import Page
from worker.errors import PayloadError
from worker.mirror.apply import organization_of, show


class Listed(NamedTuple):
    """A page of a listing, which began at a time of the database's clock."""

    name: str
    parent: str
    page: Page
    began: datetime


def parse_page(name: str, parent: str, page: Page, roles: RoleMap) -> tuple[list[Snapshot], list[dict[str, Any]]]:
    """Return the objects of a page that can be used, and a drift row for each that cannot."""
    snapshots: list[Snapshot] = []
    odd: list[dict[str, Any]] = []
    for place, (kind, item) in enumerate(_objects(name, parent, page.items)):
        id = _id_of(item) or f"without id: {place} of {'/'.join(filter(None, (name, parent, page.after)))}"
        try:
            snapshots.append(read_object(kind, item, page.read_at, roles))
        except PayloadError as error:
            odd.append(odd_item(kind, id, error.field))
        if kind is Kind.ORGANIZATION and isinstance(item, dict) and not isinstance(item.get("domains"), list):
            odd.append(odd_item(kind, id, "organization.domains"))
    return snapshots, odd


def _id_of(item: Any) -> str | None:
    id = item.get("id") if isinstance(item, dict) else None
    return id if isinstance(id, str) and is_id(id) else None


def _objects(name: str, parent: str, items: list[Any]) -> Iterator[tuple[Kind, Any]]:
    for item in items:
        match name:
            case "organizations" | "organization":
                yield Kind.ORGANIZATION, item
                domains = item.get("domains") if isinstance(item, dict) else None
                for domain in domains if isinstance(domains, list) else ():
                    yield Kind.DOMAIN, domain
            case "users":
                yield Kind.USER, item
            case "memberships":
                yield Kind.MEMBERSHIP, item
            case "connections":
                yield Kind.CONNECTION, item
            case "roles":
                yield Kind.ROLE, item
            case "organization_roles":
                # The environment's are listed among them.
                type = item.get("type") if isinstance(item, dict) else None
                if type != "EnvironmentRole":
                    yield Kind.ROLE, {**item, "organization_id": parent} if type == "OrganizationRole" else None


def drift(
    kind: Kind, id: str, finding: Finding, here: State | None, there: State | None, action: str
) -> dict[str, Any]:
    """Return a drift row: what differs, field by field, `[here, WorkOS]`."""
    ours, theirs = (show(here) if here else {}), (show(there) if there else {})
    fields = {f: [ours.get(f), theirs.get(f)] for f in (ours | theirs) if ours.get(f) != theirs.get(f)}
    organization_id = next((organization_of(kind, id, state) for state in (there, here) if state), None)
    row = {"kind": kind, "object_id": id, "organization_id": organization_id}
    return {**row, "finding": finding, "fields": fields if here and there else None, "action": action}


def odd_item(kind: Kind, id: str, field: str) -> dict[str, Any]:
    """Return a drift row for an object that WorkOS shows and that cannot be used."""
    row = {"kind": kind, "object_id": id, "organization_id": None, "finding": "odd"}
    return {**row, "fields": {field: None}, "action": "reported"}


def open_listings(tx: Connection, run_id: str, name: str, parents: Sequence[str]) -> None:
    """Add listings to a run; those it has already stay as they are."""
    insert_new(tx, Listing, [{"run_id": run_id, "name": name, "parent": parent} for parent in sorted(parents)])

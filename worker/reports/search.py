"""Finds what an operator searches for: an id, external id, address in any form, name or domain, or a part of one."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    RowMapping,
    or_,
    select,
)

from models.addresses import normalize_domain
from models.database import plan_for_values, read_transaction
from models.tables import Event, Run
from worker.kinds import KINDS, Kind
from worker.kinds.addresses import has_address
from worker.kinds.domain import DOMAIN, Domain
from worker.kinds.invitation import INVITATION, Invitation
from worker.kinds.organization import ORGANIZATION, Organization
from worker.kinds.user import USER, User
from worker.reports.listings.names import workspace_names
from worker.reports.matching import contain_words, contains, has_part_of_address, is_person

EVENT, RUN = "event", "run"
LIMIT = 10
"""Matches of a kind."""
MANY = 100
"""If a kind has at least this number of matches, each of the two reads by state finds enough rows soon."""


class Match(NamedTuple):
    """An object, event or run that was found."""

    kind: str
    """The name of its kind in `KINDS`, or `event` or `run`."""
    id: str
    label: str | None
    """Its name or e-mail address; None if it has none."""
    detail: str | None = None
    """Distinguishes it from others with the same label; None if nothing does."""
    deleted: bool = False


def search(engine: Engine, text: str) -> list[Match]:
    """Return what `text` names: at most `LIMIT` matches of each kind, live ones first.

    What has `text` as its id, external id or whole e-mail address is returned alone. Otherwise these match: workspaces
    and people whose name contains each word of `text`, people and invitations by a part of their address, domains by a
    part of theirs, and roles and permissions by their slug.
    """
    if not (text := text.strip()):
        return []
    with read_transaction(engine) as tx:
        if exact := list(_identified(tx, text)):
            return exact
        plan_for_values(tx)
        return [match for found in _named(tx, text) for match in found]


# Identifiers


def _identified(tx: Connection, text: str) -> Iterator[Match]:
    for kind in KINDS.values():
        if kind.delete_is_final:  # the id of others is a slug, which may be an everyday word
            yield from _identical(tx, kind, kind.table.id == text)
    for type, status in tx.execute(select(Event.type, Event.status).where(Event.id == text)):
        yield Match(EVENT, text, type, status)
    for task, run_status in tx.execute(select(Run.task, Run.status).where(Run.id == text)):
        yield Match(RUN, text, task, run_status)
    for kind, table in ((ORGANIZATION, Organization), (USER, User)):
        yield from _identical(tx, kind, table.external_id == text)
    if "@" in text:
        people = list(_identical(tx, USER, has_address(User, text)))
        yield from people or _identical(tx, INVITATION, has_address(Invitation, text))


# Names and parts


def _named(tx: Connection, text: str) -> Iterator[Iterator[Match]]:
    yield _objects(tx, ORGANIZATION, contain_words((Organization.name,), text))
    yield _objects(tx, USER, is_person(text))
    spelled = normalize_domain(text) or text.lower()
    yield _objects(tx, DOMAIN, or_(contains(Domain.domain, text), Domain.normalized.contains(spelled, autoescape=True)))
    if "@" in text:
        part = or_(contains(Invitation.email, text), has_part_of_address(Invitation, text))
        yield _objects(tx, INVITATION, part)
    for kind in KINDS.values():
        if not kind.delete_is_final:
            yield _identical(tx, kind, kind.table.id == text)


def _identical(tx: Connection, kind: Kind, which: ColumnElement[bool]) -> Iterator[Match]:
    """Yield the objects of a kind that meet a condition, which an index finds."""
    found = select(kind.table.__table__).where(which).order_by(kind.table.id).limit(LIMIT)
    yield from _matches(tx, kind, list(tx.execute(found).mappings()))


def _objects(tx: Connection, kind: Kind, which: ColumnElement[bool]) -> Iterator[Match]:
    """Yield up to `LIMIT` objects of a kind that meet a condition, live ones first. If there are more, any of them."""
    table, label = kind.table, kind.label or kind.table.id
    matching, is_live = select(table.__table__).where(which), table.deleted_by.is_(None)
    # Without an order, the database stops once it has enough matches. If there are few, it reads the table once.
    rows = list(tx.execute(matching.limit(MANY)).mappings())
    if len(rows) == MANY:
        rows = list(tx.execute(matching.where(is_live).limit(LIMIT)).mappings())
        rows += tx.execute(matching.where(~is_live).limit(LIMIT - len(rows))).mappings()
    rows.sort(key=lambda row: (row["deleted_by"] is not None, str(row[label.key] or ""), row["id"]))
    yield from _matches(tx, kind, rows[:LIMIT])


def _matches(tx: Connection, kind: Kind, rows: Sequence[RowMapping]) -> Iterator[Match]:
    names = workspace_names(tx, (row.get("organization_id") for row in rows))
    for row in rows:
        named = " ".join(filter(None, (row.get("first_name"), row.get("last_name"))))
        detail = named or names.get(row.get("organization_id") or "") or row.get("external_id")
        label = row[kind.label.key] if kind.label else None
        yield Match(kind.name, row["id"], label, detail, row["deleted_by"] is not None)

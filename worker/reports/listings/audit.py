"""The list of the audit."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Engine, Select, false, select

from models.database import read_transaction
from models.rows import read_rows
from models.tables import Action, Audit, Via
from models.types import Record
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, given, read_page


def list_audit(
    engine: Engine,
    filters: Mapping[str, str | None],
    *,
    since: datetime | None = None,
    after: int | None = None,
    limit: int = 50,
) -> list[Record]:
    """Return actions of operators and settings, newest first; with `since`, only those at or after that time.

    `filters` are `who`, `via`, `action`, `object_id` and `organization_id`. An unknown word matches nothing.
    """
    query = _matching(filters, since).order_by(Audit.id.desc()).limit(limit)
    return read_rows(engine, query if after is None else query.where(Audit.id < after))


def audit_page(
    engine: Engine,
    filters: Mapping[str, str | None],
    place: Place,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page:
    """Return a page of `list_audit` as `with_names`; with `until`, only actions before that time."""
    query = _matching(filters, since)
    if until is not None:
        query = query.where(Audit.at < until)
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, Audit.id, Audit.id, newest_first=True)
        return page._replace(rows=with_names(tx, page.rows))


def _matching(filters: Mapping[str, str | None], since: datetime | None) -> Select[*tuple[object, ...]]:
    words = given(filters)
    query = select(Audit.__table__).filter_by(**words)
    if any(words.get(name) not in (None, *known) for name, known in (("via", Via), ("action", Action))):
        query = select(Audit.__table__).where(false())
    return query if since is None else query.where(Audit.at >= since)

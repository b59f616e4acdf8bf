"""Lists of auto-join: joins and missing members."""

from functools import partial

from sqlalchemy import Connection, Engine, false, select

from models.bulk import is_any_of
from models.database import read_transaction
from models.tables import Join, JoinState
from models.types import Record
from models.views import auto_join_blocks, auto_join_domains, workspaces
from worker.kinds.user import User
from worker.mirror import auto_join_policy
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, read_page


def joins_page(engine: Engine, place: Place, *, state: str | None = None) -> Page:
    """Return a page of joins, newest first, with the person's `email`, as `with_names`. An unknown state has none."""
    key = (Join.organization_id + " " + Join.user_id).label("key")
    query = select(Join.__table__, key)
    if state is not None:
        query = query.where(Join.state == state if state in list(JoinState) else false())
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, Join.created_at, key, newest_first=True)
        of_page = select(User.id, User.email).where(User.id.in_([row["user_id"] for row in page.rows]))
        emails = dict(tx.execute(of_page).all())
        rows = [row | {"email": emails.get(row["user_id"])} for row in page.rows]
        return page._replace(rows=with_names(tx, rows))


def missing_members_page(engine: Engine, place: Place) -> Page:
    """Return a page of `auto_join_policy.missing_members`, sorted by domain, as `with_names`. It has no total."""
    query = auto_join_policy.outside_members()
    person = query.selected_columns
    with read_transaction(engine) as tx:
        only = partial(_eligible, tx)
        page = read_page(tx, query, place, person.domain, person.user_id, counted=False, only=only)
        return page._replace(rows=with_names(tx, page.rows))


def _eligible(tx: Connection, outside: list[Record]) -> list[Record]:
    """Return those of some `auto_join_policy.outside_members` who should have joined."""
    joins, block = auto_join_domains.c, auto_join_blocks.c
    of_domains = is_any_of(tx, joins.domain, {row["domain"] for row in outside})
    found = tx.execute(select(joins.organization_id, joins.domain, joins.default_role).where(of_domains))
    roles = {(organization_id, domain): role for organization_id, domain, role in found}
    joining = [row for row in outside if (row["organization_id"], row["domain"]) in roles]
    of_people = is_any_of(tx, block.user_id, {row["user_id"] for row in joining})
    kept_out = set(map(tuple, tx.execute(select(block.organization_id, block.user_id).where(of_people))))
    return [
        row | {"default_role": roles[row["organization_id"], row["domain"]]}
        for row in joining
        if (row["organization_id"], row["user_id"]) not in kept_out
    ]


def without_admin_page(engine: Engine, place: Place) -> Page:
    """Return a page of `auto_join_policy.without_admin`. It has no total."""
    id = workspaces.c.organization_id
    with read_transaction(engine) as tx:
        return read_page(tx, auto_join_policy.lacking_admin(), place, id, id, counted=False)

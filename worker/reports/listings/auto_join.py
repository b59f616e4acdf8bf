"""Lists of auto-join: joins and missing members."""

from sqlalchemy import Engine, false, select

from models.database import read_transaction
from models.tables import Join, JoinState
from models.views import workspaces
from worker.kinds.user import User
from worker.mirror import auto_join_policy
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, read_page


def joins_page(engine: Engine, place: Place, *, state: str | None = None) -> Page:
    """Return a page of joins, newest first, with the person's `email`, as `with_names`. An unknown state has none."""
    key = (Join.organization_id + " " + Join.user_id).label("key")
    query = select(Join.__table__, User.email, key).outerjoin(User, User.id == Join.user_id)
    if state is not None:
        query = query.where(Join.state == state if state in list(JoinState) else false())
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, Join.created_at, key, newest_first=True)
        return page._replace(rows=with_names(tx, page.rows))


def missing_members_page(engine: Engine, place: Place) -> Page:
    """Return a page of `auto_join_policy.missing_members`, sorted by domain, as `with_names`. It has no total."""
    query = auto_join_policy.eligible_members()
    found = query.selected_columns
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, found.domain, found.user_id, counted=False)
        return page._replace(rows=with_names(tx, page.rows))


def without_admin_page(engine: Engine, place: Place) -> Page:
    """Return a page of `auto_join_policy.without_admin`. It has no total."""
    id = workspaces.c.organization_id
    with read_transaction(engine) as tx:
        return read_page(tx, auto_join_policy.lacking_admin(), place, id, id, counted=False)

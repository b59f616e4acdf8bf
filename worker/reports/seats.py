"""Members per workspace, for billing."""

from datetime import datetime

from sqlalchemy import Engine, func, select

from models.database import read_transaction
from models.rows import all_rows
from models.types import Record
from models.views import seats
from worker.kinds.organization import ORGANIZATION
from worker.reports.past import members, moment_of, states

COLUMNS = tuple(seats.columns.keys())


def list_seats(engine: Engine, at: datetime | None = None) -> list[Record]:
    """Return the rows of the view `seats`, sorted by workspace; with `at`, an aware time, as the mirror had them then.

    Raises:
        FutureTimeError: `at` has not come yet.
        NotKeptError: `at` is too long ago.
    """
    with read_transaction(engine) as tx:
        if at is None:
            return all_rows(tx, select(seats).order_by(seats.c.organization_id))
        moment = moment_of(tx, at)
        view = members(tx, moment)
        counts = select(view.c.organization_id, func.count().label("seats")).group_by(view.c.organization_id).subquery()
        workspace = states(ORGANIZATION, moment, name="workspaces")
        own = (workspace.c.name.label("workspace_name"), workspace.c.stripe_customer_id, workspace.c.external_id)
        query = select(workspace.c.id.label("organization_id"), *own, func.coalesce(counts.c.seats, 0).label("seats"))
        joined = query.outerjoin_from(workspace, counts, counts.c.organization_id == workspace.c.id)
        return all_rows(tx, joined.where(workspace.c.deleted_by.is_(None)).order_by(workspace.c.id))

"""The list of changes that a hook has not accepted."""

from sqlalchemy import Engine, false, select

from models.database import read_transaction
from models.tables import Change, DeliveryStatus, HookDelivery
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, read_page


def deliveries_page(
    engine: Engine, hook: str, place: Place, *, status: str | None = None, fingerprint: str | None = None
) -> Page:
    """Return a page of the undelivered changes of a hook, oldest first, as `with_names`. An unknown status has none."""
    query = select(HookDelivery.__table__, Change.organization_id)
    query = query.outerjoin(Change, Change.id == HookDelivery.change_id).where(HookDelivery.hook == hook)
    if status is not None:
        query = query.where(HookDelivery.status == status if status in list(DeliveryStatus) else false())
    if fingerprint is not None:
        query = query.where(HookDelivery.fingerprint == fingerprint)
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, HookDelivery.change_id, HookDelivery.change_id)
        return page._replace(rows=with_names(tx, page.rows))

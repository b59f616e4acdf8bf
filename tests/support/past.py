"""The mirror at an earlier time."""

from sqlalchemy import Engine, select

from models.database import read_transaction
from models.rows import all_rows
from tests.support import JSON, NOON
from worker.reports.past import Moment, members


def members_at(engine: Engine, change_id: int) -> list[JSON]:
    """Everyone who had access after a change, by membership id."""
    with read_transaction(engine) as tx:
        view = members(tx, Moment(NOON, change_id))
        return all_rows(tx, select(view).order_by(view.c.membership_id))

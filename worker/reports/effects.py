"""The effect of an action that waits for an operator, in numbers of people."""

from typing import NamedTuple

from sqlalchemy import Engine, Select, func, or_, select

from models.database import read_transaction
from models.tables import Drift, DriftAction
from models.views import workspace_members
from worker.kinds import Kind
from worker.kinds.membership import MEMBERSHIP
from worker.kinds.organization import ORGANIZATION
from worker.kinds.user import USER


class AccessLoss(NamedTuple):
    """How many people would lose access to a workspace, of how many who have access to any."""

    losing: int
    members: int


def of_deletions(engine: Engine, run_id: str) -> AccessLoss:
    """Return what the deletions that a resync withholds would change now."""

    def withheld(kind: Kind) -> Select[str]:
        of_run = (Drift.run_id == run_id, Drift.action == DriftAction.WITHHELD)
        return select(Drift.object_id).where(*of_run, Drift.kind == kind.name)

    view = workspace_members.c
    people = select(func.count(view.user_id.distinct()))
    lost = or_(
        view.organization_id.in_(withheld(ORGANIZATION)),
        view.user_id.in_(withheld(USER)),
        view.membership_id.in_(withheld(MEMBERSHIP)),
    )
    with read_transaction(engine) as tx:
        return AccessLoss(tx.execute(people.where(lost)).scalar_one(), tx.execute(people).scalar_one())

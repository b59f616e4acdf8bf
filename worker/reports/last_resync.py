"""The last full resync: when it ended, how, and what it found."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy import ColumnElement, Engine, ScalarSelect, Select, exists, func, select

from models.database import read_transaction
from models.tables import Drift, DriftAction, Run, RunStatus, Task
from models.types import db_now
from worker.kinds import KINDS, Kind

_FULL = (Run.task == Task.RESYNC, Run.organization_id.is_(None), ~Run.dry_run)
"""A full resync, or one that only carries out deletions that a full one withheld."""


@dataclass(frozen=True, slots=True)
class Resync:
    """The last full resync that finished or failed."""

    id: str
    status: str
    error: str | None
    seconds: float
    age_seconds: float
    drift: dict[tuple[str, str], int] | None
    """Number of differences by kind and finding; None if it failed, because it did not compare everything."""
    withheld: int
    """Deletions that wait for approval."""


def last_resync(engine: Engine) -> Resync | None:
    """Return the last full resync that ended; None if none did."""
    ended = select(Run.__table__, db_now().label("now")).where(*_FULL, Run.status != RunStatus.RUNNING)
    latest = ended.where(Run.approves.is_(None)).order_by(Run.finished_at.desc(), Run.id).limit(1)
    with read_transaction(engine) as tx:
        last = tx.execute(latest).one_or_none()
    if last is None:
        return None
    numbers = _differences(engine, last.id)
    drift = Counter[tuple[str, str]]()
    for (kind, finding, _), number in numbers.items():
        drift[kind, finding] += number
    approved = exists().where(*_FULL, Run.status == RunStatus.DONE, Run.approves == last.id)
    withheld = (Drift.run_id == last.id, Drift.action == DriftAction.WITHHELD, ~approved)
    kinds = [kind for kind in KINDS.values() if (kind.name, DriftAction.WITHHELD) in {(k, a) for k, _, a in numbers}]
    live = list[int]()
    if kinds:
        with read_transaction(engine) as tx:
            live = [tx.execute(_live(kind, withheld)).scalar_one() for kind in kinds]
    return Resync(
        id=last.id,
        status=last.status,
        error=last.error,
        seconds=(last.finished_at - last.created_at).total_seconds(),
        age_seconds=(last.now - last.finished_at).total_seconds(),
        drift=dict(drift) if last.status == RunStatus.DONE else None,
        withheld=sum(live),
    )


@lru_cache(maxsize=4)
def _differences(engine: Engine, run_id: str) -> Mapping[tuple[str, str, str], int]:
    """Return the number of differences of a run that ended, by kind, finding and action: they no longer change."""
    group = (Drift.kind, Drift.finding, Drift.action)
    with read_transaction(engine) as tx:
        found = tx.execute(select(*group, func.count()).where(Drift.run_id == run_id).group_by(*group))
        return {(kind, finding, action): number for kind, finding, action, number in found}


def _live(kind: Kind, which: Iterable[ColumnElement[bool]]) -> Select[int]:
    """Return the query that counts objects of a kind in rows of `drift` that are still live.

    An event may have deleted the others.
    """
    live = exists().where(kind.table.id == Drift.object_id, kind.table.deleted_by.is_(None))
    return select(func.count()).select_from(Drift).where(Drift.kind == kind.name, live, *which)


def last_success_at() -> ScalarSelect[datetime | None]:
    """Return the query for when the last successful full resync finished."""
    done = (*_FULL, Run.status == RunStatus.DONE, Run.approves.is_(None))
    return select(func.max(Run.finished_at)).where(*done).scalar_subquery()

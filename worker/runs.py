"""Long works: one of a kind at a time, under a lease with heartbeat and fencing number, resumed where they stopped."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, false, func, insert, or_, select, update

from models.database import in_transaction, read_transaction
from models.tables import Mirror, Run, RunStatus, Task
from models.types import db_now, db_now_plus
from worker.errors import BusyError, LeaseLostError

log = structlog.get_logger()

LEASE_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
FOLLOW_SECONDS = 0.25


def unfinished_run(tx: Connection, task: Task, **scope: Any) -> str | None:
    """Return the id of a run of exactly this scope that was left unfinished and that nobody works on, if any."""
    unheld = or_(Run.leased_until.is_(None), Run.leased_until < db_now())
    query = select(Run.id).where(Run.task == task, Run.status == RunStatus.RUNNING, unheld).filter_by(**scope)
    return tx.execute(query).scalars().first()


def create(tx: Connection, /, task: Task, requested_by: str, **values: Any) -> str:
    """Insert a run and return its id.

    Raises:
        BusyError: one of this task is in progress, of the same workspace or also of everything.
    """
    tx.execute(select(Mirror.id).with_for_update())  # one creator at a time
    scope = values.get("organization_id")
    running = select(Run.id).where(Run.task == task, Run.status == RunStatus.RUNNING)
    running = running.where(Run.organization_id == scope if scope else Run.organization_id.is_(None))
    if (other := tx.execute(running).scalars().first()) is not None:
        raise BusyError(f"a {task.replace('_', '-')} is already running: run {other}")
    id = uuid.uuid4().hex[:12]
    tx.execute(insert(Run).values({"id": id, "task": task, "requested_by": requested_by, "phase": "", **values}))
    return id


def unheld_runs(engine: Engine, *tasks: Task) -> list[str]:
    """Return the ids of runs that nobody works on, oldest first; of these tasks, if any are named."""
    unheld = or_(Run.leased_until.is_(None), Run.leased_until < db_now())
    with read_transaction(engine) as tx:
        query = select(Run.id).where(Run.status == RunStatus.RUNNING, unheld).order_by(Run.created_at)
        return list(tx.execute(query.where(Run.task.in_(tasks)) if tasks else query).scalars())


def wait_for_run(engine: Engine, run_id: str, stopping: Callable[[float], bool]) -> bool:
    """Wait while another worker has a run; return whether it is over. `stopping` waits, and says whether to give up."""
    query = select(Run.status, func.coalesce(Run.leased_until > db_now(), false())).where(Run.id == run_id)
    while True:
        with read_transaction(engine) as tx:
            status, held = tx.execute(query).one()
        if status != RunStatus.RUNNING or not held or stopping(FOLLOW_SECONDS):
            return bool(status != RunStatus.RUNNING)


class Lease:
    """The right to work on a run, until another takes it over."""

    def __init__(self, run_id: str, fence: int) -> None:
        self.run_id = run_id
        self.fence = fence
        self.lost = threading.Event()

    def check(self, tx: Connection) -> None:
        """Hold the run's row to the end of `tx`; raises `LeaseLostError` if the run is another's or over."""
        ours = (Run.id == self.run_id) & (Run.fence == self.fence) & (Run.status == RunStatus.RUNNING)
        # The weakest lock: it keeps out who takes the run over, and not the heartbeat, which many pages in a row
        # under a stronger one would starve.
        held = select(Run.id).where(ours).with_for_update(read=True, key_share=True)
        if tx.execute(held).one_or_none() is None:
            self.lost.set()
            raise LeaseLostError(self.run_id)


@contextmanager
def lease(engine: Engine, run_id: str) -> Iterator[Lease | None]:
    """Yield the lease of a run and keep it alive; None if another worker holds it or the run is over."""
    held = in_transaction(engine, _take, run_id)
    if held is None:
        yield None
        return
    over = threading.Event()
    heart = threading.Thread(target=_beat, args=(engine, held, over), daemon=True, name="lease")
    heart.start()
    try:
        yield held
    finally:
        over.set()
        heart.join()
        in_transaction(engine, _release, held)


def _take(tx: Connection, run_id: str) -> Lease | None:
    # Waits for pages that are being written under the older number.
    tx.execute(select(Run.id).where(Run.id == run_id).with_for_update())
    unheld = or_(Run.leased_until.is_(None), Run.leased_until < db_now())
    taken = tx.execute(
        update(Run)
        .where(Run.id == run_id, Run.status == RunStatus.RUNNING, unheld)
        .values(fence=Run.fence + 1, leased_until=db_now_plus(LEASE_SECONDS))
        .returning(Run.fence)
    ).scalar_one_or_none()
    return None if taken is None else Lease(run_id, taken)


def _ours(held: Lease) -> Any:
    return (Run.id == held.run_id) & (Run.fence == held.fence)


def _release(tx: Connection, held: Lease) -> None:
    tx.execute(update(Run).where(_ours(held)).values(leased_until=None))


def _beat(engine: Engine, held: Lease, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT_SECONDS):
        try:
            kept = in_transaction(engine, _extend, held)
        except Exception as error:  # noqa: BLE001 - the lease then runs out by itself, which is what should happen
            log.warning("heartbeat_failed", run=held.run_id, error=type(error).__name__)
            continue
        if not kept:
            held.lost.set()
            return


def _extend(tx: Connection, held: Lease) -> bool:
    extended = update(Run).where(_ours(held)).values(leased_until=db_now_plus(LEASE_SECONDS)).returning(Run.id)
    return tx.execute(extended).one_or_none() is not None


def finish(tx: Connection, held: Lease, status: RunStatus, error: str | None = None) -> None:
    """Note how a run ended; raises `LeaseLostError` as `Lease.check`."""
    held.check(tx)
    tx.execute(update(Run).where(_ours(held)).values(status=status, finished_at=db_now(), error=error))

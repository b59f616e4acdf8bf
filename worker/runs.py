"""Runs: long-running jobs, one of a kind at a time. Each has a lease, and resumes where it stopped."""

import uuid
from collections.abc import Callable

from sqlalchemy import Connection, Engine, insert, select, update

from models.database import read_transaction
from models.tables import MirrorState, Phase, Run, RunStatus, Task
from models.types import JsonObject, db_now
from worker.errors import BusyError
from worker.leases import Lease, LeasedTable

POLL_SECONDS = 0.25

RUNS = LeasedTable(Run.id, Run.leased_until, Run.fence, open=Run.status == RunStatus.RUNNING)
lease = RUNS.lease


def create(tx: Connection, /, task: Task, requested_by: str, **values: str | bool | int | JsonObject | None) -> str:
    """Insert a run and return its id. `values` are further columns, such as `organization_id`: only this workspace.

    Raises:
        BusyError: a run of this task is in progress for the same workspace, or for all if none is given.
    """
    tx.execute(select(MirrorState.id).with_for_update())  # one creator at a time
    running = select(Run.id).where(Run.task == task, Run.status == RunStatus.RUNNING)
    running = running.where(Run.organization_id == values.get("organization_id"))  # IS NULL for None
    if (other := tx.execute(running).scalars().first()) is not None:
        raise BusyError(f"a {task.replace('_', '-')} is already running: run {other}")
    id = uuid.uuid4().hex[:12]
    row = {"id": id, "task": task, "requested_by": requested_by, "phase": Phase.NONE, **values}
    tx.execute(insert(Run).values(row))
    return id


def unheld_runs(engine: Engine, *tasks: Task) -> list[str]:
    """Return the ids of unfinished runs that no worker holds, oldest first; only of `tasks`, if any are given."""
    query = select(Run.id).where(RUNS.is_free()).order_by(Run.created_at)
    with read_transaction(engine) as tx:
        return list(tx.execute(query.where(Run.task.in_(tasks)) if tasks else query).scalars())


def wait_for_run(engine: Engine, run_id: str, stopping: Callable[[float], bool]) -> bool:
    """Wait while another worker holds a run; return whether the run has ended.

    `stopping` waits the given number of seconds and returns whether to stop waiting.
    """
    query = select(Run.status, RUNS.is_free()).where(Run.id == run_id)
    while True:
        with read_transaction(engine) as tx:
            status, free = tx.execute(query).one()
        if status != RunStatus.RUNNING or free or stopping(POLL_SECONDS):
            return bool(status != RunStatus.RUNNING)


def finish(tx: Connection, lease: Lease, status: RunStatus, error: str | None = None) -> None:
    """Record how a run ended; raise `LeaseLostError` if another worker holds it now."""
    lease.check(tx)
    ended = {"status": status, "finished_at": db_now(), "error": error}
    tx.execute(update(Run).where(Run.id == lease.key).values(ended))

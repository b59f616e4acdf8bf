"""What operators read: events, members, status. Times are aware and in UTC."""

import json
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import Engine, RowMapping, exists, func, select

from models.database import reading
from models.tables import Change, Drift, Event, Run, RunStatus, Task
from models.views import mirror_status, workspace_members, workspaces
from worker.catch_up import gaps
from worker.doorbell import queue_name
from worker.inbox import backlog
from worker.jobs import DRAIN

OVERDUE_SECONDS = 60.0
"""A healthy mirror applies an event within seconds."""

LISTED = (
    Event.id,
    Event.type,
    Event.status,
    Event.outcome,
    Event.object_id,
    Event.organization_id,
    Event.received_at,
    Event.deliveries,
    Event.attempts,
    Event.error,
)


def list_events(
    engine: Engine,
    *,
    status: str | None = None,
    type: str | None = None,
    organization_id: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Return the newest events that match all the filters given, newest first."""
    query = select(*LISTED).order_by(Event.received_at.desc(), Event.id.desc()).limit(limit)
    for column, value in ((Event.status, status), (Event.type, type), (Event.organization_id, organization_id)):
        if value is not None:
            query = query.where(column == value)
    with reading(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def show_event(engine: Engine, event_id: str) -> dict[str, Any] | None:
    """Return all that is known of one event, its payload and what it changed; None if the id is unknown."""
    with reading(engine) as tx:
        row = tx.execute(select(Event.__table__).where(Event.id == event_id)).mappings().one_or_none()
        if row is None:
            return None
        changes = tx.execute(
            select(Change.__table__)
            .where(Change.object_id == row["object_id"], Change.cause == "event", Change.cause_id == event_id)
            .order_by(Change.id)
        ).mappings()
        return {**row, "body": _payload(row), "changes": [dict(change) for change in changes]}


def _payload(row: RowMapping) -> Any:
    if row["body"] is None:
        return None
    try:
        return json.loads(row["body"])
    except ValueError:
        return row["body"].decode("utf-8", "replace")


def list_members(engine: Engine, organization_id: str) -> dict[str, Any] | None:
    """Return a workspace and the people who have access to it now; None if the workspace is unknown."""
    with reading(engine) as tx:
        workspace = (
            tx.execute(select(workspaces).where(workspaces.c.organization_id == organization_id))
            .mappings()
            .one_or_none()
        )
        if workspace is None:
            return None
        members = tx.execute(
            select(workspace_members)
            .where(workspace_members.c.organization_id == organization_id)
            .order_by(workspace_members.c.email, workspace_members.c.user_id)
        ).mappings()
        return {**workspace, "members": [dict(member) for member in members]}


def status(engine: Engine, redis: Redis, gap_seconds: float) -> dict[str, Any]:
    """Return how things stand; `problems` lists what is wrong, each with its remedy, and is empty if all is well.

    Args:
        engine: the database.
        redis: with a short time-out.
        gap_seconds: an event that no webhook brought for so long is a gap.
    """
    waiting = backlog(engine)
    missed, late = gaps(engine, gap_seconds)
    withholding = _withholding(engine)
    with reading(engine) as tx:
        mirror = tx.execute(select(mirror_status)).mappings().one()
    workers = _workers(redis)
    problems = []
    if workers is None:
        problems.append(
            "Redis does not answer: start it, or check REDIS_URL (the embedded one: start clock); events are kept"
        )
    elif workers == 0:
        problems.append("no worker is running: start workos-sync worker")
    if waiting.failed:
        problems.append(f"{waiting.failed} events failed: workos-sync events list --status failed")
    if waiting.oldest_seconds > OVERDUE_SECONDS:
        problems.append(f"the oldest pending event waits for {waiting.oldest_seconds:.0f} s: check worker and clock")
    if withholding is not None:
        remedy = f"look at them, then: workos-sync resync --approve {withholding}"
        problems.append(f"resync {withholding} withholds deletions: {remedy}")
    return {
        "mirror": dict(mirror),
        "pending": waiting.pending,
        "oldest_pending_seconds": round(waiting.oldest_seconds, 3),
        "failed": waiting.failed,
        "gaps": missed,
        "late": late,
        "workers": workers,
        "problems": problems,
    }


def _withholding(engine: Engine) -> str | None:
    """Return the last full resync if it withholds deletions that no one has approved."""
    full = (Run.task == Task.RESYNC, Run.status == RunStatus.DONE, Run.organization_id.is_(None), ~Run.dry_run)
    last = select(Run.id).where(*full, Run.approves.is_(None)).order_by(Run.finished_at.desc(), Run.id).limit(1)
    with reading(engine) as tx:
        run_id = tx.execute(last).scalar_one_or_none()
        approved = exists().where(*full, Run.approves == run_id)
        held = exists().where(Drift.run_id == run_id, Drift.action == "withheld")
        return run_id if tx.execute(select(held & ~approved)).scalar_one() else None


def _workers(redis: Redis) -> int | None:
    try:
        lane = Queue(queue_name(DRAIN), connection=redis, serializer=JSONSerializer)
        return len(SimpleWorker.all(queue=lane))
    except RedisError:
        return None


def as_json(value: Any) -> str:
    """Return a report as indented JSON, times as ISO 8601 text in UTC."""
    return json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))


def run(engine: Engine, run_id: str) -> dict[str, Any]:
    """Return a run with its findings counted and the number of deletions it withholds."""
    with reading(engine) as tx:
        row = tx.execute(select(Run.__table__).where(Run.id == run_id)).mappings().one()
        counted = select(Drift.finding, func.count()).where(Drift.run_id == run_id).group_by(Drift.finding)
        held = select(func.count()).select_from(Drift).where(Drift.run_id == run_id, Drift.action == "withheld")
        findings = {str(finding): number for finding, number in tx.execute(counted)}
        return {**row, "findings": findings, "withheld": tx.execute(held).scalar_one()}


def drift(engine: Engine, run_id: str) -> list[dict[str, Any]]:
    """Return what a run found different, by kind and id."""
    with reading(engine) as tx:
        query = select(Drift.__table__).where(Drift.run_id == run_id).order_by(Drift.kind, Drift.object_id)
        return [dict(row) for row in tx.execute(query).mappings()]

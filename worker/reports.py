"""What operators read: events, members, status. Times are aware and in UTC."""

import json
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import Engine, RowMapping, select

from models.database import reading
from models.tables import Change, Event
from models.views import mirror_status, workspace_members, workspaces
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


def status(engine: Engine, redis: Redis) -> dict[str, Any]:
    """Return how things stand; `problems` lists what is wrong, each with its remedy, and is empty if all is well."""
    waiting = backlog(engine)
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
    return {
        "mirror": dict(mirror),
        "pending": waiting.pending,
        "oldest_pending_seconds": round(waiting.oldest_seconds, 3),
        "failed": waiting.failed,
        "workers": workers,
        "problems": problems,
    }


def _workers(redis: Redis) -> int | None:
    try:
        lane = Queue(queue_name(DRAIN), connection=redis, serializer=JSONSerializer)
        return len(SimpleWorker.all(queue=lane))
    except RedisError:
        return None


def as_json(value: Any) -> str:
    """Return a report as indented JSON, times as ISO 8601 text in UTC."""
    return json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))

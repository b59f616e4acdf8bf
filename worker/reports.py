"""What operators read: events, members, status. Times are aware and in UTC."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import Connection, Engine, RowMapping, exists, func, select

from models.database import reading
from models.tables import Change, Drift, Event, EventStatus, Membership, Mirror, Run, RunStatus, Task
from models.views import mirror_status, workspace_members, workspaces
from worker.catch_up import gaps
from worker.doorbell import queue_name
from worker.inbox import Backlog, backlog
from worker.jobs import DRAIN

OVERDUE_SECONDS = 60.0
"""A healthy mirror applies an event within seconds."""

STEP = 500
"""Rows of a report read at once."""

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


def failures(engine: Engine) -> list[dict[str, Any]]:
    """Return the failed events by the fingerprint of their error, most first, with an example of each."""
    number = func.count()
    shown = (Event.fingerprint, number.label("events"), func.min(Event.type).label("type"))
    times = (func.min(Event.received_at).label("first"), func.max(Event.received_at).label("last"))
    example = (func.min(Event.id).label("example"), func.min(Event.error).label("error"))
    failed = select(*shown, *times, *example).where(Event.status == EventStatus.FAILED)
    with reading(engine) as tx:
        found = tx.execute(failed.group_by(Event.fingerprint).order_by(number.desc(), Event.fingerprint))
        return [dict(row) for row in found.mappings()]


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


def status(engine: Engine, redis: Redis, gap_seconds: float, *, repairs: bool) -> dict[str, Any]:
    """Return how things stand; `problems` lists what is wrong, each with its remedy, and is empty if all is well.

    Args:
        engine: the database.
        redis: with a short time-out.
        gap_seconds: an event that no webhook brought for so long is a gap.
        repairs: whether WorkOS's API can be asked.
    """
    waiting = backlog(engine)
    missed, late = gaps(engine, gap_seconds)
    with reading(engine) as tx:
        mirror = tx.execute(select(mirror_status)).mappings().one()
        unmapped = _unmapped(tx)
        repair_problems = _repair_problems(tx) if repairs else []
        runs = tx.execute(select(Run.__table__).where(Run.status == RunStatus.RUNNING).order_by(Run.created_at)).all()
    if repairs and mirror["state"] == "backfilling" and not runs:
        repair_problems.append("the mirror was never filled: start workos-sync clock and worker")
    workers = _workers(redis)
    return {
        "mirror": dict(mirror),
        "pending": waiting.pending,
        "oldest_pending_seconds": round(waiting.oldest_seconds, 3),
        "failed": waiting.failed,
        "gaps": missed,
        "late": late,
        "unmapped_roles": [f"{slug}: {number} memberships" for slug, number in unmapped],
        "repair": "on" if repairs else "off: WORKOS_API_KEY is not set",
        "runs": [f"{run.task} {run.id}, {run.phase}, of {run.requested_by}" for run in runs],
        "workers": workers,
        "problems": _inbox_problems(waiting, workers) + repair_problems,
    }


def _inbox_problems(waiting: Backlog, workers: int | None) -> list[str]:
    problems = []
    if workers is None:
        problems.append(
            "Redis does not answer: start it, or check REDIS_URL (the embedded one: start clock); events are kept"
        )
    elif workers == 0:
        problems.append("no worker is running: start workos-sync worker")
    if waiting.failed:
        problems.append(f"{waiting.failed} events failed: workos-sync events failures")
    if waiting.oldest_seconds > OVERDUE_SECONDS:
        problems.append(f"the oldest pending event waits for {waiting.oldest_seconds:.0f} s: check worker and clock")
    return problems


def _repair_problems(tx: Connection) -> list[str]:
    """Return what is wrong with the last full resync that ended."""
    full = (Run.task == Task.RESYNC, Run.organization_id.is_(None), ~Run.dry_run)
    ended = (*full, Run.status != RunStatus.RUNNING, Run.approves.is_(None))
    last = tx.execute(
        select(Run.__table__).where(*ended).order_by(Run.finished_at.desc(), Run.id).limit(1)
    ).one_or_none()
    if last is None:
        return []
    if last.status == RunStatus.FAILED:
        return [f"resync {last.id} failed: {last.error}"]
    approved = exists().where(*full, Run.status == RunStatus.DONE, Run.approves == last.id)
    held = exists().where(Drift.run_id == last.id, Drift.action == "withheld")
    if not tx.execute(select(held & ~approved)).scalar_one():
        return []
    return [f"resync {last.id} withholds deletions: look at them, then: workos-sync resync --approve {last.id}"]


def _unmapped(tx: Connection) -> list[tuple[str, int]]:
    """Return the role slugs that no ROLE_MAP names, and so count as `member`, with their live memberships."""
    known = tx.execute(select(Mirror.role_map)).scalar_one()
    slug = Membership.workos_role
    used = select(slug, func.count()).where(Membership.deleted_by.is_(None), slug.is_not(None)).group_by(slug)
    return [(str(name), number) for name, number in tx.execute(used.order_by(slug)) if name not in known]


def _workers(redis: Redis) -> int | None:
    try:
        lane = Queue(queue_name(DRAIN), connection=redis, serializer=JSONSerializer)
        return len(SimpleWorker.all(queue=lane))
    except RedisError:
        return None


def as_json(value: Any) -> str:
    """Return a report as indented JSON, times as ISO 8601 text in UTC."""
    return json.dumps(value, indent=2, default=lambda v: v.isoformat() if isinstance(v, datetime) else str(v))


def list_runs(engine: Engine, limit: int = 50) -> list[dict[str, Any]]:
    """Return the newest runs, newest first."""
    query = select(Run.__table__).order_by(Run.created_at.desc(), Run.id).limit(limit)
    with reading(engine) as tx:
        return [dict(row) for row in tx.execute(query).mappings()]


def run(engine: Engine, run_id: str) -> dict[str, Any] | None:
    """Return a run with its findings counted and the number of deletions it withholds; None if the id is unknown."""
    with reading(engine) as tx:
        row = tx.execute(select(Run.__table__).where(Run.id == run_id)).mappings().one_or_none()
        if row is None:
            return None
        counted = select(Drift.finding, func.count()).where(Drift.run_id == run_id).group_by(Drift.finding)
        held = select(func.count()).select_from(Drift).where(Drift.run_id == run_id, Drift.action == "withheld")
        findings = {str(finding): number for finding, number in tx.execute(counted)}
        return {**row, "findings": findings, "withheld": tx.execute(held).scalar_one()}


def drift(engine: Engine, run_id: str, most: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield what a run found different, by kind and id, `most` of it: a first resync finds the whole mirror missing."""
    query = select(Drift.__table__).where(Drift.run_id == run_id).order_by(Drift.kind, Drift.object_id).limit(most)
    with reading(engine) as tx:
        for row in tx.execute(query, execution_options={"yield_per": STEP}).mappings():
            yield dict(row)


def run_as_json(engine: Engine, run_row: dict[str, Any]) -> Iterator[str]:
    """Yield a run of `run` and its `drift` as the pieces of one JSON document."""
    yield as_json(run_row).removesuffix("\n}") + ',\n  "drift": ['
    before = "\n"
    for row in drift(engine, run_row["id"]):
        yield before + as_json(row)
        before = ",\n"
    yield "]\n}\n"

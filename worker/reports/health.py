"""Health of the installation: whether the mirror can be trusted, and what is wrong.

`status`, `doctor`, the pages, the API, metrics and alerts all read `check_health`, so that they never disagree.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import Connection, Engine, Select, SQLColumnExpression, exists, func, literal, select

from models.database import read_transaction
from models.tables import (
    AutoJoin,
    AutoJoinState,
    Drift,
    DriftAction,
    Event,
    EventStatus,
    Join,
    JoinState,
    Mirror,
    Read,
    Run,
    RunStatus,
    Task,
    Tick,
)
from models.types import Record, db_now, inline_literal
from models.views import mirror_status
from worker.bootstrap import lanes_of
from worker.hooks.operate import hook_status
from worker.inbox.store import MAX_COUNTED, backlog
from worker.kinds.membership import Membership
from worker.queue.doorbell import queue_name
from worker.redis_client import require_writable, what_is_wrong
from worker.repair.catch_up import gaps
from worker.repair.schedule import CLOCK_TICK
from worker.reports.rows import all_rows
from worker.settings import Settings

OVERDUE_SECONDS = 60.0
"""A pending event older than this is a problem: a healthy installation applies events within seconds."""
CLOCK_SECONDS = 60.0
"""A heartbeat of the clock older than this is a problem: a running clock writes one every few seconds."""
LATE_RESYNC = 2.0
"""The last full resync is late if it is older than this many times `RESYNC_SECONDS`."""
RECENT_WEBHOOKS = 100
"""Number of recent webhooks from which the usual pause between two is computed."""
MAX_USUAL_PAUSE = timedelta(days=1)
MANY_READS = 5
"""A confirmed read is reported after this many failures, which take about three minutes."""
MIN_MISSED = 3
"""Webhooks count as stopped once the events API has returned this number of events that came without one."""


PROBLEMS = (
    *("redis_away", "no_worker", "no_clock", "failed_events", "overdue"),
    *("never_filled", "resync_failed", "resync_late", "withheld_deletions", "silent"),
)
"""The names of all problems, for metrics and alerts. The mirror cannot be trusted while there is one."""
WARNINGS = ("hook_failed", "hook_missed", "hook_unsupported", "join_undone", "join_failed", "unread_objects")
"""The names of all warnings: an operator must act, but the mirror can be trusted."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane: its queued jobs and the states of its workers. Both are None if Redis is unavailable."""

    name: str
    queued: int | None
    workers: list[str] | None


class Problem(NamedTuple):
    """A problem or warning: a name for machines, and for people a text of the form `problem: remedy`."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Resync:
    """The last full resync that finished or failed."""

    id: str
    status: str
    error: str | None
    seconds: float
    age_seconds: float
    drift: dict[tuple[str, str], int]
    """Number of differences by kind and finding."""
    withheld: int
    """Deletions that wait for approval."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health at one moment. Times are aware, in UTC; durations are in seconds; None means unknown."""

    mirror: Record
    pending: int
    oldest_pending_seconds: float
    failed: int
    failed_by_fingerprint: dict[str, int]
    gaps: int
    late: int
    silent_seconds: float | None
    """Time since the last webhook, if webhooks have stopped: see `_silent_seconds`. None otherwise."""
    last_webhook_at: datetime | None
    webhook_age_seconds: float | None
    unmapped_roles: dict[str, int]
    conflicts: int
    """Number of domain names that more than one workspace has verified."""
    domains: dict[str, int]
    """Number of domains by auto-join state. `invalid`: existing domains that are not valid domain names."""
    joins: dict[str, int]
    """Number of joins by state."""
    missing_joins: int
    """Number of people who should have joined a workspace by domain but are not members, as last counted."""
    without_admin: int
    """Number of workspaces that have members but no admin, as last counted."""
    unread: int
    """Number of objects whose confirmed read, requested by an event, failed `MANY_READS` times or more."""
    first_unread: str | None
    """Kind and id of one of them."""
    hooks: list[Record]
    repairs: bool
    resync: Resync | None
    runs: list[Record]
    clock_age_seconds: float | None
    lanes: list[Lane]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    @property
    def trusted(self) -> bool:
        """Whether the mirror can be trusted: it is filled, and there is no problem."""
        return self.mirror["state"] == "current" and not self.problems

    @property
    def reasons(self) -> list[str]:
        """Why the mirror cannot be trusted; empty if it can."""
        backfilling = "the mirror is not filled yet: the first resync and catch-up have not finished"
        return [backfilling] * (self.mirror["state"] != "current") + [problem.text for problem in self.problems]


def check_health(engine: Engine, redis: Redis, settings: Settings) -> Health:
    """Return the health of the installation; raise `sqlalchemy.exc.DBAPIError` if the database is unavailable.

    `redis` needs a short time-out. An unavailable Redis is reported as a problem.
    """
    inbox = backlog(engine)
    gap_count, late_count = gaps(engine, settings.gap_seconds)
    lanes, redis_error = _lanes(redis, lanes_of(settings))
    hooks = hook_status(engine, settings.http_hooks)
    with read_transaction(engine) as tx:
        now: datetime = tx.execute(select(db_now())).scalar_one()
        mirror = tx.execute(select(Mirror.__table__)).one()
        last_webhook = tx.execute(_webhooks().limit(1)).scalar_one_or_none()
        clock_at = tx.execute(select(Tick.at).where(Tick.name == CLOCK_TICK)).scalar_one_or_none()
        unread = tx.execute(_unread()).all()
        running = select(Run.__table__).where(Run.status == RunStatus.RUNNING).order_by(Run.created_at)
        health = Health(
            mirror=dict(tx.execute(select(mirror_status)).mappings().one()),
            pending=inbox.pending,
            oldest_pending_seconds=round(inbox.oldest_seconds, 3),
            failed=inbox.failed,
            failed_by_fingerprint=_fingerprints(tx) if inbox.failed else {},
            gaps=gap_count,
            late=late_count,
            silent_seconds=_silent_seconds(tx, now, last_webhook, settings.gap_seconds) if settings.repairs else None,
            last_webhook_at=last_webhook,
            webhook_age_seconds=(now - last_webhook).total_seconds() if last_webhook else None,
            unmapped_roles=_unmapped(tx, mirror.role_map),
            conflicts=_conflicts(tx),
            domains=_domains(tx),
            joins=_counted(tx, Join.state, JoinState),
            missing_joins=mirror.missing_joins,
            without_admin=mirror.without_admin,
            unread=len(unread),
            first_unread=f"{unread[0].kind} {unread[0].object_id}" if unread else None,
            hooks=hooks,
            repairs=settings.repairs,
            resync=_last_resync(tx, now),
            runs=all_rows(tx, running),
            clock_age_seconds=(now - clock_at).total_seconds() if clock_at else None,
            lanes=lanes,
        )
    health.problems.extend(_problems(health, settings, redis_error))
    health.warnings.extend(_warnings(health, settings.python_hooks))
    return health


def as_report(health: Health) -> Record:
    """Return the report of `status`: numbers, and texts for an operator."""
    workers = health.lanes[0].workers
    return {
        "mirror": health.mirror,
        "pending": health.pending,
        "oldest_pending_seconds": health.oldest_pending_seconds,
        "failed": health.failed,
        "gaps": health.gaps,
        "late": health.late,
        "silent_seconds": health.silent_seconds,
        "unmapped_roles": [f"{slug}: {number} memberships" for slug, number in health.unmapped_roles.items()],
        "auto_join_conflicts": health.conflicts,
        "domains": [f"{number} {state}" for state, number in sorted(health.domains.items())],
        "joins": [f"{number} {state}" for state, number in sorted(health.joins.items())],
        "missing_joins": health.missing_joins,
        "workspaces_without_admin": health.without_admin,
        "hooks": [f"{row['hook']}: {row['behind']} behind, {row['failed']} failed" for row in health.hooks],
        "repair": "on" if health.repairs else "off: WORKOS_API_KEY is not set",
        "runs": [_describe_run(run) for run in health.runs],
        "workers": None if workers is None else len(workers),
        "problems": [problem.text for problem in health.problems],
        "warnings": [warning.text for warning in health.warnings],
    }


def _describe_run(run: Record) -> str:
    progress = f"{run['done']} of {run['total']}" if run["total"] is not None else run["phase"]
    return ", ".join(filter(None, (f"{run['task']} {run['id']}", progress, f"requested by {run['requested_by']}")))


def _lanes(redis: Redis, names: Iterable[str]) -> tuple[list[Lane], RedisError | None]:
    """Return the lanes, and the error of a Redis that is unavailable or refuses writes: it cannot wake workers."""
    try:
        require_writable(redis)
        return [_lane(redis, name) for name in names], None
    except RedisError as error:
        return [Lane(name, None, None) for name in names], error


def _lane(redis: Redis, name: str) -> Lane:
    queue = Queue(queue_name(name), connection=redis, serializer=JSONSerializer)
    workers = [str(worker.get_state()) for worker in SimpleWorker.all(queue=queue)]
    return Lane(name, queue.count, workers)


def _silent_seconds(tx: Connection, now: datetime, last_webhook: datetime | None, gap_seconds: float) -> float | None:
    """Return the time since the last webhook if webhooks have stopped; None otherwise.

    They have stopped if the events API returned at least `MIN_MISSED` newer events without a webhook, and the pause is
    longer than both `gap_seconds` and the usual pause.
    """
    since = last_webhook or select(Mirror.backfill_from).scalar_subquery()
    only_api = (Event.webhook_at.is_(None), Event.api_at > since, Event.occurred_at > since)
    query = select(Event.api_at).where(*only_api).order_by(Event.api_at).limit(MIN_MISSED)
    missed = list(tx.execute(query).scalars())
    if len(missed) < MIN_MISSED or missed[0] is None:
        return None
    silent = (now - (last_webhook or missed[0])).total_seconds()
    return round(silent, 1) if silent > max(gap_seconds, _usual_pause(tx)) else None


def _webhooks() -> Select[datetime | None]:
    return select(Event.webhook_at).where(Event.webhook_at.is_not(None)).order_by(Event.received_at.desc())


def _usual_pause(tx: Connection) -> float:
    """Return the longest pause between recent webhooks in seconds, at most a day."""
    times = sorted(at for at in tx.execute(_webhooks().limit(RECENT_WEBHOOKS)).scalars() if at)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    return min(max(pauses, default=timedelta()), MAX_USUAL_PAUSE).total_seconds()


def _fingerprints(tx: Connection) -> dict[str, int]:
    failed = select(Event.fingerprint, func.count()).where(Event.status == inline_literal(EventStatus.FAILED))
    return {str(name): number for name, number in tx.execute(failed.group_by(Event.fingerprint))}


def _unmapped(tx: Connection, role_map: dict[str, str]) -> dict[str, int]:
    """Return the role slugs that are not in `role_map`, and so count as `member`, with their number of memberships."""
    slug, live = Membership.workos_role, Membership.deleted_by.is_(None)
    # A recursive query steps from slug to slug by the index, so that memberships with mapped roles are never scanned.
    used = select(func.min(slug).label("slug")).where(live).cte(recursive=True)
    following = select(func.min(slug)).where(live, slug > used.c.slug).scalar_subquery()
    used = used.union_all(select(following).where(used.c.slug.is_not(None)))
    slugs = tx.execute(select(used.c.slug).where(used.c.slug.is_not(None))).scalars().all()
    number = select(func.count()).where(live)
    return {name: tx.execute(number.where(slug == name)).scalar_one() for name in slugs if name not in role_map}


def _conflicts(tx: Connection) -> int:
    conflicted = select(func.count(AutoJoin.domain.distinct())).where(AutoJoin.state == AutoJoinState.CONFLICTED)
    return tx.execute(conflicted).scalar_one()


def _domains(tx: Connection) -> dict[str, int]:
    invalid = select(func.count()).where(AutoJoin.domain.is_(None), AutoJoin.state != AutoJoinState.REVOKED)
    return _counted(tx, AutoJoin.state, AutoJoinState) | {"invalid": tx.execute(invalid).scalar_one()}


def _unread() -> Select[str, str]:
    failing = select(Read.kind, Read.object_id).where(Read.run_id == "", Read.attempts >= MANY_READS)
    return failing.order_by(Read.attempts.desc(), Read.kind, Read.object_id).limit(MAX_COUNTED)


def _counted(tx: Connection, column: SQLColumnExpression[str], values: Iterable[str]) -> dict[str, int]:
    """Return the number of rows with each value, at most 10,000 each; values without a row are omitted."""
    found = {}
    for value in values:
        some = select(literal(1)).where(column == value).limit(MAX_COUNTED).subquery()
        found[str(value)] = tx.execute(select(func.count()).select_from(some)).scalar_one()
    return {value: number for value, number in found.items() if number}


def _last_resync(tx: Connection, now: datetime) -> Resync | None:
    full = (Run.task == Task.RESYNC, Run.organization_id.is_(None), ~Run.dry_run)
    ended = select(Run.__table__).where(*full, Run.status != RunStatus.RUNNING, Run.approves.is_(None))
    last = tx.execute(ended.order_by(Run.finished_at.desc(), Run.id).limit(1)).one_or_none()
    if last is None:
        return None
    approved = exists().where(*full, Run.status == RunStatus.DONE, Run.approves == last.id)
    withheld = (Drift.run_id == last.id, Drift.action == DriftAction.WITHHELD, ~approved)
    by_kind = select(Drift.kind, Drift.finding, func.count()).where(Drift.run_id == last.id)
    counted = tx.execute(by_kind.group_by(Drift.kind, Drift.finding))
    return Resync(
        id=last.id,
        status=last.status,
        error=last.error,
        seconds=(last.finished_at - last.created_at).total_seconds(),
        age_seconds=(now - last.finished_at).total_seconds(),
        drift={(kind, finding): number for kind, finding, number in counted},
        withheld=tx.execute(select(func.count(Drift.object_id)).where(*withheld)).scalar_one(),
    )


def _problems(health: Health, settings: Settings, redis_error: RedisError | None) -> Iterator[Problem]:
    idle = [lane.name for lane in health.lanes if not lane.workers]
    if redis_error is not None:
        yield Problem("redis_away", f"Redis {'; '.join(what_is_wrong(redis_error))}")
    elif idle:
        on = "" if len(idle) == len(health.lanes) else f" on {', '.join(idle)}"
        yield Problem("no_worker", f"no worker is running{on}: start workos-sync worker")
    if health.failed:
        events = _number(health.failed, "event", "events")
        yield Problem("failed_events", f"{events} failed: run workos-sync events failures")
    if health.oldest_pending_seconds > OVERDUE_SECONDS:
        waited = f"the oldest pending event has waited for {health.oldest_pending_seconds:.0f} s"
        yield Problem("overdue", f"{waited}: check worker and clock")
    if settings.repairs:
        yield from _repair_problems(health, settings.resync_seconds)
    age = health.clock_age_seconds
    if age is None:
        yield Problem("no_clock", "the clock has never run: start workos-sync clock")
    elif age > CLOCK_SECONDS:
        yield Problem("no_clock", f"the clock has not run for {age:.0f} s: start workos-sync clock")


def _repair_problems(health: Health, resync_seconds: float) -> Iterator[Problem]:
    resync = health.resync
    if health.mirror["state"] == "backfilling" and not health.runs:
        yield Problem("never_filled", "the mirror was never filled: start workos-sync clock and worker")
    if resync and resync.status == RunStatus.FAILED:
        yield Problem("resync_failed", f"resync {resync.id} failed: {resync.error}")
    if resync and resync.withheld:
        approve = f"review them, then run workos-sync resync --approve {resync.id} --reason TEXT"
        yield Problem("withheld_deletions", f"resync {resync.id} withholds deletions: {approve}")
    if resync and resync.age_seconds > LATE_RESYNC * resync_seconds:
        hours = f"{resync.age_seconds / 3600:.0f} h"
        yield Problem("resync_late", f"the last full resync finished {hours} ago: check clock and worker")
    if health.silent_seconds is not None:
        silent = f"no webhook for {health.silent_seconds:.0f} s, although the events API has newer events"
        yield Problem("silent", f"{silent}: run workos-sync doctor; is the endpoint reachable?")


def _warnings(health: Health, python_hooks: Iterable[str]) -> Iterator[Problem]:
    for name in python_hooks:
        text = f"the hook {name} is a Python function and is not called: give it an https:// URL"
        yield Problem("hook_unsupported", text)
    for hook in health.hooks:
        name = hook["hook"]
        if hook["failed"]:
            failed = f"{_number(hook['failed'], 'delivery', 'deliveries')} to the hook {name} failed"
            yield Problem("hook_failed", f"{failed}: run workos-sync hooks failed {name}")
        if hook["error"]:
            yield Problem("hook_missed", f"the hook {name} missed changes: {hook['error']}")
    if health.unread:
        unread = f"{_number(health.unread, 'object', 'objects')} cannot be read from WorkOS"
        example = f"such as {health.first_unread}: run workos-sync explain ID"
        yield Problem("unread_objects", f"{unread}, {example}")
    for state, name, text in (
        (JoinState.UNDONE, "join_undone", "joins were undone because they had reactivated an inactive membership"),
        (JoinState.FAILED, "join_failed", "joins failed"),
    ):
        if number := health.joins.get(state):
            yield Problem(name, f"{number} {text}: run workos-sync auto-join joins --state {state}")


def _number(number: int, singular: str, plural: str) -> str:
    return f"1 {singular}" if number == 1 else f"{number} {plural}"

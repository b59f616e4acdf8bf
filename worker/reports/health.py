"""How things stand: what an operator, an alarm or a product must know before it trusts the mirror."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

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
    Event,
    EventStatus,
    Join,
    JoinState,
    Membership,
    Mirror,
    Read,
    Run,
    RunStatus,
    Task,
    Tick,
)
from models.types import db_now, inline_literal
from models.views import mirror_status
from worker.bootstrap import lanes_of
from worker.hooks.operate import hook_status as hooks_standing
from worker.inbox.store import MAX_COUNTED, Backlog, backlog
from worker.queue.doorbell import queue_name
from worker.redis_client import require_writable, what_is_wrong
from worker.repair.catch_up import gaps
from worker.repair.schedule import CLOCK_TICK
from worker.settings import Settings

OVERDUE_SECONDS = 60.0
"""A healthy mirror applies an event within seconds."""
CLOCK_SECONDS = 60.0
"""A clock that lives says so every few seconds."""
LATE_RESYNC = 2.0
"""A resync this many times its period ago is late."""
PAUSES = 100
"""Webhooks looked at for the usual pause between two."""
MAX_USUAL_PAUSE = timedelta(days=1)
MANY_READS = 5
"""A confirmed read that failed this many times, over some three minutes, does not fail by chance."""
MIN_MISSED = 3
"""So many events that only the events API brought, in a row, are no accident."""


PROBLEMS = (
    *("redis_away", "no_worker", "no_clock", "failed_events", "overdue"),
    *("never_filled", "resync_failed", "resync_late", "withheld_deletions", "silent"),
)
"""The names of all problems, for metrics and alarms."""
WARNINGS = ("hook_failed", "hook_missed", "hook_unsupported", "join_undone", "join_failed", "unread_objects")
"""The names of all warnings: something is to be done, and the mirror is right all the same."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane of work: jobs queued, and its workers' states. `queued` and `workers` are None with Redis away."""

    name: str
    queued: int | None
    workers: list[str] | None


class Problem(NamedTuple):
    """Something wrong: a short name for machines, and what it is and its remedy for people."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Resync:
    """The last full resync that ended."""

    id: str
    status: str
    error: str | None
    seconds: float
    age_seconds: float
    drift: dict[tuple[str, str], int]
    """(kind, finding) → number."""
    withheld: int
    """Deletions that nobody has approved yet."""


@dataclass(frozen=True, slots=True)
class Health:
    """All of it, as of one look. Times are aware and in UTC, durations in seconds, None where nothing is known."""

    mirror: dict[str, Any]
    pending: int
    oldest_pending_seconds: float
    failed: int
    failed_by_fingerprint: dict[str, int]
    gaps: int
    late: int
    silent_seconds: float | None
    """How long no webhook came, if that is longer than usual while the events API had news."""
    last_webhook_at: datetime | None
    webhook_age_seconds: float | None
    unmapped_roles: dict[str, int]
    conflicts: int
    """Domains that two live workspaces hold verified."""
    domains: dict[str, int]
    """Auto-join state → number of domains; `invalid`: those live ones that are no domain names."""
    joins: dict[str, int]
    """State → number of people made, or to be made, members by their domain."""
    missing_joins: int
    """People who should be in a workspace by their domain and are not, as last counted."""
    without_admin: int
    """Workspaces that have members and no admin, as last counted."""
    unread: int
    """Objects that an event left in doubt and that could not be read from WorkOS after several tries."""
    first_unread: str | None
    """One of them, with its kind."""
    hooks: list[dict[str, Any]]
    repairs: bool
    resync: Resync | None
    runs: list[dict[str, Any]]
    clock_age_seconds: float | None
    lanes: list[Lane]
    problems: list[Problem]
    warnings: list[Problem]

    @property
    def trusted(self) -> bool:
        """Whether the mirror is known to be right."""
        return self.mirror["state"] == "current" and not self.problems

    @property
    def reasons(self) -> list[str]:
        """Return why it is not trusted; empty if it is."""
        backfilling = "the mirror is not filled yet: a full resync and a catch-up must end first"
        return [backfilling] * (self.mirror["state"] != "current") + [problem.text for problem in self.problems]


def check_health(engine: Engine, redis: Redis, settings: Settings) -> Health:
    """Return how things stand.

    Args:
        engine: the database.
        redis: with a short time-out; away is a finding, not an error.
        settings: as loaded.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is away.
    """
    waiting = backlog(engine)
    missed, late = gaps(engine, settings.gap_seconds)
    lanes, redis_error = _lanes(redis, lanes_of(settings))
    followers = hooks_standing(engine, settings.http_hooks)
    with read_transaction(engine) as tx:
        mirror = dict(tx.execute(select(mirror_status)).mappings().one())
        now: datetime = tx.execute(select(db_now())).scalar_one()
        last_webhook = tx.execute(_webhooks().limit(1)).scalar_one_or_none()
        silent = _silent_seconds(tx, now, last_webhook, settings.gap_seconds) if settings.repairs else None
        clock_at = tx.execute(select(Tick.at).where(Tick.name == CLOCK_TICK)).scalar_one_or_none()
        resync = _last_resync(tx, now)
        unread = tx.execute(_unread()).all()
        stock = tx.execute(select(Mirror.missing_joins, Mirror.without_admin)).one()
        running = select(Run.__table__).where(Run.status == RunStatus.RUNNING).order_by(Run.created_at)
        runs = [dict(run) for run in tx.execute(running).mappings()]
        health = Health(
            mirror=mirror,
            pending=waiting.pending,
            oldest_pending_seconds=round(waiting.oldest_seconds, 3),
            failed=waiting.failed,
            failed_by_fingerprint=_fingerprints(tx) if waiting.failed else {},
            gaps=missed,
            late=late,
            silent_seconds=silent,
            last_webhook_at=last_webhook,
            webhook_age_seconds=(now - last_webhook).total_seconds() if last_webhook else None,
            unmapped_roles=_unmapped(tx),
            conflicts=tx.execute(_conflicts()).scalar_one(),
            domains=_domains(tx),
            joins=_counted(tx, Join.state, JoinState),
            missing_joins=stock.missing_joins,
            without_admin=stock.without_admin,
            unread=len(unread),
            first_unread=f"{unread[0].kind} {unread[0].object_id}" if unread else None,
            hooks=followers,
            repairs=settings.repairs,
            resync=resync,
            runs=runs,
            clock_age_seconds=(now - clock_at).total_seconds() if clock_at else None,
            lanes=lanes,
            problems=[],
            warnings=[],
        )
    health.problems.extend(
        [*_inbox_problems(waiting, lanes, redis_error), *_repair_problems(health, settings), *_clock_problems(health)]
    )
    health.warnings.extend(_warnings(health, settings.python_hooks))
    return health


def as_report(health: Health) -> dict[str, Any]:
    """Return what `status` shows: numbers, and words for an operator."""
    shown = {name: getattr(health, name) for name in ("mirror", "pending", "oldest_pending_seconds", "failed", "gaps")}
    workers = health.lanes[0].workers
    return shown | {
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
        "runs": [describe_run(run) for run in health.runs],
        "workers": None if workers is None else len(workers),
        "problems": [problem.text for problem in health.problems],
        "warnings": [warning.text for warning in health.warnings],
    }


def describe_run(run: Mapping[str, Any]) -> str:
    """Return a run under way in a few words."""
    progress = f"{run['done']} of {run['total']}" if run["total"] is not None else run["phase"]
    return ", ".join(filter(None, (f"{run['task']} {run['id']}", progress, f"of {run['requested_by']}")))


def _lanes(redis: Redis, names: Iterable[str]) -> tuple[list[Lane], RedisError | None]:
    """Return the lanes, and why nothing is known of them: a Redis that does not take a write wakes nobody."""
    try:
        require_writable(redis)
        return [_lane(redis, name) for name in names], None
    except RedisError as error:
        return [Lane(name, None, None) for name in names], error


def _lane(redis: Redis, name: str) -> Lane:
    queue = Queue(queue_name(name), connection=redis, serializer=JSONSerializer)
    workers = [str(worker.get_state()) for worker in SimpleWorker.all(queue=queue)]
    return Lane(name, queue.count, workers)


def _silent_seconds(tx: Connection, now: datetime, last_webhook: datetime | None, patience: float) -> float | None:
    """Return how long no webhook came; None if that is usual, or nothing happened that one should have told of."""
    since = last_webhook or select(Mirror.backfill_from).scalar_subquery()
    only_api = (Event.webhook_at.is_(None), Event.api_at > since, Event.occurred_at > since)
    told = select(Event.api_at).where(*only_api).order_by(Event.api_at).limit(MIN_MISSED)
    missed = list(tx.execute(told).scalars())
    if len(missed) < MIN_MISSED or missed[0] is None:
        return None
    silent = (now - (last_webhook or missed[0])).total_seconds()
    return round(silent, 1) if silent > max(patience, _usual_pause(tx)) else None


def _webhooks() -> Select[datetime | None]:
    return select(Event.webhook_at).where(Event.webhook_at.is_not(None)).order_by(Event.received_at.desc())


def _usual_pause(tx: Connection) -> float:
    """Return the longest pause between the last webhooks, at most a day, in seconds."""
    times = sorted(at for at in tx.execute(_webhooks().limit(PAUSES)).scalars() if at)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    return min(max(pauses, default=timedelta()), MAX_USUAL_PAUSE).total_seconds()


def _fingerprints(tx: Connection) -> dict[str, int]:
    failed = select(Event.fingerprint, func.count()).where(Event.status == inline_literal(EventStatus.FAILED))
    return {str(name): number for name, number in tx.execute(failed.group_by(Event.fingerprint))}


def _unmapped(tx: Connection) -> dict[str, int]:
    """Return the role slugs that no ROLE_MAP names, and so count as `member`, with their live memberships."""
    known = tx.execute(select(Mirror.role_map)).scalar_one()
    slug, live = Membership.workos_role, Membership.deleted_by.is_(None)
    # From one slug to the next by the index: the memberships of those that are mapped are never counted.
    used = select(func.min(slug).label("slug")).where(live).cte(recursive=True)
    following = select(func.min(slug)).where(live, slug > used.c.slug).scalar_subquery()
    used = used.union_all(select(following).where(used.c.slug.is_not(None)))
    slugs = tx.execute(select(used.c.slug).where(used.c.slug.is_not(None))).scalars().all()
    return {
        name: tx.execute(select(func.count()).where(live, slug == name)).scalar_one()
        for name in slugs
        if name not in known
    }


def _conflicts() -> Select[int]:
    """Return a query of how many domain names more than one live workspace holds verified."""
    return select(func.count(AutoJoin.domain.distinct())).where(AutoJoin.state == AutoJoinState.CONFLICTED)


def _domains(tx: Connection) -> dict[str, int]:
    invalid = select(func.count()).where(AutoJoin.domain.is_(None), AutoJoin.state != AutoJoinState.REVOKED)
    return _counted(tx, AutoJoin.state, AutoJoinState) | {"invalid": tx.execute(invalid).scalar_one()}


def _unread() -> Select[str, str]:
    failing = select(Read.kind, Read.object_id).where(Read.run_id == "", Read.attempts >= MANY_READS)
    return failing.order_by(Read.attempts.desc(), Read.kind, Read.object_id).limit(MAX_COUNTED)


def _counted(tx: Connection, column: SQLColumnExpression[str], values: Iterable[str]) -> dict[str, int]:
    """Return how many rows hold each value, counted to 10,000; those that none holds are left out."""
    found = {}
    for value in values:
        some = select(literal(1)).where(column == value).limit(MAX_COUNTED).subquery()
        found[str(value)] = tx.execute(select(func.count()).select_from(some)).scalar_one()
    return {value: number for value, number in found.items() if number}


def _last_resync(tx: Connection, now: datetime) -> Resync | None:
    full = (Run.task == Task.RESYNC, Run.organization_id.is_(None), ~Run.dry_run)
    ended = (*full, Run.status != RunStatus.RUNNING, Run.approves.is_(None))
    last = tx.execute(
        select(Run.__table__).where(*ended).order_by(Run.finished_at.desc(), Run.id).limit(1)
    ).one_or_none()
    if last is None:
        return None
    approved = exists().where(*full, Run.status == RunStatus.DONE, Run.approves == last.id)
    of_kind = select(Drift.kind, Drift.finding, func.count()).where(Drift.run_id == last.id)
    held = select(func.count()).select_from(Drift).where(Drift.run_id == last.id, Drift.action == "withheld", ~approved)
    return Resync(
        id=last.id,
        status=last.status,
        error=last.error,
        seconds=(last.finished_at - last.created_at).total_seconds(),
        age_seconds=(now - last.finished_at).total_seconds(),
        drift={
            (kind, finding): number for kind, finding, number in tx.execute(of_kind.group_by(Drift.kind, Drift.finding))
        },
        withheld=tx.execute(held).scalar_one(),
    )


def _inbox_problems(waiting: Backlog, lanes: list[Lane], redis_error: RedisError | None) -> list[Problem]:
    problems = []
    unmanned = [lane.name for lane in lanes if not lane.workers]
    if redis_error is not None:
        problems.append(Problem("redis_away", f"Redis {'; '.join(what_is_wrong(redis_error))}"))
    elif unmanned:
        on = "" if len(unmanned) == len(lanes) else f" on {', '.join(unmanned)}"
        problems.append(Problem("no_worker", f"no worker is running{on}: start workos-sync worker"))
    if waiting.failed:
        problems.append(Problem("failed_events", f"{_events(waiting.failed)} failed: workos-sync events failures"))
    if waiting.oldest_seconds > OVERDUE_SECONDS:
        overdue = f"the oldest pending event waits for {waiting.oldest_seconds:.0f} s: check worker and clock"
        problems.append(Problem("overdue", overdue))
    return problems


def _events(number: int) -> str:
    return "1 event" if number == 1 else f"{number} events"


def _repair_problems(health: Health, settings: Settings) -> list[Problem]:
    if not settings.repairs:
        return []
    problems, resync = [], health.resync
    if health.mirror["state"] == "backfilling" and not health.runs:
        problems.append(Problem("never_filled", "the mirror was never filled: start workos-sync clock and worker"))
    if resync and resync.status == RunStatus.FAILED:
        problems.append(Problem("resync_failed", f"resync {resync.id} failed: {resync.error}"))
    if resync and resync.withheld:
        approve = f"workos-sync resync --approve {resync.id}"
        text = f"resync {resync.id} withholds deletions: look at them, then: {approve}"
        problems.append(Problem("withheld_deletions", text))
    if resync and resync.age_seconds > LATE_RESYNC * settings.resync_seconds:
        late = f"the last full resync ended {resync.age_seconds / 3600:.0f} h ago: check clock and worker"
        problems.append(Problem("resync_late", late))
    if health.silent_seconds is not None:
        silent = f"no webhook came for {health.silent_seconds:.0f} s, while the events API had news: is the endpoint"
        problems.append(Problem("silent", f"{silent} registered, enabled and reachable? workos-sync doctor"))
    return problems


def _warnings(health: Health, python_hooks: Sequence[str]) -> list[Problem]:
    warnings = [
        Problem("hook_unsupported", f"HOOKS: {name} is a Python function and is not called: give it an https:// URL")
        for name in python_hooks
    ]
    for hook in health.hooks:
        if hook["failed"]:
            text = (
                f"the hook {hook['hook']} failed at {hook['failed']} changes: workos-sync hooks failed {hook['hook']}"
            )
            warnings.append(Problem("hook_failed", text))
        if hook["error"]:
            warnings.append(Problem("hook_missed", f"the hook {hook['hook']} missed changes: {hook['error']}"))
    words = {
        JoinState.UNDONE: ("join_undone", "people were deactivated again whom a join had activated"),
        JoinState.FAILED: ("join_failed", "people could not be made members by their domain"),
    }
    if health.unread:
        objects = "1 object" if health.unread == 1 else f"{health.unread} objects"
        text = f"{objects} cannot be read from WorkOS, such as {health.first_unread}: workos-sync explain with its id"
        warnings.append(Problem("unread_objects", text))
    for state, (name, text) in words.items():
        if number := health.joins.get(state):
            warnings.append(Problem(name, f"{number} {text}: workos-sync auto-join joins --state {state}"))
    return warnings


def _clock_problems(health: Health) -> list[Problem]:
    age = health.clock_age_seconds
    if age is None:
        return [Problem("no_clock", "no clock has ever run: start workos-sync clock")]
    if age > CLOCK_SECONDS:
        return [Problem("no_clock", f"no clock has run for {age:.0f} s: start workos-sync clock")]
    return []

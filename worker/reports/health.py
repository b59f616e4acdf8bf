"""Measurements of the installation. `worker.reports.conditions` decides which of them are wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from typing import NamedTuple

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import (
    Connection,
    Engine,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    and_,
    exists,
    func,
    literal,
    or_,
    select,
)

from models.database import read_transaction
from models.rows import all_rows
from models.tables import (
    SESSIONS_REVOKED,
    AutoJoin,
    AutoJoinState,
    Change,
    DeliveryStatus,
    Event,
    EventStatus,
    FailedEffect,
    HookDelivery,
    Join,
    JoinState,
    MirrorState,
    NotifyTarget,
    Read,
    Revocation,
    RevocationState,
    Run,
    RunStatus,
    Tail,
    Tick,
    Total,
)
from models.types import JsonObject, Record, db_now, db_now_plus, inline_literal
from models.views import mirror_status
from worker.bootstrap import CLAIM_REMEDY, CLAIMED, lanes_of
from worker.hooks.operate import hook_status
from worker.inbox.store import MAX_COUNTED, backlog
from worker.inbox.verified_secrets import any_verified
from worker.kinds.connection import CONNECTION
from worker.kinds.connection import Connection as SSOConnection
from worker.kinds.membership import Membership
from worker.kinds.organization import Organization
from worker.kinds.saml_certificate import SamlCertificate
from worker.metrics import REFUSALS, REFUSED_SINCE_VALID, Name, counted
from worker.mirror import uncertainty
from worker.mirror.auto_join_policy import COUNTS_TICK
from worker.repair.catch_up import count_missed_webhooks
from worker.repair.schedule import CLOCK_TICK, WEB_TICK
from worker.reports.lanes import Lane, RedisTrouble, read_redis, unknown_lanes
from worker.reports.last_resync import Resync, last_resync, last_success_at
from worker.runs import RUNS
from worker.settings import Settings

LATE_RESYNC = 2.0
"""The last full resync is late if it is older than this number of times `RESYNC_SECONDS`."""
RECENT_WEBHOOKS = 100
"""Number of recent webhooks from which the usual pause between two is computed."""
MAX_USUAL_PAUSE = timedelta(days=1)
MANY_READS = 5
"""A confirmed read is reported after this many failures, which take about three minutes."""
EXPIRY_DAYS = 30
"""A SAML certificate is reported for this number of days before it expires."""
WEBHOOKS_END = 7 * 86_400.0
"""Seconds without a webhook and without `web` after which webhooks count as switched off, unless a secret is set here.

`web` does not start without a secret, and records that it runs. So a process without the secret knows of it.
"""
MIN_MISSED = 3
"""Webhooks count as stopped once the events API has returned this number of events that came without one."""


class Hook(NamedTuple):
    """A hook of the product that has run or is configured."""

    name: str
    failed: int
    """Deliveries that the hook refused too often."""
    missed: str | None
    """Why changes were skipped, if any ever were."""
    behind: int
    """Changes that were not delivered yet; of those after the hook's cursor, up to 10,000 are counted."""
    waiting_seconds: float
    """Age of the oldest change that was not delivered yet and has not failed; 0 if there is none."""
    attempts: int
    """Attempts of the delivery that was refused most often and has not failed."""


class ExpiringCertificate(NamedTuple):
    """A SAML certificate of a connection in use that expires within `EXPIRY_DAYS`, or has expired."""

    connection_id: str
    type: str
    expires_at: datetime
    expired: bool


class NotifyFailure(NamedTuple):
    """A target of NOTIFY whose last message was not accepted."""

    name: str
    attempts: int
    """Attempts that failed since the last message that was accepted."""
    error: str


@dataclass(frozen=True, slots=True)
class Health:
    """The measurements of one moment. Times are aware, in UTC; durations are in seconds; None means unknown."""

    mirror: Record
    """The row of the view `mirror_status`."""
    tail_seconds: float
    """The interval between two reads of the tail that the settings name."""
    tail_interval_seconds: float
    """The interval now."""
    late_events: int
    """Number of events that the events API showed later than the hold-back."""
    uncertain: int
    """Number of failed events that may have changed access."""
    all_uncertain: bool
    """Whether an event that failed, or expired unread, may have changed anybody's access."""
    pending: int
    oldest_pending_seconds: float
    failed: int
    failed_by_fingerprint: dict[str, int]
    gaps: int
    late: int
    webhooks_expected: bool
    """Whether events should come by webhook (`WEBHOOKS_END`). If not, the events API brings all, and none is missed."""
    silent_seconds: float | None
    """Time since the last webhook, if webhooks have stopped: see `_silent_seconds`. None otherwise."""
    missed: int
    """Number of events that the events API returned since the last webhook and that no webhook brought, up to 3."""
    recent_gaps: int
    """Number of `gaps` of the last hour."""
    last_webhook_at: datetime | None
    webhook_age_seconds: float | None
    refused: dict[str, int] | None
    """Number of deliveries refused since the last valid one, by reason: one of `worker.metrics.REFUSALS`."""
    secret_verified: bool
    """Whether one of the present webhook secrets has ever verified a delivery."""
    unmapped_roles: dict[str, int]
    withheld_role_map: JsonObject | None
    """`models.tables.MirrorState.withheld_role_map`."""
    conflicts: int
    """Number of domain names that more than one workspace has verified."""
    domains: dict[str, int]
    """Number of domains by auto-join state. `invalid`: existing domains that are not valid domain names."""
    joins: dict[str, int]
    """Number of joins by state."""
    revocations: dict[str, int]
    """Number of revocations of sessions by state."""
    sessions_revoked: int
    """Sessions revoked by those that are settled, in all."""
    revocation_waiting_seconds: float
    """Time since the oldest pending revocation was recorded; 0 if there is none."""
    revocation_error: str | None
    """Why its last attempt failed, if it did."""
    missing_joins: int | None
    """Number of people who should have joined a workspace by domain but are not members, as last counted."""
    without_admin: int | None
    """Number of workspaces that have members but no admin, as last counted."""
    counted_seconds: float | None
    """Time since these two were counted."""
    unread: int
    """Number of objects whose confirmed read, requested by an event, failed `MANY_READS` times or more."""
    first_unread: str | None
    """Kind and id of one of them."""
    certificates: list[ExpiringCertificate]
    """The first to expire comes first."""
    hooks: list[Hook]
    python_hooks: list[str]
    """Names of hooks that are no longer called."""
    notify_failures: list[NotifyFailure]
    repairs: bool
    """Whether the WorkOS API can be called, or ever was: WORKOS_API_KEY and WORKOS_CLIENT_ID are set here, or another
    process has bound the database to a WorkOS environment with them."""
    resync: Resync | None
    resync_late_seconds: float
    """The last successful full resync is late if it is older than this."""
    resync_done_seconds: float | None
    """Time since the last successful full resync finished."""
    runs: list[Record]
    """Runs in progress. `queued`: no process works on it."""
    clock_age_seconds: float | None
    lanes: list[Lane]
    redis: RedisTrouble | None
    """None: Redis is available and writable, and no other database uses it."""


def check_health(engine: Engine, redis: Redis, settings: Settings) -> Health:
    """Measure the installation; raise `sqlalchemy.exc.DBAPIError` if the database is unavailable.

    `redis` needs short time-outs, but not those of the webhook endpoint: a Redis that answers late is not away.
    """
    owner, lanes, trouble = read_redis(redis, lanes_of(settings))
    resync = last_resync(engine)
    secrets = [secret.get_secret_value() for secret in settings.workos_webhook_secrets]
    with read_transaction(engine) as tx:
        mirror = tx.execute(select(MirrorState.__table__, db_now().label("now"))).one()
        now: datetime = mirror.now
        if owner not in (None, mirror.database_id or ""):
            lanes, trouble = unknown_lanes(lanes_of(settings)), RedisTrouble(CLAIMED, CLAIM_REMEDY, "redis_claimed")
        inbox = backlog(tx)
        gap_count, late_count = count_missed_webhooks(tx, settings.gap_seconds)
        withheld: JsonObject = mirror.withheld_role_map or {}
        tail = tx.execute(select(Tail.__table__)).one()
        last_webhook = tx.execute(_webhooks().limit(1)).scalar_one_or_none()
        webhook_age = (now - last_webhook).total_seconds() if last_webhook else None
        repairs = settings.repairs or mirror.client_id is not None
        ticks: dict[str, datetime] = dict(tx.execute(select(Tick.name, Tick.at)).all())
        clock, web, counted_at = (_age(ticks.get(name), now) for name in (CLOCK_TICK, WEB_TICK, COUNTS_TICK))
        last_signs = [age for age in (webhook_age, web) if age is not None]
        expected = bool(settings.workos_webhook_secrets) or not repairs or min(last_signs, default=inf) < WEBHOOKS_END
        missed = _missed(tx, last_webhook) if expected and repairs else []
        numbers = tx.execute(
            select(
                _uncertain().label("uncertain"),
                exists().where(*uncertainty.ALL_UNCERTAIN).label("all_uncertain"),
                _recent_gaps(settings.gap_seconds).label("recent_gaps"),
                _conflicts().label("conflicts"),
                _invalid_domains().label("invalid_domains"),
                last_success_at().label("resync_done"),
                select(Total.number).where(Total.name == SESSIONS_REVOKED).scalar_subquery().label("sessions_revoked"),
            )
        ).one()
        unread = tx.execute(_unread()).all()
        fingerprints = _fingerprints(tx)
        revocation = tx.execute(_oldest_revocation()).one_or_none()
        running = select(Run.__table__, RUNS.is_free().label("queued")).where(Run.status == RunStatus.RUNNING)
        return Health(
            mirror=dict(tx.execute(select(mirror_status)).mappings().one()),
            tail_seconds=tail.tail_seconds,
            tail_interval_seconds=tail.interval_seconds,
            late_events=tail.late_events,
            uncertain=numbers.uncertain,
            all_uncertain=bool(numbers.all_uncertain),
            pending=inbox.pending,
            oldest_pending_seconds=round(inbox.oldest_seconds, 3),
            failed=sum(fingerprints.values()),
            failed_by_fingerprint=fingerprints,
            gaps=gap_count,
            late=late_count,
            webhooks_expected=expected,
            silent_seconds=_silent_seconds(tx, now, last_webhook, missed, settings.gap_seconds),
            missed=len(missed),
            recent_gaps=numbers.recent_gaps if expected else 0,
            last_webhook_at=last_webhook,
            webhook_age_seconds=webhook_age,
            refused=None if trouble else _refused(redis),
            secret_verified=any_verified(tx, secrets),
            unmapped_roles=_unmapped(tx, mirror.role_map | withheld.get("role_map", {})),
            withheld_role_map=withheld or None,
            conflicts=numbers.conflicts,
            domains=_counted(tx, AutoJoin.state, AutoJoinState) | {"invalid": numbers.invalid_domains},
            joins=_counted(tx, Join.state, JoinState),
            revocations=_counted(tx, Revocation.state, RevocationState),
            sessions_revoked=numbers.sessions_revoked or 0,
            revocation_waiting_seconds=(now - revocation.created_at).total_seconds() if revocation else 0.0,
            revocation_error=revocation.error if revocation else None,
            missing_joins=None if counted_at is None else mirror.missing_joins,
            without_admin=None if counted_at is None else mirror.without_admin,
            counted_seconds=counted_at,
            unread=len(unread),
            first_unread=f"{unread[0].kind} {unread[0].object_id}" if unread else None,
            certificates=_certificates(tx),
            hooks=[_hook(tx, now, row) for row in hook_status(tx, settings.http_hooks)],
            python_hooks=settings.python_hooks,
            notify_failures=_notify_failures(tx, settings),
            repairs=repairs,
            resync=resync,
            resync_late_seconds=LATE_RESYNC * settings.resync_seconds,
            resync_done_seconds=_age(numbers.resync_done, now),
            runs=all_rows(tx, running.order_by(Run.created_at)),
            clock_age_seconds=clock,
            lanes=lanes,
            redis=trouble,
        )


def _notify_failures(tx: Connection, settings: Settings) -> list[NotifyFailure]:
    """Return the failing targets among those of the settings. Removing one from NOTIFY ends its failure."""
    failing = select(NotifyTarget.__table__).where(
        NotifyTarget.name.in_(settings.notify_targets), NotifyTarget.attempts > 0
    )
    return [
        NotifyFailure(row.name, row.attempts, row.error or "")
        for row in tx.execute(failing.order_by(NotifyTarget.name))
    ]


def _refused(redis: Redis) -> dict[str, int] | None:
    try:
        counts = counted(redis)
    except RedisError:
        return None
    return {reason: int(counts.get(Name(REFUSED_SINCE_VALID, (reason,)), 0)) for reason in REFUSALS}


def _age(at: datetime | None, now: datetime) -> float | None:
    return (now - at).total_seconds() if at else None


def _hook(tx: Connection, now: datetime, row: Record) -> Hook:
    """Add the oldest change that was not delivered to a row of `hook_status`."""
    name = row["hook"]
    pending = (HookDelivery.hook == name, HookDelivery.status == DeliveryStatus.PENDING)
    refused = select(func.min(HookDelivery.change_id)).where(*pending).scalar_subquery()
    refused_at = select(Change.at).where(Change.id == refused).scalar_subquery()
    attempts = select(func.max(HookDelivery.attempts)).where(*pending).scalar_subquery()
    following = select(Change.at).where(Change.id > (row["cursor"] or 0)).order_by(Change.id).limit(1).scalar_subquery()
    earlier, ahead, most = tx.execute(select(refused_at, following, attempts)).one()
    oldest = min((at for at in (earlier, ahead if row["behind"] else None) if at), default=now)
    return Hook(
        name=name,
        failed=row["failed"],
        missed=row["error"],
        behind=(row["behind"] or 0) + row["waiting"],
        waiting_seconds=max(0.0, (now - oldest).total_seconds()),
        attempts=most or 0,
    )


def _missed(tx: Connection, last_webhook: datetime | None) -> list[datetime]:
    """Return when the events API returned the first `MIN_MISSED` events since the last webhook without a webhook."""
    since = last_webhook or select(MirrorState.backfill_from).scalar_subquery()
    only_api = (Event.webhook_at.is_(None), Event.api_at > since, Event.occurred_at > since)
    query = select(Event.api_at).where(*only_api).order_by(Event.api_at).limit(MIN_MISSED)
    return [at for at in tx.execute(query).scalars() if at]


def _silent_seconds(
    tx: Connection, now: datetime, last_webhook: datetime | None, missed: list[datetime], gap_seconds: float
) -> float | None:
    """Return the time since the last webhook if webhooks have stopped; None otherwise.

    They have stopped if the events API returned at least `MIN_MISSED` newer events without a webhook, and the pause is
    longer than both `gap_seconds` and the usual pause.
    """
    if len(missed) < MIN_MISSED:
        return None
    silent = (now - (last_webhook or missed[0])).total_seconds()
    return round(silent, 1) if silent > max(gap_seconds, _usual_pause(tx)) else None


def _recent_gaps(gap_seconds: float) -> ScalarSelect[int]:
    hour = (Event.api_at < db_now_plus(-gap_seconds), Event.api_at > db_now_plus(-gap_seconds - 3600))
    return select(func.count()).select_from(Event).where(Event.webhook_at.is_(None), *hour).scalar_subquery()


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


def _conflicts() -> ScalarSelect[int]:
    conflicted = AutoJoin.state == AutoJoinState.CONFLICTED
    return select(func.count(AutoJoin.domain.distinct())).where(conflicted).scalar_subquery()


def _invalid_domains() -> ScalarSelect[int]:
    invalid = (AutoJoin.domain.is_(None), AutoJoin.state != AutoJoinState.REVOKED)
    return select(func.count()).select_from(AutoJoin).where(*invalid).scalar_subquery()


def _uncertain() -> ScalarSelect[int]:
    some = select(FailedEffect.event_id).distinct().limit(MAX_COUNTED).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


def _unread() -> Select[str, str]:
    failing = select(Read.kind, Read.object_id).where(Read.run_id == "", Read.attempts >= MANY_READS)
    return failing.order_by(Read.attempts.desc(), Read.kind, Read.object_id).limit(MAX_COUNTED)


def _certificates(tx: Connection) -> list[ExpiringCertificate]:
    """Return the certificates to report. A connection that is not mirrored counts as in use while it is to be read."""
    certificate = SamlCertificate
    reads = exists().where(Read.kind == CONNECTION.name, Read.object_id == certificate.connection_id, Read.run_id == "")
    unused = or_(
        and_(SSOConnection.id.is_(None), ~reads),
        and_(SSOConnection.id.is_not(None), SSOConnection.status.is_distinct_from("active")),
        SSOConnection.deleted_by.is_not(None),
        Organization.deleted_by.is_not(None),
    )
    owner = func.coalesce(SSOConnection.organization_id, certificate.organization_id)
    found = (
        select(
            certificate.connection_id,
            certificate.certificate_type.label("type"),
            certificate.expires_at,
            (certificate.expires_at <= db_now()).label("expired"),
        )
        .outerjoin(SSOConnection, SSOConnection.id == certificate.connection_id)
        .outerjoin(Organization, Organization.id == owner)
        .where(certificate.expires_at <= db_now_plus(EXPIRY_DAYS * 86_400.0), ~unused)
        .order_by(certificate.expires_at, certificate.id)
    )
    return [ExpiringCertificate(**row) for row in tx.execute(found.limit(MAX_COUNTED)).mappings()]


def _oldest_revocation() -> Select[datetime, str | None]:
    pending = Revocation.state == inline_literal(RevocationState.PENDING)
    return select(Revocation.created_at, Revocation.error).where(pending).order_by(Revocation.created_at).limit(1)


def _counted(tx: Connection, column: SQLColumnExpression[str], values: Iterable[str]) -> dict[str, int]:
    """Return the number of rows with each value, at most 10,000 each; values without a row are omitted."""
    words = list(values)
    some = (select(literal(1)).where(column == value).limit(MAX_COUNTED).subquery() for value in words)
    numbers = tx.execute(select(*(select(func.count()).select_from(rows).scalar_subquery() for rows in some))).one()
    return {str(value): number for value, number in zip(words, numbers, strict=True) if number}

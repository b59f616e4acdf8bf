"""The composition root: builds the services of a process from its settings."""

from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, select

from models.database import open_engine, read_transaction
from models.tables import AutoJoinMode, MirrorState
from worker import error_reports, traces
from worker.database import open_database
from worker.env.redis_keys import redis_key
from worker.errors import ConfigurationError
from worker.inbox.drain import DrainLimits
from worker.metrics import Counters
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR, SESSIONS, Doorbell, TailBell
from worker.redis_client import open_redis, server_version
from worker.settings import Settings

ENDPOINT_REDIS_SECONDS = 0.25
"""The webhook endpoint answers within a second, even if Redis does not (docs/decisions.md, Work)."""
REPORT_REDIS_SECONDS = 2.0
"""Reports wait longer: for them, a Redis that answers late under load is not away."""
ENDPOINT_LOCK_TIMEOUT_MS = 1_000
ENDPOINT_CONNECTIONS = 6
"""For pages, API and metrics."""
INBOX_CONNECTIONS = 2
"""One commits the deliveries of a process; `/readyz` uses the other to check that this is possible."""
ENDPOINT_POOL_SECONDS = 2.0
"""Maximum wait for a connection. A thread that waits serves no other request."""
JOB_SECONDS = 2.0
"""Time limit of one drain, after which it starts no new batch. A process that is asked to stop ends its job first."""
REPAIR_JOB_SECONDS = 24 * 3600
"""A resync may take hours. Its lease, not RQ, decides whether it is alive."""
LONG_JOB_SECONDS = 1800
"""Joins and revocations wait for WorkOS's rate limits. Each of their steps has its own time limit."""
MAX_CONNECTIONS = 12
"""A resync makes ten calls at once and sends its heartbeat. A drain uses one connection."""
CLAIM = redis_key("database")
CLAIM_SECONDS = 15
"""Life of the claim of a database to our keys in Redis, unless a clock or worker renews it."""
CLAIMED = "another database uses the same keys in this Redis"
CLAIM_REMEDY = "give each environment an ENVIRONMENT_NAME, or a Redis of its own"


@dataclass(frozen=True, slots=True)
class Services:
    """The services that the parts of one process share."""

    settings: Settings
    engine: Engine
    inbox_engine: Engine
    """Stores deliveries. In the webhook server it has connections of its own, which no reader can hold."""
    redis: Redis
    report_redis: Redis
    """For health and metrics, which wait longer than deliveries."""
    bell: Doorbell
    repair_bell: Doorbell
    provision_bell: Doorbell
    hooks_bell: Doorbell
    tail_bell: TailBell
    sessions_bell: Doorbell
    counters: Counters

    def close(self) -> None:
        """Add the last counts to Redis and close the connections."""
        self.counters.close()
        stop_reports()
        self.redis.close()
        self.report_redis.close()
        self.engine.dispose()
        self.inbox_engine.dispose()


def build_services(settings: Settings, redis_url: str, *, endpoint: bool = False) -> Services:
    """Return the services of one process. Nothing connects yet. Its errors and traces are reported from now on.

    `redis_url` is that of the settings or of the embedded server. A webhook `endpoint` waits only briefly for Redis and
    locks.
    """
    start_reports(settings)
    if endpoint:
        engine, inbox_engine = (
            open_engine(
                settings.database_url,
                schema=settings.database_schema,
                pool_size=size,
                pool_timeout=ENDPOINT_POOL_SECONDS,
                pre_ping=pre_ping,
                lock_timeout_ms=ENDPOINT_LOCK_TIMEOUT_MS,
            )
            for size, pre_ping in ((ENDPOINT_CONNECTIONS, True), (INBOX_CONNECTIONS, False))
        )
        redis = endpoint_redis(redis_url)
    else:
        engine = inbox_engine = open_database(settings, MAX_CONNECTIONS)
        redis = open_redis(redis_url)
    reports = report_redis(redis_url)
    return Services(
        settings,
        engine,
        inbox_engine,
        redis,
        report_redis=reports,
        bell=Doorbell(redis, DRAIN),
        repair_bell=Doorbell(redis, REPAIR, REPAIR_JOB_SECONDS),
        provision_bell=Doorbell(redis, PROVISION, LONG_JOB_SECONDS),
        hooks_bell=Doorbell(redis, HOOKS),
        tail_bell=TailBell(reports),
        sessions_bell=Doorbell(redis, SESSIONS, LONG_JOB_SECONDS),
        counters=Counters(reports),
    )


def start_reports(settings: Settings) -> None:
    """Report errors and traces of this process from now on, if the settings say so.

    Raises:
        ConfigurationError: as `error_reports.start` and `traces.start`.
    """
    dsn = settings.sentry_dsn.get_secret_value() if settings.sentry_dsn else None
    error_reports.start(dsn, settings.environment_name)
    traces.start(settings.otel_exporter_otlp_endpoint, settings.otel_traces_sampler_arg)


def stop_reports() -> None:
    """Send what is queued, for at most two seconds each, and report nothing more."""
    error_reports.stop()
    traces.stop()


def lanes_of(settings: Settings) -> tuple[str, ...]:
    """Return the lanes of work that the settings need; each needs at least one process."""
    provision = (PROVISION,) if settings.auto_join is AutoJoinMode.PROVISION else ()
    sessions = (SESSIONS,) if settings.revoke_sessions else ()
    return (DRAIN, REPAIR, *provision, *((HOOKS,) if settings.http_hooks else ()), *sessions)


def drain_limits(settings: Settings) -> DrainLimits:
    """Return the batch size, attempts and times of drains."""
    return DrainLimits(settings.batch_size, settings.max_attempts, settings.first_backoff_seconds, JOB_SECONDS)


def endpoint_redis(url: str) -> Redis:
    """Return a client with short time-outs: a missed ring does no harm, but a delivery must not wait."""
    return open_redis(url, socket_timeout=ENDPOINT_REDIS_SECONDS, socket_connect_timeout=ENDPOINT_REDIS_SECONDS)


def report_redis(url: str) -> Redis:
    """Return a client for reports. Its time-outs are short, because a report must not hang."""
    return open_redis(url, socket_timeout=REPORT_REDIS_SECONDS, socket_connect_timeout=REPORT_REDIS_SECONDS)


def require_redis_version(url: str) -> None:
    """Raise `ConfigurationError` if the Redis at `url` is too old. An unavailable Redis is waited for later."""
    with endpoint_redis(url) as redis, suppress(RedisError):
        server_version(redis)


def claim_redis(engine: Engine, redis: Redis) -> None:
    """Claim our keys in Redis for this database, for `CLAIM_SECONDS`. An unavailable Redis is left alone.

    Raises:
        ConfigurationError: another database has claimed them.
    """
    id = database_id(engine)
    with suppress(RedisError):
        redis.set(CLAIM, id, nx=True, ex=CLAIM_SECONDS)
        if claimed_by(redis) not in (None, id):
            wait = f"(after replacing a database, wait {CLAIM_SECONDS} seconds)"
            raise ConfigurationError(f"REDIS_URL: {CLAIMED}; {CLAIM_REMEDY} {wait}")
        redis.expire(CLAIM, CLAIM_SECONDS)


def claimed_by(redis: Redis) -> str | None:
    """Return the id of the database that has claimed our keys in Redis; None if none has.

    Raises:
        redis.exceptions.RedisError: Redis is unavailable.
    """
    id = cast("bytes | None", redis.get(CLAIM))
    return None if id is None else id.decode(errors="replace")


def database_id(engine: Engine) -> str:
    """Return the random id of a database; empty if it has none."""
    with read_transaction(engine) as tx:
        return tx.execute(select(MirrorState.database_id)).scalar_one() or ""

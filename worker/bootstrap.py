"""The composition root: what a process is made of, built once from its settings."""

from dataclasses import dataclass

from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import open_engine
from models.revisions import outdated
from models.tables import AutoJoinMode
from worker.errors import ConfigurationError
from worker.inbox.drain import Policy
from worker.metrics import Counters
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR, Doorbell
from worker.redis_client import open_redis
from worker.settings import Settings

ENDPOINT_REDIS_SECONDS = 0.25
"""The door answers within a second, Redis frozen or not (docs/decisions.md, Work)."""
ENDPOINT_LOCK_TIMEOUT_MS = 1_000
ENDPOINT_CONNECTIONS = 6
"""For pages, API and metrics."""
INBOX_CONNECTIONS = 2
"""One commits deliveries, for all threads; the other tells `/readyz` whether that can be done."""
ENDPOINT_POOL_SECONDS = 2.0
"""A thread that waits longer for a connection is missing for deliveries."""
JOB_SECONDS = 2.0
"""How long a job drains before it rings for the next one: a process that is asked to stop ends its job first."""
REPAIR_JOB_SECONDS = 24 * 3600
"""A resync may take hours: its lease says whether it lives, not RQ."""
LONG_JOB_SECONDS = 1800
"""Joins wait for WorkOS's rate limits, hooks for the host: each of their steps has limits of its own."""
MAX_CONNECTIONS = 12
"""A resync has ten calls in flight, and its heartbeat; a drain uses one."""


@dataclass(frozen=True, slots=True)
class Services:
    """What the parts of one process share."""

    settings: Settings
    engine: Engine
    inbox_engine: Engine
    """Stores deliveries: at the door with connections of its own, which no reader can hold; elsewhere as `engine`."""
    redis: Redis
    bell: Doorbell
    repair_bell: Doorbell
    provision_bell: Doorbell
    hooks_bell: Doorbell
    counters: Counters

    def close(self) -> None:
        """Hand over the last counts and close the connections."""
        self.counters.close()
        self.redis.close()
        self.engine.dispose()
        self.inbox_engine.dispose()


def build_services(settings: Settings, redis_url: str, *, endpoint: bool = False) -> Services:
    """Return the parts for one process; connects to nothing yet.

    Args:
        settings: as loaded.
        redis_url: the Redis to use (the setting, or that of the embedded server).
        endpoint: whether deliveries are answered here, with short waits for Redis and locks.
    """
    if endpoint:
        engine, inbox_engine = (
            open_engine(
                settings.database_url,
                pool_size=size,
                pool_timeout=ENDPOINT_POOL_SECONDS,
                lock_timeout_ms=ENDPOINT_LOCK_TIMEOUT_MS,
            )
            for size in (ENDPOINT_CONNECTIONS, INBOX_CONNECTIONS)
        )
        redis = endpoint_redis(redis_url)
    else:
        engine = inbox_engine = open_engine(settings.database_url, pool_size=MAX_CONNECTIONS)
        redis = open_redis(redis_url)
    return Services(
        settings,
        engine,
        inbox_engine,
        redis,
        bell=Doorbell(redis, DRAIN),
        repair_bell=Doorbell(redis, REPAIR, REPAIR_JOB_SECONDS),
        provision_bell=Doorbell(redis, PROVISION, LONG_JOB_SECONDS),
        hooks_bell=Doorbell(redis, HOOKS, LONG_JOB_SECONDS),
        counters=Counters(redis),
    )


def lanes_of(settings: Settings) -> tuple[str, ...]:
    """Return the lanes of work that the settings ask for; each needs at least one process."""
    return (
        DRAIN,
        REPAIR,
        *((PROVISION,) if settings.auto_join is AutoJoinMode.PROVISION else ()),
        *((HOOKS,) if settings.http_hooks else ()),
    )


def drain_policy(settings: Settings) -> Policy:
    """Return how the settings ask drains to work."""
    first_backoff = settings.first_backoff_seconds
    return Policy(settings.batch_size, settings.max_attempts, first_backoff, seconds=JOB_SECONDS)


def endpoint_redis(url: str) -> Redis:
    """Return a client that gives up at once: a ring may be missed, a delivery must not wait."""
    return open_redis(url, socket_timeout=ENDPOINT_REDIS_SECONDS, socket_connect_timeout=ENDPOINT_REDIS_SECONDS)


def require_migrated(engine: Engine) -> None:
    """Check that the database is at the revision this code needs.

    Raises:
        ConfigurationError: it does not, or cannot be reached; the message names the remedy.
    """
    try:
        if outdated(engine):
            raise ConfigurationError("the database is not migrated; run: workos-sync migrate")
    except DBAPIError as error:
        saw = f"the database cannot be reached: {type(error.orig).__name__}"
        raise ConfigurationError(f"DATABASE_URL: {saw}; start it, or correct the URL") from error

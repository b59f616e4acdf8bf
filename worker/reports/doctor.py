"""doctor: checks everything an installation needs. Each check is one row, with a remedy if something is wrong."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from models.database import read_transaction
from models.revisions import current_revision, newest_revision, outdated
from models.types import JsonObject, db_now
from worker.errors import ConfigurationError, InvalidApiKeyError, WorkOSUnavailableError
from worker.kinds import SUBSCRIBED
from worker.metrics import noted
from worker.queue.doorbell import DRAIN, LISTEN_SECONDS, Doorbell
from worker.redis_client import require_writable, what_is_wrong
from worker.repair.environment import require_same_environment
from worker.reports.health import Health, Problem, check_health
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

WEBHOOK_PATH = "/webhooks/workos"
DAY_SECONDS = 24 * 3600.0
SKEW_SECONDS = 5.0
MIN_TOKEN_LENGTH = 20
MAX_ENDPOINT_PAGES = 20
"""Maximum number of pages read of WorkOS's list of endpoints."""


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Check(NamedTuple):
    """One row of the report: what was checked, the result, what was found, and the remedy."""

    name: str
    level: Level
    saw: str
    remedy: str = ""


def ok(name: str, saw: str) -> Check:
    """Return a passed check."""
    return Check(name, Level.OK, saw)


def warning(name: str, saw: str, remedy: str) -> Check:
    """Return a warning: the installation works, but something should be changed."""
    return Check(name, Level.WARNING, saw, remedy)


def failure(name: str, saw: str, remedy: str) -> Check:
    """Return a failed check."""
    return Check(name, Level.FAILURE, saw, remedy)


def run_checks(
    engine: Engine, redis: Redis, settings: Settings, connect: Callable[[], WorkOSClient] | None
) -> Iterator[Check]:
    """Run all checks, and yield each when it is done. Nothing is changed in the mirror.

    Args:
        engine: the database.
        redis: a client with a short timeout.
        settings: the loaded settings.
        connect: opens a WorkOS client; None if no API key is set.
    """
    database = list(_database(engine))
    yield from database
    yield from _redis(redis)
    yield from _secrets(settings)
    yield from _tokens(settings)
    database_ok = all(check.level is not Level.FAILURE for check in database)
    yield from _workos(engine, settings, connect if database_ok else None)
    yield from _timestamps(redis)
    if database_ok:
        health = check_health(engine, redis, settings)
        yield from _work(health)
        if health.lanes[0].workers:
            yield from _doorbell(redis)


def _database(engine: Engine) -> Iterator[Check]:
    shown = engine.url.render_as_string(hide_password=True)
    try:
        with read_transaction(engine) as tx:
            now: datetime = tx.execute(select(db_now())).scalar_one()
        old, revision = outdated(engine), current_revision(engine)
    except DBAPIError as error:
        yield failure("database", f"{shown}: {type(error.orig).__name__}", "start it, or correct DATABASE_URL")
        return
    if engine.dialect.name == "sqlite":
        yield warning("database", shown, "SQLite is for evaluation only; in production, set DATABASE_URL to PostgreSQL")
    else:
        yield ok("database", shown)
    if old:
        yield failure("migrations", f"at revision {revision or 'none'}", "run: workos-sync migrate")
        return
    yield ok("migrations", f"at revision {revision}; this code needs {newest_revision()}")
    yield _skew("clock of the database", now)


def _skew(name: str, there: datetime) -> Check:
    """Compare a clock with this machine's, which decides whether a signature is too old."""
    skew = abs((datetime.now(UTC) - there).total_seconds())
    if skew > SKEW_SECONDS:
        return failure(name, f"differs from this machine's clock by {skew:.0f} s", "run NTP on both machines")
    return ok(name, f"within {SKEW_SECONDS:.0f} s of this machine's clock")


def _redis(redis: Redis) -> Iterator[Check]:
    try:
        require_writable(redis)
        server: JsonObject = redis.info("server")
        settings: dict[str | None, str | None] = redis.config_get("appendonly", "save", "maxmemory-policy")
    except RedisError as error:
        yield failure("redis", *what_is_wrong(error))
        return
    version = server.get("valkey_version") or server.get("redis_version") or "?"
    yield ok("redis", f"{'Valkey' if 'valkey_version' in server else 'Redis'} {version}")
    if settings.get("appendonly") == "yes" or settings.get("save"):
        yield ok("redis persistence", "on")
    else:
        yield warning("redis persistence", "off: jobs lost in a restart wait for the sweep", "set appendonly yes")
    policy = settings.get("maxmemory-policy") or "?"
    if policy == "noeviction":
        yield ok("redis eviction", policy)
    else:
        yield failure("redis eviction", f"{policy}: jobs may be evicted", "set maxmemory-policy noeviction")


def _secrets(settings: Settings) -> Iterator[Check]:
    number = len(settings.workos_webhook_secrets)
    if number:
        yield ok("webhook secret", "1 set" if number == 1 else f"{number} set, as during a rotation")
    else:
        remedy = "set WORKOS_WEBHOOK_SECRETS; workos-sync register URL prints a secret"
        yield failure("webhook secret", "not set: no webhook can be verified", remedy)


def _tokens(settings: Settings) -> Iterator[Check]:
    for name, tokens, off in (
        ("OPS_TOKENS", settings.ops_tokens, "the pages under /ops are disabled"),
        ("API_TOKENS", settings.api_tokens, "the API under /api/v1 is disabled"),
    ):
        short = [who for who, token in tokens.items() if len(token.get_secret_value()) < MIN_TOKEN_LENGTH]
        if not tokens:
            yield warning(name, f"not set: {off}", f"set {name} to name:token; to make a token: openssl rand -hex 24")
        elif short:
            remedy = f"use at least {MIN_TOKEN_LENGTH} characters, for example: openssl rand -hex 24"
            yield warning(name, f"too short: {', '.join(short)}", remedy)
        else:
            yield ok(name, ", ".join(tokens))


def _workos(engine: Engine, settings: Settings, connect: Callable[[], WorkOSClient] | None) -> Iterator[Check]:
    if not settings.repairs:
        remedy = "set WORKOS_API_KEY and WORKOS_CLIENT_ID"
        yield failure("WorkOS key", "not set: lost webhooks are not recovered", remedy)
        return
    if connect is None:
        yield warning("WorkOS key", "not checked", "fix the database first")
        return
    workos = connect()
    try:
        now = workos.now()
        yield ok("WorkOS key", "accepted by WorkOS")
        require_same_environment(engine, workos, settings)
        yield ok("WorkOS environment", f"{settings.workos_client_id}, the one this database mirrors")
        yield _skew("clock of WorkOS", now)
        yield from _endpoints(workos, settings)
    except InvalidApiKeyError as error:
        yield failure("WorkOS key", str(error), "set WORKOS_API_KEY to a valid key of this environment")
    except ConfigurationError as error:
        remedy = "set the API key and client id of the environment that this database mirrors"
        yield failure("WorkOS environment", str(error), remedy)
    except (WorkOSUnavailableError, RedisError) as error:
        yield failure("WorkOS", f"does not answer: {error}", "check the network and WORKOS_BASE_URL")
    finally:
        workos.close()


def _endpoints(workos: WorkOSClient, settings: Settings) -> Iterator[Check]:
    name = "webhook endpoint"
    token = settings.webhook_path_token
    path = f"{WEBHOOK_PATH}/{token.get_secret_value()}" if token else WEBHOOK_PATH
    ours = [row for row in list_endpoints(workos) if urlsplit(str(row.get("endpoint_url"))).path == path]
    if not ours:
        shown = f"{WEBHOOK_PATH}/<WEBHOOK_PATH_TOKEN>" if token else WEBHOOK_PATH
        yield failure(name, f"no endpoint URL ends in {shown}", f"run: workos-sync register https://YOUR-HOST{shown}")
        return
    enabled = [row for row in ours if row.get("status") == "enabled"]
    if not enabled:
        yield failure(name, "disabled: WorkOS sends no webhooks", "run workos-sync register with the endpoint's URL")
    for row in enabled:
        missing, extra = compare_event_types(row)
        where = urlsplit(str(row["endpoint_url"])).netloc
        if missing:
            saw = f"{where} is not subscribed to {', '.join(missing)}"
            yield failure(name, saw, "run workos-sync register with the endpoint's URL")
        elif extra:
            saw = f"{where} is subscribed to event types that are not needed: {', '.join(extra)}"
            yield warning(name, saw, "run workos-sync register with the endpoint's URL")
        else:
            yield ok(name, f"{where}, enabled, with exactly the {len(SUBSCRIBED)} event types needed")


def list_endpoints(workos: WorkOSClient) -> list[JsonObject]:
    """Return the webhook endpoints of the WorkOS environment, as WorkOS describes them."""
    found: list[JsonObject] = []
    after: str | None = None
    for _ in range(MAX_ENDPOINT_PAGES):
        page = workos.webhook_endpoints(after)
        found += [row for row in page.items if isinstance(row, dict)]
        if (after := page.after) is None:
            break
    return found


def compare_event_types(endpoint: JsonObject) -> tuple[list[str], list[str]]:
    """Return the event types that an endpoint lacks, and those it has without need.

    An endpoint without a list of event types receives all of them. WorkOS's emulator does so; the service itself is not
    documented (docs/workos.md).
    """
    subscribed = set(endpoint.get("events") or ())
    if not subscribed:
        return [], ["all others"]
    return sorted(set(SUBSCRIBED) - subscribed), sorted(subscribed - set(SUBSCRIBED))


def _timestamps(redis: Redis) -> Iterator[Check]:
    name = "signature timestamps"
    try:
        times = {key.labels: at for key, at in noted(redis).items() if key.name == "refused"}
    except RedisError:
        return  # reported by the check of Redis
    last = times.get(("time",))
    if last is not None and time.time() - last < DAY_SECONDS:
        when = datetime.fromtimestamp(last, UTC)
        remedy = "check this machine's clock, or raise WEBHOOK_TOLERANCE_SECONDS; catch-up fetches the events"
        yield failure(name, f"last refused at {when:%Y-%m-%d %H:%M:%S} UTC", remedy)
    else:
        yield ok(name, "none refused in the last 24 hours")


def _doorbell(redis: Redis) -> Iterator[Check]:
    """Ring and wait for an answer: a registered worker may hang, or listen to another Redis."""
    name = "doorbell"
    try:
        seconds = Doorbell(redis, DRAIN).listen()
    except RedisError as error:
        yield failure(name, *what_is_wrong(error))
        return
    if seconds is None:
        saw = f"no worker answered within {LISTEN_SECONDS:.0f} s"
        yield failure(name, saw, "restart worker; web, worker and clock must use the same REDIS_URL")
    else:
        yield ok(name, f"a worker answered within {max(seconds, 0.1):.1f} s")


def _work(health: Health) -> Iterator[Check]:
    for lane in health.lanes:
        if lane.workers:
            yield ok(f"workers, {lane.name}", f"{len(lane.workers)} ({', '.join(sorted(set(lane.workers)))})")
        elif lane.workers is not None:
            yield failure(f"workers, {lane.name}", "none running", "start workos-sync worker")
    yield _clock(health)
    yield _last_webhook(health)
    yield _last_resync(health)
    reported = {"redis_away", "no_worker", "no_clock", "silent", "resync_failed", "resync_late", "never_filled"}
    for problem in health.problems:
        if problem.name not in reported:
            yield _of_problem(problem.name.replace("_", " "), problem)


def _of_problem(name: str, problem: Problem) -> Check:
    saw, _, remedy = problem.text.partition(": ")
    return failure(name, saw, remedy)


def _clock(health: Health) -> Check:
    wrong = [problem for problem in health.problems if problem.name == "no_clock"]
    return _of_problem("clock", wrong[0]) if wrong else ok("clock", "running")


def _last_webhook(health: Health) -> Check:
    at = health.last_webhook_at
    last = f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "none yet"
    if health.silent_seconds is not None:
        saw = f"{last}, although the events API has newer events"
        return failure("last webhook", saw, "is the endpoint reachable from the internet? See its log in WorkOS")
    if at is None:
        return warning("last webhook", last, "change something in WorkOS, then run doctor again")
    return ok("last webhook", last)


def _last_resync(health: Health) -> Check:
    wrong = [problem for problem in health.problems if problem.name in ("resync_failed", "resync_late")]
    if wrong:
        return failure("last resync", wrong[0].text, "see workos-sync runs list; to start one now: workos-sync resync")
    if health.resync is None:
        return warning("last resync", "none yet", "start clock and worker, or run: workos-sync resync")
    return ok("last resync", f"{health.resync.status}, {timedelta(seconds=round(health.resync.age_seconds))} ago")

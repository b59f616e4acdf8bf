"""doctor: checks everything an installation needs. Each check is one row, with a remedy if something is wrong."""

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from models import database
from models.database import read_transaction
from models.requirements import describe_server
from models.revisions import current_revision, newest_revision, outdated, refused
from models.types import JsonObject, db_now
from worker import error_reports, oidc_issuer
from worker.errors import ConfigurationError, InvalidApiKeyError, NotifyError, WorkOSError
from worker.inbox.verified_secrets import any_verified
from worker.kinds import SUBSCRIBED
from worker.notify import targets
from worker.queue.doorbell import DRAIN, PICKUP_SECONDS, Doorbell
from worker.redis_client import require_writable, server_version, what_is_wrong
from worker.repair.environment import require_same_environment
from worker.reports.condition import Severity
from worker.reports.health import Health
from worker.reports.verdict import Verdict, judge
from worker.settings import Reading, Settings
from worker.times import duration
from worker.webhook_endpoints import FIND_WEB, compare_event_types, is_enabled, list_endpoints, webhook_path
from worker.workos_api.client import WorkOSClient

SKEW_SECONDS = 5.0
AskRoute = Callable[[str], int | None]
"""Returns the status with which a URL answers a GET; None if it does not answer from here.

`web` answers 405 at the path where it accepts deliveries, and 404 at any other, also if only the token is wrong.
"""
CHECKED_APART = {"redis_away", "redis_replica"}
"""Conditions that the check of Redis reports."""


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


def _ok(name: str, saw: str) -> Check:
    return Check(name, Level.OK, saw)


def _warning(name: str, saw: str, remedy: str) -> Check:
    return Check(name, Level.WARNING, saw, remedy)


def _failure(name: str, saw: str, remedy: str) -> Check:
    return Check(name, Level.FAILURE, saw, remedy)


def run_checks(
    engine: Engine,
    redis: Redis,
    settings: Settings,
    connect: Callable[[], WorkOSClient] | None,
    ask_route: AskRoute,
) -> Iterator[Check]:
    """Run all checks, and yield each when it is done. Nothing is changed in the mirror.

    `redis` needs a short time-out. `connect` opens a WorkOS client; it is None if no API key is set, or if
    a setting for WorkOS is invalid.
    """
    found = list(_database(engine))
    yield from found
    yield from _redis(redis)
    database_ok = all(check.level is not Level.FAILURE for check in found)
    yield from _secrets(engine if database_ok else None, settings)
    yield from _notify(settings)
    yield from _sign_in(settings)
    yield from _error_reports(settings)
    yield from _workos(engine, settings, connect if database_ok else None, ask_route)
    if database_ok:
        verdict = judge(engine, redis, settings)
        yield from _work(verdict)
        if verdict.health.lanes[0].workers:
            yield _doorbell(redis)


def check_settings(reading: Reading) -> Iterator[Check]:
    """Yield a row for each setting that is invalid, and for each that may be a mistake."""
    for problem in reading.problems:
        yield _failure(*problem)
    for warning in reading.warnings:
        yield _warning(*warning)


def _database(engine: Engine) -> Iterator[Check]:
    if database.is_missing(engine):
        remedy = "check DATABASE_URL, or run: workos-sync migrate"
        yield _failure("database", f"{database.place_of(engine.url)} does not exist", remedy)
        return
    try:
        with read_transaction(engine) as tx:
            now: datetime = tx.execute(select(db_now())).scalar_one()
            server, problem = f"{database.place_of(engine.url)}; {describe_server(tx)}", refused(tx)
        old, revision = outdated(engine), current_revision(engine)
        changed = database.not_in_force(engine)
    except DBAPIError as error:
        yield _failure("database", *database.what_is_wrong(error))
        return
    if problem:
        yield _failure("database", *problem.split(": ", 1))
        return
    if engine.dialect.name == "sqlite":
        remedy = "SQLite is for evaluation only; in production, set DATABASE_URL to PostgreSQL"
        yield _warning("database", server, remedy)
    else:
        yield _ok("database", server)
        yield _pinned(changed)
    if old:
        yield _failure("migrations", f"at revision {revision or 'none'}", "run: workos-sync migrate")
    else:
        yield _ok("migrations", f"at revision {revision}; this code needs {newest_revision()}")
        yield _skew("clock of the database", now)


def _pinned(changed: list[str]) -> Check:
    """Check that what a connection sets at its start, such as its time-outs, holds in later transactions."""
    if changed:
        return _failure("database settings", f"not kept: {', '.join(changed)}", database.POOLER_REMEDY)
    return _ok("database settings", "encoding, time zone, isolation and time-outs hold in each transaction")


def _skew(name: str, there: datetime) -> Check:
    """Compare a clock with this machine's, which decides whether a signature is too old."""
    skew = abs((datetime.now(UTC) - there).total_seconds())
    if skew > SKEW_SECONDS:
        return _failure(name, f"differs from this machine's clock by {skew:.0f} s", "run NTP on both machines")
    return _ok(name, f"within {SKEW_SECONDS:.0f} s of this machine's clock")


def _redis(redis: Redis) -> Iterator[Check]:
    try:
        require_writable(redis)
    except RedisError as error:
        yield _failure("redis", *what_is_wrong(error))
        return
    try:
        yield _ok("redis", server_version(redis))
    except ConfigurationError as error:
        yield _failure("redis", *str(error).removeprefix("REDIS_URL: ").split(": ", 1))
    except RedisError as error:
        yield _warning("redis", f"its version cannot be seen: {what_is_wrong(error)[0]}", "use Redis 6.2 or newer")
    yield from _redis_settings(redis)


def _redis_settings(redis: Redis) -> Iterator[Check]:
    """Check persistence and eviction. Users of managed Redis often may not see them."""
    try:
        settings: dict[str | None, str | None] = redis.config_get("appendonly", "save", "maxmemory-policy")
    except RedisError as error:
        saw = f"persistence and eviction cannot be seen: {what_is_wrong(error)[0]}"
        yield _warning("redis settings", saw, "check with your provider that maxmemory-policy is noeviction")
        return
    if settings.get("appendonly") == "yes" or settings.get("save"):
        yield _ok("redis persistence", "on")
    else:
        yield _warning("redis persistence", "off: jobs lost in a restart wait for the clock", "set appendonly yes")
    policy = settings.get("maxmemory-policy") or "?"
    if policy == "noeviction":
        yield _ok("redis eviction", policy)
    else:
        yield _failure("redis eviction", f"{policy}: jobs may be evicted", "set maxmemory-policy noeviction")


def _secrets(engine: Engine | None, settings: Settings) -> Iterator[Check]:
    name, number = "webhook secret", len(settings.workos_webhook_secrets)
    if number:
        yield _ok(name, "1 set" if number == 1 else f"{number} set{_last_secret(engine, settings)}")
    elif settings.repairs:
        yield _ok(name, "not set here, so web cannot run with these settings")
    else:
        remedy = "set WORKOS_WEBHOOK_SECRETS; workos-sync register URL prints a secret"
        yield _failure(name, "not set: no webhook can be verified", remedy)
    for name, tokens, off in (
        ("OPS_TOKENS", settings.ops_tokens, "the pages under /ops are disabled"),
        ("API_TOKENS", settings.api_tokens, "the API under /api/v1 is disabled"),
    ):
        if not tokens and name == "OPS_TOKENS" and settings.has_pages:
            yield _ok(name, "not set: operators sign in without tokens")
        elif not tokens:
            yield _warning(name, f"not set: {off}", f"set {name} to name:token; to make a token: openssl rand -hex 24")
        else:
            yield _ok(name, ", ".join(tokens))
    if settings.api_tokens:
        refreshing = ", ".join(settings.api_refresh_names)
        yield _ok(
            "API_REFRESH_NAMES", f"may refresh: {refreshing}" if refreshing else "not set: every token only reads"
        )


def _workos(
    engine: Engine, settings: Settings, connect: Callable[[], WorkOSClient] | None, ask_route: AskRoute
) -> Iterator[Check]:
    if not settings.repairs:
        remedy = "set WORKOS_API_KEY and WORKOS_CLIENT_ID"
        yield _failure("WorkOS key", "not set: lost webhooks are not recovered", remedy)
        return
    if connect is None:
        yield _warning("WorkOS key", "not checked", "fix the database first")
        return
    try:
        with closing(connect()) as workos:
            now = workos.now()
            yield _ok("WorkOS key", "accepted by WorkOS")
            require_same_environment(engine, workos, settings)
            yield _ok("WorkOS environment", f"{settings.workos_client_id}, the one this database mirrors")
            yield _skew("clock of WorkOS", now)
            if settings.workos_webhook_secrets:
                yield from _endpoints(workos, settings, ask_route)
    except InvalidApiKeyError as error:
        yield _failure("WorkOS key", str(error), "set WORKOS_API_KEY to a valid key of this environment")
    except ConfigurationError as error:
        remedy = "set the API key and client id of the environment that this database mirrors"
        yield _failure("WorkOS environment", str(error), remedy)
    except RedisError:  # it keeps the rate limits
        yield _warning("WorkOS", "not asked, because Redis does not answer", "start Redis, then run doctor again")
    except WorkOSError as error:
        yield _failure("WorkOS", f"does not answer: {error}", "check the network and WORKOS_BASE_URL")


def _endpoints(workos: WorkOSClient, settings: Settings, ask_route: AskRoute) -> Iterator[Check]:
    name, remedy = "webhook endpoint", "run workos-sync register with the endpoint's URL"
    path, shown = webhook_path(settings), webhook_path(settings, masked=True)
    try:
        endpoints, complete = list_endpoints(workos)
    except WorkOSError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        yield _warning(name, "WorkOS answered 404 to the list of endpoints", "look in the WorkOS dashboard")
        return
    ours = [row for row in endpoints if urlsplit(str(row.get("endpoint_url"))).path == path]
    if not ours and not complete:
        saw = f"none of the first {len(endpoints)} endpoints has a URL that ends in {shown}"
        yield _warning(name, saw, "delete unused endpoints in the WorkOS dashboard")
    elif not ours:
        yield _failure(name, f"no endpoint URL ends in {shown}", f"run: workos-sync register https://YOUR-HOST{shown}")
    elif all(is_enabled(row) is False for row in ours):
        yield _failure(name, "disabled: WorkOS sends no webhooks", remedy)
    for row in ours:
        if is_enabled(row) is not False:
            yield _route(name, row, ask_route) or _endpoint(name, row, remedy)


def _route(name: str, row: JsonObject, ask_route: AskRoute) -> Check | None:
    """Return that deliveries to an endpoint are lost; None if they are not, or if it is not known.

    Only a 404 shows it: a firewall, or WEBHOOK_ALLOWED_IPS, may refuse this machine and not WorkOS.
    """
    url = str(row["endpoint_url"])
    if ask_route(url) != HTTPStatus.NOT_FOUND:
        return None
    return _failure(name, f"{urlsplit(url).netloc} answers 404 there: every delivery is lost", FIND_WEB)


def _endpoint(name: str, row: JsonObject, remedy: str) -> Check:
    """Return what an endpoint that is not disabled lacks."""
    host = urlsplit(str(row["endpoint_url"])).netloc
    compared = compare_event_types(row)
    unknown = ["enabled"] * (is_enabled(row) is None) + ["its event types"] * (compared is None)
    missing, extra = compared or ([], [])
    if missing:
        return _failure(name, f"{host} is not subscribed to {', '.join(missing)}", remedy)
    if unknown:
        return _warning(name, f"WorkOS does not report {' and '.join(unknown)} for {host}", "look in its dashboard")
    if extra:
        saw = f"{host} is subscribed to event types that are not needed: {', '.join(extra)}"
        return _warning(name, saw, remedy)
    return _ok(name, f"{host}, enabled, with exactly the {len(SUBSCRIBED)} event types needed")


def _notify(settings: Settings) -> Iterator[Check]:
    """Yield a row for each target of NOTIFY that cannot be used; nothing is sent."""
    try:
        found = list(targets.problems_of(settings))
    except NotifyError as error:
        yield _warning("NOTIFY", f"not checked: {error}", "run: workos-sync notify test")
        return
    for problem in found:
        yield _failure("NOTIFY", *problem.split("; ", 1))
    if settings.notify and not found:
        yield _ok("NOTIFY", ", ".join(settings.notify_targets))


def _sign_in(settings: Settings) -> Iterator[Check]:
    """Check that operators can sign in at the identity provider; nobody signs in."""
    if (issuer := settings.oidc_issuer) is None:
        return
    name = "OIDC_ISSUER"
    try:
        oidc_issuer.require_installed()
    except ConfigurationError as error:
        yield _failure(name, *str(error).removeprefix(f"{name} ").split("; ", 1))
        return
    problem = oidc_issuer.problem_of(issuer)
    yield _failure(name, *problem) if problem else _ok(name, f"{issuer} answers, and is the issuer")


def _error_reports(settings: Settings) -> Iterator[Check]:
    """Check that errors can be reported to Sentry; nothing is sent."""
    if settings.sentry_dsn is None:
        return
    name, dsn = "SENTRY_DSN", settings.sentry_dsn.get_secret_value()
    try:
        error_reports.check(dsn)
    except ConfigurationError as error:
        yield _failure(name, *str(error).removeprefix(f"{name} ").split("; ", 1))
    else:
        yield _ok(name, f"errors are reported to {urlsplit(dsn).hostname}")


def _last_secret(engine: Engine | None, settings: Settings) -> str:
    """Return whether the last secret, which a rotation added, has ever verified a delivery; empty if not known."""
    if engine is None:
        return ""
    with read_transaction(engine) as tx:
        verified = any_verified(tx, [settings.workos_webhook_secrets[-1].get_secret_value()])
    return "; the last one has verified a delivery" if verified else "; the last one has not verified a delivery yet"


def _doorbell(redis: Redis) -> Check:
    """Enqueue a job and wait until it starts: a worker that reports itself may hang, or use another Redis."""
    try:
        seconds = Doorbell(redis, DRAIN).measure_pickup()
    except RedisError as error:
        return _failure("doorbell", *what_is_wrong(error))
    if seconds is not None:
        return _ok("doorbell", f"a worker answered within {max(seconds, 0.1):.1f} s")
    remedy = "restart worker; web, worker and clock must use the same REDIS_URL"
    return _failure("doorbell", f"no worker answered within {PICKUP_SECONDS:.0f} s", remedy)


def _work(verdict: Verdict) -> Iterator[Check]:
    """Yield a row for each condition that holds, and for each process and event that shows that work is done."""
    health, holds = verdict.health, {each.name for each in verdict.conditions}
    if health.redis is None:
        yield _ok("redis keys", "no other database uses them")
    for lane in health.lanes:
        if lane.workers:
            yield _ok(f"workers, {lane.name}", f"{len(lane.workers)} ({', '.join(sorted(set(lane.workers)))})")
    if "no_clock" not in holds:
        yield _ok("clock", "running")
    if health.silent_seconds is None:
        yield _last_webhook(health)
    if health.resync is None:
        yield _warning(
            "last resync", "none yet", "start clock and worker (or up, which runs both), or run: workos-sync resync"
        )
    elif not holds & {"resync_failed", "resync_late"}:
        yield _ok("last resync", f"{health.resync.status}, {duration(health.resync.age_seconds)} ago")
    for cause in verdict.causes:
        if (each := cause.condition).name not in CHECKED_APART:
            level = Level.FAILURE if each.severity is Severity.PROBLEM else Level.WARNING
            yield Check(each.name.replace("_", " "), level, cause.sentence, each.remedy)


def _last_webhook(health: Health) -> Check:
    """Return when the last webhook came, unless webhooks have stopped, which is a condition."""
    name, at = "last webhook", health.last_webhook_at
    if not health.webhooks_expected:
        return _ok(name, "none is expected: no secret is set, and web has not run")
    if at is None:
        return _warning(name, "none yet", "change something in WorkOS, then run doctor again")
    return _ok(name, f"{at:%Y-%m-%d %H:%M:%S} UTC")

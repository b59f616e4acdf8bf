"""`workos-sync migrate`, `doctor` and `register`."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from http import HTTPStatus
from urllib.parse import urlsplit

import click
import httpx2
from sqlalchemy import Connection, Engine

from models.database import in_transaction
from models.migrate import upgrade
from models.revisions import newest_revision
from models.tables import Action
from models.types import JsonObject
from worker import audit
from worker.bootstrap import report_redis
from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, logging_settings, migrated_engine, open_database
from worker.errors import BadRequestError, ConfigurationError, OperatorError, WorkOSError
from worker.kinds import SUBSCRIBED
from worker.logs import configure
from worker.metrics import Counters
from worker.mirror import change_feed
from worker.processes.embedded import redis_server, redis_url
from worker.repair.environment import connect
from worker.reports.doctor import (
    FIND_WEB,
    Check,
    Level,
    check_settings,
    compare_event_types,
    is_enabled,
    list_endpoints,
    run_checks,
    webhook_path,
)
from worker.settings import Reading, Settings, read_settings
from worker.workos_api.client import WorkOSClient

ANSWER_SECONDS = 3.0
"""How long the URL of an endpoint may take to answer."""
NO_ANSWER = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError)
"""What asking a URL raises."""
SAME_URL = "If WorkOS accepts each URL only once, make this one different, for example with ?secret=2"
ROTATION = """\
Until you delete the old endpoint, WorkOS sends every event to both. Each event is applied once.
1. Append a comma and the new secret to WORKOS_WEBHOOK_SECRETS, and restart web.
2. Wait for deliveries signed with the new secret: the metric
   workos_sync_webhook_secret_used_timestamp_seconds{place="2"} increases. Then delete the old endpoint in the WorkOS
   dashboard.
3. Remove the old secret from WORKOS_WEBHOOK_SECRETS, and restart web."""
NEEDED = {".env", "DATABASE_URL", "DATABASE_SCHEMA", "REDIS_URL"}
"""While one of these is wrong, `doctor` checks neither database nor Redis: it might check the wrong ones."""
CHECKED_SETTINGS = {
    "webhook secret": {"WORKOS_WEBHOOK_SECRETS"},
    "OPS_TOKENS": {"OPS_TOKENS"},
    "API_TOKENS": {"API_TOKENS"},
    "API_REFRESH_NAMES": {"API_REFRESH_NAMES", "API_TOKENS"},
    "WorkOS key": {"WORKOS_API_KEY", "WORKOS_CLIENT_ID", "WORKOS_BASE_URL"},
}
"""Checks of `doctor` that report whether settings are set."""

WORST_FIRST = (Level.FAILURE, Level.WARNING, Level.OK)


@click.command()
@options.reason
@options.as_json
def migrate(reason: str | None, as_json: bool) -> None:
    """Upgrade the database to the newest revision. Safe to run at any time, even by two hosts at once."""
    settings = logging_settings()
    try:
        upgrade(open_database(settings), noted=partial(_note_migration, actor(reason)))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    revision = newest_revision()
    output.result(f"the database is at revision {revision}", {"revision": revision}, as_json=as_json)


def _note_migration(by: audit.Actor, tx: Connection, before: str | None, after: str) -> None:
    audit.note(tx, by, Action.MIGRATE, before=before, after=after)


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Check everything this installation needs.

    Reports each check as ok, as a warning or as a failure, with the remedy. Exit code 1 if there is a failure.
    """
    reading = read_settings()
    configure(reading.settings.log_format)
    checks = [*check_settings(reading), *_check_installation(reading)]
    checks.sort(key=lambda check: WORST_FIRST.index(check.level))
    if as_json:
        output.json([check._asdict() for check in checks])
    elif output.on_terminal():
        output.lines(_for_people(checks))
    else:
        output.tab_separated(("level", "name", "saw", "remedy"), [check._asdict() for check in checks])
    sys.exit(1 if any(check.level is Level.FAILURE for check in checks) else 0)


def _for_people(checks: list[Check]) -> Iterator[str]:
    """Yield the verdict, what is wrong with the remedies, and what is well; given checks, the worst first."""
    wrong = [check for check in checks if check.level is not Level.OK]
    counts = (output.count(number, level) for level, number in Counter(check.level for check in wrong).items())
    text = f"{', '.join(counts)} in {len(checks)} checks" if wrong else f"all {len(checks)} checks passed"
    yield from layout.headline(checks[0].level, text, output.width())
    if wrong:
        yield ""
        found = ((check.level, f"{check.name}: {check.saw}", check.remedy) for check in wrong)
        yield from layout.findings(found, output.width())
    if passed := {check.name: check.saw for check in checks if check.level is Level.OK}:
        yield ""
        yield from layout.blocks([Column(name, fit=Fit.WRAP) for name in passed], [passed], output.width())


def _check_installation(reading: Reading) -> Iterator[Check]:
    """Run the checks that the invalid settings allow, and leave out those that would call such a setting not set."""
    settings, wrong = reading.settings, {problem.setting for problem in reading.problems}
    if first := sorted(wrong & NEEDED):
        yield Check("other checks", Level.WARNING, "not run", f"correct {' and '.join(first)} first")
        return
    engine = open_database(settings)
    redis = report_redis(redis_url(settings))
    callable_ = settings.repairs and not wrong & CHECKED_SETTINGS["WorkOS key"]
    connect_workos = (lambda: connect(settings, redis, Counters(redis))) if callable_ else None
    for check in run_checks(engine, redis, settings, connect_workos, _ask_route_if_reachable):
        if not wrong & CHECKED_SETTINGS.get(check.name, set()):
            yield check


def _ask_route_if_reachable(url: str) -> int | None:
    with suppress(*NO_ANSWER):
        return _ask_route(url)
    return None


@click.command()
@click.argument("url")
@click.option(
    "--rotate", is_flag=True, help="Create a second endpoint with a new secret, and print how to switch to it."
)
@options.reason
def register(url: str, rotate: bool, reason: str | None) -> None:
    """Create or correct the webhook endpoint at WorkOS.

    WorkOS then sends exactly the event types that are needed to URL, for example https://your-host/webhooks/workos.
    """
    settings = logging_settings("workos_api_key", "workos_client_id")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise ConfigurationError(f"{url}: WorkOS sends webhooks to https URLs only")
    # Not the whole URL, which may contain WEBHOOK_PATH_TOKEN.
    record = partial(_record, migrated_engine(), actor(reason), parts.hostname)
    with (
        redis_server(settings) as server,
        closing(Counters(redis := report_redis(server.url))) as counters,
        closing(connect(settings, redis, counters)) as workos,
    ):
        endpoints, _ = list_endpoints(workos)
        existing = [row for row in endpoints if row.get("endpoint_url") == url]
        if existing and not rotate:
            for row in existing:
                if changes := _correct(workos, row):
                    record(row["id"], changes)
        else:
            record(_create(workos, url), ["created"])
            click.echo(ROTATION if existing else "Set WORKOS_WEBHOOK_SECRETS to the secret, and start web.")

    if warning := _misdirected(url, settings):
        click.echo(f"warning: {warning}", err=True)


def _misdirected(url: str, settings: Settings) -> str | None:
    """Return why deliveries to `url` would not arrive here; None if they should."""
    ours = webhook_path(settings, masked=True)
    if urlsplit(url).path != webhook_path(settings):
        return f"the path of this URL is not {ours}, where web accepts deliveries. Is there a proxy that rewrites it?"
    try:
        status = _ask_route(url)
    except NO_ANSWER as error:
        return f"the URL does not answer from here: {type(error).__name__}. Start web, and check DNS, TLS and firewall"
    if status == HTTPStatus.NOT_FOUND:
        return f"the URL answers 404, so every delivery would be lost: {FIND_WEB}"
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return f"the URL answers {status} to a GET, not 405 as web does. Does it lead to web?"
    return None


def _ask_route(url: str) -> int:
    """Return the status with which a URL answers a GET, which delivers nothing; raise one of `NO_ANSWER`."""
    with httpx2.stream("GET", url, timeout=ANSWER_SECONDS) as answer:  # the body is not read
        return answer.status_code


def _record(engine: Engine, by: audit.Actor, host: str | None, id: str, changes: list[str]) -> None:
    about = {"kind": "endpoint", "object_id": id}
    in_transaction(engine, audit.note, by, Action.REGISTER, **about, host=host, changes=changes)


def _create(workos: WorkOSClient, url: str) -> str:
    try:
        created = workos.create_webhook_endpoint(url, SUBSCRIBED)
    except BadRequestError as error:
        raise OperatorError(f"{error}. {SAME_URL}") from error
    click.echo(f"created endpoint {created.get('id')} with {len(SUBSCRIBED)} event types")
    # Under any other name, the secret is in the answer. WorkOS shows it only now.
    click.echo(f"signing secret, shown only once: {created.get('secret') or change_feed.as_json(created)}")
    return str(created.get("id"))


def _correct(workos: WorkOSClient, endpoint: JsonObject) -> list[str]:
    compared = compare_event_types(endpoint)
    missing, extra = compared or ([], [])
    changes = ["enabled"] if is_enabled(endpoint) is False else []
    changes += [f"added {type}" for type in missing] + [f"removed {type}" for type in extra]
    if is_enabled(endpoint) is None:
        changes.append("set to enabled (WorkOS does not report whether it was)")
    if compared is None:
        changes.append(f"set to the {len(SUBSCRIBED)} event types needed (WorkOS does not report those it had)")
    if not changes:
        click.echo(f"endpoint {endpoint['id']} is already correct. To get a new secret, use --rotate.")
        return []
    try:
        workos.update_webhook_endpoint(endpoint["id"], SUBSCRIBED)
    except WorkOSError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        saw = f"WorkOS answered 404: it has no endpoint {endpoint['id']} any more, or cannot change it"
        raise OperatorError(f"{saw}. Look in the WorkOS dashboard, then run this command again") from error
    click.echo(f"endpoint {endpoint['id']}: {', '.join(changes)}; the secret is unchanged")
    return changes

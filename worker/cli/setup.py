"""`workos-sync migrate`, `doctor` and `register`."""

import sys
from contextlib import closing
from urllib.parse import urlsplit

import click

from models.migrate import upgrade
from models.revisions import newest_revision
from models.types import JsonObject
from worker.bootstrap import endpoint_redis
from worker.cli import options, output
from worker.cli.shared import logging_settings, open_database, operator
from worker.errors import BadRequestError, ConfigurationError, OperatorError
from worker.kinds import SUBSCRIBED
from worker.metrics import Counters
from worker.processes.embedded import redis_server, redis_url
from worker.repair.environment import connect
from worker.reports.doctor import Check, Level, compare_event_types, list_endpoints, run_checks
from worker.settings import load_settings
from worker.workos_api.client import WorkOSClient

SAME_URL = "If WorkOS accepts each URL only once, make this one different, for example with ?secret=2"
ROTATION = """\
Until you delete the old endpoint, WorkOS sends every event to both. Each event is applied once.
1. Append a comma and the new secret to WORKOS_WEBHOOK_SECRETS, and restart web.
2. Wait for deliveries signed with the new secret: the metric
   workos_sync_webhook_secret_used_timestamp_seconds{place="2"} increases. Then delete the old endpoint in the WorkOS
   dashboard.
3. Remove the old secret from WORKOS_WEBHOOK_SECRETS, and restart web."""


@click.command()
def migrate() -> None:
    """Upgrade the database to the newest revision. Safe to run at any time, even by two hosts at once."""
    settings = load_settings()
    try:
        upgrade(open_database(settings))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    click.echo(f"the database is at revision {newest_revision()}")


@click.command()
@options.as_json
def doctor(as_json: bool) -> None:
    """Check everything this installation needs.

    Reports each check as ok, as a warning or as a failure, with the remedy. Exit code 1 if there is a failure.
    """
    settings = logging_settings()
    engine = open_database(settings)
    redis = endpoint_redis(redis_url(settings))
    connect_workos = (lambda: connect(settings, redis, Counters(redis))) if settings.repairs else None
    checks = list(run_checks(engine, redis, settings, connect_workos))
    engine.dispose()
    output.rows(Check._fields, [check._asdict() for check in checks], as_json=as_json)
    sys.exit(1 if any(check.level is Level.FAILURE for check in checks) else 0)


@click.command()
@click.argument("url")
@click.option(
    "--rotate", is_flag=True, help="Create a second endpoint with a new secret, and print how to switch to it."
)
def register(url: str, rotate: bool) -> None:
    """Create or correct the webhook endpoint at WorkOS.

    WorkOS then sends the needed event types, and no others, to URL, for example https://your-host/webhooks/workos.
    """
    settings = logging_settings("workos_api_key", "workos_client_id")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise ConfigurationError(f"{url}: WorkOS sends webhooks to https URLs only")
    with (
        redis_server(settings) as server,
        closing(Counters(redis := endpoint_redis(server.url))) as counters,
        closing(connect(settings, redis, counters)) as workos,
    ):
        existing = [row for row in list_endpoints(workos) if row.get("endpoint_url") == url]
        if existing and not rotate:
            for row in existing:
                _correct(workos, row)
        else:
            _create(workos, url)
            click.echo(ROTATION if existing else "Set WORKOS_WEBHOOK_SECRETS to the secret, and start web.")


def _create(workos: WorkOSClient, url: str) -> None:
    try:
        created = workos.create_webhook_endpoint(url, SUBSCRIBED)
    except BadRequestError as error:
        raise OperatorError(f"{error}. {SAME_URL}") from error
    click.echo(f"created endpoint {created['id']} with {len(SUBSCRIBED)} event types; requested by {operator()}")
    click.echo(f"signing secret, shown only once: {created['secret']}")


def _correct(workos: WorkOSClient, endpoint: JsonObject) -> None:
    missing, extra = compare_event_types(endpoint)
    changes = ["enabled"] if endpoint.get("status") != "enabled" else []
    changes += [f"added {type}" for type in missing] + [f"removed {type}" for type in extra]
    if changes:
        workos.update_webhook_endpoint(endpoint["id"], SUBSCRIBED)
        click.echo(f"endpoint {endpoint['id']}: {', '.join(changes)}; the secret is unchanged")
    else:
        click.echo(f"endpoint {endpoint['id']} is already correct. To get a new secret, use --rotate.")

"""Setting up: the database, the webhook endpoint at WorkOS, and whether an installation has all it needs."""

import sys
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import click

from models.database import open_engine
from models.migrate import upgrade
from models.revisions import newest_revision
from worker.bootstrap import endpoint_redis
from worker.cli.shared import as_table, json_option, open_database, operator, show
from worker.decision.handlers import SUBSCRIBED
from worker.errors import BadRequestError, ConfigurationError, OperatorError
from worker.logs import configure
from worker.metrics import Counters
from worker.mirror import change_feed
from worker.processes.embedded import redis_server, redis_url
from worker.repair.environment import connect
from worker.reports.doctor import Check, Level, compare_event_types, list_endpoints, run_checks
from worker.settings import load_settings
from worker.workos_api.client import WorkOSClient

SAME_URL = "WorkOS rejected the endpoint. If it has this URL already, add something to it, such as ?secret=2"
ROTATION = """\
Until the old endpoint is gone every event comes twice, signed with either secret; that does no harm.
1. Add the secret to WORKOS_WEBHOOK_SECRETS, after the old one and a comma, and restart web.
2. When deliveries with it arrive (workos_sync_webhook_secret_used_timestamp_seconds{place="2"} moves on), delete the
   old endpoint in the WorkOS dashboard.
3. Take the old secret out of WORKOS_WEBHOOK_SECRETS, and restart web."""


@click.command()
def migrate() -> None:
    """Bring the database to the newest revision. Safe to run at any time, also twice at once."""
    settings = load_settings()
    try:
        upgrade(open_database(settings))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    click.echo(f"the database is at revision {newest_revision()}")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look at everything that this installation needs; exit code 1 if something is wrong."""
    settings = load_settings()
    configure(settings.log_format)
    engine = open_engine(settings.database_url)
    redis = endpoint_redis(redis_url(settings))
    opens = (lambda: connect(settings, redis, Counters(redis))) if settings.repairs else None
    checks = list(run_checks(engine, redis, settings, opens))
    engine.dispose()
    if as_json:
        click.echo(change_feed.as_json([check._asdict() for check in checks]))
    else:
        show(as_table(Check._fields, [check._asdict() for check in checks]))
    sys.exit(1 if any(check.level is Level.FAILURE for check in checks) else 0)


@click.command()
@click.argument("url")
@click.option("--rotate", is_flag=True, help="Add a second endpoint with a secret of its own, though there is one.")
def register(url: str, rotate: bool) -> None:
    """Have WorkOS send webhooks to URL: exactly the needed event types."""
    settings = load_settings("workos_api_key", "workos_client_id")
    configure(settings.log_format)
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise ConfigurationError(f"{url}: WorkOS sends webhooks to https URLs only")
    with (
        redis_server(settings) as server,
        closing(Counters(redis := endpoint_redis(server.url))) as counters,
        closing(connect(settings, redis, counters)) as workos,
    ):
        try:
            _register(workos, url, rotate=rotate)
        except BadRequestError as error:
            raise OperatorError(f"{error}. {SAME_URL}") from error


def _register(workos: WorkOSClient, url: str, *, rotate: bool) -> None:
    there = [row for row in list_endpoints(workos) if row.get("endpoint_url") == url]
    if there and not rotate:
        for row in there:
            _amend(workos, row)
        return
    made = workos.create_webhook_endpoint(url, SUBSCRIBED)
    click.echo(f"endpoint {made['id']} gets {len(SUBSCRIBED)} event types; registered by {operator()}")
    click.echo(f"its secret, shown only now: {made['secret']}")
    click.echo(ROTATION if there else "set WORKOS_WEBHOOK_SECRETS to it, and start web")


def _amend(workos: WorkOSClient, endpoint: dict[str, Any]) -> None:
    missing, extra = compare_event_types(endpoint)
    disabled = endpoint.get("status") != "enabled"
    if not missing and not extra and not disabled:
        click.echo(f"endpoint {endpoint['id']} is right already; for another secret: --rotate")
        return
    workos.update_webhook_endpoint(endpoint["id"], SUBSCRIBED)
    done = [
        *(["enabled"] if disabled else []),
        *(f"added {type}" for type in missing),
        *(f"took away {type}" for type in extra),
    ]
    click.echo(f"endpoint {endpoint['id']}: {', '.join(done)}; its secret stays as it is")

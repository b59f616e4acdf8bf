"""`workos-sync register` and `endpoints`: the webhook endpoints at WorkOS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import click

from models.enums import Action
from worker.cli import options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, known, logging_settings, migrated_engine, reaching_workos
from worker.errors import BadRequestError, ConfigurationError, NotFoundError, OperatorError, WorkOSError
from worker.lazy import lazy_imports

with lazy_imports():
    from models import database, types
    from worker import audit, bootstrap, json_format, kinds, metrics, settings, webhook_endpoints
    from worker.processes import embedded
    from worker.repair import environment
    from worker.workos_api import client

if TYPE_CHECKING:
    from sqlalchemy import Engine

SAME_URL = "If WorkOS accepts each URL only once, make this one different, for example with ?secret=2"
ROTATION = """\
Until you delete the old endpoint, WorkOS sends every event to both. Each event is applied once.
1. Append a comma and the new secret to WORKOS_WEBHOOK_SECRETS, and restart web.
2. Wait until workos-sync doctor reports that the last secret has verified a delivery. Then delete the old endpoint:
   workos-sync endpoints delete {old} --reason TEXT
3. Remove the old secret from WORKOS_WEBHOOK_SECRETS, and restart web."""


@click.command()
@click.argument("url")
@click.option(
    "--rotate", is_flag=True, help="Create a second endpoint with a new secret, and print how to switch to it."
)
@options.reason
@options.as_json
def register(url: str, rotate: bool, reason: str | None, as_json: bool) -> None:
    """Create or correct the webhook endpoint at WorkOS.

    WorkOS then sends exactly the event types that are needed to URL, for example https://your-host/webhooks/workos.
    """
    given = logging_settings("workos_api_key", "workos_client_id")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1"):
        raise ConfigurationError(f"{url}: WorkOS sends webhooks to https URLs only")
    # Not the whole URL, which may contain WEBHOOK_PATH_TOKEN.
    record = partial(_record, migrated_engine(), actor(reason), parts.hostname)
    with _workos(given) as workos:
        endpoints, _ = webhook_endpoints.list_endpoints(workos)
        existing = [row for row in endpoints if row.get("endpoint_url") == url]
        if existing and not rotate:
            answers = [_correct(workos, row) for row in existing]
        else:
            answers = [_create(workos, url)]
            old = " and ".join(row["id"] for row in existing)
            steps = ROTATION.format(old=old) if existing else "Set WORKOS_WEBHOOK_SECRETS to the secret, and start web."
            answers[0] = answers[0]._replace(text=f"{answers[0].text}\n{steps}")
        for answer in answers:
            if answer.changes:
                record(answer.id, answer.changes)
            if not as_json:
                click.echo(answer.text)
    if as_json:
        output.json([{"id": each.id, "changes": each.changes, "secret": each.secret} for each in answers])
    if warning := _misdirected(url, given):
        click.echo(f"warning: {warning}", err=True)


@contextmanager
def _workos(given: settings.Settings) -> Iterator[client.WorkOSClient]:
    """Yield a WorkOS client. It needs no mirror: `register` may be the first command."""
    with (
        embedded.redis_server(given) as server,
        closing(metrics.Counters(redis := bootstrap.report_redis(server.url))) as counters,
        closing(environment.connect(given, redis, counters)) as workos,
    ):
        yield workos


def _misdirected(url: str, given: settings.Settings) -> str | None:
    """Return why deliveries to `url` would not arrive here; None if they should."""
    ours = webhook_endpoints.webhook_path(given, masked=True)
    if urlsplit(url).path != webhook_endpoints.webhook_path(given):
        return f"the path of this URL is not {ours}, where web accepts deliveries. Is there a proxy that rewrites it?"
    try:
        status = webhook_endpoints.ask_route(url)
    except webhook_endpoints.NO_ANSWER as error:
        return f"the URL does not answer from here: {type(error).__name__}. Start web, and check DNS, TLS and firewall"
    if status == HTTPStatus.NOT_FOUND:
        return f"the URL answers 404, so every delivery would be lost: {webhook_endpoints.FIND_WEB}"
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return f"the URL answers {status} to a GET, not 405 as web does. Does it lead to web?"
    return None


def _record(engine: Engine, by: audit.Actor, host: str | None, id: str, changes: list[str]) -> None:
    about = {"kind": "endpoint", "object_id": id}
    database.in_transaction(engine, audit.note, by, Action.REGISTER, **about, host=host, changes=changes)


class _Answer(NamedTuple):
    """The result of a change of an endpoint, in words and for programs. Only a new endpoint has a secret."""

    id: str
    text: str
    changes: list[str]
    secret: str | None = None


def _create(workos: client.WorkOSClient, url: str) -> _Answer:
    try:
        created = workos.create_webhook_endpoint(url, kinds.SUBSCRIBED)
    except BadRequestError as error:
        raise OperatorError(f"{error}. {SAME_URL}") from error
    # Under any other name, the secret is in the answer. WorkOS shows it only now.
    secret = created.get("secret") or json_format.as_json(created)
    text = f"created endpoint {created.get('id')} with {len(kinds.SUBSCRIBED)} event types\n"
    return _Answer(str(created.get("id")), f"{text}signing secret, shown only once: {secret}", ["created"], secret)


def _correct(workos: client.WorkOSClient, endpoint: types.JsonObject) -> _Answer:
    compared = webhook_endpoints.compare_event_types(endpoint)
    missing, extra = compared or ([], [])
    changes = ["enabled"] if webhook_endpoints.is_enabled(endpoint) is False else []
    changes += [f"added {type}" for type in missing] + [f"removed {type}" for type in extra]
    if webhook_endpoints.is_enabled(endpoint) is None:
        changes.append("set to enabled (WorkOS does not report whether it was)")
    if compared is None:
        changes.append(f"set to the {len(kinds.SUBSCRIBED)} event types needed (WorkOS does not report those it had)")
    id = endpoint["id"]
    if not changes:
        return _Answer(id, f"endpoint {id} is already correct. To get a new secret, use --rotate.", [])
    try:
        workos.update_webhook_endpoint(id, kinds.SUBSCRIBED)
    except WorkOSError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        saw = f"WorkOS answered 404: it has no endpoint {id} any more, or cannot change it"
        raise OperatorError(f"{saw}. Look in the WorkOS dashboard, then run this command again") from error
    return _Answer(id, f"endpoint {id}: {', '.join(changes)}; the secret is unchanged", changes)


@click.group()
def endpoints() -> None:
    """List or delete the webhook endpoints at WorkOS. To create or correct one, use `register`."""


@endpoints.command("list")
@output.listing(
    Column("id"),
    Column("url", fit=Fit.WRAP),
    Column("enabled"),
    Column("here", "leads here"),
    Column("event_types", fit=Fit.WRAP),
    Column("created_at", wide=True),
    empty="no endpoints: create one with workos-sync register URL",
)
def endpoints_list(out: output.Listing) -> None:
    """List the webhook endpoints of the WorkOS environment, and whether their event types are those needed."""
    given = logging_settings("workos_api_key", "workos_client_id")
    with reaching_workos(given, bound=False) as (_, workos):
        rows, complete = webhook_endpoints.list_endpoints(workos)
    out.show([webhook_endpoints.describe(row, given) for row in rows])
    if not complete:
        output.note(f"only the first {len(rows)} are listed")


@endpoints.command("delete")
@click.argument("endpoint_id", metavar="ENDPOINT_ID")
@options.yes
@options.required_reason
@options.as_json
def endpoints_delete(endpoint_id: str, yes: bool, reason: str, as_json: bool) -> None:
    """Delete a webhook endpoint at WorkOS, for example the old one after `register --rotate`.

    WorkOS sends nothing more to it. Its events are then read from the events API, within seconds.
    """
    given = logging_settings("workos_api_key", "workos_client_id")
    with reaching_workos(given, bound=False) as (services, workos):
        rows, _ = webhook_endpoints.list_endpoints(workos)
        found = next((row for row in rows if row.get("id") == endpoint_id), None)
        endpoint = known(found, f"WorkOS has no endpoint {endpoint_id}")
        row = webhook_endpoints.describe(endpoint, given)
        same = [each["id"] for each in rows if each.get("endpoint_url") == endpoint.get("endpoint_url")]
        others = [id for id in same if id != endpoint_id]
        then = f"webhooks only through {' and '.join(others)}" if others else "no webhooks"
        if not yes:
            click.confirm(f"Delete {endpoint_id}? WorkOS then sends {then} to {row['url']}", abort=True, err=True)
        try:
            workos.delete_webhook_endpoint(endpoint_id)
        except NotFoundError:
            raise OperatorError(f"WorkOS has no endpoint {endpoint_id} any more") from None
        about = {"kind": "endpoint", "object_id": endpoint_id, "host": urlsplit(row["url"]).hostname}
        database.in_transaction(services.engine, audit.note, actor(reason), Action.DELETE_ENDPOINT, **about)
    output.result(f"deleted endpoint {endpoint_id}", {"deleted": endpoint_id}, as_json=as_json)

"""`workos-sync events` and `workos-sync replay`: inspect, dismiss and reprocess the events in the inbox."""

import sys
from contextlib import closing
from typing import Any

import click
from rich.table import Table
from sqlalchemy import Engine

from models.tables import EventStatus
from models.types import Record
from worker.bootstrap import build_services
from worker.cli.shared import (
    TIME,
    TIME_EXAMPLES,
    as_table,
    cell,
    in_utc,
    json_option,
    known,
    migrated_engine,
    operator,
    print_report,
    print_rows,
    print_table,
    until_stopped,
)
from worker.errors import OperatorError
from worker.logs import configure
from worker.mirror import change_feed
from worker.processes.embedded import redis_server
from worker.repair import replay as replays
from worker.repair.catch_up import REMEDY
from worker.repair.work import Repair
from worker.reports import listings
from worker.reports.progress import progress
from worker.runs import wait_for_run
from worker.settings import load_settings


@click.group()
def events() -> None:
    """Inspect received events, and dismiss failed ones."""


@events.command("list")
@click.option(
    "--status", type=click.Choice([status.value for status in EventStatus]), help="Only events in this status."
)
@click.option("--type", help="Only events of this type, such as user.deleted.")
@click.option("--organization", metavar="ID", help="Only events of this workspace.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows.")
@json_option
def events_list(status: str | None, type: str | None, organization: str | None, limit: int, as_json: bool) -> None:
    """List the newest events with their outcomes and errors."""
    rows = listings.list_events(migrated_engine(), status=status, type=type, organization_id=organization, limit=limit)
    columns = ("received_at", "id", "type", "status", "outcome", "object_id", "deliveries", "attempts", "error")
    print_rows(columns, rows, as_json=as_json)


@events.command("show")
@click.argument("event_id")
@json_option
def events_show(event_id: str, as_json: bool) -> None:
    """Show one event: payload, outcome, attempts and changes."""
    event = known(listings.show_event(migrated_engine(), event_id), f"there is no event {event_id}")
    if as_json:
        click.echo(change_feed.as_json(event))
        return
    table = Table(show_header=False)
    for name, value in event.items():
        table.add_row(name, cell(change_feed.as_json(value) if isinstance(value, (dict, list)) else value))
    print_table(table)


@events.command("failures")
@json_option
def events_failures(as_json: bool) -> None:
    """Group failed events by the fingerprint of their error.

    To retry a group: `workos-sync replay --fingerprint`. Exit code 1 if any event failed.
    """
    rows = listings.failures(migrated_engine())
    if as_json:
        click.echo(change_feed.as_json(rows))
    elif rows:
        print_table(as_table(("fingerprint", "events", "type", "first", "last", "example", "error"), rows))
    else:
        click.echo("there are no failed events")
    sys.exit(1 if rows else 0)


@events.command("dismiss")
@click.argument("event_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--why", required=True, help="Reason, recorded with the event.")
def events_dismiss(event_ids: tuple[str, ...], why: str) -> None:
    """Mark failed events as not needed.

    Dismissed events are not retried, and no longer reported as a problem.
    """
    number = replays.dismiss(migrated_engine(), event_ids, operator(), why)
    click.echo(f"{number} dismissed")
    if number < len(set(event_ids)):
        raise OperatorError(f"{len(set(event_ids)) - number} ids are unknown or did not fail")


@click.command("replay")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this event. Repeat the option for more events.")
@click.option("--failed", is_flag=True, help="Only events that failed.")
@click.option("--fingerprint", help="Only failed events with this error; see `events failures`.")
@click.option("--type", help="Only events of this type, such as user.deleted.")
@click.option("--organization", "organization_id", metavar="ID", help="Only events of this workspace.")
@click.option("--since", type=TIME, metavar="DATETIME", help=f"Only events received at or after {TIME_EXAMPLES}.")
@click.option("--until", type=TIME, metavar="DATETIME", help=f"Only events received before {TIME_EXAMPLES}.")
@click.option("--why", help="Reason, recorded with the run.")
@click.option("--again", is_flag=True, help="Replay a selection again even if none of its events has failed since.")
@click.option("--dry-run", is_flag=True, help="Change nothing; report how many events match and what would change.")
@json_option
def replay_command(why: str | None, again: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Reprocess stored events. Idempotent.

    At least one option that selects events is required.
    """
    given |= {name: in_utc(given[name]) for name in ("since", "until")}
    selection = replays.Selection(**given)
    if not selection.as_json():
        raise click.UsageError("select the events: --failed, --id, --fingerprint, --type, --organization or --since")
    settings = load_settings()
    configure(settings.log_format)
    engine = migrated_engine()
    if dry_run:
        print_report(replays.plan(engine, selection)._asdict(), as_json=as_json)
        return
    run_id = replays.start(engine, selection, operator(), why, again=again)
    with (
        redis_server(settings) as redis,
        closing(build_services(settings, redis.url)) as services,
        until_stopped() as stop,
    ):
        work = Repair(engine, None, settings, services.bell, stop.is_set)
        with progress(engine, run_id):
            over = work.one(run_id) or wait_for_run(engine, run_id, stop.wait)
    print_report(replayed(engine, run_id), as_json=as_json)
    sys.exit(0 if over else 1)


def replayed(engine: Engine, run_id: str) -> Record:
    """Return a replay's status, progress and outcomes so far; `remedy` if it skipped events without a payload."""
    row = listings.run(engine, run_id) or {}
    kept = {name: row.get(name) for name in ("id", "status", "requested_by", "reason", "total", "done", "skipped")}
    return kept | {"results": replays.results(engine, run_id), "remedy": REMEDY if row.get("skipped") else None}

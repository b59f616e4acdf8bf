"""`workos-sync events` and `workos-sync replay`: inspect, dismiss and reprocess the events in the inbox."""

import sys
from typing import Any

import click

from models.tables import EventStatus
from worker.cli import options, output
from worker.cli.runs import replayed, work_on_run
from worker.cli.shared import actor, known, logging_settings, migrated_engine, open_services
from worker.errors import OperatorError
from worker.mirror import change_feed
from worker.repair import replay as replays
from worker.reports import listings

type_option = click.option("--type", help="Only events of this type, such as user.deleted.")
organization_option = click.option(
    "--organization", "organization_id", metavar="ID", help="Only events of this workspace."
)


@click.group()
def events() -> None:
    """Inspect received events, and dismiss failed ones."""


@events.command("list")
@click.option(
    "--status", type=click.Choice([status.value for status in EventStatus]), help="Only events in this status."
)
@type_option
@organization_option
@options.limit
@options.as_json
def events_list(as_json: bool, limit: int, **filters: str | None) -> None:
    """List the newest events with their outcomes and errors."""
    columns = ("received_at", "id", "type", "status", "outcome", "object_id", "deliveries", "attempts", "error")
    output.rows(columns, listings.list_events(migrated_engine(), limit=limit, **filters), as_json=as_json)


@events.command("show")
@click.argument("event_id")
@options.as_json
def events_show(event_id: str, as_json: bool) -> None:
    """Show one event: payload, outcome, attempts and changes."""
    event = known(listings.show_event(migrated_engine(), event_id), f"there is no event {event_id}")
    if as_json:
        output.json(event)
    else:
        documents = {n: change_feed.as_json(value) for n, value in event.items() if isinstance(value, (dict, list))}
        output.fields(event | documents)


@events.command("failures")
@options.as_json
def events_failures(as_json: bool) -> None:
    """List failed events, grouped by error.

    To retry a group, pass its fingerprint to `workos-sync replay --fingerprint`. Exit code 1 if any event failed.
    """
    rows = listings.failures(migrated_engine())
    columns = ("fingerprint", "events", "type", "first", "last", "example", "error")
    output.rows(columns, rows, as_json=as_json, empty="there are no failed events")
    sys.exit(1 if rows else 0)


@events.command("dismiss")
@click.argument("event_ids", nargs=-1, required=True, metavar="ID...")
@options.required_reason
def events_dismiss(event_ids: tuple[str, ...], reason: str) -> None:
    """Mark failed events as not needed.

    Dismissed events are neither retried nor reported as a problem.
    """
    number = replays.dismiss(migrated_engine(), event_ids, actor(reason))
    click.echo(f"{number} dismissed")
    if number < len(set(event_ids)):
        rest = len(set(event_ids)) - number
        raise OperatorError(f"{output.count(rest, 'id')} {'is' if rest == 1 else 'are'} unknown or did not fail")


@click.command("replay")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this event. Repeat the option for more events.")
@click.option("--failed", is_flag=True, help="Only events that failed.")
@click.option("--fingerprint", help="Only failed events with this error; see `events failures`.")
@type_option
@organization_option
@options.time("--since", f"Only events received at or after {options.THIS_TIME}.")
@options.time("--until", f"Only events received before {options.THIS_TIME}.")
@options.reason
@click.option("--again", is_flag=True, help="Replay even if these events were already replayed successfully.")
@click.option("--dry-run", is_flag=True, help="Change nothing; report how many events match and what would change.")
@options.as_json
def replay_command(reason: str | None, again: bool, dry_run: bool, as_json: bool, **selected: Any) -> None:
    """Reprocess stored events. Safe to repeat.

    Workers apply the events. At least one option that selects events is required.
    """
    selection = replays.Selection(**selected)  # the remaining options are its fields
    if not selection.as_json():
        raise click.UsageError("select events: --failed, --id, --fingerprint, --type, --organization, --since, --until")
    settings = logging_settings()
    engine = migrated_engine()
    if dry_run:
        output.report(replays.plan(engine, selection)._asdict(), as_json=as_json)
        return
    run_id = replays.start(engine, selection, actor(reason), again=again)
    with open_services(settings) as services:
        finished = work_on_run(services, None, run_id)
    output.report(replayed(engine, run_id), as_json=as_json)
    sys.exit(0 if finished else 1)

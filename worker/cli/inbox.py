"""`workos-sync events` and `workos-sync replay`: inspect, dismiss and reprocess the events in the inbox."""

import sys
from typing import Any

import click

from models.enums import EventStatus
from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.runs import note_interrupted, print_replay, replayed, work_on_run
from worker.cli.shared import actor, known, logging_settings, migrated_engine, open_services, organization_id
from worker.errors import OperatorError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import json_format
    from worker.inbox import dismissal, selection
    from worker.repair import replay as replays
    from worker.reports import access, explain, listings

type_option = click.option("--type", help="Only events of this type, such as user.deleted.")

EVENT = (
    *("id", "type", "status", "outcome", "error", "kind", "object_id", "organization_id", "workspace", "occurred_at"),
    *("received_at", "processed_at", "source", "deliveries", "attempts", "replays", "decided_by", "fingerprint"),
    *("dismissed_by", "dismissed_why", "traceback"),
)
"""The fields of an event that a terminal shows, apart from its changes and payload."""
CHANGES = (
    *(Column("at"), Column("kind"), Column("object_id"), Column("id", "change")),
    *(Column("actor", fit=Fit.WRAP), Column("changed", fit=Fit.WRAP)),
)

GROUP = (
    *(Column("fingerprint"), Column("events"), Column("type"), Column("first"), Column("last"), Column("example")),
    *(Column("workspaces", fit=Fit.WRAP), Column("error", fit=Fit.WRAP), Column("traceback", fit=Fit.WRAP)),
)
"""The fields of a group of failed events on a terminal. Its events failed with the same error."""


@click.group()
def events() -> None:
    """Inspect received events, and dismiss failed ones."""


@events.command("list")
@click.option(
    "--status", type=click.Choice([status.value for status in EventStatus]), help="Only events in this status."
)
@type_option
@options.organization
@options.limit
@output.listing(
    Column("received_at", "when"),
    Column("id"),
    Column("type", fit=Fit.FOLD),
    Column("result"),
    Column("error", fit=Fit.WRAP),
    Column("status", wide=True),
    Column("outcome", wide=True),
    Column("object_id", wide=True),
    Column("organization_id", wide=True),
    Column("deliveries", wide=True),
    Column("attempts", wide=True),
    empty="no events match",
)
def events_list(out: output.Listing, limit: int, organization: str | None, **filters: str | None) -> None:
    """List the newest events with their outcomes and errors.

    The result is the outcome of an event that is done, and the status of any other.
    """
    engine = migrated_engine()
    filters["organization_id"] = organization_id(engine, organization, unmirrored=True)
    rows = listings.list_events(engine, limit=limit, **filters)
    out.show([row | {"result": row["outcome"] or row["status"]} for row in rows])


@events.command("show")
@click.argument("event_id")
@options.as_json
def events_show(event_id: str, as_json: bool) -> None:
    """Show one event: payload, outcome, attempts and changes."""
    event = known(listings.show_event(migrated_engine(), event_id), f"there is no event {event_id}")
    if as_json or not output.on_terminal():
        output.record(event, as_json=as_json)
        return
    body, changes = event.pop("body"), event.pop("changes")
    event["workspace"] = event["about"]["workspace_name"]
    output.record({name: event[name] for name in EVENT})
    with_fields = [
        row | {"actor": access.actor_of(row), "changed": layout.changed(explain.changed_fields([row]))}
        for row in changes
    ]
    output.section("Changes", CHANGES, with_fields, lead=3)
    if body is not None:
        output.title("Payload")
        output.lines(layout.wrap(layout.plain(json_format.as_json(body)), output.width()))
    if event["status"] == EventStatus.FAILED:
        output.note(f"to retry: workos-sync replay --id {event_id} --reason TEXT")
        output.note(f"to dismiss: workos-sync events dismiss {event_id} --reason TEXT")


@events.command("failures")
@output.listing(
    Column("fingerprint"),
    Column("events"),
    Column("type"),
    Column("last"),
    Column("example"),
    Column("error", fit=Fit.WRAP),
    Column("first", wide=True),
    Column("traceback", fit=Fit.WRAP, wide=True),
    empty="there are no failed events",
)
def events_failures(out: output.Listing) -> None:
    """List failed events, grouped by error.

    To retry a group, pass its fingerprint to `workos-sync replay --fingerprint`. Exit code 1 if any event failed.
    """
    rows = listings.failures(migrated_engine())
    groups = [row | {"workspaces": _affected(row)} for row in rows]
    out.show(rows, people=layout.blocks(GROUP, groups, output.width(), lead=1))
    if rows and out.for_people:
        output.note("to see an event: workos-sync events show EXAMPLE")
        output.note("to retry a group: workos-sync replay --fingerprint FINGERPRINT --reason TEXT")
    sys.exit(1 if rows else 0)


def _affected(group: dict[str, Any]) -> str:
    """Return the names of the workspaces that a group is about, and the number of further ones."""
    names = [each["name"] or each["organization_id"] for each in group["workspaces"]]
    more = group["affected"] - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


@events.command("dismiss")
@click.argument("event_ids", nargs=-1, required=True, metavar="ID...")
@options.required_reason
@options.as_json
def events_dismiss(event_ids: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Mark failed events as not needed.

    Dismissed events are neither retried nor reported as a problem.
    """
    number = dismissal.dismiss(migrated_engine(), event_ids, actor(reason))
    output.result(f"{number} dismissed", {"dismissed": number}, as_json=as_json)
    if number < len(set(event_ids)):
        rest = len(set(event_ids)) - number
        raise OperatorError(f"{output.count(rest, 'id')} {'is' if rest == 1 else 'are'} unknown or did not fail")


@click.command("replay")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this event. Repeat the option for more events.")
@click.option("--failed", is_flag=True, help="Only events that failed.")
@click.option("--fingerprint", help="Only failed events with this error; see `events failures`.")
@type_option
@options.organization
@options.time("--since", f"Only events received at or after {options.THIS_TIME}.")
@options.time("--until", f"Only events received before {options.THIS_TIME}.")
@options.reason
@click.option("--again", is_flag=True, help="Replay even if these events were already replayed successfully.")
@click.option("--dry-run", is_flag=True, help="Change nothing; report how many events match and what would change.")
@options.as_json
def replay_command(
    organization: str | None, reason: str | None, again: bool, dry_run: bool, as_json: bool, **selected: Any
) -> None:
    """Reprocess stored events. Safe to repeat.

    Workers apply the events. At least one option that selects events is required.
    """
    if organization is None and not any(selected.values()):
        raise click.UsageError("select events: --failed, --id, --fingerprint, --type, --organization, --since, --until")
    settings = logging_settings()
    engine = migrated_engine()
    workspace = organization_id(engine, organization, unmirrored=True)
    selected_events = selection.Selection(organization_id=workspace, **selected)  # the remaining options are its fields
    if dry_run:
        planned = replays.plan(engine, selected_events)._asdict()
        output.record(
            planned if as_json else planned | {"outcomes": output.counted(planned["outcomes"])}, as_json=as_json
        )
        return
    run_id = replays.start(engine, selected_events, actor(reason), again=again)
    with open_services(settings) as services:
        finished = work_on_run(services, None, run_id)
    print_replay(replayed(engine, run_id), as_json=as_json)
    if not finished:
        note_interrupted(run_id)
    sys.exit(0 if finished else 1)

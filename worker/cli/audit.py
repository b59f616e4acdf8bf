"""`workos-sync audit`: list actions of operators, settings and retention."""

from datetime import datetime

import click

from models.tables import Action, Via
from models.types import JsonObject
from worker.cli import options, output
from worker.cli.shared import migrated_engine
from worker.reports import listings


@click.group()
def audit() -> None:
    """List actions of operators, settings and retention."""


@audit.command("list")
@click.option("--who", help="Only actions of this operator or setting.")
@click.option(
    "--via",
    type=click.Choice([via.value for via in Via]),
    help="Only actions requested through the CLI, a page, settings or the clock.",
)
@click.option("--action", type=click.Choice([action.value for action in Action]), help="Only actions of this kind.")
@click.option("--object", "object_id", metavar="ID", help="Only actions on this object, run, event or hook.")
@click.option("--organization", "organization_id", metavar="ID", help="Only actions on this workspace.")
@options.time("--since", f"Only actions at or after {options.THIS_TIME}.")
@options.limit
@options.as_json
def audit_list(as_json: bool, limit: int, since: datetime | None, **filters: str | None) -> None:
    """List the newest actions: who did what, when, how and why."""
    rows = listings.list_audit(migrated_engine(), filters, since=since, limit=limit)
    if not as_json:
        rows = [row | {"details": _in_lines(row["details"])} for row in rows]
    output.rows(("at", "who", "via", "action", "object_id", "reason", "details"), rows, as_json=as_json)


def _in_lines(details: JsonObject | None) -> str:
    return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in (details or {}).items())

"""`workos-sync audit`: list actions of operators, settings and retention."""

from datetime import datetime

import click

from models.enums import Action, Via
from worker.cli import options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import migrated_engine, organization_id
from worker.lazy import lazy_imports

with lazy_imports():
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
@click.option(
    "--action",
    type=click.Choice([action.value for action in Action]),
    metavar="ACTION",
    help="Only actions of this kind, such as replay or forget. An unknown one prints the possible kinds.",
)
@click.option("--object", "object_id", metavar="ID", help="Only actions on this object, run, event or hook.")
@options.organization
@options.time("--since", f"Only actions at or after {options.THIS_TIME}.")
@options.limit
@output.listing(
    Column("at", "when"),
    Column("who", fit=Fit.CUT),
    Column("action"),
    Column("object_id"),
    Column("reason", fit=Fit.WRAP),
    Column("details", fit=Fit.WRAP),
    Column("via", wide=True),
    Column("kind", wide=True),
    Column("organization_id", wide=True),
    Column("id", wide=True),
    empty="no actions",
)
def audit_list(
    out: output.Listing, limit: int, since: datetime | None, organization: str | None, **filters: str | None
) -> None:
    """List the newest actions: who did what, when, how and why."""
    engine = migrated_engine()
    filters["organization_id"] = organization_id(engine, organization, unmirrored=True)
    out.show(listings.list_audit(engine, filters, since=since, limit=limit))

"""`workos-sync seats`: members per workspace, for billing."""

from datetime import datetime

import click

from worker.cli import options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import migrated_engine
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.reports import review
    from worker.reports import seats as counted


@click.command()
@options.time("--at", f"Count the members at {options.THIS_TIME}. Default: now.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV for a spreadsheet.")
@output.listing(
    Column("organization_id"),
    Column("workspace_name", fit=Fit.CUT),
    Column("stripe_customer_id"),
    Column("external_id", fit=Fit.CUT),
    Column("seats"),
    empty="no workspaces",
)
def seats(out: output.Listing, at: datetime | None, as_csv: bool) -> None:
    """Count the members of each live workspace, with its Stripe customer, as in the view `seats`."""
    if as_csv and out.form is not None:
        raise click.UsageError("--csv and --json cannot be combined")
    rows = counted.list_seats(migrated_engine(), at)
    if as_csv:
        for line in (counted.COLUMNS, *([row[name] for name in counted.COLUMNS] for row in rows)):
            click.echo(review.csv_line(line), nl=False)
    else:
        out.show(rows)

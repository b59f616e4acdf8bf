"""`workos-sync config`."""

import click

from worker.cli import output
from worker.cli.layout import Column, Fit
from worker.errors import ConfigurationError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import settings


@click.command()
@output.listing(Column("setting"), Column("origin"), Column("value", fit=Fit.WRAP), empty="no settings")
def config(out: output.Listing) -> None:
    """Show all settings, where each comes from, and errors in them.

    Secrets are masked. Connects to nothing. An invalid setting is shown with its default, and
    the exit code is 2.
    """
    reading = settings.read_settings()
    rows = reading.rows()
    problems, warnings = ([each._asdict() for each in found] for found in (reading.problems, reading.warnings))
    document = {"settings": rows, "problems": problems, "warnings": warnings}
    out.show([row | {"value": _text(row["value"])} for row in rows], document=document)
    for warning in reading.warnings:
        click.echo(f"workos-sync: warning: {warning}", err=True)
    if reading.problems:
        raise ConfigurationError(reading.message)


def _text(value: object) -> str | None:
    """Return a value in the form that it has in `.env`, except for masked secrets."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or None
    if isinstance(value, list):
        return ", ".join(map(str, value)) or None
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)

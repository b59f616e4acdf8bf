"""How things stand: the mirror, and this system itself."""

import sys

import click
from rich.table import Table

from worker import reports
from worker.cli.shared import as_table, cell, json_option, migrated_engine, out
from worker.embedded import redis_url
from worker.settings import load_settings
from worker.wiring import door_redis


@click.command()
@click.argument("organization")
@json_option
def members(organization: str, as_json: bool) -> None:
    """List who has access to a workspace now, with which role."""
    workspace = reports.list_members(migrated_engine(), organization)
    if workspace is None:
        click.echo(f"workos-sync: the mirror knows no organization {organization}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(reports.as_json(workspace))
        return
    table = as_table(("email", "role", "workos_role", "user_id", "since"), workspace["members"])
    table.title = cell(f"{workspace['name']} ({workspace['state']})")
    out.print(table)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Say how things stand; exit code 1 if something is wrong."""
    settings = load_settings()
    redis = door_redis(redis_url(settings))
    report = reports.status(migrated_engine(), redis, settings.gap_seconds, repairs=settings.repairs)
    if as_json:
        click.echo(reports.as_json(report))
    else:
        table = Table(show_header=False)
        for name, value in (*report.pop("mirror").items(), *report.items()):
            table.add_row(
                name.replace("_", " "), cell("\n".join(value) or "none" if isinstance(value, list) else value)
            )
        out.print(table)
    sys.exit(1 if report["problems"] else 0)

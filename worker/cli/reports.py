"""How things stand: the mirror, and this system itself."""

import sys
from typing import Any

import click
from rich.table import Table

from worker.bootstrap import endpoint_redis
from worker.cli.shared import as_table, cell, json_option, known, migrated_engine, say, say_rows, show
from worker.logs import configure
from worker.mirror import auto_join_policy, change_feed
from worker.processes.embedded import redis_url
from worker.reports import listings
from worker.reports.explain import explain
from worker.reports.health import as_report, check_health
from worker.settings import load_settings


@click.command()
@click.argument("organization")
@json_option
def members(organization: str, as_json: bool) -> None:
    """List who has access to a workspace now, with which role."""
    workspace = known(
        listings.list_members(migrated_engine(), organization), f"the mirror has no workspace {organization}"
    )
    if as_json:
        click.echo(change_feed.as_json(workspace))
        return
    table = as_table(("email", "role", "workos_role", "user_id", "since"), workspace["members"])
    table.title = cell(f"{workspace['name']} ({workspace['state']})")
    show(table)


@click.command()
@click.option("--name", help="Only those with this in the name.")
@click.option("--without-admin", is_flag=True, help="Only those that have members and no admin; exit code 1 if any.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def workspaces(name: str | None, without_admin: bool, limit: int, as_json: bool) -> None:
    """List workspaces, by id."""
    if without_admin:
        left = auto_join_policy.without_admin(migrated_engine(), limit)
        say_rows(("organization_id", "workspace_name", "members"), left, as_json=as_json)
        sys.exit(1 if left else 0)
    rows = listings.list_workspaces(migrated_engine(), name=name, limit=limit)
    say_rows(("organization_id", "name", "external_id", "state", "created_at"), rows, as_json=as_json)


@click.command("explain")
@click.argument("name", metavar="ID|EMAIL")
@json_option
def explain_command(name: str, as_json: bool) -> None:
    """Say why things are as they are: all that touched an object or person, in order, with reasons."""
    found = known(explain(migrated_engine(), name), f"nothing is known of {name}")
    if as_json:
        click.echo(change_feed.as_json(found))
        return
    for shown in found["objects"]:
        say(shown, as_json=False)
    if found["access"]:
        columns = ("workspace_name", "organization_id", "access", "role", "since", "cause", "role_cause", "why")
        say_rows(columns, found["access"], as_json=False)
    if found["auto_join"]:
        say_rows(("domain", "organization_id", "state", "auto_join", "why"), found["auto_join"], as_json=False)
    if found["joins"]:
        say_rows(("organization_id", "state", "reason", "created_at", "settled_at"), found["joins"], as_json=False)
    steps = [step | {"changed": _changed(step["fields"])} for step in found["timeline"]]
    say_rows(("at", "object_id", "what", "by", "outcome", "why", "changed"), steps, as_json=False)
    if found["truncated"]:
        click.echo("older steps are left out", err=True)


def _changed(fields: dict[str, list[Any]]) -> str:
    return "\n".join(f"{name}: {before} → {after}" for name, (before, after) in fields.items())


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Say how things stand; exit code 1 if something is wrong."""
    settings = load_settings()
    configure(settings.log_format)
    redis = endpoint_redis(redis_url(settings))
    report = as_report(check_health(migrated_engine(), redis, settings))
    if as_json:
        click.echo(change_feed.as_json(report))
    else:
        table = Table(show_header=False)
        for name, value in (*report.pop("mirror").items(), *report.items()):
            table.add_row(
                name.replace("_", " "), cell("\n".join(value) or "none" if isinstance(value, list) else value)
            )
        show(table)
    sys.exit(1 if report["problems"] or report["warnings"] else 0)

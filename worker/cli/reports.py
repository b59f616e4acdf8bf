"""`workos-sync status`, `explain`, `members` and `workspaces`."""

import sys

import click
from rich.table import Table

from worker.bootstrap import endpoint_redis
from worker.cli.shared import (
    as_table,
    cell,
    heading,
    json_option,
    known,
    migrated_engine,
    print_report,
    print_rows,
    print_table,
)
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
    """List the people with access to a workspace, and their roles."""
    workspace = known(
        listings.list_members(migrated_engine(), organization), f"there is no organization {organization} in the mirror"
    )
    if as_json:
        click.echo(change_feed.as_json(workspace))
        return
    table = as_table(("email", "role", "workos_role", "user_id", "since"), workspace["members"])
    table.title = cell(f"{workspace['name']} ({workspace['state']})")
    print_table(table)


@click.command()
@click.option("--name", help="Only workspaces whose name contains this text.")
@click.option(
    "--without-admin",
    is_flag=True,
    help="Only workspaces with members but no admin. Exit code 1 if there are any.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows.")
@json_option
def workspaces(name: str | None, without_admin: bool, limit: int, as_json: bool) -> None:
    """List workspaces, sorted by id."""
    if without_admin:
        rows = auto_join_policy.without_admin(migrated_engine(), limit)
        print_rows(("organization_id", "workspace_name", "members"), rows, as_json=as_json)
        sys.exit(1 if rows else 0)
    rows = listings.list_workspaces(migrated_engine(), name=name, limit=limit)
    print_rows(("organization_id", "name", "external_id", "state", "created_at"), rows, as_json=as_json)


@click.command("explain")
@click.argument("name", metavar="ID|EMAIL")
@json_option
def explain_command(name: str, as_json: bool) -> None:
    """Explain why an object or a person is as it is.

    Lists everything that affected it, in order, with reasons. For a person, also lists their access to each workspace,
    since when and why.
    """
    found = known(explain(migrated_engine(), name), f"there is no object, event or person {name} in the mirror")
    if as_json:
        click.echo(change_feed.as_json(found))
        return
    for item in found["objects"]:
        print_report(item, as_json=False)
    if found["access"]:
        columns = ("workspace_name", "organization_id", "access", "role", "since", "cause", "role_cause", "why")
        print_rows(columns, found["access"], as_json=False)
    if found["auto_join"]:
        print_rows(("domain", "organization_id", "state", "auto_join", "why"), found["auto_join"], as_json=False)
    if found["joins"]:
        print_rows(("organization_id", "state", "reason", "created_at", "settled_at"), found["joins"], as_json=False)
    steps = [step | {"changed": _changed(step["fields"])} for step in found["timeline"]]
    print_rows(("at", "object_id", "what", "by", "outcome", "why", "changed"), steps, as_json=False)
    if found["truncated"]:
        click.echo("... older steps are not shown", err=True)


def _changed(fields: dict[str, list[object]]) -> str:
    return "\n".join(f"{name}: {before} → {after}" for name, (before, after) in fields.items())


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Report the state of the mirror, and how to fix each problem.

    Exit code 1 if there is a problem or a warning.
    """
    settings = load_settings()
    configure(settings.log_format)
    redis = endpoint_redis(redis_url(settings))
    report = as_report(check_health(migrated_engine(), redis, settings))
    if as_json:
        click.echo(change_feed.as_json(report))
    else:
        table = Table(show_header=False)
        for name, value in (*report.pop("mirror").items(), *report.items()):
            table.add_row(heading(name), cell("\n".join(value) or "none" if isinstance(value, list) else value))
        print_table(table)
    sys.exit(1 if report["problems"] or report["warnings"] else 0)

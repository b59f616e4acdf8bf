"""`workos-sync status`, `explain`, `members` and `workspaces`."""

import sys
from datetime import datetime

import click

from worker.bootstrap import report_redis
from worker.cli import options, output
from worker.cli.shared import known, logging_settings, migrated_engine
from worker.mirror import auto_join_policy
from worker.processes.embedded import redis_url
from worker.reports import listings
from worker.reports.access import actor_of, cause_of
from worker.reports.conditions import Severity
from worker.reports.explain import explain
from worker.reports.verdict import as_report, judge

COUNTED_LATER = ("missing_joins", "workspaces_without_admin", "workers")
"""Numbers in the report of `status` that may be unknown."""


@click.command()
@click.argument("organization", metavar="ORGANIZATION_ID")
@options.time("--at", f"Show who had access at {options.THIS_TIME}, and the last change to it before.")
@options.as_json
def members(organization: str, at: datetime | None, as_json: bool) -> None:
    """List the people with access to a workspace, their roles, and (without --at) pending invitations."""
    then = "" if at is None else f" at {at:%Y-%m-%d %H:%M:%S} UTC"
    found = listings.list_members(migrated_engine(), organization, at)
    workspace = known(found, f"the mirror {'had' if then else 'has'} no workspace {organization}{then}")
    if as_json:
        output.json(workspace)
        return
    rows = workspace["members"]
    columns: tuple[str, ...] = ("email", "role", "workos_role", "user_id", "since")
    if at is not None:
        rows = [row | {"cause": cause_of(row), "actor": actor_of(row)} for row in rows]
        columns += ("changed_at", "cause", "actor")
    output.table(columns, rows, f"{workspace['name']} ({workspace['state']}){then}")
    if invited := workspace.get("invitations"):
        output.table(("email", "workos_role", "invitation_id", "created_at", "expires_at"), invited, "Invitations")


@click.command()
@click.option("--name", help="Only workspaces whose name contains this text.")
@click.option(
    "--without-admin", is_flag=True, help="Only workspaces with members but no admin. Exit code 1 if there are any."
)
@options.limit
@options.as_json
def workspaces(name: str | None, without_admin: bool, limit: int, as_json: bool) -> None:
    """List workspaces, sorted by id."""
    if without_admin:
        rows = auto_join_policy.without_admin(migrated_engine(), limit)
        output.rows(("organization_id", "workspace_name", "members"), rows, as_json=as_json)
        sys.exit(1 if rows else 0)
    rows = listings.list_workspaces(migrated_engine(), name=name, limit=limit)
    output.rows(("organization_id", "name", "external_id", "state", "created_at"), rows, as_json=as_json)


@click.command("explain")
@click.argument("name", metavar="ID|EMAIL")
@options.time("--at", f"Show the state at {options.THIS_TIME}, and what happened until then.")
@options.as_json
def explain_command(name: str, at: datetime | None, as_json: bool) -> None:
    """Show the history of an object or a person, with reasons.

    For a person, also lists each workspace, whether they have access to it, since when and why.
    """
    found = known(explain(migrated_engine(), name, at), f"there is no object, event or person {name} in the mirror")
    if as_json:
        output.json(found)
        return
    for item in found["objects"]:
        output.report(item)
    access = ("workspace_name", "organization_id", "access", "role", "since", "cause", "actor", "role_cause", "why")
    for section, columns in (
        ("access", access),
        ("uncertain", ("organization_id", "user_id", "event_id", "since", "until")),
        ("auto_join", ("domain", "organization_id", "state", "auto_join", "why")),
        ("joins", ("organization_id", "state", "reason", "created_at", "settled_at")),
        ("sessions", ("organization_id", "user_id", "state", "reason", "sessions", "since", "settled_at", "error")),
        ("invitations", ("organization_id", "id", "email", "status", "expires_at", "blocks", "why")),
    ):
        if found[section]:
            output.table(columns, found[section], "Bounded answers are stale" if section == "uncertain" else None)
    steps = [step | {"changed": _changed(step["fields"])} for step in found["timeline"]]
    output.rows(("at", "object_id", "what", "by", "actor", "outcome", "why", "changed"), steps, as_json=False)
    if found["truncated"]:
        click.echo("... older steps are not shown", err=True)


def _changed(fields: dict[str, list[object]]) -> str:
    return "\n".join(f"{name}: {before} → {after}" for name, (before, after) in fields.items())


@click.command()
@options.as_json
def status(as_json: bool) -> None:
    """Report the state of the mirror, and how to fix each problem.

    Exit code 1 if there is a problem or a warning.
    """
    settings = logging_settings()
    verdict = judge(migrated_engine(), report_redis(redis_url(settings)), settings)
    report = as_report(verdict)
    if as_json:
        output.json(report)
    else:
        del report["conditions"]
        report |= {name: "not known yet" for name in COUNTED_LATER if report[name] is None}
        texts = {name: "\n".join(value) or "none" for name, value in report.items() if isinstance(value, list)}
        output.fields({output.heading(name): value for name, value in (report.pop("mirror") | report | texts).items()})
    sys.exit(0 if verdict.severity is Severity.OK else 1)

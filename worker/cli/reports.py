"""`workos-sync explain`, `members` and `workspaces`."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime

import click

from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import known, migrated_engine, organization_id
from worker.lazy import lazy_imports

with lazy_imports():
    from models import types
    from worker.mirror import auto_join_policy
    from worker.reports import access, explain, listings, lookup, review

INVITATIONS = (
    Column("email", fit=Fit.CUT),
    Column("workos_role"),
    Column("invitation_id"),
    Column("created_at"),
    Column("expires_at"),
)

as_workos_option = click.option(
    "--as-workos", is_flag=True, help="With --at: answer as WorkOS had it, not as the mirror answered."
)


def _require_time(at: datetime | None, as_workos: bool) -> None:
    if as_workos and at is None:
        raise click.UsageError("--as-workos needs --at")


CHANGED = (
    *("email", "workspace", "organization_id", "user_id", "change", "previous_role", "role", "changed_at"),
    *("cause", "actor"),
)
"""The fields of a person whose access changed."""


@click.command()
@click.argument("organization", metavar="[ORGANIZATION]", required=False)
@options.time("--at", f"Show who had access at {options.THIS_TIME}, and when that access last changed.")
@options.time("--since", f"Show only who gained, lost or changed access since {options.THIS_TIME}.")
@as_workos_option
@output.listing(
    Column("email", fit=Fit.CUT),
    Column("workspace", fit=Fit.CUT),
    Column("change"),
    Column("previous_role"),
    Column("role"),
    Column("user_id"),
    Column("since"),
    Column("changed_at"),
    Column("cause", fit=Fit.WRAP),
    Column("actor", fit=Fit.WRAP),
    Column("approximate"),
    Column("changed_after"),
    Column("changed_before"),
    Column("workos_role", wide=True),
    Column("status", wide=True),
    Column("membership_id", wide=True),
    empty="nobody has access",
)
def members(
    out: output.Listing, organization: str | None, at: datetime | None, since: datetime | None, as_workos: bool
) -> None:
    """List the people with access to a workspace, their roles, and pending invitations.

    With --since, ORGANIZATION may be omitted, which means all workspaces.
    """
    _require_time(at, as_workos)
    if since is not None:
        if at is not None:
            raise click.UsageError("--since cannot be combined with --at")
        engine = migrated_engine()
        changes = review.access_changes(engine, since, organization_id(engine, organization))
        rows = [row | {"workspace": row["workspace_name"]} for row in changes]
        out = replace(out, empty="nobody gained, lost or changed access")
        names = [name for name in CHANGED if not (out.for_people and name.endswith("_id"))]
        out.show([{name: row[name] for name in names} for row in rows])
        return
    if organization is None:
        raise click.MissingParameter(param_type="argument", param_hint="'ORGANIZATION'")
    then = "" if at is None else f" at {at:%Y-%m-%d %H:%M:%S} UTC"
    engine = migrated_engine()
    found = listings.list_members(engine, lookup.organization_id(engine, organization), at, as_workos=as_workos)
    who = "WorkOS" if as_workos else "the mirror"
    workspace = known(found, f"{who} {'had' if then else 'has'} no workspace {organization}{then}")
    rows = workspace["members"]
    if at is not None:
        rows = [row | {"cause": access.cause_of(row), "actor": access.actor_of(row)} for row in rows]
    out.show(rows, title=layout.plain(f"{workspace['name']} ({workspace['state']}){then}"), document=workspace)
    invited = workspace.get("invitations", [])
    if out.for_people:
        output.section("Invitations", INVITATIONS, invited)
    elif invited and not out.as_document:
        output.note(f"{output.count(len(invited), 'pending invitation')} not listed; use --json")


@click.command()
@click.option("--name", help="Only workspaces whose name contains this text.")
@click.option("--domain", help="Only workspaces that have this domain, verified or not.")
@click.option(
    "--without-admin", is_flag=True, help="Only workspaces with members but no admin. Exit code 1 if there are any."
)
@options.limit
@output.listing(
    Column("name", fit=Fit.CUT),
    Column("organization_id"),
    Column("members"),
    Column("invitations", wide=True),
    Column("state"),
    Column("created_at"),
    Column("external_id", wide=True),
    Column("updated_at", wide=True),
    empty="no workspaces",
)
def workspaces(out: output.Listing, name: str | None, domain: str | None, without_admin: bool, limit: int) -> None:
    """List workspaces, sorted by id, with the numbers of their members and pending invitations."""
    engine = migrated_engine()
    if without_admin:
        if name or domain:
            raise click.UsageError("--without-admin cannot be combined with --name or --domain")
        rows = auto_join_policy.without_admin(engine, limit)
        out.show([row | {"name": row["workspace_name"]} for row in rows])
        sys.exit(1 if rows else 0)
    rows = listings.list_workspaces(engine, name=name, domain=domain, limit=limit)
    out.show(listings.with_counts(engine, rows))


ACCESS = (
    Column("workspace_name", fit=Fit.CUT),
    Column("organization_id"),
    Column("access"),
    Column("why", fit=Fit.WRAP),
    Column("role"),
    Column("since"),
    Column("cause", fit=Fit.WRAP),
    Column("actor", fit=Fit.WRAP),
    Column("role_cause", fit=Fit.WRAP),
)
ACCESS_AS_WORKOS = (*ACCESS[:-1], Column("approximate"), Column("changed_after"), Column("changed_before"))
TIMELINE = (
    Column("at"),
    Column("what"),
    Column("outcome"),
    Column("object_id", "object"),
    Column("why", fit=Fit.WRAP),
    Column("by", fit=Fit.WRAP),
    Column("actor", fit=Fit.WRAP),
    Column("changed", fit=Fit.WRAP),
)
UNCERTAIN = (
    Column("organization_id"),
    Column("user_id"),
    Column("event_id"),
    Column("since"),
    Column("until", fit=Fit.WRAP),
)
AUTO_JOIN = (
    Column("domain", fit=Fit.CUT),
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("auto_join"),
    Column("state"),
    Column("why", fit=Fit.WRAP),
)
JOINS = (
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("state"),
    Column("reason", fit=Fit.WRAP),
    Column("created_at"),
    Column("settled_at"),
)
SESSIONS = (
    Column("organization_id"),
    Column("user_id"),
    Column("state"),
    Column("reason"),
    Column("sessions", "ended"),
    Column("since"),
    Column("settled_at"),
    Column("error", fit=Fit.WRAP),
)
INVITED = (
    Column("id"),
    Column("email", fit=Fit.CUT),
    Column("status"),
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("expires_at"),
    Column("blocks", "blocks auto-join"),
    Column("why", fit=Fit.WRAP),
)

BOOKKEEPING = {
    *("email_normalized", "email_domain", "normalized", "revision", "touched_at", "column_versions", "event_id"),
}
"""Columns that a terminal does not show of an object."""


@click.command("explain")
@click.argument("name", metavar="ID|EMAIL|NAME")
@options.time("--at", f"Show the state at {options.THIS_TIME}, and what happened until then.")
@as_workos_option
@options.as_json
def explain_command(name: str, at: datetime | None, as_workos: bool, as_json: bool) -> None:
    """Show the history of an object or a person, with reasons.

    NAME is the name or external id of a workspace. For a person, also lists each workspace, whether they have access to
    it, since when and why.
    """
    _require_time(at, as_workos)
    engine = migrated_engine()
    history = explain.explain(engine, name, at, as_workos=as_workos)
    if history is None and (workspace := lookup.find_organization(engine, name)):
        history = explain.explain(engine, workspace, at, as_workos=as_workos)
    found = known(history, f"there is no object, event or person {name} in the mirror")
    if as_json:
        output.json(found)
        return
    for place, item in enumerate(found["objects"]):
        if place:
            click.echo()
        output.record(_for_people(item) if output.on_terminal() else item)
    terminal = output.on_terminal()
    access = [_with_one_cause(row) for row in found["access"]] if terminal else found["access"]
    output.section("Access", ACCESS_AS_WORKOS if as_workos else ACCESS, access, lead=2)
    if terminal and not access and any(item["kind"] == "user" for item in found["objects"]):
        output.title("Access")
        click.echo("none: the person is not a member of any workspace")
    output.section("Bounded answers are stale", UNCERTAIN, found["uncertain"])
    output.section("Auto-join", AUTO_JOIN, listings.named(engine, found["auto_join"]))
    output.section("Joins by domain", JOINS, listings.named(engine, found["joins"]))
    output.section("Sessions", SESSIONS, found["sessions"])
    output.section("Invitations", INVITED, listings.named(engine, found["invitations"]))
    form = layout.changed if terminal else dict
    steps = [step | {"changed": form(step["fields"])} for step in found["timeline"]]
    output.section("Timeline, newest first", TIMELINE, steps[::-1] if terminal else steps, lead=3)
    if found["truncated"]:
        output.note("... older steps are not shown")


def _with_one_cause(row: types.Record) -> types.Record:
    """Return a row of the access without the cause of the role if it is that of the access."""
    return row | {"role_cause": None} if row.get("role_cause") == row["cause"] else row


def _for_people(item: types.Record) -> types.Record:
    """Return an object, its id and state first, without what only the mirror itself needs."""
    first = {"kind": item["kind"], "id": item["id"]}
    if "deleted_by" in item:
        first["state"] = "deleted" if item["deleted_by"] else "active"
    return first | {name: value for name, value in item.items() if name not in BOOKKEEPING and value is not False}

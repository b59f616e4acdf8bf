"""`workos-sync auto-join`: inspect auto-join, and record operators' decisions about it."""

from __future__ import annotations

import sys

import click

from models.enums import JoinState
from worker.cli import options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, migrated_engine, organization_id
from worker.decision.roles import LOCAL_ROLES
from worker.lazy import lazy_imports

with lazy_imports():
    from worker.mirror import auto_join_policy
    from worker.reports import listings, lookup


@click.group("auto-join")
def auto_join() -> None:
    """Inspect and control who joins a workspace by e-mail domain."""


@auto_join.command()
@options.organization
@click.option("--off", is_flag=True, help="Only domains by which nobody joins.")
@options.limit
@output.listing(
    Column("domain", fit=Fit.CUT),
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("organization_id"),
    Column("auto_join"),
    Column("why", fit=Fit.WRAP),
    Column("state", wide=True),
    Column("verification", wide=True),
    Column("id", wide=True),
    empty="no domains",
)
def domains(out: output.Listing, organization: str | None, off: bool, limit: int) -> None:
    """List domains, whether people auto-join by them, and why."""
    engine = migrated_engine()
    rows = listings.list_domains(engine, organization_id(engine, organization), off=off, limit=limit)
    if out.for_people:  # the reason why people join is always the same
        rows = [row | {"why": None} if row["auto_join"] else row for row in rows]
    out.show(listings.named(engine, rows))


@auto_join.command()
@options.organization
@options.limit
@output.listing(
    Column("email", fit=Fit.CUT),
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("organization_id"),
    Column("user_id", wide=True),
    Column("domain", wide=True),
    Column("default_role", wide=True),
    empty="nobody is missing",
)
def missing(out: output.Listing, organization: str | None, limit: int) -> None:
    """List people who should have joined a workspace by domain.

    They have a verified address in its domain, are not members, and are not kept out. Exit code 1 if there are any.
    """
    engine = migrated_engine()
    rows = auto_join_policy.missing_members(engine, limit, organization_id(engine, organization))
    out.show(listings.named(engine, rows))
    sys.exit(1 if rows else 0)


@auto_join.command()
@click.option("--state", type=click.Choice([state.value for state in JoinState]), help="Only joins in this state.")
@options.organization
@options.limit
@output.listing(
    Column("created_at", "when"),
    Column("email", fit=Fit.CUT),
    Column("workspace_name", "workspace", fit=Fit.CUT),
    Column("state"),
    Column("reason", fit=Fit.WRAP),
    Column("error", fit=Fit.WRAP),
    Column("user_id", wide=True),
    Column("organization_id", wide=True),
    Column("cause_id", wide=True),
    Column("attempts", wide=True),
    Column("settled_at", wide=True),
    empty="no joins",
)
def joins(out: output.Listing, state: str | None, organization: str | None, limit: int) -> None:
    """List the people handled by AUTO_JOIN=provision.

    Shows who was added, will be added or must not be added, and why.

    \b
    pending  will be added
    joined   was added
    dropped  no longer qualified when the membership was due
    failed   WorkOS refused, or ROLE_MAP has no WorkOS role for it
    blocked  was removed, deactivated, invited or blocked
    undo     activated an inactive membership, which will be deactivated again
    undone   the membership was deactivated again, and the person is blocked
    """  # noqa: D301 - click needs the character itself
    engine = migrated_engine()
    workspace = organization_id(engine, organization)
    rows = auto_join_policy.joins(engine, state=state, organization_id=workspace, limit=limit)
    if out.for_people:
        rows = [row | {"email": row["email"] or row["user_id"]} for row in rows]
    out.show(listings.named(engine, rows))


@auto_join.command("set")
@options.organization_argument
@click.option("--on/--off", "switch", default=None, help="Whether people join the workspace by domain.")
@click.option("--role", type=click.Choice(LOCAL_ROLES), help="Role of people who join by domain.")
@options.required_reason
@options.as_json
def set_workspace(organization: str, switch: bool | None, role: str | None, reason: str, as_json: bool) -> None:
    """Turn auto-join on or off, or set the role of people who join."""
    if switch is None and role is None:
        raise click.UsageError("nothing to change: give --on, --off or --role")
    engine = migrated_engine()
    workspace = lookup.organization_id(engine, organization)
    after = auto_join_policy.set_workspace(engine, workspace, actor(reason), auto_join=switch, default_role=role)
    output.record(after, as_json=as_json)


@auto_join.command()
@options.organization_argument
@click.argument("person", metavar="USER|INVITATION_ID")
@options.required_reason
@options.as_json
def unblock(organization: str, person: str, reason: str, as_json: bool) -> None:
    """Allow a person to join a workspace by domain again.

    For people who are kept out because they were removed, deactivated, invited or blocked. An invited person may be
    unblocked before they sign up, by address or by invitation.
    """
    engine = migrated_engine()
    workspace = lookup.organization_id(engine, organization)
    reasons = auto_join_policy.unblock(engine, workspace, person, actor(reason))
    output.result(f"unblocked: {', '.join(reasons)}", {"unblocked": reasons}, as_json=as_json)


@auto_join.command()
@options.organization_argument
@click.argument("user", metavar="USER")
@options.required_reason
@options.as_json
def block(organization: str, user: str, reason: str, as_json: bool) -> None:
    """Prevent a person from joining a workspace by domain.

    Existing memberships are not changed.
    """
    engine = migrated_engine()
    workspace, person = lookup.organization_id(engine, organization), lookup.user_id(engine, user)
    auto_join_policy.block(engine, workspace, person, actor(reason))
    blocked = {"organization_id": workspace, "user_id": person}
    output.result(f"{person} can no longer join {workspace} by domain", blocked, as_json=as_json)

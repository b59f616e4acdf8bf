"""Auto-join: its rules, who is missing, who waits, and what operators decide about it."""

import sys

import click
from sqlalchemy import Engine

from models.tables import JoinState
from worker.cli.shared import json_option, known, migrated_engine, operator, say, say_rows
from worker.decision.roles import LOCAL_ROLES
from worker.mirror import auto_join_policy
from worker.reports import listings

reason_option = click.option("--reason", required=True, help="Kept with what is decided.")
limit_option = click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)


def _engine(organization: str | None) -> Engine:
    """Return the engine of a migrated database; raises `UnknownIdError` if it lacks the workspace that is named."""
    engine = migrated_engine()
    if organization is not None:
        known(listings.workspace(engine, organization), f"the mirror has no workspace {organization}")
    return engine


@click.group("auto-join")
def auto_join() -> None:
    """See and decide who joins a workspace by the domain of their e-mail address."""


@auto_join.command()
@click.option("--organization", metavar="ID", help="Only of this workspace.")
@click.option("--off", is_flag=True, help="Only those by which nobody joins.")
@limit_option
@json_option
def domains(organization: str | None, off: bool, limit: int, as_json: bool) -> None:
    """List domains: their state, whether people join by them now, and if not, why not."""
    rows = listings.list_domains(_engine(organization), organization, off=off, limit=limit)
    say_rows(("domain", "organization_id", "state", "auto_join", "why"), rows, as_json=as_json)


@auto_join.command()
@click.option("--organization", metavar="ID", help="Only of this workspace.")
@limit_option
@json_option
def missing(organization: str | None, limit: int, as_json: bool) -> None:
    """List people who should be in a workspace by their domain and are not; exit code 1 if there are any."""
    rows = auto_join_policy.missing_members(_engine(organization), limit, organization)
    say_rows(("email", "user_id", "domain", "organization_id", "default_role"), rows, as_json=as_json)
    sys.exit(1 if rows else 0)


@auto_join.command()
@click.option("--state", type=click.Choice([state.value for state in JoinState]), help="Only these.")
@click.option("--organization", metavar="ID", help="Only of this workspace.")
@limit_option
@json_option
def joins(state: str | None, organization: str | None, limit: int, as_json: bool) -> None:
    """List who was, is to be or may not be made a member by AUTO_JOIN=provision, and why."""
    rows = auto_join_policy.joins(_engine(organization), state=state, organization_id=organization, limit=limit)
    columns = ("created_at", "email", "user_id", "organization_id", "state", "reason", "cause_id", "attempts", "error")
    say_rows(columns, rows, as_json=as_json)


@auto_join.command("set")
@click.argument("organization")
@click.option("--on/--off", "switch", default=None, help="Whether people join this workspace by domain.")
@click.option("--role", type=click.Choice(LOCAL_ROLES), help="The role of those who do.")
@reason_option
@json_option
def set_workspace(organization: str, switch: bool | None, role: str | None, reason: str, as_json: bool) -> None:
    """Change a workspace's own settings."""
    after = auto_join_policy.set_workspace(
        migrated_engine(), organization, operator(), reason, auto_join=switch, default_role=role
    )
    say(after, as_json=as_json)


@auto_join.command()
@click.argument("organization")
@click.argument("user")
@reason_option
def unblock(organization: str, user: str, reason: str) -> None:
    """Let someone join by domain again who was removed, deactivated, invited or blocked."""
    reasons = auto_join_policy.unblock(migrated_engine(), organization, user, operator(), reason)
    click.echo(f"unblocked: {', '.join(reasons)}")


@auto_join.command()
@click.argument("organization")
@click.argument("user")
@reason_option
def block(organization: str, user: str, reason: str) -> None:
    """Keep someone from joining a workspace by domain; a membership they have stays."""
    auto_join_policy.block(migrated_engine(), organization, user, operator(), reason)
    click.echo(f"{user} no longer joins {organization} by domain")

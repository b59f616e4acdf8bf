"""`workos-sync plan`: what settings would change, before a worker starts with them."""

import sys

import click

from worker.cli import options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, migrated_engine
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import settings
    from worker.mirror import role_map
    from worker.reports import plan

PLANNED = ("ROLE_MAP", "AUTO_JOIN", "AUTO_JOIN_EXISTING")
"""The settings that decide access."""
PERSON = (Column("user_id"), Column("organization_id"))
DOMAIN = Column("domain", fit=Fit.CUT)
ROLE = Column("default_role")


def _settings(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in given)
    if unknown := sorted(pairs.keys() - set(PLANNED)):
        raise click.BadParameter(f"cannot set {', '.join(unknown)}; write NAME=VALUE, with {', '.join(PLANNED)}")
    return {name.lower(): value for name, value in pairs.items()}


@click.command("plan")
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_settings,
    help="Use this value of ROLE_MAP, AUTO_JOIN or AUTO_JOIN_EXISTING instead of the current one. May be repeated.",
)
@click.option(
    "--max-promotions", type=click.IntRange(0), help="Exit code 1 if more people than this would become admins."
)
@click.option("--approve", metavar="DIGEST", help="Put the withheld role map with this digest in force.")
@options.reason
@options.as_json
def plan_command(
    given: dict[str, str], max_promotions: int | None, approve: str | None, reason: str | None, as_json: bool
) -> None:
    """Show what the settings would change if a worker started with them.

    Compares ROLE_MAP, AUTO_JOIN and AUTO_JOIN_EXISTING of this environment with those in force: who would become admin
    or member, who would be added by domain, and which domains would start or stop auto-joining. Changes nothing,
    except with --approve.
    """
    if approve is not None:
        changed = role_map.approve(migrated_engine(), approve, actor(reason))
        text = f"the role map {approve} is in force; {output.count(changed, 'membership')} changed"
        output.result(text, {"approved": approve, "changed": changed}, as_json=as_json)
        return
    found = plan.plan(migrated_engine(), settings.load_settings(**given))
    if as_json:
        output.json(found)
    else:
        output.record({name: value for name, value in found.items() if not isinstance(value, list)})
        output.section("Roles", (*PERSON, Column("before"), Column("after")), found["roles"])
        output.section("Joins by domain", (*PERSON, DOMAIN, ROLE), found["joins"])
        output.section("Domains", (DOMAIN, Column("organization_id"), Column("auto_join"), ROLE), found["domains"])
    if max_promotions is not None and found["promotions"] > max_promotions:
        click.echo(f"{found['promotions']} people would become admins, more than {max_promotions}", err=True)
        sys.exit(1)

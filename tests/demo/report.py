"""What the demo prints when all has arrived: the mirror as tables, the run in numbers, the verdict."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from models.tables import Domain
from models.views import auto_join_domains, workspace_members, workspaces
from tests.demo.play import Resynced, Sample, count_by
from tests.support import rows
from tests.support.stack.machine import JSON

WORKSPACES_SHOWN = 30
MEMBERS_OF = 3
MEMBERS_SHOWN = 5
DOMAINS_SHOWN = 15
DOMAINS_NAMED = 1
DIFFERENCES_SHOWN = 20


def show_mirror(console: Console, engine: Engine) -> None:
    """Print workspaces, members with roles, and auto-join domains, as the views have them."""
    live = sorted((w for w in rows(engine, workspaces) if w["state"] == "active"), key=lambda row: str(row["name"]))
    members = sorted(rows(engine, workspace_members), key=lambda row: str(row["email"]))
    domains = [d for d in rows(engine, Domain) if d["deleted_by"] is None]
    _show_workspaces(console, live, members, domains)
    _show_members(console, live, members)
    _show_joins(console, live, sorted(rows(engine, auto_join_domains), key=lambda row: str(row["domain"])))


def _of(found: Sequence[JSON], workspace: JSON) -> list[JSON]:
    return [row for row in found if row["organization_id"] == workspace["organization_id"]]


def _show_workspaces(console: Console, live: Sequence[JSON], members: Sequence[JSON], domains: Sequence[JSON]) -> None:
    table = _table("Workspaces", "name", "id", "members", "domains")
    for workspace in live[:WORKSPACES_SHOWN]:
        names = sorted({str(domain["domain"]) for domain in _of(domains, workspace)})
        people = len(_of(members, workspace))
        _row(table, workspace["name"], workspace["organization_id"], people, _first_of(names))
    _print(console, table, len(live) - table.row_count, "workspaces")


def _first_of(names: Sequence[str]) -> str:
    more = len(names) - DOMAINS_NAMED
    return ", ".join(names[:DOMAINS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _show_members(console: Console, live: Sequence[JSON], members: Sequence[JSON]) -> None:
    table, shown = _table("Members", "workspace", "e-mail", "role", "WorkOS role"), 0
    peopled = [workspace for workspace in live if _of(members, workspace)]
    for workspace in peopled[:MEMBERS_OF]:
        people = _of(members, workspace)
        for place, member in enumerate(people[:MEMBERS_SHOWN]):
            name = "" if place else workspace["name"]
            _row(table, name, member["email"], member["role"], member["workos_role"])
        shown += len(people[:MEMBERS_SHOWN])
        if len(people) > MEMBERS_SHOWN:
            _row(table, "", f"… and {len(people) - MEMBERS_SHOWN} more", "", "")
        table.add_section()
    _print(console, table, len(members) - shown, f"members; {len(peopled)} workspaces have some")


def _show_joins(console: Console, live: Sequence[JSON], joins: Sequence[JSON]) -> None:
    names = {workspace["organization_id"]: workspace["name"] for workspace in live}
    table = _table("Auto-join domains", "domain", "workspace", "role on joining")
    for row in joins[:DOMAINS_SHOWN]:
        _row(table, row["domain"], names[row["organization_id"]], row["default_role"])
    _print(console, table, len(joins) - table.row_count, "domains")


def show_run(console: Console, engine: Engine, sample: Sample, resynced: Resynced, seconds: float) -> None:
    """Print the run in numbers."""
    workos = sample.workos
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in count_by(engine, "outcome").items())
    numbers = [
        ("events made by WorkOS", f"{workos['generated']:,}"),
        ("deliveries sent", f"{sample.sent:,}"),
        ("  of them duplicates", f"{workos['duplicates_sent']:,}"),
        ("  of them retries", f"{workos['retried']:,}"),
        ("  of them forged; refused", f"{workos['forged']:,}; {workos['forged_refused']:,}"),
        ("events acknowledged", f"{workos['acknowledged']:,}"),
        ("events applied", f"{sample.applied:,} in {sample.seconds:.1f} s"),
        ("  by outcome", outcomes),
        ("webhooks lost", f"{workos['lost']:,}"),
        ("  brought by catch-up", f"{sample.caught_up:,}"),
        ("changes that no event told of", f"{resynced.changed:,}"),
        ("  repaired by resync", ", ".join(f"{n} {finding}" for finding, n in resynced.found.items())),
        ("whole demo", f"{seconds:.1f} s"),
    ]
    table = _table("The run", "", "")
    table.show_header = False
    for name, value in numbers:
        _row(table, name, value)
    _print(console, table)


def show_differences(console: Console, found: Sequence[str]) -> None:
    """Print the first differences between the mirror and WorkOS."""
    for line in found[:DIFFERENCES_SHOWN]:
        console.print(Text(f"  {line}"), soft_wrap=True)
    _more(console, len(found) - DIFFERENCES_SHOWN, "differences")


def verdict(truth: JSON) -> str:
    """Return the line for a mirror that equals `truth`, what WorkOS lists."""
    organizations = truth["organizations"]
    members = sum(membership["status"] == "active" for membership in truth["memberships"])
    domains = sum(len(organization["domains"]) for organization in organizations)
    return f"mirror equals WorkOS: {len(organizations)} workspaces, {members} members, {domains} domains"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "members" else "left")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(str(cell)) for cell in cells))


def _print(console: Console, table: Table, more: int = 0, of: str = "") -> None:
    console.print()
    console.print(table)
    _more(console, more, of)


def _more(console: Console, number: int, what: str) -> None:
    if number > 0:
        console.print(f"  … and {number:,} more {what}", highlight=False)

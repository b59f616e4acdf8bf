"""The command: start everything, play, compare, say how it went, and leave nothing behind."""

import shutil
import sys
import time
from dataclasses import dataclass

import click
from rich.console import Console
from sqlalchemy import Engine

from models.database import open_engine
from models.tables import EventStatus
from models.views import workspace_members
from tests.demo import play, report, show
from tests.support import differences, rows
from tests.support.stack.machine import call, short_folder
from tests.support.stack.processes import Interrupted, Interruptions, StackError
from tests.support.stack.stack import Database, Stack

PIPED_WIDTH = 120
OFTEN = {"CATCH_UP_SECONDS": "2", "CATCH_UP_LAG_SECONDS": "3", "REPAIR_SECONDS": "0.5"}
"""What is done every few minutes elsewhere, for those who watch."""


@dataclass(frozen=True)
class Wish:
    """The options."""

    events: int
    companies: int
    seed: int
    database: Database
    keep: bool


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--events", type=click.IntRange(1), default=3000, show_default=True, help="How many to play, about.")
@click.option("--companies", type=click.IntRange(1), default=24, show_default=True, help="How many live, about.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices.")
@click.option("--database", type=click.Choice(["sqlite", "postgres"]), default="sqlite", show_default=True)
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C, and its folder after that.")
def command(events: int, companies: int, seed: int, database: Database, keep: bool) -> None:
    """Show it working, end to end, with real processes and a sandbox WorkOS.

    Sends events doubled, out of order, some with wrong signatures and some not at all, changes a few things that no
    event tells of, then compares the mirror with the sandbox, object by object. Exit code 0 only if they are equal.
    """
    sys.exit(_run(Wish(events, companies, seed, database, keep)))


def _run(wish: Wish) -> int:
    interruptions = Interruptions()
    interruptions.install()
    folder = short_folder()
    stack = Stack(folder, database=wish.database, seed=wish.seed, settings=OFTEN, hold=interruptions.held)
    try:
        return _demo(stack, wish)
    except StackError as error:
        click.echo(f"\nworkos-sync demo: {error}", err=True)
        return 1
    except Interrupted as interrupted:
        click.echo("\nworkos-sync demo: interrupted, stopping everything", err=True)
        return 128 + interrupted.number
    finally:
        interruptions.cleaning_up()
        stack.stop()
        if not wish.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _demo(stack: Stack, wish: Wish) -> int:
    console, began = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    _start(console, stack)
    engine = open_engine(stack.database_url)
    try:
        console.print(
            f"\nPlaying {wish.events:,} events of {wish.companies} companies: "
            "some twice, some late, some never, some with wrong signatures",
            highlight=False,
        )
        play.begin(stack, events=wish.events, companies=wish.companies, seed=wish.seed)
        last = show.follow(console, play.watch(stack, engine), wish.events)
        console.print("\nChanging a few things that no event tells of; workos-sync resync", highlight=False)
        resynced = play.resync(stack, engine)
        verdict, good = _judge(console, stack, engine, last, resynced, began)
        if wish.keep:
            _say_where(console, stack, engine)
        print(verdict, flush=True)
        return _keep(stack, good=good) if wish.keep else int(not good)
    finally:
        engine.dispose()


def _start(console: Console, stack: Stack) -> None:
    console.print("Starting real processes, all on this machine", highlight=False)
    for text, start in stack.steps():
        console.print(f"  {text:<58}", end="", highlight=False)
        began = time.monotonic()
        start()
        console.print(f"{time.monotonic() - began:5.1f} s", highlight=False)


def _judge(
    console: Console, stack: Stack, engine: Engine, last: play.Sample, resynced: play.Resynced, began: float
) -> tuple[str, bool]:
    """Compare and print; return the last line and whether all is well."""
    truth = call("GET", f"{stack.sandbox_url}/sandbox/truth")
    found = differences(engine, truth)
    faults = play.faults(last, resynced)
    report.show_mirror(console, engine)
    report.show_run(console, engine, last, resynced, time.monotonic() - began)
    console.print()
    report.show_differences(console, found)
    if last.inbox.get(EventStatus.FAILED):
        console.print(stack.processes["worker"].tail(), markup=False, highlight=False, soft_wrap=True)
    if found:
        return "; ".join([f"mirror differs from WorkOS in {len(found)} places", *faults]), False
    if faults:
        return "mirror equals WorkOS, but: " + "; ".join(faults), False
    return report.verdict(truth), True


def _say_where(console: Console, stack: Stack, engine: Engine) -> None:
    """Print where everything is, and commands to paste."""
    names = (
        *("DATABASE_URL", "REDIS_URL", "WORKOS_API_KEY", "WORKOS_CLIENT_ID", "WORKOS_BASE_URL"),
        *("WORKOS_WEBHOOK_SECRETS", "OPS_TOKENS", "API_TOKENS"),
    )
    settings = "export " + " ".join(f"{name}='{stack.settings[name]}'" for name in names)
    members = rows(engine, workspace_members)
    peopled, emails = [row["organization_id"] for row in members], [row["email"] for row in members]
    places = {
        "pages": f"{stack.web_url}/ops/ (token {stack.token})",
        "webhooks": stack.webhook_url,
        "database": stack.database_url,
        "Redis": stack.redis_url,
        "sandbox": stack.sandbox_url,
        "logs": str(stack.logs),
    }
    examples = [
        settings,
        "workos-sync status",
        "workos-sync events list --limit 10",
        "workos-sync resync --dry-run",
        *(f"workos-sync members {organization}" for organization in peopled[:1]),
        *(f"workos-sync explain {email}" for email in emails[:1]),
        "workos-sync doctor",
        f"curl -H 'Authorization: Bearer {stack.token}' {stack.web_url}/api/v1/status",
        f"curl -X POST {stack.sandbox_url}/sandbox/play -d '{{\"events\": 500}}'",
    ]
    lines = ["Left running until Ctrl-C:", *(f"  {name:<9} {place}" for name, place in places.items())]
    lines += ["Try in another terminal:", *(f"  {example}" for example in examples), ""]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _keep(stack: Stack, *, good: bool) -> int:
    """Wait for Ctrl-C, as long as everything runs."""
    click.echo("(still running; Ctrl-C stops everything)", err=True)
    try:
        while True:
            stack.require_running()
            time.sleep(1)
    except Interrupted:
        click.echo(f"\nstopping; {stack.folder} stays", err=True)
        return int(not good)

"""The command: start all processes, play events, compare, report, and clean up."""

import shutil
import sys
import time
from dataclasses import dataclass, replace

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
SETTINGS = {"REVOKE_SESSIONS": "on", "CATCH_UP_SECONDS": "2", "CATCH_UP_LAG_SECONDS": "3", "REPAIR_SECONDS": "0.5"}
"""In production catch-up runs every few minutes."""


@dataclass(frozen=True)
class Options:
    """The command-line options."""

    events: int
    companies: int
    seed: int
    database: Database
    keep: bool


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--events", type=click.IntRange(1), default=3000, show_default=True, help="Approximate number of events to play."
)
@click.option(
    "--companies", type=click.IntRange(1), default=24, show_default=True, help="Approximate number of companies."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
@click.option(
    "--database",
    type=click.Choice(["sqlite", "postgres"]),
    default="sqlite",
    show_default=True,
    help="The database to use.",
)
@click.option("--keep", is_flag=True, help="Keep running until Ctrl-C, and keep the folder afterwards.")
def command(events: int, companies: int, seed: int, database: Database, keep: bool) -> None:
    """Run workos-sync end to end, with real processes and a simulated WorkOS.

    Webhooks are duplicated, reordered, forged and lost; some objects change without an event. At the end, every object
    in the mirror is compared with WorkOS's. The exit code is 0 only if they are equal.
    """
    sys.exit(_run(Options(events, companies, seed, database, keep)))


def _run(options: Options) -> int:
    interruptions = Interruptions()
    interruptions.install()
    folder = short_folder()
    stack = Stack(folder, database=options.database, seed=options.seed, settings=SETTINGS, hold=interruptions.held)
    try:
        return _demo(stack, options)
    except StackError as error:
        click.echo(f"\nworkos-sync demo: {error}", err=True)
        return 1
    except Interrupted as interrupted:
        click.echo("\nworkos-sync demo: interrupted, stopping everything", err=True)
        return 128 + interrupted.number
    finally:
        interruptions.cleaning_up()
        stack.stop()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def _demo(stack: Stack, options: Options) -> int:
    console, began = Console(), time.monotonic()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    _start(console, stack)
    engine = open_engine(stack.database_url)
    try:
        console.print(
            f"\nPlaying {options.events:,} events of {options.companies} companies: "
            "some duplicated, reordered or lost, and some with wrong signatures",
            highlight=False,
        )
        play.begin(stack, events=options.events, companies=options.companies, seed=options.seed)
        last = show.follow(console, play.watch(stack, engine), options.events)
        console.print("\nInviting a person, who accepts", highlight=False)
        last = replace(play.invite(stack, engine), seconds=last.seconds)
        console.print("\nChanging a few objects without events, then running workos-sync resync", highlight=False)
        resynced = play.resync(stack, engine)
        verdict, good = _judge(console, stack, engine, last, resynced, began)
        if options.keep:
            _print_addresses(console, stack, engine)
        print(verdict, flush=True)
        return _keep(stack, good=good) if options.keep else int(not good)
    finally:
        engine.dispose()


def _start(console: Console, stack: Stack) -> None:
    console.print("Starting all processes on this machine", highlight=False)
    for text, start in stack.steps():
        console.print(f"  {text:<58}", end="", highlight=False)
        began = time.monotonic()
        start()
        console.print(f"{time.monotonic() - began:5.1f} s", highlight=False)


def _judge(
    console: Console, stack: Stack, engine: Engine, last: play.Sample, resynced: play.Resynced, began: float
) -> tuple[str, bool]:
    """Compare the mirror with the sandbox and print reports; return the verdict and whether it is good."""
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
        return "; ".join([f"mirror differs from WorkOS: {len(found)} differences", *faults]), False
    if faults:
        return "mirror equals WorkOS, but: " + "; ".join(faults), False
    return report.verdict(truth), True


def _print_addresses(console: Console, stack: Stack, engine: Engine) -> None:
    """Print the addresses of all processes, and commands to try."""
    names = (
        *("DATABASE_URL", "REDIS_URL", "WORKOS_API_KEY", "WORKOS_CLIENT_ID", "WORKOS_BASE_URL"),
        *("WORKOS_WEBHOOK_SECRETS", "OPS_TOKENS", "API_TOKENS"),
    )
    settings = "export " + " ".join(f"{name}='{stack.settings[name]}'" for name in names)
    members = rows(engine, workspace_members)
    organizations, emails = [row["organization_id"] for row in members], [row["email"] for row in members]
    addresses = {
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
        *(f"workos-sync members {organization}" for organization in organizations[:1]),
        *(f"workos-sync members {organization} --at 10s" for organization in organizations[:1]),
        *(f"workos-sync explain {email}" for email in emails[:1]),
        "workos-sync doctor",
        f"curl -H 'Authorization: Bearer {stack.token}' {stack.web_url}/api/v1/status",
        f"curl -X POST {stack.sandbox_url}/sandbox/play -d '{{\"events\": 500}}'",
    ]
    lines = ["Running until Ctrl-C:", *(f"  {name:<9} {address}" for name, address in addresses.items())]
    lines += ["Try in another terminal:", *(f"  {example}" for example in examples), ""]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _keep(stack: Stack, *, good: bool) -> int:
    """Wait for Ctrl-C; fail if a process ends."""
    click.echo("(running; press Ctrl-C to stop)", err=True)
    try:
        while True:
            stack.require_running()
            time.sleep(1)
    except Interrupted:
        click.echo(f"\nstopping; {stack.folder} is kept", err=True)
        return int(not good)

"""Host hooks: how each stands, what it failed at, and telling it once more."""

import sys

import click

from worker.cli.shared import json_option, migrated_engine, operator, say_rows
from worker.hooks import operate
from worker.logs import configure
from worker.settings import load_settings

change_option = click.option("--change", "change_id", type=int, metavar="ID", help="Only this one.")


@click.group()
def hooks() -> None:
    """See how the hooks of HOOKS stand, and tell them again of what they failed at."""


@hooks.command("list")
@json_option
def hooks_list(as_json: bool) -> None:
    """List the hooks: how far behind, what waits and what failed; exit code 1 if anything failed."""
    rows = operate.hook_status(migrated_engine(), load_settings().hooks)
    say_rows(
        ("hook", "configured", "cursor", "behind", "waiting", "failed", "delivered_at", "error"), rows, as_json=as_json
    )
    sys.exit(1 if any(row["failed"] or row["error"] for row in rows) else 0)


@hooks.command("failed")
@click.argument("hook", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def hooks_failed(hook: str | None, limit: int, as_json: bool) -> None:
    """List the changes that a hook failed at, with its tracebacks; exit code 1 if there are any."""
    engine = migrated_engine()
    if hook is not None:
        operate.require_hook(engine, hook, load_settings().hooks)
    rows = operate.deliveries(engine, hook=hook, status="failed", limit=limit)
    say_rows(("hook", "change_id", "kind", "object_id", "attempts", "traceback"), rows, as_json=as_json)
    sys.exit(1 if rows else 0)


@hooks.command("replay")
@click.argument("hook")
@change_option
def hooks_replay(hook: str, change_id: int | None) -> None:
    """Tell a hook again of what it failed at."""
    settings = load_settings()
    configure(settings.log_format)
    number = operate.replay(migrated_engine(), hook, change_id, operator(), settings.hooks)
    click.echo(f"{number} put back")


@hooks.command("dismiss")
@click.argument("hook")
@change_option
def hooks_dismiss(hook: str, change_id: int | None) -> None:
    """Give up what a hook failed at."""
    settings = load_settings()
    configure(settings.log_format)
    number = operate.dismiss(migrated_engine(), hook, change_id, operator(), settings.hooks)
    click.echo(f"{number} dismissed")

"""`workos-sync hooks`: inspect hooks; retry or discard their failed deliveries."""

import sys

import click

from models.tables import DeliveryStatus
from worker.cli.shared import json_option, migrated_engine, operator, print_rows
from worker.hooks import operate
from worker.logs import configure
from worker.settings import load_settings

change_option = click.option("--change", "change_id", type=int, metavar="ID", help="Only the delivery of this change.")


@click.group()
def hooks() -> None:
    """Inspect hooks; retry or discard failed deliveries."""


@hooks.command("list")
@json_option
def hooks_list(as_json: bool) -> None:
    """List hooks with their backlog and failed deliveries.

    Exit code 1 if anything failed.
    """
    rows = operate.hook_status(migrated_engine(), load_settings().hooks)
    print_rows(
        ("hook", "configured", "cursor", "behind", "waiting", "failed", "delivered_at", "error"), rows, as_json=as_json
    )
    sys.exit(1 if any(row["failed"] or row["error"] for row in rows) else 0)


@hooks.command("failed")
@click.argument("hook", required=False)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows.")
@json_option
def hooks_failed(hook: str | None, limit: int, as_json: bool) -> None:
    """List failed deliveries with their tracebacks.

    Of one hook, or of all hooks if HOOK is omitted. Exit code 1 if there are any.
    """
    engine = migrated_engine()
    if hook is not None:
        operate.require_hook(engine, hook, load_settings().hooks)
    rows = operate.deliveries(engine, hook=hook, status=DeliveryStatus.FAILED, limit=limit)
    print_rows(("hook", "change_id", "kind", "object_id", "attempts", "traceback"), rows, as_json=as_json)
    sys.exit(1 if rows else 0)


@hooks.command("replay")
@click.argument("hook")
@change_option
def hooks_replay(hook: str, change_id: int | None) -> None:
    """Retry a hook's failed deliveries."""
    settings = load_settings()
    configure(settings.log_format)
    number = operate.replay(migrated_engine(), hook, change_id, operator(), settings.hooks)
    click.echo(f"{number} queued for retry")


@hooks.command("dismiss")
@click.argument("hook")
@change_option
def hooks_dismiss(hook: str, change_id: int | None) -> None:
    """Discard a hook's failed deliveries."""
    settings = load_settings()
    configure(settings.log_format)
    number = operate.dismiss(migrated_engine(), hook, change_id, operator(), settings.hooks)
    click.echo(f"{number} discarded")

"""`workos-sync hooks`: inspect hooks; retry or discard their failed deliveries."""

import sys
from typing import Any

import click

from models.tables import DeliveryStatus
from models.types import MAX_ID
from worker.cli import options, output
from worker.cli.shared import actor, logging_settings, migrated_engine
from worker.hooks import operate
from worker.settings import load_settings


class ChangeId(click.ParamType[int]):
    """The id of a change. `click.IntRange` would show its limits in the help."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id, or reject what cannot be one."""
        return click.IntRange(1, MAX_ID).convert(value, param, ctx)


change_option = click.option(
    "--change", "change_id", type=ChangeId(), metavar="ID", help="Only the delivery of this change."
)


@click.group()
def hooks() -> None:
    """Inspect hooks; retry or discard failed deliveries."""


@hooks.command("list")
@options.as_json
def hooks_list(as_json: bool) -> None:
    """List hooks with their backlog and failed deliveries.

    Exit code 1 if a delivery failed or a hook missed changes.
    """
    rows = operate.hook_status(migrated_engine(), load_settings().http_hooks)
    columns = ("hook", "configured", "cursor", "behind", "waiting", "failed", "delivered_at", "error")
    output.rows(columns, rows, as_json=as_json)
    sys.exit(1 if any(row["failed"] or row["error"] for row in rows) else 0)


@hooks.command("failed")
@click.argument("hook", required=False)
@options.limit
@options.as_json
def hooks_failed(hook: str | None, limit: int, as_json: bool) -> None:
    """List failed deliveries with their errors.

    Lists those of all hooks if HOOK is omitted. Exit code 1 if there are any.
    """
    engine = migrated_engine()
    if hook is not None:
        operate.require_hook(engine, hook, load_settings().http_hooks)
    rows = operate.deliveries(engine, hook=hook, status=DeliveryStatus.FAILED, limit=limit)
    output.rows(("hook", "change_id", "kind", "object_id", "attempts", "traceback"), rows, as_json=as_json)
    sys.exit(1 if rows else 0)


@hooks.command("replay")
@click.argument("hook")
@change_option
@options.reason
def hooks_replay(hook: str, change_id: int | None, reason: str | None) -> None:
    """Retry a hook's failed deliveries."""
    names = logging_settings().http_hooks
    number = operate.replay(migrated_engine(), hook, change_id, actor(reason), names)
    click.echo(f"{number} queued for retry")


@hooks.command("dismiss")
@click.argument("hook")
@change_option
@options.required_reason
def hooks_dismiss(hook: str, change_id: int | None, reason: str) -> None:
    """Discard a hook's failed deliveries."""
    names = logging_settings().http_hooks
    number = operate.dismiss(migrated_engine(), hook, change_id, actor(reason), names)
    click.echo(f"{number} dismissed")

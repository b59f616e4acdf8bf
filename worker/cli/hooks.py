"""`workos-sync hooks`: inspect hooks; retry or dismiss their failed deliveries."""

from __future__ import annotations

import sys
from typing import Any

import click

from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, logging_settings, migrated_engine
from worker.lazy import lazy_imports

with lazy_imports():
    from models import tables, types
    from worker import settings
    from worker.hooks import operate


class ChangeId(click.ParamType[int]):
    """The id of a change. `click.IntRange` would show its limits in the help."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the id, or reject what cannot be one."""
        return click.IntRange(1, types.MAX_ID).convert(value, param, ctx)


change_option = click.option(
    "--change", "change_id", type=ChangeId(), metavar="ID", help="Only the delivery of this change."
)

MAX_CHANGES = 10
"""Changes that a terminal lists of deliveries that failed with the same error."""
GROUP = (
    *(Column("hook"), Column("deliveries"), Column("attempts")),
    *(Column("changes"), Column("more", "and"), Column("error", fit=Fit.WRAP)),
)
"""The fields of a group of failed deliveries on a terminal. Its deliveries failed with the same error."""


@click.group()
def hooks() -> None:
    """Inspect hooks; retry or dismiss failed deliveries."""


@hooks.command("list")
@output.listing(
    Column("hook", fit=Fit.CUT),
    Column("configured"),
    Column("behind", "not yet sent"),
    Column("waiting", "waiting to retry"),
    Column("failed"),
    Column("delivered_at", "last delivery"),
    Column("error", fit=Fit.WRAP),
    Column("delivered", wide=True),
    Column("cursor", wide=True),
    empty="no hooks: HOOKS is not set",
)
def hooks_list(out: output.Listing) -> None:
    """List hooks with their backlog and failed deliveries.

    Exit code 1 if a delivery failed or a hook missed changes.
    """
    rows = operate.list_hooks(migrated_engine(), settings.load_settings().http_hooks)
    out.show(rows)
    sys.exit(1 if any(row["failed"] or row["error"] for row in rows) else 0)


@hooks.command("failed")
@click.argument("hook", required=False)
@options.limit
@output.listing(
    Column("hook"),
    Column("change_id"),
    Column("kind"),
    Column("object_id"),
    Column("attempts"),
    Column("error", fit=Fit.WRAP),
    Column("traceback", fit=Fit.WRAP, wide=True),
    empty="no failed deliveries",
)
def hooks_failed(out: output.Listing, hook: str | None, limit: int) -> None:
    """List failed deliveries with their errors.

    Lists those of all hooks if HOOK is omitted. A terminal shows identical errors once. Exit code 1 if there are any.
    """
    engine = migrated_engine()
    if hook is not None:
        operate.require_hook(engine, hook, settings.load_settings().http_hooks)
    rows = operate.deliveries(engine, hook=hook, status=tables.DeliveryStatus.FAILED, limit=limit)
    out.show(rows, people=layout.blocks(GROUP, _groups(rows), output.width(), lead=2))
    if rows and out.for_people:
        output.note("to retry or dismiss them: workos-sync hooks replay|dismiss HOOK --reason TEXT")
    sys.exit(1 if rows else 0)


def _groups(rows: list[types.Record]) -> list[types.Record]:
    """Return a row for each hook and error, with the changes whose deliveries failed."""
    grouped: dict[tuple[str, str | None], list[types.Record]] = {}
    for row in rows:
        grouped.setdefault((row["hook"], row["traceback"] or row["error"]), []).append(row)
    return [
        {
            "hook": hook,
            "deliveries": f"{len(same)} failed {'delivery' if len(same) == 1 else 'deliveries'}",
            "attempts": max(row["attempts"] for row in same),
            "changes": "\n".join(
                f"{row['change_id']}  {row['kind']}  {row['object_id']}" for row in same[:MAX_CHANGES]
            ),
            "more": f"{len(same) - MAX_CHANGES} more changes" if len(same) > MAX_CHANGES else None,
            "error": error,
        }
        for (hook, error), same in grouped.items()
    ]


@hooks.command("replay")
@click.argument("hook")
@change_option
@options.reason
@options.as_json
def hooks_replay(hook: str, change_id: int | None, reason: str | None, as_json: bool) -> None:
    """Retry a hook's failed deliveries."""
    names = logging_settings().http_hooks
    number = operate.replay(migrated_engine(), hook, change_id, actor(reason), names)
    output.result(f"{number} queued for retry", {"queued": number}, as_json=as_json)


@hooks.command("dismiss")
@click.argument("hook")
@change_option
@options.required_reason
@options.as_json
def hooks_dismiss(hook: str, change_id: int | None, reason: str, as_json: bool) -> None:
    """Dismiss a hook's failed deliveries."""
    names = logging_settings().http_hooks
    number = operate.dismiss(migrated_engine(), hook, change_id, actor(reason), names)
    output.result(f"{number} dismissed", {"dismissed": number}, as_json=as_json)

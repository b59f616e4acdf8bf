"""Options that several commands have."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import click

from worker.decision.payload import clean

FC = TypeVar("FC", bound=Callable[..., object])

THIS_TIME = "this time, such as 2026-01-31 or 2026-01-31T12:30:00 (UTC)"
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows."
)


def _entered(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    text = clean(given.strip()) if given else None
    if option.required and not text:
        raise click.BadParameter("must not be empty", context, option)
    return text or None


reason = click.option("--reason", callback=_entered, help="Reason, recorded in the audit.")
required_reason = click.option("--reason", required=True, callback=_entered, help="Reason, recorded in the audit.")


def time(name: str, text: str) -> Callable[[FC], FC]:
    """Return an option for a time, which the command gets as an aware time. Without an offset it is in UTC."""

    def in_utc(_context: click.Context, _option: click.Parameter, given: datetime | None) -> datetime | None:
        return given.replace(tzinfo=given.tzinfo or UTC) if given else None

    return click.option(name, type=click.DateTime(FORMATS), metavar="DATETIME", callback=in_utc, help=text)

"""Options that several commands have."""

import sys
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import click

from worker.lazy import lazy_imports

with lazy_imports():
    from worker import times
    from worker.decision import payload

FC = TypeVar("FC", bound=Callable[..., object])

THIS_TIME = "this time, such as 2026-01-31T12:30Z, 2h, 3d or yesterday"
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows."
)


class Time(click.ParamType[datetime]):
    """A time: ISO 8601, how long ago (`90s`, `30m`, `2h`, `3d`, `1w`), or `now`, `today` or `yesterday`.

    The command gets it in UTC. A time without an offset is in UTC, and so are the days of `today` and `yesterday`.
    """

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time that `value` names, or reject it with the accepted forms."""
        if isinstance(value, datetime):
            return value
        try:
            return times.parse_time(str(value))
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; {times.TIME_FORMS}", param, ctx)


def _entered(context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    text = payload.clean(given.strip()) if given else None
    if option.required and not text:
        raise click.BadParameter("must not be empty", context, option)
    return text or None


organization = click.option(
    "--organization", metavar="ORGANIZATION", help="Only this workspace: its id, external id or name."
)
organization_argument = click.argument("organization", metavar="ORGANIZATION")
reason = click.option("--reason", callback=_entered, help="Reason, recorded in the audit.")
required_reason = click.option("--reason", required=True, callback=_entered, help="Reason, recorded in the audit.")


def _answerable(_context: click.Context, _option: click.Parameter, given: bool) -> bool:
    if not given and not sys.stdin.isatty():
        raise click.UsageError("standard input is not a terminal, so nobody can confirm; add --yes")
    return given


yes = click.option("--yes", is_flag=True, callback=_answerable, help="Do not ask for confirmation.")


def time(name: str, text: str) -> Callable[[FC], FC]:
    """Return an option for a time, which the command gets in UTC."""
    return click.option(name, type=Time(), metavar="TIME", help=text)

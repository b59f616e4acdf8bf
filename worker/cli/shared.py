"""Helpers of the commands: opening what they need, failing and printing."""

import getpass
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from models.database import open_engine
from models.types import Record
from worker.bootstrap import Services, build_services, require_migrated
from worker.errors import UnknownIdError
from worker.mirror import change_feed
from worker.processes.embedded import redis_server
from worker.repair.environment import bind, connect, require_same_environment
from worker.settings import Settings, load_settings
from worker.workos_api.client import WorkOSClient

T = TypeVar("T")

TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])
TIME_EXAMPLES = "this time, such as 2026-01-31 or 2026-01-31T12:30:00 (UTC)"
HEADINGS = {
    "saw": "found",
    "gaps": "missing webhooks",
    "late": "late webhooks",
    "silent_seconds": "seconds without a webhook",
    "complete_to": "complete up to",
    "auto_join": "auto-join",
    "auto_join_conflicts": "auto-join conflicts",
    "workos_role": "WorkOS role",
}
"""What a table calls a field whose name in JSON is not clear by itself."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def operator() -> str:
    """Return the login name of the person at the command line, which is recorded with their changes.

    A user without a login name, as in containers, is `uid 12345`.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12
        return f"uid {os.getuid()}"


def fail(message: str, exit_code: int) -> NoReturn:
    """Print one line to stderr and exit: 1 if something could not be done, 2 for wrong usage or configuration."""
    click.echo(f"workos-sync: {message}", err=True)
    sys.exit(exit_code)


def known(found: T | None, otherwise: str) -> T:
    """Return `found`; if it is None, print `otherwise` to standard error and exit with code 1."""
    if found is None:
        raise UnknownIdError(otherwise)
    return found


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Yield an event that is set by SIGTERM and Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    yield stop


def open_database(settings: Settings) -> Engine:
    """Return an engine that is disposed when the command ends."""
    engine = open_engine(settings.database_url)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def migrated_engine() -> Engine:
    """Return an engine of the database.

    Raises:
        ConfigurationError: the database is not at the newest revision.
    """
    engine = open_database(load_settings())
    require_migrated(engine)
    return engine


@contextmanager
def reaching_workos(settings: Settings, *, bound: bool = True) -> Iterator[tuple[Services, WorkOSClient]]:
    """Yield the services of a process and a WorkOS client, after checking that both name the same environment.

    Args:
        settings: with API key and client id.
        bound: whether to bind a new database to this environment.

    Raises:
        ConfigurationError: the database mirrors another environment, or is not migrated.
        InvalidApiKeyError: WorkOS refuses the API key.
        WorkOSUnavailableError: WorkOS does not answer.
    """
    with redis_server(settings) as redis, closing(build_services(settings, redis.url)) as services:
        require_migrated(services.engine)
        with closing(connect(settings, services.redis, services.counters)) as workos:
            (bind if bound else require_same_environment)(services.engine, workos, settings)
            yield services, workos


def in_utc(time: datetime | None) -> datetime | None:
    """Return a time given on the command line as an aware time; without an offset it is in UTC."""
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def cell(value: object) -> Text:
    """Return `value` as plain text. Markup and control characters in customers' data have no effect on the terminal."""
    if value is None:
        return Text()
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def print_table(table: Table) -> None:
    """Print a table in the current width of the terminal."""
    Console().print(table)


def heading(name: str) -> str:
    """Return what a table calls the field `name`."""
    return HEADINGS.get(name, name.replace("_", " "))


def as_table(columns: tuple[str, ...], rows: list[Record]) -> Table:
    """Return a table with these columns of `rows`."""
    table = Table()
    for column in columns:
        table.add_column(heading(column), overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    return table


def print_report(report: Record, *, as_json: bool) -> None:
    """Print a report as JSON, or as a table with a line for each name and value."""
    if as_json:
        click.echo(change_feed.as_json(report))
        return
    table = Table(show_header=False)
    for name, value in report.items():
        shown = ", ".join(f"{n} {word}" for word, n in value.items()) if isinstance(value, dict) else value
        table.add_row(heading(name), cell(shown))
    print_table(table)


def print_rows(columns: tuple[str, ...], rows: list[Record], *, as_json: bool) -> None:
    """Print rows as JSON with all columns, or as a table with these columns; `none` if there are no rows."""
    if as_json:
        click.echo(change_feed.as_json(rows))
    elif rows:
        print_table(as_table(columns, rows))
    else:
        click.echo("none")

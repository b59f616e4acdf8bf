"""What the commands share: settings and parts, how they fail, how they print."""

import getpass
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine

from models.database import open_engine
from worker.bootstrap import Services, build_services, require_migrated
from worker.errors import UnknownIdError
from worker.mirror import change_feed
from worker.processes.embedded import redis_server
from worker.repair.environment import bind, connect, require_same_environment
from worker.settings import Settings, load_settings
from worker.workos_api.client import WorkOSClient

T = TypeVar("T")

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def operator() -> str:
    """Return who uses the command line: the login name, or `uid 12345` for a user without one, as in containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError until Python 3.12
        return f"uid {os.getuid()}"


def fail(message: str, exit_code: int) -> NoReturn:
    """Print one line to stderr and exit: 1 if something could not be done, 2 for wrong usage or configuration."""
    click.echo(f"workos-sync: {message}", err=True)
    sys.exit(exit_code)


def known(found: T | None, otherwise: str) -> T:
    """Return `found`; raises `UnknownIdError`, with `otherwise` as its message, if it is None."""
    if found is None:
        raise UnknownIdError(otherwise)
    return found


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    yield stop


def open_database(settings: Settings) -> Engine:
    """Return an engine that is disposed of when the command ends."""
    engine = open_engine(settings.database_url)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def migrated_engine() -> Engine:
    """Return an engine of a database at the newest revision; raises `ConfigurationError` otherwise."""
    engine = open_database(load_settings())
    require_migrated(engine)
    return engine


@contextmanager
def reaching_workos(settings: Settings, *, bound: bool = True) -> Iterator[tuple[Services, WorkOSClient]]:
    """Yield the parts of a process that asks WorkOS's API, once it is known to be the right environment.

    `bound`: whether a database that is not bound to any environment yet is bound to this one.
    """
    with redis_server(settings) as redis, closing(build_services(settings, redis.url)) as services:
        require_migrated(services.engine)
        with closing(connect(settings, services.redis, services.counters)) as workos:
            (bind if bound else require_same_environment)(services.engine, workos, settings)
            yield services, workos


def in_utc(time: datetime | None) -> datetime | None:
    """Return a time of the command line, in UTC unless it says otherwise."""
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def cell(value: object) -> Text:
    """Return `value` as it is: what customers wrote is no markup, and steers no terminal."""
    if value is None:
        return Text()
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def show(table: Table) -> None:
    """Print a table, as wide as the terminal is now."""
    Console().print(table)


def as_table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    """Return these columns of rows as a table."""
    table = Table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    return table


def say(report: dict[str, Any], *, as_json: bool) -> None:
    """Print a report: a line each name and value, or JSON."""
    if as_json:
        click.echo(change_feed.as_json(report))
        return
    table = Table(show_header=False)
    for name, value in report.items():
        shown = ", ".join(f"{n} {word}" for word, n in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), cell(shown))
    show(table)


def say_rows(columns: tuple[str, ...], rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows: these columns of them as a table, or all as JSON."""
    if as_json:
        click.echo(change_feed.as_json(rows))
    else:
        show(as_table(columns, rows))

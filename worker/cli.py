"""The command line: `workos-sync …`. Exit code 0: all is well, 1: something is wrong, 2: usage or configuration."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import open_engine
from models.migrate import newest_revision, upgrade
from models.tables import EventStatus
from worker import reports
from worker.clock import Duty, run, sweep
from worker.embedded import redis_server, redis_url
from worker.errors import ConfigurationError
from worker.jobs import DRAIN
from worker.logs import configure
from worker.role_map import adopt
from worker.settings import Settings, load_settings
from worker.supervisor import supervise
from worker.wiring import door_redis, require_migrated, wire

out = Console()

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class Commands(click.Group):
    """A group whose commands end wrong configuration and a database away with one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            _fail(str(error))
        except DBAPIError as error:
            _fail(f"DATABASE_URL: the database failed: {error.orig.__class__.__name__}")


def _fail(message: str) -> NoReturn:
    click.echo(f"workos-sync: {message}", err=True)
    sys.exit(2)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="workos-sync")
def main() -> None:
    """Keep a product's own database equal to WorkOS: workspaces, members, roles and auto-join domains.

    Settings come from the environment and from `.env`; the README lists them.
    """


@main.command()
def migrate() -> None:
    """Bring the database to the newest revision. Safe to run at any time, also twice at once."""
    settings = load_settings()
    try:
        upgrade(_open(settings))
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    click.echo(f"the database stands at revision {newest_revision()}")


@main.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Instead of the setting PORT.")
def web(port: int | None) -> None:
    """Take webhook deliveries: serve POST /webhooks/workos and the health checks with gunicorn."""
    settings = load_settings("workos_webhook_secrets", port=port)
    require_migrated(_open(settings))
    _require_free(settings.port)
    if settings.redis_url:
        os.execv(sys.executable, _gunicorn(settings))  # noqa: S606 - our own command, as this process
    with redis_server(settings), _until_stopped() as stop:
        process = subprocess.Popen(_gunicorn(settings))  # noqa: S603 - our own command
        while process.poll() is None and not stop.wait(0.2):
            pass
        process.terminate()
        code = process.wait()
        sys.exit(0 if stop.is_set() else code if code > 0 else 1)


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - the door faces the network, as a container or proxy needs
        except OSError as error:
            raise ConfigurationError(f"PORT {port} cannot be used: {error.strerror}; choose another") from error


def _gunicorn(settings: Settings) -> list[str]:
    # SQLite has one writer: more threads would only wait for each other (QUEUE.md).
    threads = 2 if settings.database_url.startswith("sqlite") else settings.web_threads
    options = {
        "--bind": f"0.0.0.0:{settings.port}",
        "--workers": settings.web_processes,
        "--worker-class": "gthread",
        "--threads": threads,
        "--timeout": 30,
        "--graceful-timeout": 20,
        "--keep-alive": 75,  # longer than a load balancer's 60 s, so that it never meets a connection just closed
        "--log-level": "warning",
    }
    arguments = [str(part) for option in options.items() for part in option]
    return [sys.executable, "-m", "gunicorn", *arguments, "--no-control-socket", "webhooks.wsgi:application()"]


@main.command()
@click.option("--processes", type=click.IntRange(1), help="Instead of the setting WORKER_PROCESSES.")
def worker(processes: int | None) -> None:
    """Apply events: run worker processes; one that dies is started again."""
    settings = load_settings(worker_processes=processes)
    configure(settings.log_format)
    engine = _open(settings)
    require_migrated(engine)
    adopt(engine, settings.role_map)
    engine.dispose()
    command = [sys.executable, "-m", "worker.lane", DRAIN]
    with redis_server(settings), _until_stopped() as stop:
        supervise([command] * settings.worker_processes, stop)


@main.command()
def clock() -> None:
    """Do what is due: every few seconds ring for events that no doorbell announced."""
    settings = load_settings()
    configure(settings.log_format)
    with redis_server(settings) as redis, _until_stopped() as stop:
        wiring = wire(settings, redis.url)
        require_migrated(wiring.engine)
        duties = [
            Duty("redis", settings.sweep_seconds, redis.ensure),
            Duty("sweep", settings.sweep_seconds, lambda: sweep(wiring.engine, wiring.bell)),
        ]
        run(duties, stop)


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    yield stop


@main.group()
def events() -> None:
    """Look into the inbox."""


@events.command("list")
@click.option("--status", type=click.Choice([status.value for status in EventStatus]), help="Only these.")
@click.option("--type", help="Only this event type, such as user.deleted.")
@click.option("--organization", help="Only this organization id.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def events_list(status: str | None, type: str | None, organization: str | None, limit: int, as_json: bool) -> None:
    """List the newest events: what became of each, and why."""
    rows = reports.list_events(_engine(), status=status, type=type, organization_id=organization, limit=limit)
    if as_json:
        click.echo(reports.as_json(rows))
        return
    columns = ("received_at", "id", "type", "status", "outcome", "object_id", "deliveries", "attempts", "error")
    out.print(_table(columns, rows))


@events.command("show")
@click.argument("event_id")
@json_option
def events_show(event_id: str, as_json: bool) -> None:
    """Show one event: payload, outcome, attempts, and what it changed."""
    event = reports.show_event(_engine(), event_id)
    if event is None:
        click.echo(f"workos-sync: no event {event_id} was ever received", err=True)
        sys.exit(1)
    if as_json:
        click.echo(reports.as_json(event))
        return
    table = Table(show_header=False)
    for name, value in event.items():
        table.add_row(name, _cell(reports.as_json(value) if isinstance(value, (dict, list)) else value))
    out.print(table)


@main.command()
@click.argument("organization")
@json_option
def members(organization: str, as_json: bool) -> None:
    """List who has access to a workspace now, with which role."""
    workspace = reports.list_members(_engine(), organization)
    if workspace is None:
        click.echo(f"workos-sync: the mirror knows no organization {organization}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(reports.as_json(workspace))
        return
    table = _table(("email", "role", "workos_role", "user_id", "since"), workspace["members"])
    table.title = _cell(f"{workspace['name']} ({workspace['state']})")
    out.print(table)


@main.command()
@json_option
def status(as_json: bool) -> None:
    """Say how things stand; exit code 1 if something is wrong."""
    settings = load_settings()
    report = reports.status(_engine(), door_redis(redis_url(settings)))
    if as_json:
        click.echo(reports.as_json(report))
    else:
        table = Table(show_header=False)
        for name, value in (*report.pop("mirror").items(), *report.items()):
            table.add_row(
                name.replace("_", " "), _cell("\n".join(value) or "none" if isinstance(value, list) else value)
            )
        out.print(table)
    sys.exit(1 if report["problems"] else 0)


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Show it working end to end against a sandbox WorkOS (from a checkout)."""
    if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.demo") is None:
        raise ConfigurationError("the demo is part of the checkout, not of the installed package: run make demo there")
    command: Callable[..., None] = importlib.import_module("tests.demo").command
    command(list(arguments), prog_name="workos-sync demo")


def _open(settings: Settings) -> Engine:
    engine = open_engine(settings.database_url)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def _engine() -> Engine:
    engine = _open(load_settings())
    require_migrated(engine)
    return engine


def _cell(value: object) -> Text:
    """Return `value` as it is: what customers wrote is no markup, and steers no terminal."""
    if value is None:
        return Text()
    text = value.isoformat(sep=" ", timespec="seconds") if isinstance(value, datetime) else str(value)
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    return table


if __name__ == "__main__":
    main()

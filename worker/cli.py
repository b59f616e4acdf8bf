"""The command line: `workos-sync …`. Exit code 0: all is well, 1: something is wrong, 2: usage or configuration."""

import getpass
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

import click
import structlog
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import open_engine
from models.migrate import newest_revision, upgrade
from models.tables import EventStatus
from worker import replay as replays
from worker import reports
from worker.catch_up import REMEDY, catch_up, catch_up_since
from worker.clock import Duty, run, sweep
from worker.directory import Directory, UnreadableError
from worker.embedded import redis_server, redis_url
from worker.errors import ConfigurationError
from worker.jobs import DRAIN, REPAIR
from worker.logs import configure
from worker.progress import progress
from worker.repair import bind, connect, require_same_environment, schedule, watch, work_on
from worker.resync import start
from worker.retention import forget
from worker.role_map import adopt
from worker.runs import followed
from worker.settings import Settings, load_settings
from worker.supervisor import supervise
from worker.wiring import Wiring, door_redis, require_migrated, wire

out = Console()
log = structlog.get_logger()

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
MOST_SHOWN = 200
"""Rows of a drift report in a terminal."""
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


class Commands(click.Group):
    """A group whose commands end wrong configuration and a database away with one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            _fail(str(error))
        except UnreadableError as error:
            _fail(f"WorkOS did not answer: {error}")
        except RedisError as error:
            _fail(f"REDIS_URL: Redis failed: {type(error).__name__}")
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
    lanes = [DRAIN] * settings.worker_processes + [REPAIR]
    with redis_server(settings) as redis, _until_stopped() as stop:
        _bind_if_reachable(engine, settings, redis.url)
        adopt(engine, settings.role_map)
        engine.dispose()
        supervise([[sys.executable, "-m", "worker.lane", lane] for lane in lanes], stop)


def _bind_if_reachable(engine: Engine, settings: Settings, redis_url: str) -> None:
    """Refuse another WorkOS environment before anything is written; without WorkOS the rest goes on meanwhile."""
    if not settings.repairs:
        log.warning("repair_off", why="WORKOS_API_KEY is not set: nothing repairs what webhooks miss")
        return
    try:
        with Redis.from_url(redis_url) as redis, closing(connect(settings, redis)) as directory:
            bind(engine, directory, settings)
    except (UnreadableError, RedisError) as error:
        log.warning("environment_not_checked", error=type(error).__name__)


@main.command()
def clock() -> None:
    """Do what is due: ring for events and runs that no one works on, start resync, catch-up and retention."""
    settings = load_settings()
    configure(settings.log_format)
    with redis_server(settings) as redis, _until_stopped() as stop:
        wiring = wire(settings, redis.url)
        require_migrated(wiring.engine)
        _bind_if_reachable(wiring.engine, settings, redis.url)
        duties = [
            Duty("redis", settings.sweep_seconds, redis.ensure),
            Duty("sweep", settings.sweep_seconds, lambda: sweep(wiring.engine, wiring.bell)),
            Duty("schedule", settings.repair_seconds, lambda: schedule(wiring.engine, settings)),
            Duty("watch", settings.repair_seconds, lambda: watch(wiring.engine, wiring.repair_bell)),
        ]
        run(duties, stop)


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    yield stop


@main.command()
@click.option("--organization", metavar="ID", help="Only this workspace: a second or two.")
@click.option("--dry-run", is_flag=True, help="Change nothing; report the drift, exit code 1 if there is any.")
@click.option("--approve", metavar="RUN", help="Carry out the deletions that this run withheld, each read again first.")
@json_option
def resync(organization: str | None, dry_run: bool, approve: str | None, as_json: bool) -> None:
    """Compare the mirror with WorkOS, repair it, and report what was different."""
    if approve and (organization or dry_run):
        raise click.UsageError("--approve carries out a run's list: it goes with no other option")
    settings = load_settings("workos_api_key", "workos_client_id")
    configure(settings.log_format)
    with _reaching_workos(settings, bound=not dry_run) as (wiring, directory), _until_stopped() as stop:
        if organization and not _known(wiring.engine, directory, organization):
            _fail(f"WorkOS knows no organization {organization}")
        who = getpass.getuser()
        run_id = start(wiring.engine, who, organization_id=organization, dry_run=dry_run, approves=approve)
        with progress(wiring.engine, run_id):
            over = work_on(wiring.engine, directory, settings, wiring.bell, run_id, stop.is_set) or followed(
                wiring.engine, run_id, stop.wait
            )
        ended = reports.run(wiring.engine, run_id)
        assert ended is not None  # noqa: S101 - nothing deletes a run of today
        _report(wiring.engine, ended, as_json=as_json)
    if not over:
        click.echo(f"workos-sync: run {run_id} was interrupted; a worker goes on with it, or this command", err=True)
    if ended["error"]:
        click.echo(f"workos-sync: {ended['error']}", err=True)
    drifted = dry_run and ended["findings"]
    sys.exit(1 if drifted or not over or ended["error"] or ended["withheld"] else 0)


def _known(engine: Engine, directory: Directory, organization_id: str) -> bool:
    """Whether WorkOS knows an organization; or the mirror shows it live, so that there is something to repair."""
    if directory.organization(organization_id).item is not None:
        return True
    here = reports.list_members(engine, organization_id)
    return here is not None and here["state"] == "active"


def _report(engine: Engine, run_row: dict[str, Any], *, as_json: bool) -> None:
    run_id = run_row["id"]
    if as_json:
        for piece in reports.run_as_json(engine, run_row):
            click.echo(piece, nl=False)
        return
    drifts = list(reports.drift(engine, run_id, MOST_SHOWN + 1))
    if drifts:
        out.print(_table(("kind", "object_id", "organization_id", "finding", "fields", "action"), drifts[:MOST_SHOWN]))
    if len(drifts) > MOST_SHOWN:
        click.echo(f"... and more; all of it: workos-sync runs show {run_id} --json")
    found = ", ".join(f"{number} {finding}" for finding, number in run_row["findings"].items()) or "no drift"
    click.echo(f"run {run_id}: {found}; {run_row['calls']} calls")
    if run_row["withheld"]:
        remedy = f"workos-sync resync --approve {run_id}"
        click.echo(f"{run_row['withheld']} deletions are withheld; after a look at them: {remedy}", err=True)


@contextmanager
def _reaching_workos(settings: Settings, *, bound: bool = True) -> Iterator[tuple[Wiring, Directory]]:
    """Yield the parts of a process that asks WorkOS's API, once it is known to be the right environment.

    `bound`: whether a database that is not bound to any environment yet is bound to this one.
    """
    with redis_server(settings) as redis, ExitStack() as ended:
        wiring = wire(settings, redis.url)
        ended.callback(wiring.engine.dispose)
        ended.callback(wiring.redis.close)
        require_migrated(wiring.engine)
        directory = connect(settings, wiring.redis)
        ended.callback(directory.close)
        (bind if bound else require_same_environment)(wiring.engine, directory, settings)
        yield wiring, directory


@main.group()
def runs() -> None:
    """Look at resyncs, catch-ups and retention: what they found and did."""


@runs.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def runs_list(limit: int, as_json: bool) -> None:
    """List the newest runs."""
    rows = reports.list_runs(_engine(), limit)
    if as_json:
        click.echo(reports.as_json(rows))
        return
    columns = ("created_at", "id", "task", "status", "phase", "requested_by", "finished_at", "calls", "error")
    out.print(_table(columns, rows))


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@json_option
def runs_show(run_id: str, as_json: bool) -> None:
    """Show what a resync found different, and what was done about it."""
    engine = _engine()
    row = reports.run(engine, run_id)
    if row is None:
        click.echo(f"workos-sync: there is no run {run_id}", err=True)
        sys.exit(1)
    _report(engine, row, as_json=as_json)


@runs.command("cancel")
@click.argument("run_id", metavar="RUN")
def runs_cancel(run_id: str) -> None:
    """Stop a replay where it is."""
    if not replays.cancel(_engine(), run_id, getpass.getuser()):
        click.echo(f"workos-sync: {run_id} is no replay under way", err=True)
        sys.exit(1)
    click.echo(f"{run_id} is cancelled")


@main.command("catch-up")
@click.option("--since", type=click.DateTime(TIMES), help="Read all events since this time (UTC), at most 90 days ago.")
@json_option
def catch_up_command(since: datetime | None, as_json: bool) -> None:
    """Read the events API into the inbox: what no webhook brought is applied all the same."""
    settings = load_settings("workos_api_key", "workos_client_id")
    configure(settings.log_format)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    with _reaching_workos(settings) as (wiring, directory):
        since = _in_utc(since)
        if since is None:
            report = catch_up(wiring.engine, directory, lag=lag)
        else:
            report = catch_up_since(wiring.engine, directory, since, lag)
        wiring.bell.ring()
    if as_json:
        click.echo(reports.as_json(report._asdict()))
    else:
        complete = _cell(report.complete_to)
        click.echo(f"{report.returned} events read, {report.new} of them new; complete to {complete}")
    if report.missed:
        click.echo(f"workos-sync: events are missing since the last catch-up: {REMEDY}", err=True)
        sys.exit(1)


@main.command("forget")
@click.argument("user")
def forget_command(user: str) -> None:
    """Blank a deleted user's e-mail and name everywhere, at once."""
    forget(_engine(), user, getpass.getuser())
    click.echo(f"{user} is forgotten")


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


@events.command("failures")
@json_option
def events_failures(as_json: bool) -> None:
    """Group the failed events by the fingerprint of their error: one replay mends all of a kind."""
    rows = reports.failures(_engine())
    if as_json:
        click.echo(reports.as_json(rows))
    elif rows:
        out.print(_table(("fingerprint", "events", "type", "first", "last", "example", "error"), rows))
    else:
        click.echo("no event has failed")
    sys.exit(1 if rows else 0)


@events.command("dismiss")
@click.argument("event_ids", nargs=-1, required=True, metavar="ID...")
@click.option("--why", required=True, help="Kept with the event.")
def events_dismiss(event_ids: tuple[str, ...], why: str) -> None:
    """Note that failed events need not be applied."""
    number = replays.dismiss(_engine(), event_ids, getpass.getuser(), why)
    click.echo(f"{number} dismissed")
    if number < len(set(event_ids)):
        click.echo(f"workos-sync: {len(set(event_ids)) - number} of them have not failed, or are unknown", err=True)
        sys.exit(1)


@main.command("replay")
@click.option("--id", "ids", multiple=True, metavar="ID", help="This event; may be given several times.")
@click.option("--failed", is_flag=True, help="Only events that failed.")
@click.option("--fingerprint", help="Only failed events of this kind of error; see events failures.")
@click.option("--type", help="Only this event type, such as user.deleted.")
@click.option("--organization", "organization_id", metavar="ID", help="Only of this workspace.")
@click.option("--since", type=click.DateTime(TIMES), help="Only received since this time (UTC).")
@click.option("--until", type=click.DateTime(TIMES), help="Only received before this time (UTC).")
@click.option("--why", help="Kept with the run.")
@click.option("--again", is_flag=True, help="Even if the same was replayed before and nothing has failed since.")
@click.option("--dry-run", is_flag=True, help="Only tell how many events, and what would change.")
@json_option
def replay_command(why: str | None, again: bool, dry_run: bool, as_json: bool, **given: Any) -> None:
    """Decide stored events again. What should not change does not."""
    given |= {name: _in_utc(given[name]) for name in ("since", "until")}
    selection = replays.Selection(**given)
    if not selection.as_json():
        raise click.UsageError("name the events: --failed, --id, --fingerprint, --type, --organization or --since")
    settings = load_settings()
    configure(settings.log_format)
    engine = _engine()
    if dry_run:
        _say(replays.plan(engine, selection)._asdict(), as_json=as_json)
        return
    run_id = replays.start(engine, selection, getpass.getuser(), why, again=again)
    with redis_server(settings) as redis, _until_stopped() as stop:
        bell = wire(settings, redis.url).bell
        with progress(engine, run_id):
            over = work_on(engine, None, settings, bell, run_id, stop.is_set) or followed(engine, run_id, stop.wait)
    _say(_replayed(engine, run_id), as_json=as_json)
    sys.exit(0 if over else 1)


def _in_utc(time: datetime | None) -> datetime | None:
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)


def _replayed(engine: Engine, run_id: str) -> dict[str, Any]:
    """What a replay has come to by now."""
    row = reports.run(engine, run_id) or {}
    kept = {name: row.get(name) for name in ("id", "status", "requested_by", "reason", "total", "done", "skipped")}
    return kept | {"results": replays.results(engine, run_id), "remedy": REMEDY if row.get("skipped") else None}


def _say(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(reports.as_json(report))
        return
    table = Table(show_header=False)
    for name, value in report.items():
        shown = ", ".join(f"{n} {word}" for word, n in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), _cell(shown))
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
    redis = door_redis(redis_url(settings))
    report = reports.status(_engine(), redis, settings.gap_seconds, repairs=settings.repairs)
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

"""Repair: resync, catch-up, the runs they make, and forgetting a person."""

import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import click
from sqlalchemy import Engine

from models.tables import Task
from worker.cli.inbox import replayed
from worker.cli.shared import (
    TIMES,
    as_table,
    cell,
    in_utc,
    json_option,
    known,
    migrated_engine,
    operator,
    reaching_workos,
    say,
    say_rows,
    show,
    until_stopped,
)
from worker.errors import OperatorError, UnknownIdError
from worker.logs import configure
from worker.mirror import change_feed
from worker.mirror.erasure import forget
from worker.repair import replay as replays
from worker.repair.catch_up import REMEDY, catch_up, catch_up_since
from worker.repair.resync.resync import start
from worker.repair.work import Repair
from worker.reports import listings
from worker.reports.progress import progress
from worker.runs import wait_for_run
from worker.settings import load_settings
from worker.workos_api.client import WorkOSClient

MAX_SHOWN = 200
"""Rows of a drift report in a terminal."""


@click.command()
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
    with reaching_workos(settings, bound=not dry_run) as (services, workos), until_stopped() as stop:
        if organization and not _known(services.engine, workos, organization):
            raise UnknownIdError(f"WorkOS has no organization {organization}")
        who = operator()
        run_id = start(services.engine, who, organization_id=organization, dry_run=dry_run, approves=approve)
        with progress(services.engine, run_id):
            over = Repair(services.engine, workos, settings, services.bell, stop.is_set).one(run_id) or wait_for_run(
                services.engine, run_id, stop.wait
            )
        ended = known(listings.run(services.engine, run_id), f"run {run_id} is gone")
        _report(services.engine, ended, as_json=as_json)
    if not over:
        click.echo(f"workos-sync: run {run_id} was interrupted; a worker goes on with it, or this command", err=True)
    if ended["error"]:
        click.echo(f"workos-sync: {ended['error']}", err=True)
    drifted = dry_run and ended["findings"]
    sys.exit(1 if drifted or not over or ended["error"] or ended["withheld"] else 0)


def _known(engine: Engine, workos: WorkOSClient, organization_id: str) -> bool:
    """Whether WorkOS knows an organization; or the mirror shows it live, so that there is something to repair."""
    if workos.organization(organization_id).item is not None:
        return True
    here = listings.list_members(engine, organization_id)
    return here is not None and here["state"] == "active"


def _report(engine: Engine, run_row: dict[str, Any], *, as_json: bool) -> None:
    run_id = run_row["id"]
    if as_json:
        for piece in listings.run_as_json(engine, run_row):
            click.echo(piece, nl=False)
        return
    if run_row["task"] == Task.REPLAY:
        say(replayed(engine, run_id), as_json=False)
        return
    if run_row["task"] != Task.RESYNC:
        say({name: run_row[name] for name in ("id", "task", "status", "requested_by", "finished_at")}, as_json=False)
        return
    drifts = list(listings.drift(engine, run_id, MAX_SHOWN + 1))
    if drifts:
        show(as_table(("kind", "object_id", "organization_id", "finding", "fields", "action"), drifts[:MAX_SHOWN]))
    if len(drifts) > MAX_SHOWN:
        click.echo(f"... and more; all of it: workos-sync runs show {run_id} --json")
    found = ", ".join(f"{number} {finding}" for finding, number in run_row["findings"].items()) or "no drift"
    click.echo(f"run {run_id}: {found}; {run_row['calls']} calls")
    if run_row["withheld"]:
        remedy = f"workos-sync resync --approve {run_id}"
        click.echo(f"{run_row['withheld']} deletions are withheld; after a look at them: {remedy}", err=True)


@click.group()
def runs() -> None:
    """Look at resyncs, catch-ups, replays and retention: what they found and did."""


@runs.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@json_option
def runs_list(limit: int, as_json: bool) -> None:
    """List the newest runs."""
    rows = listings.list_runs(migrated_engine(), limit)
    columns = ("created_at", "id", "task", "status", "phase", "requested_by", "finished_at", "calls", "error")
    say_rows(columns, rows, as_json=as_json)


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@json_option
def runs_show(run_id: str, as_json: bool) -> None:
    """Show what a resync found different and did about it, or what became of a replay's events."""
    engine = migrated_engine()
    row = known(listings.run(engine, run_id), f"there is no run {run_id}")
    _report(engine, row, as_json=as_json)
    if row["error"]:
        click.echo(f"workos-sync: {row['error']}", err=True)


@runs.command("cancel")
@click.argument("run_id", metavar="RUN")
def runs_cancel(run_id: str) -> None:
    """Stop a replay where it is."""
    engine = migrated_engine()
    if not replays.cancel(engine, run_id, operator()):
        known(listings.run(engine, run_id), f"there is no run {run_id}")
        raise OperatorError(f"run {run_id} is not a replay in progress")
    click.echo(f"{run_id} is cancelled")


@click.command("catch-up")
@click.option("--since", type=click.DateTime(TIMES), help="Read all events since this time (UTC), at most 90 days ago.")
@json_option
def catch_up_command(since: datetime | None, as_json: bool) -> None:
    """Read the events API into the inbox: what no webhook brought is applied all the same."""
    settings = load_settings("workos_api_key", "workos_client_id")
    configure(settings.log_format)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    with reaching_workos(settings) as (services, workos):
        since = in_utc(since)
        try:
            if since is None:
                report = catch_up(services.engine, workos, lag=lag)
            else:
                report = catch_up_since(services.engine, workos, since, lag)
        finally:  # what was read before a failure is stored
            services.bell.ring()
    if as_json:
        click.echo(change_feed.as_json(report._asdict()))
    else:
        complete = cell(report.complete_to)
        click.echo(f"{report.returned} events read, {report.new} of them new; complete to {complete}")
    if report.missed:
        raise OperatorError(f"events are missing since the last catch-up: {REMEDY}")


NOT_REACHED = "not reached: backups, what hooks and followers copied, reasons that operators wrote"


@click.command("forget")
@click.argument("user")
@json_option
def forget_command(user: str, as_json: bool) -> None:
    """Blank a deleted user's e-mail and name everywhere, at once, and the payloads of events that name them.

    Every stored payload is searched: a few minutes for each million.
    """
    live = not as_json and sys.stderr.isatty()

    def searched(number: int) -> None:
        if live:
            click.echo(f"\r{number} payloads searched", nl=False, err=True)

    done = forget(migrated_engine(), user, operator(), searched)
    if live:
        click.echo(err=True)
    if as_json:
        click.echo(change_feed.as_json({"user": user, **asdict(done)}))
        return
    click.echo(f"{user} is forgotten")
    click.echo(
        f"blanked: {done.payloads} payloads, {done.changes} changes, {done.drift} rows of resync reports, "
        f"{done.hook_errors} errors of hooks"
    )
    if done.failed_payloads:
        click.echo(
            f"{done.failed_payloads} of the events had failed and can no longer be replayed: run workos-sync resync, "
            "then dismiss them"
        )
    if done.pending:
        click.echo(f"{done.pending} events that name them are pending: run this again once they are processed")
    if done.unparsed:
        click.echo(f"{done.unparsed} payloads are not JSON and were only searched as text")
    click.echo(NOT_REACHED)

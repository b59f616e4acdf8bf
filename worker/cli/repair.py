"""`workos-sync resync`, `catch-up`, `runs` and `forget`."""

import sys
from dataclasses import asdict
from datetime import datetime, timedelta

import click
from sqlalchemy import Engine

from models.tables import Task
from models.types import Record
from worker.cli.inbox import replayed
from worker.cli.shared import (
    TIME,
    TIME_EXAMPLES,
    as_table,
    cell,
    in_utc,
    json_option,
    known,
    migrated_engine,
    operator,
    print_report,
    print_rows,
    print_table,
    reaching_workos,
    until_stopped,
)
from worker.errors import OperatorError, UnknownIdError
from worker.kinds.organization import ORGANIZATION
from worker.logs import configure
from worker.mirror import change_feed
from worker.mirror.erasure import forget
from worker.repair import replay as replays
from worker.repair.catch_up import REMEDY, catch_up, catch_up_since
from worker.repair.reads import fetch
from worker.repair.resync.resync import start
from worker.repair.work import Repair
from worker.reports import listings
from worker.reports.progress import progress
from worker.runs import wait_for_run
from worker.settings import load_settings
from worker.workos_api.client import WorkOSClient

MAX_TABLE_ROWS = 200
"""Maximum number of rows of a drift report printed as a table. `--json` prints all."""


@click.command()
@click.option("--organization", metavar="ID", help="Only this workspace. Takes a second or two.")
@click.option("--dry-run", is_flag=True, help="Change nothing; report the differences. Exit code 1 if there are any.")
@click.option(
    "--approve", metavar="RUN", help="Carry out the deletions that this run withheld, after reading each object again."
)
@json_option
def resync(organization: str | None, dry_run: bool, approve: str | None, as_json: bool) -> None:
    """Compare the mirror with WorkOS and repair it.

    Reports each difference.
    """
    if approve and (organization or dry_run):
        raise click.UsageError("--approve cannot be combined with --organization or --dry-run")
    settings = load_settings("workos_api_key", "workos_client_id")
    configure(settings.log_format)
    with reaching_workos(settings, bound=not dry_run) as (services, workos), until_stopped() as stop:
        if organization and not _exists(services.engine, workos, organization):
            raise UnknownIdError(f"WorkOS has no organization {organization}")
        who = operator()
        run_id = start(services.engine, who, organization_id=organization, dry_run=dry_run, approves=approve)
        work = Repair(services.engine, workos, settings, services.bell, stop.is_set)
        with progress(services.engine, run_id):
            finished = work.one(run_id) or wait_for_run(services.engine, run_id, stop.wait)
        row = known(listings.run(services.engine, run_id), f"run {run_id} was deleted")
        _report(services.engine, row, as_json=as_json)
    if not finished:
        click.echo(f"workos-sync: run {run_id} was interrupted. A worker resumes it; so does this command", err=True)
    if row["error"]:
        click.echo(f"workos-sync: {row['error']}", err=True)
    drifted = dry_run and row["findings"]
    sys.exit(1 if drifted or not finished or row["error"] or row["withheld"] else 0)


def _exists(engine: Engine, workos: WorkOSClient, organization_id: str) -> bool:
    """Return whether WorkOS has an organization, or the mirror has it as active: then there is something to repair."""
    if fetch(workos, ORGANIZATION, organization_id).item is not None:
        return True
    mirrored = listings.workspace(engine, organization_id)
    return mirrored is not None and mirrored["state"] == "active"


def _report(engine: Engine, run_row: Record, *, as_json: bool) -> None:
    run_id = run_row["id"]
    if as_json:
        for piece in listings.run_as_json(engine, run_row):
            click.echo(piece, nl=False)
        return
    if run_row["task"] == Task.REPLAY:
        print_report(replayed(engine, run_id), as_json=False)
        return
    if run_row["task"] != Task.RESYNC:
        print_report(
            {name: run_row[name] for name in ("id", "task", "status", "requested_by", "finished_at")}, as_json=False
        )
        return
    differences = list(listings.drift(engine, run_id, MAX_TABLE_ROWS + 1))
    if differences:
        columns = ("kind", "object_id", "organization_id", "finding", "fields", "action")
        print_table(as_table(columns, differences[:MAX_TABLE_ROWS]))
    if len(differences) > MAX_TABLE_ROWS:
        click.echo(f"... and more. To see all: workos-sync runs show {run_id} --json")
    findings = ", ".join(f"{number} {finding}" for finding, number in run_row["findings"].items()) or "no drift"
    click.echo(f"run {run_id}: {findings}; {run_row['calls']} API calls")
    if run_row["withheld"]:
        approve = f"workos-sync resync --approve {run_id}"
        click.echo(f"{run_row['withheld']} deletions withheld. Review them, then run: {approve}", err=True)


@click.group()
def runs() -> None:
    """Inspect resyncs, catch-ups, replays and retention runs."""


@runs.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Maximum number of rows.")
@json_option
def runs_list(limit: int, as_json: bool) -> None:
    """List the newest runs with their progress and who requested them."""
    rows = listings.list_runs(migrated_engine(), limit)
    columns = ("created_at", "id", "task", "status", "phase", "requested_by", "finished_at", "calls", "error")
    print_rows(columns, rows, as_json=as_json)


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@json_option
def runs_show(run_id: str, as_json: bool) -> None:
    """Show what a resync found and did, or the outcomes of a replay."""
    engine = migrated_engine()
    row = known(listings.run(engine, run_id), f"there is no run {run_id}")
    _report(engine, row, as_json=as_json)
    if row["error"]:
        click.echo(f"workos-sync: {row['error']}", err=True)


@runs.command("cancel")
@click.argument("run_id", metavar="RUN")
def runs_cancel(run_id: str) -> None:
    """Stop a replay. Events that it has already made pending are still processed."""
    engine = migrated_engine()
    if not replays.cancel(engine, run_id, operator()):
        known(listings.run(engine, run_id), f"there is no run {run_id}")
        raise OperatorError(f"run {run_id} is not a running replay")
    click.echo(f"{run_id} cancelled")


@click.command("catch-up")
@click.option(
    "--since", type=TIME, metavar="DATETIME", help=f"Read all events since {TIME_EXAMPLES}. At most 90 days ago."
)
@json_option
def catch_up_command(since: datetime | None, as_json: bool) -> None:
    """Read the events API into the inbox.

    Finds events whose webhooks were lost; the workers then apply them.
    """
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
        finally:  # pages read before a failure are stored
            services.bell.ring()
    if as_json:
        click.echo(change_feed.as_json(report._asdict()))
    else:
        complete = cell(report.complete_to)
        click.echo(f"{report.returned} events read, {report.new} of them new; complete up to {complete}")
    if report.missed:
        raise OperatorError(f"events have expired since the last catch-up: {REMEDY}")


NOT_ERASED = "not erased: backups, copies made by hooks and followers, and the reasons that operators entered"


@click.command("forget")
@click.argument("user")
@json_option
def forget_command(user: str, as_json: bool) -> None:
    """Erase a deleted user's e-mail address and name.

    Also blanks the stored payloads that name the user. All payloads are searched: allow a few minutes per million.
    """
    show_progress = not as_json and sys.stderr.isatty()

    def report_progress(number: int) -> None:
        if show_progress:
            click.echo(f"\r{number} payloads searched", nl=False, err=True)

    erased = forget(migrated_engine(), user, operator(), report_progress)
    if show_progress:
        click.echo(err=True)
    if as_json:
        click.echo(change_feed.as_json({"user": user, **asdict(erased)}))
        return
    click.echo(f"{user} is erased")
    click.echo(
        f"blanked: {erased.payloads} payloads, {erased.changes} changes, {erased.drift} rows of resync reports, "
        f"{erased.hook_errors} hook errors"
    )
    if erased.failed_payloads:
        click.echo(
            f"{erased.failed_payloads} of these payloads belong to failed events, which can no longer be replayed. "
            "Run workos-sync resync, then dismiss the events."
        )
    if erased.pending:
        click.echo(f"{erased.pending} pending events name the user. Run this command again once they are processed.")
    if erased.unparsed:
        click.echo(f"{erased.unparsed} payloads are not JSON and were searched as plain text")
    click.echo(NOT_ERASED)

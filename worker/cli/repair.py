"""`workos-sync resync`, `catch-up` and `forget`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from worker.cli import options, output
from worker.cli.layout import shown
from worker.cli.runs import note_interrupted, print_run, work_on_run
from worker.cli.shared import actor, known, logging_settings, migrated_engine, reaching_workos
from worker.errors import OperatorError, UnknownIdError
from worker.lazy import lazy_imports

with lazy_imports():
    from worker import kinds
    from worker.mirror import erasure
    from worker.repair import catch_up, reads
    from worker.repair.resync import resync as resyncs
    from worker.reports import listings, lookup, progress
    from worker.workos_api import client

if TYPE_CHECKING:
    from sqlalchemy import Engine

NOT_ERASED = (
    "not erased: backups, copies made by hooks and followers, and the reasons that operators entered for blocks, "
    "auto-join settings and dismissed events"
)


@click.command()
@options.organization
@click.option("--dry-run", is_flag=True, help="Change nothing; report the differences.")
@click.option(
    "--approve", metavar="RUN", help="Carry out the deletions that RUN withheld, after reading each object by id."
)
@options.reason
@options.as_json
def resync(organization: str | None, dry_run: bool, approve: str | None, reason: str | None, as_json: bool) -> None:
    """Compare the mirror with WorkOS and repair it.

    Reports each difference. --approve requires --reason. Exit code 1 if the resync failed, was interrupted, could not
    compare a workspace or withheld deletions, or if --dry-run found differences.
    """
    if approve and (organization or dry_run):
        raise click.UsageError("--approve cannot be combined with --organization or --dry-run")
    if approve and not reason:
        raise click.UsageError("--approve requires --reason, because people may lose access")
    settings = logging_settings("workos_api_key", "workos_client_id")
    with reaching_workos(settings, bound=not dry_run) as (services, workos):
        engine = services.engine
        if organization:
            organization = lookup.find_organization(engine, organization) or organization
        if organization and not _exists(engine, workos, organization):
            raise UnknownIdError(f"WorkOS has no organization {organization}")
        run_id = resyncs.start(engine, actor(reason), organization_id=organization, dry_run=dry_run, approves=approve)
        finished = work_on_run(services, workos, run_id)
        row = known(listings.run(engine, run_id), f"run {run_id} was deleted")
        print_run(engine, row, as_json=as_json)
    if not finished:
        note_interrupted(run_id)
    drifted = dry_run and row["findings"]
    sys.exit(1 if drifted or not finished or row["error"] or row["compared"] or row["withheld"] else 0)


def _exists(engine: Engine, workos: client.WorkOSClient, organization_id: str) -> bool:
    """Return whether WorkOS has an organization, or the mirror has it as active, so that it can be repaired."""
    if reads.fetch(workos, kinds.KINDS["organization"], organization_id).item is not None:
        return True
    mirrored = listings.workspace(engine, organization_id)
    return mirrored is not None and mirrored["state"] == "active"


@click.command("catch-up")
@options.time("--since", f"Read all events since {options.THIS_TIME}. At most 90 days ago.")
@options.reason
@options.as_json
def catch_up_command(since: datetime | None, reason: str | None, as_json: bool) -> None:
    """Fetch events whose webhooks were lost.

    Reads the events that WorkOS recorded since the last catch-up. The first catch-up in each ten minutes also rereads
    the last two hours. Stores new events in the inbox. Workers apply them.
    """
    settings = logging_settings("workos_api_key", "workos_client_id")
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    with reaching_workos(settings) as (services, workos):
        try:
            with progress.reading_events(since) as progressed:
                report = catch_up.catch_up_by_hand(services.engine, workos, actor(reason), since, lag, progressed)
        except KeyboardInterrupt:
            rest = "the next scheduled catch-up reads the rest" if since is None else "for the rest, run it again"
            raise OperatorError(f"interrupted. The events read so far are in the inbox; {rest}") from None
        finally:  # pages read before a failure are stored
            services.bell.ring()
    if as_json:
        output.json(report._asdict())
    else:
        start = "up" if since is None else f"from {shown(since)}"
        received = f"{start} to {shown(report.received_up_to)}"
        read = output.count(report.returned, "event")
        click.echo(f"{read} read, {report.new} new; all events {received} are in the inbox")
    if report.missed:
        raise OperatorError(f"events have expired since the last catch-up: {catch_up.REMEDY}")


@click.command("forget")
@click.argument("user", metavar="USER")
@options.yes
@options.required_reason
@options.as_json
def forget_command(user: str, yes: bool, reason: str, as_json: bool) -> None:
    """Erase a deleted user's personal data. This cannot be undone.

    Also blanks the stored payloads that name the user. All payloads are searched: allow a few minutes per million.
    """
    show_progress = not as_json and sys.stderr.isatty()

    def report_progress(number: int) -> None:
        if show_progress:
            click.echo(f"\r{output.count(number, 'payload')} searched", nl=False, err=True)

    engine = migrated_engine()
    user = lookup.user_id(engine, user)
    if not yes:
        click.confirm(f"Erase {user}? Name, address and payloads cannot be restored", abort=True, err=True)
    erased = erasure.forget(engine, user, actor(reason), report_progress)
    if show_progress:
        click.echo(err=True)
    if as_json:
        output.json({"user": user, **asdict(erased)})
        return
    click.echo(f"{user} is erased")
    blanked = (
        output.count(erased.payloads, "payload"),
        output.count(erased.changes, "change"),
        f"{output.count(erased.drift, 'row')} of resync reports",
        output.count(erased.hook_errors, "hook error"),
        output.count(erased.reasons, "reason"),
    )
    click.echo(f"blanked: {', '.join(blanked)}")
    for text, number in (
        (
            "failed events that can no longer be replayed (run workos-sync resync, then dismiss them)",
            erased.failed_payloads,
        ),
        ("pending events that name the user (run this command again once they are processed)", erased.pending),
        ("payloads that are not JSON and were searched as plain text", erased.unparsed),
    ):
        if number:
            click.echo(f"{text}: {number}")
    click.echo(NOT_ERASED)

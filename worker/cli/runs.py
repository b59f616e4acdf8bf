"""`workos-sync runs`, and what the commands that start runs share: working on a run, and reporting it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from models.enums import QUEUED, RunStatus, Task
from worker.cli import layout, options, output
from worker.cli.layout import Column, Fit
from worker.cli.shared import actor, known, migrated_engine, until_stopped
from worker.errors import OperatorError
from worker.lazy import lazy_imports

with lazy_imports():
    from models import types
    from worker import bootstrap
    from worker import runs as all_runs
    from worker.repair import catch_up, work
    from worker.repair import replay as replays
    from worker.reports import effects, listings, progress
    from worker.workos_api import client

if TYPE_CHECKING:
    from sqlalchemy import Engine

MAX_TABLE_ROWS = 200
"""Maximum number of rows of a drift report printed as a table. `--json` prints all."""

ABOUT = ("id", "task", "status", "organization_id", "requested_by", "reason", "created_at", "finished_at")
"""The fields that are printed of every run but a replay."""
DRIFT = (
    Column("kind"),
    Column("object_id"),
    Column("label", "name", fit=Fit.CUT),
    Column("finding"),
    Column("action"),
    Column("organization_id"),
    Column("fields", fit=Fit.WRAP),
)


def work_on_run(services: bootstrap.Services, workos: client.WorkOSClient | None, run_id: str) -> bool:
    """Work on a run, or wait for the process that does; return False if Ctrl-C or SIGTERM came before its end."""
    engine = services.engine
    with until_stopped() as stop, progress.progress(engine, run_id):
        repair = work.Repair(engine, workos, services.settings, services.bell, stop.is_set)
        return repair.work_on(run_id) or all_runs.wait_for_run(engine, run_id, stop.wait)


def note_interrupted(run_id: str) -> None:
    """Print who continues a run that the command did not finish, and how to see its progress."""
    output.note(
        f"workos-sync: run {run_id} was interrupted. A worker continues it, and so does this command. "
        f"To see how far it is: workos-sync runs show {run_id}"
    )


def replayed(engine: Engine, run_id: str) -> types.Record:
    """Return a replay's status, progress and outcomes so far; `remedy` if it skipped events without a payload."""
    row = listings.run(engine, run_id) or {}
    kept = {name: row.get(name) for name in ("id", "status", "requested_by", "reason", "total", "done", "skipped")}
    return kept | {
        "results": replays.results(engine, run_id),
        "remedy": catch_up.REMEDY if row.get("skipped") else None,
    }


def print_run(engine: Engine, run: types.Record, *, as_json: bool) -> None:
    """Print a row of `listings.run`: of a resync with its differences, of a replay with the outcomes of its events."""
    if as_json:
        for piece in listings.run_as_json(engine, run):
            click.echo(piece, nl=False)
    elif run["task"] == Task.RESYNC:
        _print_resync(engine, run)
    elif run["task"] == Task.REPLAY:
        print_replay(replayed(engine, run["id"]))
    else:
        output.record({name: run[name] for name in ABOUT} | {"task": _name(run["task"])})
    if run["error"]:
        click.echo(f"workos-sync: {run['error']}", err=True)


def print_replay(replay: types.Record, *, as_json: bool = False) -> None:
    """Print the result of `replayed`."""
    output.record(replay if as_json else replay | {"results": output.counted(replay["results"])}, as_json=as_json)


def found_by(run: types.Record) -> str:
    """Return what a resync, a row of `listings.run`, found, and whether it compared everything."""
    findings = output.counted(run["findings"])
    if run["compared"] is None:
        return findings or "no drift"
    done, total = run["compared"]
    if run["status"] == RunStatus.DONE:
        skipped = f"incomplete: {total - done} of {total} organizations not compared"
        return f"{skipped}; found: {findings}" if findings else skipped
    ended = run["status"] != RunStatus.RUNNING or run["error"]
    state = "incomplete" if ended else "queued" if run["queued"] else "running"
    far = f"{state}: {done} of {'?' if total is None else total} organizations compared"
    return f"{far}; found so far: {findings}" if findings else far


def _print_resync(engine: Engine, run: types.Record) -> None:
    about = {name: run[name] for name in ABOUT} | {"dry_run": run["dry_run"] or None}
    output.record(about | {"result": f"{found_by(run)}; {output.count(run['calls'], 'API call')}"})
    differences = list(listings.drift(engine, run["id"], MAX_TABLE_ROWS + 1))
    named = listings.named(engine, differences[:MAX_TABLE_ROWS])
    if output.on_terminal():
        named = [row | {"fields": layout.changed(row["fields"] or {}), **_elsewhere(row)} for row in named]
    output.section("Differences", DRIFT, named)
    if len(differences) > MAX_TABLE_ROWS:
        output.note(f"... and more. To see all: workos-sync runs show {run['id']} --json")
    if run["withheld"]:
        _note_withheld(engine, run)


def _elsewhere(row: types.Record) -> types.Record:
    """Return the workspace of a difference, but not that of a workspace, which is the object itself."""
    same = row["organization_id"] == row["object_id"]
    return {"organization_id": None if same else row["organization_id"]}


def _note_withheld(engine: Engine, run: types.Record) -> None:
    """Print who approved the deletions that a resync withholds, or else what approval would do, and how to approve."""
    withheld = f"{output.count(run['withheld'], 'deletion')} withheld"
    if approval := listings.approval(engine, run["id"]):
        output.note(f"{withheld}; approved by {approval['requested_by']} in run {approval['id']}")
        return
    loss = effects.of_deletions(engine, run["id"])
    output.note(f"{withheld}. If approved, {loss.losing} of {loss.members} people lose access to a workspace.")
    output.note(f"Review the list, then run: workos-sync resync --approve {run['id']} --reason TEXT")


def _name(task: str) -> str:
    """Return a task as its command is called."""
    return task.replace("_", "-")


@click.group()
def runs() -> None:
    """Inspect long-running jobs, and cancel replays."""


@runs.command("list")
@click.option("--task", type=click.Choice([_name(task) for task in Task]), help="Only runs of this task.")
@click.option(
    "--status",
    type=click.Choice([QUEUED, *(status.value for status in RunStatus)]),
    help="Only runs in this status. A queued run waits for a process to work on it.",
)
@options.time("--since", f"Only runs created at or after {options.THIS_TIME}.")
@options.limit
@output.listing(
    Column("created_at", "when"),
    Column("id"),
    Column("task"),
    Column("status"),
    Column("requested_by", "by", fit=Fit.CUT),
    Column("error", fit=Fit.WRAP),
    Column("finished_at", wide=True),
    Column("phase", wide=True),
    Column("done", wide=True),
    Column("total", wide=True),
    Column("calls", wide=True),
    Column("reason", fit=Fit.WRAP, wide=True),
    empty="no runs",
)
def runs_list(out: output.Listing, task: str | None, status: str | None, since: datetime | None, limit: int) -> None:
    """List the newest runs with their progress and who requested them."""
    task = task and task.replace("-", "_")
    rows = listings.list_runs(migrated_engine(), limit, task=task, status=status, since=since)
    out.show([row | {"task": _name(row["task"])} for row in rows] if out.for_people else rows)


@runs.command("show")
@click.argument("run_id", metavar="RUN")
@options.as_json
def runs_show(run_id: str, as_json: bool) -> None:
    """Show what a resync found and did, or the outcomes of a replay."""
    engine = migrated_engine()
    print_run(engine, known(listings.run(engine, run_id), f"there is no run {run_id}"), as_json=as_json)


@runs.command("cancel")
@click.argument("run_id", metavar="RUN")
@options.reason
@options.as_json
def runs_cancel(run_id: str, reason: str | None, as_json: bool) -> None:
    """Stop a replay. Events that it has already made pending are still processed."""
    engine = migrated_engine()
    if not replays.cancel(engine, run_id, actor(reason)):
        known(listings.run(engine, run_id), f"there is no run {run_id}")
        raise OperatorError(f"run {run_id} is not a running replay")
    output.result(f"{run_id} cancelled", {"cancelled": run_id}, as_json=as_json)

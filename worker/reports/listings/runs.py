"""The list of runs, and the details of one: its progress, findings and differences."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Select, false, func, select

from models.database import read_transaction
from models.enums import QUEUED
from models.outcomes import Finding
from models.rows import one_row, read_rows
from models.tables import Drift, DriftAction, Run, RunStatus, Task
from models.types import Record
from worker.json_format import as_json
from worker.kinds import KINDS
from worker.repair.resync.coverage import compared
from worker.reports.listings.names import with_names
from worker.reports.listings.paging import Page, Place, beyond, read_page
from worker.runs import RUNS

FETCH_SIZE = 500
"""Rows of a report fetched at once."""


def list_runs(
    engine: Engine,
    limit: int = 50,
    *,
    task: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    after: str | None = None,
) -> list[Record]:
    """Return runs, newest first. A run that no process works on is `queued`, which `status` may be too."""
    query = _matching(task=task, status=status, since=since).order_by(Run.created_at.desc(), Run.id.desc()).limit(limit)
    if after is not None:
        query = query.where(*beyond(Run.created_at, Run.id, after, descending=True))
    return read_rows(engine, query)


def runs_page(
    engine: Engine,
    place: Place,
    *,
    task: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Page:
    """Return a page of runs, newest first, with `queued` and `workspace_name`. An unknown word matches nothing."""
    query = _matching(task=task, status=status, since=since, until=until)
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, Run.created_at, Run.id, newest_first=True)
        return page._replace(rows=with_names(tx, page.rows))


def _matching(
    *,
    task: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Select[*tuple[Any, ...]]:
    query = select(Run.__table__, RUNS.is_free().label("queued"))
    if task is not None:
        query = query.where(Run.task == task if task in list(Task) else false())
    if status == QUEUED:
        query = query.where(RUNS.is_free())
    elif status is not None:
        query = query.where(Run.status == status if status in list(RunStatus) else false())
    if since is not None:
        query = query.where(Run.created_at >= since)
    return query if until is None else query.where(Run.created_at < until)


def run(engine: Engine, run_id: str, *, task: Task | None = None) -> Record | None:
    """Return a run with the number of its `findings` by kind and of its `withheld` deletions.

    `totals` are its findings for each kind of object: kind, in the order of the kinds → finding → number. Withheld
    deletions are counted again as `withheld`.

    A run that no process works on is `queued`. For a resync that is not done, or has skipped organizations whose
    listings failed, `compared` is how many organizations it has compared, and their total (None: unknown); its
    `findings` are those so far, and None instead of none.

    None if the id is unknown, or the run has another task than `task`.
    """
    with read_transaction(engine) as tx:
        row = one_row(tx, select(Run.__table__, RUNS.is_free().label("queued")).where(Run.id == run_id))
        if row is None or task not in (None, row["task"]):
            return None
        totals = _totals(tx, run_id)
        findings: dict[str, int] = dict(sorted(sum(map(Counter, totals.values()), Counter[str]()).items()))
        withheld = findings.pop(DriftAction.WITHHELD, 0)
        compared_all = row["status"] == RunStatus.DONE and row["total"] is None
        incomplete = row["task"] == Task.RESYNC and not compared_all
        known = {"findings": (findings or None) if incomplete else findings, "withheld": withheld, "totals": totals}
        return row | known | {"compared": _compared(tx, row) if incomplete else None}


def _totals(tx: Connection, run_id: str) -> dict[str, dict[str, int]]:
    columns = (Drift.kind, Drift.finding, Drift.action)
    found = select(*columns, func.count()).where(Drift.run_id == run_id).group_by(*columns).order_by(*columns)
    totals: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for kind, finding, action, number in tx.execute(found):
        words = [finding, DriftAction.WITHHELD] if action == DriftAction.WITHHELD else [finding]
        totals.setdefault(kind, Counter()).update({str(word): number for word in words})
    return {kind: dict(counts) for kind, counts in totals.items() if counts}


def _compared(tx: Connection, run_row: Record) -> tuple[int, int | None]:
    """Return how many organizations an incomplete resync has compared, and their total (None: unknown)."""
    if run_row["status"] in (RunStatus.FAILED, RunStatus.DONE):
        return run_row["done"], run_row["total"]
    return compared(tx, run_row["id"])


def drift(engine: Engine, run_id: str, limit: int | None = None) -> Iterator[Record]:
    """Yield the differences that a run found, sorted by kind and id.

    The rows are streamed: the first resync reports the whole mirror as missing.
    """
    query = select(Drift.__table__).where(Drift.run_id == run_id).order_by(Drift.kind, Drift.object_id).limit(limit)
    with read_transaction(engine) as tx:
        for row in tx.execute(query, execution_options={"yield_per": FETCH_SIZE}).mappings():
            yield dict(row)


def drift_page(engine: Engine, run_id: str, kind: str, place: Place, *, finding: str | None = None) -> Page:
    """Return a page of the differences of one kind that a run found, sorted by id, as `with_names`.

    `finding` is a finding, or `withheld`.
    """
    query = select(Drift.__table__).where(Drift.run_id == run_id, Drift.kind == kind)
    if finding == DriftAction.WITHHELD:
        query = query.where(Drift.action == DriftAction.WITHHELD)
    elif finding is not None:
        query = query.where(Drift.finding == finding if finding in list(Finding) else false())
    with read_transaction(engine) as tx:
        page = read_page(tx, query, place, Drift.object_id, Drift.object_id)
        return page._replace(rows=with_names(tx, page.rows))


def approval(engine: Engine, run_id: str) -> Record | None:
    """Return the newest run that carries out the deletions a run withheld, unless it failed; None if there is none."""
    approving = select(Run.__table__).where(Run.approves == run_id, Run.status != RunStatus.FAILED)
    with read_transaction(engine) as tx:
        return one_row(tx, approving.order_by(Run.created_at.desc()).limit(1))


def run_as_json(engine: Engine, run_row: Record) -> Iterator[str]:
    """Yield a row of `run` with its `drift` as the parts of one JSON document."""
    yield as_json(run_row).removesuffix("\n}") + ',\n  "drift": ['
    separator = "\n"
    for row in drift(engine, run_row["id"]):
        yield separator + as_json(row)
        separator = ",\n"
    yield "]\n}\n"

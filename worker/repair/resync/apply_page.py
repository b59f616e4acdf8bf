"""Applies pages of listings: adds missing objects, updates older ones, requests reads of others that differ."""

from collections.abc import Callable, Sequence
from datetime import datetime

import structlog
from sqlalchemy import Connection, or_, update

from models.bulk import insert_new
from models.database import is_transient, plan_for_values
from models.outcomes import Finding
from models.tables import Cause, DriftAction, Run, Seen
from worker.decision.decide import State, compare_listed
from worker.decision.payload import is_id
from worker.errors import PayloadError, unexpected
from worker.kinds import KINDS, LISTINGS, Kind, RoleMap, Snapshot, read_object
from worker.kinds.kind import Frequency
from worker.kinds.organization import ORGANIZATION
from worker.mirror.apply import (
    found_change,
    insert_and_lock_rows,
    note_changes,
    save_rows,
    stored_rows,
    verified_times,
    without_erased,
)
from worker.mirror.change_rows import ChangeRow
from worker.mirror.read_requests import request_reads
from worker.mirror.role_map import lock_role_map
from worker.repair.resync import drift, listings
from worker.repair.resync.drift import Difference
from worker.repair.resync.listings import Key, Open
from worker.workos_api.client import Page

log = structlog.get_logger()

CAUSE = Cause.RESYNC

ListedPage = tuple[Open, Page]
"""A page, and the listing it belongs to."""
Found = Callable[[Kind, str, State | None, State, datetime | None], ChangeRow]
"""Returns the row for `changes` about an object with this kind, id, states before and after, and `verified_at`."""


def apply_pages(tx: Connection, run_id: str, pages: Sequence[ListedPage], *, dry_run: bool) -> None:
    """Apply pages, and record the progress of their listings. A dry run only reports differences."""
    # Plans that were made for the empty tables of a first import would scan all that is imported later.
    plan_for_values(tx)
    roles = lock_role_map(tx)
    read = [(listing, page, *_read_page(listing.key, page, roles)) for listing, page in pages]
    read_at = {(item.kind, item.id): page.read_at for _, page, items, _ in read for item in items}

    def found(kind: Kind, id: str, before: State | None, after: State, verified_at: datetime | None) -> ChangeRow:
        return found_change(kind, id, before, after, CAUSE, run_id, read_at[kind, id], verified_at)

    changes: list[ChangeRow] = []
    invalid = [row for _, _, _, rows in read for row in rows]
    failed: set[tuple[Kind, str]] = set()
    for kind in KINDS.values():
        if states := {item.id: item.state for _, _, items, _ in read for item in items if item.kind is kind}:
            made, failures = _merge_or_report(tx, run_id, kind, states, found, dry_run=dry_run)
            changes += made
            invalid += failures
            failed |= {(kind, row.object_id) for row in failures}
    applied: list[listings.AppliedPage] = []
    for listing, page, items, rows in read:
        key = listing.key
        if number := len(rows) + sum((item.kind, item.id) in failed for item in items):
            log.warning("invalid_items", run=run_id, listing=key.name, number=number)
        applied.append(listings.AppliedPage(listing, page.after, valid=number == 0))
        if LISTINGS[key.name][1].full_resync is Frequency.ONCE:
            organizations = [item.id for item in items if item.kind is ORGANIZATION]
            for name in listings.named(Frequency.EACH_ORGANIZATION):
                listings.add(tx, run_id, name, organizations)
    listings.record_pages(tx, run_id, applied)
    of_environment = (page.read_at for listing, page in pages if listing.after is None and not listing.key.parent)
    if first_read_at := min(of_environment, default=None):
        later = or_(Run.workos_from.is_(None), Run.workos_from > first_read_at)
        tx.execute(update(Run).where(Run.id == run_id, later).values(workos_from=first_read_at))
    drift.record(tx, run_id, invalid)
    note_changes(tx, changes)


def _merge_or_report(
    tx: Connection, run_id: str, kind: Kind, listed: dict[str, State], found: Found, *, dry_run: bool
) -> tuple[list[ChangeRow], list[Difference]]:
    """Merge objects together; if that fails, merge each alone. Raise transient failures of the database.

    Returns:
        rows for `changes`, and a difference to report for each object that fails alone.
    """
    try:
        with tx.begin_nested():
            return _merge(tx, run_id, kind, listed, found, dry_run=dry_run), []
    except Exception as error:
        if is_transient(error):
            raise
        if len(listed) == 1:
            (id,) = listed
            return [], [drift.invalid(kind, id, unexpected(error))]
    alone = [_merge_or_report(tx, run_id, kind, {id: listed[id]}, found, dry_run=dry_run) for id in sorted(listed)]
    return [row for changes, _ in alone for row in changes], [row for _, rows in alone for row in rows]


def _merge(
    tx: Connection, run_id: str, kind: Kind, listed: dict[str, State], found: Found, *, dry_run: bool
) -> list[ChangeRow]:
    """Write missing and older objects, request reads of others that differ, and return rows for `changes`."""
    ids = sorted(listed)
    insert_new(tx, Seen, [{"run_id": run_id, "kind": kind.name, "object_id": id} for id in ids])
    stored = stored_rows(tx, kind, ids) if dry_run else insert_and_lock_rows(tx, kind, ids)
    listed = {id: without_erased(kind, stored.get(id), state) for id, state in listed.items()}
    compared = {id: compare_listed(stored.get(id), listed[id]) for id in ids}
    request_reads(tx, kind, [id for id, (_, finding) in compared.items() if finding is None], "differs", run_id)
    action = DriftAction.REPORTED if dry_run else DriftAction.REPAIRED
    differences = [
        drift.difference(kind, id, finding, stored.get(id), state, action)
        for id, (state, finding) in compared.items()
        if finding not in (None, Finding.EQUAL)
    ]
    drift.record(tx, run_id, differences)
    if dry_run:
        return []
    # Equal content at a higher version is saved too. Otherwise an event from between the two versions would win.
    written = {id: state for id, (state, _) in compared.items() if state is not None and state is not stored[id]}
    verified = verified_times(tx, kind, written)
    save_rows(tx, kind, written)
    rows = [found(kind, id, stored[id], state, verified.get(id)) for id, state in written.items()]
    return [row for row in rows if row.before != row.after]


def _read_page(key: Key, page: Page, roles: RoleMap) -> tuple[list[Snapshot], list[Difference]]:
    """Return the valid objects of a page, and a difference to report for each invalid one."""
    kind, listing = LISTINGS[key.name]
    snapshots: list[Snapshot] = []
    invalid: list[Difference] = []

    def id_of(item: object) -> str:
        id = item.get("id") if isinstance(item, dict) else None
        if isinstance(id, str) and is_id(id):
            return id
        return f"without id: {len(snapshots) + len(invalid)} of {'/'.join(filter(None, (*key, page.after)))}"

    for item in page.items:
        try:
            for name, shown in listing.objects(item, key.parent) if listing.objects else ((kind.name, item),):
                id = id_of(shown)
                try:
                    snapshots.append(read_object(KINDS[name], shown, page.read_at, roles))
                except Exception as error:  # noqa: BLE001 - one item must not fail its page
                    problem = error.field if isinstance(error, PayloadError) else unexpected(error)
                    invalid.append(drift.invalid(KINDS[name], id, problem))
        except PayloadError as error:
            invalid.append(drift.invalid(kind, id_of(item), error.field))
    return snapshots, invalid

"""Pages of a resync's listings into the mirror: what a listing may settle, and reads for what it may not."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, select

from models.bulk import insert_new
from models.database import is_transient
from models.outcomes import Finding
from models.tables import Cause, DriftAction, Mirror, Seen
from worker.decision.decide import State, compare_listed, completed, is_newer
from worker.decision.payload import is_id
from worker.errors import PayloadError, unexpected
from worker.kinds import KINDS, LISTINGS, Kind, RoleMap, Snapshot, read_object
from worker.kinds.kind import Scope
from worker.kinds.organization import ORGANIZATION
from worker.leases import Lease
from worker.mirror.apply import change, lock_rows, note_changes, save_rows, stored_rows
from worker.mirror.change_rows import ChangeRow
from worker.mirror.read_requests import request_reads
from worker.repair.resync import drift, listings
from worker.repair.resync.listings import Key
from worker.workos_api.client import Page

log = structlog.get_logger()

CAUSE = Cause.RESYNC


class ListedPage(NamedTuple):
    """A page of a listing, which began at a time of the database's clock."""

    key: Key
    page: Page
    began: datetime


def apply_pages(tx: Connection, held: Lease, pages: Sequence[ListedPage], *, dry_run: bool) -> None:
    """Use pages: repair what a listing may settle, ask for reads of what it may not, note how far they got.

    Raises:
        LeaseLostError: another worker has the run now.
    """
    held.check(tx)
    run_id = held.run_id
    roles = tx.execute(select(Mirror.role_map).with_for_update(read=True)).scalar_one()
    read = [(listed, *_read_page(listed.key, listed.page, roles)) for listed in pages]
    changes: list[ChangeRow] = []
    invalid = [row for _, _, rows in read for row in rows]
    refused: set[tuple[Kind, str]] = set()
    for kind in KINDS.values():
        if states := {item.id: item.state for _, items, _ in read for item in items if item.kind is kind}:
            made, failures = _merge_or_report(tx, run_id, kind, states, dry_run=dry_run)
            changes += made
            invalid += failures
            refused |= {(kind, row["object_id"]) for row in failures}
    for (key, page, began), items, rows in read:
        if number := len(rows) + sum((item.kind, item.id) in refused for item in items):
            log.warning("invalid_items", run=run_id, listing=key.name, number=number)
        listings.record_page(tx, run_id, key, page.after, began, invalid=number > 0)
        if LISTINGS[key.name][1].full_resync is Scope.ONCE:
            organizations = [item.id for item in items if item.kind is ORGANIZATION]
            for name in listings.named(Scope.EACH_ORGANIZATION):
                listings.add(tx, run_id, name, organizations)
    drift.record(tx, run_id, invalid)
    note_changes(tx, changes)


def _merge_or_report(
    tx: Connection, run_id: str, kind: Kind, listed: dict[str, State], *, dry_run: bool
) -> tuple[list[ChangeRow], list[drift.Row]]:
    """Merge objects together, or each by itself if one of them fails.

    Returns:
        Rows for `changes`, and a row of drift for each object that fails even by itself.

    Raises:
        sqlalchemy.exc.DBAPIError: the database's moment is bad.
    """
    try:
        with tx.begin_nested():
            return _merge(tx, run_id, kind, listed, dry_run=dry_run), []
    except Exception as error:
        if is_transient(error):
            raise
        if len(listed) == 1:
            (id,) = listed
            return [], [drift.invalid(kind, id, unexpected(error))]
    alone = [_merge_or_report(tx, run_id, kind, {id: listed[id]}, dry_run=dry_run) for id in sorted(listed)]
    return [row for changes, _ in alone for row in changes], [row for _, rows in alone for row in rows]


def _merge(tx: Connection, run_id: str, kind: Kind, listed: dict[str, State], *, dry_run: bool) -> list[ChangeRow]:
    ids = sorted(listed)
    insert_new(tx, Seen, [{"run_id": run_id, "kind": kind.name, "object_id": id} for id in ids])
    stored = stored_rows(tx, kind, ids) if dry_run else lock_rows(tx, kind, ids)
    findings = {id: compare_listed(stored.get(id), listed[id]) for id in ids}
    request_reads(tx, kind, [id for id, finding in findings.items() if finding is None], "differs", run_id)
    settled = {id: f for id, f in findings.items() if f not in (None, Finding.NONE)}
    kept = {id: completed(stored.get(id), listed[id]) for id in settled}
    action = DriftAction.REPORTED if dry_run else DriftAction.REPAIRED
    different = [drift.difference(kind, id, f, stored.get(id), kept[id], action) for id, f in settled.items()]
    drift.record(tx, run_id, different)
    if dry_run:
        return []
    # The same content at a higher version: else an event between the two would win.
    same = {id: completed(stored[id], listed[id]) for id in ids if findings[id] is Finding.NONE}
    raised = {id: state for id, state in same.items() if is_newer(stored[id], state)}
    save_rows(tx, kind, kept | raised)
    return [change(kind, id, stored[id], state, CAUSE, run_id) for id, state in kept.items()]


def _read_page(key: Key, page: Page, roles: RoleMap) -> tuple[list[Snapshot], list[drift.Row]]:
    """Return the objects of a page that can be used, and a row of drift for each that cannot."""
    kind, listing = LISTINGS[key.name]
    snapshots: list[Snapshot] = []
    invalid: list[drift.Row] = []

    def id_of(item: Any, place: int) -> str:
        id = item.get("id") if isinstance(item, dict) else None
        if isinstance(id, str) and is_id(id):
            return id
        return f"without id: {place} of {'/'.join(filter(None, (*key, page.after)))}"

    for item in page.items:
        place = len(snapshots) + len(invalid)
        try:
            for name, shown in listing.objects(item, key.parent) if listing.objects else ((kind.name, item),):
                id = id_of(shown, len(snapshots) + len(invalid))
                try:
                    snapshots.append(read_object(KINDS[name], shown, page.read_at, roles))
                except PayloadError as error:
                    invalid.append(drift.invalid(KINDS[name], id, error.field))
                except Exception as error:  # noqa: BLE001 - one item must not fail its page
                    invalid.append(drift.invalid(KINDS[name], id, unexpected(error)))
        except PayloadError as error:
            invalid.append(drift.invalid(kind, id_of(item, place), error.field))
    return snapshots, invalid

"""Pages of a resync's listings into the mirror: what a listing may settle, and reads for what it may not."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, case, select, update

from models.bulk import insert_new
from models.tables import Drift, Kind, Listing, Mirror, Seen
from worker.decision.decide import Finding, State, compare_listed, completed, is_newer
from worker.decision.snapshots import Snapshot
from worker.directory.client import Page
from worker.mirror.apply import change, lock_rows, note_changes, save_rows, stored_rows
from worker.mirror.doubts import ask
from worker.repair.listings import Listed, drift, open_listings, parse_page
from worker.repair.runs import Lease

log = structlog.get_logger()

CAUSE = "resync"


def take(tx: Connection, held: Lease, pages: Sequence[Listed], *, dry_run: bool) -> None:
    """Use pages: repair what a listing may settle, ask for reads of what it may not, note how far they got.

    Raises:
        LeaseLostError: another worker has the run now.
    """
    held.check(tx)
    run_id = held.run_id
    roles = tx.execute(select(Mirror.role_map).with_for_update(read=True)).scalar_one()
    items: list[Snapshot] = []
    all_odd: list[dict[str, Any]] = []
    for name, parent, page, began in pages:
        mine, odd = parse_page(name, parent, page, roles)
        items, all_odd = items + mine, all_odd + odd
        if odd:
            log.warning("odd_items", run=run_id, listing=name, number=len(odd))
        _note_page(tx, run_id, name, parent, page, began, odd=bool(odd))
        if name == "organizations":
            ids = [item.id for item in mine if item.kind is Kind.ORGANIZATION]
            open_listings(tx, run_id, "memberships", ids)
    changes: list[dict[str, Any]] = []
    for kind in Kind:
        if states := {item.id: item.state for item in items if item.kind is kind}:
            changes += _merge(tx, run_id, kind, states, dry_run=dry_run)
    note_drift(tx, run_id, all_odd)
    note_changes(tx, changes)


def _merge(tx: Connection, run_id: str, kind: Kind, listed: dict[str, State], *, dry_run: bool) -> list[dict[str, Any]]:
    ids = sorted(listed)
    insert_new(tx, Seen, [{"run_id": run_id, "kind": kind, "object_id": id} for id in ids])
    stored = stored_rows(tx, kind, ids) if dry_run else lock_rows(tx, kind, ids)
    findings = {id: compare_listed(stored.get(id), listed[id]) for id in ids}
    ask(tx, kind, [id for id, finding in findings.items() if finding is None], "differs", run_id)
    settled = {id: f for id, f in findings.items() if f not in (None, Finding.NONE)}
    kept = {id: completed(stored.get(id), listed[id]) for id in settled}
    action = "reported" if dry_run else "repaired"
    note_drift(tx, run_id, [drift(kind, id, f, stored.get(id), kept[id], action) for id, f in settled.items()])
    if dry_run:
        return []
    # The same content at a higher version: else an event between the two would win.
    same = {id: completed(stored[id], listed[id]) for id in ids if findings[id] is Finding.NONE}
    raised = {id: state for id, state in same.items() if is_newer(stored[id], state)}
    save_rows(tx, kind, kept | raised)
    return [change(kind, id, stored[id], state, CAUSE, run_id) for id, state in kept.items()]


def _note_page(tx: Connection, run_id: str, name: str, parent: str, page: Page, began: datetime, *, odd: bool) -> None:
    ever_odd = Listing.odd | odd
    over = case((ever_odd, "partial"), else_="complete") if page.after is None else "open"
    note_listing(tx, run_id, name, parent, after=page.after, state=over, odd=ever_odd, began_at=began)


def note_listing(tx: Connection, run_id: str, name: str, parent: str, **values: Any) -> None:
    """Note how a listing of a run stands."""
    tx.execute(update(Listing).where(*_here(run_id, name, parent)).values(values))


def note_listing_failed(tx: Connection, run_id: str, name: str, parent: str) -> int:
    """Count one more try of a listing that failed, and return how many there were."""
    tries = update(Listing).where(*_here(run_id, name, parent)).values(attempts=Listing.attempts + 1)
    made: int = tx.execute(tries.returning(Listing.attempts)).scalar_one()
    return made


def _here(run_id: str, name: str, parent: str) -> tuple[ColumnElement[bool], ...]:
    return Listing.run_id == run_id, Listing.name == name, Listing.parent == parent


def note_drift(tx: Connection, run_id: str, rows: list[dict[str, Any]]) -> None:
    """Write rows of drift to the report of a run."""
    insert_new(tx, Drift, [{"run_id": run_id, **row} for row in rows])

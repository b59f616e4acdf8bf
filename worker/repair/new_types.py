"""Reads the events of types that a release begins to mirror, as far back as the events API goes.

Earlier releases ignored these types and kept no payloads. A resync finds the objects that WorkOS lists. The events of
90 days have the rest, such as certificates and who made a change.
"""

from collections.abc import Iterable

import structlog
from sqlalchemy import Connection, Engine, select, update

from models.database import read_transaction
from models.tables import Event, MirrorState
from models.types import JsonObject, db_ago
from worker.inbox.store import IGNORED_EARLIER, accept_earlier
from worker.kinds import SUBSCRIBED
from worker.leases import Lease
from worker.repair.catch_up import events_of
from worker.repair.event_log import READABLE, EventLog
from worker.workos_api.client import Page, WorkOSClient

log = structlog.get_logger()


def add_new_types(tx: Connection, types: Iterable[str]) -> None:
    """Record that events of `types` must be read. Types that are still being read start again with them."""
    waiting: JsonObject | None = tx.execute(select(MirrorState.new_types).with_for_update()).scalar_one()
    wanted = {"types": sorted({*(waiting["types"] if waiting else ()), *types}), "after": None}
    tx.execute(update(MirrorState).values(new_types=wanted))


def add_ignored_types(tx: Connection) -> None:
    """Call `add_new_types` for types of which an older release, after a rollback or during a deploy, ignored events.

    Retention calls this. If WorkOS does not return such an event, its type is read again at each retention until the
    event is too old.
    """
    readable = (Event.type.in_(SUBSCRIBED), Event.occurred_at > db_ago(READABLE))
    ignored = set(tx.execute(select(Event.type).where(*IGNORED_EARLIER, *readable).distinct()).scalars())
    waiting: JsonObject | None = tx.execute(select(MirrorState.new_types)).scalar_one()
    if new := ignored.difference(waiting["types"] if waiting else ()):  # the others are being read
        log.info("ignored_event_types", types=sorted(new))
        add_new_types(tx, new)


def read_new_types(engine: Engine, workos: WorkOSClient, lease: Lease) -> None:
    """Read and store the events of `MirrorState.new_types`. Continues where an interrupted call stopped.

    Raises:
        WorkOSError: WorkOS did not answer, or refuses some of the types. Events that it returned are stored.
        LeaseLostError: another worker took over the run of `lease`.
    """
    with read_transaction(engine) as tx:
        new: JsonObject | None = tx.execute(select(MirrorState.new_types)).scalar_one()
    if not new:
        return
    now = workos.now()
    types, stored = new["types"], 0
    events = EventLog(workos, now, types=types)
    for page in events.after_or_since(new["after"], now - READABLE):
        stored += lease.in_transaction(engine, _store, page, types)
    lease.in_transaction(engine, _replace, types, {"types": sorted(events.refused), "after": None})
    log.info("new_types_read", types=types, stored=stored)
    events.require_all_types()


def _store(tx: Connection, page: Page, types: list[str]) -> int:
    """Store a page and record the progress; return how many of its events became pending."""
    events = events_of(page).valid
    if events:
        _replace(tx, types, {"types": types, "after": events[-1].id})  # locks the row before events, as a drain does
    return accept_earlier(tx, sorted(events, key=lambda event: event.id))


def _replace(tx: Connection, types: list[str], new: JsonObject) -> None:
    """Set `new_types`, unless types were added meanwhile: then all of them start again."""
    current: JsonObject | None = tx.execute(select(MirrorState.new_types).with_for_update()).scalar_one()
    if current and current["types"] == types:
        tx.execute(update(MirrorState).values(new_types=new if new["types"] else None))

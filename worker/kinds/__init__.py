"""The kinds of WorkOS objects in the mirror, each in one module with its event types.

A new event type is a line in the `events` of its kind's module. A new kind needs a module, a migration for its table,
and a recorded payload for each of its event types.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from datetime import datetime

from worker.decision.decide import DATE_STEP, NO_EVENT
from worker.decision.payload import Envelope, Fields, parse_json, parse_time, read_origin
from worker.errors import PayloadError
from worker.kinds.kind import EventReader, Kind, Listing, RoleMap, Snapshot, live_state

__all__ = ["KINDS", "LISTINGS", "READERS", "SUBSCRIBED", "Kind", "RoleMap", "Snapshot", "read_event", "read_object"]


def _load() -> dict[str, Kind]:
    """Return the kinds by name, parents before their children: rows are locked and changes written in this order."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, Kind)}
    in_order = sorted(kinds, key=lambda kind: (kind.owner is not None, kind.name))
    return {kind.name: kind for kind in in_order}


KINDS: Mapping[str, Kind] = _load()
READERS: dict[str, tuple[Kind, EventReader]] = {
    type: (kind, reader) for kind in KINDS.values() for type, reader in kind.events.items()
}
"""Event type → its kind, and the function that reads it. Events of other types are stored and ignored."""
SUBSCRIBED = sorted(READERS)
"""The event types that the webhook endpoint subscribes to and that catch-up and the tail request."""
LISTINGS: Mapping[str, tuple[Kind, Listing]] = {
    listing.name: (kind, listing) for kind in KINDS.values() for listing in kind.listings
}
"""Name of a listing → the kind it lists, and the listing."""


def read_object(kind: Kind, item: object, read_at: datetime, roles: RoleMap) -> Snapshot:
    """Return the snapshot of an object that the API returned; raises `PayloadError` if it cannot be used.

    Its version is its own `updated_at`, then the time of the read, because a read shows the later of two events in the
    same millisecond. WorkOS gives `read_at` in whole seconds. The end of that second is used, because the read may
    show any event in it. An event that is stale only because of this needs a confirmed read (`needs_confirmation`).
    """
    data = Fields(item, kind.name)
    # An object whose delete is not final is ordered by event time alone, so the time of its last update is used.
    at = read_at + DATE_STEP if kind.delete_is_final else data.time("updated_at")
    return live_state(kind, data, (kind.api_content or kind.content)(data, roles), Envelope(NO_EVENT, at))


def read_event(event_id: str, type: str, body: bytes, roles: RoleMap) -> tuple[Envelope, Snapshot | None]:
    """Return an event's envelope and the snapshot in it, or None for a type that is ignored.

    `body` has the raw bytes of the whole event. Raises `PayloadError` if the event cannot be used.
    """
    try:
        event = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise PayloadError("body", "is not JSON") from error
    if not isinstance(event, dict):
        raise PayloadError("body", "is not an object")
    envelope = Envelope(event_id, parse_time(event.get("created_at")), read_origin(event.get("context")))
    if type not in READERS:
        return envelope, None
    kind, reader = READERS[type]
    return envelope, reader(kind, Fields(event.get("data"), "data"), envelope, roles)

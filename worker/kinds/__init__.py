"""The kinds of WorkOS objects in the mirror: one module of this package each.

To add a kind, add its module, a migration for its table, and a recorded payload for each of its event types.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from datetime import datetime

from worker.decision.decide import DATE_STEP
from worker.decision.payload import Envelope, Fields, parse_json, parse_time
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
"""Event type → the kind it is about and how it is read. Events of other types are stored and ignored."""
SUBSCRIBED = sorted(READERS)
"""The event types that a webhook endpoint subscribes to and catch-up asks for."""
LISTINGS: Mapping[str, tuple[Kind, Listing]] = {
    listing.name: (kind, listing) for kind in KINDS.values() for listing in kind.listings
}
"""Name of a listing → the kind it lists, and the listing."""


def read_object(kind: Kind, item: object, read_at: datetime, roles: RoleMap) -> Snapshot:
    """Return the snapshot of an object as the API shows it.

    Its version is its own `updated_at`, then the time of the read: of two events in the same millisecond, the read
    showed the later one. WorkOS gives that time in whole seconds, so the end of the second is used: the read also
    showed events from the start of that second. If an event is stale by this alone, it needs a confirmed read
    (`needs_confirmation`).

    Args:
        kind: the kind of the object.
        item: the JSON value.
        read_at: WorkOS's time of the read, in UTC.
        roles: WorkOS role slug → local role.

    Raises:
        PayloadError: the object cannot be used; the message names the field.
    """
    data = Fields(item, kind.name)
    # An object without final deletes is ordered by event time alone: the read shows it as of its last update.
    at = read_at + DATE_STEP if kind.delete_is_final else data.time("updated_at")
    return live_state(kind, data, (kind.api_content or kind.content)(data, roles, True), Envelope("", at))


def read_event(event_id: str, type: str, body: bytes, roles: RoleMap) -> tuple[Envelope, Snapshot | None]:
    """Return an event's envelope and the snapshot in it, or None for a type that is ignored.

    Args:
        event_id: the event's id, as the inbox stores it.
        type: the event's type.
        body: the raw bytes of the whole event.
        roles: WorkOS role slug → local role.

    Raises:
        PayloadError: the data cannot be used; the message names the field.
    """
    try:
        event = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise PayloadError("body", "is not JSON") from error
    if not isinstance(event, dict):
        raise PayloadError("body", "is not an object")
    envelope = Envelope(event_id, parse_time(event.get("created_at")))
    if type not in READERS:
        return envelope, None
    kind, reader = READERS[type]
    return envelope, reader(kind, Fields(event.get("data"), "data"), envelope, roles)

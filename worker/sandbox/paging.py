"""Listings: cursors, limits and order, for objects and for the log of events."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from worker.sandbox import shapes
from worker.sandbox.state import JSON, invalid
from worker.sandbox.world import World

DEFAULT_LIMIT = 10
MAX_LIMIT = 100
EVENTS_KEPT = timedelta(days=90)
EVENTS_RANGE = timedelta(days=30)


def limit_of(query: Mapping[str, str]) -> int:
    """Return the page size; raise WorldError 422 unless it is from 1 to 100."""
    text = query.get("limit", str(DEFAULT_LIMIT))
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LIMIT:
        raise invalid("limit must be an integer between 1 and 100", "invalid_limit", "limit")
    return int(text)


def ascending(query: Mapping[str, str]) -> bool:
    """Return whether the query asks for the oldest first. The documented default is newest first."""
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order must be one of: asc, desc", "invalid_order", "order")
    return order == "asc"


def page(ids: list[str], show: Callable[[str], JSON], query: Mapping[str, str]) -> JSON:
    """Return a page of `ids`, which must be sorted. Cursors are compared with ids, so a cursor's object may be gone."""
    limit, rising = limit_of(query), ascending(query)
    before, after = query.get("before"), query.get("after")
    low, high = (after, before) if rising else (before, after)
    window = ids[bisect_right(ids, low) if low else 0 : bisect_left(ids, high) if high else len(ids)]
    # `before` asks for the page that ends at the cursor, everything else for the one that starts there.
    from_start = rising != bool(before and not after)
    chosen = window[:limit] if from_start else window[-limit:]
    if not chosen:
        return shapes.listing([], None, None)
    older = chosen[0] if chosen[0] != ids[0] else None
    newer = chosen[-1] if chosen[-1] != ids[-1] else None
    items = [show(object_id) for object_id in (chosen if rising else reversed(chosen))]
    return shapes.listing(items, *((older, newer) if rising else (newer, older)))


def events_page(world: World, query: Mapping[str, str]) -> JSON:
    """Return a page of the events API: at most 90 days back, 30 days in a query, and without the newest events."""
    if query.get("after") and query.get("range_start"):
        message = "Only one of after and range_start may be given."
        raise invalid(message, "invalid_request_parameters", "after", status=400)
    types = {kind for kind in query.get("events", "").split(",") if kind}
    if not types:
        raise invalid("events must contain at least one event type", "events_required", "events", status=400)
    rising, limit, organization_id = ascending(query), limit_of(query), query.get("organization_id")
    start, end = _range(world, query)
    with world.lock:
        log, positions = _readable(world)
        first, last = _window(world, query, rising, log, positions)
        order: Iterable[int] = range(first, last) if rising else range(last - 1, first - 1, -1)

        def wanted(event: JSON) -> bool:
            if event["event"] not in types or not start <= event["created_at"] < end:
                return False
            return organization_id is None or organization_id in _organizations_of(event)

        found = list(islice((e for p in order if wanted(e := log[p])), limit + 1))
    more = found[limit - 1]["id"] if len(found) > limit else None
    return shapes.listing(found[:limit], None, more)


def _organizations_of(event: JSON) -> tuple[Any, Any]:
    """Return the ids that may be the organization of an event: its object's own, and the one in its data."""
    data = event["data"].get("organization_domain", event["data"])
    return (data.get("id"), data.get("organization_id"))


def _range(world: World, query: Mapping[str, str]) -> tuple[str, str]:
    """Return start (inclusive) and end (exclusive) as texts, which sort like times."""
    now = world.now()
    oldest = now - EVENTS_KEPT
    start, end = _time(query, "range_start"), _time(query, "range_end")
    if start is not None and start < oldest:
        raise invalid("range_start must be within the last 90 days", "invalid_range_start", "range_start", status=400)
    if start is not None and end is not None and (end < start or end - start > EVENTS_RANGE):
        raise invalid("The range must not exceed 30 days", "invalid_range", "range_end", status=400)
    if start is not None and end is None:
        end = start + EVENTS_RANGE
    if start is None:
        start = oldest if query.get("after") else now - EVENTS_RANGE
    if ascending(query) and world.knobs.hold_back > 0:
        # WorkOS holds its newest events back, because events with earlier ids may not be stored yet.
        held = now - timedelta(seconds=world.knobs.hold_back)
        end = min(end, held) if end is not None else held
    return shapes.time_text(start), shapes.time_text(end) if end is not None else "9999"


def _time(query: Mapping[str, str], name: str) -> Any:
    text = query.get(name)
    if not text:
        return None
    try:
        return shapes.time_of(text)
    except ValueError:
        raise invalid(f"{name} must be an ISO 8601 time", f"invalid_{name}", name, status=400) from None


def _readable(world: World) -> tuple[list[JSON], Mapping[str, int]]:
    """Return the events that the API shows now, in its order, and the position of each by id."""
    late = world.knobs.lateness
    if not late:
        return world.events, world.event_positions

    def shown_at(event: JSON) -> datetime:
        return shapes.time_of(event["created_at"]) + timedelta(
            seconds=max(world.knobs.hold_back, late.get(event["id"], 0.0))
        )

    log = [event for event in world.events if shown_at(event) <= world.now()]
    if world.knobs.late_events == "appended":
        log.sort(key=shown_at)
    return log, {event["id"]: position for position, event in enumerate(log)}


def _window(
    world: World, query: Mapping[str, str], rising: bool, log: list[JSON], positions: Mapping[str, int]
) -> tuple[int, int]:
    """Return the half-open range of positions in the log that the cursors select."""
    first, last = 0, len(log)
    after, before = query.get("after"), query.get("before")
    if after:
        position = positions.get(after)
        oldest = shapes.time_text(world.now() - EVENTS_KEPT)
        if position is None or log[position]["created_at"] < oldest:
            if world.knobs.unknown_after == "error":
                raise invalid(f"Event not found: '{after}'.", "invalid_cursor", "after", status=400)
        elif rising:
            first = position + 1
        else:
            last = position
    if before and before in positions:
        position = positions[before]
        first, last = (first, min(last, position)) if rising else (max(first, position + 1), last)
    return first, last

"""Series of events, and the mirror they must lead to."""

import json
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Engine, insert

from models.database import open_engine, write_transaction
from models.tables import Change, Event
from tests.support import JSON, apply_all, mirrored, rows
from worker.inbox.store import ReceivedEvent
from worker.sandbox import World, play

Mirrored = dict[Any, list[JSON]]


def company_life(events: int, seed: int = 0) -> tuple[list[JSON], JSON]:
    """About `events` events of a few companies, in order, and what WorkOS lists at the end."""
    world = World(seed)
    story: list[JSON] = []
    world.subscribe(story.append)
    play(world, events, seed=seed)
    return story, world.truth()


def new_users(number: int) -> list[JSON]:
    """`number` events, each of a different user."""
    return [user(f"user_{place:05}", f"event_user_{place:05}", 0) for place in range(number)]


def user(id: str, event_id: str, version: int) -> JSON:
    """An event of the user `id`; the event with the highest version wins."""
    return _event(
        event_id, "user.updated", version, {"object": "user", "id": id, "email": f"{id}.{version}@acme.example"}
    )


def organization(id: str, event_id: str, version: int) -> JSON:
    data: JSON = {"object": "organization", "id": id, "name": f"{id} {version}", "external_id": None, "domains": []}
    return _event(event_id, "organization.updated", version, data)


def _event(event_id: str, type: str, version: int, data: JSON) -> JSON:
    at = f"2026-01-01T{version // 3600:02}:{version // 60 % 60:02}:{version % 60:02}.000Z"
    profile = {"email_verified": True, "first_name": None, "last_name": None} if type.startswith("user") else {}
    times = {"created_at": "2026-01-01T00:00:00.000Z", "updated_at": at}
    return {"id": event_id, "event": type, "created_at": at, "data": data | profile | times}


def encoded(event: JSON) -> bytes:
    return json.dumps(event).encode()


def delivered(event: JSON) -> ReceivedEvent:
    return ReceivedEvent.of(event, encoded(event))


def store(engine: Engine, events: Iterable[JSON]) -> None:
    """Insert events into the inbox in one statement, without ringing the doorbell."""
    values = [{**delivered(event)._asdict(), "source": "webhook"} for event in events]
    with write_transaction(engine) as tx:
        tx.execute(insert(Event), values)


def mirror_of(events: Iterable[JSON], make_database: Callable[[str], str]) -> Mirrored:
    """The mirror after one uninterrupted drain of `events`."""
    engine = open_engine(make_database("sqlite"))
    store(engine, events)
    apply_all(engine)
    made = mirrored(engine)
    engine.dispose()
    return made


def written_once(engine: Engine) -> None:
    """Check that each applied event wrote exactly one change."""
    applied = sorted(row["id"] for row in rows(engine, Event) if row["outcome"] == "applied")
    causes = [change["cause_id"] for change in rows(engine, Change) if not _only_auto_join(change)]
    assert sorted(causes) == applied


def _only_auto_join(change: JSON) -> bool:
    """Whether only the auto-join state of a domain changed, because of another object's event."""
    before, after = change["before"] or {}, change["after"]
    return {name for name in after if before.get(name) != after[name]} <= {"auto_join", "auto_join_reason"}

"""Helpers of the catch-up tests: users who sign up, and events that WorkOS holds back."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, select, update

from models.database import in_transaction, read_transaction
from models.tables import Event, MirrorState
from models.types import db_now_plus
from tests.support import JSON, rows
from tests.support.resync import CLIENT_ID, Clock
from worker.repair.environment import bind
from worker.sandbox import Sandbox
from worker.settings import Settings
from worker.workos_api.client import WorkOSClient

EVENTS = "/events"


def settings(**given: Any) -> Settings:
    return Settings(_env_file=None, workos_api_key="sk_test", workos_client_id=CLIENT_ID, **given)


def begin(engine: Engine, workos: WorkOSClient) -> None:
    bind(engine, workos, settings())


def users(sandbox: Sandbox, clock: Clock, number: int, seconds: float = 0.0) -> list[JSON]:
    """Create `number` users, `seconds` apart; returns their events."""
    first = len(sandbox.world.events)
    for place in range(number):
        sandbox.world.create_user(f"person{first + place}@acme.example")
        clock.advance(seconds=seconds)
    return sandbox.world.events[first:]


def signed_up(
    engine: Engine, workos: WorkOSClient, sandbox: Sandbox, clock: Clock, number: int, seconds: float = 0.0
) -> list[JSON]:
    """Bind the database, create `number` users and let 90 seconds pass, so that the events API is complete.

    Returns the events of the users.
    """
    begin(engine, workos)
    events = users(sandbox, clock, number, seconds)
    clock.advance(seconds=90)
    return events


def stored(engine: Engine) -> set[str]:
    return {row["id"] for row in rows(engine, Event)}


def age_api_events(engine: Engine, seconds: float) -> None:
    """Move the arrival of events that only the events API delivered `seconds` into the past."""
    brought = update(Event).where(Event.api_at.is_not(None), Event.webhook_at.is_(None))
    in_transaction(engine, lambda tx: tx.execute(brought.values(api_at=db_now_plus(-seconds))))


def covered(engine: Engine, sandbox: Sandbox) -> bool:
    """Whether every event up to the cursor in WorkOS's log is in the inbox."""
    with read_transaction(engine) as tx:
        cursor = tx.execute(select(MirrorState.cursor)).scalar_one()
        have = set(tx.execute(select(Event.id)).scalars())
    log = [event["id"] for event in sandbox.world.events]
    return cursor is None or set(log[: log.index(cursor) + 1]) <= have


def hide(sandbox: Sandbox, place: int) -> Callable[[], None]:
    """Hide one event of WorkOS's log while later ones are shown; returns a function that shows it in its place."""
    world = sandbox.world
    held = world.events.pop(place)

    def number() -> None:
        world.event_positions = {event["id"]: place for place, event in enumerate(world.events)}

    def show() -> None:
        with world.lock:
            world.events.insert(place, held)
            number()

    number()
    return show


def due(engine: Engine, event_id: str, seconds: float) -> None:
    """Make an event due in `seconds`, as after a failed attempt."""
    in_transaction(
        engine, lambda tx: tx.execute(update(Event).where(Event.id == event_id).values(due_at=db_now_plus(seconds)))
    )

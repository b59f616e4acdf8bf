"""Events that the events API shows up to an hour late: none is lost, and `complete_to` waits for each that was shown.

WorkOS does not document where a late event appears. Both places are tried: the end of the listing, and its own time,
before the cursor. `LATE_EVENTS_EXAMPLES=2000 pytest tests/use_cases/test_late_events.py` for a long run.
"""

import os
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from redis import Redis
from sqlalchemy import Engine

from models.tables import Event, EventStatus, MirrorState
from tests.support import JSON, accept, apply_all, differences, rows
from tests.support.histories import DeathError, Simulation
from worker.errors import WorkOSError
from worker.inbox.drain import DrainLimits
from worker.repair.catch_up import catch_up, update_complete_to
from worker.workos_api import client

EXAMPLES = int(os.environ.get("LATE_EVENTS_EXAMPLES", "12"))
SETTINGS = settings(max_examples=EXAMPLES, stateful_step_count=30, deadline=None, suppress_health_check=[*HealthCheck])
LAG = timedelta(seconds=60)
LATEST_SECONDS = 3600


class Lateness(Simulation):
    """Users come and go; the events API shows each event after a delay, or fails; catch-ups overlap or die."""

    def __init__(self, engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
        super().__init__(engine, endpoint, redis)
        self.shown: dict[datetime, set[str]] = {}
        """`complete_to` that a catch-up may reach → the events that the API showed when the catch-up began."""
        self.complete_to: datetime | None = None

    @initialize(late_events=st.sampled_from(["appended", "inserted"]))
    def begins(self, late_events: str) -> None:
        self.sandbox.knobs.update({"late_events": late_events})

    @rule(delay=st.sampled_from([0, 0, 130, LATEST_SECONDS]) | st.integers(0, LATEST_SECONDS), people=st.integers(1, 7))
    def people_sign_up(self, delay: int, people: int) -> None:
        for _ in range(people):
            self.world.create_user(f"person{len(self.world.events)}@acme.example")
            self.sandbox.knobs.lateness[self.world.events[-1]["id"]] = delay

    @rule(delay=st.integers(0, LATEST_SECONDS), place=st.integers(0, 20))
    def someone_is_deleted(self, delay: int, place: int) -> None:
        if ids := list(self.world.users):
            self.world.delete_user(ids[place % len(ids)])
            self.sandbox.knobs.lateness[self.world.events[-1]["id"]] = delay

    @rule(seconds=st.sampled_from([1, 30, 125, 300, 300, 900, 8000]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule(times=st.integers(1, 4))
    def all_goes_its_way(self, times: int) -> None:
        for _ in range(times):
            self.clock.advance(seconds=300)
            self.catches_up()
            self.drains(500)
            update_complete_to(self.engine)
            self.complete_to_waits_for_what_was_shown()

    @rule(place=st.integers(0, 20))
    def a_webhook_arrives(self, place: int) -> None:
        if events := self.world.events:
            accept(self.endpoint, events[-1 - place % len(events)])

    @rule(status=st.sampled_from([0, 429, 503]), times=st.sampled_from([2, 7]), page=st.sampled_from([None, 1, 2]))
    def workos_fails(self, status: int, times: int, page: int | None) -> None:
        self.sandbox.faults.fail("/events", status=status, times=times, page=page)

    @rule(answers=st.integers(1, 5), seconds=st.sampled_from([0, 20, 300]))
    def another_will_catch_up_meanwhile(self, answers: int, seconds: int) -> None:
        def meanwhile() -> None:
            self.clock.advance(seconds=seconds)
            self.catches_up()

        self.planned.append((answers, meanwhile))

    @rule()
    def catches_up(self) -> None:
        now = self.clock.now
        if self.sandbox.knobs.late_events == "appended":
            self.shown[now - LAG] = self._shown()
        with suppress(WorkOSError, DeathError):
            catch_up(self.engine, self.workos, lag=LAG)

    @rule(batch=st.sampled_from([1, 500]))
    def drains(self, batch: int) -> None:
        apply_all(self.engine, DrainLimits(batch_size=batch))

    @rule()
    def notes_how_far_it_is_complete(self) -> None:
        update_complete_to(self.engine)

    @invariant()
    def complete_to_waits_for_what_was_shown(self) -> None:
        [mirror] = rows(self.engine, MirrorState)
        moved_to = mirror["complete_to"]
        if moved_to is None or moved_to == self.complete_to:
            return
        assert self.complete_to is None or self.complete_to < moved_to
        self.complete_to = moved_to
        inbox = {row["id"]: row for row in rows(self.engine, Event)}
        shown = {id for id, row in inbox.items() if row["api_at"]} | self.shown.get(moved_to, set())
        past = [event["id"] for event in self.world.events if datetime.fromisoformat(event["created_at"]) <= moved_to]
        waits = [id for id in past if id in shown and (id not in inbox or inbox[id]["status"] == EventStatus.PENDING)]
        assert waits == [], f"complete to {moved_to}"

    def _ends(self) -> None:
        self.sandbox.faults.clear()
        self.planned.clear()
        self.clock.advance(seconds=LATEST_SECONDS)
        self.all_goes_its_way(3)
        stored = {row["id"]: row["status"] for row in rows(self.engine, Event)}
        assert [event["id"] for event in self.world.events if event["id"] not in stored] == []
        assert set(stored.values()) <= {EventStatus.DONE}
        assert differences(self.engine, self.world.truth()) == []
        assert self.complete_to == self.clock.now - LAG

    def _shown(self) -> set[str]:
        late, held = self.sandbox.knobs.lateness, self.sandbox.knobs.hold_back

        def is_shown(event: JSON) -> bool:
            delay = timedelta(seconds=max(held, late[event["id"]]))
            return datetime.fromisoformat(event["created_at"]) + delay <= self.clock.now

        return {event["id"] for event in self.world.events if is_shown(event)}

    def _answered(self, path: str) -> None:
        if path == "events":
            super()._answered(path)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_late_event_is_applied(
    both_engines: Engine, endpoint: FlaskClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 5)  # so that so small a world has pages
    run_state_machine_as_test(lambda: Lateness(both_engines, endpoint, redis), settings=SETTINGS)  # type: ignore[arg-type]


def test_late_events_that_failed_catch_ups_passed_are_read(
    one_engine: Engine, endpoint: FlaskClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the first catch-up has ended, failed ones move the cursor past events that the API does not show yet."""
    monkeypatch.setattr(client, "PAGE", 5)
    state = Lateness(one_engine, endpoint, redis)
    state.begins("inserted")
    state.people_sign_up(delay=1336, people=1)
    state.people_sign_up(delay=0, people=7)
    state.a_worker_will_die(answers=2)
    state.all_goes_its_way(1)  # stores the first page, and dies
    state.time_passes(8000)
    state.people_sign_up(delay=0, people=1)
    state.teardown()

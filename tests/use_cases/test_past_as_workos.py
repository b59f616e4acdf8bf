"""Access as WorkOS had it: random histories with late, stale and resync-only changes, compared with WorkOS.

`AS_WORKOS_EXAMPLES=2000 pytest tests/use_cases/test_past_as_workos.py` for a long run.
"""

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from redis import Redis
from sqlalchemy import Engine, update

from models.database import in_transaction, read_transaction, write_transaction
from models.tables import Drift, Event, MirrorState, Tail
from tests.support import JSON, accept, apply_all, rows, true_role
from tests.support.actors import by
from tests.support.histories import PLACES, SOME, DeathError, Simulation
from tests.support.resync import Clock, continue_run, deliver, read_due, resync
from worker.repair.resync import resync as resyncs
from worker.repair.resync.resync import start
from worker.reports.past_workos import members_as_workos
from worker.sandbox import Sandbox, play
from worker.workos_api import client
from worker.workos_api.client import WorkOSClient

EXAMPLES = int(os.environ.get("AS_WORKOS_EXAMPLES", "4"))
SETTINGS = settings(max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=[*HealthCheck])
BEGIN = datetime(2025, 3, 1, 12, tzinfo=UTC)

Access = dict[tuple[str, str], str]
"""Workspace and user → local role."""


class AsWorkOS(Simulation):
    """WorkOS changes once a second; its events arrive in any order, and some changes have none."""

    def __init__(self, engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
        super().__init__(engine, endpoint, redis)
        self.clock.now = BEGIN
        self.on_the_way: list[JSON] = []
        self.world.subscribe(self.on_the_way.append)
        self.instants: dict[datetime, Access] = {}
        self.all_evented = True

    @initialize()
    def begins(self) -> None:
        filled = update(MirrorState).values(backfilled_at=BEGIN)
        in_transaction(self.engine, lambda tx: tx.execute(filled))
        self.life_goes_on(0, 8)

    @rule(seed=PLACES, events=st.integers(1, 6))
    def life_goes_on(self, seed: int, events: int) -> None:
        for number in range(events):
            self.clock.advance(seconds=1)
            play(self.world, 1, companies=2, seed=seed + number)
            self._notes_who_has_access()

    @rule(
        place=PLACES, seconds=st.integers(1, 30), what=st.sampled_from(["membership", "role", "user", "organization"])
    )
    def something_changes_without_event_and_a_resync_finds_it(self, place: int, seconds: int, what: str) -> None:
        """The mirror knows the object, and nothing else happens before the read. Else nobody could know of it."""
        found: JSON = self.world.memberships if what == "role" else getattr(self.world, f"{what}s")
        if not found or (what == "organization" and len(found) < 2):
            return
        self.all_evented = False
        created = [event for event in self.on_the_way if event["event"].endswith(".created")]
        self.on_the_way[:] = [event for event in self.on_the_way if event not in created]
        accept(self.endpoint, *created)
        apply_all(self.engine)
        id = list(found)[place % len(found)]
        self.clock.advance(seconds=1)
        with self.world.silently():
            if what == "role":
                self.world.update_membership(id, role=["admin", "member"][place % 2])
            else:
                getattr(self.world, f"delete_{what}")(id)
        self._notes_who_has_access()
        self.clock.advance(seconds=seconds)
        self._notes_who_has_access()
        self.a_resync_reads_everything()

    @rule()
    def a_resync_reads_everything(self) -> None:
        self.clock.advance(seconds=1)
        while self.planned:
            with suppress(DeathError):
                resync(self.engine, self.workos)
        run_id = resync(self.engine, self.workos)
        if any(row["action"] == "withheld" and row["run_id"] == run_id for row in rows(self.engine, Drift)):
            approval = start(self.engine, by("test", "they left"), approves=run_id)
            assert continue_run(self.engine, self.workos, approval)
        read_due(self.engine, self.workos)
        self.clock.advance(seconds=2)

    @rule(places=SOME)
    def some_events_arrive(self, places: list[int]) -> None:
        accept(
            self.endpoint, *(self.on_the_way.pop(place % len(self.on_the_way)) for place in places if self.on_the_way)
        )
        apply_all(self.engine)

    def _notes_who_has_access(self) -> None:
        self.clock.advance(seconds=0.5)
        self.instants[self.clock.now] = {
            (row["organization_id"], row["user_id"]): true_role(row)
            for row in self.world.truth()["memberships"]
            if row["status"] == "active"
        }
        self.clock.advance(seconds=0.5)

    def _ends(self) -> None:
        self.planned.clear()
        accept(self.endpoint, *self.on_the_way)
        apply_all(self.engine)
        read_due(self.engine, self.workos)
        complete_to = update(Tail).values(complete_to=self.clock.now)
        in_transaction(self.engine, lambda tx: tx.execute(complete_to))
        for at, truth in self.instants.items():
            with read_transaction(self.engine) as tx:
                found = members_as_workos(tx, at)
            exact = {(row["organization_id"], row["user_id"]): row["role"] for row in found if not row["approximate"]}
            perhaps = {(row["organization_id"], row["user_id"]) for row in found if row["approximate"]}
            wanted = {person: role for person, role in truth.items() if person not in perhaps}
            assert exact == wanted, (at, found)
            for row in found:
                assert not row["approximate"] or row["changed_after"] < at < row["changed_before"], (at, row)
                assert row["approximate"] or row["changed_at"] <= at, (at, row)
            assert not (self.all_evented and perhaps), (at, found)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_every_answer_is_right_or_says_that_it_is_approximate(
    both_engines: Engine, endpoint: FlaskClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resyncs, "CONCURRENT_CALLS", 1)  # so that a history is always the same
    monkeypatch.setattr(client, "PAGE", 5)  # so that so small a world has pages
    run_state_machine_as_test(lambda: AsWorkOS(both_engines, endpoint, redis), settings=SETTINGS)  # type: ignore[arg-type]


@pytest.mark.long
def test_the_highest_of_several_roles_counts_in_a_history(engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
    history = AsWorkOS(engine, endpoint, redis)
    history.begins()
    world = history.world
    person = world.create_organization("Acme")["id"], world.create_user("a@acme.example")["id"]
    world.create_membership(*person, roles=["member", "admin"])
    history._notes_who_has_access()
    history.teardown()  # compares each answer
    assert history.instants[max(history.instants)][person] == "admin"


@pytest.mark.long
def test_a_change_without_event_was_made_after_a_resync_found_no_difference(
    one_engine: Engine, clock: Clock, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    clock.now = BEGIN
    world = sandbox.world
    membership = world.create_membership(
        world.create_organization("Acme")["id"], world.create_user("a@acme.example")["id"]
    )
    deliver(one_engine, world.events)
    for hours in (1, 2):
        clock.now = BEGIN + timedelta(hours=hours)
        resync(one_engine, workos)
    with world.silently():
        world.update_membership(membership["id"], role="admin")
    clock.now = BEGIN + timedelta(hours=3)
    resync(one_engine, workos)
    with write_transaction(one_engine) as tx:
        tx.execute(update(MirrorState).values(backfilled_at=BEGIN))
        tx.execute(update(Tail).values(complete_to=clock.now + timedelta(hours=1)))
    found = []
    for minutes in (110, 130, 181):
        with read_transaction(one_engine) as tx:
            [row] = members_as_workos(tx, BEGIN + timedelta(minutes=minutes))
        found.append((row["role"], row["approximate"], row["changed_after"], row["changed_before"]))
    interval = (BEGIN + timedelta(hours=2), BEGIN + timedelta(hours=3, seconds=1))
    assert found == [("member", False, None, None), ("member", True, *interval), ("admin", False, *interval)]


def test_access_that_a_failed_event_may_have_changed_is_approximate(
    one_engine: Engine, clock: Clock, sandbox: Sandbox
) -> None:
    clock.now = BEGIN
    world = sandbox.world
    organization = world.create_organization("Acme")["id"]
    members = [world.create_membership(organization, world.create_user(f"{n}@acme.example")["id"]) for n in "ab"]
    deliver(one_engine, world.events)
    clock.now = BEGIN + timedelta(hours=1)
    world.update_membership(members[0]["id"], role="admin")
    updated = world.events[-1]
    deliver(one_engine, [updated | {"data": updated["data"] | {"updated_at": None}}])
    with write_transaction(one_engine) as tx:
        tx.execute(update(Event).where(Event.id == updated["id"]).values(occurred_at=clock.now))
        tx.execute(update(MirrorState).values(backfilled_at=BEGIN))
        tx.execute(update(Tail).values(complete_to=clock.now + timedelta(hours=1)))
    found = []
    for minutes in (59, 61):
        with read_transaction(one_engine) as tx:
            rows_then = members_as_workos(tx, BEGIN + timedelta(minutes=minutes))
        found.append({row["membership_id"]: (row["approximate"], row["changed_after"]) for row in rows_then})
    exact = {each["id"]: (False, None) for each in members}
    assert found == [exact, exact | {members[0]["id"]: (True, BEGIN + timedelta(hours=1))}]

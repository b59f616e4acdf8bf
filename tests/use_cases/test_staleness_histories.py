"""A bounded answer is never older than its bound, over random histories with outages, deaths and unusable events.

`STALENESS_EXAMPLES=200 pytest tests/use_cases/test_staleness_histories.py` for a long run.
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
from sqlalchemy import Engine, update

from models.access import Access
from models.database import in_transaction
from models.tables import Event
from models.types import db_now_plus
from tests.support import accept, apply_all
from tests.support.actors import by
from tests.support.catch_up import begin
from tests.support.histories import DeathError, Simulation
from tests.support.resync import continue_run, make_reads_due
from tests.support.tail import TailProcess, ask, filled, pass_time, publish_applied, state
from worker.errors import BusyError, WorkOSError
from worker.inbox.drain import DrainLimits
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair.catch_up import catch_up
from worker.repair.reads import work_due
from worker.repair.resync.resync import start
from worker.workos_api import client

EXAMPLES = int(os.environ.get("STALENESS_EXAMPLES", "4"))
SETTINGS = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=[*HealthCheck])
HOLD_BACK = 15
BOUNDS = (25, 60, 300)
PEOPLE = 3


class Staleness(Simulation):
    """People join, change their role and leave; the events API shows each event within the hold-back, or fails."""

    def __init__(self, engine: Engine, endpoint: FlaskClient, redis: Redis) -> None:
        super().__init__(engine, endpoint, redis)
        self.bell = Doorbell(redis, DRAIN)
        self.organization = self.world.create_organization("Acme")["id"]
        self.users = [self.world.create_user(f"person{n}@acme.example")["id"] for n in range(PEOPLE)]
        self.truth: dict[str, list[tuple[datetime, str | None]]] = {
            user: [(self.clock.now, None)] for user in self.users
        }
        """For each person, since when they have which role at WorkOS."""
        self.process: TailProcess | None = None

    @initialize(late_events=st.sampled_from(["appended", "inserted"]), hold_back=st.sampled_from([0, 2]))
    def begins(self, late_events: str, hold_back: float) -> None:
        self.sandbox.knobs.update({"late_events": late_events, "hold_back": hold_back})
        begin(self.engine, self.workos)
        filled(self.engine)

    # WorkOS

    @rule(
        place=st.integers(0, PEOPLE - 1),
        what=st.sampled_from(["admin", "member", "deactivate", "delete"]),
        delay=st.sampled_from([0, 0, 7, HOLD_BACK]),
        usable=st.sampled_from([True, True, True, False]),
    )
    def a_membership_changes(self, place: int, what: str, delay: int, *, usable: bool) -> None:
        user, known = self.users[place], len(self.world.events)
        held = next((m for m in self.world.memberships.values() if m["user_id"] == user), None)
        if held is None:
            self.world.create_membership(
                self.organization, user, role=what if what in ("admin", "member") else "member"
            )
        elif what == "delete":
            self.world.delete_membership(held["id"])
        elif what == "deactivate" and held["status"] == "active":
            self.world.deactivate_membership(held["id"])
        elif held["status"] != "active":
            self.world.reactivate_membership(held["id"])
        else:
            self.world.update_membership(held["id"], role="admin" if what == "admin" else "member")
        for event in self.world.events[known:]:
            self.sandbox.knobs.lateness[event["id"]] = delay
            if not usable:
                event["data"] = {**event["data"], "updated_at": None, "status": None}
        self.truth[user].append((self.clock.now, self._true_role(user)))

    def _true_role(self, user: str) -> str | None:
        active = [m for m in self.world.memberships.values() if m["user_id"] == user and m["status"] == "active"]
        return self.world.show_membership(active[0]["id"])["role"]["slug"] if active else None

    @rule(seconds=st.sampled_from([1, 1, 4, 5, 10, 20, 40, 400]))
    def time_passes(self, seconds: int) -> None:
        pass_time(self.engine, self.clock, seconds)

    @rule(
        status=st.sampled_from([0, 429, 503]),
        times=st.sampled_from([1, 4, None]),
        path=st.sampled_from(["/events", ""]),
    )
    def an_outage_begins(self, status: int, times: int | None, path: str) -> None:
        self.sandbox.faults.fail(path or ".*", status=status, times=times)

    @rule(type=st.sampled_from(["organization_membership.updated", "permission.created"]))
    def an_event_type_is_refused(self, type: str) -> None:
        self.sandbox.faults.fail("/events", query=type, status=400, times=None)

    @rule()
    def answers_have_no_time(self) -> None:
        self.sandbox.knobs.dated = False

    @rule()
    def the_outage_ends(self) -> None:
        self.sandbox.faults.clear()
        self.sandbox.knobs.dated = True

    @rule(place=st.integers(0, 20))
    def a_webhook_arrives(self, place: int) -> None:
        if events := self.world.events:
            accept(self.endpoint, events[-1 - place % len(events)])

    # The system

    @rule()
    def tails(self) -> None:
        self.process = self.process or TailProcess(self.engine, self.workos, self.bell)
        try:
            self.process.read()
        except WorkOSError:
            pass
        except DeathError:
            self._tail_ends()

    def _tail_ends(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None

    @rule(batch=st.sampled_from([1, 500]))
    def drains(self, batch: int) -> None:
        apply_all(self.engine, DrainLimits(batch_size=batch))

    @rule()
    def publishes(self) -> None:
        publish_applied(self.engine)

    @rule(times=st.integers(1, 4))
    def all_goes_its_way(self, times: int) -> None:
        for _ in range(times):
            pass_time(self.engine, self.clock, 5)
            self.tails()
            self.drains(500)
            self.publishes()
            self.no_answer_is_older_than_its_bound()

    @rule(
        place=st.integers(0, PEOPLE - 1),
        what=st.sampled_from(["admin", "member", "delete"]),
        delay=st.sampled_from([7, HOLD_BACK]),
        times=st.integers(1, 4),
    )
    def a_change_is_shown_after_others(self, place: int, what: str, delay: int, times: int) -> None:
        self.a_membership_changes(place, what, delay, usable=True)
        self.a_membership_changes((place + 1) % PEOPLE, what, 0, usable=True)
        self.all_goes_its_way(times)

    @rule()
    def catches_up(self) -> None:
        with suppress(WorkOSError, DeathError):
            catch_up(self.engine, self.workos)

    @rule()
    def resyncs(self) -> None:
        with suppress(BusyError, DeathError):
            continue_run(self.engine, self.workos, start(self.engine, by("test")))

    @rule()
    def reads_what_is_uncertain(self) -> None:
        make_reads_due(self.engine)
        left = iter([False] * 5)
        with suppress(DeathError):
            work_due(self.engine, self.workos, lambda: next(left, True))

    @rule(answers=st.integers(1, 4), place=st.integers(0, PEOPLE - 1), what=st.sampled_from(["admin", "delete"]))
    def life_will_go_on_meanwhile(self, answers: int, place: int, what: str) -> None:
        self.planned.append((answers, lambda: self.a_membership_changes(place, what, 0, usable=True)))

    # Invariants after each step

    @invariant()
    def no_answer_is_older_than_its_bound(self) -> None:
        for bound in BOUNDS:
            for user in self.users:
                answer = ask(self.engine, user, self.organization, bound)
                if isinstance(answer, Access):
                    since = self.clock.now - timedelta(seconds=bound)
                    assert answer.complete_to is not None and answer.complete_to >= since
                    assert answer.role in self._roles_since(user, answer.complete_to), (user, answer, self.truth[user])

    def _roles_since(self, user: str, since: datetime) -> set[str | None]:
        """The roles that a person had at some time since then. A change at that very moment may be before or after."""
        history = self.truth[user]
        ends = [at for at, _ in history[1:]] + [self.clock.now]
        return {role for (_, role), end in zip(history, ends, strict=True) if end > since} | {history[-1][1]}

    def _ends(self) -> None:
        self.the_outage_ends()
        self._tail_ends()  # a process tests a refused type only once a minute
        self.planned.clear()
        pass_time(self.engine, self.clock, 60)
        for _ in range(2):
            in_transaction(self.engine, lambda tx: tx.execute(update(Event).values(due_at=db_now_plus(-1))))
            self.all_goes_its_way(2)
            make_reads_due(self.engine)
            work_due(self.engine, self.workos, lambda: False)
        for user in self.users:
            expected = Access(self.truth[user][-1][1], state(self.engine)["complete_to"])
            assert ask(self.engine, user, self.organization, 25) == expected

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            self._tail_ends()


@pytest.mark.long
@pytest.mark.timeout(0)
def test_no_bounded_answer_is_older_than_its_bound(
    both_engines: Engine, endpoint: FlaskClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 5)  # so that so small a world has pages
    run_state_machine_as_test(lambda: Staleness(both_engines, endpoint, redis), settings=SETTINGS)  # type: ignore[arg-type]

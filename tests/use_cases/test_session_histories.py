"""Random lives: people come, go and come back while events are lost or late, calls fail and the worker is killed."""

import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine

from models.tables import Audit
from tests.support import JSON, access, rows
from tests.support.auto_join import apply_events
from tests.support.histories import DeathError
from tests.support.resync import Clock, empty, read_due, resync
from tests.support.sessions import SessionStage, session_stage
from worker.workos_api.calls import Answer
from worker.workos_api.client import WorkOSClient


class Step(NamedTuple):
    """An action, the person and workspace it concerns, and whether WorkOS sends no event of it."""

    what: str
    who: int
    where: int
    silently: bool


class DyingClient(WorkOSClient):
    """A client whose process dies after `answers` answers, before it uses the last one."""

    def __init__(self, inner: WorkOSClient, answers: int) -> None:
        super().__init__(inner._sdk, inner._buckets, inner._count)
        self._answers = answers

    def _once(self, *given: Any, **named: Any) -> Answer:
        answer = super()._once(*given, **named)
        self._answers -= 1
        if self._answers == 0:
            raise DeathError
        return answer


class Life:
    """Two workspaces and their people, and a mirror that learns late, or only by a resync, what happens."""

    STEPS = (
        *("joins", "leaves", "is_deactivated", "is_reactivated", "is_deleted", "closes"),
        *("signs_in", "signs_in_nowhere", "some_events_arrive", "is_resynced"),
        *("works", "works_while_calls_fail", "works_and_dies", "works_and_is_taken_over"),
    )
    WITHOUT_EVENT = ("leaves", "is_deactivated", "is_deleted", "closes")

    def __init__(self, stage: SessionStage) -> None:
        self.stage, self.world, self.dice, self.numbers = stage, stage.world, Random(0), count()
        self.workspaces = [stage.workspace() for _ in range(2)]
        self.people = [self.new_person() for _ in range(2)]
        self.wrong: list[str] = []
        self.revoked = 0
        self.world.subscribe(self.note_revoked)

    def happens(self, step: Step) -> None:
        who, where = self.people[step.who], self.workspaces[step.where]
        act: Callable[[str, str], None] = getattr(self, step.what)
        if step.silently and step.what in self.WITHOUT_EVENT:
            with self.world.silently():
                act(who, where)
        else:
            act(who, where)
        self.people = [id if id in self.world.users else self.new_person() for id in self.people]
        self.workspaces = [id if id in self.world.organizations else self.stage.workspace() for id in self.workspaces]
        self.stage.clock.advance(seconds=2)

    def new_person(self) -> str:
        return str(self.world.create_user(f"p{next(self.numbers)}@acme.example")["id"])

    # WorkOS

    def joins(self, who: str, where: str) -> None:
        if (self.world.membership_of(where, who) or {}).get("status") != "active":
            self.world.create_membership(where, who)

    def leaves(self, who: str, where: str) -> None:
        if mine := self.world.membership_of(where, who):
            self.world.delete_membership(mine["id"])

    def is_deactivated(self, who: str, where: str) -> None:
        if mine := self.world.membership_of(where, who):
            self.world.deactivate_membership(mine["id"])

    def is_reactivated(self, who: str, where: str) -> None:
        if mine := self.world.membership_of(where, who):
            self.world.reactivate_membership(mine["id"])

    def is_deleted(self, who: str, _where: str) -> None:
        self.stage.sandbox.knobs.children_deleted = self.dice.random() < 0.5
        self.world.delete_user(who)

    def closes(self, _who: str, where: str) -> None:
        self.stage.sandbox.knobs.children_deleted = self.dice.random() < 0.5
        self.world.delete_organization(where)

    def signs_in(self, who: str, where: str) -> None:
        if self.has_access(who, where):
            self.stage.sign_in(who, where)

    def signs_in_nowhere(self, who: str, _where: str) -> None:
        self.stage.sign_in(who)

    def has_access(self, who: str, where: str | None) -> bool:
        """Whether WorkOS shows access; to no workspace, whether it has the user."""
        if where is None:
            return who in self.world.users
        return (self.world.membership_of(where, who) or {}).get("status") == "active"

    # The mirror

    def some_events_arrive(self, *_: str) -> None:
        events = self.world.events
        apply_events(self.stage.engine, self.dice.sample(events, self.dice.randint(0, len(events))))

    def is_resynced(self, *_: str) -> None:
        resync(self.stage.engine, self.stage.workos)

    # The worker

    def works(self, *_: str) -> None:
        self.stage.run_worker()

    def works_while_calls_fail(self, *_: str) -> None:
        for status, after_effect in ((429, False), (0, True), (429, False), (0, True)):
            given: JSON = {"status": status, "after_effect": after_effect, "retry_after": 0}
            self.stage.sandbox.faults.fail("/user_management", method=self.dice.choice(["GET", "POST"]), **given)
        self.stage.run_worker()
        self.stage.sandbox.faults.clear()

    def works_and_dies(self, *_: str) -> None:
        workos = self.stage.workos
        self.stage.workos = DyingClient(workos, self.dice.randint(1, 5))
        with suppress(DeathError):
            self.stage.run_worker()
        self.stage.workos = workos

    def works_and_is_taken_over(self, *_: str) -> None:
        """The worker is suspended during a call, until its claim has expired and another worker has worked."""
        left = self.dice.randint(1, 5)

        def take_over(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self.stage.run_worker()

        self.stage.sandbox.on_request = take_over
        self.stage.run_worker()
        self.stage.sandbox.on_request = None

    def note_revoked(self, event: JSON) -> None:
        """Check a session that is being revoked."""
        if event["event"] == "session.revoked":
            self.revoked += 1
            session = event["data"]
            who, where = session["user_id"], session["organization_id"]
            mirrored = where is None or (where, who) in {pair[:2] for pair in access(self.stage.engine)}
            if mirrored and self.has_access(who, where):
                self.wrong.append(f"{session['id']} was revoked although {who} has access to {where}")


HISTORIES = st.lists(
    st.builds(Step, st.sampled_from(Life.STEPS), st.integers(0, 1), st.integers(0, 1), st.booleans()),
    min_size=5,
    max_size=30,
)
EXAMPLES = int(os.environ.get("SESSION_EXAMPLES", "5"))


@pytest.mark.long
@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=HISTORIES)
def test_sessions_end_with_access_and_only_then(both_engines: Engine, redis: Redis, history: list[Step]) -> None:
    empty(both_engines, Clock())
    with session_stage(both_engines, redis) as stage:
        life = Life(stage)
        for step in history:
            life.happens(step)
            assert not life.wrong
        for _ in range(2):
            apply_events(stage.engine, life.dice.sample(stage.world.events, len(stage.world.events)))
            resync(stage.engine, stage.workos)
            read_due(stage.engine, stage.workos)
            stage.settle()
        assert not life.wrong
        audited = [row for row in rows(stage.engine, Audit) if row["action"] == "revoke_sessions"]
        assert sum(row["details"]["sessions"] for row in audited) >= life.revoked
        survivors = [stage.world.sessions[id] for id in sorted(stage.active())]
        assert [s for s in survivors if not life.has_access(s["user_id"], s["organization_id"])] == []

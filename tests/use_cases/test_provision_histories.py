"""Random histories of people who come and go while webhooks are lost, calls fail and the worker stops."""

import os
from contextlib import suppress
from datetime import datetime
from random import Random
from typing import Any, NamedTuple

import pytest
from freezegun import freeze_time
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import JSON
from tests.support.auto_join import (
    LAG,
    Stage,
    apply_events,
    auto_join_answer,
    company,
)
from tests.support.resync import MEMBERSHIPS, Between
from worker.errors import WorkOSError

WINDOW_SECONDS = LAG.total_seconds() + 12
"""A removal younger than this may be unknown at the create (docs/guarantees.md, Not promised)."""


class Step(NamedTuple):
    """An action, the person it concerns, and the seconds that pass afterwards."""

    what: str
    who: int
    seconds: int


class Life:
    """A company whose people come and go while webhooks are lost, calls fail and the worker stops."""

    STEPS = (
        *("works", "works_while_looks_fail", "works_while_creates_fail", "works_and_loses_the_answer"),
        *("works_and_is_stopped", "works_and_wakes_an_inactive_one"),
        *("hears_some", "time_passes", "is_added", "is_removed", "comes_and_goes", "is_deactivated"),
        *("verifies", "signs_up", "is_renamed", "moves", "is_deleted", "is_deleted_and_created_again"),
    )

    def __init__(self, stage: Stage, frozen: Any) -> None:
        self.stage, self.world, self.frozen, self.dice = stage, stage.world, frozen, Random(0)
        self.world.random = Random(0)  # so that a history is always the same
        self.time_passes("")  # the events API is read from here on
        self.host = f"d{len(self.world.organizations)}.example"
        self.events_from = len(self.world.events)
        self.org = company(self.world, self.host)
        self.addresses: dict[str, set[str]] = {}
        """Person → all current and former addresses."""
        self.out: dict[str, datetime] = {}
        """Person → time of the removal or deactivation that has not been undone."""
        self.people = [self.created(f"p{number}@{self.host}", verified=number > 0) for number in range(3)]
        self.hidden: set[str] = set()
        """People who were deactivated without an event."""
        self.wrong: list[str] = []
        self.by_worker = False
        self.world.subscribe(self.watch)
        self.time_passes("")  # everyone with a verified address should join

    def watch(self, event: JSON) -> None:
        """Record a membership that the worker created although it could know of a removal."""
        data = event["data"]
        if not self.by_worker or event["event"] != "organization_membership.created":
            return
        if data["organization_id"] == self.org and (barred := self.barred(data["user_id"])):
            if (self.world.now() - barred).total_seconds() > WINDOW_SECONDS:
                self.wrong.append(data["user_id"])
            else:
                self.out.pop(data["user_id"], None)  # within the window: not promised

    def barred(self, who: str) -> datetime | None:
        """The time of the last removal of a person, or of anyone who shares an address with them."""
        return max((at for other, at in self.out.items() if self.same(who, other)), default=None)

    def same(self, one: str, other: str) -> bool:
        """Whether two users are the same, or share an address."""
        return bool(self.addresses[one] & self.addresses[other])

    def happens(self, step: Step) -> None:
        getattr(self, step.what)(self.people[step.who % len(self.people)])
        self.passes(step.seconds)

    def passes(self, seconds: float) -> None:
        self.stage.clock.advance(seconds=seconds)
        self.frozen.tick(seconds)

    def created(self, email: str, *, verified: bool) -> str:
        id = str(self.world.create_user(email, email_verified=verified)["id"])
        self.addresses[id] = {email}
        return id

    # The worker

    def works(self, _who: str) -> None:
        self.by_worker = True
        with suppress(WorkOSError):
            self.stage.run_worker()
        self.by_worker = False
        self.stage.sandbox.faults.clear()

    def works_while_looks_fail(self, who: str) -> None:
        status = self.dice.choice([0, 429, 500])
        self.stage.sandbox.faults.fail(MEMBERSHIPS, method="GET", status=status, times=None)
        self.works(who)

    def works_while_creates_fail(self, who: str) -> None:
        self.stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=self.dice.choice([0, 429, 500]))
        self.works(who)

    def works_and_loses_the_answer(self, who: str) -> None:
        status = self.dice.choice([0, 500])
        self.stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=status, times=None, after_effect=True)
        self.works(who)

    def works_and_is_stopped(self, who: str) -> None:
        """The process pauses for a minute between check and create; meanwhile someone is added and removed."""

        def stop(path: str) -> None:
            if path.endswith("organization_memberships"):
                self.by_worker = False
                self.comes_and_goes(who)
                self.passes(60)
                self.by_worker = True

        workos = self.stage.workos
        self.stage.workos = Between(workos, stop)
        self.works(who)
        self.stage.workos = workos

    def works_and_wakes_an_inactive_one(self, who: str) -> None:
        """Neither mirror nor listing shows an old deactivation, and the answer to the create is lost."""
        if self.world.membership_of(self.org, who) is None:
            with self.world.silently():
                membership = self.world.create_membership(self.org, who)["id"]
                self.world.deactivate_membership(membership)
                old = {"created_at": "2020-01-01T00:00:00.000Z"}
                self.world.memberships[membership] = {**self.world.memberships[membership], **old}
            self.hidden.add(who)
        self.stage.sandbox.faults.empty(MEMBERSHIPS, times=None)
        self.works_and_loses_the_answer(who)

    # The mirror

    def hears_some(self, _who: str) -> None:
        events = self.world.events[self.events_from :]
        apply_events(self.stage.engine, self.dice.sample(events, self.dice.randint(0, len(events))))

    def time_passes(self, _who: str) -> None:
        self.frozen.tick(10)
        self.stage.let_time_pass()

    # WorkOS

    def is_added(self, who: str) -> None:
        mine = self.world.membership_of(self.org, who)
        if mine is None or mine["status"] == "inactive":
            self.world.create_membership(self.org, who)
            self.out.pop(who, None)
            self.hidden.discard(who)

    def is_removed(self, who: str) -> None:
        if mine := self.world.membership_of(self.org, who):
            self.world.delete_membership(mine["id"])
            self.out[who] = self.world.now()

    def comes_and_goes(self, who: str) -> None:
        self.is_added(who)
        self.is_removed(who)

    def is_deactivated(self, who: str) -> None:
        mine = self.world.membership_of(self.org, who)
        if mine and mine["status"] != "inactive":  # otherwise nothing happens, and no event says so
            self.world.deactivate_membership(mine["id"])
            self.out[who] = self.world.now()

    def verifies(self, who: str) -> None:
        self.world.update_user(who, email_verified=True)

    def signs_up(self, _who: str) -> None:
        self.people.append(self.created(f"p{len(self.addresses)}@{self.host}", verified=True))

    def is_renamed(self, who: str) -> None:
        self.world.update_user(who, first_name="Ann")

    def moves(self, who: str) -> None:
        """The person's address changes, and a new person gets the old one."""
        email = f"p{len(self.addresses)}-moved@{self.host}"
        if email not in set().union(*self.addresses.values()):
            old = self.world.users[who]["email"]
            self.world.update_user(who, email=email)
            self.addresses[who].add(email)
            self.people.append(self.created(old, verified=True))

    def is_deleted(self, who: str) -> None:
        """If the membership's delete event comes before the user's, the deletion counts as a removal."""
        mine = self.world.membership_of(self.org, who)
        gone = self.world.delete_user(who)
        types = [event["event"] for event in self.world.events if event["data"]["id"] in (who, (mine or {}).get("id"))]
        if mine and (mine["status"] != "active" or types[-1] == "user.deleted"):
            self.out[who] = self.world.now()
        self.people.remove(who)
        self.people.append(self.created(f"p{len(self.addresses)}@{self.host}", verified=False))
        self.vacant = gone["email"]

    def is_deleted_and_created_again(self, who: str) -> None:
        self.is_deleted(who)
        self.people.append(self.created(self.vacant, verified=True))

    def inside(self) -> set[str]:
        """The active members in WorkOS."""
        here = [m for m in self.world.memberships.values() if m["organization_id"] == self.org]
        return {m["user_id"] for m in here if m["status"] == "active"}


SECONDS = st.sampled_from([60, 0, 1])


def histories(some: set[str]) -> st.SearchStrategy[list[Step]]:
    """Histories of these steps and of the steps that every join needs. Few kinds of steps make deeper histories."""
    what = st.sampled_from([*sorted(some - {"works", "time_passes"}), "works", "time_passes", "works"])
    return st.lists(st.builds(Step, what, st.integers(0, 2), SECONDS), min_size=4, max_size=20)


def history_of(*steps: str) -> list[Step]:
    """These steps of one person, with a minute after each removal."""
    return [Step(what, 1, 60 if what in ("comes_and_goes", "is_removed") else 0) for what in steps]


KNOWN = ("works", "time_passes")
"""After these steps, the person's join is ready."""
LATE = history_of(*KNOWN, "comes_and_goes", "works")
STOPPED = history_of(*KNOWN, "works_and_is_stopped")
WOKEN = history_of(*KNOWN, "works_and_wakes_an_inactive_one")
RECREATED = history_of("is_added", "is_removed", "is_deleted_and_created_again")
HISTORIES = st.sets(st.sampled_from(Life.STEPS), max_size=5).flatmap(histories)
EXAMPLES = int(os.environ.get("PROVISION_EXAMPLES", "7"))


@pytest.mark.long
@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@example(history=LATE)
@example(history=STOPPED)
@example(history=WOKEN)
@example(history=RECREATED)
@given(history=HISTORIES)
def test_removed_person_is_never_added_again(both_stages: Stage, history: list[Step]) -> None:
    stage = both_stages
    with freeze_time() as frozen:
        life = Life(stage, frozen)
        for step in history:
            life.happens(step)
            assert not life.wrong
        life.by_worker = True
        for _ in range(2):
            stage.settle()
        assert not life.wrong
        assert not (life.out.keys() | life.hidden) & life.inside(), "deactivated people stay deactivated"
        verified = {id for id in life.people if stage.world.users[id]["email_verified"]}
        hidden = {id for id in verified if any(life.same(id, other) for other in life.hidden)}
        right = {id for id in verified - hidden if not life.barred(id)}
        assert right <= life.inside(), "everyone who is eligible is a member"
        for id in life.people:
            offered = auto_join_answer(stage.engine, stage.world.users[id]["email"])
            assert offered is None or not life.barred(id), "the host admits nobody who was removed"

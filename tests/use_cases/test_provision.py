"""AUTO_JOIN=provision: whom WorkOS is asked to make a member, and whom never."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import permutations
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine, insert, update

from models.database import write
from models.tables import Change, Event, Join, Mirror
from tests.sandbox import Sandbox
from tests.support import rows
from tests.use_cases.joining import (
    Stage,
    answer,
    company,
    is_filled,
    join_of,
    joins_of,
    members_at_workos,
    posts,
    put_in_force,
    sign_up,
    tell,
)
from tests.use_cases.resyncs import Clock, resync
from worker.directory.client import Directory
from worker.errors import ConfigurationError
from worker.mirror import admission
from worker.repair.catch_up import settle
from worker.repair.replay import dismiss


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.now = datetime.now(UTC).replace(microsecond=0)
    return clock


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(seed=7, clock=clock) as running:
        yield running


@pytest.fixture
def stage(one_engine: Engine, sandbox: Sandbox, clock: Clock, directory: Directory, redis: Redis) -> Stage:
    put_in_force(one_engine)
    is_filled(one_engine)
    return Stage(one_engine, sandbox, clock, directory, redis)


def test_a_sign_up_on_a_verified_domain_becomes_a_member(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    other = sign_up(stage.world, "bob@elsewhere.example")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert joins_of(stage.engine) == {user: "joined"}
    assert other not in joins_of(stage.engine)
    assert join_of(stage.engine, user)["membership_id"] in stage.world.memberships


def test_an_address_that_is_verified_later_joins_then(stage: Stage) -> None:
    org = company(stage.world)
    user = stage.world.create_user("ann@acme.example", email_verified=False)["id"]
    stage.settles()
    assert members_at_workos(stage.world) == {}
    stage.world.update_user(user, email_verified=True)
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_a_change_to_an_address_on_the_domain_joins(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world, "ann@elsewhere.example")
    stage.settles()
    stage.world.update_user(user, email="Ann@ACME.example")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_nothing_is_created_before_all_events_up_to_then_are_applied(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.hears()
    for _ in range(3):
        stage.works()
    assert members_at_workos(stage.world) == {} and joins_of(stage.engine) == {user: "pending"}
    assert {path for _, path in stage.sandbox.calls} == {"/organizations"}, "WorkOS's time is all that was asked for"


def test_whoever_waits_has_the_events_read_as_soon_as_they_can_tell(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.hears()
    for _ in range(4):
        stage.works()
        settle(stage.engine)
        stage.clock.goes_on(seconds=2)
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


REMOVALS = {
    "removed": lambda world, membership: world.delete_membership(membership),
    "deactivated": lambda world, membership: world.deactivate_membership(membership),
}


@pytest.mark.parametrize("how", REMOVALS)
@pytest.mark.parametrize("known", [True, False], ids=["told before", "told late"])
def test_whoever_was_removed_or_deactivated_is_never_put_back(stage: Stage, how: str, known: bool) -> None:
    world = stage.world
    org = company(world)
    user = world.create_user("ann@acme.example", email_verified=False)["id"]
    membership = world.create_membership(org, user)["id"]
    if known:
        stage.hears()
    REMOVALS[how](world, membership)
    before = members_at_workos(world)
    world.update_user(user, email_verified=True)
    stage.settles()
    assert members_at_workos(world) == before
    assert (join_of(stage.engine, user)["state"], join_of(stage.engine, user)["reason"]) == ("blocked", how)
    assert answer(stage.engine, "ann@acme.example") is None


def test_whoever_is_invited_is_left_to_accept(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.world.create_membership(org, user, status="pending")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["pending"]}
    assert join_of(stage.engine, user)["reason"] == "invited"
    assert answer(stage.engine, "ann@acme.example") is None


def test_a_member_already_is_left_alone(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.world.create_membership(org, user, role="admin")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert [m["role"]["slug"] for m in stage.world.memberships.values()] == ["admin"]
    assert posts(stage.sandbox) == 0


@pytest.mark.parametrize("status", [0, 500, 503])
def test_an_answer_that_is_lost_is_no_failure(stage: Stage, status: int) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(
        "/user_management/organization_memberships", method="POST", status=status, after_effect=True
    )
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert posts(stage.sandbox) == 1 and join_of(stage.engine, user)["state"] == "joined"


def test_a_create_whose_answer_was_lost_and_whose_person_was_removed_since_is_not_repeated(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.sandbox.faults.fail("/user_management/organization_memberships", method="POST", status=0, after_effect=True)
    stage.hears()
    stage.works()
    stage.time_passes()
    stage.works()
    assert members_at_workos(world) == {(org, user): ["active"]}
    stage.clock.goes_on(seconds=1)
    world.delete_membership(next(iter(world.memberships)))
    for _ in range(3):
        stage.works()  # no event of it has come yet
    assert members_at_workos(world) == {} and posts(stage.sandbox) == 1
    stage.settles()
    assert members_at_workos(world) == {} and posts(stage.sandbox) == 1
    assert (join_of(stage.engine, user)["state"], join_of(stage.engine, user)["reason"]) == ("blocked", "removed")


@pytest.mark.parametrize("status", [429, 500, 0])
def test_what_fails_for_a_while_is_tried_again(stage: Stage, status: int) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail("/user_management/organization_memberships", method="POST", status=status, times=3)
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert posts(stage.sandbox) == 4


def test_what_was_inactive_and_got_activated_is_deactivated_again_and_alarmed(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    hidden: list[str] = []

    def appears(method: str, path: str, _query: object) -> None:
        """What WorkOS's listing did not show, for a moment, is there when the create comes."""
        if method == "POST" and path.endswith("organization_memberships") and not hidden:
            with world.silently():
                membership = world.create_membership(org, user)
                world.deactivate_membership(membership["id"])
                old = "2020-01-01T00:00:00.000Z"
                world.memberships[membership["id"]] = {**world.memberships[membership["id"]], "created_at": old}
            hidden.append(membership["id"])

    stage.sandbox.on_request = appears
    stage.sandbox.faults.fail(".*/deactivate", method="PUT", status=503)
    stage.settles()
    assert members_at_workos(world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"
    assert answer(stage.engine, "ann@acme.example") is None


def test_a_person_or_workspace_that_is_gone_is_dropped(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.hears()
    stage.world.delete_user(user)
    stage.settles()
    assert joins_of(stage.engine) == {user: "dropped"} and posts(stage.sandbox) == 0


def test_what_workos_refuses_for_good_is_set_aside_with_its_reason(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail("/user_management/organization_memberships", method="POST", status=422, times=None)
    stage.settles()
    row = join_of(stage.engine, user)
    assert row["state"] == "failed" and "422" in row["reason"] and row["attempts"] == 8


def test_a_failed_event_about_a_membership_holds_back_whom_it_names(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    membership = world.create_membership(org, user)["id"]
    world.delete_membership(membership)
    with world.lock:
        for event in world.events:
            if event["event"].startswith("organization_membership"):
                event["data"] = {name: value for name, value in event["data"].items() if name != "id"}
    stage.settles()
    assert {row["status"] for row in rows(stage.engine, Event) if row["type"].startswith("organization_mem")} == {
        "failed"
    }
    assert members_at_workos(world) == {} and joins_of(stage.engine) == {user: "pending"}


def test_a_failed_event_about_a_membership_whose_payload_was_erased_holds_everybody_back(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    gone = {"id": "event_gone", "type": "organization_membership.deleted", "status": "failed", "source": "webhook"}
    write(stage.engine, lambda tx: tx.execute(insert(Event).values(gone)))
    stage.settles()
    assert joins_of(stage.engine) == {user: "pending"}
    assert dismiss(stage.engine, ["event_gone"], "ann", "the person is deleted") == 1
    stage.settles()
    assert joins_of(stage.engine) == {user: "joined"}


@pytest.mark.parametrize("mode", ["off", "mirror"])
def test_other_modes_create_nothing(stage: Stage, mode: str) -> None:
    put_in_force(stage.engine, mode)
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.settles()
    assert members_at_workos(stage.world) == {} and joins_of(stage.engine) == {}
    assert (answer(stage.engine, "new@acme.example") is None) == (mode == "off")
    missing = admission.missing(stage.engine, 10)
    assert [(row["user_id"], row["organization_id"]) for row in missing] == ([(user, org)] if mode == "mirror" else [])


def test_a_mode_that_was_left_drops_what_waits(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.hears()
    put_in_force(stage.engine, "mirror")
    stage.settles()
    assert join_of(stage.engine, user)["reason"] == "AUTO_JOIN is mirror" and members_at_workos(stage.world) == {}


@pytest.mark.parametrize("existing", [True, False])
def test_those_who_were_there_before_join_only_if_set_so(stage: Stage, existing: bool) -> None:
    put_in_force(stage.engine, existing=existing)
    world = stage.world
    users = [sign_up(world, f"person{n}@acme.example") for n in range(5)]
    stage.settles()
    stage.clock.goes_on(days=1)
    org = company(world)
    stage.settles()
    expected = {(org, user): ["active"] for user in users} if existing else {}
    assert members_at_workos(world) == expected


def test_what_a_first_resync_finds_is_no_sign_up(stage: Stage) -> None:
    write(stage.engine, lambda tx: tx.execute(update(Mirror).values(backfilled_at=None)))
    company(stage.world)
    sign_up(stage.world)
    stage.clock.goes_on(days=2)
    write(stage.engine, lambda tx: tx.execute(update(Mirror).values(backfill_from=stage.clock())))
    resync(stage.engine, stage.directory)
    stage.works()
    assert joins_of(stage.engine) == {} and members_at_workos(stage.world) == {}


@pytest.mark.parametrize("order", list(permutations(("organization", "organization_domain", "user"))), ids=", ".join)
def test_in_whatever_order_workspace_domain_and_person_are_told_of(stage: Stage, order: tuple[str, ...]) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    for what in order:
        tell(stage.engine, [event for event in stage.world.events if event["event"].startswith(f"{what}.")])
        stage.works()
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_a_workspace_has_a_switch_and_a_default_role_of_its_own(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    stage.settles()
    admission.set_workspace(stage.engine, org, "ann", "a contractor's domain", auto_join=False, default_role="admin")
    first = sign_up(world, "first@acme.example")
    stage.settles()
    assert joins_of(stage.engine) == {} and answer(stage.engine, "first@acme.example") is None
    admission.set_workspace(stage.engine, org, "bob", "agreed with them", auto_join=True)
    second = sign_up(world, "second@acme.example")
    stage.settles()
    assert members_at_workos(world) == {(org, second): ["active"]}
    assert [m["role"]["slug"] for m in world.memberships.values()] == ["admin"]
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "workspace_settings"]
    assert [(row["cause"], row["cause_id"], row["after"]["why"]) for row in noted] == [
        ("operator", "ann", "a contractor's domain"),
        ("operator", "bob", "agreed with them"),
    ]
    assert [row["user_id"] for row in admission.missing(stage.engine, 10)] == [first]


@pytest.mark.parametrize("how", REMOVALS)
def test_an_operator_lifts_a_block_and_a_later_removal_blocks_anew(stage: Stage, how: str) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.settles()
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settles()
    assert "active" not in members_at_workos(world).get((org, user), [])
    assert admission.lift(stage.engine, org, user, "ann", "hired again") == [how]
    stage.settles()
    assert members_at_workos(world) == {(org, user): ["active"]}
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settles()
    left = members_at_workos(world)
    world.update_user(user, email="ann2@acme.example")
    stage.settles()
    assert members_at_workos(world) == left
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "join"]
    assert [(row["cause_id"], row["after"]) for row in noted] == [("ann", {"state": "lifted", "why": "hired again"})]


def test_what_is_not_blocked_cannot_be_lifted(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.settles()
    with pytest.raises(ConfigurationError, match="nothing keeps"):
        admission.lift(stage.engine, org, user, "ann", "why not")


def test_an_operator_keeps_someone_out(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = world.create_user("ann@acme.example", email_verified=False)["id"]
    stage.settles()
    admission.block(stage.engine, org, user, "bob", "a test account")
    world.update_user(user, email_verified=True)
    stage.settles()
    assert members_at_workos(world) == {}
    assert join_of(stage.engine, user)["reason"] == "by bob: a test account"
    assert answer(stage.engine, "ann@acme.example") is None and admission.missing(stage.engine, 10) == []


def test_nothing_is_asked_of_workos_within_a_transaction(stage: Stage) -> None:
    """While WorkOS is asked, another connection writes: on SQLite any open writer would hold it up."""
    company(stage.world)
    user = sign_up(stage.world)
    waits: list[bool] = []

    def write_meanwhile(method: str, path: str, _query: object) -> None:
        if "organization_memberships" in path:
            with stage.engine.begin() as tx:
                tx.execute(update(Join).values(domain="acme.example"))
            waits.append(True)

    stage.sandbox.on_request = write_meanwhile
    stage.settles()
    assert joins_of(stage.engine) == {user: "joined"} and len(waits) == 2


def test_a_world_that_empties_is_no_reason_to_put_anyone_back(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    users = [sign_up(world, f"person{n}@acme.example") for n in range(3)]
    stage.settles()
    for membership in list(world.memberships):
        world.delete_membership(membership)
    for user in users:
        world.update_user(user, first_name="Ann")
    stage.settles()
    assert members_at_workos(world) == {}
    assert [answer(stage.engine, f"person{n}@acme.example") for n in range(3)] == [None] * 3
    assert answer(stage.engine, "new@acme.example") == (org, "member")


# In any order


class Life:
    """A company whose people come and go in WorkOS, while events arrive in any order or not yet, and calls fail."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.world, self.dice = stage, stage.world, Random(seed)
        self.host = f"d{len(self.world.organizations)}.example"
        self.told_from = len(self.world.events)
        self.org = company(self.world, self.host)
        self.people = [self.joins(verified=False) for _ in range(3)]
        self.out: set[str] = set()
        """Whom WorkOS's own users removed or deactivated, and did not take back."""

    def joins(self, *, verified: bool) -> str:
        email = f"p{len(self.world.users)}@{self.host}"
        return str(self.world.create_user(email, email_verified=verified)["id"])

    def hears_some(self, _who: str) -> None:
        events = self.world.events[self.told_from :]
        tell(self.stage.engine, self.dice.sample(events, self.dice.randint(0, min(8, len(events)))))

    def works(self, _who: str) -> None:
        if self.dice.random() < 0.5:
            status, done = self.dice.choice([0, 429, 500]), self.dice.random() < 0.5
            path = "/user_management/organization_memberships"
            self.stage.sandbox.faults.fail(path, method="POST", status=status, after_effect=done and status != 429)
        self.stage.works()
        self.stage.sandbox.faults.clear()

    def time_passes(self, _who: str) -> None:
        self.stage.time_passes()

    def adds(self, who: str) -> None:
        if self.world.membership_of(self.org, who) is None:
            self.world.create_membership(self.org, who)
            self.out.discard(who)

    def removes(self, who: str) -> None:
        if mine := self.world.membership_of(self.org, who):
            self.world.delete_membership(mine["id"])
            self.out.add(who)

    def deactivates(self, who: str) -> None:
        if mine := self.world.membership_of(self.org, who):
            self.world.deactivate_membership(mine["id"])
            self.out.add(who)

    def verifies(self, who: str) -> None:
        self.world.update_user(who, email_verified=True)

    def signs_up(self, _who: str) -> None:
        self.people.append(self.joins(verified=True))

    def is_renamed(self, who: str) -> None:
        self.world.update_user(who, first_name="Ann")

    def goes_on(self) -> None:
        """One step; then a second may have passed."""
        steps = (
            *(self.hears_some, self.works, self.works, self.time_passes, self.adds, self.removes),
            *(self.deactivates, self.verifies, self.verifies, self.signs_up, self.is_renamed),
        )
        self.dice.choice(steps)(self.dice.choice(self.people))
        self.stage.clock.goes_on(seconds=self.dice.choice([0, 1]))

    def inside(self) -> set[str]:
        """The active members, at WorkOS."""
        here = [m for m in self.world.memberships.values() if m["organization_id"] == self.org]
        return {m["user_id"] for m in here if m["status"] == "active"}


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), steps=st.integers(4, 25))
def test_whatever_happens_in_between_a_removed_person_is_never_put_back(stage: Stage, seed: int, steps: int) -> None:
    life = Life(stage, seed)
    for _ in range(steps):
        life.goes_on()
        assert not life.out & life.inside()
    stage.settles()
    stage.settles()
    assert not life.out & life.inside()
    verified = {id for id in life.people if stage.world.users[id]["email_verified"]}
    assert verified - life.out <= life.inside(), "and whoever is right is in"

"""AUTO_JOIN=provision: whom WorkOS is asked to make a member, and whom never."""

import os
from contextlib import suppress
from datetime import datetime
from itertools import permutations
from random import Random
from typing import Any, NamedTuple

import pytest
from freezegun import freeze_time
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, update

from models.database import in_transaction
from models.tables import Base, Change, Event, Join, Mirror, UserAddress
from models.views import auto_join_blocks
from tests.support import JSON, rows
from tests.support.auto_join import (
    LAG,
    Stage,
    answer,
    company,
    join_of,
    joins_of,
    members_at_workos,
    posts,
    put_in_force,
    sign_up,
    tell,
)
from tests.support.resync import CLIENT_ID, Between, resync
from worker.errors import OperatorError, WorkOSUnavailableError
from worker.mirror import auto_join_policy, erasure, retention
from worker.repair.catch_up import update_complete_to
from worker.repair.replay import dismiss
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import open_client

MEMBERSHIPS = "/user_management/organization_memberships"


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
        update_complete_to(stage.engine)
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
    in_transaction(stage.engine, lambda tx: tx.execute(insert(Event).values(gone)))
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
    missing = auto_join_policy.missing_members(stage.engine, 10)
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
    in_transaction(stage.engine, lambda tx: tx.execute(update(Mirror).values(backfilled_at=None)))
    company(stage.world)
    sign_up(stage.world)
    stage.clock.goes_on(days=2)
    in_transaction(stage.engine, lambda tx: tx.execute(update(Mirror).values(backfill_from=stage.clock())))
    resync(stage.engine, stage.workos)
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
    auto_join_policy.set_workspace(
        stage.engine, org, "ann", "a contractor's domain", auto_join=False, default_role="admin"
    )
    first = sign_up(world, "first@acme.example")
    stage.settles()
    assert joins_of(stage.engine) == {} and answer(stage.engine, "first@acme.example") is None
    auto_join_policy.set_workspace(stage.engine, org, "bob", "agreed with them", auto_join=True)
    second = sign_up(world, "second@acme.example")
    stage.settles()
    assert members_at_workos(world) == {(org, second): ["active"]}
    assert [m["role"]["slug"] for m in world.memberships.values()] == ["admin"]
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "workspace_settings"]
    assert [(row["cause"], row["cause_id"], row["after"]["why"]) for row in noted] == [
        ("operator", "ann", "a contractor's domain"),
        ("operator", "bob", "agreed with them"),
    ]
    assert [row["user_id"] for row in auto_join_policy.missing_members(stage.engine, 10)] == [first]


@pytest.mark.parametrize("how", REMOVALS)
def test_an_operator_unblocks_someone_and_a_later_removal_blocks_again(stage: Stage, how: str) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.settles()
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settles()
    assert "active" not in members_at_workos(world).get((org, user), [])
    assert auto_join_policy.unblock(stage.engine, org, user, "ann", "hired again") == [how]
    stage.settles()
    assert members_at_workos(world) == {(org, user): ["active"]}
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settles()
    left = members_at_workos(world)
    world.update_user(user, email="ann2@acme.example")
    stage.settles()
    assert members_at_workos(world) == left
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "join"]
    after = {"state": "unblocked", "reasons": [how], "why": "hired again"}
    assert [(row["cause_id"], row["after"]) for row in noted] == [("ann", after)]


def test_what_is_not_blocked_cannot_be_unblocked(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.settles()
    with pytest.raises(OperatorError, match="nothing blocks"):
        auto_join_policy.unblock(stage.engine, org, user, "ann", "why not")


def test_an_operator_keeps_someone_out(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = world.create_user("ann@acme.example", email_verified=False)["id"]
    stage.settles()
    auto_join_policy.block(stage.engine, org, user, "bob", "a test account")
    world.update_user(user, email_verified=True)
    stage.settles()
    assert members_at_workos(world) == {}
    assert join_of(stage.engine, user)["reason"] == "by bob: a test account"
    assert answer(stage.engine, "ann@acme.example") is None and auto_join_policy.missing_members(stage.engine, 10) == []


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


# Fresh at the create


def ready(stage: Stage) -> tuple[str, str]:
    """A sign-up whose join may be made: all is known up to now. Returns the workspace and the person."""
    org, user = company(stage.world), sign_up(stage.world)
    stage.hears()
    stage.works()
    stage.time_passes()
    return org, user


def comes_and_goes(stage: Stage, org: str, user: str) -> None:
    """Someone is made a member and removed again, a minute before anything else happens; no webhook tells of it."""
    stage.world.delete_membership(stage.world.create_membership(org, user)["id"])
    stage.clock.goes_on(seconds=60)


@pytest.mark.parametrize("status", [429, 500, 0])
def test_a_look_that_fails_keeps_nothing_of_what_was_known_before_it(stage: Stage, status: int) -> None:
    org, user = ready(stage)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="GET", status=status, times=None)
    stage.works()
    assert join_of(stage.engine, user)["complete_from"] is None
    stage.sandbox.faults.clear()
    comes_and_goes(stage, org, user)
    stage.works()
    assert posts(stage.sandbox) == 0
    stage.settles()
    assert posts(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_a_join_that_is_carried_out_late_asks_for_what_happened_meanwhile(stage: Stage) -> None:
    org, user = ready(stage)
    comes_and_goes(stage, org, user)
    stage.works()
    assert posts(stage.sandbox) == 0 and joins_of(stage.engine) == {user: "pending"}
    stage.settles()
    assert posts(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_a_process_that_is_stopped_between_look_and_create_does_not_create(stage: Stage) -> None:
    org, user = ready(stage)
    with freeze_time() as frozen:

        def stop(path: str) -> None:
            if path.endswith("organization_memberships"):
                comes_and_goes(stage, org, user)
                frozen.tick(60)

        workos, stage.workos = stage.workos, Between(stage.workos, stop)
        stage.works()
    assert posts(stage.sandbox) == 0
    stage.workos = workos
    stage.settles()
    assert posts(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_a_create_that_waits_too_long_for_the_rate_limits_is_not_sent(stage: Stage) -> None:
    org, user = ready(stage)
    with freeze_time() as frozen:

        def wait(_seconds: float) -> None:
            frozen.tick(60)

        slow = Buckets(stage.redis, 0.01, wait)
        stage.workos = open_client(stage.sandbox.api_key, CLIENT_ID, stage.sandbox.base_url, slow)
        stage.works()
        stage.workos.close()
    assert posts(stage.sandbox) == 0 and members_at_workos(stage.world) == {}
    assert "too late" in join_of(stage.engine, user)["error"] and org


# An inactive membership that a create activates


def wake(stage: Stage) -> tuple[str, str]:
    """An inactive membership that neither mirror nor look shows; a create activates it and its answer is lost."""
    org, user = ready(stage)
    with stage.world.silently():
        membership = stage.world.create_membership(org, user)["id"]
        stage.world.deactivate_membership(membership)
        old = {"created_at": "2020-01-01T00:00:00.000Z"}
        stage.world.memberships[membership] = {**stage.world.memberships[membership], **old}
    stage.sandbox.faults.empty(MEMBERSHIPS)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=0, after_effect=True)
    stage.works()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    return org, user


@pytest.mark.parametrize("found_by", ["the mirror", "the look"])
def test_what_a_lost_create_activated_is_deactivated_again_however_it_is_found(stage: Stage, found_by: str) -> None:
    org, user = wake(stage)
    if found_by == "the mirror":
        stage.hears()
    stage.works()
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"
    assert answer(stage.engine, "ann@acme.example") is None


def test_a_mode_that_is_left_before_the_answer_still_undoes(stage: Stage) -> None:
    org, user = wake(stage)
    put_in_force(stage.engine, "mirror")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"


# One person, several ids and addresses


def was_removed(stage: Stage) -> tuple[str, str]:
    """A person who joined and was removed; returns the workspace and the person."""
    org, user = company(stage.world), sign_up(stage.world)
    stage.settles()
    stage.clock.goes_on(seconds=10)
    stage.world.delete_membership(next(iter(stage.world.memberships)))
    stage.clock.goes_on(seconds=10)
    return org, user


def is_kept_out(stage: Stage, org: str, user: str) -> None:
    """The worker, the view, the contract and the list of who is missing say the same."""
    stage.settles()
    assert (org, user) not in members_at_workos(stage.world)
    assert joins_of(stage.engine).get(user) != "pending"
    assert user in {row["user_id"] for row in rows(stage.engine, auto_join_blocks) if row["organization_id"] == org}
    assert answer(stage.engine, stage.world.users[user]["email"]) is None
    assert user not in {row["user_id"] for row in auto_join_policy.missing_members(stage.engine, 10)}


def test_a_removed_person_who_is_deleted_and_created_again_is_kept_out(stage: Stage) -> None:
    org, user = was_removed(stage)
    stage.world.delete_user(user)
    is_kept_out(stage, org, sign_up(stage.world, "ANN@acme.example"))
    assert answer(stage.engine, "new@acme.example") == (org, "member")


def test_who_takes_the_former_address_of_a_removed_person_is_kept_out(stage: Stage) -> None:
    org, user = was_removed(stage)
    stage.world.update_user(user, email="ann@elsewhere.example")
    is_kept_out(stage, org, sign_up(stage.world))
    stage.world.update_user(user, email="ann2@acme.example")
    is_kept_out(stage, org, user)


def test_a_former_address_counts_even_if_its_event_is_told_after_a_later_one(stage: Stage) -> None:
    org, user = was_removed(stage)
    stage.world.update_user(user, email="ann2@acme.example")
    stage.clock.goes_on(seconds=1)
    stage.world.update_user(user, email="ann3@acme.example")
    for event in reversed(stage.world.events):
        tell(stage.engine, [event])
    is_kept_out(stage, org, sign_up(stage.world, "ann2@acme.example"))


def test_a_block_by_address_outlives_the_address(stage: Stage) -> None:
    org, user = was_removed(stage)
    stage.world.delete_user(user)
    stage.hears()
    erasure.forget(stage.engine, user, "ann")
    assert answer(stage.engine, "ann@acme.example") is None
    kept = [
        value for table in Base.metadata.sorted_tables for row in rows(stage.engine, table) for value in row.values()
    ]
    assert not [value for value in kept if "ann@acme.example" in str(value)]
    again = sign_up(stage.world)
    is_kept_out(stage, org, again)
    auto_join_policy.unblock(stage.engine, org, again, "bob", "hired again")
    stage.settles()
    assert members_at_workos(stage.world) == {(org, again): ["active"]}
    retention.retain(stage.engine, retention.Periods())
    assert {row["user_id"] for row in rows(stage.engine, UserAddress)} == {again}, "nothing needs it any longer"


def test_of_an_erased_person_whom_nothing_keeps_out_no_address_is_kept(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world, "ann@elsewhere.example")
    stage.world.delete_user(user)
    stage.hears()
    erasure.forget(stage.engine, user, "ann")
    stage.hears()
    assert rows(stage.engine, UserAddress) == []


@pytest.mark.parametrize("children_deleted", [True, False], ids=["told of the membership", "not told"])
def test_who_was_deleted_as_an_active_member_was_not_removed(stage: Stage, children_deleted: bool) -> None:
    stage.sandbox.knobs.children_deleted = children_deleted
    org, user = company(stage.world), sign_up(stage.world)
    stage.settles()
    stage.clock.goes_on(seconds=10)
    with stage.world.lock:
        stage.world.delete_user(user)
        if children_deleted:  # the person first, as WorkOS tells of an organization
            *_, one, other = stage.world.events
            gone = {event["event"]: event["data"] for event in (one, other)}
            one.update(event="user.deleted", data=gone["user.deleted"])
            other.update(event="organization_membership.deleted", data=gone["organization_membership.deleted"])
    again = sign_up(stage.world)
    stage.settles()
    assert members_at_workos(stage.world) == {(org, again): ["active"]}


def test_who_was_deactivated_and_then_deleted_is_kept_out(stage: Stage) -> None:
    org, user = company(stage.world), sign_up(stage.world)
    stage.settles()
    stage.world.deactivate_membership(next(iter(stage.world.memberships)))
    stage.clock.goes_on(seconds=10)
    stage.world.delete_user(user)
    is_kept_out(stage, org, sign_up(stage.world))


def test_a_failed_event_about_a_membership_holds_back_others_with_the_address(stage: Stage) -> None:
    org, user = company(stage.world), sign_up(stage.world)
    stage.settles()
    stage.clock.goes_on(seconds=10)
    stage.world.delete_membership(next(iter(stage.world.memberships)))
    del stage.world.events[-1]["data"]["id"]
    stage.world.delete_user(user)
    again = sign_up(stage.world)
    stage.settles()
    assert joins_of(stage.engine)[again] == "pending" and members_at_workos(stage.world) == {} and org


# In any order


WINDOW_SECONDS = LAG.total_seconds() + 12
"""A removal younger than this, when the create is made, may be unknown here (docs/guarantees.md, Not promised)."""


class Step(NamedTuple):
    """What happens, to which person, and how many seconds pass afterwards."""

    what: str
    who: int
    seconds: int


class Life:
    """A company whose people come and go in WorkOS, while webhooks are lost, calls fail and the worker stops."""

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
        self.told_from = len(self.world.events)
        self.org = company(self.world, self.host)
        self.addresses: dict[str, set[str]] = {}
        """Person → every address they ever had."""
        self.out: dict[str, datetime] = {}
        """Whom WorkOS's own users removed or deactivated and did not take back, and when."""
        self.people = [self.created(f"p{number}@{self.host}", verified=number > 0) for number in range(3)]
        self.hidden: set[str] = set()
        """Whom WorkOS had deactivated before, without a word."""
        self.wrong: list[str] = []
        self.by_worker = False
        self.world.subscribe(self.watch)
        self.time_passes("")  # whoever is verified is to join

    def watch(self, event: JSON) -> None:
        """Note a membership that the worker created although a removal was old enough to be known."""
        data = event["data"]
        if not self.by_worker or event["event"] != "organization_membership.created":
            return
        if data["organization_id"] == self.org and (barred := self.barred(data["user_id"])):
            if (self.world.now() - barred).total_seconds() > WINDOW_SECONDS:
                self.wrong.append(data["user_id"])
            else:
                self.out.pop(data["user_id"], None)  # within the window: not promised

    def barred(self, who: str) -> datetime | None:
        """When the last removal of a person, or of someone who had one of their addresses, was made."""
        return max((at for other, at in self.out.items() if self.same(who, other)), default=None)

    def same(self, one: str, other: str) -> bool:
        """Whether two users had an address in common, or are one."""
        return bool(self.addresses[one] & self.addresses[other])

    def happens(self, step: Step) -> None:
        getattr(self, step.what)(self.people[step.who % len(self.people)])
        self.passes(step.seconds)

    def passes(self, seconds: float) -> None:
        self.stage.clock.goes_on(seconds=seconds)
        self.frozen.tick(seconds)

    def created(self, email: str, *, verified: bool) -> str:
        id = str(self.world.create_user(email, email_verified=verified)["id"])
        self.addresses[id] = {email}
        return id

    # The worker

    def works(self, _who: str) -> None:
        self.by_worker = True
        with suppress(WorkOSUnavailableError):
            self.stage.works()
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
        """The process stops for a minute after the look; in its first second someone comes and goes."""

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
        """Neither mirror nor look shows that someone was deactivated long ago, and the create's answer is lost."""
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
        events = self.world.events[self.told_from :]
        tell(self.stage.engine, self.dice.sample(events, self.dice.randint(0, len(events))))

    def time_passes(self, _who: str) -> None:
        self.frozen.tick(10)
        self.stage.time_passes()

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
        if mine := self.world.membership_of(self.org, who):
            self.world.deactivate_membership(mine["id"])
            self.out[who] = self.world.now()

    def verifies(self, who: str) -> None:
        self.world.update_user(who, email_verified=True)

    def signs_up(self, _who: str) -> None:
        self.people.append(self.created(f"p{len(self.addresses)}@{self.host}", verified=True))

    def is_renamed(self, who: str) -> None:
        self.world.update_user(who, first_name="Ann")

    def moves(self, who: str) -> None:
        """Their address changes; someone else may get the old one."""
        email = f"p{len(self.addresses)}-moved@{self.host}"
        if email not in set().union(*self.addresses.values()):
            old = self.world.users[who]["email"]
            self.world.update_user(who, email=email)
            self.addresses[who].add(email)
            self.people.append(self.created(old, verified=True))

    def is_deleted(self, who: str) -> None:
        """Whose membership is told to be gone before the person is counts as removed: nothing tells it apart."""
        mine = self.world.membership_of(self.org, who)
        gone = self.world.delete_user(who)
        told = [event["event"] for event in self.world.events if event["data"]["id"] in (who, (mine or {}).get("id"))]
        if mine and (mine["status"] != "active" or told[-1] == "user.deleted"):
            self.out[who] = self.world.now()
        self.people.remove(who)
        self.people.append(self.created(f"p{len(self.addresses)}@{self.host}", verified=False))
        self.vacant = gone["email"]

    def is_deleted_and_created_again(self, who: str) -> None:
        self.is_deleted(who)
        self.people.append(self.created(self.vacant, verified=True))

    def inside(self) -> set[str]:
        """The active members, at WorkOS."""
        here = [m for m in self.world.memberships.values() if m["organization_id"] == self.org]
        return {m["user_id"] for m in here if m["status"] == "active"}


SECONDS = st.sampled_from([60, 0, 1])


def histories(some: set[str]) -> st.SearchStrategy[list[Step]]:
    """Histories of these steps, and of those without which nobody joins: of few kinds, they go deeper."""
    what = st.sampled_from([*sorted(some - {"works", "time_passes"}), "works", "time_passes", "works"])
    return st.lists(st.builds(Step, what, st.integers(0, 2), SECONDS), min_size=4, max_size=20)


def history_of(*steps: str) -> list[Step]:
    """These steps of one person, with a minute after whoever leaves."""
    return [Step(what, 1, 60 if what in ("comes_and_goes", "is_removed") else 0) for what in steps]


KNOWN = ("works", "time_passes")
"""After these the person's join may be made."""
LATE = history_of(*KNOWN, "comes_and_goes", "works")
STOPPED = history_of(*KNOWN, "works_and_is_stopped")
WOKEN = history_of(*KNOWN, "works_and_wakes_an_inactive_one")
RECREATED = history_of("is_added", "is_removed", "is_deleted_and_created_again")
HISTORIES = st.sets(st.sampled_from(Life.STEPS), max_size=5).flatmap(histories)
EXAMPLES = int(os.environ.get("PROVISION_EXAMPLES", "30"))


@pytest.mark.long
@pytest.mark.timeout(0)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@example(history=LATE)
@example(history=STOPPED)
@example(history=WOKEN)
@example(history=RECREATED)
@given(history=HISTORIES)
def test_whatever_happens_in_between_a_removed_person_is_never_put_back(
    both_stages: Stage, history: list[Step]
) -> None:
    stage = both_stages
    with freeze_time() as frozen:
        life = Life(stage, frozen)
        for step in history:
            life.happens(step)
            assert not life.wrong
        life.by_worker = True
        for _ in range(2):
            stage.settles()
        assert not life.wrong
        assert not (life.out.keys() | life.hidden) & life.inside(), "and whoever was deactivated is so again"
        verified = {id for id in life.people if stage.world.users[id]["email_verified"]}
        hidden = {id for id in verified if any(life.same(id, other) for other in life.hidden)}
        right = {id for id in verified - hidden if not life.barred(id)}
        assert right <= life.inside(), "and whoever is right is in"
        for id in life.people:
            told = answer(stage.engine, stage.world.users[id]["email"])
            assert told is None or not life.barred(id), "and the host is told the same"

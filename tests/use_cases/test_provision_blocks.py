"""A person who was removed or deactivated is not added again, under any id or address, until unblocked."""

import pytest
from sqlalchemy import insert

from models.database import in_transaction
from models.tables import Base, Change, Event, UserAddress
from models.views import auto_join_blocks
from tests.support import rows
from tests.support.actors import by
from tests.support.auto_join import (
    Stage,
    apply_events,
    auto_join_answer,
    company,
    join_of,
    joins_of,
    members_at_workos,
    sign_up,
)
from worker.errors import OperatorError
from worker.inbox.dismissal import dismiss
from worker.mirror import auto_join_policy, erasure, retention

REMOVALS = {
    "removed": lambda world, membership: world.delete_membership(membership),
    "deactivated": lambda world, membership: world.deactivate_membership(membership),
}


@pytest.mark.parametrize("how", REMOVALS)
@pytest.mark.parametrize("known", [True, False], ids=["event before", "event late"])
def test_removed_or_deactivated_member_is_not_added_again(stage: Stage, how: str, known: bool) -> None:
    world = stage.world
    org = company(world)
    user = world.create_user("ann@acme.example", email_verified=False)["id"]
    membership = world.create_membership(org, user)["id"]
    if known:
        stage.receive_events()
    REMOVALS[how](world, membership)
    before = members_at_workos(world)
    world.update_user(user, email_verified=True)
    stage.settle()
    assert members_at_workos(world) == before
    assert (join_of(stage.engine, user)["state"], join_of(stage.engine, user)["reason"]) == ("blocked", how)
    assert auto_join_answer(stage.engine, "ann@acme.example") is None


def test_failed_membership_event_delays_its_person(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    membership = world.create_membership(org, user)["id"]
    world.delete_membership(membership)
    with world.lock:
        for event in world.events:
            if event["event"].startswith("organization_membership"):
                event["data"] = {name: value for name, value in event["data"].items() if name != "id"}
    stage.settle()
    assert {row["status"] for row in rows(stage.engine, Event) if row["type"].startswith("organization_mem")} == {
        "failed"
    }
    assert members_at_workos(world) == {} and joins_of(stage.engine) == {user: "pending"}


def test_failed_membership_event_without_payload_delays_everybody(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    gone = {"id": "event_gone", "type": "organization_membership.deleted", "status": "failed", "source": "webhook"}
    in_transaction(stage.engine, lambda tx: tx.execute(insert(Event).values(gone)))
    stage.settle()
    assert joins_of(stage.engine) == {user: "pending"}
    assert dismiss(stage.engine, ["event_gone"], by("ann", "the person is deleted")) == 1
    stage.settle()
    assert joins_of(stage.engine) == {user: "joined"}


@pytest.mark.parametrize("how", REMOVALS)
def test_removal_after_unblock_blocks_again(stage: Stage, how: str) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.settle()
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settle()
    assert "active" not in members_at_workos(world).get((org, user), [])
    assert auto_join_policy.unblock(stage.engine, org, user, by("ann", "hired again")) == [how]
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}
    REMOVALS[how](world, next(iter(world.memberships)))
    stage.settle()
    left = members_at_workos(world)
    world.update_user(user, email="ann2@acme.example")
    stage.settle()
    assert members_at_workos(world) == left
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "join"]
    after = {"state": "unblocked", "reasons": [how], "why": "hired again"}
    assert [(row["cause_id"], row["after"]) for row in noted] == [("ann", after)]


def test_unblocking_requires_a_block(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.settle()
    with pytest.raises(OperatorError, match="nothing blocks"):
        auto_join_policy.unblock(stage.engine, org, user, by("ann", "why not"))


def test_operator_blocks_a_person(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = world.create_user("ann@acme.example", email_verified=False)["id"]
    stage.settle()
    auto_join_policy.block(stage.engine, org, user, by("bob", "a test account"))
    world.update_user(user, email_verified=True)
    stage.settle()
    assert members_at_workos(world) == {}
    assert join_of(stage.engine, user)["reason"] == "by bob: a test account"
    assert (
        auto_join_answer(stage.engine, "ann@acme.example") is None
        and auto_join_policy.missing_members(stage.engine, 10) == []
    )


def test_removing_everybody_adds_nobody_again(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    users = [sign_up(world, f"person{n}@acme.example") for n in range(3)]
    stage.settle()
    for membership in list(world.memberships):
        world.delete_membership(membership)
    for user in users:
        world.update_user(user, first_name="Ann")
    stage.settle()
    assert members_at_workos(world) == {}
    assert [auto_join_answer(stage.engine, f"person{n}@acme.example") for n in range(3)] == [None] * 3
    assert auto_join_answer(stage.engine, "new@acme.example") == (org, "member")


# One person, several ids and addresses


def removed_person(stage: Stage) -> tuple[str, str]:
    """A person who joined and was removed; returns the workspace and the person."""
    org, user = company(stage.world), sign_up(stage.world)
    stage.settle()
    stage.clock.advance(seconds=10)
    stage.world.delete_membership(next(iter(stage.world.memberships)))
    stage.clock.advance(seconds=10)
    return org, user


def check_kept_out(stage: Stage, org: str, user: str) -> None:
    """Check that nobody adds the person: worker, view, Python contract and list of missing members agree."""
    stage.settle()
    assert (org, user) not in members_at_workos(stage.world)
    assert joins_of(stage.engine).get(user) != "pending"
    assert user in {row["user_id"] for row in rows(stage.engine, auto_join_blocks) if row["organization_id"] == org}
    assert auto_join_answer(stage.engine, stage.world.users[user]["email"]) is None
    assert user not in {row["user_id"] for row in auto_join_policy.missing_members(stage.engine, 10)}


def test_recreated_person_is_kept_out_after_removal(stage: Stage) -> None:
    org, user = removed_person(stage)
    stage.world.delete_user(user)
    check_kept_out(stage, org, sign_up(stage.world, "ANN@acme.example"))
    assert auto_join_answer(stage.engine, "new@acme.example") == (org, "member")


def test_former_address_of_removed_person_is_kept_out(stage: Stage) -> None:
    org, user = removed_person(stage)
    stage.world.update_user(user, email="ann@elsewhere.example")
    check_kept_out(stage, org, sign_up(stage.world))
    stage.world.update_user(user, email="ann2@acme.example")
    check_kept_out(stage, org, user)


def test_former_address_from_late_event_counts(stage: Stage) -> None:
    org, user = removed_person(stage)
    stage.world.update_user(user, email="ann2@acme.example")
    stage.clock.advance(seconds=1)
    stage.world.update_user(user, email="ann3@acme.example")
    for event in reversed(stage.world.events):
        apply_events(stage.engine, [event])
    check_kept_out(stage, org, sign_up(stage.world, "ann2@acme.example"))


def test_address_block_survives_erasure(stage: Stage) -> None:
    org, user = removed_person(stage)
    stage.world.delete_user(user)
    stage.receive_events()
    erasure.forget(stage.engine, user, by("ann"))
    assert auto_join_answer(stage.engine, "ann@acme.example") is None
    kept = [
        value for table in Base.metadata.sorted_tables for row in rows(stage.engine, table) for value in row.values()
    ]
    assert not [value for value in kept if "ann@acme.example" in str(value)]
    again = sign_up(stage.world)
    check_kept_out(stage, org, again)
    auto_join_policy.unblock(stage.engine, org, again, by("bob", "hired again"))
    stage.settle()
    assert members_at_workos(stage.world) == {(org, again): ["active"]}
    retention.retain(stage.engine, retention.Periods())
    assert {row["user_id"] for row in rows(stage.engine, UserAddress)} == {again}, "nothing needs it any longer"


def test_erased_person_without_block_keeps_no_address(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world, "ann@elsewhere.example")
    stage.world.delete_user(user)
    stage.receive_events()
    erasure.forget(stage.engine, user, by("ann"))
    stage.receive_events()
    assert rows(stage.engine, UserAddress) == []


@pytest.mark.parametrize("children_deleted", [True, False], ids=["with membership event", "without"])
def test_deletion_of_active_member_is_not_a_removal(stage: Stage, children_deleted: bool) -> None:
    stage.sandbox.knobs.children_deleted = children_deleted
    org, user = company(stage.world), sign_up(stage.world)
    stage.settle()
    stage.clock.advance(seconds=10)
    with stage.world.lock:
        stage.world.delete_user(user)
        if children_deleted:  # the person first, as WorkOS orders the events of an organization
            *_, one, other = stage.world.events
            gone = {event["event"]: event["data"] for event in (one, other)}
            one.update(event="user.deleted", data=gone["user.deleted"])
            other.update(event="organization_membership.deleted", data=gone["organization_membership.deleted"])
    again = sign_up(stage.world)
    stage.settle()
    assert members_at_workos(stage.world) == {(org, again): ["active"]}


def test_deactivated_then_deleted_person_is_kept_out(stage: Stage) -> None:
    org, user = company(stage.world), sign_up(stage.world)
    stage.settle()
    stage.world.deactivate_membership(next(iter(stage.world.memberships)))
    stage.clock.advance(seconds=10)
    stage.world.delete_user(user)
    check_kept_out(stage, org, sign_up(stage.world))


def test_failed_membership_event_delays_same_address(stage: Stage) -> None:
    org, user = company(stage.world), sign_up(stage.world)
    stage.settle()
    stage.clock.advance(seconds=10)
    stage.world.delete_membership(next(iter(stage.world.memberships)))
    del stage.world.events[-1]["data"]["id"]
    stage.world.delete_user(user)
    again = sign_up(stage.world)
    stage.settle()
    assert joins_of(stage.engine)[again] == "pending" and members_at_workos(stage.world) == {} and org

"""AUTO_JOIN=provision: sign-ups on verified domains become members."""

from itertools import permutations

import pytest
from sqlalchemy import update

from models.database import in_transaction
from models.tables import Change, MirrorState
from tests.support import rows
from tests.support.actors import by
from tests.support.auto_join import (
    Stage,
    apply_events,
    auto_join_answer,
    company,
    create_calls,
    join_of,
    joins_of,
    members_at_workos,
    set_auto_join,
    sign_up,
)
from tests.support.resync import resync
from worker.mirror import auto_join_policy
from worker.repair.catch_up import update_complete_to


def test_sign_up_on_verified_domain_becomes_member(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    other = sign_up(stage.world, "bob@elsewhere.example")
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert joins_of(stage.engine) == {user: "joined"}
    assert other not in joins_of(stage.engine)
    assert join_of(stage.engine, user)["membership_id"] in stage.world.memberships


def test_address_verified_later_becomes_member(stage: Stage) -> None:
    org = company(stage.world)
    user = stage.world.create_user("ann@acme.example", email_verified=False)["id"]
    stage.settle()
    assert members_at_workos(stage.world) == {}
    stage.world.update_user(user, email_verified=True)
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_changed_address_on_domain_becomes_member(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world, "ann@elsewhere.example")
    stage.settle()
    stage.world.update_user(user, email="Ann@ACME.example")
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_nothing_is_created_before_earlier_events_are_applied(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.receive_events()
    for _ in range(3):
        stage.run_worker()
    assert members_at_workos(stage.world) == {} and joins_of(stage.engine) == {user: "pending"}
    assert {path for _, path in stage.sandbox.calls} == {"/organizations"}, "WorkOS's time is all that was asked for"


def test_waiting_join_requests_catch_up(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.receive_events()
    for _ in range(4):
        stage.run_worker()
        update_complete_to(stage.engine)
        stage.clock.advance(seconds=2)
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_invited_person_is_not_added(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.world.create_membership(org, user, status="pending")
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["pending"]}
    assert join_of(stage.engine, user)["reason"] == "invited"
    assert auto_join_answer(stage.engine, "ann@acme.example") is None


def test_existing_member_is_unchanged(stage: Stage) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.world.create_membership(org, user, role="admin")
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert [m["role"]["slug"] for m in stage.world.memberships.values()] == ["admin"]
    assert create_calls(stage.sandbox) == 0


def test_join_of_deleted_person_is_dropped(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.receive_events()
    stage.world.delete_user(user)
    stage.settle()
    assert joins_of(stage.engine) == {user: "dropped"} and create_calls(stage.sandbox) == 0


@pytest.mark.parametrize("mode", ["off", "mirror"])
def test_other_modes_create_nothing(stage: Stage, mode: str) -> None:
    set_auto_join(stage.engine, mode)
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.settle()
    assert members_at_workos(stage.world) == {} and joins_of(stage.engine) == {}
    assert (auto_join_answer(stage.engine, "new@acme.example") is None) == (mode == "off")
    missing = auto_join_policy.missing_members(stage.engine, 10)
    assert [(row["user_id"], row["organization_id"]) for row in missing] == ([(user, org)] if mode == "mirror" else [])


def test_changing_mode_drops_pending_joins(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.receive_events()
    set_auto_join(stage.engine, "mirror")
    stage.settle()
    assert join_of(stage.engine, user)["reason"] == "AUTO_JOIN is mirror" and members_at_workos(stage.world) == {}


@pytest.mark.parametrize("existing", [True, False])
def test_existing_people_join_only_with_setting(stage: Stage, existing: bool) -> None:
    set_auto_join(stage.engine, existing=existing)
    world = stage.world
    users = [sign_up(world, f"person{n}@acme.example") for n in range(5)]
    stage.settle()
    stage.clock.advance(days=1)
    org = company(world)
    stage.settle()
    expected = {(org, user): ["active"] for user in users} if existing else {}
    assert members_at_workos(world) == expected


def test_first_resync_creates_no_join(stage: Stage) -> None:
    in_transaction(stage.engine, lambda tx: tx.execute(update(MirrorState).values(backfilled_at=None)))
    company(stage.world)
    sign_up(stage.world)
    stage.clock.advance(days=2)
    in_transaction(stage.engine, lambda tx: tx.execute(update(MirrorState).values(backfill_from=stage.clock())))
    resync(stage.engine, stage.workos)
    stage.run_worker()
    assert joins_of(stage.engine) == {} and members_at_workos(stage.world) == {}


@pytest.mark.parametrize("order", list(permutations(("organization", "organization_domain", "user"))), ids=", ".join)
def test_any_order_of_events_adds_the_person(stage: Stage, order: tuple[str, ...]) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    for what in order:
        apply_events(stage.engine, [event for event in stage.world.events if event["event"].startswith(f"{what}.")])
        stage.run_worker()
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


def test_workspace_switch_and_default_role_apply(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    stage.settle()
    auto_join_policy.set_workspace(
        stage.engine, org, by("ann", "a contractor's domain"), auto_join=False, default_role="admin"
    )
    first = sign_up(world, "first@acme.example")
    stage.settle()
    assert joins_of(stage.engine) == {} and auto_join_answer(stage.engine, "first@acme.example") is None
    auto_join_policy.set_workspace(stage.engine, org, by("bob", "agreed with them"), auto_join=True)
    second = sign_up(world, "second@acme.example")
    stage.settle()
    assert members_at_workos(world) == {(org, second): ["active"]}
    assert [m["role"]["slug"] for m in world.memberships.values()] == ["admin"]
    noted = [row for row in rows(stage.engine, Change) if row["kind"] == "workspace_settings"]
    assert [(row["cause"], row["cause_id"], row["after"]["why"]) for row in noted] == [
        ("operator", "ann", "a contractor's domain"),
        ("operator", "bob", "agreed with them"),
    ]
    assert [row["user_id"] for row in auto_join_policy.missing_members(stage.engine, 10)] == [first]

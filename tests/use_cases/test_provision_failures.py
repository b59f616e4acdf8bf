"""Failed, late and lost calls to WorkOS: no membership is created twice, and none for a removed person."""

import pytest
from freezegun import freeze_time
from sqlalchemy import update

from models.tables import Join
from tests.support.auto_join import (
    Stage,
    auto_join_answer,
    company,
    create_calls,
    join_of,
    joins_of,
    members_at_workos,
    set_auto_join,
    sign_up,
)
from tests.support.resync import CLIENT_ID, MEMBERSHIPS, Between
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import open_client


@pytest.mark.parametrize("status", [0, 500, 503])
def test_lost_answer_is_not_a_failure(stage: Stage, status: int) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=status, after_effect=True)
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert create_calls(stage.sandbox) == 1 and join_of(stage.engine, user)["state"] == "joined"


def test_create_with_lost_answer_is_not_repeated_after_removal(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=0, after_effect=True)
    stage.receive_events()
    stage.run_worker()
    stage.let_time_pass()
    stage.run_worker()
    assert members_at_workos(world) == {(org, user): ["active"]}
    stage.clock.advance(seconds=1)
    world.delete_membership(next(iter(world.memberships)))
    for _ in range(3):
        stage.run_worker()  # no event of it has come yet
    assert members_at_workos(world) == {} and create_calls(stage.sandbox) == 1
    stage.settle()
    assert members_at_workos(world) == {} and create_calls(stage.sandbox) == 1
    assert (join_of(stage.engine, user)["state"], join_of(stage.engine, user)["reason"]) == ("blocked", "removed")


@pytest.mark.long
@pytest.mark.parametrize("status", [429, 500, 0])
def test_temporary_failure_is_retried(stage: Stage, status: int) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=status, times=3)
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert create_calls(stage.sandbox) == 4


@pytest.mark.long
def test_reactivated_membership_is_deactivated_again(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    hidden: list[str] = []

    def appears(method: str, path: str, _query: object) -> None:
        """Create the membership that WorkOS's listing did not show yet."""
        if method == "POST" and path.endswith("organization_memberships") and not hidden:
            with world.silently():
                membership = world.create_membership(org, user)
                world.deactivate_membership(membership["id"])
                old = "2020-01-01T00:00:00.000Z"
                world.memberships[membership["id"]] = {**world.memberships[membership["id"]], "created_at": old}
            hidden.append(membership["id"])

    stage.sandbox.on_request = appears
    stage.sandbox.faults.fail(".*/deactivate", method="PUT", status=503)
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"
    assert auto_join_answer(stage.engine, "ann@acme.example") is None


@pytest.mark.long
def test_rejected_create_fails_with_reason(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=422, times=None)
    stage.settle()
    row = join_of(stage.engine, user)
    assert row["state"] == "failed" and "422" in row["reason"] and row["attempts"] == 8


def test_workos_is_called_outside_transactions(stage: Stage) -> None:
    """Another connection writes during the call. On SQLite, an open writer would block it."""
    company(stage.world)
    user = sign_up(stage.world)
    waits: list[bool] = []

    def write_meanwhile(method: str, path: str, _query: object) -> None:
        if "organization_memberships" in path:
            with stage.engine.begin() as tx:
                tx.execute(update(Join).values(domain="acme.example"))
            waits.append(True)

    stage.sandbox.on_request = write_meanwhile
    stage.settle()
    assert joins_of(stage.engine) == {user: "joined"} and len(waits) == 2


# Events between the check and the create


def ready_join(stage: Stage) -> tuple[str, str]:
    """A sign-up whose join is ready to be made; returns workspace and person."""
    org, user = company(stage.world), sign_up(stage.world)
    stage.receive_events()
    stage.run_worker()
    stage.let_time_pass()
    return org, user


def add_and_remove(stage: Stage, org: str, user: str) -> None:
    """Add and remove a member without webhooks, then let a minute pass."""
    stage.world.delete_membership(stage.world.create_membership(org, user)["id"])
    stage.clock.advance(seconds=60)


@pytest.mark.parametrize("status", [429, 500, 0])
def test_failed_check_discards_earlier_knowledge(stage: Stage, status: int) -> None:
    org, user = ready_join(stage)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="GET", status=status, times=None)
    stage.run_worker()
    assert join_of(stage.engine, user)["complete_from"] is None
    stage.sandbox.faults.clear()
    add_and_remove(stage, org, user)
    stage.run_worker()
    assert create_calls(stage.sandbox) == 0
    stage.settle()
    assert create_calls(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_late_join_rereads_events(stage: Stage) -> None:
    org, user = ready_join(stage)
    add_and_remove(stage, org, user)
    stage.run_worker()
    assert create_calls(stage.sandbox) == 0 and joins_of(stage.engine) == {user: "pending"}
    stage.settle()
    assert create_calls(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_pause_between_check_and_create_creates_nothing(stage: Stage) -> None:
    org, user = ready_join(stage)
    with freeze_time() as frozen:

        def stop(path: str) -> None:
            if path.endswith("organization_memberships"):
                add_and_remove(stage, org, user)
                frozen.tick(60)

        workos, stage.workos = stage.workos, Between(stage.workos, stop)
        stage.run_worker()
    assert create_calls(stage.sandbox) == 0
    stage.workos = workos
    stage.settle()
    assert create_calls(stage.sandbox) == 0 and join_of(stage.engine, user)["reason"] == "removed"


def test_create_delayed_by_rate_limit_is_not_sent(stage: Stage) -> None:
    org, user = ready_join(stage)
    with freeze_time() as frozen:

        def wait(_seconds: float) -> None:
            frozen.tick(60)

        slow = Buckets(stage.redis, 0.01, wait)
        stage.workos = open_client(stage.sandbox.api_key, CLIENT_ID, stage.sandbox.base_url, slow)
        stage.run_worker()
        stage.workos.close()
    assert create_calls(stage.sandbox) == 0 and members_at_workos(stage.world) == {}
    assert "too late" in join_of(stage.engine, user)["error"] and org


# An inactive membership that a create activates


def activate_with_lost_answer(stage: Stage) -> tuple[str, str]:
    """Let a create, whose answer is lost, activate an inactive membership that neither mirror nor listing shows."""
    org, user = ready_join(stage)
    with stage.world.silently():
        membership = stage.world.create_membership(org, user)["id"]
        stage.world.deactivate_membership(membership)
        old = {"created_at": "2020-01-01T00:00:00.000Z"}
        stage.world.memberships[membership] = {**stage.world.memberships[membership], **old}
    stage.sandbox.faults.empty(MEMBERSHIPS)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=0, after_effect=True)
    stage.run_worker()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    return org, user


@pytest.mark.parametrize("found_by", ["the mirror", "the look"])
def test_membership_activated_by_lost_create_is_deactivated(stage: Stage, found_by: str) -> None:
    org, user = activate_with_lost_answer(stage)
    if found_by == "the mirror":
        stage.receive_events()
    stage.run_worker()
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"
    assert auto_join_answer(stage.engine, "ann@acme.example") is None


def test_activation_is_undone_after_mode_change(stage: Stage) -> None:
    org, user = activate_with_lost_answer(stage)
    set_auto_join(stage.engine, "mirror")
    stage.settle()
    assert members_at_workos(stage.world) == {(org, user): ["inactive"]}
    assert join_of(stage.engine, user)["state"] == "undone"

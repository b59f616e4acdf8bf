"""Failed, late and lost calls to WorkOS: no membership is created twice, and none for a removed person."""

import pytest
from freezegun import freeze_time
from sqlalchemy import update

from models.tables import Join
from tests.support.auto_join import (
    Stage,
    answer,
    company,
    join_of,
    joins_of,
    members_at_workos,
    posts,
    put_in_force,
    sign_up,
)
from tests.support.resync import CLIENT_ID, MEMBERSHIPS, Between
from worker.workos_api.bucket import Buckets
from worker.workos_api.client import open_client


@pytest.mark.parametrize("status", [0, 500, 503])
def test_an_answer_that_is_lost_is_no_failure(stage: Stage, status: int) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=status, after_effect=True)
    stage.settles()
    assert members_at_workos(stage.world) == {(org, user): ["active"]}
    assert posts(stage.sandbox) == 1 and join_of(stage.engine, user)["state"] == "joined"


def test_a_create_whose_answer_was_lost_and_whose_person_was_removed_since_is_not_repeated(stage: Stage) -> None:
    world = stage.world
    org = company(world)
    user = sign_up(world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=0, after_effect=True)
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
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=status, times=3)
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


def test_what_workos_refuses_for_good_is_set_aside_with_its_reason(stage: Stage) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.fail(MEMBERSHIPS, method="POST", status=422, times=None)
    stage.settles()
    row = join_of(stage.engine, user)
    assert row["state"] == "failed" and "422" in row["reason"] and row["attempts"] == 8


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

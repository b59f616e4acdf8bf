"""A resync confirms each deletion, and needs approval for many."""

from typing import Any

import pytest
from sqlalchemy import Engine

from models.tables import MirrorState, Read
from tests.support import JSON, differences, rows
from tests.support.actors import by
from tests.support.resync import (
    MEMBERSHIPS,
    ORGANIZATIONS,
    USERS,
    changes,
    found,
    live,
    mirror_of,
    quietly,
    report,
    resync,
    run_row,
)
from worker.errors import OperatorError
from worker.repair.resync.resync import start
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient


@pytest.mark.long
@pytest.mark.parametrize("workspaces", [1, 2, 3])
@pytest.mark.parametrize("path", [ORGANIZATIONS, USERS, MEMBERSHIPS])
def test_empty_listing_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, path: str, workspaces: int, logs: list[Any]
) -> None:
    before = mirror_of(one_engine, sandbox, workos, workspaces)
    sandbox.faults.empty(path, times=None)
    run_id = resync(one_engine, workos)
    assert live(one_engine) == before
    # An object that exists is found by its id, so a wrong listing does no harm. If all are gone, no id is asked for.
    withheld = {key for key, (_, action) in found(one_engine, run_id).items() if action == "withheld"}
    if path != MEMBERSHIPS:
        kind = "organization" if path == ORGANIZATIONS else "user"
        assert withheld == {(kind, id) for id in before[kind]}
        [line] = [line for line in logs if line["event"] == "deletions_withheld"]
        assert (line["why"], line["log_level"], line["number"]) == ("the listing was empty", "error", len(before[kind]))
    sandbox.faults.clear()
    assert found(one_engine, resync(one_engine, workos)) == {}


@pytest.mark.parametrize("workspaces", [1, 2, 3])
def test_emptied_environment_needs_approval(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, workspaces: int
) -> None:
    before = mirror_of(one_engine, sandbox, workos, workspaces)
    world = sandbox.world
    with world.silently():
        for id in list(world.organizations):
            world.delete_organization(id)
        for id in list(world.users):
            world.delete_user(id)
    run_id = resync(one_engine, workos)
    assert live(one_engine) == before
    resync(one_engine, workos, approves=run_id)
    left = live(one_engine)
    assert left["organization"] == left["user"] == set()
    assert differences(one_engine, world.truth()) == []


# The ceiling


def gone_users(engine: Engine, sandbox: Sandbox, workos: WorkOSClient, number: int, of: int) -> str:
    world = sandbox.world
    with world.silently():
        for place in range(of):
            world.create_user(f"person{place}@people.example")
    resync(engine, workos)
    with world.silently():
        for user_id in list(world.users)[:number]:
            world.delete_user(user_id)
    return resync(engine, workos)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "of", "withheld"),
    [(20, 30, False), (21, 421, False), (21, 419, True), (2, 2, True), (3, 3, True), (2, 3, False), (1, 2, False)],
)
def test_deletions_above_ceiling_are_withheld(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, number: int, of: int, withheld: bool
) -> None:
    run_id = gone_users(one_engine, sandbox, workos, number, of)
    actions = [action for _, action in found(one_engine, run_id).values()]
    assert actions == [("withheld" if withheld else "repaired")] * number
    assert len(live(one_engine)["user"]) == (of if withheld else of - number)


@pytest.mark.long
def test_approval_deletes_listed_objects_after_reading_each(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    engine, world = both_engines, sandbox.world
    users: list[JSON] = []
    with world.silently():
        users += [world.create_user(f"person{place}@people.example") for place in range(60)]
    resync(engine, workos)
    with world.silently():
        for user in users[:30]:
            world.delete_user(user["id"])
    run_id = resync(engine, workos)
    back = users[4]
    world.users[back["id"]] = back  # it was a mistake, on WorkOS's side
    later = users[40]
    quietly(world, lambda: world.delete_user(later["id"]))  # not on that list

    approved = resync(engine, workos, approves=run_id)
    assert set(found(engine, approved)) == {("user", user["id"]) for user in users[:30] if user != back}
    assert live(engine)["user"] == set(world.users) | {later["id"]}
    assert rows(engine, MirrorState)[0]["last_resync_at"] is not None
    before = changes(engine)
    assert found(engine, resync(engine, workos, approves=run_id)) == {}
    assert changes(engine) == before


@pytest.mark.parametrize(("run_id", "message"), [("nonsense", "there is no run"), ("clean", "withheld no deletions")])
def test_approval_requires_withheld_deletions(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, run_id: str, message: str
) -> None:
    clean = resync(one_engine, workos)
    with pytest.raises(OperatorError, match=message):
        start(one_engine, by("test", "they left"), approves=clean if run_id == "clean" else run_id)
    resync(one_engine, workos)  # and nothing is left in progress


@pytest.mark.long
def test_very_long_list_is_withheld(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    run_id = gone_users(both_engines, sandbox, workos, 2250, 2250)
    assert len(report(both_engines, run_id)) == 2250
    assert run_row(both_engines, start(both_engines, by("test", "they left"), approves=run_id))["phase"] == "read"
    assert len(rows(both_engines, Read)) == 2250


def test_children_of_deleted_parents_do_not_count(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    engine, world = both_engines, sandbox.world
    with world.silently():
        for number in range(8):
            made = world.create_organization(f"Company {number}", domains=[(f"{number}.example", "verified")])
            for place in range(30 if number == 0 else 2):
                user = world.create_user(f"p{place}@{number}.example")
                world.create_membership(made["id"], user["id"])
    busy = next(iter(world.users))
    with world.silently():
        for organization in list(world.organizations)[1:]:
            world.create_membership(organization, busy)
    resync(engine, workos)
    quietly(world, lambda: world.delete_organization(next(iter(world.organizations))))
    quietly(world, lambda: world.delete_user(busy))
    sandbox.calls.clear()
    run_id = resync(engine, workos)
    assert {kind for kind, _ in found(engine, run_id)} == {"organization", "user"}
    assert sandbox.calls["GET", "/user_management/organization_memberships/{id}"] == 0
    assert sandbox.calls["GET", "/organization_domains/{id}"] == 0
    assert differences(engine, world.truth()) == []

"""WorkOS refuses, disconnects, is slow or answers nonsense: a resync deletes nothing and continues where it can."""

from contextlib import closing
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine

from models.tables import Listing, Read, RunStatus, Seen
from tests.support import JSON, differences, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events
from tests.support.resync import (
    MEMBERSHIPS,
    ORGANIZATIONS,
    USERS,
    away_after,
    catch_up_with,
    client_of,
    comes_back,
    continue_run,
    found,
    live,
    mirror_of,
    quietly,
    report,
    resync,
    run_row,
    small_life,
)
from worker.errors import InvalidApiKeyError
from worker.kinds import KINDS
from worker.repair.resync.resync import start
from worker.sandbox import Sandbox, populate
from worker.workos_api.client import WorkOSClient

pytestmark = pytest.mark.long


def mirror_of_102(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> tuple[dict[str, set[str]], list[str]]:
    """A mirror with listings of two pages. WorkOS deleted an object on the second page of each."""
    world = sandbox.world
    populate(world, organizations=102, members=1)
    resync(engine, workos)
    before, gone = live(engine), [list(world.organizations)[101], list(world.users)[101]]
    quietly(world, lambda: (world.delete_organization(gone[0]), world.delete_user(gone[1])))
    return before, gone


@pytest.mark.parametrize(("path", "status"), [(ORGANIZATIONS, 500), (USERS, 400)])
def test_incomplete_listing_deletes_nothing_and_ends_run(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, path: str, status: int, logs: list[Any]
) -> None:
    before, gone = mirror_of_102(one_engine, sandbox, workos)
    sandbox.faults.truncate(path, 2, status=status)
    run_id = start(one_engine, by("test"))
    assert continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before
    ended = run_row(one_engine, run_id)
    assert ended["status"] == RunStatus.FAILED and path[:-1] in ended["error"] and str(status) in ended["error"]
    assert any(line["event"] == "resync_failed" and str(status) in line["error"] for line in logs)
    assert not rows(one_engine, Seen) and not rows(one_engine, Listing) and not rows(one_engine, Read)
    sandbox.faults.clear()
    run_id = resync(one_engine, workos)
    assert set(found(one_engine, run_id)) == {("organization", gone[0]), ("user", gone[1])}
    assert differences(one_engine, sandbox.world.truth()) == []


@pytest.mark.parametrize("away", [500, 400, 0])
def test_resync_resumes_after_workos_outage(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, away: int, logs: list[Any]
) -> None:
    before, gone = mirror_of_102(one_engine, sandbox, workos)
    away_after(sandbox, 60, away)
    run_id = start(one_engine, by("test"))
    assert not continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before
    assert run_row(one_engine, run_id)["status"] == RunStatus.RUNNING and run_row(one_engine, run_id)["error"]
    assert any(line["event"] == "resync_interrupted" for line in logs)
    assert not any(row["attempts"] for row in rows(one_engine, Listing)), "WorkOS was away: no listing is to blame"
    comes_back(sandbox)
    sandbox.calls.clear()
    assert continue_run(one_engine, workos, run_id)
    assert sandbox.calls.total() < 101 + 12 - 40
    assert set(found(one_engine, run_id)) == {("organization", gone[0]), ("user", gone[1])}
    assert run_row(one_engine, run_id)["error"] is None
    assert differences(one_engine, sandbox.world.truth()) == []


def test_unlistable_workspace_is_reported(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    before = mirror_of(one_engine, sandbox, workos, 12)
    world = sandbox.world
    bad, good = list(world.organizations)[:2]
    hidden, gone = (world.children(id, "organization_membership")[0] for id in (bad, good))
    quietly(world, lambda: (world.delete_membership(hidden), world.delete_membership(gone)))
    sandbox.faults.fail(MEMBERSHIPS, query=f"organization_id={bad}", status=422, times=None)
    run_id = resync(one_engine, workos)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert found(one_engine, run_id)["membership", gone] == ("extra", "repaired")
    [odd] = [row for row in report(one_engine, run_id) if row["finding"] == "invalid"]
    assert odd["object_id"] == bad and "422" in next(iter(odd["fields"])) and odd["action"] == "reported"
    assert live(one_engine)["membership"] == before["membership"] - {gone}
    sandbox.faults.clear()
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [403, 422, 500])
def test_forbidden_connections_are_reported(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int
) -> None:
    world = sandbox.world
    mirror_of(one_engine, sandbox, workos, 3)
    connection = world.create_connection(next(iter(world.organizations)), "Okta")["id"]
    world.activate_connection(connection)
    apply_events(one_engine, world.events)
    gone = next(iter(world.memberships))
    quietly(world, lambda: (world.delete_connection(connection), world.delete_membership(gone)))
    sandbox.faults.fail("/connections", status=status, times=None)
    run_id = resync(one_engine, workos)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert found(one_engine, run_id)["membership", gone] == ("extra", "repaired")
    assert found(one_engine, run_id)["connection", "all of them"] == ("invalid", "reported")
    assert live(one_engine)["connection"] == {connection}, "nothing is known of it"
    sandbox.faults.clear()
    run_id = resync(one_engine, workos)
    assert found(one_engine, run_id) == {("connection", connection): ("extra", "repaired")}
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/", "/user_management/users/user_", "/organizations$"])
def test_rejected_key_ends_run_without_deletions(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int, path: str
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 3)
    world = sandbox.world
    quietly(world, lambda: world.delete_user(next(iter(world.users))))
    sandbox.faults.fail(path, status=status, times=None)
    run_id = start(one_engine, by("test"))
    with pytest.raises(InvalidApiKeyError, match=f"WORKOS_API_KEY: WorkOS refuses the key .{status}."):
        continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before
    assert run_row(one_engine, run_id)["status"] == RunStatus.FAILED
    assert str(status) in run_row(one_engine, run_id)["error"]
    assert not rows(one_engine, Seen) and not rows(one_engine, Read)
    sandbox.faults.clear()
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_temporary_failures_are_retried(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int
) -> None:
    mirror_of(one_engine, sandbox, workos, 3)
    world = sandbox.world
    gone = next(iter(world.users))
    quietly(world, lambda: world.delete_user(gone))
    sandbox.faults.fail(f"/user_management/users/{gone}", status=status, times=2, retry_after=0)
    sandbox.faults.fail("/organizations$", status=status, times=1, retry_after=0)
    run_id = resync(one_engine, workos)
    assert found(one_engine, run_id) == {("user", gone): ("extra", "repaired")}


@pytest.mark.parametrize("status", [500, 400])
def test_unreadable_object_is_reported_and_not_deleted(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 3)
    world = sandbox.world
    gone = next(iter(world.users))
    quietly(world, lambda: world.delete_user(gone))
    sandbox.faults.fail(f"/user_management/users/{gone}", status=status, times=None, retry_after=0)
    run_id = start(one_engine, by("test"))
    tries = 0
    while not continue_run(one_engine, workos, run_id):
        tries += 1
        assert tries < 5
    assert live(one_engine) == before
    assert found(one_engine, run_id) == {("user", gone): ("invalid", "reported")}


@pytest.mark.parametrize("path", ["/user_management/users/", "/user_management/users$", "/user_management/org"])
def test_resync_waits_for_exhausted_rate_limit(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, path: str
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 3)
    gone = next(iter(sandbox.world.users))
    quietly(sandbox.world, lambda: sandbox.world.delete_user(gone))
    sandbox.faults.fail(path, status=429, times=None, retry_after=0)
    run_id = start(one_engine, by("test"))
    for _ in range(4):
        assert not continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before
    assert "429" in run_row(one_engine, run_id)["error"] and run_row(one_engine, run_id)["status"] == RunStatus.RUNNING
    sandbox.faults.clear()
    assert continue_run(one_engine, workos, run_id)
    assert found(one_engine, run_id) == {("user", gone): ("extra", "repaired")}


def test_timeout_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 2)
    sandbox.knobs.latency = 0.5
    run_id = start(one_engine, by("test"))
    with closing(client_of(sandbox, redis, timeout=0.02)) as impatient:
        assert not continue_run(one_engine, impatient, run_id)
    assert "Timeout" in run_row(one_engine, run_id)["error"]
    sandbox.knobs.latency = 0.0
    assert continue_run(one_engine, workos, run_id)
    assert live(one_engine) == before


def test_key_of_another_environment_deletes_nothing(one_engine: Engine, redis: Redis) -> None:
    sandbox = Sandbox(seed=3)
    other = sandbox.add_environment("sk_test_other")
    small_life(other.world, 30, 1)
    with sandbox:
        with closing(client_of(sandbox, redis)) as mine:
            before = mirror_of(one_engine, sandbox, mine, 3)
        with closing(client_of(sandbox, redis, key="sk_test_other")) as foreign:
            run_id = resync(one_engine, foreign)
        after = live(one_engine)
        assert all(after[kind] >= before[kind] for kind in ("organization", "user", "membership", "domain"))
        assert "withheld" in {action for _, action in found(one_engine, run_id).values()}


# Odd items

ODD: dict[str, Any] = {
    "without updated_at": {"missing": "updated_at"},
    "without id": {"missing": "id"},
    "time of a wrong type": {"change": lambda item: {**item, "updated_at": 12}},
    "no object": {"change": lambda item: "text"},
}
PAGES = {"organization": ORGANIZATIONS, "user": USERS, "membership": MEMBERSHIPS}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("kind", PAGES)
def test_invalid_item_is_reported_and_rest_is_used(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, kind: str, odd: JSON, logs: list[Any]
) -> None:
    world = sandbox.world
    small_life(world, 1, 5)
    catch_up_with(one_engine, world)
    resync(one_engine, workos)
    before = live(one_engine)
    first = next(iter({"organization": world.organizations, "user": world.users}.get(kind, world.memberships)))
    newcomer = world.create_user("newcomer@company.example")
    world.create_membership(next(iter(world.organizations)), newcomer["id"])
    gone = world.children(next(iter(world.organizations)), "organization_membership")[2]
    quietly(world, lambda: world.delete_membership(gone))

    sandbox.faults.invalid_item(PAGES[kind], times=None, **odd)
    sandbox.calls.clear()
    run_id = resync(one_engine, workos)
    reported = found(one_engine, run_id)
    [(odd_kind, odd_id)] = [key for key, (finding, _) in reported.items() if finding == "invalid"]
    assert odd_kind == kind and (odd_id == first or odd_id.startswith("without id: 0 of "))
    assert any(line["event"] == "invalid_items" and line["number"] == 1 for line in logs)
    assert all(before[each] - {gone} <= live(one_engine)[each] for each in KINDS)  # the odd one is still here
    if kind != "organization":  # whose members cannot be listed without its id
        assert ("membership", gone) in reported if kind == "user" else gone in live(one_engine)["membership"]
        assert newcomer["id"] in live(one_engine)["user"]
        assert ("membership", world.children(newcomer["id"], "organization_membership")[0]) in reported
    sandbox.faults.clear()
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize("path", [USERS, MEMBERSHIPS])
def test_listing_with_invalid_item_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, path: str, page: int
) -> None:
    world = sandbox.world
    populate(world, organizations=1, members=201)
    resync(one_engine, workos)
    kind = "user" if path == USERS else "membership"
    table: JSON = world.users if path == USERS else world.memberships
    gone = list(table)[5], list(table)[150]
    delete = world.delete_user if path == USERS else world.delete_membership
    for id in gone:
        quietly(world, partial(delete, id))
    sandbox.faults.invalid_item(path, item=9, change=lambda item: {**item, "id": None}, page=page, times=1)
    run_id = resync(one_engine, workos)
    [(id, reported)] = [(id, value) for (of, id), value in found(one_engine, run_id).items() if of == kind]
    assert id.startswith("without id: 9 of ") and reported == ("invalid", "reported")
    assert set(gone) <= live(one_engine)[kind]
    run_id = resync(one_engine, workos)
    assert set(found(one_engine, run_id)) == {(kind, id) for id in gone}


def test_every_item_without_id_is_reported(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    populate(sandbox.world, organizations=1, members=150)
    sandbox.faults.invalid_item(USERS, item=3, missing="id", page=1)
    sandbox.faults.invalid_item(USERS, item=3, missing="id", page=2)
    sandbox.faults.invalid_item(MEMBERSHIPS, item=4, missing="id", page=2)
    odd = [row for row in report(one_engine, resync(one_engine, workos)) if row["finding"] == "invalid"]
    assert sorted(row["kind"] for row in odd) == ["membership", "user", "user"]


@pytest.mark.parametrize("domains", [None, "none", {}, [None], [{"id": "org_domain_1"}]])
def test_invalid_domains_delete_none(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, domains: Any) -> None:
    before = mirror_of(one_engine, sandbox, workos, 3)
    sandbox.calls.clear()
    sandbox.faults.invalid_item(ORGANIZATIONS, change=lambda item: {**item, "domains": domains})
    run_id = resync(one_engine, workos)
    assert live(one_engine) == before
    assert {finding for finding, _ in found(one_engine, run_id).values()} == {"invalid"}
    assert sandbox.calls["GET", "/organization_domains/{id}"] == 0


def test_failures_of_a_listing_count_only_until_its_next_page(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    """A listing of thousands of pages takes hours, in which more than three calls may fail."""
    populate(sandbox.world, organizations=1, members=350)
    for page in range(1, 5):
        sandbox.faults.fail(USERS, status=204, page=page)
    run_id = resync(one_engine, workos)
    assert (
        run_row(one_engine, run_id)["status"] == RunStatus.DONE and sandbox.calls["GET", "/user_management/users"] == 8
    )
    assert differences(one_engine, sandbox.world.truth()) == []


def test_malformed_listing_is_requested_again(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, logs: list[Any]
) -> None:
    before = mirror_of(one_engine, sandbox, workos, 2)
    sandbox.knobs.latency = 0.0
    quietly(sandbox.world, lambda: sandbox.world.delete_user(next(iter(sandbox.world.users))))
    sandbox.faults.fail(USERS, status=204, times=1)  # no body at all
    run_id = start(one_engine, by("test"))
    assert continue_run(one_engine, workos, run_id)
    assert any(line["event"] == "listing_failed" and "answered nothing" in line["error"] for line in logs)
    assert len(live(one_engine)["user"]) == len(before["user"]) - 1
    assert differences(one_engine, sandbox.world.truth()) == []

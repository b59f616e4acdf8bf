"""A resync finds what webhooks missed, repairs it, and says what was different; it deletes only what is gone."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from random import Random
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine

from models.tables import TABLES, Change, Kind, Listing, Mirror, Read, RunStatus, Seen
from models.views import sign_in_methods
from tests.sandbox import Sandbox, World, populate
from tests.support import JSON, apply_all, differences, rows
from tests.use_cases.joining import tell
from tests.use_cases.resyncs import (
    away_after,
    catch_up_with,
    changes,
    comes_back,
    deliver,
    directory_of,
    environment_roles,
    found,
    go_on,
    live,
    quietly,
    report,
    resync,
    run_row,
    small_life,
)
from worker.decision.snapshots import parse_time
from worker.directory.client import Directory, RefusedKeyError
from worker.errors import ConfigurationError
from worker.repair.resync import start
from worker.repair.runs import BusyError

Content = dict[Kind, Callable[[JSON], Any]]
CONTENT: Content = {
    Kind.ORGANIZATION: lambda o: (o["name"], o["external_id"]),
    Kind.USER: lambda u: (u["email"], u["email_verified"], u["first_name"], u["last_name"]),
    Kind.MEMBERSHIP: lambda m: (m["status"], sorted({r["slug"] for r in m["roles"]})),
    Kind.DOMAIN: lambda d: (d["domain"], d["state"]),
}
STORED: Content = {
    **CONTENT,
    Kind.MEMBERSHIP: lambda m: (m["status"], m["workos_roles"]),
    Kind.DOMAIN: lambda d: (d["domain"], d["verification"]),
}


def expected_drift(engine: Engine, truth: JSON) -> dict[tuple[str, str], str]:
    """What a report must say, worked out from the two sides without the code under test; roles left out."""
    domains = [domain for organization in truth["organizations"] for domain in organization["domains"]]
    kinds = {
        Kind.ORGANIZATION: truth["organizations"],
        Kind.USER: truth["users"],
        Kind.MEMBERSHIP: truth["memberships"],
        Kind.DOMAIN: domains,
    }
    there = {kind: {item["id"]: item for item in items} for kind, items in kinds.items()}
    users = {row["id"] for row in rows(engine, TABLES[Kind.USER])}
    drift: dict[tuple[str, str], str] = {}
    for kind, items in there.items():
        here = {row["id"]: row for row in rows(engine, TABLES[kind])}
        for id in here.keys() | items.keys():
            row, item = here.get(id), items.get(id)
            parents = (row or {}).get("organization_id"), (row or {}).get("user_id")
            # Hidden with its parent. A parent never known here hides nothing that a listing could not show.
            orphan = (parents[0] and parents[0] not in there[Kind.ORGANIZATION]) or (
                parents[1] and parents[1] not in there[Kind.USER] and parents[1] in users
            )
            if item is None:
                if row and not row["deleted_by"] and not orphan:
                    drift[kind, id] = "extra"
            elif row is None:
                drift[kind, id] = "missing"
            elif STORED[kind](row) != CONTENT[kind](item):
                at = parse_time(item["updated_at"])
                drift[kind, id] = "stale" if at and at > row["updated_at"] else "different"
    return drift


def same_version(world: World) -> None:
    """Changes that nothing tells of, `updated_at` included."""
    for user_id in list(world.users)[:2]:
        world.users[user_id] = {**world.users[user_id], "last_name": "Tie"}


@pytest.mark.parametrize("seed", [2])
def test_after_one_resync_the_mirror_is_equal_and_each_drift_is_named(
    both_engines: Engine, sandbox: Sandbox, directory: Directory, seed: int
) -> None:
    engine, world = both_engines, sandbox.world
    sandbox.play(5000, seed=seed)
    random = Random(seed)
    lost = {event["id"] for event in world.events if random.random() < 0.05}
    deletes = [event["id"] for event in world.events if event["event"].endswith(".deleted")]
    lost |= set(deletes[-15:])
    deliver(engine, (event for event in world.events if event["id"] not in lost))
    same_version(world)
    expected = expected_drift(engine, world.truth())
    assert set(expected.values()) == {"missing", "extra", "stale", "different"}
    assert differences(engine, world.truth()) != []

    run_id = resync(engine, directory)
    assert differences(engine, world.truth()) == []
    reported = found(engine, run_id)
    assert {key: finding for key, (finding, _) in reported.items() if key[0] != "role"} == expected
    assert {action for _, action in reported.values()} == {"repaired"}
    assert environment_roles(engine) == {slug for owner, slug in world.roles if owner is None}
    assert run_row(engine, run_id)["status"] == RunStatus.DONE
    assert not rows(engine, Seen) and not rows(engine, Listing)

    before = changes(engine)
    assert found(engine, resync(engine, directory)) == {}
    assert found(engine, resync(engine, directory, dry_run=True)) == {}
    assert changes(engine) == before


def test_the_report_shows_each_field_here_and_at_workos(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    catch_up_with(one_engine, world)
    [organization], [user] = world.organizations, world.users
    quietly(world, lambda: world.update_organization(organization, name="Renamed"))
    same_version(world)
    new = resync(one_engine, directory)
    rows_of = {row["kind"]: row for row in report(one_engine, new) if row["kind"] != "role"}
    assert rows_of["organization"]["fields"] == {"name": ["Company 0", "Renamed"]}
    assert rows_of["organization"]["organization_id"] == organization
    assert rows_of["organization"]["finding"] == "stale"
    assert rows_of["user"]["fields"] == {"last_name": [None, "Tie"]}
    assert rows_of["user"]["object_id"] == user and rows_of["user"]["finding"] == "different"


def test_a_dry_run_reports_the_same_and_changes_nothing(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    engine, world = both_engines, sandbox.world
    sandbox.play(400)
    events = list(world.events)
    deliver(engine, events[:-120])
    same_version(world)
    before = {kind: rows(engine, table) for kind, table in TABLES.items()}, changes(engine), rows(engine, Mirror)
    reported = found(engine, resync(engine, directory, dry_run=True))
    assert {action for _, action in reported.values()} == {"reported"}
    assert before == (
        {kind: rows(engine, table) for kind, table in TABLES.items()},
        changes(engine),
        rows(engine, Mirror),
    )
    repaired = found(engine, resync(engine, directory))
    assert {key: finding for key, (finding, _) in repaired.items()} == {
        key: finding for key, (finding, _) in reported.items()
    }


def test_an_empty_mirror_is_filled_and_an_event_that_comes_later_does_not_undo_it(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    sandbox.play(400)
    resync(both_engines, directory)
    assert differences(both_engines, world.truth()) == []
    catch_up_with(both_engines, world)
    assert differences(both_engines, world.truth()) == []
    assert rows(both_engines, Mirror)[0]["last_resync_at"] is not None


def test_equal_content_at_a_higher_version_is_no_drift_and_an_event_between_the_two_does_not_win(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    catch_up_with(one_engine, world)
    [organization] = world.organizations
    resync(one_engine, directory)
    late = {**world.organizations[organization], "name": "Between", "updated_at": "2031-01-01T00:00:00.000Z"}
    world.organizations[organization] = {**late, "name": "Company 0", "updated_at": "2031-01-01T00:00:01.000Z"}
    before = changes(one_engine)
    assert found(one_engine, resync(one_engine, directory)) == {}
    assert changes(one_engine) == before
    event = {"id": "event_between", "event": "organization.updated", "created_at": late["updated_at"], "data": late}
    deliver(one_engine, [event])
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize(("organizations", "members", "users"), [(3, 2, None), (101, 1, 40), (2, 101, None)])
def test_a_clean_resync_makes_no_more_calls_than_workos_needs(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, organizations: int, members: int, users: int | None
) -> None:
    populate(sandbox.world, organizations=organizations, members=members, users=users)
    resync(one_engine, directory)
    assert differences(one_engine, sandbox.world.truth()) == []
    sandbox.calls.clear()
    run_id = resync(one_engine, directory)
    people = users or organizations * members
    # One more each for the roles and the connections.
    least = -(-organizations // 100) + organizations * -(-members // 100) + -(-people // 100) + 1 + 1
    assert sandbox.calls.total() == least
    assert run_row(one_engine, run_id)["calls"] == least


def test_organizations_with_roles_of_their_own_take_one_call_more_each(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    small_life(world, 4, 1)
    known, unknown, *_ = list(world.organizations)
    world.create_role("billing", organization_id=known)
    catch_up_with(one_engine, world)
    quietly(world, lambda: world.create_role("support", organization_id=unknown))
    membership = world.children(unknown, "organization_membership")[0]
    world.update_membership(membership, role="support")
    deliver(one_engine, world.events[-1:])
    run_id = resync(one_engine, directory)
    assert sandbox.calls["GET", "/authorization/organizations/{id}/roles"] == 2
    assert found(one_engine, run_id)["role", f"{unknown}/support"] == ("missing", "repaired")
    assert live(one_engine)[Kind.ROLE] == {"admin", "member", f"{known}/billing", f"{unknown}/support"}
    quietly(world, lambda: world.delete_role("billing", organization_id=known))
    run_id = resync(one_engine, directory)
    assert found(one_engine, run_id) == {("role", f"{known}/billing"): ("extra", "repaired")}


def test_an_own_role_that_is_gone_is_not_mistaken_for_the_environments_of_the_same_slug(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    [organization] = world.organizations
    world.create_role("billing")
    world.create_role("billing", organization_id=organization, name="Own")
    catch_up_with(one_engine, world)
    resync(one_engine, directory)
    own = world.roles[organization, "billing"]
    world.roles[organization, "billing"] = {**own, "name": "At the same version"}
    assert found(one_engine, resync(one_engine, directory)) == {
        ("role", f"{organization}/billing"): ("different", "repaired")
    }
    quietly(world, lambda: world.delete_role("billing", organization_id=organization))
    resync(one_engine, directory)
    assert live(one_engine)[Kind.ROLE] == {"admin", "member", "billing"}


# One workspace


def test_one_workspace_is_repaired_and_the_others_are_left_alone(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    engine, world = both_engines, sandbox.world
    small_life(world, 3, 3)
    catch_up_with(engine, world)
    mine, other, _ = list(world.organizations)

    def drift(organization: str) -> None:
        world.update_organization(organization, name=f"Renamed {organization}")
        world.delete_domain(world.children(organization, "organization_domain")[0])
        gone, kept, _ = world.children(organization, "organization_membership")
        world.delete_membership(gone)
        world.update_membership(kept, role="admin")
        newcomer = world.create_user(f"newcomer@{organization}.example".lower())
        world.create_membership(organization, newcomer["id"])

    quietly(world, lambda: drift(mine))
    quietly(world, lambda: drift(other))
    sandbox.calls.clear()
    run_id = resync(engine, directory, organization_id=mine)
    assert sandbox.calls.total() == 3 + 2 + 1  # a read of each that was not listed, and of the person unknown here
    assert all(other not in line or "newcomer" in line for line in differences(engine, world.truth()) if mine in line)
    assert {row["organization_id"] for row in report(engine, run_id)} <= {mine, None}
    assert sorted(finding for finding, _ in found(engine, run_id).values()) == [
        "extra",
        "extra",
        "missing",
        "missing",
        "stale",
        "stale",
    ]
    resync(engine, directory)
    assert differences(engine, world.truth()) == []


def test_one_workspace_that_is_gone_is_marked_deleted_and_its_members_cost_no_calls(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    world = sandbox.world
    small_life(world, 4, 6)
    catch_up_with(one_engine, world)
    gone = next(iter(world.organizations))
    quietly(world, lambda: world.delete_organization(gone))
    sandbox.calls.clear()
    run_id = resync(one_engine, directory, organization_id=gone)
    assert found(one_engine, run_id) == {("organization", gone): ("extra", "repaired")}
    assert sandbox.calls.total() == 4
    resync(one_engine, directory)
    assert differences(one_engine, world.truth()) == []


# What must not delete


def mirror_of(engine: Engine, sandbox: Sandbox, directory: Directory, workspaces: int) -> dict[Kind, set[str]]:
    small_life(sandbox.world, workspaces, 2)
    catch_up_with(engine, sandbox.world)
    resync(engine, directory)
    return live(engine)


ORGANIZATIONS, USERS, MEMBERSHIPS = "/organizations$", "/user_management/users$", "/user_management/organization_mem"


@pytest.mark.parametrize("workspaces", [1, 2, 3])
@pytest.mark.parametrize("path", [ORGANIZATIONS, USERS, MEMBERSHIPS])
def test_an_empty_listing_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, path: str, workspaces: int, logs: list[Any]
) -> None:
    before = mirror_of(one_engine, sandbox, directory, workspaces)
    sandbox.faults.empty(path, times=None)
    run_id = resync(one_engine, directory)
    assert live(one_engine) == before
    # What exists is found by its id; so even a listing that lies cannot hurt. Nor is the id asked for if all is gone.
    withheld = {key for key, (_, action) in found(one_engine, run_id).items() if action == "withheld"}
    if path != MEMBERSHIPS:
        kind = Kind.ORGANIZATION if path == ORGANIZATIONS else Kind.USER
        assert withheld == {(kind, id) for id in before[kind]}
        [line] = [line for line in logs if line["event"] == "deletions_withheld"]
        assert (line["why"], line["log_level"], line["number"]) == ("the listing was empty", "error", len(before[kind]))
    sandbox.faults.clear()
    assert found(one_engine, resync(one_engine, directory)) == {}


@pytest.mark.parametrize("workspaces", [1, 2, 3])
def test_even_an_environment_that_is_really_empty_needs_approval(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, workspaces: int
) -> None:
    before = mirror_of(one_engine, sandbox, directory, workspaces)
    world = sandbox.world
    with world.silently():
        for id in list(world.organizations):
            world.delete_organization(id)
        for id in list(world.users):
            world.delete_user(id)
    run_id = resync(one_engine, directory)
    assert live(one_engine) == before
    resync(one_engine, directory, approves=run_id)
    left = live(one_engine)
    assert left[Kind.ORGANIZATION] == left[Kind.USER] == set()
    assert differences(one_engine, world.truth()) == []


def mirror_of_102(engine: Engine, sandbox: Sandbox, directory: Directory) -> tuple[dict[Kind, set[str]], list[str]]:
    """A mirror whose listings take two pages; on the second of each something is gone at WorkOS."""
    world = sandbox.world
    populate(world, organizations=102, members=1)
    resync(engine, directory)
    before, gone = live(engine), [list(world.organizations)[101], list(world.users)[101]]
    quietly(world, lambda: (world.delete_organization(gone[0]), world.delete_user(gone[1])))
    return before, gone


@pytest.mark.parametrize(("path", "status"), [(ORGANIZATIONS, 500), (USERS, 400)])
def test_a_listing_that_always_breaks_off_deletes_nothing_ends_the_run_and_blocks_no_later_one(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, path: str, status: int, logs: list[Any]
) -> None:
    before, gone = mirror_of_102(one_engine, sandbox, directory)
    sandbox.faults.truncate(path, 2, status=status)
    run_id = start(one_engine, "test")
    assert go_on(one_engine, directory, run_id)
    assert live(one_engine) == before
    ended = run_row(one_engine, run_id)
    assert ended["status"] == RunStatus.FAILED and path[:-1] in ended["error"] and str(status) in ended["error"]
    assert any(line["event"] == "resync_failed" and str(status) in line["error"] for line in logs)
    assert not rows(one_engine, Seen) and not rows(one_engine, Listing) and not rows(one_engine, Read)
    sandbox.faults.clear()
    run_id = resync(one_engine, directory)
    assert set(found(one_engine, run_id)) == {("organization", gone[0]), ("user", gone[1])}
    assert differences(one_engine, sandbox.world.truth()) == []


@pytest.mark.parametrize("away", [500, 400, 0])
def test_with_workos_away_in_the_middle_a_run_deletes_nothing_and_goes_on_where_it_stopped(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, away: int, logs: list[Any]
) -> None:
    before, gone = mirror_of_102(one_engine, sandbox, directory)
    away_after(sandbox, 60, away)
    run_id = start(one_engine, "test")
    assert not go_on(one_engine, directory, run_id)
    assert live(one_engine) == before
    assert run_row(one_engine, run_id)["status"] == RunStatus.RUNNING and run_row(one_engine, run_id)["error"]
    assert any(line["event"] == "resync_interrupted" for line in logs)
    assert not any(row["attempts"] for row in rows(one_engine, Listing)), "WorkOS was away: no listing is to blame"
    comes_back(sandbox)
    sandbox.calls.clear()
    assert go_on(one_engine, directory, run_id)
    assert sandbox.calls.total() < 101 + 12 - 40
    assert set(found(one_engine, run_id)) == {("organization", gone[0]), ("user", gone[1])}
    assert run_row(one_engine, run_id)["error"] is None
    assert differences(one_engine, sandbox.world.truth()) == []


def test_one_workspace_that_cannot_be_listed_is_reported_and_holds_up_no_other(
    one_engine: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 12)
    world = sandbox.world
    bad, good = list(world.organizations)[:2]
    hidden, gone = (world.children(id, "organization_membership")[0] for id in (bad, good))
    quietly(world, lambda: (world.delete_membership(hidden), world.delete_membership(gone)))
    sandbox.faults.fail(MEMBERSHIPS, query=f"organization_id={bad}", status=422, times=None)
    run_id = resync(one_engine, directory)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert found(one_engine, run_id)["membership", gone] == ("extra", "repaired")
    [odd] = [row for row in report(one_engine, run_id) if row["finding"] == "odd"]
    assert odd["object_id"] == bad and "422" in next(iter(odd["fields"])) and odd["action"] == "reported"
    assert live(one_engine)[Kind.MEMBERSHIP] == before[Kind.MEMBERSHIP] - {gone}
    sandbox.faults.clear()
    resync(one_engine, directory)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [403, 422, 500])
def test_a_key_that_may_not_see_connections_is_reported_and_the_rest_is_repaired(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, status: int
) -> None:
    world = sandbox.world
    mirror_of(one_engine, sandbox, directory, 3)
    connection = world.create_connection(next(iter(world.organizations)), "Okta")["id"]
    world.activate_connection(connection)
    tell(one_engine, world.events)
    gone = next(iter(world.memberships))
    quietly(world, lambda: (world.delete_connection(connection), world.delete_membership(gone)))
    sandbox.faults.fail("/connections", status=status, times=None)
    run_id = resync(one_engine, directory)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert found(one_engine, run_id)["membership", gone] == ("extra", "repaired")
    assert found(one_engine, run_id)["connection", "all of them"] == ("odd", "reported")
    assert live(one_engine)[Kind.CONNECTION] == {connection}, "nothing is known of it"
    sandbox.faults.clear()
    run_id = resync(one_engine, directory)
    assert found(one_engine, run_id) == {("connection", connection): ("extra", "repaired")}
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("one", [True, False], ids=["one workspace", "everything"])
def test_connections_that_no_event_told_of_are_found(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, one: bool
) -> None:
    world = sandbox.world
    mirror_of(one_engine, sandbox, directory, 2)
    org = next(iter(world.organizations))
    with world.silently():
        made, off = (world.create_connection(org, name)["id"] for name in ("Okta", "Entra"))
        for id in (made, off):
            world.activate_connection(id)
        world.deactivate_connection(off)
    scope = {"organization_id": org} if one else {}
    run_id = resync(one_engine, directory, **scope)
    assert found(one_engine, run_id) == {("connection", id): ("missing", "repaired") for id in (made, off)}
    assert [row["connection_id"] for row in rows(one_engine, sign_in_methods)] == [made]
    quietly(world, lambda: (world.delete_connection(made), world.activate_connection(off)))
    run_id = resync(one_engine, directory, **scope)
    assert {finding for finding, _ in found(one_engine, run_id).values()} == {"extra", "stale"}
    assert [row["connection_id"] for row in rows(one_engine, sign_in_methods)] == [off]
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("path", ["/", "/user_management/users/user_", "/organizations$"])
def test_a_refused_key_ends_the_run_and_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, status: int, path: str
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 3)
    world = sandbox.world
    quietly(world, lambda: world.delete_user(next(iter(world.users))))
    sandbox.faults.fail(path, status=status, times=None)
    run_id = start(one_engine, "test")
    with pytest.raises(RefusedKeyError, match=f"WORKOS_API_KEY: WorkOS refuses the key .{status}."):
        go_on(one_engine, directory, run_id)
    assert live(one_engine) == before
    assert run_row(one_engine, run_id)["status"] == RunStatus.FAILED
    assert str(status) in run_row(one_engine, run_id)["error"]
    assert not rows(one_engine, Seen) and not rows(one_engine, Read)
    sandbox.faults.clear()
    resync(one_engine, directory)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_what_passes_is_waited_for(one_engine: Engine, sandbox: Sandbox, directory: Directory, status: int) -> None:
    mirror_of(one_engine, sandbox, directory, 3)
    world = sandbox.world
    gone = next(iter(world.users))
    quietly(world, lambda: world.delete_user(gone))
    sandbox.faults.fail(f"/user_management/users/{gone}", status=status, times=2, retry_after=0)
    sandbox.faults.fail("/organizations$", status=status, times=1, retry_after=0)
    run_id = resync(one_engine, directory)
    assert found(one_engine, run_id) == {("user", gone): ("extra", "repaired")}


@pytest.mark.parametrize("status", [500, 400])
def test_an_object_that_cannot_be_read_is_not_deleted_and_is_reported_in_the_end(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, status: int
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 3)
    world = sandbox.world
    gone = next(iter(world.users))
    quietly(world, lambda: world.delete_user(gone))
    sandbox.faults.fail(f"/user_management/users/{gone}", status=status, times=None, retry_after=0)
    run_id = start(one_engine, "test")
    tries = 0
    while not go_on(one_engine, directory, run_id):
        tries += 1
        assert tries < 5
    assert live(one_engine) == before
    assert found(one_engine, run_id) == {("user", gone): ("odd", "reported")}


@pytest.mark.parametrize("path", ["/user_management/users/", "/user_management/users$", "/user_management/org"])
def test_a_rate_limit_that_others_used_up_is_waited_for(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, path: str
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 3)
    gone = next(iter(sandbox.world.users))
    quietly(sandbox.world, lambda: sandbox.world.delete_user(gone))
    sandbox.faults.fail(path, status=429, times=None, retry_after=0)
    run_id = start(one_engine, "test")
    for _ in range(4):
        assert not go_on(one_engine, directory, run_id)
    assert live(one_engine) == before
    assert "429" in run_row(one_engine, run_id)["error"] and run_row(one_engine, run_id)["status"] == RunStatus.RUNNING
    sandbox.faults.clear()
    assert go_on(one_engine, directory, run_id)
    assert found(one_engine, run_id) == {("user", gone): ("extra", "repaired")}


def test_an_answer_that_never_comes_deletes_nothing(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 2)
    sandbox.knobs.latency = 0.5
    run_id = start(one_engine, "test")
    with closing(directory_of(sandbox, redis, timeout=0.02)) as impatient:
        assert not go_on(one_engine, impatient, run_id)
    assert "Timeout" in run_row(one_engine, run_id)["error"]
    sandbox.knobs.latency = 0.0
    assert go_on(one_engine, directory, run_id)
    assert live(one_engine) == before


def test_another_environments_key_deletes_nothing_even_if_nobody_looked_first(one_engine: Engine, redis: Redis) -> None:
    sandbox = Sandbox(seed=3)
    other = sandbox.add_environment("sk_other")
    small_life(other.world, 30, 1)
    with sandbox:
        with closing(directory_of(sandbox, redis)) as mine:
            before = mirror_of(one_engine, sandbox, mine, 3)
        with closing(directory_of(sandbox, redis, key="sk_other")) as foreign:
            run_id = resync(one_engine, foreign)
        after = live(one_engine)
        assert all(after[kind] >= before[kind] for kind in (Kind.ORGANIZATION, Kind.USER, Kind.MEMBERSHIP, Kind.DOMAIN))
        assert "withheld" in {action for _, action in found(one_engine, run_id).values()}


# The ceiling


def gone_users(engine: Engine, sandbox: Sandbox, directory: Directory, number: int, of: int) -> str:
    world = sandbox.world
    with world.silently():
        for place in range(of):
            world.create_user(f"person{place}@people.example")
    resync(engine, directory)
    with world.silently():
        for user_id in list(world.users)[:number]:
            world.delete_user(user_id)
    return resync(engine, directory)


@pytest.mark.parametrize(
    ("number", "of", "withheld"),
    [(20, 30, False), (21, 421, False), (21, 419, True), (2, 2, True), (3, 3, True), (2, 3, False), (1, 2, False)],
)
def test_above_the_ceiling_deletions_are_withheld(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, number: int, of: int, withheld: bool
) -> None:
    run_id = gone_users(one_engine, sandbox, directory, number, of)
    actions = [action for _, action in found(one_engine, run_id).values()]
    assert actions == [("withheld" if withheld else "repaired")] * number
    assert len(live(one_engine)[Kind.USER]) == (of if withheld else of - number)


def test_an_approval_carries_out_that_list_and_reads_each_again_first(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    engine, world = both_engines, sandbox.world
    users: list[JSON] = []
    with world.silently():
        users += [world.create_user(f"person{place}@people.example") for place in range(60)]
    resync(engine, directory)
    with world.silently():
        for user in users[:30]:
            world.delete_user(user["id"])
    run_id = resync(engine, directory)
    back = users[4]
    world.users[back["id"]] = back  # it was a mistake, on WorkOS's side
    later = users[40]
    quietly(world, lambda: world.delete_user(later["id"]))  # not on that list

    approved = resync(engine, directory, approves=run_id)
    assert set(found(engine, approved)) == {("user", user["id"]) for user in users[:30] if user != back}
    assert live(engine)[Kind.USER] == set(world.users) | {later["id"]}
    assert rows(engine, Mirror)[0]["last_resync_at"] is not None
    before = changes(engine)
    assert found(engine, resync(engine, directory, approves=run_id)) == {}
    assert changes(engine) == before


@pytest.mark.parametrize("run_id", ["nonsense", "clean"])
def test_there_is_nothing_to_approve(one_engine: Engine, sandbox: Sandbox, directory: Directory, run_id: str) -> None:
    clean = resync(one_engine, directory)
    with pytest.raises(ConfigurationError, match="withheld no deletions"):
        start(one_engine, "test", approves=clean if run_id == "clean" else run_id)
    resync(one_engine, directory)  # and nothing is left under way


def test_a_list_too_long_for_one_statement_is_withheld_too(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    run_id = gone_users(both_engines, sandbox, directory, 2250, 2250)
    assert len(report(both_engines, run_id)) == 2250
    assert run_row(both_engines, start(both_engines, "test", approves=run_id))["phase"] == "read"
    assert len(rows(both_engines, Read)) == 2250


def test_what_was_in_a_deleted_workspace_or_of_a_deleted_person_does_not_count(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
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
    resync(engine, directory)
    quietly(world, lambda: world.delete_organization(next(iter(world.organizations))))
    quietly(world, lambda: world.delete_user(busy))
    sandbox.calls.clear()
    run_id = resync(engine, directory)
    assert {kind for kind, _ in found(engine, run_id)} == {"organization", "user"}
    assert sandbox.calls["GET", "/user_management/organization_memberships/{id}"] == 0
    assert sandbox.calls["GET", "/organization_domains/{id}"] == 0
    assert differences(engine, world.truth()) == []


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
def test_an_odd_item_is_reported_and_the_rest_of_the_page_is_used(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, kind: str, odd: JSON, logs: list[Any]
) -> None:
    world = sandbox.world
    small_life(world, 1, 5)
    catch_up_with(one_engine, world)
    resync(one_engine, directory)
    before = live(one_engine)
    first = next(iter({"organization": world.organizations, "user": world.users}.get(kind, world.memberships)))
    newcomer = world.create_user("newcomer@company.example")
    world.create_membership(next(iter(world.organizations)), newcomer["id"])
    gone = world.children(next(iter(world.organizations)), "organization_membership")[2]
    quietly(world, lambda: world.delete_membership(gone))

    sandbox.faults.odd(PAGES[kind], times=None, **odd)
    sandbox.calls.clear()
    run_id = resync(one_engine, directory)
    reported = found(one_engine, run_id)
    [(odd_kind, odd_id)] = [key for key, (finding, _) in reported.items() if finding == "odd"]
    assert odd_kind == kind and (odd_id == first or odd_id.startswith("without id: 0 of "))
    assert any(line["event"] == "odd_items" and line["number"] == 1 for line in logs)
    assert all(before[each] - {gone} <= live(one_engine)[each] for each in Kind)  # the odd one is still here
    if kind != "organization":  # whose members cannot be listed without its id
        assert ("membership", gone) in reported if kind == "user" else gone in live(one_engine)[Kind.MEMBERSHIP]
        assert newcomer["id"] in live(one_engine)[Kind.USER]
        assert ("membership", world.children(newcomer["id"], "organization_membership")[0]) in reported
    sandbox.faults.clear()
    resync(one_engine, directory)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("page", [1, 2])
@pytest.mark.parametrize("path", [USERS, MEMBERSHIPS])
def test_after_an_odd_item_on_any_page_nothing_of_that_listing_is_deleted(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, path: str, page: int
) -> None:
    world = sandbox.world
    populate(world, organizations=1, members=201)
    resync(one_engine, directory)
    kind = Kind.USER if path == USERS else Kind.MEMBERSHIP
    table: JSON = world.users if path == USERS else world.memberships
    gone = list(table)[5], list(table)[150]
    delete = world.delete_user if path == USERS else world.delete_membership
    for id in gone:
        quietly(world, partial(delete, id))
    sandbox.faults.odd(path, item=9, change=lambda item: {**item, "id": None}, page=page, times=1)
    run_id = resync(one_engine, directory)
    [(id, reported)] = [(id, value) for (of, id), value in found(one_engine, run_id).items() if of == kind]
    assert id.startswith("without id: 9 of ") and reported == ("odd", "reported")
    assert set(gone) <= live(one_engine)[kind]
    run_id = resync(one_engine, directory)
    assert set(found(one_engine, run_id)) == {(kind.value, id) for id in gone}


def test_each_item_without_id_is_reported(one_engine: Engine, sandbox: Sandbox, directory: Directory) -> None:
    populate(sandbox.world, organizations=1, members=150)
    sandbox.faults.odd(USERS, item=3, missing="id", page=1)
    sandbox.faults.odd(USERS, item=3, missing="id", page=2)
    sandbox.faults.odd(MEMBERSHIPS, item=4, missing="id", page=2)
    odd = [row for row in report(one_engine, resync(one_engine, directory)) if row["finding"] == "odd"]
    assert sorted(row["kind"] for row in odd) == ["membership", "user", "user"]


@pytest.mark.parametrize("domains", [None, "none", {}, [None], [{"id": "org_domain_1"}]])
def test_odd_domains_of_an_organization_delete_none(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, domains: Any
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 3)
    sandbox.calls.clear()
    sandbox.faults.odd(ORGANIZATIONS, change=lambda item: {**item, "domains": domains})
    run_id = resync(one_engine, directory)
    assert live(one_engine) == before
    assert {finding for finding, _ in found(one_engine, run_id).values()} == {"odd"}
    assert sandbox.calls["GET", "/organization_domains/{id}"] == 0


def test_an_answer_that_is_no_listing_is_asked_for_again(
    one_engine: Engine, sandbox: Sandbox, directory: Directory, logs: list[Any]
) -> None:
    before = mirror_of(one_engine, sandbox, directory, 2)
    sandbox.knobs.latency = 0.0
    quietly(sandbox.world, lambda: sandbox.world.delete_user(next(iter(sandbox.world.users))))
    sandbox.faults.fail(USERS, status=204, times=1)  # no body at all
    run_id = start(one_engine, "test")
    assert go_on(one_engine, directory, run_id)
    assert any(line["event"] == "listing_failed" and "answered no list" in line["error"] for line in logs)
    assert len(live(one_engine)[Kind.USER]) == len(before[Kind.USER]) - 1
    assert differences(one_engine, sandbox.world.truth()) == []


# One at a time


def test_a_second_full_run_is_refused_and_one_that_was_left_is_gone_on_with(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    engine = both_engines
    small_life(sandbox.world, 2, 2)
    run_id = start(engine, "test")
    busy: list[str] = []

    def second(_method: str, _path: str, _query: object) -> None:
        sandbox.on_request = None
        for scope in ({}, {"dry_run": True}, {"approves": "any"}):
            with pytest.raises(BusyError, match=f"a resync is under way already: run {run_id}"):
                start(engine, "other", **scope)
            busy.append(run_id)

    sandbox.on_request = second
    assert go_on(engine, directory, run_id, stopping=lambda: len(busy) == 3) is False
    assert start(engine, "other") == run_id
    with pytest.raises(BusyError):
        start(engine, "other", dry_run=True)
    one = resync(engine, directory, organization_id=next(iter(sandbox.world.organizations)))
    assert one != run_id
    assert go_on(engine, directory, run_id)
    assert differences(engine, sandbox.world.truth()) == []


def test_drained_events_and_resyncs_share_one_order_of_changes(
    both_engines: Engine, sandbox: Sandbox, directory: Directory
) -> None:
    small_life(sandbox.world, 2, 2)
    run_id = resync(both_engines, directory)
    apply_all(both_engines)
    causes = {(row["cause"], row["cause_id"]) for row in _changes(both_engines)}
    assert causes == {("resync", run_id)}
    told = [row for row in _changes(both_engines) if (row["before"] or {}).get("state") != row["after"]["state"]]
    assert all(row["before"] is None and row["after"]["state"] == "active" for row in told)


def _changes(engine: Engine) -> list[JSON]:
    return rows(engine, Change)

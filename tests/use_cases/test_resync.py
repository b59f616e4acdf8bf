"""A resync finds, reports and repairs all drift, and deletes only objects that are gone."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, delete, update

from models.database import write_transaction
from models.tables import Change, Listing, MirrorState, RunStatus, Seen
from models.views import sign_in_methods
from tests.support import JSON, apply_all, differences, made, mirrored, outcomes, rows
from tests.support.actors import by
from tests.support.histories import broken_chains
from tests.support.resync import (
    catch_up_with,
    changes,
    continue_run,
    deliver,
    environment_roles,
    found,
    live,
    mirror_of,
    quietly,
    report,
    resync,
    run_row,
    small_life,
)
from worker.decision.payload import parse_time
from worker.errors import BusyError
from worker.kinds import KINDS
from worker.kinds.membership import MEMBERSHIP
from worker.kinds.organization import ORGANIZATION
from worker.kinds.user import USER, User
from worker.repair.resync.resync import start
from worker.sandbox import Sandbox, World, populate
from worker.workos_api.client import WorkOSClient

Content = dict[str, Callable[[JSON], Any]]
CONTENT: Content = {
    "organization": lambda o: (o["name"], o["external_id"]),
    "user": lambda u: (u["email"], u["email_verified"], u["first_name"], u["last_name"]),
    "membership": lambda m: (m["status"], sorted({r["slug"] for r in m["roles"]})),
    "domain": lambda d: (d["domain"], d["state"]),
}
UNEXPECTED = {"role", "permission", "invitation", "connection"}
"""Kinds that `expected_drift` leaves out."""
STORED: Content = {
    **CONTENT,
    "membership": lambda m: (m["status"], m["workos_roles"]),
    "domain": lambda d: (d["domain"], d["verification"]),
}


def expected_drift(engine: Engine, truth: JSON) -> dict[tuple[str, str], str]:
    """The expected report, computed without the code under test."""
    domains = [domain for organization in truth["organizations"] for domain in organization["domains"]]
    kinds = {
        "organization": truth["organizations"],
        "user": truth["users"],
        "membership": truth["memberships"],
        "domain": domains,
    }
    there = {kind: {item["id"]: item for item in items} for kind, items in kinds.items()}
    users = {row["id"] for row in rows(engine, User)}
    drift: dict[tuple[str, str], str] = {}
    for kind, items in there.items():
        here = {row["id"]: row for row in rows(engine, KINDS[kind].table)}
        for id in here.keys() | items.keys():
            row, item = here.get(id), items.get(id)
            parents = (row or {}).get("organization_id"), (row or {}).get("user_id")
            # Hidden with its parent. A parent never known here hides nothing that a listing could not show.
            orphan = (parents[0] and parents[0] not in there["organization"]) or (
                parents[1] and parents[1] not in there["user"] and parents[1] in users
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
    """Changes without an event or a new `updated_at`."""
    for user_id in list(world.users)[:2]:
        world.users[user_id] = {**world.users[user_id], "last_name": "Tie"}


@pytest.mark.long
@pytest.mark.parametrize("seed", [2])
def test_resync_repairs_and_reports_all_drift(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient, seed: int
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

    run_id = resync(engine, workos)
    assert differences(engine, world.truth()) == []
    reported = found(engine, run_id)
    assert {key: finding for key, (finding, _) in reported.items() if key[0] not in UNEXPECTED} == expected
    assert {action for _, action in reported.values()} == {"repaired"}
    assert environment_roles(engine) == {slug for owner, slug in world.roles if owner is None}
    assert run_row(engine, run_id)["status"] == RunStatus.DONE
    assert not rows(engine, Seen) and not rows(engine, Listing)

    before = changes(engine)
    assert found(engine, resync(engine, workos)) == {}
    assert found(engine, resync(engine, workos, dry_run=True)) == {}
    assert changes(engine) == before


def test_report_shows_differing_fields(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    catch_up_with(one_engine, world)
    [organization], [user] = world.organizations, world.users
    quietly(world, lambda: world.update_organization(organization, name="Renamed"))
    same_version(world)
    new = resync(one_engine, workos)
    rows_of = {row["kind"]: row for row in report(one_engine, new) if row["kind"] != "role"}
    assert rows_of["organization"]["fields"] == {"name": ["Company 0", "Renamed"]}
    assert rows_of["organization"]["organization_id"] == organization
    assert rows_of["organization"]["finding"] == "stale"
    assert rows_of["user"]["fields"] == {"last_name": [None, "Tie"]}
    assert rows_of["user"]["object_id"] == user and rows_of["user"]["finding"] == "different"


@pytest.mark.long
def test_dry_run_reports_without_changes(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    engine, world = both_engines, sandbox.world
    sandbox.play(400)
    events = list(world.events)
    deliver(engine, events[:-120])
    same_version(world)
    before = (
        {name: rows(engine, kind.table) for name, kind in KINDS.items()},
        changes(engine),
        rows(engine, MirrorState),
    )
    reported = found(engine, resync(engine, workos, dry_run=True))
    assert {action for _, action in reported.values()} == {"reported"}
    assert before == (
        {name: rows(engine, kind.table) for name, kind in KINDS.items()},
        changes(engine),
        rows(engine, MirrorState),
    )
    repaired = found(engine, resync(engine, workos))
    assert {key: finding for key, (finding, _) in repaired.items()} == {
        key: finding for key, (finding, _) in reported.items()
    }


@pytest.mark.long
def test_resync_fills_empty_mirror_and_old_events_change_nothing(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    sandbox.play(400)
    resync(both_engines, workos)
    assert differences(both_engines, world.truth()) == []
    catch_up_with(both_engines, world)
    assert differences(both_engines, world.truth()) == []
    assert rows(both_engines, MirrorState)[0]["last_resync_at"] is not None


def test_newer_version_with_equal_content_is_not_drift(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    catch_up_with(one_engine, world)
    [organization] = world.organizations
    resync(one_engine, workos)
    late = {**world.organizations[organization], "name": "Between", "updated_at": "2031-01-01T00:00:00.000Z"}
    world.organizations[organization] = {**late, "name": "Company 0", "updated_at": "2031-01-01T00:00:01.000Z"}
    before = changes(one_engine)
    assert found(one_engine, resync(one_engine, workos)) == {}
    assert changes(one_engine) == before
    event = {"id": "event_between", "event": "organization.updated", "created_at": late["updated_at"], "data": late}
    deliver(one_engine, [event])
    assert differences(one_engine, world.truth()) == []


def test_first_resync_after_an_upgrade_fills_new_columns_without_reads(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world)
    keys: JSON = {"external_id": "key", "metadata": {"tier": "diamond"}}
    for id in world.organizations:
        world.update_organization(id, stripe_customer_id="cus_1", **keys)
    world.update_user(next(iter(world.users)), **keys)
    world.update_membership(next(iter(world.memberships)), custom_attributes={"team": "red"})
    catch_up_with(engine, world)
    resync(engine, workos)
    equal = mirrored(engine)
    added = {kind: set(kind.optional) - set(kind.parents) for kind in (ORGANIZATION, USER, MEMBERSHIP)}
    with write_transaction(engine) as tx:  # as rows and changes of the former release
        for kind in (ORGANIZATION, USER, MEMBERSHIP):
            tx.execute(update(kind.table).values(dict.fromkeys(added[kind]) | {"column_versions": None}))
        tx.execute(delete(Change))
    assert len(differences(engine, world.truth())) == len(world.organizations) + 2
    sandbox.calls.clear()
    run_id = resync(engine, workos)
    assert differences(engine, world.truth()) == [] and report(engine, run_id) == []
    by_id = ("/organizations/{id}", "/user_management/users/{id}", "/user_management/organization_memberships/{id}")
    assert [sandbox.calls["GET", path] for path in by_id] == [0, 0, 0]
    filled = rows(engine, Change)
    assert len(filled) == len(world.organizations) + 2 and broken_chains(filled) == []
    columns = ("updated_at", "event_at", "event_id")
    for name in map(str, added):  # the versions of the rows are as before
        versions = [[{c: row[c] for c in columns} for row in found[name]] for found in (equal, mirrored(engine))]
        assert versions[0] == versions[1]
    settled = mirrored(engine)
    resync(engine, workos)
    assert mirrored(engine) == settled and rows(engine, Change) == filled
    former = [made("organization.updated", id=id, metadata={"tier": "iron"}) for id in world.organizations]
    deliver(engine, former)
    assert outcomes(engine, *former) == ["stale"] * len(former) and differences(engine, world.truth()) == []


@pytest.mark.parametrize(("organizations", "members", "users"), [(3, 2, None), (101, 1, 40), (2, 101, None)])
def test_clean_resync_makes_minimal_calls(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, organizations: int, members: int, users: int | None
) -> None:
    populate(sandbox.world, organizations=organizations, members=members, users=users)
    resync(one_engine, workos)
    assert differences(one_engine, sandbox.world.truth()) == []
    sandbox.calls.clear()
    run_id = resync(one_engine, workos)
    people = users or organizations * members
    # One more each for the roles, the permissions, the connections and the invitations.
    least = -(-organizations // 100) + organizations * -(-members // 100) + -(-people // 100) + 4
    assert sandbox.calls.total() == least
    assert run_row(one_engine, run_id)["calls"] == least


def test_organization_roles_take_one_more_call_each(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 4, 1)
    known, unknown, *_ = list(world.organizations)
    world.create_role("billing", organization_id=known)
    catch_up_with(one_engine, world)
    quietly(world, lambda: world.create_role("support", organization_id=unknown))
    membership = world.children(unknown, "organization_membership")[0]
    world.update_membership(membership, role="support")
    deliver(one_engine, world.events[-1:])
    run_id = resync(one_engine, workos)
    assert sandbox.calls["GET", "/authorization/organizations/{id}/roles"] == 2
    assert found(one_engine, run_id)["role", f"{unknown}/support"] == ("missing", "repaired")
    assert live(one_engine)["role"] == {"admin", "member", f"{known}/billing", f"{unknown}/support"}
    quietly(world, lambda: world.delete_role("billing", organization_id=known))
    run_id = resync(one_engine, workos)
    assert found(one_engine, run_id) == {("role", f"{known}/billing"): ("extra", "repaired")}


@pytest.mark.long
def test_deleted_organization_role_is_not_confused_with_environment_role(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    [organization] = world.organizations
    world.create_role("billing")
    world.create_role("billing", organization_id=organization, name="Own")
    catch_up_with(one_engine, world)
    resync(one_engine, workos)
    own = world.roles[organization, "billing"]
    world.roles[organization, "billing"] = {**own, "name": "At the same version"}
    assert found(one_engine, resync(one_engine, workos)) == {
        ("role", f"{organization}/billing"): ("different", "repaired")
    }
    quietly(world, lambda: world.delete_role("billing", organization_id=organization))
    resync(one_engine, workos)
    assert live(one_engine)["role"] == {"admin", "member", "billing"}


# One workspace


@pytest.mark.long
def test_resync_of_one_workspace_leaves_others(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
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
    run_id = resync(engine, workos, organization_id=mine)
    assert sandbox.calls.total() == 4 + 2 + 1  # a read of each that was not listed, and of the person unknown here
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
    resync(engine, workos)
    assert differences(engine, world.truth()) == []


def test_deleted_workspace_needs_no_calls_for_members(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 4, 6)
    catch_up_with(one_engine, world)
    gone = next(iter(world.organizations))
    quietly(world, lambda: world.delete_organization(gone))
    sandbox.calls.clear()
    run_id = resync(one_engine, workos, organization_id=gone)
    assert found(one_engine, run_id) == {("organization", gone): ("extra", "repaired")}
    assert sandbox.calls.total() == 5
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


@pytest.mark.parametrize("one", [True, False], ids=["one workspace", "everything"])
def test_connections_without_events_are_found(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, one: bool
) -> None:
    world = sandbox.world
    mirror_of(one_engine, sandbox, workos, 2)
    org = next(iter(world.organizations))
    with world.silently():
        made, off = (world.create_connection(org, name)["id"] for name in ("Okta", "Entra"))
        for id in (made, off):
            world.activate_connection(id)
        world.deactivate_connection(off)
    scope = {"organization_id": org} if one else {}
    run_id = resync(one_engine, workos, **scope)
    assert found(one_engine, run_id) == {("connection", id): ("missing", "repaired") for id in (made, off)}
    assert [row["connection_id"] for row in rows(one_engine, sign_in_methods)] == [made]
    quietly(world, lambda: (world.delete_connection(made), world.activate_connection(off)))
    run_id = resync(one_engine, workos, **scope)
    assert {finding for finding, _ in found(one_engine, run_id).values()} == {"extra", "stale"}
    assert [row["connection_id"] for row in rows(one_engine, sign_in_methods)] == [off]
    assert differences(one_engine, world.truth()) == []


# One at a time


def test_second_full_resync_is_refused_and_abandoned_one_resumes(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    engine = both_engines
    small_life(sandbox.world, 2, 2)
    run_id = start(engine, by("test"))
    busy: list[str] = []

    def second(_method: str, _path: str, _query: object) -> None:
        sandbox.on_request = None
        for scope in ({}, {"dry_run": True}, {"approves": "any"}):
            with pytest.raises(BusyError, match=f"a resync is already running: run {run_id}"):
                start(engine, by("other"), **scope)
            busy.append(run_id)

    sandbox.on_request = second
    assert continue_run(engine, workos, run_id, stopping=lambda: len(busy) == 3) is False
    assert start(engine, by("other")) == run_id
    with pytest.raises(BusyError):
        start(engine, by("other"), dry_run=True)
    one = resync(engine, workos, organization_id=next(iter(sandbox.world.organizations)))
    assert one != run_id
    assert continue_run(engine, workos, run_id)
    assert differences(engine, sandbox.world.truth()) == []


def test_events_and_resyncs_share_change_order(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    small_life(sandbox.world, 2, 2)
    run_id = resync(both_engines, workos)
    apply_all(both_engines)
    causes = {(row["cause"], row["cause_id"]) for row in _changes(both_engines)}
    assert causes == {("resync", run_id)}
    recorded = [row for row in _changes(both_engines) if (row["before"] or {}).get("state") != row["after"]["state"]]
    assert all(row["before"] is None and row["after"]["state"] == "active" for row in recorded)


def _changes(engine: Engine) -> list[JSON]:
    return rows(engine, Change)


def test_domain_found_by_resync_has_every_column_in_changes(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    with world.silently():
        [domain] = world.create_organization("Acme", domains=[("acme.example", "failed")])["domains"]
    resync(engine, workos)  # the API never says why a domain failed
    world.verify_domain(domain["id"])
    deliver(engine, world.events)
    recorded = [row for row in rows(engine, Change) if row["object_id"] == domain["id"]]
    assert len(recorded) > 1 and broken_chains(recorded) == []

"""Confirmed reads: an object that events leave in doubt is read by id. A delete event outranks the read."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, insert, update
from sqlalchemy.exc import DBAPIError

from models.database import CHANGES_LOCK, advisory_lock, in_transaction, open_engine, write_transaction
from models.tables import Change, Event, EventStatus, Listing, Read
from models.types import db_now, db_now_plus
from tests.support import JSON, access, apply_all, differences, made, mirrored, outcomes, rows
from tests.support.actors import by
from tests.support.resync import (
    catch_up_with,
    changes,
    continue_run,
    deliver,
    found,
    live,
    quietly,
    read_due,
    resync,
    run_row,
    small_life,
)
from worker.errors import InvalidApiKeyError
from worker.kinds import KINDS
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.repair.reads import work_due
from worker.repair.resync.resync import start
from worker.reports.explain import explain
from worker.sandbox import Sandbox, World
from worker.workos_api.client import WorkOSClient

FAR = "2091-01-01T00:00:00.000Z"


def waiting(engine: Engine) -> set[tuple[str, str, str]]:
    return {(row["kind"], row["object_id"], row["reason"]) for row in rows(engine, Read)}


def event_of(world: World, type: str, number: int = -1) -> JSON:
    return [event for event in world.events if event["event"] == type][number]


@pytest.fixture
def member(one_engine: Engine, sandbox: Sandbox) -> JSON:
    """The only membership of a mirror that equals WorkOS."""
    small_life(sandbox.world, 1, 1)
    catch_up_with(one_engine, sandbox.world)
    return next(iter(sandbox.world.memberships.values()))


def test_confirmed_read_repairs_future_version(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    world = sandbox.world
    wrong = {**member, "status": "inactive", "updated_at": FAR}
    deliver(
        one_engine,
        [{"id": "event_far", "event": "organization_membership.updated", "created_at": FAR, "data": wrong}],
    )
    assert access(one_engine) == set()
    reported = found(one_engine, resync(one_engine, workos))
    assert reported["membership", member["id"]] == ("different", "repaired")
    assert differences(one_engine, world.truth()) == []
    world.update_membership(member["id"], role="admin")  # and what comes next is not stale
    deliver(one_engine, world.events[-1:])
    assert differences(one_engine, world.truth()) == []


@pytest.mark.long
@pytest.mark.parametrize("gone", ["membership", "user", "organization", "organization_domain"])
def test_resync_tombstone_is_undone_if_object_exists(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, gone: str
) -> None:
    world = sandbox.world
    small_life(world, 3, 3)
    catch_up_with(one_engine, world)
    resync(one_engine, workos)
    tables: dict[str, JSON] = {
        "membership": world.memberships,
        "user": world.users,
        "organization": world.organizations,
        "organization_domain": world.domains,
    }
    one = next(iter(tables[gone].values()))
    kind = gone.removeprefix("organization_")
    paths = {"organization": "/organizations", "user": "/user_management/users"}
    sandbox.faults.fail(f".*/{one['id']}", status=404, times=None)
    if kind in paths:
        second = list(tables[gone].values())[1]
        shown = world.show_organization(second["id"]) if kind == "organization" else second
        sandbox.faults.invalid_item(f"{paths[kind]}$", change=lambda item: shown)
    elif kind == "membership":
        path, query = "/user_management/organization_mem", f"organization_id={one['organization_id']}"
        sandbox.faults.invalid_item(path, query=query, change=lambda item: list(tables[gone].values())[1])
    else:
        sandbox.faults.invalid_item("/organizations$", change=lambda item: {**item, "domains": []})
    reported = found(one_engine, resync(one_engine, workos))
    assert reported[kind, one["id"]] == ("extra", "repaired")
    assert one["id"] not in live(one_engine)[kind]
    sandbox.faults.clear()

    # An event for it does not bring it back by itself, but asks.
    event = {"id": "event_doubt", "event": f"{gone}.updated", "created_at": one["updated_at"], "data": one}
    if gone == "membership":
        event["event"] = "organization_membership.updated"
    deliver(one_engine, [event])
    assert outcomes(one_engine, event) == ["tombstoned"]
    assert {(kind, id) for kind, id, _ in waiting(one_engine)} == {(kind, one["id"])}
    assert read_due(one_engine, workos) == 1
    assert waiting(one_engine) == set()
    assert differences(one_engine, world.truth()) == []


def test_reads_and_listings_that_only_a_later_release_knows_stop_nothing(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    """After a rollback, the old code finds what the new one had requested."""
    user = sandbox.world.create_user("ann@acme.example")["id"]

    def request(tx: Connection) -> None:
        of_later = {"kind": "group", "object_id": "group_1", "reason": "why", "event_id": "event_1"}
        tx.execute(insert(Read).values(of_later | {"due_at": db_now_plus(-60)}))
        own = {"kind": "user", "object_id": user, "reason": "why", "event_id": "event_1"}
        tx.execute(insert(Read).values(own | {"due_at": db_now_plus(-1)}))

    in_transaction(one_engine, request)
    assert work_due(one_engine, workos, lambda: False) == 1
    run_id = start(one_engine, by("clock"))
    in_transaction(one_engine, lambda tx: tx.execute(insert(Listing).values(run_id=run_id, name="groups", parent="")))
    assert resync(one_engine, workos) == run_id and run_row(one_engine, run_id)["status"] == "done"
    assert differences(one_engine, sandbox.world.truth()) == []


def test_next_resync_undoes_a_wrong_tombstone(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    world = sandbox.world
    kept = world.memberships[member["id"]]
    quietly(world, lambda: world.delete_membership(member["id"]))
    resync(one_engine, workos)
    assert access(one_engine) == set()
    world.memberships[member["id"]] = kept
    world.link(kept["organization_id"], "organization_membership", kept["id"])
    assert found(one_engine, resync(one_engine, workos)) == {("membership", kept["id"]): ("missing", "repaired")}
    assert differences(one_engine, world.truth()) == []


@pytest.mark.long
@pytest.mark.parametrize("by", ["resync", "event"])
def test_deleted_id_in_listing_is_an_anomaly(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON, by: str
) -> None:
    world = sandbox.world
    kept = world.memberships[member["id"]]
    world.delete_membership(member["id"])
    if by == "resync":  # found by a resync first, deleted by the event later
        resync(one_engine, workos)
    deliver(one_engine, world.events[-1:])
    world.memberships[member["id"]] = kept
    world.link(kept["organization_id"], "organization_membership", kept["id"])
    before = changes(one_engine)
    for _ in range(2):
        reported = found(one_engine, resync(one_engine, workos))
        assert reported["membership", kept["id"]] == ("anomaly", "reported")
    deliver(
        one_engine,
        [
            {
                "id": "event_on",
                "event": "organization_membership.updated",
                "created_at": FAR,
                "data": {**kept, "updated_at": FAR},
            }
        ],
    )
    assert waiting(one_engine) == set()
    assert access(one_engine) == set()
    assert {row["deleted_by"] for row in rows(one_engine, Membership)} == {"event"}
    assert changes(one_engine) - before <= 2  # the two roles, which have no events


def test_old_event_does_not_restore_deleted_role(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    world.create_role("billing")
    catch_up_with(one_engine, world)
    late = world.update_role("billing", permissions=["late"])
    assert late
    event = world.events[-1]
    quietly(world, lambda: world.delete_role("billing"))
    resync(one_engine, workos)
    deliver(one_engine, [event])
    assert "billing" not in live(one_engine)["role"]
    assert read_due(one_engine, workos) == 1
    assert "billing" not in live(one_engine)["role"]
    world.create_role("billing")
    deliver(one_engine, world.events[-1:])
    assert read_due(one_engine, workos) == 1
    assert "billing" in live(one_engine)["role"]


# Parents


def test_missing_parent_is_fetched_after_a_minute(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    sandbox.calls.clear()
    deliver(both_engines, [event_of(world, "organization_membership.created")])
    assert work_due(both_engines, workos, lambda: False) == 0 and sandbox.calls.total() == 0  # not yet
    assert {(kind, reason) for kind, _, reason in waiting(both_engines)} == {
        ("organization", "parent missing"),
        ("user", "parent missing"),
    }
    assert access(both_engines) == set()
    assert read_due(both_engines, workos) == 2
    assert sandbox.calls.total() == 2
    assert len(access(both_engines)) == 1
    asking = event_of(world, "organization_membership.created")["id"]
    assert {(row["cause"], row["cause_id"]) for row in rows(both_engines, Change)} == {("event", asking)}


def test_parent_that_arrived_needs_no_call(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    deliver(one_engine, [event_of(world, "organization_membership.created")])
    catch_up_with_rest = [e for e in world.events if e["event"] != "organization_membership.created"]
    deliver(one_engine, catch_up_with_rest)
    sandbox.calls.clear()
    read_due(one_engine, workos)
    assert waiting(one_engine) == set() and sandbox.calls.total() == 0
    assert differences(one_engine, world.truth()) == []


def test_unknown_parent_is_requested_once(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    event = event_of(world, "organization_membership.created")
    quietly(world, lambda: world.delete_user(next(iter(world.users))))
    deliver(one_engine, [event])
    read_due(one_engine, workos)
    assert waiting(one_engine) == set() and rows(one_engine, User) == []
    assert access(one_engine) == set()


# Roles


@pytest.mark.parametrize("how", ["events", "silently", "silently_same_version"])
@pytest.mark.parametrize("own", [True, False])
def test_role_deletion_rereads_its_memberships(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient, how: Any, own: bool
) -> None:
    world = sandbox.world
    small_life(world, 2, 3)
    sandbox.knobs.role_deletion = how
    company = next(iter(world.organizations))
    world.create_role("billing", organization_id=company if own else None)
    members = world.children(company, "organization_membership")
    world.update_membership(members[1], role="billing")
    world.update_membership(members[2], roles=["admin", "billing"])
    catch_up_with(both_engines, world)
    known = len(world.events)
    world.delete_role("billing", organization_id=company if own else None)
    deliver(both_engines, world.events[known:])
    sandbox.calls.clear()
    read_due(both_engines, workos)
    assert sandbox.calls.total() == (0 if how == "events" else 2)
    assert differences(both_engines, world.truth()) == []


# Objects that cannot be read


@pytest.mark.parametrize("status", [429, 400])
def test_failed_read_is_retried_later(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, status: int, logs: list[Any]
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    deliver(one_engine, [event_of(world, "organization_membership.created")])
    sandbox.faults.fail("/organizations/", status=status, times=None, retry_after=0)
    assert read_due(one_engine, workos) == 1  # the user
    [row] = rows(one_engine, Read)
    assert (row["attempts"], row["kind"]) == (1, "organization") and str(status) in row["error"]
    assert work_due(one_engine, workos, lambda: False) == 0  # not at once
    assert any(line["event"] == "read_failed" and line["again_in_seconds"] == 5 for line in logs)
    sandbox.faults.clear()
    assert read_due(one_engine, workos) == 1
    assert len(access(one_engine)) == 1


def test_rejected_key_keeps_read_requests(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    deliver(one_engine, [event_of(world, "organization_membership.created")])
    sandbox.faults.fail(status=401, times=None)
    with pytest.raises(InvalidApiKeyError):
        read_due(one_engine, workos)
    assert len(rows(one_engine, Read)) == 2


@pytest.mark.long
def test_malformed_object_is_not_applied(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    world = sandbox.world
    wrong = {**world.users[member["user_id"]], "last_name": "Wrong", "updated_at": FAR}
    deliver(one_engine, [{"id": "event_far", "event": "user.updated", "created_at": FAR, "data": wrong}])
    right = world.users[member["user_id"]]
    odd_once: list[str] = []

    def odd(_method: str, path: str, _query: object) -> None:
        if path.endswith(member["user_id"]):
            odd_once.append(path)
            world.users[member["user_id"]] = {**right, "id": "user_other"}

    sandbox.on_request = odd
    reported = found(one_engine, resync(one_engine, workos))
    assert reported["user", member["user_id"]] == ("invalid", "reported") and odd_once
    assert "user_other" not in live(one_engine)["user"]
    sandbox.on_request = None
    world.users[member["user_id"]] = right
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


# Compare and set


@pytest.mark.parametrize("times", [1, 3])
def test_object_changed_during_read_is_read_again(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON, times: int
) -> None:
    world = sandbox.world
    user = member["user_id"]
    world.users[user] = {**world.users[user], "last_name": "In doubt"}
    left = [*range(times)]

    def meddle(_method: str, path: str, _query: object) -> None:
        if path.endswith(user) and left:
            world.update_user(user, first_name=f"Change {left.pop()}")
            deliver(one_engine, world.events[-1:])

    sandbox.on_request = meddle
    sandbox.calls.clear()
    resync(one_engine, workos)
    assert sandbox.calls["GET", "/user_management/users/{id}"] == times + 1
    assert differences(one_engine, world.truth()) == []


@pytest.mark.long
def test_constantly_changing_object_is_reported(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    world = sandbox.world
    user = member["user_id"]
    world.users[user] = {**world.users[user], "last_name": "In doubt"}
    numbers: Callable[[], int] = iter(range(10**6)).__next__

    def meddle(_method: str, path: str, _query: object) -> None:
        if path.endswith(user):
            world.update_user(user, first_name=f"Change {numbers()}")
            deliver(one_engine, world.events[-1:])

    sandbox.on_request = meddle
    run_id = start(one_engine, by("test"))
    for _ in range(3):
        if continue_run(one_engine, workos, run_id):
            break
    assert found(one_engine, run_id)["user", user] == ("invalid", "reported")
    sandbox.on_request = None
    assert differences(one_engine, world.truth()) == []


MEMBER = "organization_membership"


def tied(kind: str, event_id: str, **data: Any) -> JSON:
    """An event with the same two times as every other event made by this function."""
    return made(f"{kind}.updated", 1, event_id=event_id, **data)


ACTIVE: JSON = {"status": "active", "roles": []}


@pytest.mark.parametrize(
    ("kind", "column", "less", "more", "kept"),
    [
        (MEMBER, "role", ACTIVE | {"role": {"slug": "member"}}, ACTIVE | {"role": {"slug": "admin"}}, "member"),
        (MEMBER, "status", ACTIVE | {"status": "inactive"}, ACTIVE, "inactive"),
        ("organization_domain", "verification", {"state": "failed"}, {"state": "verified"}, "failed"),
        ("user", "email_verified", {"email_verified": False}, {"email_verified": True}, False),
    ],
)
@pytest.mark.parametrize("higher", ["more", "less"])
@pytest.mark.parametrize("last", ["more", "less"])
def test_events_at_the_same_time_keep_the_lesser_access_and_request_a_read(
    one_engine: Engine, kind: str, column: str, less: JSON, more: JSON, kept: object, higher: str, last: str
) -> None:
    ids = {"more": "event_01K", "less": "event_01K", higher: "event_01Z"}
    events = {"less": tied(kind, ids["less"], **less), "more": tied(kind, ids["more"], **more)}
    for event in sorted(events, key=lambda name: name == last):
        deliver(one_engine, [events[event]])
    name = kind.removeprefix("organization_")
    [row] = rows(one_engine, KINDS[name].table)
    assert row[column] == kept
    requested = {read for read in waiting(one_engine) if read[2] != "parent missing"}
    assert requested == {(name, row["id"], "another state at the same time")}


def test_a_read_settles_events_at_the_same_time(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    world = sandbox.world
    truth = world.update_membership(member["id"], role="admin")
    at = {"created_at": truth["updated_at"], "event": "organization_membership.updated"}
    admin = at | {"id": "event_01K", "data": truth}
    other = at | {"id": "event_01Z", "data": truth | {"role": {"slug": "member"}, "roles": [{"slug": "member"}]}}
    deliver(one_engine, [admin, other])
    assert {role for *_, role in access(one_engine)} == {"member"}
    assert read_due(one_engine, workos) == 1
    assert differences(one_engine, world.truth()) == [] and {role for *_, role in access(one_engine)} == {"admin"}
    settled = mirrored(one_engine), changes(one_engine)
    in_transaction(one_engine, lambda tx: tx.execute(update(Event).values(status=EventStatus.PENDING)))
    apply_all(one_engine)  # a replay changes nothing
    assert (mirrored(one_engine), changes(one_engine)) == settled


def test_explain_names_a_tie(one_engine: Engine) -> None:
    admin = tied(MEMBER, "event_01Z", role={"slug": "admin"}, roles=[])
    member = tied(MEMBER, "event_01K", role={"slug": "member"}, roles=[])
    for order in ((admin, member), (member, admin)):
        for table in (Membership, Event, Change, Read):
            in_transaction(one_engine, lambda tx, table: tx.execute(delete(table)), table)
        for event in order:
            deliver(one_engine, [event])
        found = explain(one_engine, admin["data"]["id"])
        assert found is not None
        whys = {step["by"]: step["why"] for step in found["timeline"] if step["what"] == admin["event"]}
        if order[0] is admin:
            assert whys["event_01K"].startswith("kept over the previous state of the same time: changed role")
        else:
            assert whys["event_01Z"].startswith("not newer than the current state of the same time, which came from")
        assert any(step["why"].endswith("another state at the same time") for step in found["timeline"])


def test_an_unavailable_database_is_not_a_failure_of_the_object(
    make_database: Callable[[str], str], sandbox: Sandbox, workos: WorkOSClient
) -> None:
    url = make_database("postgresql")
    holder, engine = open_engine(url), open_engine(url, lock_timeout_ms=20)
    small_life(sandbox.world, 1, 1)
    deliver(engine, [event_of(sandbox.world, "organization_membership.created")])  # its parents are missing
    in_transaction(engine, lambda tx: tx.execute(update(Read).values(due_at=db_now())))
    with write_transaction(holder) as tx:
        advisory_lock(tx, CHANGES_LOCK)
        with pytest.raises(DBAPIError):
            work_due(engine, workos, lambda: False)
    assert [row["attempts"] for row in rows(engine, Read)] == [0, 0]
    holder.dispose()
    engine.dispose()

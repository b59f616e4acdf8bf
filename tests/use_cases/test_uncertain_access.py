"""A failed event makes only access to its object uncertain, and only until the object has been read from WorkOS."""

from collections.abc import Callable
from contextlib import closing
from itertools import cycle
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine, func, select, update

from models.access import Access
from models.database import in_transaction
from models.tables import Event, EventStatus, FailedEffect, Read, Run, RunStatus
from models.types import db_now_plus, db_plus
from models.views import EXPIRED_EVENTS, uncertain_access
from tests.support import JSON, accept, apply_all, event_row, made, rows
from tests.support.actors import by
from tests.support.catch_up import begin, users
from tests.support.mirror import MEMBERSHIP, ORG, USER, grant
from tests.support.ops import TOKEN, sign_in
from tests.support.processes import eventually
from tests.support.repair import settings
from tests.support.resync import (
    Between,
    Clock,
    client_of,
    deliver,
    make_reads_due,
    read_due,
    resync,
    run_row,
    small_life,
)
from tests.support.tail import TailProcess, ask, filled, following, fresh, pass_time, publish_applied, state, tail
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.inbox.dismissal import dismiss
from worker.inbox.drain import DrainLimits
from worker.inbox.selection import Selection
from worker.kinds import READERS
from worker.mirror.uncertainty import mark_all_uncertain
from worker.queue.doorbell import Doorbell
from worker.repair import replay as replays
from worker.repair.reads import work_due
from worker.repair.schedule import schedule
from worker.reports.explain import explain
from worker.runs import lease
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

NO_TIME = {"updated_at": None}
"""Makes an event of a live object unusable."""


def uncertain(engine: Engine) -> set[tuple[str, str]]:
    """The workspaces and persons whose access is uncertain."""
    return {(row["organization_id"], row["user_id"]) for row in rows(engine, uncertain_access)}


def fail(endpoint: FlaskClient, engine: Engine, *events: JSON) -> None:
    accept(endpoint, *events)
    apply_all(engine)
    assert {event_row(engine, event["id"])["status"] for event in events} == {EventStatus.FAILED}


def requested(engine: Engine) -> set[tuple[str, str]]:
    return {(row["kind"], row["object_id"]) for row in rows(engine, Read) if row["reason"] == "event failed"}


MEMBERSHIP_EVENT = "organization_membership.updated"


@pytest.mark.parametrize(
    ("type", "data", "affected", "read"),
    [
        # Its object.
        ("organization.updated", NO_TIME | {"id": "org_1"}, {("org_1", "")}, {("organization", "org_1")}),
        ("user.updated", NO_TIME | {"id": "user_1"}, {("", "user_1")}, {("user", "user_1")}),
        (
            MEMBERSHIP_EVENT,
            NO_TIME | {"id": "om_new", "organization_id": "org_1", "user_id": "user_1"},
            {("org_1", "user_1")},
            {("membership", "om_new")},
        ),
        # The mirror's own data about the object counts too.
        (
            MEMBERSHIP_EVENT,
            {"id": MEMBERSHIP, "organization_id": None, "user_id": None},
            {(ORG, USER)},
            {("membership", MEMBERSHIP)},
        ),
        (
            MEMBERSHIP_EVENT,
            NO_TIME | {"id": MEMBERSHIP, "organization_id": "org_1", "user_id": "user_1"},
            {(ORG, USER), ("org_1", "user_1")},
            {("membership", MEMBERSHIP)},
        ),
        # Its workspace, if its object is unknown, or whose it is.
        (MEMBERSHIP_EVENT, {"id": "..", "organization_id": "org_1"}, {("org_1", "")}, set()),
        (
            MEMBERSHIP_EVENT,
            {"id": "om_new", "organization_id": "org_1", "user_id": None},
            {("org_1", "")},
            {("membership", "om_new")},
        ),
        # Everything, if neither can be read.
        (MEMBERSHIP_EVENT, {"id": None, "organization_id": None}, {("", "")}, set()),
        ("user.deleted", {"id": None}, {("", "")}, set()),
        ("organization.deleted", {"id": 7}, {("", "")}, set()),
        # Nothing: these decide nobody's role.
        ("organization_domain.updated", NO_TIME | {"id": "org_domain_1"}, set(), {("domain", "org_domain_1")}),
        (
            "organization_domain.verification_failed",
            NO_TIME | {"id": "org_domain_1"},
            set(),
            {("domain", "org_domain_1")},
        ),
        ("connection.activated", NO_TIME | {"id": "conn_1"}, set(), {("connection", "conn_1")}),
        ("connection.activated", {"id": None}, set(), set()),
    ],
)
def test_an_event_that_failed_makes_access_to_its_object_uncertain(
    local_endpoint: FlaskClient,
    local_engine: Engine,
    type: str,
    data: JSON,
    affected: set[tuple[str, str]],
    read: set[tuple[str, str]],
) -> None:
    grant(local_endpoint, local_engine)
    fail(local_endpoint, local_engine, made(type, **data))
    assert uncertain(local_engine) == affected
    assert requested(local_engine) == read


@pytest.mark.parametrize("event", [{"data": None}, {"data": ["org_1"]}, {"data": {}}])
def test_an_event_without_readable_data_makes_everything_uncertain(
    local_endpoint: FlaskClient, local_engine: Engine, event: JSON
) -> None:
    fail(local_endpoint, local_engine, made("user.updated") | event)
    assert uncertain(local_engine) == {("", "")}


def test_an_ignored_event_makes_nothing_uncertain(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    accept(local_endpoint, made("dsync.activated") | {"data": None}, made("dsync.activated") | {"created_at": "soon"})
    apply_all(local_engine)
    assert uncertain(local_engine) == set()


def test_a_failed_deletion_of_a_role_requests_reads_of_its_members(
    local_endpoint: FlaskClient, local_engine: Engine
) -> None:
    grant(local_endpoint, local_engine, role={"slug": "owner"}, roles=[{"slug": "owner"}])
    fail(local_endpoint, local_engine, made("role.deleted", slug="owner") | {"created_at": None})
    assert {(row["kind"], row["object_id"]) for row in rows(local_engine, Read)} >= {
        ("membership", MEMBERSHIP),
        ("role", "owner"),
    }
    assert uncertain(local_engine) == set()


@pytest.mark.parametrize(
    ("type", "data", "affected"),
    [
        ("role.updated", {"resource_type_slug": "project"}, {("", "")}),
        ("organization_role.created", {"organization_id": ORG, "resource_type_slug": "project"}, {(ORG, "")}),
        ("role.updated", None, {("", "")}),
        ("role.updated", {}, set()),
        ("role.updated", {"resource_type_slug": "organization"}, set()),
        ("organization_role.updated", {"organization_id": ORG}, set()),
    ],
)
def test_a_failed_event_of_a_role_is_uncertain_if_it_may_be_of_another_resource_type(
    local_endpoint: FlaskClient, local_engine: Engine, type: str, data: JSON | None, affected: set[tuple[str, str]]
) -> None:
    grant(local_endpoint, local_engine)
    unusable: JSON = {"data": None} if data is None else {"created_at": None}
    fail(local_endpoint, local_engine, made(type, **JSON({"slug": "owner"} | (data or {}))) | unusable)
    assert uncertain(local_engine) == affected


@pytest.mark.long
def test_an_unusable_event_about_one_workspace_leaves_answers_about_others_fresh(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    """For an hour, a workspace causes an unusable event every minute."""
    small_life(sandbox.world, companies=2, people=2)
    world = sandbox.world
    bad, good = world.organizations
    begin(both_engines, workos)
    deliver(both_engines, world.events)
    filled(both_engines)
    member = {org: next(m for m in world.memberships.values() if m["organization_id"] == org) for org in (bad, good)}
    with closing(TailProcess(both_engines, workos, bell)) as process:
        for _, unusable in zip(range(60), cycle([{"id": None}, NO_TIME, {"id": ".."}, {"user_id": None}])):
            world.update_membership(member[bad]["id"], role="member")
            world.events[-1]["data"] = world.events[-1]["data"] | unusable
            pass_time(both_engines, clock, 60)
            process.read()
            apply_all(both_engines)
            publish_applied(both_engines)
            complete_to = state(both_engines)["complete_to"]
            assert complete_to == state(both_engines)["read_to"]
            assert ask(both_engines, member[good]["user_id"], good, 25) == Access("admin", complete_to)
            assert "was not applied" in str(ask(both_engines, member[bad]["user_id"], bad, 25))
    assert sum(row["status"] == EventStatus.FAILED for row in rows(both_engines, Event)) == 60
    assert uncertain(both_engines) == {(bad, ""), (bad, member[bad]["user_id"])}


def test_explain_and_the_page_of_a_workspace_show_why_bounded_answers_are_stale(
    local: Callable[..., Services],
) -> None:
    services = local(ops_tokens=f"ann:{TOKEN}")
    endpoint, engine = create_app(services).test_client(), services.engine
    grant(endpoint, engine)
    of_workspace = made(MEMBERSHIP_EVENT, id=None, organization_id=ORG)
    of_person = made("user.updated", id=USER, updated_at=None)
    of_member = made(MEMBERSHIP_EVENT, id=MEMBERSHIP, organization_id=ORG, user_id=USER, status=None, updated_at=None)
    of_others = (
        made("user.updated", id="user_other", updated_at=None),
        made("organization.updated", updated_at=None, id="org_x"),
    )
    fail(endpoint, engine, of_workspace, of_person, of_member, *of_others)

    def because_of(name: str) -> set[str]:
        found = explain(engine, name)
        assert found is not None
        return {row["event_id"] for row in found["uncertain"]}

    assert because_of(USER) == because_of(MEMBERSHIP) == {event["id"] for event in (of_workspace, of_person, of_member)}
    assert because_of(ORG) == {event["id"] for event in (of_workspace, of_member)}
    assert because_of("user_other") == {of_others[0]["id"]}
    sign_in(endpoint)
    page = endpoint.get(f"/ops/workspaces/{ORG}").get_data(as_text=True)
    assert "because 2 events failed" in page and f'href="/ops/explain?name={ORG}"' in page
    page = endpoint.get("/ops/explain", query_string={"name": ORG}).get_data(as_text=True)
    assert of_workspace["id"] in page and "a resync of the workspace, or the event is applied or dismissed" in page
    assert f"membership {MEMBERSHIP} is read from WorkOS" in page and f"user {USER} is read" not in page
    shown = endpoint.get("/ops/explain", query_string={"name": USER}).get_data(as_text=True)
    assert f"user {USER} is read from WorkOS" in shown
    in_transaction(engine, mark_all_uncertain, EXPIRED_EVENTS)
    assert EXPIRED_EVENTS in because_of("user_other") & because_of(ORG)


# How it ends


@pytest.fixture
def failed(both_engines: Engine, sandbox: Sandbox) -> JSON:
    """The only membership of a mirror that equals WorkOS, except that it ended, and that event was unusable."""
    small_life(sandbox.world, 1, 1)
    deliver(both_engines, sandbox.world.events)
    filled(both_engines)
    fresh(both_engines)
    [membership] = sandbox.world.memberships.values()
    sandbox.world.deactivate_membership(membership["id"])
    event = sandbox.world.events[-1]
    event["data"] = {**event["data"], "updated_at": None}
    deliver(both_engines, [event])
    assert "was not applied" in str(ask_about(both_engines, membership))
    return membership


def ask_about(engine: Engine, membership: JSON) -> Access | str:
    return ask(engine, membership["user_id"], membership["organization_id"])


def test_a_read_begun_after_the_failure_ends_the_uncertainty(
    both_engines: Engine, workos: WorkOSClient, failed: JSON
) -> None:
    assert read_due(both_engines, workos) == 1
    assert ask_about(both_engines, failed) == Access(None, state(both_engines)["complete_to"])
    assert rows(both_engines, Read) == []


def test_the_tail_makes_the_read_so_that_no_resync_delays_it(
    both_engines: Engine, workos: WorkOSClient, bell: Doorbell, failed: JSON
) -> None:
    begin(both_engines, workos)
    with following(both_engines, workos, bell):
        eventually(lambda: uncertain(both_engines) == set(), 20)
    assert rows(both_engines, Read) == []


def test_a_failed_read_does_not_end_the_uncertainty(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient, failed: JSON
) -> None:
    sandbox.faults.fail("/user_management/organization_memberships/", status=503, times=None)
    assert read_due(both_engines, workos) == 0
    assert "was not applied" in str(ask_about(both_engines, failed))


def test_a_read_begun_before_the_failure_does_not_end_the_uncertainty(
    both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient, redis: Redis, failed: JSON
) -> None:
    def fails_again(_path: str) -> None:
        between._happens = lambda _path: None
        deliver(both_engines, [made(MEMBERSHIP_EVENT, id=failed["id"], updated_at=None)])
        # By milliseconds: as SQLite counts, it may have been the one in which the read began.
        in_transaction(both_engines, lambda tx: tx.execute(later))

    newest = select(func.max(FailedEffect.event_id)).where(FailedEffect.event_id.startswith("event_made_"))
    later = update(FailedEffect).where(FailedEffect.event_id == newest.scalar_subquery())
    later = later.values(since=db_plus(FailedEffect.since, 0.002))
    between = Between(client_of(sandbox, redis), fails_again)
    make_reads_due(both_engines)
    left = iter([False])
    assert work_due(both_engines, between, lambda: next(left, True)) == 1
    between.close()
    assert "was not applied" in str(ask_about(both_engines, failed))
    in_transaction(both_engines, lambda tx: tx.execute(update(FailedEffect).values(since=db_now_plus(-1))))
    assert read_due(both_engines, workos) == 1  # it was requested again
    assert isinstance(ask_about(both_engines, failed), Access)


@pytest.mark.long
def test_a_dismissal_ends_the_uncertainty(both_engines: Engine, failed: JSON) -> None:
    [event] = [row for row in rows(both_engines, Event) if row["status"] == EventStatus.FAILED]
    dismiss(both_engines, [event["id"]], by("ann", "a test"))
    assert isinstance(ask_about(both_engines, failed), Access)


@pytest.mark.parametrize("usable", [False, True])
def test_a_replay_ends_the_uncertainty_once_the_event_is_applied(
    both_engines: Engine, bell: Doorbell, failed: JSON, monkeypatch: pytest.MonkeyPatch, usable: bool
) -> None:
    run_id = replays.start(both_engines, Selection(failed=True), by("ann", "a test"))
    with lease(both_engines, run_id) as held:
        assert held is not None
        assert replays.replay(both_engines, held, bell, 1e6)
    assert isinstance(ask_about(both_engines, failed), str)  # it is pending
    if usable:  # the release with the fix
        kind, reader = READERS[MEMBERSHIP_EVENT]

        def read(kind: Any, data: Any, envelope: Any, roles: Any) -> Any:
            data._value = {**data._value, "updated_at": "2091-01-01T00:00:00.000Z"}
            return reader(kind, data, envelope, roles)

        monkeypatch.setitem(READERS, MEMBERSHIP_EVENT, (kind, read))
    apply_all(both_engines)
    assert isinstance(ask_about(both_engines, failed), Access if usable else str)


def test_an_event_that_waits_for_its_next_attempt_counts_as_failed(
    both_engines: Engine,
    sandbox: Sandbox,
    clock: Clock,
    workos: WorkOSClient,
    bell: Doorbell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin(both_engines, workos)
    filled(both_engines)
    [event] = users(sandbox, clock, 1)
    user_id = event["data"]["id"]
    clock.advance(seconds=30)
    kind, reader = READERS["user.created"]

    def crash(*_: Any) -> Any:
        raise ValueError("a bug")

    monkeypatch.setitem(READERS, "user.created", (kind, crash))
    tail(both_engines, workos, bell)
    apply_all(both_engines, DrainLimits(first_backoff=600))
    assert event_row(both_engines, event["id"])["attempts"] == 1
    publish_applied(both_engines)
    assert state(both_engines)["complete_to"] == state(both_engines)["read_to"]
    assert isinstance(ask(both_engines, user_id, "org_1"), str)
    assert isinstance(ask(both_engines, "user_2", "org_1"), Access)

    monkeypatch.setitem(READERS, "user.created", (kind, reader))
    in_transaction(both_engines, lambda tx: tx.execute(update(Event).values(due_at=db_now_plus(-1))))
    apply_all(both_engines)
    assert isinstance(ask(both_engines, user_id, "org_1"), Access)


@pytest.mark.parametrize(
    ("data", "scope", "ends"),
    [
        ({"id": None, "organization_id": None}, {}, True),
        ({"id": None, "organization_id": None}, {"organization_id": "own"}, False),
        ({"id": None}, {"organization_id": "own"}, True),
        ({"id": None}, {"organization_id": "other"}, False),
        ({"id": None}, {}, True),
        ({"id": None}, {"dry_run": True}, False),
    ],
)
def test_a_resync_ends_the_uncertainty_about_an_unknown_object(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, data: JSON, scope: JSON, ends: bool
) -> None:
    small_life(sandbox.world, 2, 1)
    deliver(one_engine, sandbox.world.events)
    own, other = sandbox.world.organizations
    deliver(one_engine, [made(MEMBERSHIP_EVENT, **JSON({"organization_id": own} | data))])
    assert uncertain(one_engine) == {(data.get("organization_id", own) or "", "")}
    named = {"own": own, "other": other}
    run_id = resync(one_engine, workos, **{name: named.get(str(value), value) for name, value in scope.items()})
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert (uncertain(one_engine) == set()) is ends


@pytest.mark.long
def test_an_earlier_or_incomplete_resync_does_not_end_the_uncertainty(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    small_life(sandbox.world, 1, 1)
    deliver(one_engine, sandbox.world.events)

    def meanwhile(*_: object) -> None:
        sandbox.on_request = None
        deliver(one_engine, [made("user.updated") | {"data": None}])

    sandbox.on_request = meanwhile
    resync(one_engine, workos)
    assert uncertain(one_engine) == {("", "")}
    sandbox.faults.invalid_item("/user_management/users$", missing="id")
    resync(one_engine, workos)
    assert uncertain(one_engine) == {("", "")}
    resync(one_engine, workos)
    assert uncertain(one_engine) == set()


def test_an_unusable_object_that_decides_no_access_does_not_keep_the_uncertainty(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    small_life(sandbox.world, 1, 1)
    deliver(one_engine, sandbox.world.events)
    deliver(one_engine, [made("user.updated") | {"data": None}])
    sandbox.faults.fail("/user_management/invitations$", status=403, times=None)  # as for a key that may not list them
    resync(one_engine, workos)
    assert uncertain(one_engine) == set()


@pytest.mark.long
def test_the_clock_creates_the_resync_that_ends_the_uncertainty(one_engine: Engine, workos: WorkOSClient) -> None:
    begin(one_engine, workos)
    resync(one_engine, workos)
    in_transaction(one_engine, lambda tx: tx.execute(update(Run).values(created_at=db_now_plus(-3600))))
    deliver(one_engine, [made(MEMBERSHIP_EVENT, id=None, organization_id="org_1")])

    def created() -> list[str | None]:
        schedule(one_engine, settings())
        return [row["organization_id"] for row in rows(one_engine, Run) if row["requested_by"] == "uncertain access"]

    assert created() == ["org_1"]
    assert created() == ["org_1"], "one is enough"
    deliver(one_engine, [made("user.updated") | {"data": None}])
    in_transaction(one_engine, lambda tx: tx.execute(update(Run).values(created_at=db_now_plus(-3600), status="done")))
    assert sorted(map(str, created())) == ["None", "org_1"]


def test_other_requested_reads_make_nothing_stale(both_engines: Engine, failed: JSON, workos: WorkOSClient) -> None:
    read_due(both_engines, workos)
    orphan = made(MEMBERSHIP_EVENT, id="om_orphan", organization_id="org_unknown", user_id=failed["user_id"])
    deliver(both_engines, [orphan])
    assert rows(both_engines, Read) != []
    assert isinstance(ask_about(both_engines, failed), Access)

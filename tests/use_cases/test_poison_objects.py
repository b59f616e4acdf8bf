"""An object that cannot be used is counted, delayed and reported, and blocks no other."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import DBAPIError

from models.database import in_transaction
from models.tables import Event, Hook, HookDelivery, Read, RunStatus, Task
from models.types import db_now_plus
from tests.support import JSON, access, differences, made, rows
from tests.support.actors import by
from tests.support.auto_join import (
    Stage,
    apply_events,
    company,
    join_of,
    joins_of,
    mark_as_filled,
    members_at_workos,
    sign_up,
)
from tests.support.hooks import follow_all
from tests.support.processes import eventually
from tests.support.resync import (
    MEMBERSHIPS,
    continue_run,
    deliver,
    found,
    live,
    make_reads_due,
    mirror_of,
    quietly,
    read_due,
    resync,
    run_row,
    settings_of,
    small_life,
)
from worker.errors import WorkOSError
from worker.hooks.follow import Target, follow
from worker.hooks.threads import HookThreads
from worker.kinds import KINDS
from worker.mirror.read_requests import EVENT_FAILED, PARENT_MISSING, request_reads
from worker.queue.doorbell import Doorbell
from worker.repair.reads import fetch, work_due
from worker.repair.resync.listings import Key
from worker.repair.resync.resync import start
from worker.repair.work import Repair
from worker.reports.explain import explain
from worker.reports.verdict import judge
from worker.runs import create
from worker.sandbox import Sandbox
from worker.workos_api.client import Page, WorkOSClient

pytestmark = pytest.mark.long

INVALID_IDS = [
    *(".", "..", "../users", "org_1/../org_2", "a/b", "/", "a\0", "a\nb", "\x1b[31m", "é", "𐀀", "\ud800"),
    "x" * 256,
]


def refuse_rows(engine: Engine, table: str, when: str) -> None:
    """Make the database refuse matching rows."""
    assert engine.dialect.name == "sqlite"
    for verb in ("INSERT", "UPDATE"):
        statement = f"CREATE TRIGGER {verb}_{table} BEFORE {verb} ON {table} WHEN {when}"
        statement += " BEGIN SELECT RAISE(ABORT, 'poison'); END"
        in_transaction(engine, lambda tx: tx.execute(text(statement)))  # noqa: B023 - called now


def accept_rows(engine: Engine, table: str) -> None:
    for verb in ("INSERT", "UPDATE"):
        in_transaction(engine, lambda tx: tx.execute(text(f"DROP TRIGGER {verb}_{table}")))  # noqa: B023 - called now


def request_read(engine: Engine, kind: str, *ids: str, run_id: str = "") -> None:
    in_transaction(engine, partial(request_reads, kind=KINDS[kind], ids=ids, reason="a test", run_id=run_id))


# Ids


REFERENCES = [
    ("user.created", "id"),
    ("user.deleted", "id"),
    ("organization.created", "id"),
    ("organization_membership.created", "id"),
    ("organization_membership.created", "user_id"),
    ("organization_membership.updated", "organization_id"),
    ("organization_domain.verified", "organization_id"),
    ("connection.activated", "id"),
    ("role.created", "slug"),
    ("organization_role.created", "slug"),
    ("organization_role.created", "organization_id"),
    ("organization_role.deleted", "organization_id"),
]


@pytest.mark.parametrize("value", INVALID_IDS, ids=ascii)
def test_event_with_invalid_id_fails_alone(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, value: str
) -> None:
    small_life(sandbox.world, 1, 1)
    created = [event for event in sandbox.world.events if event["event"] == "organization_membership.created"]
    poison = [
        made(type, event_id=f"event_{place}", **JSON({name: value})) for place, (type, name) in enumerate(REFERENCES)
    ]
    before = live(one_engine)
    deliver(one_engine, poison + created)
    for (type, name), row in zip(
        REFERENCES, [row for row in rows(one_engine, Event) if row["id"] in {e["id"] for e in poison}], strict=True
    ):
        assert (row["status"], row["attempts"]) == ("failed", 1), (type, name)
        assert row["error"] == f"data.{name}: is not an id", (type, name)
    assert live(one_engine) == before | {"membership": {created[0]["data"]["id"]}}
    requested = rows(one_engine, Read)
    assert {row["kind"] for row in requested if row["reason"] == PARENT_MISSING} == {"organization", "user"}
    assert {row["reason"] for row in requested} == {PARENT_MISSING, EVENT_FAILED}
    assert read_due(one_engine, workos) == len(requested)
    assert len(access(one_engine)) == 1
    resync(one_engine, workos)
    assert differences(one_engine, sandbox.world.truth()) == []


@pytest.mark.parametrize("value", ["..", "a\nb", "x" * 256], ids=ascii)
def test_listed_object_with_invalid_id_is_reported(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, value: str
) -> None:
    small_life(sandbox.world, 1, 3)
    sandbox.faults.invalid_item(MEMBERSHIPS, item=0, change=lambda item: {**item, "user_id": value})
    sandbox.faults.invalid_item("/authorization/roles", item=0, change=lambda item: {**item, "slug": value})
    sandbox.faults.invalid_item("/user_management/users", item=0, change=lambda item: {**item, "id": value})
    reported = found(one_engine, resync(one_engine, workos))
    assert sum(finding == "invalid" for finding, _ in reported.values()) == 3
    assert len(live(one_engine)["membership"]) == 2
    assert differences(one_engine, sandbox.world.truth()) != []
    resync(one_engine, workos)
    assert differences(one_engine, sandbox.world.truth()) == []


def test_oversized_role_slug_grants_nothing(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    small_life(sandbox.world, 1, 2)
    long = "".join(f"{number:x}" for number in range(3000))
    sandbox.faults.invalid_item(MEMBERSHIPS, item=0, change=lambda item: {**item, "role": {"slug": long}, "roles": []})
    resync(both_engines, workos)
    deliver(both_engines, [made("organization_membership.created", role={"slug": long}, roles=[])])
    assert {row["status"] for row in rows(both_engines, Event)} == {"done"}
    assert sorted(role for _, _, role in access(both_engines)) == ["member", "member"]


# Calls that the library refuses


CALLS = {
    "a user": lambda workos, id: fetch(workos, KINDS["user"], id),
    "an organization": lambda workos, id: fetch(workos, KINDS["organization"], id),
    "a membership": lambda workos, id: fetch(workos, KINDS["membership"], id),
    "a role": lambda workos, id: fetch(workos, KINDS["role"], f"org_1/{id}"),
    "roles": lambda workos, id: Key("organization_roles", id).fetch(workos, None),
    "memberships": lambda workos, id: Key("memberships", id).fetch(workos, id),
    "to create": lambda workos, id: workos.create_membership(id, id, id, math.inf),
    "to deactivate": lambda workos, id: workos.deactivate_membership(id),
    "to change an endpoint": lambda workos, id: workos.update_webhook_endpoint(id, [id]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_sdk_exceptions_become_workos_errors(sandbox: Sandbox, workos: WorkOSClient, call: Any) -> None:
    for id in ("", ".", "..", "\ud800", "x" * 100_000):
        answered = None
        try:
            answered = call(workos, id)
        except WorkOSError as error:
            answered = error
        assert isinstance(answered, WorkOSError | Page), ascii(id[:9])


def test_invalid_request_is_not_retried(sandbox: Sandbox, workos: WorkOSClient) -> None:
    with pytest.raises(WorkOSError, match=r"ValueError at \S+\.py:\d+ in "):
        fetch(workos, KINDS["user"], "..")
    assert workos.calls == 1 and sandbox.calls.total() == 0


# Confirmed reads


def test_impossible_read_is_delayed_and_blocks_no_other(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, logs: list[Any]
) -> None:
    small_life(sandbox.world, 1, 1)
    user = next(iter(sandbox.world.users))
    request_read(one_engine, "user", "..", user)
    request_read(one_engine, "role", "org_1/..", "..")
    assert read_due(one_engine, workos) == 1
    assert user in live(one_engine)["user"]
    left = {(row["kind"], row["object_id"]): row["attempts"] for row in rows(one_engine, Read)}
    assert left == {("user", ".."): 1, ("role", "org_1/.."): 1, ("role", ".."): 1}
    assert work_due(one_engine, workos, lambda: False) == 0, "not at once"
    assert len([line for line in logs if line["event"] == "read_failed"]) == 3


def test_object_refused_by_database_blocks_no_other_read(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, logs: list[Any]
) -> None:
    small_life(sandbox.world, 1, 3)
    users = list(sandbox.world.users)
    refuse_rows(one_engine, "users", f"NEW.id = '{users[0]}'")
    request_read(one_engine, "user", *users)
    assert read_due(one_engine, workos) == 2
    [left] = rows(one_engine, Read)
    assert (left["object_id"], left["attempts"]) == (users[0], 1)
    assert left["error"].startswith("IntegrityError at ") and "poison" not in left["error"]
    assert [line["id"] for line in logs if line["event"] == "read_failed"] == [users[0]]
    accept_rows(one_engine, "users")
    assert read_due(one_engine, workos) == 1
    assert live(one_engine)["user"] == set(users)


def test_forbidden_kind_blocks_no_other_read(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    small_life(sandbox.world, 1, 1)
    user = next(iter(sandbox.world.users))
    sandbox.faults.fail("/connections", status=403, times=None)
    request_read(one_engine, "connection", "conn_1")
    request_read(one_engine, "user", user)
    assert read_due(one_engine, workos) == 1
    [left] = rows(one_engine, Read)
    assert (left["object_id"], left["attempts"]) == ("conn_1", 1) and "403" in left["error"]


def test_repeatedly_unreadable_object_is_a_warning(local: Any, sandbox: Sandbox, workos: WorkOSClient) -> None:
    services = local(**settings_of(sandbox))
    request_read(services.engine, "user", "user_1/x")
    for _ in range(5):
        assert "unread_objects" not in warnings(services)
        read_due(services.engine, workos)
    sandbox.faults.fail("/user_management/users/", status=400, times=None)
    request_read(services.engine, "user", "user_2")
    for _ in range(5):
        read_due(services.engine, workos)
    assert "1 object" in warnings(services)["unread_objects"] and "user_2" in warnings(services)["unread_objects"]
    explained = explain(services.engine, "user_2")
    assert explained is not None
    assert "attempt 5 failed" in explained["timeline"][-1]["why"] and "400" in explained["timeline"][-1]["why"]


def warnings(services: Any) -> dict[str, str]:
    verdict = judge(services.engine, services.redis, services.settings)
    return {each.name: each.text for each in verdict.conditions if each.severity == "warning"}


# Resyncs


def test_resync_finishes_despite_invalid_id(one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    mirror_of(one_engine, sandbox, workos, 2)
    gone = next(iter(sandbox.world.memberships))
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(gone))
    run_id = start(one_engine, by("test"))
    request_read(one_engine, "user", "..", run_id=run_id)
    assert continue_run(one_engine, workos, run_id)
    assert found(one_engine, run_id) == {
        ("user", ".."): ("invalid", "reported"),
        ("membership", gone): ("extra", "repaired"),
    }


@pytest.mark.parametrize("table", ["users", "organizations", "memberships", "domains"])
def test_listed_object_refused_by_database_is_reported(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, table: str
) -> None:
    world = sandbox.world
    mirror_of(one_engine, sandbox, workos, 3)
    known = live(one_engine)
    kind = table.removesuffix("s")
    tables: dict[str, JSON] = {
        "users": world.users,
        "organizations": world.organizations,
        "memberships": world.memberships,
        "domains": world.domains,
    }
    bad, gone = [list(world.memberships)[place] for place in (1, -1)]
    with world.silently():
        small_life_named(world)
        poison = list(tables[table])[-1]
        world.delete_membership(gone)
    refuse_rows(one_engine, table, f"NEW.id = '{poison}'")
    run_id = start(one_engine, by("test"))
    assert continue_run(one_engine, workos, run_id)
    assert run_row(one_engine, run_id)["status"] == RunStatus.DONE
    assert found(one_engine, run_id)[kind, poison] == ("invalid", "reported")
    for each in ids(world):
        assert live(one_engine)[each] == ids(world)[each] - {poison} | known[each] - {gone}, each
    assert bad in live(one_engine)["membership"]
    accept_rows(one_engine, table)
    resync(one_engine, workos)
    assert differences(one_engine, world.truth()) == []


def small_life_named(world: Any) -> None:
    made = world.create_organization("New", domains=[("new.example", "verified")])
    for name in ("ann", "bob"):
        world.create_membership(made["id"], world.create_user(f"{name}@new.example")["id"])


def ids(world: Any) -> dict[str, set[str]]:
    roles = {"/".join(filter(None, key)) for key in world.roles}
    return {
        "organization": set(world.organizations),
        "user": set(world.users),
        "membership": set(world.memberships),
        "domain": set(world.domains),
        "role": roles,
        "connection": set(world.connections),
        "permission": set(world.permissions),
        "invitation": set(world.invitations),
    }


def test_unexpected_failure_ends_only_that_run(
    local: Any, sandbox: Sandbox, workos: WorkOSClient, redis: Redis, logs: list[Any]
) -> None:
    services = local(**settings_of(sandbox))
    engine = services.engine
    mirror_of(engine, sandbox, workos, 2)
    mark_as_filled(engine)
    user = next(iter(sandbox.world.users))
    refuse_rows(engine, "runs", "NEW.phase = 'delete'")
    run_id = start(engine, by("test"))
    catching_up = in_transaction(engine, create, Task.CATCH_UP, "test")
    request_read(engine, "user", user)
    make_reads_due(engine)
    Repair(engine, workos, services.settings, Doorbell(redis, "drain")).work_on_all()
    failed = run_row(engine, run_id)
    assert failed["status"] == RunStatus.FAILED and failed["error"].startswith("IntegrityError at ")
    assert run_row(engine, catching_up)["status"] == RunStatus.DONE
    assert rows(engine, Read) == []
    assert any(line["event"] == "run_failed" and line["run"] == run_id for line in logs)


def test_reads_continue_when_events_are_forbidden(
    local: Any, sandbox: Sandbox, workos: WorkOSClient, redis: Redis
) -> None:
    services = local(**settings_of(sandbox))
    mirror_of(services.engine, sandbox, workos, 1)
    mark_as_filled(services.engine)
    sandbox.faults.fail("/events", status=403, times=None)
    run_id = in_transaction(services.engine, create, Task.CATCH_UP, "test")
    request_read(services.engine, "user", next(iter(sandbox.world.users)))
    make_reads_due(services.engine)
    Repair(services.engine, workos, services.settings, Doorbell(redis, "drain")).work_on_all()
    assert run_row(services.engine, run_id)["status"] == RunStatus.FAILED
    assert rows(services.engine, Read) == []


# Provisioning


def test_join_refused_by_database_blocks_no_other(stage: Stage) -> None:
    org = company(stage.world)
    users = [sign_up(stage.world, f"{name}@acme.example") for name in ("ann", "bob", "cid")]
    refuse_rows(stage.engine, "joins", f"NEW.user_id = '{users[0]}' AND NEW.state = 'joined'")
    stage.settle()
    assert joins_of(stage.engine) == {users[0]: "pending", users[1]: "joined", users[2]: "joined"}
    assert join_of(stage.engine, users[0])["error"].startswith("IntegrityError at ")
    accept_rows(stage.engine, "joins")
    stage.settle()
    assert set(joins_of(stage.engine).values()) == {"joined"}
    assert members_at_workos(stage.world) == {(org, user): ["active"] for user in users}


FOREIGN = {
    "no membership": b"{}",
    "nothing": b"",
    "html": b"<!doctype html>",
    "of another person": b'{"id":"om_1","organization_id":"org_1","user_id":"user_1","status":"active"}',
}


@pytest.mark.parametrize("body", FOREIGN.values(), ids=FOREIGN)
def test_unusable_answer_to_create_is_checked_before_retry(stage: Stage, body: bytes) -> None:
    org = company(stage.world)
    user = sign_up(stage.world)
    stage.sandbox.faults.answer("/user_management/organization_mem", body, method="POST", status=201, times=1)
    stage.receive_events()
    for _ in range(2):
        stage.let_time_pass()
        stage.run_worker()
    assert join_of(stage.engine, user)["state"] == "pending" and join_of(stage.engine, user)["attempts"] == 1
    stage.settle()
    assert join_of(stage.engine, user)["membership_id"] in stage.world.memberships
    assert members_at_workos(stage.world) == {(org, user): ["active"]}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_foreign_404_drops_no_join(stage: Stage, method: str) -> None:
    company(stage.world)
    user = sign_up(stage.world)
    path = "/user_management/organization_mem"
    stage.sandbox.faults.answer(path, b"<!doctype html>", method=method, status=404)
    stage.receive_events()
    for _ in range(3):
        stage.let_time_pass()
        stage.run_worker()
    assert joins_of(stage.engine) == {user: "pending"} and "404" in join_of(stage.engine, user)["error"]
    stage.sandbox.faults.clear()
    stage.settle()
    assert joins_of(stage.engine) == {user: "joined"}


def test_memberships_of_another_user_are_not_used(stage: Stage) -> None:
    org = company(stage.world)
    other = stage.world.create_user("eve@elsewhere.example")["id"]
    stage.world.create_membership(org, other)
    user = sign_up(stage.world)
    shown = next(iter(stage.world.memberships.values()))
    body = b'{"object":"list","data":[%s],"list_metadata":{"after":null}}' % json.dumps(shown).encode()
    stage.sandbox.faults.answer(MEMBERSHIPS, body, query="user_id=")
    stage.receive_events()
    for _ in range(3):
        stage.let_time_pass()
        stage.run_worker()
    assert joins_of(stage.engine) == {user: "pending"}


# Hooks


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even its text cannot be had")


def test_unprintable_error_counts_as_failure(one_engine: Engine) -> None:
    received = []

    def host(message: JSON) -> None:
        if message["data"]["object_id"] == "user_1":
            raise UnspeakableError
        received.append(message["data"]["object_id"])

    apply_events(one_engine, [made("user.created", id=id, email=f"{id}@acme.example") for id in ("user_1", "user_2")])
    for _ in range(2):
        follow_all(one_engine, {"host": host}, 2)
        in_transaction(one_engine, lambda tx: tx.execute(update(HookDelivery).values(due_at=db_now_plus(-1))))
    assert received == ["user_2"]
    [row] = rows(one_engine, HookDelivery)
    assert (row["status"], row["attempts"]) == ("failed", 2) and "UnspeakableError" in row["error"]


def test_failing_hook_does_not_stop_others(one_engine: Engine) -> None:
    received: list[JSON] = []
    apply_events(one_engine, [made("user.created", id="user_1", email="ann@acme.example")])
    refuse_rows(one_engine, "hooks", "NEW.name = 'bad' AND NEW.cursor > 0")
    targets: dict[str, Target] = {"bad": print, "good": received.append}
    failed: list[str] = []

    @contextmanager
    def contained(name: str) -> Iterator[None]:
        try:
            yield
        except DBAPIError:
            failed.append(name)

    threads = HookThreads(targets, lambda name, _: follow(one_engine, name, targets[name], 3), contained)
    threads.wake()
    eventually(lambda: len(received) == 1 and failed, 10)
    threads.close()
    assert {row["name"]: row["cursor"] for row in rows(one_engine, Hook)} == {"bad": 0, "good": 1}
    assert set(failed) == {"bad"}

"""Read your own writes: a product asks for something to be read from WorkOS, and waits for the mirror."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from sqlalchemy import Engine, delete, insert, update
from werkzeug.test import TestResponse

from models.database import in_transaction
from models.tables import Change, Event, EventStatus, Refresh
from models.types import db_now_plus
from tests.support import JSON, accept, access, apply_all, made, mirrored, rows
from tests.support.catch_up import begin
from tests.support.processes import eventually
from tests.support.resync import CLIENT_ID, MEMBERSHIPS, Between, catch_up_with, changes, quietly
from tests.support.tail import filled, following, fresh, state
from webhooks.api import waiting
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.queue.doorbell import Doorbell
from worker.repair.refresh import ACCESS, MAX_WAITING, Target, request, work_due
from worker.sandbox import Sandbox
from worker.workos_api.bucket import TAIL, Buckets
from worker.workos_api.client import WorkOSClient, open_client

TOKEN, OTHER, READER = "refresher-token-0123456789", "other-token-0123456789", "reader-token-0123456789"


SETTINGS = {
    "api_tokens": f"product:{TOKEN},other:{OTHER},reports:{READER}",
    "api_refresh_names": "product,other",
    "web_threads": 4,
}


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services(**SETTINGS)


@pytest.fixture
def on_sqlite(local: Callable[..., Services]) -> Services:
    return local(**SETTINGS)


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture
def wait_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A function that sets for how many seconds requests wait."""
    return partial(monkeypatch.setattr, waiting, "WAIT_SECONDS")


@pytest.fixture
def member(both_engines: Engine, sandbox: Sandbox, workos: WorkOSClient) -> JSON:
    """The membership of a member, which the mirror has."""
    begin(both_engines, workos)
    organization = sandbox.world.create_organization("Acme")
    user = sandbox.world.create_user("ann@acme.example")
    membership = sandbox.world.create_membership(organization["id"], user["id"])
    catch_up_with(both_engines, sandbox.world)
    return membership


@pytest.fixture
def tailing(both_engines: Engine, workos: WorkOSClient, bell: Doorbell, member: JSON) -> Iterator[None]:
    """A process that tails, but reads events only once a minute."""
    with following(both_engines, workos, bell, tail_seconds=60.0):
        yield


def post(endpoint: FlaskClient, token: str = TOKEN, **body: Any) -> TestResponse:
    return endpoint.post("/api/v1/refresh", json=body, headers={"Authorization": f"Bearer {token}"})


def refreshed(endpoint: FlaskClient, **body: Any) -> JSON:
    response = post(endpoint, **body)
    assert response.status_code == 200, response.text
    answer: JSON = response.json or {}
    return answer


def pair(membership: JSON) -> JSON:
    return {name: membership[name] for name in ("organization_id", "user_id")}


def role(endpoint: FlaskClient, membership: JSON) -> Any:
    return refreshed(endpoint, **pair(membership))["access"]["role"]


def ask(engine: Engine, *target: str) -> str:
    id = in_transaction(engine, request, Target(*target), "product")
    assert id is not None
    return id


@pytest.mark.usefixtures("tailing")
def test_an_object_is_read_and_its_state_answered(
    endpoint: FlaskClient, engine: Engine, sandbox: Sandbox, member: JSON
) -> None:
    quietly(sandbox.world, lambda: sandbox.world.update_membership(member["id"], role="admin"))
    answer = refreshed(endpoint, kind="membership", id=member["id"])
    assert answer["access"] is None
    assert answer["object"].items() >= {"state": "active", "role": "admin", "user_id": member["user_id"]}.items()
    assert {found for *_, found in access(engine)} == {"admin"}
    change = rows(engine, Change)[-1]
    assert (change["object_id"], change["cause"], change["cause_id"]) == (member["id"], "refresh", "product")
    quietly(sandbox.world, lambda: sandbox.world.delete_membership(member["id"]))
    assert refreshed(endpoint, kind="membership", id=member["id"])["object"]["state"] == "deleted"
    assert access(engine) == set() and rows(engine, Refresh) == []


@pytest.mark.long
@pytest.mark.usefixtures("tailing")
def test_access_follows_each_change_at_workos(endpoint: FlaskClient, sandbox: Sandbox, member: JSON) -> None:
    world, id = sandbox.world, member["id"]
    assert role(endpoint, member) == "member"
    quietly(world, lambda: world.update_membership(id, role="admin"))
    assert role(endpoint, member) == "admin"
    quietly(world, lambda: world.deactivate_membership(id))
    assert role(endpoint, member) is None
    quietly(world, lambda: world.reactivate_membership(id))
    assert role(endpoint, member) == "admin"
    quietly(world, lambda: world.delete_membership(id))
    assert role(endpoint, member) is None
    quietly(world, lambda: world.create_membership(member["organization_id"], member["user_id"]))
    assert role(endpoint, member) == "member"  # another id, which only the list names


@pytest.mark.usefixtures("tailing")
def test_access_of_a_person_and_a_workspace_that_the_mirror_has_never_seen(
    endpoint: FlaskClient, sandbox: Sandbox
) -> None:
    with sandbox.world.silently():
        organization = sandbox.world.create_organization("New")
        user = sandbox.world.create_user("new@new.example")
        made = sandbox.world.create_membership(organization["id"], user["id"], role="admin")
    assert role(endpoint, made) == "admin"


@pytest.mark.usefixtures("tailing")
def test_an_empty_list_removes_nothing(endpoint: FlaskClient, sandbox: Sandbox, member: JSON) -> None:
    sandbox.faults.empty(MEMBERSHIPS)
    assert role(endpoint, member) == "member"
    sandbox.faults.fail(f"{MEMBERSHIPS}.*", query="user_id", status=404)
    assert role(endpoint, member) == "member"


@pytest.mark.usefixtures("tailing")
def test_an_unknown_id_is_404_and_leaves_no_trace(endpoint: FlaskClient, engine: Engine, member: JSON) -> None:
    before = mirrored(engine), changes(engine)
    for body, unknown in (
        ({"kind": "user", "id": "user_x"}, "user user_x"),
        ({"kind": "role", "id": f"{member['organization_id']}/none"}, f"role {member['organization_id']}/none"),
        (pair(member) | {"user_id": "user_x"}, "user user_x"),
        (pair(member) | {"organization_id": "org_x"}, "organization org_x"),
    ):
        response = post(endpoint, **body)
        assert response.status_code == 404
        assert response.json == {"error": f"{unknown} is unknown to WorkOS and to the mirror"}
    assert (mirrored(engine), changes(engine)) == before
    assert rows(engine, Refresh) == []


def test_other_tokens_only_read(endpoint: FlaskClient, engine: Engine) -> None:
    response = post(endpoint, READER, kind="user", id="user_1")
    assert response.status_code == 403 and response.json is not None
    assert "token reports may only read" in response.json["error"] and "API_REFRESH_NAMES" in response.json["error"]
    assert post(endpoint, "wrong-token-0123456789", kind="user", id="user_1").status_code == 401
    assert rows(engine, Refresh) == []


NONSENSE = {
    b"{": "the body is not JSON",
    b"[" * 100_000: "the body is not JSON",
    b"[]": "Input should be",
    b"{}": "give kind and id, or organization_id and user_id",
    b'{"kind": "user"}': "give kind and id",
    b'{"kind": "user", "id": "user_1", "organization_id": "org_1", "user_id": "user_1"}': "give kind and id",
    b'{"kind": "user", "id": "user_1", "user_id": "user_1"}': "give kind and id",
    b'{"kind": "group", "id": "group_1"}': "kind: must be one of",
    b'{"kind": "user", "id": "user_1", "x": 1}': "x: Extra inputs",
    b'{"kind": "user", "id": ".."}': "is not an id",
    b'{"kind": "role", "id": "org_1/a/b"}': "is not an id",
    b'{"organization_id": "", "user_id": "user_1"}': "organization_id: is not an id",
    b'{"organization_id": "org_1", "user_id": "a\\u0000"}': "user_id: is not an id",
}


def test_nonsense_is_400_with_one_line(on_sqlite: Services) -> None:
    endpoint = create_app(on_sqlite).test_client()
    for body, problem in NONSENSE.items():
        response = endpoint.post("/api/v1/refresh", data=body, headers={"Authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 400 and response.json is not None, body
        assert problem in response.json["error"] and "\n" not in response.json["error"]
    assert rows(on_sqlite.engine, Refresh) == []


def test_without_a_tail_a_refresh_is_202_and_is_read_later(
    endpoint: FlaskClient,
    engine: Engine,
    sandbox: Sandbox,
    workos: WorkOSClient,
    member: JSON,
    wait_for: Callable[[float], None],
) -> None:
    wait_for(0.2)
    quietly(sandbox.world, lambda: sandbox.world.update_membership(member["id"], role="admin"))
    response = post(endpoint, **pair(member))
    assert (response.status_code, response.json) == (202, {"error": None})
    work_due(engine, workos, lambda: False)
    assert {found for *_, found in access(engine)} == {"admin"} and rows(engine, Refresh) == []


@pytest.mark.usefixtures("tailing")
def test_while_workos_fails_a_refresh_is_202_with_the_reason_and_others_are_read(
    endpoint: FlaskClient, engine: Engine, sandbox: Sandbox, member: JSON
) -> None:
    """An answer that cannot be used, and a field that cannot be read, are failures of that request alone."""
    sandbox.faults.fail("/user_management/users/user_1$", status=503, times=None)
    sandbox.faults.spoil(f"/organizations/{member['organization_id']}", times=None, updated_at=7)
    for body, problem in (
        ({"kind": "user", "id": "user_1"}, "503"),
        ({"kind": "organization", "id": member["organization_id"]}, "updated_at"),
    ):
        response = post(endpoint, **body)
        assert response.status_code == 202 and response.json is not None
        assert problem in (response.json["error"] or "")
    assert len(rows(engine, Refresh)) == 2
    assert role(endpoint, member) == "member"


def test_requests_that_came_before_a_read_share_it_and_a_later_one_gets_its_own(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    first = [ask(engine, "membership", member["id"]) for _ in range(3)]
    later: list[str] = []

    def during(_path: str) -> None:
        if not later:
            left.update(row["id"] for row in rows(engine, Refresh))
            later.append(ask(engine, "membership", member["id"]))
            quietly(sandbox.world, lambda: sandbox.world.deactivate_membership(member["id"]))

    left: set[str] = set()
    between = Between(workos, during)
    work_due(engine, between, lambda: False)
    assert left == set(first) and between.calls == 2
    assert access(engine) == set() and rows(engine, Refresh) == []


def test_requests_share_a_row_that_waits_or_whose_read_failed(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    during: list[str] = []
    first = ask(engine, "user", "user_1")
    assert ask(engine, "user", "user_1") == first != ask(engine, "user", "user_2")
    sandbox.on_request = lambda *_: during.append(ask(engine, "user", "user_1"))
    sandbox.faults.fail("/user_management/users/user_1$", status=503, times=None)
    asked = iter((False, True))
    work_due(engine, workos, lambda: next(asked))
    sandbox.on_request = None
    assert len(set(during)) == 1 and first not in during, "the read had begun"
    failed = {row["id"]: row["attempts"] for row in rows(engine, Refresh)}
    assert len(failed) == 3 and failed[first] == 1
    in_transaction(engine, lambda tx: tx.execute(delete(Refresh).where(Refresh.id.in_(during))))
    assert ask(engine, "user", "user_1") == first
    assert [row["attempts"] for row in rows(engine, Refresh)] == [0, 0], "it is tried again at once"


def test_more_requests_of_a_token_than_can_be_read_are_429(
    on_sqlite: Services, wait_for: Callable[[float], None]
) -> None:
    wait_for(0)
    endpoint = create_app(on_sqlite).test_client()
    waiting = [
        {"id": f"{number}", "kind": "user", "object_id": f"user_{number}", "user_id": "", "requested_by": "product"}
        for number in range(MAX_WAITING)
    ]
    in_transaction(on_sqlite.engine, lambda tx: tx.execute(insert(Refresh), waiting))
    assert post(endpoint, kind="user", id="user_0").status_code == 202, "no other request"
    response = post(endpoint, kind="user", id="user_new")
    assert response.status_code == 429 and "too many requests" in (response.json or {})["error"]
    assert post(endpoint, OTHER, kind="user", id="user_new").status_code == 202
    assert len(rows(on_sqlite.engine, Refresh)) == MAX_WAITING + 1


def test_a_request_that_cannot_be_carried_out_is_dropped_after_ten_minutes(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    ask(engine, "user", "user_old")
    in_transaction(engine, lambda tx: tx.execute(update(Refresh).values(requested_at=db_now_plus(-601))))
    work_due(engine, workos, lambda: False)
    assert rows(engine, Refresh) == [] and not sandbox.calls.total()


def test_a_stop_leaves_the_rest_of_an_access_for_the_next_process(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    with sandbox.world.silently():
        organization, user = sandbox.world.create_organization("New"), sandbox.world.create_user("new@new.example")
        sandbox.world.create_membership(organization["id"], user["id"], role="admin")
    ask(engine, ACCESS, organization["id"], user["id"])
    asked = iter((False, True))
    work_due(engine, workos, lambda: False, lambda: next(asked))
    assert sandbox.calls.total() == 1 and len(rows(engine, Refresh)) == 1
    work_due(engine, workos, lambda: False)
    assert {found for *_, found in access(engine)} == {"admin"} and rows(engine, Refresh) == []


@pytest.mark.usefixtures("tailing")
def test_a_refused_list_is_404_only_for_what_workos_does_not_have(
    endpoint: FlaskClient, engine: Engine, sandbox: Sandbox, member: JSON
) -> None:
    sandbox.faults.fail(f"{MEMBERSHIPS}.*", query="user_id", status=400, times=None)
    before = changes(engine)
    assert post(endpoint, **pair(member) | {"user_id": "user_x"}).status_code == 404
    assert post(endpoint, **pair(member) | {"organization_id": "org_x"}).status_code == 404
    assert post(endpoint, **pair(member)).status_code == 202
    assert changes(engine) == before
    quietly(sandbox.world, lambda: sandbox.world.delete_user(member["user_id"]))
    assert role(endpoint, member) is None


def test_beyond_a_quarter_of_the_threads_nobody_waits(
    on_sqlite: Services, wait_for: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four threads may wait. While it does, others are answered at once."""
    wait_for(30)
    app = create_app(on_sqlite)
    waits = threading.Thread(target=lambda: post(app.test_client(), kind="user", id="user_1"))
    sleep, sleeps = time.sleep, threading.Event()

    def note_sleep(seconds: float) -> None:
        if threading.current_thread() is waits:
            sleeps.set()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", note_sleep)
    waits.start()
    assert sleeps.wait(10)
    assert post(app.test_client(), kind="user", id="user_2").status_code == 202
    assert get(app.test_client(), wait="event_none").status_code == 503
    assert waits.is_alive()
    assert {row["object_id"] for row in rows(on_sqlite.engine, Refresh)} == {"user_1", "user_2"}
    in_transaction(on_sqlite.engine, lambda tx: tx.execute(delete(Refresh)))
    waits.join()


@pytest.mark.long
def test_many_requests_do_not_slow_the_reads_of_events(
    one_engine: Engine, sandbox: Sandbox, redis: Redis, workos: WorkOSClient, bell: Doorbell
) -> None:
    """They take at most half of each interval, and so half of the tail's share, which is 10 calls a second."""
    begin(one_engine, workos)
    buckets = Buckets(redis, 1.0, own=TAIL)
    limited = open_client(sandbox.api_key, CLIENT_ID, sandbox.base_url, buckets)
    for number in range(30):
        ask(one_engine, "user", f"user_{number}")
    with closing(limited), following(one_engine, limited, bell, tail_seconds=1.0, workos_rate_share=1.0):
        eventually(lambda: not rows(one_engine, Refresh), 30)
    assert sandbox.calls["GET", "/events"] >= 5
    assert state(one_engine)["interval_seconds"] == 1.0


# Waiting for an event or a time


def get(endpoint: FlaskClient, **query: Any) -> TestResponse:
    asked = {"user_id": "user_1", "organization_id": "org_1"} | query
    return endpoint.get("/api/v1/access", query_string=asked, headers={"Authorization": f"Bearer {READER}"})


def test_access_waits_for_an_event(endpoint: FlaskClient, engine: Engine, wait_for: Callable[[float], None]) -> None:
    wait_for(0.1)
    event = made("user.updated")
    assert get(endpoint, wait=event["id"]).json == {
        "error": f"event {event['id']} is not applied",
        "complete_to": None,
        "retry_after": 5,
    }
    accept(endpoint, event)
    response = get(endpoint, wait=event["id"])
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    wait_for(30)
    applied = threading.Timer(0.05, apply_all, [engine])
    applied.start()
    assert get(endpoint, wait=event["id"]).json == {"role": None, "complete_to": None}
    applied.join()
    wait_for(0.1)
    set_status = update(Event).values(status=EventStatus.FAILED)
    in_transaction(engine, lambda tx: tx.execute(set_status))
    assert get(endpoint, wait=event["id"]).status_code == 503
    in_transaction(engine, lambda tx: tx.execute(set_status.values(status=EventStatus.DISMISSED)))
    assert get(endpoint, wait=event["id"]).status_code == 200


def test_access_waits_for_a_time(endpoint: FlaskClient, engine: Engine, wait_for: Callable[[float], None]) -> None:
    wait_for(0.1)
    assert get(endpoint, wait="2026-01-01T00:00:00Z").json == {
        "error": "the mirror is not filled yet",
        "complete_to": None,
        "retry_after": 60,
    }
    filled(engine)
    fresh(engine, 20)
    known: datetime = state(engine)["complete_to"]
    assert get(endpoint, wait=known.isoformat()).status_code == 200
    behind = get(endpoint, wait=(known + timedelta(seconds=12)).isoformat())
    assert (behind.status_code, behind.headers["Retry-After"]) == (503, "12")
    wait_for(30)
    moves = threading.Timer(0.05, fresh, [engine, 5])
    moves.start()
    assert get(endpoint, wait=(known + timedelta(seconds=12)).isoformat()).status_code == 200
    moves.join()


def test_access_is_stale_if_a_failed_event_before_that_time_may_have_changed_it(
    endpoint: FlaskClient, engine: Engine
) -> None:
    filled(engine)
    fresh(engine)
    accept(endpoint, made("user.updated", id="user_1", email=7, updated_at="never"))
    apply_all(engine)
    asked = state(engine)["complete_to"].isoformat()
    assert "may have changed this" in (get(endpoint, wait=asked).json or {})["error"]
    assert get(endpoint, wait=asked, user_id="user_2").status_code == 200


def test_a_nonsense_wait_is_400(on_sqlite: Services) -> None:
    endpoint = create_app(on_sqlite).test_client()
    for wait in ("2026-13-01", "2026-01-01T00:00:00 00:00", "", "ä"):
        response = get(endpoint, wait=wait)
        assert response.status_code == 400 and "wait: " in (response.json or {})["error"]

"""The JSON API: authentication, listings, the change feed and snapshots."""

import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from freezegun import freeze_time
from sqlalchemy import Engine, insert, update
from werkzeug.test import TestResponse

from models.database import in_transaction
from models.tables import Change, Drift
from models.types import db_now_plus
from tests.support import JSON, accept, apply_all, made
from tests.support.actors import by
from tests.support.mirror import ORG
from tests.support.resync import changes as number_of_changes
from webhooks.api.changes import MAX_SNAPSHOTS, SNAPSHOT_SECONDS
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.inbox.selection import Selection
from worker.mirror import change_feed
from worker.mirror.retention import Periods, retain
from worker.repair import replay as replays
from worker.repair.resync import resync

TOKEN = "reader-token-0123456789"


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services(api_tokens=f"product:{TOKEN},reports:another-token-0123")


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


def ask(
    endpoint: FlaskClient, path: str, token: str | None = TOKEN, *, buffered: bool = True, **query: Any
) -> TestResponse:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return endpoint.get(f"/api/v1/{path}", headers=headers, query_string=query, buffered=buffered)


def answer(endpoint: FlaskClient, path: str, **query: Any) -> Any:
    response = ask(endpoint, path, **query)
    assert response.status_code == 200, response.get_data(as_text=True)
    return response.json


@pytest.fixture
def story(endpoint: FlaskClient, engine: Engine) -> JSON:
    """A workspace with an admin and an auto-join domain, another workspace, and a failed event."""
    admin = {"slug": "admin"}
    events = {
        "organization": made("organization.created", name="Acme"),
        "other": made("organization.created", id="org_other", name="Other"),
        "user": made("user.created", email="ann@acme.example"),
        "membership": made("organization_membership.created", status="active", role=admin, roles=[admin]),
        "domain": made("organization_domain.verified", domain="acme.example", state="verified"),
        "failed": made("user.updated") | {"data": {"id": None}},
    }
    accept(endpoint, *events.values())
    apply_all(engine)
    return events


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "product", "ü"])
def test_missing_or_wrong_token_gets_401(local: Callable[..., Services], token: str | None) -> None:
    endpoint = create_app(local(api_tokens=f"product:{TOKEN}")).test_client()
    document = endpoint.get("/api/v1/openapi.json").json
    assert document is not None
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    for path, methods in document["paths"].items():
        response = endpoint.open(path, method=next(iter(methods)), headers=headers)
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer"), path
        assert response.json == {"error": "missing or invalid bearer token (see API_TOKENS)"}


def test_api_is_404_without_configured_tokens(local_endpoint: FlaskClient) -> None:
    assert ask(local_endpoint, "status").status_code == 404


def test_write_methods_get_405(endpoint: FlaskClient, story: JSON) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("members", "events", "replays", "changes"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert endpoint.open(f"/api/v1/{path}", method=method, headers=headers).status_code == 405


def test_every_token_is_compared(monkeypatch: pytest.MonkeyPatch, local: Callable[..., Services]) -> None:
    endpoint = create_app(
        local(api_tokens="a:first-token-of-api,b:second-token-of-api,c:third-token-of-api")
    ).test_client()
    compared: list[bytes] = []
    real = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    for token, status in (("first-token-of-api", 503), ("third-token-of-api", 503), ("no-token", 401)):
        compared.clear()
        assert ask(endpoint, "status", token).status_code == status
        assert len(compared) == 3


def test_mirror_is_readable(endpoint: FlaskClient, story: JSON) -> None:
    assert [row["name"] for row in answer(endpoint, "workspaces")["items"]] == ["Acme", "Other"]
    assert answer(endpoint, f"workspaces/{ORG}")["state"] == "active"
    (member,) = answer(endpoint, "members", organization_id=ORG)["items"]
    assert (member["email"], member["role"]) == ("ann@acme.example", "admin")
    assert answer(endpoint, "members", email="ann@acme.example")["items"] == [member]
    assert answer(endpoint, "members", user_id="user_nobody")["items"] == []
    (domain,) = answer(endpoint, "domains", organization_id=ORG)["items"]
    assert domain["auto_join"] and domain["why"]
    joined = {"organization_id": ORG, "default_role": "member"}
    assert answer(endpoint, "auto-join", email="new@ACME.example")["auto_join"] == joined
    assert answer(endpoint, "auto-join", email="new@elsewhere.example")["auto_join"] is None
    assert ask(endpoint, "workspaces/org_nobody").status_code == 404


def test_objects_are_found_by_the_products_keys(endpoint: FlaskClient, engine: Engine, story: JSON) -> None:
    keys: JSON = {"external_id": "17", "stripe_customer_id": "cus_1", "metadata": {"tier": "gold"}}
    accept(endpoint, made("organization.updated", 1, **keys), made("user.updated", 1, external_id="4711"))
    accept(endpoint, made("organization_membership.updated", 1, custom_attributes={"team": "red"}))
    apply_all(engine)
    (workspace,) = answer(endpoint, "workspaces", external_id="17")["items"]
    assert workspace["organization_id"] == ORG and keys.items() <= workspace.items()
    (member,) = answer(endpoint, "members", workspace_external_id="17", user_external_id="4711")["items"]
    assert (member["organization_id"], member["custom_attributes"]) == (ORG, {"team": "red"})
    assert answer(endpoint, "workspaces", external_id="18") == {"items": [], "next": None}
    assert answer(endpoint, "members", workspace_external_id="17", user_external_id="x")["items"] == []


def test_paging_returns_every_row_once(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, *(made("organization.created", id=f"org_{n}") for n in range(7)))
    apply_all(engine)
    for path, key in (("workspaces", "organization_id"), ("events", "id")):
        found, after = [], None
        for _ in range(9):
            page = answer(endpoint, path, limit=2, **({"after": after} if after else {}))
            found += [row[key] for row in page["items"]]
            if (after := page["next"]) is None:
                break
        assert len(found) == len(set(found)) == 7


def test_events_replays_and_resyncs_are_readable(endpoint: FlaskClient, engine: Engine, story: JSON) -> None:
    assert [row["id"] for row in answer(endpoint, "events", status="failed")["items"]] == [story["failed"]["id"]]
    event = answer(endpoint, f"events/{story['user']['id']}")
    assert event["outcome"] == "applied" and event["body"]["id"] == story["user"]["id"] and len(event["changes"]) == 1
    replay_id = replays.start(engine, Selection(failed=True), by("ann", "a try"))
    assert [row["id"] for row in answer(endpoint, "replays")["items"]] == [replay_id]
    assert answer(endpoint, f"replays/{replay_id}")["reason"] == "a try"
    resync_id = resync.start(engine, by("ann"))
    row = {"run_id": resync_id, "kind": "user", "object_id": "user_1", "finding": "extra", "action": "withheld"}
    in_transaction(engine, lambda tx: tx.execute(insert(Drift).values(row)))
    shown = answer(endpoint, f"resyncs/{resync_id}")
    assert (shown["findings"], shown["withheld"]) == ({"extra": 1}, 1)
    assert ask(endpoint, f"replays/{resync_id}").status_code == 404


def test_status_is_503_until_mirror_is_filled(endpoint: FlaskClient, services: Services) -> None:
    response = ask(endpoint, "status")
    assert response.status_code == 503 and response.json is not None
    assert any("never filled" in reason for reason in response.json["reasons"])


@pytest.mark.parametrize(
    ("path", "query", "names"),
    [
        ("changes", {"after": "x"}, "after"),
        ("changes", {"after": -1}, "after"),
        ("changes", {"wait": 26}, "wait"),
        ("members", {"limit": 501}, "limit"),
        ("members", {"organisation_id": "org_1"}, "organisation_id"),
        ("events", {"status": "lost"}, "status"),
        ("auto-join", {}, "email"),
    ],
)
def test_invalid_parameter_is_named(endpoint: FlaskClient, path: str, query: JSON, names: str) -> None:
    response = ask(endpoint, path, **query)
    assert response.status_code == 400 and response.json is not None
    assert names in response.json["error"]


@pytest.mark.parametrize("path", ["status", "members", "changes", "snapshot", "events/event_1"])
def test_unavailable_database_gets_503(build_test_services: Callable[..., Services], path: str) -> None:
    endpoint = create_app(
        build_test_services(database_url="sqlite:////proc/nowhere/all.db", api_tokens=TOKEN)
    ).test_client()
    response = ask(endpoint, path)
    assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
    assert response.json == {"error": "the database is unavailable; retry later"}


# The feed


def test_snapshot_and_feed_together_miss_no_change(endpoint: FlaskClient, engine: Engine, story: JSON) -> None:
    snapshot = answer(endpoint, "snapshot")
    assert [row["email"] for row in snapshot["workspace_members"]] == ["ann@acme.example"]
    assert {row["organization_id"] for row in snapshot["workspaces"]} == {ORG, "org_other"}
    assert [row["domain"] for row in snapshot["auto_join_domains"]] == ["acme.example"]
    after = snapshot["changes_after"]
    assert after == number_of_changes(engine)
    assert answer(endpoint, "changes", after=after) == {"items": [], "next": after}
    accept(endpoint, made("user.deleted", 9))
    apply_all(engine)
    page = answer(endpoint, "changes", after=after)
    assert [(row["kind"], row["after"]["state"]) for row in page["items"]] == [("user", "deleted")]
    assert answer(endpoint, "changes", after=page["next"])["items"] == []
    first = answer(endpoint, "changes", limit=2)
    assert len(first["items"]) == 2 and first["next"] == first["items"][-1]["id"]


def test_invitations_are_listed(endpoint: FlaskClient, engine: Engine) -> None:
    far: JSON = {"expires_at": "9998-01-01T00:00:00.000Z"}
    accept(
        endpoint,
        made("organization.created"),
        *(made("invitation.created", id=f"invitation_{n}", email=f"p{n}@acme.example", **far) for n in range(3)),
        made("invitation.revoked", id="invitation_3", email="p1@acme.example"),
        made("invitation.created", id="invitation_4", email="p4@acme.example", organization_id=None, **far),
    )
    apply_all(engine)

    def listed(**query: Any) -> list[str]:
        return [row["invitation_id"] for row in answer(endpoint, "invitations", **query)["items"]]

    assert listed() == [f"invitation_{n}" for n in range(4)], "one is to no workspace"
    assert listed(status="pending", organization_id=ORG) == ["invitation_0", "invitation_1", "invitation_2"]
    assert listed(email="P1@ACME.Example") == ["invitation_1", "invitation_3"] and listed(organization_id="org_x") == []
    first = answer(endpoint, "invitations", limit=2)
    assert [first["next"], *listed(limit=2, after=first["next"])] == ["invitation_1", "invitation_2", "invitation_3"]
    assert ask(endpoint, "invitations", state="pending").status_code == 400
    assert len(answer(endpoint, "snapshot")["workspace_invitations"]) == 4


def test_empty_mirror_has_a_snapshot(endpoint: FlaskClient) -> None:
    views = ("workspaces", "workspace_members", "workspace_invitations", "auto_join_domains", "sign_in_methods")
    assert answer(endpoint, "snapshot") == {"changes_after": 0, **{view: [] for view in views}}


def test_long_poll_returns_new_change(services: Services, endpoint: FlaskClient, engine: Engine) -> None:
    def change() -> None:
        accept(create_app(services).test_client(), made("organization.created"))
        apply_all(engine)

    threading.Timer(0.5, change).start()
    began = time.monotonic()
    page = answer(endpoint, "changes", wait=20)
    assert [row["kind"] for row in page["items"]] == ["organization"] and time.monotonic() - began < 10


def test_long_polls_leave_threads_for_others(local: Callable[..., Services]) -> None:
    """One of four threads may wait; another caller is answered at once."""
    app = create_app(local(api_tokens=TOKEN, web_threads=4))
    times: list[float] = []

    def poll() -> None:
        asked = time.monotonic()
        answer(app.test_client(), "changes", wait=3)
        times.append(time.monotonic() - asked)

    first = threading.Thread(target=poll)
    began = time.monotonic()
    first.start()
    while first.is_alive() and len(times) < 50:
        poll()
    first.join()
    assert min(times) < 0.5 and time.monotonic() - began >= 3.0


def test_pruned_cursor_gets_410_with_remedy(endpoint: FlaskClient, engine: Engine, story: JSON) -> None:
    before = number_of_changes(engine)
    in_transaction(
        engine, lambda tx: tx.execute(update(Change).where(Change.id <= 2).values(at=db_now_plus(-400 * 86400.0)))
    )
    retain(engine, Periods())
    response = ask(endpoint, "changes", after=1)
    assert response.status_code == 410 and response.json is not None
    assert "snapshot" in response.json["error"]
    assert [row["id"] for row in answer(endpoint, "changes", after=2)["items"]] == list(range(3, before + 1))
    # All of them dropped: the snapshot's id still goes on.
    in_transaction(engine, lambda tx: tx.execute(update(Change).values(at=db_now_plus(-400 * 86400.0))))
    retain(engine, Periods())
    assert answer(endpoint, "snapshot")["changes_after"] == before
    assert answer(endpoint, "changes", after=before)["items"] == []


def test_cursor_ahead_of_the_feed_gets_410(endpoint: FlaskClient, story: JSON, engine: Engine) -> None:
    """After a restore, a follower may be ahead of the feed and would wait forever."""
    assert ask(endpoint, "changes", after=number_of_changes(engine) + 1).status_code == 410


@pytest.fixture
def large(endpoint: FlaskClient, engine: Engine) -> None:
    """A mirror whose snapshot is sent in several pieces."""
    accept(endpoint, *(made("organization.created", id=f"org_{n}", name="x" * 9_000) for n in range(40)))
    apply_all(engine)


@pytest.mark.usefixtures("large")
def test_concurrent_snapshots_are_limited(endpoint: FlaskClient) -> None:
    being_read = [ask(endpoint, "snapshot", buffered=False) for _ in range(MAX_SNAPSHOTS)]
    assert [response.status_code for response in being_read] == [200] * MAX_SNAPSHOTS
    refused = ask(endpoint, "snapshot")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    assert ask(endpoint, "members").status_code == 200
    being_read[0].get_data()
    being_read[1].close()
    again = [ask(endpoint, "snapshot") for _ in range(MAX_SNAPSHOTS + 1)]
    assert [response.status_code for response in again] == [200] * (MAX_SNAPSHOTS + 1)


@pytest.mark.usefixtures("large")
def test_slow_snapshot_reader_is_disconnected(endpoint: FlaskClient) -> None:
    with freeze_time() as clock:
        slow = ask(endpoint, "snapshot", buffered=False)
        parts = slow.iter_encoded()
        next(parts)
        clock.tick(SNAPSHOT_SECONDS + 1)
        with pytest.raises(ConnectionResetError):
            list(parts)
    for _ in range(MAX_SNAPSHOTS + 1):  # its place is free, though it was never closed
        assert ask(endpoint, "snapshot").status_code == 200


def test_snapshot_is_consistent(endpoint: FlaskClient, engine: Engine, story: JSON) -> None:
    """A commit during the read is not in the snapshot, and follows as a change."""
    parts = change_feed.snapshot(engine)
    _, after = next(parts)
    accept(endpoint, made("organization.created", id="org_late"))
    apply_all(engine)
    shown = {row["organization_id"] for name, row in parts if name == "workspaces" and not isinstance(row, int)}
    assert "org_late" not in shown
    assert [row["object_id"] for row in answer(endpoint, "changes", after=after)["items"]] == ["org_late"]


def test_openapi_document_lists_every_route(endpoint: FlaskClient, services: Services) -> None:
    document = ask(endpoint, "openapi.json", token=None).json
    assert document is not None
    every = (rule.rule.replace("<path:", "<") for rule in endpoint.application.url_map.iter_rules())
    rules = {rule for rule in every if rule.startswith("/api/")}
    paths = {path.replace("{", "<").replace("}", ">") for path in document["paths"]}
    assert paths == rules - {"/api/v1/openapi.json"}
    assert "://" not in json.dumps({k: v for k, v in document.items() if k != "$schema"})

"""The operators' pages: sign-in, forged posts, and escaping."""

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask.testing import FlaskClient
from freezegun import freeze_time
from sqlalchemy import Engine, func, insert, select, update
from werkzeug.test import TestResponse

from models.database import in_transaction, read_transaction
from models.tables import Drift, Event, Run
from models.types import db_now_plus
from tests.support import JSON, accept, apply_all, made
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.queue.doorbell import REPAIR, Doorbell

TOKEN = "ann-signs-in-with-this-token"
ORG = made("organization.created")["data"]["id"]
EVIL = "<script>alert(1)</script>\"'{{ 7*7 }}"
NOWHERE = "sqlite:////proc/nowhere/all.db"
PAGES = ("", "events", "failures", "workspaces", "people", "permissions", "auto-join", "hooks", "explain", "runs")


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    key = {"workos_api_key": "sk_test", "workos_client_id": "client_test"}
    return local(ops_tokens=f"ann:{TOKEN},bob:another-token-of-bob-s", **key)


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture
def story(endpoint: FlaskClient, engine: Engine) -> JSON:
    """A workspace with a member and a domain, and a failed event; every name is an attack."""
    events = {
        "organization": made("organization.created", name=EVIL),
        "user": made("user.created", email=f"{EVIL}@acme.example"),
        "membership": made("organization_membership.created", status="active"),
        "domain": made("organization_domain.created", domain=EVIL, state="failed"),
        "failed": made("user.updated") | {"data": {"id": None, "email": EVIL}},
    }
    accept(endpoint, *events.values())
    apply_all(engine)
    return events


def form_token(answer: TestResponse) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', answer.get_data(as_text=True))
    assert found
    return found[1]


def sign_in(endpoint: FlaskClient, token: str = TOKEN, **form: str) -> TestResponse:
    page = endpoint.get("/ops/sign-in")
    return endpoint.post("/ops/sign-in", data={"token": token, "csrf_token": form_token(page), **form})


@pytest.fixture
def ann(endpoint: FlaskClient) -> FlaskClient:
    """A browser that is signed in."""
    assert sign_in(endpoint).status_code == 302
    return endpoint


def press(browser: FlaskClient, page: str, action: str, **form: str) -> TestResponse:
    """Press a button of a page."""
    answer = browser.get(f"/ops/{page}")
    assert f'action="/ops/{action}"' in unescape(answer.get_data(as_text=True)), answer.get_data(as_text=True)
    return browser.post(f"/ops/{action}", data={"csrf_token": form_token(answer), **form})


def runs(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        return tx.execute(select(func.count()).select_from(Run)).scalar_one()


def status(engine: Engine, event: JSON) -> str:
    with read_transaction(engine) as tx:
        return tx.execute(select(Event.status).where(Event.id == event["id"])).scalar_one()


# Sign-in


def test_pages_require_sign_in(endpoint: FlaskClient, story: JSON) -> None:
    for page in PAGES:
        answer = endpoint.get(f"/ops/{page}")
        assert answer.status_code == 401 and "acme" not in answer.get_data(as_text=True), page


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ann", f"ann:{TOKEN}", "ü"])
def test_wrong_token_does_not_sign_in(endpoint: FlaskClient, token: str) -> None:
    assert sign_in(endpoint, token).status_code == 401
    assert endpoint.get("/ops/").status_code == 401


def test_pages_are_404_without_configured_tokens(local: Callable[..., Services], logs: list[Any]) -> None:
    endpoint = create_app(local()).test_client()
    assert endpoint.get("/ops/").status_code == 404
    assert {line["event"]: line["reason"] for line in logs if line["event"].endswith("_disabled")} == {
        "ops_disabled": "OPS_TOKENS is not set",
        "api_disabled": "API_TOKENS is not set",
    }


def test_session_cookie_is_http_only_and_limited_to_pages(endpoint: FlaskClient) -> None:
    cookie = sign_in(endpoint).headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/ops", "Expires=")), cookie
    assert "Secure" not in cookie and TOKEN not in cookie
    secure = endpoint.get("/ops/sign-in", base_url="https://sync.acme.example").headers["Set-Cookie"]
    assert "Secure" in secure


def test_every_page_has_strict_content_security_policy(ann: FlaskClient) -> None:
    for page in (*PAGES, "sign-in", "no-such-page-of-a-run"):
        headers = ann.get(f"/ops/{page}").headers
        if page != "no-such-page-of-a-run":
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            assert headers["Cache-Control"] == "no-store" and headers["X-Content-Type-Options"] == "nosniff"


def test_pages_load_nothing_from_other_hosts(ann: FlaskClient, story: JSON) -> None:
    for page in PAGES:
        html = ann.get(f"/ops/{page}").get_data(as_text=True)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', html)
        assert not re.search(r"<script(?! src=\"/ops/static/)|style=|onclick=", html)


def test_session_ends_after_twelve_hours_or_token_change(
    services: Services, build_test_services: Callable[..., Services]
) -> None:
    with freeze_time("2026-03-01 12:00"):
        endpoint = create_app(services).test_client()
        sign_in(endpoint)
        assert endpoint.get("/ops/").status_code == 200
    with freeze_time("2026-03-02 00:01"):
        assert endpoint.get("/ops/").status_code == 401
    endpoint = create_app(services).test_client()
    sign_in(endpoint)
    cookie = endpoint.get_cookie("workos_sync_ops", path="/ops")
    assert cookie is not None
    changed = build_test_services(database_url=services.settings.database_url, ops_tokens="bob:another-token-of-bob-s")
    other = create_app(changed).test_client()
    other.set_cookie("workos_sync_ops", cookie.value, path="/ops")
    assert other.get("/ops/").status_code == 401


@pytest.mark.parametrize(
    "wanted", ["https://evil.example", "//evil.example", "/ops//evil.example", "/elsewhere", "/ops/\\x"]
)
def test_sign_in_redirects_only_to_own_pages(endpoint: FlaskClient, wanted: str) -> None:
    assert sign_in(endpoint, next=wanted).headers["Location"] == "/ops/"


def test_sign_in_redirects_to_requested_page(endpoint: FlaskClient) -> None:
    assert 'value="/ops/events"' in endpoint.get("/ops/events").get_data(as_text=True)
    assert sign_in(endpoint, next="/ops/events").headers["Location"] == "/ops/events"


def test_sign_out_ends_session(ann: FlaskClient) -> None:
    assert press(ann, "", "sign-out").status_code == 302
    assert ann.get("/ops/").status_code == 401


# Forged posts


POSTS = (
    "resync",
    "events/{failed}/replay",
    "events/{failed}/dismiss",
    "failures/{fingerprint}/replay",
    f"workspaces/{ORG}/resync",
    f"workspaces/{ORG}/auto-join",
    f"workspaces/{ORG}/people/user_1/unblock",
    f"workspaces/{ORG}/people/user_1/block",
    "hooks/sessions/replay",
    "hooks/sessions/dismiss",
    "runs/run1/approve",
    "runs/run1/cancel",
    "sign-out",
)


@pytest.fixture
def withheld(engine: Engine) -> str:
    """A run that withholds the deletion of the workspace."""
    run = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now_plus(-60)}
    row = {"run_id": "run1", "kind": "organization", "object_id": ORG, "finding": "extra", "action": "withheld"}
    in_transaction(engine, lambda tx: [tx.execute(insert(Run).values(run)), tx.execute(insert(Drift).values(row))])
    return "run1"


def test_post_without_session_or_csrf_token_changes_nothing(
    endpoint: FlaskClient, engine: Engine, story: JSON, withheld: str
) -> None:
    with read_transaction(engine) as tx:
        fingerprint = tx.execute(select(Event.fingerprint).where(Event.id == story["failed"]["id"])).scalar_one()
    urls = [f"/ops/{path.format(failed=story['failed']['id'], fingerprint=fingerprint)}" for path in POSTS]
    for url in urls:
        assert endpoint.post(url, data={"reason": "x"}).status_code == 401, url
    assert sign_in(endpoint).status_code == 302
    stranger = endpoint.application.test_client()
    foreign = form_token(stranger.get("/ops/sign-in"))
    for url in urls:
        for form in ({}, {"csrf_token": "forged"}, {"csrf_token": foreign}):
            assert endpoint.post(url, data={"reason": "x"} | form).status_code == 403, url
        assert runs(engine) == 1 and status(engine, story["failed"]) == "failed", url
        assert endpoint.get("/ops/").status_code == 200, f"{url}: still signed in"


def test_sign_in_requires_own_form(endpoint: FlaskClient) -> None:
    assert endpoint.post("/ops/sign-in", data={"token": TOKEN}).status_code == 403
    assert endpoint.get("/ops/").status_code == 401


# Actions


def test_replay_records_operator_and_reason(ann: FlaskClient, engine: Engine, services: Services, story: JSON) -> None:
    failed = story["failed"]["id"]
    answer = press(ann, f"events/{failed}", f"events/{failed}/replay", reason="after the fix")
    assert answer.status_code == 302
    shown = ann.get(answer.headers["Location"]).get_data(as_text=True)
    assert "by ann" in shown and "after the fix" in shown and "0 of 1" in shown
    assert Doorbell(services.redis, REPAIR).waiting() == 1
    again = ann.get("/ops/failures")
    assert "Replay all" in again.get_data(as_text=True)
    fingerprint = re.search(r"failures/(\w+)/replay", again.get_data(as_text=True))
    assert fingerprint
    busy = press(ann, "failures", f"failures/{fingerprint[1]}/replay")
    assert busy.status_code == 409 and "already running" in busy.get_data(as_text=True)


def test_dismissing_requires_reason(ann: FlaskClient, engine: Engine, story: JSON) -> None:
    failed = story["failed"]["id"]
    press(ann, f"events/{failed}", f"events/{failed}/dismiss", reason=" ")
    assert status(engine, story["failed"]) == "failed"
    press(ann, f"events/{failed}", f"events/{failed}/dismiss", reason="a test event")
    assert status(engine, story["failed"]) == "dismissed"
    assert "Dismissed by ann: a test event" in ann.get(f"/ops/events/{failed}").get_data(as_text=True)


def test_resync_and_approval_record_operator(ann: FlaskClient, engine: Engine, story: JSON, withheld: str) -> None:
    page = ann.get("/ops/runs/run1").get_data(as_text=True)
    assert "1 deletion is withheld" in page and "&lt;script&gt;" in page
    assert press(ann, "runs/run1", "runs/run1/approve").status_code == 302
    assert "Approved in" in ann.get("/ops/runs/run1").get_data(as_text=True)
    in_transaction(engine, lambda tx: tx.execute(update(Run).values(status="done", finished_at=db_now_plus(0))))
    assert press(ann, f"workspaces/{ORG}", f"workspaces/{ORG}/resync").status_code == 302
    with read_transaction(engine) as tx:
        asked = tx.execute(select(Run.requested_by, Run.organization_id).where(Run.id != "run1")).all()
    assert sorted((who, organization or "") for who, organization in asked) == [("ann", ""), ("ann", ORG)]


def test_no_resync_starts_without_api_key(local: Callable[..., Services]) -> None:
    services = local(ops_tokens=f"ann:{TOKEN}")
    ann = create_app(services).test_client()
    sign_in(ann)
    token = form_token(ann.get("/ops/"))
    for path in ("resync", f"workspaces/{ORG}/resync", "runs/run1/approve"):
        answer = ann.post(f"/ops/{path}", data={"csrf_token": token})
        assert answer.status_code == 409 and "WORKOS_API_KEY" in answer.get_data(as_text=True)
    assert runs(services.engine) == 0


@pytest.mark.parametrize("page", ["", "events", "workspaces", "runs"])
def test_unavailable_database_is_shown_on_page(build_test_services: Callable[..., Services], page: str) -> None:
    endpoint = create_app(build_test_services(database_url=NOWHERE, ops_tokens=f"ann:{TOKEN}")).test_client()
    sign_in(endpoint)
    answer = endpoint.get(f"/ops/{page}")
    assert answer.status_code == 503 and "Database unavailable" in answer.get_data(as_text=True)


def test_customer_text_does_not_become_markup(ann: FlaskClient, story: JSON) -> None:
    ids = [f"events/{event['id']}" for event in story.values()]
    named = [f"explain?name={story[what]['data']['id']}" for what in ("organization", "user", "membership", "domain")]
    seen = 0
    for page in (*PAGES, *ids, *named, f"workspaces/{ORG}", f"workspaces?name={EVIL}", f"people?email={EVIL}"):
        html = ann.get(f"/ops/{page}").get_data(as_text=True)
        assert "<script>alert" not in html and "49" not in re.findall(r"alert\(1\).{0,40}", html)
        seen += "alert(1)" in html
    assert seen >= 8


@pytest.mark.parametrize(
    "page", ["events/none", "workspaces/none", "runs/none", "explain?name=none", "events?after=none&status=%27;--"]
)
def test_unknown_id_gets_404_page(ann: FlaskClient, page: str) -> None:
    answer = ann.get(f"/ops/{page}")
    assert answer.status_code == (200 if page.startswith("events?") else 404)
    assert answer.content_type.startswith("text/html")


def test_events_page_filters(ann: FlaskClient, engine: Engine) -> None:
    accept(ann, *(made("organization.created", event_id=f"event_{n:03}", id=f"org_{n}") for n in range(60)))
    first = ann.get("/ops/events").get_data(as_text=True)
    older = re.search(r'href="([^"]*after=[^"]*)"', first)
    assert older and first.count("/ops/events/event_") == 50
    assert ann.get(unescape(older[1])).get_data(as_text=True).count("/ops/events/event_") == 10
    assert ann.get("/ops/events?status=failed").get_data(as_text=True).count("/ops/events/event_") == 0

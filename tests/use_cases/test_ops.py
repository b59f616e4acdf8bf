"""The operators' pages: sign-in, forged posts, and escaping."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from flask.testing import FlaskClient
from freezegun import freeze_time
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update
from werkzeug.test import TestResponse

from models.database import in_transaction, read_transaction
from models.tables import (
    Action,
    Audit,
    Drift,
    Event,
    FailedEffect,
    Hook,
    HookDelivery,
    InvitedAddress,
    MirrorState,
    OperatorSession,
    Run,
    Via,
)
from models.types import db_now_plus
from tests.benchmarks.access import fill
from tests.support import JSON, accept, apply_all, made, rows
from tests.support.mirror import ORG, USER
from tests.support.ops import TOKEN, form_token, sign_in
from webhooks.app import create_app
from worker.audit import REASON_REQUIRED
from worker.bootstrap import Services
from worker.kinds.invitation import Invitation
from worker.mirror.role_map import digest_of
from worker.queue.doorbell import REPAIR, Doorbell

TOKENS = f"ann:{TOKEN},bob:another-token-of-bob-s"
EVIL = "<script>alert(1)</script>\"'{{ 7*7 }}"
NOWHERE = "sqlite:////proc/nowhere/all.db"
PAGES = (
    "",
    "events",
    "failures",
    "workspaces",
    "people",
    "permissions",
    "auto-join",
    "hooks",
    "explain",
    "runs",
    "audit",
)


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    key = {"workos_api_key": "sk_test", "workos_client_id": "client_test"}
    return local(ops_tokens=TOKENS, **key)


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


def use_session_of(browser: FlaskClient, other: FlaskClient) -> None:
    """Copy a browser's cookie into another one."""
    cookie = other.get_cookie("workos_sync_ops", path="/ops")
    assert cookie is not None
    browser.set_cookie("workos_sync_ops", cookie.value, path="/ops")


def minutes(number: float) -> float:
    return number * 60


def hours(number: float) -> float:
    return number * 3600


def days(number: float) -> float:
    return hours(24 * number)


def set_session_times(engine: Engine, age: float, idle: float) -> None:
    """Make all sessions `age` seconds old, and their operators idle for `idle` seconds."""
    values = {"created_at": db_now_plus(-age), "seen_at": db_now_plus(-idle)}
    in_transaction(engine, lambda tx: tx.execute(update(OperatorSession).values(values)))


def idle_seconds(engine: Engine) -> float:
    """For how long the operator of the only session was idle."""
    with read_transaction(engine) as tx:
        seen: timedelta = datetime.now(UTC) - tx.execute(select(OperatorSession.seen_at)).scalar_one()
    return seen.total_seconds()


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
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Lax", "Path=/ops", "Expires=")), cookie
    assert "Secure" not in cookie and TOKEN not in cookie
    secure = endpoint.get("/ops/sign-in", base_url="https://sync.acme.example").headers["Set-Cookie"]
    assert "Secure" in secure


@pytest.mark.long
def test_every_page_has_strict_content_security_policy(ann: FlaskClient) -> None:
    for page in (*PAGES, "sign-in"):
        answer = ann.get(f"/ops/{page}")
        assert answer.status_code == 200, page
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["Cache-Control"] == "no-store" and answer.headers["X-Content-Type-Options"] == "nosniff"


def test_page_of_a_missing_run_has_strict_content_security_policy(ann: FlaskClient) -> None:
    answer = ann.get("/ops/runs/no-such-run")
    assert answer.status_code == 404
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_unknown_address_is_a_page_with_navigation(ann: FlaskClient) -> None:
    for path in ("no-such-page", "no/such/page", "resync"):
        answer = ann.get(f"/ops/{path}")
        assert answer.status_code == 404 and 'href="/ops/failures"' in answer.get_data(as_text=True), path
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert ann.application.test_client().get("/ops/no-such-page").status_code == 401


def test_times_are_relative_and_exact(ann: FlaskClient, engine: Engine, story: JSON) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Event).values(received_at=db_now_plus(-hours(5)))))
    html = ann.get("/ops/events").get_data(as_text=True)
    assert re.search(r'<time datetime="\S+\+00:00" title="\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC">5 h ago</time>', html)


def test_pages_load_nothing_from_other_hosts(ann: FlaskClient, story: JSON) -> None:
    for page in PAGES:
        answer = ann.get(f"/ops/{page}")
        assert answer.status_code == 200, page
        html = answer.get_data(as_text=True)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', html)
        assert not re.search(r"<script(?! src=\"/ops/static/)|style=|onclick=", html)


def test_token_change_ends_sessions(services: Services, build_test_services: Callable[..., Services]) -> None:
    endpoint = create_app(services).test_client()
    sign_in(endpoint)
    changed = build_test_services(database_url=services.settings.database_url, ops_tokens="bob:another-token-of-bob-s")
    other = create_app(changed).test_client()
    use_session_of(other, endpoint)
    assert other.get("/ops/").status_code == 401


def test_session_of_removed_operator_ends(services: Services, ann: FlaskClient) -> None:
    assert ann.get("/ops/").status_code == 200
    with read_transaction(services.engine) as tx:
        (who,) = tx.execute(text("SELECT who FROM operator_sessions")).scalars()
    assert who == "ann"
    in_transaction(services.engine, lambda tx: tx.execute(text("UPDATE operator_sessions SET who = 'eve'")))
    assert ann.get("/ops/").status_code == 401


def test_copied_cookie_is_worthless_after_sign_out(services: Services, ann: FlaskClient) -> None:
    thief = create_app(services).test_client()
    use_session_of(thief, ann)
    assert thief.get("/ops/").status_code == 200
    assert press(ann, "", "sign-out").status_code == 302
    assert thief.get("/ops/").status_code == 401


@pytest.mark.parametrize(
    ("age", "idle", "code"),
    [(hours(11), minutes(59), 200), (hours(12), minutes(1), 401), (hours(2), minutes(60), 401), (days(27), 0, 401)],
)
def test_session_ends_after_twelve_hours_or_an_idle_hour(
    services: Services, ann: FlaskClient, age: float, idle: float, code: int
) -> None:
    set_session_times(services.engine, age, idle)
    assert ann.get("/ops/").status_code == code
    assert ann.get("/ops/").status_code == code


def test_activity_keeps_session_and_refreshing_pages_do_not(services: Services, ann: FlaskClient) -> None:
    set_session_times(services.engine, hours(2), minutes(50))
    assert ann.get("/ops/", headers={"X-Refresh": "1"}).status_code == 200
    assert idle_seconds(services.engine) > minutes(49)
    assert ann.get("/ops/").status_code == 200
    assert idle_seconds(services.engine) < minutes(1)


def test_database_holds_no_usable_session_id(services: Services, ann: FlaskClient) -> None:
    with read_transaction(services.engine) as tx:
        (stored,) = tx.execute(text("SELECT id_hash FROM operator_sessions")).scalars()
    with ann.session_transaction("/ops/") as session:
        assert session["id"] and session["id"] != stored and "name" not in session


def test_ended_sessions_are_deleted_at_the_next_sign_in(services: Services, ann: FlaskClient) -> None:
    set_session_times(services.engine, hours(13), 0)
    sign_in(create_app(services).test_client())
    with read_transaction(services.engine) as tx:
        assert tx.execute(text("SELECT count(*) FROM operator_sessions")).scalar_one() == 1


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
@pytest.mark.parametrize("wanted", ["/ops/\r\nX-Evil: 1", "/ops/\n", "\r", "/ops/\x7f", "/ops/\x1b[2J"])
def test_control_characters_in_requested_page_are_refused(endpoint: FlaskClient, token: str, wanted: str) -> None:
    answer = sign_in(endpoint, token, next=wanted)
    assert answer.status_code == 400 and "X-Evil" not in answer.headers
    assert endpoint.get("/ops/").status_code == 401


def test_sign_in_works_after_a_path_with_control_characters(endpoint: FlaskClient) -> None:
    page = endpoint.get("/ops/events/x%07y").get_data(as_text=True)
    assert 'name="next" value=""' in page


@pytest.mark.parametrize("name", ["..", ".", "a/../b", "a//b", "/x", "~", "~..", "a?b#c", "%2e%2e", "a b", "ü"])
def test_forms_of_strange_names_post_to_their_own_object(services: Services, ann: FlaskClient, name: str) -> None:
    failed = {"hook": name, "change_id": 1, "kind": "user", "object_id": "user_1", "status": "failed", "attempts": 9}
    in_transaction(services.engine, lambda tx: tx.execute(insert(Hook).values(name=name, cursor=9)))
    in_transaction(services.engine, lambda tx: tx.execute(insert(HookDelivery).values(failed)))
    page = ann.get("/ops/hooks")
    (action,) = re.findall(r'action="(/ops/hooks/[^"]*/replay)"', unescape(page.get_data(as_text=True)))
    requested = urljoin("http://localhost/ops/hooks", action)  # a browser resolves dots
    assert urlsplit(requested).path == urlsplit(action).path
    answer = ann.post(action, data={"csrf_token": form_token(page)}, follow_redirects=True)
    assert answer.status_code == 200 and "1 delivery queued for retry." in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    "wanted", ["https://evil.example", "//evil.example", "/ops//evil.example", "/elsewhere", "/ops/\\x"]
)
def test_sign_in_redirects_only_to_own_pages(endpoint: FlaskClient, wanted: str) -> None:
    assert sign_in(endpoint, next=wanted).headers["Location"] == "/ops/"


def test_sign_in_redirects_to_requested_page(endpoint: FlaskClient) -> None:
    assert 'value="/ops/events"' in endpoint.get("/ops/events").get_data(as_text=True)
    assert sign_in(endpoint, next="/ops/events").headers["Location"] == "/ops/events"


def test_pages_show_their_environment(local: Callable[..., Services]) -> None:
    pages = {
        name: create_app(local(environment_name=name, ops_tokens=f"ann:{TOKEN}"))
        .test_client()
        .get("/ops/sign-in")
        .get_data(as_text=True)
        for name in ("production", "staging", None)
    }
    for name in ("production", "staging"):
        assert f"<title>{name} · " in pages[name] and f'<span id="environment">{name}</span>' in pages[name]
    hues = {name: re.findall(r'class="environment (hue-\d)"', page) for name, page in pages.items()}
    assert hues["production"] != hues["staging"] and len(hues["staging"]) == 1 and hues[None] == []


def test_sign_out_ends_session(ann: FlaskClient) -> None:
    assert press(ann, "", "sign-out").status_code == 302
    assert ann.get("/ops/").status_code == 401


# Forged posts


POSTS = {
    "resync": Action.RESYNC,
    "events/replay": Action.REPLAY,
    "events/dismiss": Action.DISMISS_EVENT,
    "events/{failed}/replay": Action.REPLAY,
    "events/{failed}/dismiss": Action.DISMISS_EVENT,
    "failures/{fingerprint}/replay": Action.REPLAY,
    "failures/{fingerprint}/dismiss": Action.DISMISS_EVENT,
    f"workspaces/{ORG}/resync": Action.RESYNC,
    f"workspaces/{ORG}/review": Action.REVIEW,
    f"workspaces/{ORG}/auto-join": Action.SET_AUTO_JOIN,
    f"workspaces/{ORG}/people/{USER}/block": Action.BLOCK,
    f"workspaces/{ORG}/people/{USER}/unblock": Action.UNBLOCK,
    f"workspaces/{ORG}/invitations/invitation_1/unblock": Action.UNBLOCK,
    "hooks/sessions/replay": Action.RETRY_DELIVERIES,
    "hooks/sessions/dismiss": Action.DISMISS_DELIVERIES,
    "runs/run1/approve": Action.APPROVE_DELETIONS,
    "runs/run2/cancel": Action.CANCEL_REPLAY,
    "role-map/approve": Action.APPROVE_ROLE_MAP,
    "sign-out": Action.SIGN_OUT,
}
"""Every post that acts, and its action in the audit."""


OWNER_IS_ADMIN = digest_of({"owner": "admin"})


@pytest.fixture
def withheld(engine: Engine) -> str:
    """A run that withholds the deletion of the workspace."""
    run = {"id": "run1", "task": "resync", "requested_by": "clock", "status": "done", "finished_at": db_now_plus(-60)}
    row = {"run_id": "run1", "kind": "organization", "object_id": ORG, "finding": "extra", "action": "withheld"}
    in_transaction(engine, lambda tx: [tx.execute(insert(Run).values(run)), tx.execute(insert(Drift).values(row))])
    return "run1"


@pytest.mark.long
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


@pytest.mark.long
def test_read_only_operator_looks_and_does_not_act(
    services: Services, build_test_services: Callable[..., Services], everything: dict[str, str]
) -> None:
    settings = {"ops_tokens": TOKENS, "ops_read_only": "bob", "database_url": services.settings.database_url}
    bob = create_app(build_test_services(**settings)).test_client()
    sign_in(bob, "another-token-of-bob-s")
    before = noted(services.engine)
    for path in POSTS.keys() - {"sign-out"}:
        answer = act(bob, path.format(**everything), reason="x")
        assert answer.status_code == 403 and "OPS_READ_ONLY" in answer.get_data(as_text=True), path
    assert noted(services.engine) == before
    pages = [*PAGES, f"events/{everything['failed']}", f"workspaces/{ORG}", "runs/run1"]
    for html in (bob.get(f"/ops/{page}").get_data(as_text=True) for page in pages):
        assert "read-only" in html and "<dialog" not in html
        forms = [form for form in re.findall(r"<form.*?</form>", html, re.DOTALL) if 'name="reason"' in form]
        assert all(re.search(r"<button[^>]* disabled", form) for form in forms), forms
    assert act(bob, "sign-out").status_code == 302


@pytest.fixture
def everything(engine: Engine, story: JSON, withheld: str) -> dict[str, str]:
    """An object for each route in `POSTS` to act on. Returns the ids by their placeholder in the route."""

    def add(tx: Connection) -> None:
        tx.execute(
            insert(Run).values(id="run2", task="replay", requested_by="eve", status="running", organization_id=ORG)
        )
        tx.execute(insert(Hook).values(name="sessions", cursor=9))
        withheld = {"role_map": {"owner": "admin"}, "promotions": 40, "members": 45}
        long_ago = db_now_plus(-99)
        filled = {"backfilled_at": long_ago, "last_resync_at": long_ago}
        tx.execute(update(MirrorState).values(withheld_role_map=withheld, **filled))
        failed = {"hook": "sessions", "kind": "user", "object_id": USER, "status": "failed", "attempts": 9}
        tx.execute(insert(HookDelivery).values(failed | {"change_id": 1}))
        invitation = {"id": "invitation_1", "organization_id": ORG, "status": "revoked", "revision": 1}
        tx.execute(insert(Invitation).values(invitation))
        tx.execute(insert(InvitedAddress).values(invitation_id="invitation_1", email_hash="a" * 64))

    in_transaction(engine, add)
    with read_transaction(engine) as tx:
        fingerprint = tx.execute(select(Event.fingerprint).where(Event.id == story["failed"]["id"])).scalar_one()
    return {"failed": story["failed"]["id"], "fingerprint": str(fingerprint)}


ALL_FAILED = {"which": "all", "status": "failed"}
"""The fields by which the form of the events' list selects every failed event."""


def act(browser: FlaskClient, path: str, **form: str) -> TestResponse:
    token = form_token(browser.get("/ops/explain"))
    form = ALL_FAILED | {"switch": "off", "digest": OWNER_IS_ADMIN} | form
    return browser.post(f"/ops/{path}", data={"csrf_token": token, **form})


def noted(engine: Engine) -> list[JSON]:
    """The audit, without the sign-in."""
    return [row for row in rows(engine, Audit) if row["action"] != Action.SIGN_IN]


def test_every_post_is_covered(endpoint: FlaskClient) -> None:
    adapter = endpoint.application.url_map.bind("localhost")
    covered = {adapter.match(f"/ops/{path}", "POST")[0] for path in POSTS}
    posts = {rule.endpoint for rule in endpoint.application.url_map.iter_rules() if "POST" in (rule.methods or ())}
    changing_nothing = {"ops.sign_in", "ops.send_test_event"}
    assert {name for name in posts if name.startswith("ops.")} - covered == changing_nothing


@pytest.mark.parametrize("path", POSTS)
def test_each_action_is_in_the_audit_once(
    ann: FlaskClient, engine: Engine, everything: dict[str, str], path: str
) -> None:
    if path.endswith(f"{USER}/unblock"):
        act(ann, path.replace("unblock", "block"), reason="a test account")
        in_transaction(engine, lambda tx: tx.execute(delete(Audit)))
    answer = act(ann, path.format(**everything), reason=" ticket 12 ")
    assert answer.status_code == (200 if POSTS[path] is Action.REVIEW else 302)
    (row,) = noted(engine)
    assert (row["who"], row["via"], row["action"]) == ("ann", Via.PAGE, POSTS[path])
    assert row["reason"] == (None if path == "sign-out" else "ticket 12")
    assert act(ann, path.format(**everything)).status_code in {200, 302, 401, 409}
    again = {"resync", f"workspaces/{ORG}/resync", f"workspaces/{ORG}/review"}  # each is an action
    assert len(noted(engine)) == 1 + (path in again), "what is refused or changes nothing is no action"


def test_sign_in_is_in_the_audit_once(endpoint: FlaskClient, engine: Engine) -> None:
    sign_in(endpoint, "wrong")
    assert rows(engine, Audit) == []
    sign_in(endpoint)
    (row,) = rows(engine, Audit)
    assert (row["who"], row["via"], row["action"]) == ("ann", Via.PAGE, Action.SIGN_IN)
    assert row["details"] == {"address": "127.0.0.1"}


@pytest.mark.parametrize("path", [path for path, action in POSTS.items() if action in REASON_REQUIRED])
def test_actions_on_access_require_a_reason(
    ann: FlaskClient, engine: Engine, everything: dict[str, str], path: str
) -> None:
    for reason in ("", " "):
        assert act(ann, path.format(**everything), reason=reason).status_code == 302
    assert noted(engine) == []
    assert "Enter a reason" in ann.get("/ops/").get_data(as_text=True)


def test_pages_ask_for_a_reason_where_they_act(ann: FlaskClient, everything: dict[str, str]) -> None:
    pages = [f"/ops/{page}" for page in PAGES]
    pages += [f"/ops/events/{everything['failed']}", f"/ops/workspaces/{ORG}", "/ops/runs/run1", "/ops/runs/run2"]
    forms = [form for page in pages for form in re.findall(r"<form.*?</form>", ann.get(page).text, re.DOTALL)]
    acting = [form for form in forms if 'method="post"' in form and not re.search("/ops/(sign-|send-test)", form)]
    assert len(acting) > 8
    assert [form for form in acting if 'name="reason"' not in form] == []


@pytest.mark.long
def test_audit_page_shows_and_filters(ann: FlaskClient, engine: Engine, everything: dict[str, str]) -> None:
    for number in range(60):
        act(ann, f"workspaces/{ORG}/auto-join", reason=f"reason {number}.")
    first = ann.get("/ops/audit").get_data(as_text=True)
    assert "reason 59." in first and "reason 40." in first and "reason 39." not in first and "61 actions" in first
    assert "reason 39." in ann.get(link(first, "next")).get_data(as_text=True)
    assert "reason 59." not in ann.get("/ops/audit?since=2031-01-01").get_data(as_text=True)
    assert ann.get("/ops/audit?since=soon").status_code == 400
    assert "reason 59." not in ann.get("/ops/audit?action=sign_in").get_data(as_text=True)
    for odd in ("via=x", "action=%27", "after=x", "after=-1", f"after={10**30}"):
        assert ann.get(f"/ops/audit?{odd}").status_code == 200
    assert "No matching actions." not in first
    for nobody in ("who=%25", "object_id=none"):
        assert "No matching actions." in ann.get(f"/ops/audit?{nobody}").get_data(as_text=True), nobody


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
    assert Doorbell(services.redis, REPAIR).queued_jobs() == 1
    again = ann.get("/ops/failures")
    assert "Replay all" in again.get_data(as_text=True)
    fingerprint = re.search(r"failures/(\w+)/replay", again.get_data(as_text=True))
    assert fingerprint
    busy = press(ann, "failures", f"failures/{fingerprint[1]}/replay")
    assert busy.status_code == 409 and "already running" in busy.get_data(as_text=True)


def test_dialogs_state_the_exact_effect(ann: FlaskClient, engine: Engine, everything: dict[str, str]) -> None:
    accept(ann, made("user.created", id="user_2"), made("organization.created", id="org_2"))
    accept(
        ann,
        made("organization_membership.created", id="om_2", organization_id="org_2", user_id="user_2", status="active"),
    )
    apply_all(engine)
    run = ann.get("/ops/runs/run1").get_data(as_text=True)
    assert "1 of 2 people with access loses access" in run
    overview = ann.get("/ops/").get_data(as_text=True)
    assert "40 of 45 members become admins" in overview and "<code>owner=admin</code>" in overview


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
    assert (
        "Approved in" not in (shown := ann.get("/ops/runs/run1").get_data(as_text=True)) and "Enter a reason" in shown
    )
    assert press(ann, "runs/run1", "runs/run1/approve", reason="they left").status_code == 302
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
        answer = ann.post(f"/ops/{path}", data={"csrf_token": token, "reason": "x"})
        assert answer.status_code == 409 and "WORKOS_API_KEY" in answer.get_data(as_text=True)
    assert runs(services.engine) == 0


@pytest.mark.parametrize("page", ["", "events", "workspaces", "runs"])
def test_unavailable_database_is_shown_on_page(
    build_test_services: Callable[..., Services], services: Services, ann: FlaskClient, page: str
) -> None:
    away = build_test_services(database_url=NOWHERE, ops_tokens=TOKENS)
    endpoint = create_app(away).test_client()
    assert sign_in(endpoint).status_code == 503
    use_session_of(endpoint, ann)
    answer = endpoint.get(f"/ops/{page}")
    assert answer.status_code == 503 and "Database unavailable" in answer.get_data(as_text=True)


@pytest.mark.long
def test_customer_text_does_not_become_markup(ann: FlaskClient, story: JSON) -> None:
    ids = [f"events/{event['id']}" for event in story.values()]
    named = [f"explain?name={story[what]['data']['id']}" for what in ("organization", "user", "membership", "domain")]
    seen = 0
    for page in (*PAGES, *ids, *named, f"workspaces/{ORG}", f"workspaces?name={EVIL}", f"people?email={EVIL}"):
        html = ann.get(f"/ops/{page}").get_data(as_text=True)
        assert "<script>alert" not in html
        assert not re.search(r"alert\(1\)[^{]{0,40}49", html), f"{page}: an expression in a name was evaluated"
        seen += "alert(1)" in html
    assert seen >= 8


@pytest.mark.parametrize(
    "page", ["events/none", "workspaces/none", "runs/none", "explain?name=none", "events?after=none&status=%27;--"]
)
def test_unknown_id_gets_404_page(ann: FlaskClient, page: str) -> None:
    answer = ann.get(f"/ops/{page}")
    assert answer.status_code == (200 if page.startswith("events?") else 404)
    assert answer.content_type.startswith("text/html")


def link(html: str, rel: str) -> str:
    """The address of the next or previous page of a list."""
    found = re.search(f'rel="{rel}" href="([^"]*)"', html)
    assert found, html
    return unescape(found[1])


def shown_events(html: str) -> list[str]:
    return re.findall(r'href="/ops/events/(event_\w+)"', html)


def test_lists_page_in_both_directions_and_sort(ann: FlaskClient, engine: Engine) -> None:
    accept(ann, *(made("organization.created", event_id=f"event_{n:03}", id=f"org_{n}") for n in range(50)))
    first = ann.get("/ops/events").get_data(as_text=True)
    second = ann.get(link(first, "next")).get_data(as_text=True)
    last = ann.get(link(second, "next")).get_data(as_text=True)
    parts = [shown_events(html) for html in (first, second, last)]
    assert [len(part) for part in parts] == [20, 20, 10] and len({id for part in parts for id in part}) == 50
    assert shown_events(ann.get(link(last, "prev")).get_data(as_text=True)) == parts[1]
    assert shown_events(ann.get(link(second, "prev")).get_data(as_text=True)) == parts[0]
    assert 'rel="prev"' not in first and 'rel="next"' not in last and "50 events" in second
    oldest = ann.get("/ops/events?sort=reverse").get_data(as_text=True)
    assert shown_events(oldest) == parts[2][::-1] + parts[1][:9:-1]
    assert shown_events(ann.get("/ops/events?status=failed").get_data(as_text=True)) == []
    assert shown_events(ann.get("/ops/events?until=1h").get_data(as_text=True)) == []


def test_events_are_ticked_or_selected_by_filter(ann: FlaskClient, engine: Engine) -> None:
    broken = [made("user.updated") | {"data": None} for _ in range(3)]
    accept(ann, *broken, made("organization.created"))
    apply_all(engine)
    nothing = act(ann, "events/dismiss", which="ticked", reason="noise")
    assert "No events were selected" in ann.get(nothing.headers["Location"]).get_data(as_text=True)
    act(ann, "events/dismiss", which="ticked", id=broken[0]["id"], reason="noise")
    assert [status(engine, event) for event in broken] == ["dismissed", "failed", "failed"]
    act(ann, "events/dismiss", type="organization.created", reason="noise")
    assert [status(engine, event) for event in broken] == ["dismissed", "failed", "failed"]
    act(ann, "events/dismiss", type="user.updated", reason="noise")
    assert [status(engine, event) for event in broken] == ["dismissed"] * 3
    again = act(ann, "events/replay", status="dismissed")
    assert "0 of 3" in ann.get(again.headers["Location"]).get_data(as_text=True)


def shown_when(page: TestResponse) -> str:
    """Return the time that the forms of a page send."""
    found = re.search(r'name="shown" value="([^"]+)"', page.get_data(as_text=True))
    assert found
    return found[1]


@pytest.fixture
def fast_clock() -> Iterator[None]:
    """Sets the clock of the web host ahead of the database's."""
    with freeze_time(datetime.now(UTC) + timedelta(minutes=10), tick=True):
        yield


@pytest.mark.long
@pytest.mark.usefixtures("fast_clock")
def test_only_failures_that_the_page_showed_are_dismissed(
    ann: FlaskClient, engine: Engine, everything: dict[str, str]
) -> None:
    later = {"change_id": 2, "hook": "sessions", "kind": "user", "object_id": USER, "status": "failed", "attempts": 9}
    later |= {"fingerprint": "f1", "attempted_at": db_now_plus(60)}
    in_transaction(engine, lambda tx: tx.execute(insert(HookDelivery).values(later)))
    assert "fingerprint=f1" in ann.get("/ops/hooks").get_data(as_text=True)
    of_error = ann.get("/ops/hooks?hook=sessions&status=failed&fingerprint=f1").get_data(as_text=True)
    assert '<span class="sub">1 delivery</span>' in of_error and "with the error f1" in of_error
    forms = {
        "events/dismiss": {"shown": shown_when(ann.get("/ops/events?since=1h"))},
        f"failures/{everything['fingerprint']}/dismiss": {"shown": shown_when(ann.get("/ops/failures"))},
        "hooks/sessions/dismiss": {"shown": shown_when(ann.get("/ops/hooks")), "fingerprint": "f1"},
    }
    in_transaction(engine, lambda tx: tx.execute(update(Event).values(processed_at=db_now_plus(60))))
    for path, form in forms.items():
        act(ann, path, reason="noise", **form)
    assert noted(engine) == []
    act(ann, "hooks/sessions/dismiss", reason="noise", fingerprint="")
    assert [row["change_id"] for row in rows(engine, HookDelivery)] == [2], "only those without a fingerprint"
    in_transaction(engine, lambda tx: tx.execute(update(Event).values(processed_at=db_now_plus(-60))))
    act(ann, "events/dismiss", reason="noise", **forms["events/dismiss"])
    assert status(engine, {"id": everything["failed"]}) == "dismissed"


def test_a_period_stays_that_of_the_page(ann: FlaskClient, story: JSON) -> None:
    page = ann.get("/ops/events?since=1h").get_data(as_text=True)
    assert re.search(r'type="hidden" name="since" value="20\d\d-', page)


def test_failures_are_grouped_with_their_workspaces(ann: FlaskClient, engine: Engine, story: JSON) -> None:
    broken = [made("organization_membership.updated") | {"event": "organization_membership.updated"} for _ in range(2)]
    for event in broken:
        event["data"]["user_id"] = 7
    accept(ann, *broken)
    apply_all(engine)
    page = unescape(ann.get("/ops/failures").get_data(as_text=True))
    group = next(part for part in page.split("<section")[1:] if "user_id" in part)
    assert "2 events" in group and EVIL[:20] in group
    shown = unescape(ann.get(f"/ops/events/{broken[0]['id']}").get_data(as_text=True))
    assert EVIL[:20] in shown.split('class="about"')[1].split("</p>")[0], "what it is about, although it failed"
    assert unescape(ann.get(f"/ops/events?organization_id={ORG}&status=failed").text).count("data.user_id") == 2
    named = ann.get("/ops/events", query_string={"organization_id": EVIL, "status": "failed"})
    assert unescape(named.text).count("data.user_id") == 2, "the filter also takes the workspace's name"


def test_event_shows_each_attempt(ann: FlaskClient, engine: Engine, story: JSON) -> None:
    failed = story["failed"]["id"]
    for _ in range(2):
        in_transaction(engine, lambda tx: tx.execute(update(Event).where(Event.id == failed).values(status="pending")))
        apply_all(engine)
    page = ann.get(f"/ops/events/{failed}").get_data(as_text=True)
    assert page.split("<h2>Attempts")[1].count("data.updated_at: ") == 3


@pytest.mark.long
def test_workspace_page_is_small_with_many_members(ann: FlaskClient, engine: Engine) -> None:
    fill(engine, 2_000)
    answer = ann.get("/ops/workspaces/org_0")
    assert "1,000 members" in answer.text and len(answer.data) < 100_000
    assert "user500@d50.example" in ann.get("/ops/workspaces/org_0?search=user500@").text


def test_events_that_make_a_workspace_uncertain_are_on_its_page_of_explain(
    ann: FlaskClient, engine: Engine, story: JSON
) -> None:
    effects = [{"organization_id": ORG, "user_id": "", "event_id": f"event_{n}"} for n in range(25)]
    in_transaction(engine, lambda tx: tx.execute(insert(FailedEffect), effects))
    page = ann.get(f"/ops/workspaces/{ORG}").get_data(as_text=True)
    assert re.search(r"because 2\d events failed", page) and page.count("<tr>") <= 21
    [link] = re.findall(r'<a href="([^"]+)">Which events', page)
    assert "event_24" in ann.get(unescape(link)).get_data(as_text=True)


def test_deleted_workspaces_and_people_are_separate(ann: FlaskClient, engine: Engine, story: JSON) -> None:
    accept(ann, made("organization.deleted", 5), made("user.deleted", 5))
    apply_all(engine)
    for page, id in (("workspaces", ORG), ("people", USER)):
        assert id not in ann.get(f"/ops/{page}").text
        assert id in ann.get(f"/ops/{page}?state=deleted").text


@pytest.mark.long
def test_nonsense_finds_nothing(ann: FlaskClient) -> None:
    for path in ("auto-join?show=joins&state=gone", "people?email=" + "a+" * 4000, "search?q=" + "a+" * 4000):
        assert ann.get(f"/ops/{path}").status_code == 200, path[:40]
    form = {"csrf_token": form_token(ann.get("/ops/explain")), "id": ["event_1"] * 40_000, "reason": "noise"}
    assert ann.post("/ops/events/dismiss", data=form).status_code == 400


def test_a_change_that_is_not_an_id_retries_nothing(ann: FlaskClient, everything: dict[str, str]) -> None:
    for value in ("abc", "0", "-1", str(2**63)):
        for action in ("replay", "dismiss"):
            assert act(ann, f"hooks/sessions/{action}", change=value, reason="x").status_code == 400, value


def test_signing_in_again_ends_the_former_session(endpoint: FlaskClient) -> None:
    sign_in(endpoint)
    cookie = endpoint.get_cookie("workos_sync_ops", path="/ops")
    assert cookie is not None
    sign_in(endpoint)
    former = endpoint.application.test_client()
    former.set_cookie("workos_sync_ops", cookie.value, path="/ops")
    assert former.get("/ops/").status_code == 401

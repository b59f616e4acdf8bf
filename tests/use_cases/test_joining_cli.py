"""Auto-join and hooks on the command line and on the pages."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, insert

from models.database import in_transaction
from models.tables import Change, Hook, HookDelivery, Join
from tests.support import JSON, made, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events, auto_join_answer, set_auto_join
from tests.support.cli import report, run
from tests.support.hooks import SECRET
from tests.support.mirror import ORG
from tests.support.ops import TOKEN, form_token, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.mirror import auto_join_policy

ANN = made("user.created")["data"]["id"]


@pytest.fixture
def db_url(make_database: Any) -> str:
    return str(make_database("sqlite"))


@pytest.fixture(autouse=True)
def _surroundings(set_environment: Callable[..., None], db_url: str, restored_logging: None) -> None:
    set_environment(
        DATABASE_URL=db_url,
        OPS_TOKENS=f"ann:{TOKEN}",
        HOOKS="sessions=https://host/hook",
        HOOK_SECRETS=f"sessions:{SECRET}",
    )


@pytest.fixture
def engine(engine: Engine) -> Engine:
    """A workspace with a verified domain, a person on that domain who is not a member, and a removed one."""
    gone: JSON = {"id": "om_gone", "user_id": "user_gone"}
    apply_events(engine, [made("organization.created", name="Acme")])
    apply_events(engine, [made("organization_domain.verified", domain="acme.example", state="verified")])
    apply_events(engine, [made("user.created", email="ann@acme.example", email_verified=True)])
    apply_events(engine, [made("user.created", id="user_gone", email="gone@acme.example", email_verified=True)])
    apply_events(engine, [made("organization_membership.created", status="active", **gone)])
    apply_events(engine, [made("organization_membership.deleted", 5, **gone)])
    return engine


@pytest.fixture
def failed_hook(engine: Engine) -> Engine:
    delivery = {"kind": "user", "object_id": ANN, "status": "failed", "attempts": 12}
    why = {"error": "RuntimeError: <b>away</b>", "traceback": "Traceback <script>alert(1)</script>"}
    first = rows(engine, Change)[0]["id"]
    in_transaction(engine, lambda tx: tx.execute(insert(Hook).values(name="sessions", cursor=999)))
    in_transaction(
        engine, lambda tx: tx.execute(insert(HookDelivery).values(hook="sessions", change_id=first, **delivery, **why))
    )
    return engine


def test_domains_are_listed_with_state_and_reason(engine: Engine) -> None:
    (row,) = report("auto-join", "domains")
    assert (row["domain"], row["state"], row["auto_join"]) == ("acme.example", "verified", True)
    assert "acme.example" in run("auto-join", "domains", "--organization", ORG).stdout
    assert report("auto-join", "domains", "--off") == []


def test_missing_people_are_listed_with_exit_code_1(engine: Engine) -> None:
    (row,) = report("auto-join", "missing", exit_code=1)
    assert (row["user_id"], row["organization_id"]) == (ANN, ORG), "and not the one who was removed"
    apply_events(engine, [made("organization_membership.created", id="om_2", user_id=ANN, status="active")])
    assert report("auto-join", "missing") == []


def test_set_changes_switch_and_role_and_records_the_reason(engine: Engine) -> None:
    run("auto-join", "set", ORG, "--off", exit_code=2)
    assert report("auto-join", "set", ORG, "--off", "--reason", "contractors") == {
        "auto_join": False,
        "default_role": "member",
    }
    assert auto_join_answer(engine, "new@acme.example") is None
    run("auto-join", "set", ORG, "--on", "--role", "admin", "--reason", "agreed")
    assert auto_join_answer(engine, "new@acme.example") == (ORG, "admin")
    wrong = run("auto-join", "set", ORG, "--role", "king", "--reason", "x", exit_code=2)
    assert "Invalid value for '--role'" in wrong.output
    nothing = run("auto-join", "set", ORG, "--reason", "x", exit_code=2)
    assert "nothing to change: give --on, --off or --role" in nothing.stderr
    assert "contractors" in run("explain", ORG).stdout


def test_block_and_unblock_record_the_reason(engine: Engine) -> None:
    assert auto_join_answer(engine, "gone@acme.example") is None
    assert run("auto-join", "unblock", ORG, "user_gone", "--reason", "hired again").stdout == "unblocked: removed\n"
    assert auto_join_answer(engine, "gone@acme.example") == (ORG, "member")
    run("auto-join", "unblock", ORG, "user_gone", "--reason", "twice", exit_code=1)
    run("auto-join", "block", ORG, ANN, "--reason", "a test account")
    assert auto_join_answer(engine, "ann@acme.example") is None
    (row,) = report("auto-join", "joins", "--state", "blocked")
    assert row["user_id"] == ANN and row["reason"].endswith(": a test account")
    assert "a test account" in run("explain", "ann@acme.example").stdout
    unknown = run("auto-join", "block", ORG, "user_none", "--reason", "x", exit_code=1)
    assert unknown.stderr == "workos-sync: the mirror has no person 'user_none'\n"


def test_workspaces_without_an_admin_exit_1(engine: Engine) -> None:
    assert [row["name"] for row in report("workspaces", "--name", "acm")] == ["Acme"]
    assert report("workspaces", "--without-admin") == [], "nobody is in it"
    apply_events(engine, [made("organization_membership.created", id="om_2", user_id=ANN, status="active")])
    assert [row["organization_id"] for row in report("workspaces", "--without-admin", exit_code=1)] == [ORG]


def test_failed_hook_deliveries_are_listed_and_retried(failed_hook: Engine) -> None:
    (row,) = report("hooks", "list", exit_code=1)
    assert (row["hook"], row["configured"], row["failed"]) == ("sessions", True, 1)
    (listed,) = report("hooks", "failed", exit_code=1)
    assert "Traceback" in listed["traceback"]
    status = report("status", exit_code=1)
    assert any("workos-sync hooks failed sessions" in line for line in status["problems"])
    assert run("hooks", "replay", "sessions").stdout == "1 queued for retry\n"
    assert report("hooks", "list")[0]["waiting"] == 1
    assert run("hooks", "replay", "sessions").stdout == "0 queued for retry\n"
    one = run("hooks", "dismiss", "sessions", "--change", "1", "--reason", "gone", exit_code=1)
    assert "no failed delivery of change 1" in one.stderr
    assert "there is no hook session;" in run("hooks", "replay", "session", exit_code=1).stderr


# Pages


@pytest.fixture
def ann(engine: Engine, build_test_services: Callable[..., Services], db_url: str) -> FlaskClient:
    """A browser that is signed in."""
    given = {"ops_tokens": f"ann:{TOKEN}", "hooks": "sessions=https://host/hook", "hook_secrets": f"sessions:{SECRET}"}
    browser = create_app(build_test_services(database_url=db_url, **given)).test_client()
    assert sign_in(browser).status_code == 302
    return browser


def press(browser: FlaskClient, page: str, action: str, **form: str) -> str:
    """Press a button of a page, and return the page it leads to."""
    token = form_token(browser.get(f"/ops/{page}"))
    done = browser.post(f"/ops/{action}", data={"csrf_token": token, **form}, follow_redirects=True)
    assert done.status_code == 200
    return done.get_data(as_text=True)


def test_auto_join_page_shows_missing_people_and_switched_off_workspaces(ann: FlaskClient, engine: Engine) -> None:
    html = ann.get("/ops/auto-join").get_data(as_text=True)
    assert "ann@acme.example" in html and "gone@acme.example" not in html
    auto_join_policy.set_workspace(engine, ORG, by("bob", "contractors"), auto_join=False)
    assert "switched off by bob: contractors" in ann.get("/ops/auto-join?show=domains").get_data(as_text=True)


def test_workspace_page_sets_the_switch_and_requires_a_reason(ann: FlaskClient, engine: Engine) -> None:
    action = f"workspaces/{ORG}/auto-join"
    assert "Enter a reason" in press(ann, f"workspaces/{ORG}", action, switch="off", role="member", reason=" ")
    assert auto_join_answer(engine, "new@acme.example") is not None
    shown = press(ann, f"workspaces/{ORG}", action, switch="off", role="admin", reason="contractors")
    assert "Saved." in shown and "switched off by ann: contractors" in shown
    assert auto_join_answer(engine, "new@acme.example") is None


def test_auto_join_page_blocks_and_unblocks(ann: FlaskClient, engine: Engine) -> None:
    set_auto_join(engine, "provision")
    apply_events(engine, [made("user.created", id="user_bob", email="bob@acme.example", email_verified=True)])
    assert [row["state"] for row in rows(engine, Join)] == ["pending"]
    shown = press(ann, "auto-join", f"workspaces/{ORG}/people/user_bob/block", reason="a test account")
    assert "by ann: a test account" in shown
    assert "Saved." in press(ann, "auto-join", f"workspaces/{ORG}/people/user_bob/unblock", reason="it is not")
    assert "Failed: nothing blocks" in press(ann, "auto-join", f"workspaces/{ORG}/people/user_bob/unblock", reason="x")


def test_hooks_page_retries_deliveries_and_escapes_tracebacks(failed_hook: Engine, ann: FlaskClient) -> None:
    html = ann.get("/ops/hooks").get_data(as_text=True)
    assert "RuntimeError" in html and "<script>alert" not in html and "<b>away" not in html
    assert "1 delivery queued for retry." in press(ann, "hooks", "hooks/sessions/replay")
    for name, code in (("nonsense/replay", 404), ("nonsense/dismiss", 404), ("sessions/replay?change=1", 200)):
        form = {"csrf_token": form_token(ann.get("/ops/hooks")), "reason": "gone"}
        answer = ann.post(f"/ops/hooks/{name}", data=form, follow_redirects=True)
        assert answer.status_code == code and ("no hook nonsense" in answer.get_data(as_text=True)) == (code == 404)
    assert rows(failed_hook, HookDelivery)[0]["status"] == "pending"

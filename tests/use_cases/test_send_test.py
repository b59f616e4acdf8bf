"""A test event takes the way of a delivery, changes nothing in the mirror, and counts nowhere as a delivery."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import Engine

from models.tables import Change, Event
from tests.support import SECRET, apply_all, post, rows, serving
from tests.support.cli import report, run
from tests.support.ops import TOKEN, form_token, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.metrics import REFUSED, Name, counted
from worker.reports.health import check_health
from worker.send_test import send_test


def apply_at_once(app: Any, engine: Engine) -> None:
    """Apply each delivery before it is answered, as a fast worker does."""
    answer = app.wsgi_app

    def answer_and_apply(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body: Iterable[bytes] = answer(environ, start)
        if environ["PATH_INFO"].startswith("/webhooks"):
            apply_all(engine)
        return body

    app.wsgi_app = answer_and_apply


def test_a_test_event_is_processed_and_counts_nowhere(
    set_environment: Callable[..., None],
    make_services: Callable[..., Services],
    db_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # for calls to WorkOS, not for those to this machine
    set_environment(DATABASE_URL=db_url, WORKOS_WEBHOOK_SECRETS=SECRET)
    services = make_services(ops_tokens=f"ann:{TOKEN}")
    engine = services.engine
    app = create_app(services)
    browser = app.test_client()
    assert post(browser, b"{}", **{"WorkOS-Signature": "t=1, v1=00"}).status_code == 401

    with serving(app) as url:
        waiting = send_test(engine, services.settings, "user.updated", url, wait_seconds=0)
        assert waiting.status == 200 and waiting.problem is not None and "start worker" in waiting.problem
        apply_at_once(app, engine)
        text = run("send", "user.updated", "--url", url).stdout
        assert "accepted in" in text and "ignored" in text
        sent = report("send", "organization_membership.created", "--url", url)
        lost = report("send", "user.updated", "--url", f"{url}/elsewhere", exit_code=1)
        assert lost["status"] == 404 and "WEBHOOK_PATH_TOKEN" in lost["problem"]
        set_environment(DATABASE_URL=db_url, WORKOS_WEBHOOK_SECRETS="another-secret-of-web")
        assert "WORKOS_WEBHOOK_SECRETS" in run("send", "user.updated", "--url", url, exit_code=1).stdout
        sign_in(browser)
        form = {"csrf_token": form_token(browser.get("/ops/"))}
        address, port = url.removeprefix("http://").split(":")
        on_page = {"SERVER_NAME": address, "SERVER_PORT": port}
        assert browser.post("/ops/send-test", data=form, environ_overrides=on_page).status_code == 302
        assert "accepted in" in browser.get("/ops/").get_data(as_text=True)

    stored = rows(engine, Event)
    assert {(row["type"], row["status"], row["outcome"], row["webhook_at"]) for row in stored} == {
        ("workos_sync.test", "done", "ignored", None)
    }
    assert len(stored) == 4 and sent["event_id"] in {row["id"] for row in stored}
    assert rows(engine, Change) == []
    services.counters.hand_over()
    health = check_health(engine, services.report_redis, services.settings)
    assert health.last_webhook_at is None and health.gaps == 0
    assert health.refused is not None and {reason: n for reason, n in health.refused.items() if n} == {"mismatch": 1}
    assert not health.secret_verified
    refused = counted(services.redis)
    assert refused[Name(REFUSED, ("mismatch",))] == 2, "a header that anybody can send hides no refusal"


def test_send_names_what_is_wrong(set_environment: Callable[..., None], db_url: str) -> None:
    set_environment(DATABASE_URL=db_url, WORKOS_WEBHOOK_SECRETS=SECRET)
    assert "did you mean user.updated" in run("send", "user.update", exit_code=2).stderr
    assert "start web" in run("send", "user.updated", "--url", "http://127.0.0.1:1", exit_code=1).stdout

"""Operators sign in at an identity provider, or are named by a trusted proxy. The provider is a real server."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import oidc_provider_mock
import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, update
from werkzeug.test import TestResponse

from models.database import in_transaction
from models.tables import Audit, OperatorSession
from models.types import db_now_plus
from tests.support import rows
from webhooks.app import create_app
from worker.bootstrap import Services

pytestmark = pytest.mark.filterwarnings("ignore:::oidc_provider_mock", "ignore:::authlib")  # the provider's own

SECRET = "a-secret-of-this-client"
ANN = {"email": "Ann@Acme.example", "email_verified": True, "groups": ["ops"]}
BOB = {"email": "bob@acme.example", "email_verified": False, "groups": ["support", "staff"]}
Browser = Callable[..., FlaskClient]


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with oidc_provider_mock.run_server_in_thread() as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture
def browser(build_test_services: Callable[..., Services], db_url: str, issuer: str) -> Browser:
    """A function that opens a browser on the pages, of an installation with these settings."""
    given = {"oidc_issuer": issuer, "oidc_client_id": "pages", "oidc_client_secret": SECRET, "database_url": db_url}

    def make(**settings: Any) -> FlaskClient:
        services = build_test_services(**(given | {"ops_allowed": "ann@acme.example,support"} | settings))
        return create_app(services).test_client()

    return make


def sign_in(browser: FlaskClient, issuer: str, sub: str, claims: dict[str, Any], page: str = "") -> TestResponse:
    """Sign in at the provider as the person `sub`; returns the answer to the provider's redirect."""
    httpx2.put(f"{issuer}/users/{sub}", json=claims).raise_for_status()
    begun = browser.get("/ops/oidc", query_string={"next": page})
    assert begun.status_code == 302, begun.get_data(as_text=True)
    confirmed = httpx2.post(begun.location, data={"sub": sub})
    back = urlsplit(confirmed.headers["location"])
    return browser.get(back.path, query_string=back.query)


def session_of(engine: Engine) -> Any:
    return rows(engine, OperatorSession)[-1]


def test_a_person_with_a_verified_address_signs_in_and_acts_under_it(
    browser: Browser, issuer: str, engine: Engine
) -> None:
    ann = browser()
    assert 'href="/ops/oidc?next=/ops/events"' in ann.get("/ops/events").get_data(as_text=True)
    answer = sign_in(ann, issuer, "sub_ann", ANN, page="/ops/events")
    assert (answer.status_code, answer.location) == (302, "/ops/events")
    page = ann.get("/ops/events").get_data(as_text=True)
    assert "ann@acme.example" in page and "read-only" not in page
    [noted] = rows(engine, Audit)
    assert (noted["who"], noted["action"]) == ("ann@acme.example", "sign_in")
    ann.get("/ops/oidc")  # a second sign-in ends the first
    sign_in(ann, issuer, "sub_ann", ANN)
    assert len(rows(engine, OperatorSession)) == 1
    in_transaction(engine, lambda tx: tx.execute(update(OperatorSession).values(seen_at=db_now_plus(-3601))))
    assert ann.get("/ops/").status_code == 401, "the session has expired"


def test_a_group_may_look_but_not_act(browser: Browser, issuer: str, engine: Engine) -> None:
    bob = browser(ops_read_only="support")
    assert sign_in(bob, issuer, "sub_bob", BOB).status_code == 302
    assert session_of(engine)["who"] == "sub_bob", "the address is not verified"
    assert "read-only" in bob.get("/ops/").get_data(as_text=True)


def test_what_a_person_may_do_follows_the_settings(browser: Browser, issuer: str) -> None:
    bob = browser()
    sign_in(bob, issuer, "sub_bob", BOB)
    [cookie] = (bob._cookies or {}).values()
    for settings, status in (({"ops_allowed": "support"}, 200), ({"ops_allowed": "staff"}, 401)):
        other = browser(**settings)
        other.set_cookie("workos_sync_ops", cookie.value, path="/ops")
        assert other.get("/ops/").status_code == status, settings


@pytest.mark.parametrize(
    "claims",
    [
        {},
        ANN | {"email_verified": False},
        ANN | {"email_verified": "true"},
        {"email": "ann@acme.example"},
        {"groups": ["ann@acme.example", "Support", "supp"]},
        {"groups": {"support": 1}},
        {"email": "ann@acme.example\u017f", "email_verified": True},
    ],
)
def test_other_people_are_refused(browser: Browser, issuer: str, engine: Engine, claims: dict[str, Any]) -> None:
    answer = sign_in(stranger := browser(), issuer, "sub_stranger", claims)
    assert answer.status_code == 403 and "OPS_ALLOWED names neither you" in answer.get_data(as_text=True)
    assert stranger.get("/ops/").status_code == 401 and rows(engine, OperatorSession) == []


@pytest.mark.parametrize("other", ["strau\u00df@acme.example", "\u017ftrauss@acme.example", "ops"])
def test_letters_that_only_look_alike_are_another_person(browser: Browser, issuer: str, other: str) -> None:
    claims = {"email": other, "email_verified": True}
    assert sign_in(browser(ops_allowed="strauss@acme.example,ops"), issuer, "sub_other", claims).status_code == 403


def test_many_unfinished_attempts_do_not_lock_a_browser_out(browser: Browser, issuer: str) -> None:
    ann = browser()
    for _ in range(30):
        cookie = ann.get("/ops/oidc").headers["Set-Cookie"]
        assert len(cookie) < 4096
    assert sign_in(ann, issuer, "sub_ann", ANN).status_code == 302


def test_a_role_may_be_in_another_claim(browser: Browser, issuer: str, engine: Engine) -> None:
    assert sign_in(browser(oidc_claim="role"), issuer, "sub_eve", {"role": "support"}).status_code == 302
    assert session_of(engine)["entries"] == ["support"]


def test_an_answer_that_this_browser_did_not_ask_for_is_refused(browser: Browser, issuer: str, engine: Engine) -> None:
    begun = browser().get("/ops/oidc")
    state = parse_qs(urlsplit(begun.location).query)["state"][0]
    httpx2.put(f"{issuer}/users/sub_ann", json=ANN).raise_for_status()
    back = urlsplit(httpx2.post(begun.location, data={"sub": "sub_ann"}).headers["location"])
    asked = browser()
    asked.get("/ops/oidc")
    for query in (back.query, "", "code=x", f"code=x&state={state}", "error=access_denied", "state=\u00fc"):
        answer = asked.get(back.path, query_string=query)
        assert answer.status_code == 401 and "did not confirm who you are" in answer.get_data(as_text=True), query
    assert rows(engine, OperatorSession) == []


def test_an_issuer_that_does_not_answer_leaves_tokens_to_sign_in_with(browser: Browser) -> None:
    page = browser(oidc_issuer="http://127.0.0.1:1", ops_tokens="ann:token-of-ann-123456").get("/ops/oidc")
    assert page.status_code == 401 and 'name="token"' in page.get_data(as_text=True)


# A proxy that signs people in

PROXY: dict[str, str | None] = {"oidc_issuer": None, "oidc_client_id": None, "oidc_client_secret": None}
PROXY |= {"ops_proxy_header": "X-Forwarded-Email", "ops_proxy_addresses": "10.0.0.0/8"}


@pytest.mark.parametrize(
    ("email", "sender", "status"),
    [
        ("Ann@acme.example", "10.1.2.3", 200),
        ("eve@acme.example", "10.1.2.3", 401),
        ("support", "10.1.2.3", 401),
        ("", "10.1.2.3", 401),
        ("ann@acme.example", "192.0.2.1", 401),
        ("ann@acme.example", "", 401),
    ],
)
@pytest.mark.parametrize("hops", [0, 1])
def test_a_proxy_names_the_operator(browser: Browser, email: str, sender: str, status: int, hops: int) -> None:
    pages = browser(**PROXY, trusted_proxy_hops=hops)
    headers = {"X-Forwarded-Email": email, "X-Forwarded-For": "10.9.9.9"}
    page = pages.get("/ops/", headers=headers, environ_base={"REMOTE_ADDR": sender})
    text = page.get_data(as_text=True)
    assert page.status_code == status
    assert ("ann@acme.example" in text and "Sign out" not in text) is (status == 200)
    assert "through the proxy" in text or status == 200

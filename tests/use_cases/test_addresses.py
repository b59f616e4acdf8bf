"""One notion of "the same e-mail address": reports, API, pages, auto-join and erasure agree about every spelling."""

import unicodedata
from collections.abc import Callable
from typing import Any

import idna
import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from models.access import auto_join_for
from models.addresses import comparable
from models.database import session
from tests.support import JSON, made
from tests.support.actors import by
from tests.support.mirror import ORG, USER
from tests.support.ops import form_token
from tests.support.resync import Clock, deliver, empty
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.decision.mentions import mentions
from worker.mirror.erasure import forget
from worker.reports.explain import explain
from worker.reports.listings import Place, list_access, people_page

pytestmark = pytest.mark.long

OPS, API = "ann-signs-in-with-this-token", "reader-token-0123456789"
HOSTS = ("one.example", "bücher.example", "faß.example", "例え.テスト", "mail.münchen.example")
LOCALS = ("ann", "jörg", "ann+tag", "o'neil", "a_b.c")


@st.composite
def spellings(draw: st.DrawFn, local: str, host: str) -> str:
    """Some spelling of an address."""
    if draw(st.booleans()):
        host = idna.encode(host, uts46=True).decode()
    host = draw(st.sampled_from([host, host.upper() if "ß" not in host else host, host.title(), host + "."]))
    host = draw(st.sampled_from([host, unicodedata.normalize("NFD", host), host.replace(".", "。")]))
    local = draw(st.sampled_from([local, local.upper(), local.title()]))
    space = draw(st.sampled_from(["", " ", "\n"]))
    return f"{space}{local}@{host}{space}"


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two spellings of one address."""
    local, host = draw(st.sampled_from(LOCALS)), draw(st.sampled_from(HOSTS))
    return draw(spellings(local, host)).strip(), draw(spellings(local, host))


def story(email: str) -> list[JSON]:
    """A workspace with one member, whose domain auto-joins."""
    host = email.rpartition("@")[2]
    return [
        made("organization.created"),
        made("user.created", email=email, email_verified=True),
        made("organization_membership.created", status="active"),
        made("organization_domain.verified", 1, domain=host, state="verified", organization_id=ORG),
    ]


def answers(engine: Engine, email: str) -> dict[str, bool]:
    """The lookups of a person by an address."""
    explained = explain(engine, email)
    with session(engine) as opened:
        joins = auto_join_for(opened, email)
    return {
        "explain": explained is not None and [one["id"] for one in explained["objects"]] == [USER],
        "members": [row["user_id"] for row in list_access(engine, {"email": email})] == [USER],
        "people": USER in {row["id"] for row in people_page(engine, Place(), search=email.strip()).rows},
        "auto-join": joins is not None and joins.organization_id == ORG,
    }


@given(pairs())
@example(("Ann@One.example", "ann@one.example"))
@example(("Cid@BÜCHER.example", "cid@xn--bcher-kva.example"))
@example(("Cid@BÜCHER.example", "cid@bücher.example"))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_every_lookup_knows_every_spelling(both_engines: Engine, pair: tuple[str, str]) -> None:
    stored, asked = pair
    empty(both_engines, Clock())
    deliver(both_engines, story(stored))
    assert answers(both_engines, asked) == dict.fromkeys(("explain", "members", "people", "auto-join"), True)
    other = answers(both_engines, f"x{asked.strip()}")
    assert (other["explain"], other["members"], other["people"]) == (False, False, False)
    body = f'{{"text": "mail for {asked.strip()}"}}'.encode()
    assert comparable(stored) in mentions(body).addresses, "erasure finds it in a payload"


def test_erased_person_is_found_by_no_spelling(one_engine: Engine) -> None:
    late = made("user.updated", 2, id="user_other", email="cid@xn--bcher-kva.example")
    deliver(one_engine, [*story("Cid@BÜCHER.example"), made("user.deleted", 3, email="Cid@BÜCHER.example"), late])
    assert forget(one_engine, USER, by("ann")).payloads == 4, "the event of the other user names the address too"
    assert explain(one_engine, "Cid@BÜCHER.example") is not None, "the other user has it"
    assert list_access(one_engine, {"email": "cid@bücher.example"}) == []


@pytest.mark.parametrize(
    ("stored", "asked"), [("Root@localhost", "root@LOCALHOST"), ("a@b_c.example", "A@B_C.example")]
)
def test_text_that_is_not_an_address_is_found_too(both_engines: Engine, stored: str, asked: str) -> None:
    deliver(both_engines, story(stored))
    found = answers(both_engines, asked)
    assert (found["explain"], found["members"], found["people"]) == (True, True, True)


@pytest.mark.parametrize("asked", ["ann@one.example", "ANN@One.Example.", "ann@ONE。example"])
def test_pages_and_api_find_a_person_by_any_spelling(make_services: Callable[..., Services], asked: str) -> None:
    services = make_services(ops_tokens=f"ann:{OPS}", api_tokens=f"product:{API}")
    deliver(services.engine, story("Ann@One.example"))
    client: FlaskClient = create_app(services).test_client()
    found: Any = client.get(
        "/api/v1/members", query_string={"email": asked}, headers={"Authorization": f"Bearer {API}"}
    ).json
    assert [row["user_id"] for row in found["items"]] == [USER]
    form = {"token": OPS, "csrf_token": form_token(client.get("/ops/sign-in"))}
    assert client.post("/ops/sign-in", data=form).status_code == 302
    for path in ("people?email=", "explain?name="):
        page = client.get(f"/ops/{path}{asked}", follow_redirects=True)
        assert page.status_code == 200 and USER in page.get_data(as_text=True), path

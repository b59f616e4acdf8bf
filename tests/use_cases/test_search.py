"""The search of the pages: by id, external id, address, name or domain, whole or in part."""

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, insert

from models.database import write_transaction
from tests.support import accept, apply_all, made
from tests.support.ops import TOKEN, sign_in
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.kinds.organization import Organization
from worker.reports.search import search


@pytest.fixture
def mirror(engine: Engine, endpoint: FlaskClient) -> Engine:
    """Three workspaces, two people, a domain, an invitation and a role."""
    events = [
        made("organization.created", id="org_1", name="Bücher & Söhne", external_id="acct-1"),
        made("organization.created", id="org_2", name="Grace Foods", external_id="acct-2"),
        made("organization.deleted", 5, id="org_3", name="Grace Gone"),
        made("user.created", id="user_1", email="Ada@Bücher.example", first_name="Ada", last_name="King"),
        made("user.created", id="user_2", email="grace@acme.example", first_name="Grace", last_name="Hopper"),
        made("organization_membership.created", id="om_1", organization_id="org_1", user_id="user_1", status="active"),
        made("organization_domain.verified", id="dom_1", organization_id="org_1", domain="bücher.example"),
        made("invitation.created", id="inv_1", organization_id="org_2", email="eve@acme.example", state="pending"),
        made("organization_role.created", slug="grace-admin", organization_id="org_2"),
        made("user.updated", 3, id="user_2", email="grace@acme.example", event_id="event_odd"),
    ]
    accept(endpoint, *events)
    apply_all(engine)
    return engine


FOUND: dict[str, list[str]] = {
    "": [],
    "nobody": [],
    "%": [],
    "om_1": ["om_1"],
    " event_odd ": ["event_odd"],
    "acct-1": ["org_1"],
    "ADA@XN--BCHER-KVA.example": ["user_1"],
    "EVE@acme.example": ["inv_1"],
    "@acme.example": ["user_2", "inv_1"],
    "ada@bücher.exam": ["user_1"],
    "king ada": ["user_1"],
    "BÜCHER &": ["org_1"],
    "xn--bcher-kva": ["dom_1"],
    "bücher.EXAMPLE": ["user_1", "dom_1"],
    "grace": ["org_2", "org_3", "user_2"],
}


@pytest.mark.long
def test_search_finds(mirror: Engine) -> None:
    assert {text: [match.id for match in search(mirror, text)] for text in FOUND} == FOUND


@pytest.mark.parametrize("number", [30, 130])
def test_of_many_matches_live_ones_come_first(one_engine: Engine, number: int) -> None:
    deleted = [
        {"id": f"org_a{place:03}", "name": f"Globex {place:03}", "deleted_by": "event"} for place in range(number)
    ]
    live = [{"id": f"org_b{place:03}", "name": f"Globex {place:03}", "deleted_by": None} for place in range(6)]
    with write_transaction(one_engine) as tx:
        tx.execute(insert(Organization), [*deleted, *live])
    found = search(one_engine, "globex")
    assert [match.deleted for match in found] == [False] * 6 + [True] * 4
    assert [match.id for match in found[:6]] == [row["id"] for row in live]


def test_search_opens_the_only_match_and_lists_others(make_services: Callable[..., Services], mirror: Engine) -> None:
    ann = create_app(make_services(ops_tokens=f"ann:{TOKEN}")).test_client()
    sign_in(ann)
    pages = {"org_1": "/ops/workspaces/org_1", "event_odd": "/ops/events/event_odd", "king": "/ops/explain"}
    for text, page in pages.items():
        answer = ann.get("/ops/search", query_string={"q": text})
        assert (answer.status_code, urlsplit(answer.headers["Location"]).path) == (302, page)
    several = ann.get("/ops/search?q=grace").get_data(as_text=True)
    assert "Workspaces" in several and "People" in several and 'href="/ops/explain?name=user_2"' in several
    assert "Nothing matches" in ann.get("/ops/search?q=nobody").get_data(as_text=True)

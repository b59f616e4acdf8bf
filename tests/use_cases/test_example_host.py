"""The example host of the integration guide admits members only, over SQL and over HTTP."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from tests.support import JSON, made, serving
from tests.support.auto_join import apply_events
from tests.support.hooks import follow_all
from tests.support.mirror import ORG
from tests.support.tail import filled, fresh
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.hooks import operate
from worker.hooks.targets import WebTarget

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-host" / "app.py"
SECRET = "whsec_" + "c2VjcmV0" * 4
TOKEN = "a-token-of-the-host-s-own"
ANN = made("user.created")["data"]["id"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_host", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def services(local: Callable[..., Services]) -> Services:
    return local(api_tokens=TOKEN)


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture(params=["sql", "http"])
def host(request: pytest.FixtureRequest, example: ModuleType, services: Services) -> Iterator[Flask]:
    """The host, which reads a filled, fresh mirror over SQL or over HTTP."""
    filled(services.engine)
    fresh(services.engine)
    with serving(create_app(services)) as url:
        made = {
            "sql": lambda: example.SqlMirror(services.settings.database_url),
            "http": lambda: example.HttpMirror(url, TOKEN),
        }[request.param]()
        yield example.create_app(made, SECRET)


@pytest.fixture
def ann(host: Flask, engine: Engine) -> FlaskClient:
    """Ann, who is a member of one workspace and admin of another."""
    apply_events(
        engine, [made("organization.created", name="Acme"), made("organization.created", id="org_2", name="Bolt")]
    )
    apply_events(engine, [made("user.created", email="ann@acme.example", email_verified=True)])
    apply_events(engine, [member("om_1", ORG, "member"), member("om_2", "org_2", "admin")])
    client = host.test_client()
    shown = client.post("/sign-in", data={"user_id": ANN}).get_json()
    assert [(place["organization_id"], place["role"]) for place in shown] == [(ORG, "member"), ("org_2", "admin")]
    return client


def member(id: str, organization_id: str, role: str, **data: Any) -> JSON:
    slug = {"slug": role}
    place: JSON = {"id": id, "organization_id": organization_id, "user_id": ANN, "role": slug, "roles": [slug]} | {
        "status": "active"
    }
    return made("organization_membership.created", **place | data)


def gone(id: str, organization_id: str) -> JSON:
    return made("organization_membership.deleted", 5, id=id, organization_id=organization_id, user_id=ANN)


def test_user_enters_only_own_workspaces(ann: FlaskClient) -> None:
    assert ann.post(f"/switch/{ORG}").status_code == 200
    assert ann.post("/switch/org_of_others").status_code == 403


def test_only_admin_sees_admin_page(ann: FlaskClient) -> None:
    ann.post(f"/switch/{ORG}")
    assert ann.get("/keys").status_code == 403
    ann.post("/switch/org_2")
    assert ann.get("/keys").json == {"organization_id": "org_2", "keys": ["sk_1"]}


def test_nobody_enters_while_the_mirror_is_stale(ann: FlaskClient, engine: Engine) -> None:
    ann.post("/switch/org_2")
    fresh(engine, 100)
    assert (ann.get("/keys").status_code, ann.post(f"/switch/{ORG}").status_code) == (503, 503)
    fresh(engine)
    assert ann.get("/keys").status_code == 200


def test_removed_member_loses_access_at_next_request(ann: FlaskClient, engine: Engine) -> None:
    ann.post("/switch/org_2")
    apply_events(engine, [gone("om_2", "org_2")])
    assert ann.get("/keys").status_code == 403 and ann.post("/switch/org_2").status_code == 403


def test_sign_up_joins_unless_removed(ann: FlaskClient, engine: Engine) -> None:
    apply_events(engine, [made("organization_domain.verified", domain="acme.example", state="verified")])
    joins = {"organization_id": ORG, "default_role": "member"}
    assert ann.post("/sign-up", data={"email": "New@ACME.example."}).json == joins
    assert ann.post("/sign-up", data={"email": "new@elsewhere.example"}).json is None
    apply_events(engine, [gone("om_1", ORG)])
    assert ann.post("/sign-up", data={"email": "Ann@acme.example"}).json is None


def test_sign_up_joins_only_exact_domain(ann: FlaskClient, engine: Engine) -> None:
    """Python's own IDNA codec maps straße.de to strasse.de, another owner's domain."""
    for number, (name, owner) in enumerate({"strasse.de": ORG, "faß.example": "org_2"}.items()):
        claim = {"id": f"org_domain_{number}", "domain": name, "organization_id": owner, "state": "verified"}
        apply_events(engine, [made("organization_domain.verified", **claim)])
    joins = {"new@strasse.de": ORG, "new@straße.de": None, "new@Faß.example": "org_2", "new@fass.example": None}
    joins |= {"new@two..dots": None, "nobody": None}
    shown = {email: ann.post("/sign-up", data={"email": email}).json for email in joins}
    assert {email: found and found["organization_id"] for email, found in shown.items()} == joins


def test_all_workspaces_are_listed_across_pages(host: Flask, engine: Engine) -> None:
    ids = [f"org_{number:03}" for number in range(205)]
    apply_events(engine, [made("user.created"), *(made("organization.created", id=id, name=id) for id in ids)])
    apply_events(engine, [member(f"om_{id}", id, "member") for id in ids])
    client = host.test_client()
    shown = client.post("/sign-in", data={"user_id": ANN}).get_json()
    assert [place["organization_id"] for place in shown] == ids
    assert client.post(f"/switch/{ids[-1]}").status_code == 200


def test_hook_ends_sessions_of_removed_member(host: Flask, ann: FlaskClient, engine: Engine) -> None:
    with serving(host) as url:
        target = WebTarget(f"{url}/hooks/workos-sync", SECRET, 5.0)
        follow_all(engine, {"sessions": target}, 3)
        assert ann.post(f"/switch/{ORG}").status_code == 200
        apply_events(engine, [gone("om_1", ORG)])
        follow_all(engine, {"sessions": target}, 3)
        target.close()
    assert operate.deliveries(engine) == []
    assert ann.post("/switch/org_2").status_code == 401, "signed out"
    assert ann.post("/sign-in", data={"user_id": ANN}).status_code == 200


@pytest.mark.parametrize("deleted", ["organization", "user"])
def test_hook_ends_sessions_of_deleted_workspace_and_person(
    host: Flask, ann: FlaskClient, engine: Engine, deleted: str
) -> None:
    elsewhere = host.test_client()
    elsewhere.post("/sign-in", data={"user_id": ANN})
    assert (ann.post("/switch/org_2").status_code, elsewhere.post(f"/switch/{ORG}").status_code) == (200, 200)
    with serving(host) as url:
        target = WebTarget(f"{url}/hooks/workos-sync", SECRET, 5.0)
        follow_all(engine, {"sessions": target}, 3)
        id = {"organization": "org_2", "user": ANN}[deleted]
        apply_events(engine, [made(f"{deleted}.deleted", 5, id=id)])  # WorkOS sends no event for its memberships
        follow_all(engine, {"sessions": target}, 3)
        target.close()
    assert operate.deliveries(engine) == []
    assert ann.get("/keys").status_code == 401, "signed out"
    assert elsewhere.post(f"/switch/{ORG}").status_code == (200 if deleted == "organization" else 401)


def test_forged_hook_is_refused(host: Flask) -> None:
    assert host.test_client().post("/hooks/workos-sync", json={"type": "user.deleted"}).status_code == 401

"""Answers with a staleness bound: a role, no access, or stale; in Python, over HTTP, and in SQL on both databases."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, text, update
from sqlalchemy.exc import DBAPIError

from models.access import Access, Stale, role_of
from models.database import in_transaction, read_transaction, session
from models.migrate import upgrade
from models.tables import Tail
from models.types import db_now_plus
from tests.support.mirror import ORG, USER, grant
from tests.support.tail import DOCUMENTED_SQL, ask, filled, fresh, state
from webhooks.app import create_app
from worker.bootstrap import Services

TOKEN = "reader-token-0123456789"


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services(api_tokens=f"product:{TOKEN}")


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture
def member(endpoint: FlaskClient, engine: Engine) -> FlaskClient:
    """A client of an installation that is complete up to 20 seconds ago, in which USER is an admin of ORG."""
    grant(endpoint, engine, role={"slug": "admin"})
    filled(engine)
    fresh(engine, 20)
    return endpoint


def http(endpoint: FlaskClient, user: str = USER, organization: str = ORG, **query: Any) -> Any:
    asked = {"user_id": user, "organization_id": organization} | query
    return endpoint.get("/api/v1/access", query_string=asked, headers={"Authorization": f"Bearer {TOKEN}"})


def sql(engine: Engine, user: str = USER, organization: str = ORG, max_staleness: float = 60) -> list[Any]:
    """The rows of the query in docs/integration.md."""
    asked = {"user_id": user, "organization_id": organization, "max_staleness": max_staleness}
    with read_transaction(engine) as tx:
        return [row.role for row in tx.execute(text(DOCUMENTED_SQL), asked)]


def function(engine: Engine, user: str = USER, organization: str = ORG, max_staleness: float | None = 60) -> Any:
    with read_transaction(engine) as tx:
        asked = {"user": user, "organization": organization, "bound": max_staleness}
        return tx.execute(text("SELECT role_of(:user, :organization, :bound)"), asked).scalar_one()


def sqlstate(engine: Engine, max_staleness: float | None = 60) -> Any:
    with pytest.raises(DBAPIError) as caught:
        function(engine, max_staleness=max_staleness)
    return getattr(caught.value.orig, "sqlstate", None)


def stale_everywhere(engine: Engine, endpoint: FlaskClient, max_staleness: float = 60) -> str:
    """The reason, once every way to ask says stale."""
    with session(engine) as opened, pytest.raises(Stale) as caught:
        role_of(opened, USER, ORG, max_staleness)
    response = http(endpoint, max_staleness=max_staleness)
    assert (response.status_code, response.json["error"]) == (503, caught.value.reason)
    assert response.headers["Retry-After"] == str(response.json["retry_after"]) == str(caught.value.retry_after)
    assert sql(engine, max_staleness=max_staleness) == []
    if engine.dialect.name == "postgresql":
        assert sqlstate(engine, max_staleness) == "WS001"
    return caught.value.reason


def test_a_role_and_no_access_within_the_bound(member: FlaskClient, engine: Engine) -> None:
    complete_to = state(engine)["complete_to"]
    with session(engine) as opened:
        assert role_of(opened, USER, ORG, max_staleness=60) == "admin"
        assert role_of(opened, "user_x", ORG, max_staleness=60) is None
    assert ask(engine, USER, ORG) == Access("admin", complete_to)
    for user, role in ((USER, "admin"), ("user_x", None)):
        response = http(member, user, max_staleness=60)
        assert response.status_code == 200 and response.json["role"] == role
        assert response.headers["Mirror-Complete-To"] == complete_to.isoformat()
        assert response.headers["Cache-Control"] == "no-store"
        assert sql(engine, user) == [role]
        if engine.dialect.name == "postgresql":
            assert function(engine, user) == role


def test_an_answer_turns_stale_when_it_is_older_than_the_bound_and_not_earlier(
    member: FlaskClient, engine: Engine
) -> None:
    fresh(engine, 57)
    assert ask(engine, USER, ORG, 60) == Access("admin", state(engine)["complete_to"])
    assert http(member, max_staleness=60).status_code == 200
    fresh(engine, 60.1)
    assert "the mirror is complete up to" in stale_everywhere(engine, member)
    assert sql(engine, max_staleness=90) == ["admin"]
    # Without a bound, any age will do.
    assert http(member).json["role"] == "admin"
    assert ask(engine, USER, ORG, None) == Access("admin", state(engine)["complete_to"])


def test_the_reason_names_the_error_of_the_last_read(member: FlaskClient, engine: Engine) -> None:
    fresh(engine, 100)
    in_transaction(engine, lambda tx: tx.execute(update(Tail).values(error="WorkOSError: /events: 503")))
    assert stale_everywhere(engine, member).endswith("/events: 503")


def test_an_answer_is_stale_if_the_database_clock_was_set_back(member: FlaskClient, engine: Engine) -> None:
    fresh(engine, -3600)
    stale_everywhere(engine, member)


def test_an_answer_is_stale_before_the_first_read_and_while_backfilling(endpoint: FlaskClient, engine: Engine) -> None:
    fresh(engine)
    assert stale_everywhere(engine, endpoint) == "the mirror is not filled yet"
    filled(engine)
    nothing = dict.fromkeys(("complete_to", "complete_at"))
    in_transaction(engine, lambda tx: tx.execute(update(Tail).values(nothing)))
    assert stale_everywhere(engine, endpoint) == "the mirror was never complete"
    assert "Mirror-Complete-To" not in http(endpoint).headers


def test_a_bound_below_the_smallest_is_refused_and_named(member: FlaskClient, engine: Engine) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Tail).values(hold_back_seconds=20.0)))
    with session(engine) as opened, pytest.raises(ValueError, match="from 30 to 86400 seconds"):
        role_of(opened, USER, ORG, max_staleness=29.9)
    response = http(member, max_staleness=29.9)
    assert response.status_code == 400 and "from 30 to" in response.json["error"]
    assert http(member, max_staleness=30).status_code == 200
    if engine.dialect.name == "postgresql":
        assert sqlstate(engine, 29.9) == "22023"


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -60.0, 0.0, 86_401.0])
def test_a_nonsense_bound_is_refused(member: FlaskClient, engine: Engine, bound: float) -> None:
    with session(engine) as opened, pytest.raises(ValueError, match="max_staleness"):
        role_of(opened, USER, ORG, bound)
    response = http(member, max_staleness=bound)
    assert response.status_code == 400 and "max_staleness" in response.json["error"]
    if engine.dialect.name == "postgresql":
        assert sqlstate(engine, bound) == sqlstate(engine, None) == "22023"


@pytest.mark.parametrize("query", [{"max_staleness": "soon"}, {"user": ""}, {"max_stalenes": "60"}])
def test_a_wrong_parameter_is_refused(member: FlaskClient, query: dict[str, str]) -> None:
    assert http(member, **query).status_code == 400


def test_every_answer_says_how_complete_the_mirror_was(member: FlaskClient, engine: Engine) -> None:
    shown = state(engine)["complete_to"].isoformat()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for path in ("status", "members", "workspaces", "changes", "snapshot", "events/none"):
        assert member.get(f"/api/v1/{path}", headers=headers).headers["Mirror-Complete-To"] == shown, path
    assert "Mirror-Complete-To" not in member.get("/api/v1/members").headers  # 401


@pytest.mark.long
def test_the_function_works_in_a_long_transaction_and_under_another_search_path(
    make_database: Callable[[str], str], build_test_services: Callable[..., Services]
) -> None:
    services = build_test_services(database_url=make_database("postgresql"), database_schema="workos")
    engine = services.engine
    upgrade(engine)
    grant(create_app(services).test_client(), engine)
    filled(engine)
    in_transaction(engine, lambda tx: tx.execute(update(Tail).values(complete_at=db_now_plus(-59.8))))
    with engine.connect() as connection:
        connection.execute(text("SET search_path TO public"))
        asked = text(f"SELECT workos.role_of('{USER}', '{ORG}', 60)")
        assert connection.execute(asked).scalar_one() == "member"
        connection.execute(text("SELECT pg_sleep(0.3)"))  # time passes in the same transaction
        with pytest.raises(DBAPIError):
            connection.execute(asked)

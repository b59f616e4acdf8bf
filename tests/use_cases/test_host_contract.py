"""The contract with the product: columns of the views, times, and the Python functions."""

from datetime import UTC
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

from models.access import AutoJoin, WorkspaceAccess, auto_join_for, role_of, workspaces_of
from models.tables import Change
from models.views import auto_join_domains as auto_join_view
from models.views import mirror_status, workspace_members, workspaces
from tests.support import (
    JSON,
    NOON,
    accept,
    apply_all,
    event_row,
    made,
    rows,
)
from tests.support.mirror import ORG, USER, grant, take

COLUMNS = {
    "workspace_members": (
        *("organization_id", "workspace_name", "user_id", "email", "role", "workos_role", "status"),
        *("membership_id", "since", "workspace_external_id", "user_external_id", "user_metadata", "custom_attributes"),
    ),
    "auto_join_domains": ("domain", "organization_id", "default_role", "since"),
    "workspaces": (
        *("organization_id", "name", "external_id", "state", "created_at", "updated_at"),
        *("stripe_customer_id", "metadata"),
    ),
    "seats": ("organization_id", "workspace_name", "stripe_customer_id", "external_id", "seats"),
    "changes": (
        *("id", "at", "kind", "object_id", "organization_id", "before", "after", "cause", "cause_id"),
        *("actor_id", "actor_name", "actor_source", "previous_attributes", "workos_at", "workos_after"),
    ),
    "mirror_status": ("state", "complete_to", "last_resync", "age_seconds", "smallest_bound_seconds", "error"),
    "uncertain_access": ("organization_id", "user_id", "event_id", "since"),
}


def test_views_have_their_contract_columns(engine: Engine) -> None:
    found = {name: tuple(column["name"] for column in inspect(engine).get_columns(name)) for name in COLUMNS}
    assert found == COLUMNS


def test_views_return_times_in_utc(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine, created_at="2025-07-01T14:00:00.5+02:00")
    take(endpoint, engine, made("organization_domain.verified", created_at="2025-07-01 12:00:00"))
    half_past = NOON.replace(microsecond=500_000)
    assert rows(engine, workspace_members)[0]["since"] == half_past
    assert rows(engine, auto_join_view)[0]["since"] == NOON
    [workspace] = rows(engine, workspaces)
    times = [workspace["created_at"], workspace["updated_at"], rows(engine, Change)[0]["at"]]
    times += [rows(engine, source)[0]["since"] for source in (workspace_members, auto_join_view)]
    assert {time.tzinfo for time in times} == {UTC}


def test_empty_mirror_is_backfilling(engine: Engine) -> None:
    unknown = dict.fromkeys(("complete_to", "last_resync", "age_seconds", "error"))
    assert rows(engine, mirror_status) == [{"state": "backfilling", "smallest_bound_seconds": 25.0} | unknown]


@pytest.fixture
def session(engine: Engine) -> Any:
    with Session(engine) as session:
        yield session


def test_role_and_workspaces_of_a_user(endpoint: FlaskClient, engine: Engine, session: Session) -> None:
    assert role_of(session, USER, ORG) is None
    session.rollback()
    grant(endpoint, engine, role={"slug": "admin"})
    accept(endpoint, made("organization.created", id="org_2", name="A first"))
    accept(endpoint, made("organization_membership.updated", id="om_2", organization_id="org_2"))
    apply_all(engine)
    assert (role_of(session, USER, ORG), role_of(session, USER, "org_2")) == ("admin", "member")
    assert role_of(session, "user_x", ORG) is None
    assert workspaces_of(session, USER) == [
        WorkspaceAccess("org_2", "A first", "member"),
        WorkspaceAccess(ORG, "Acme Rockets", "admin"),
    ]
    assert workspaces_of(session, "user_x") == []


def test_auto_join_of_an_address(endpoint: FlaskClient, engine: Engine, session: Session) -> None:
    accept(endpoint, made("organization.created"), made("organization_domain.verified"))
    apply_all(engine)
    inside = ["new@acme.example", "New@ACME.Example", '"odd@local"@acme.example']
    outside = ["new@sub.acme.example", "new@acme.example.evil.example", "new@evilacme.example", "acme.example"]
    assert [auto_join_for(session, email) for email in inside] == [AutoJoin(ORG, "member")] * 3
    assert [auto_join_for(session, email) for email in (*outside, "new@", "@", "")] == [None] * 7


LONG = "".join(chr(0x4E00 + (n * 7919) % 20_000) for n in range(9_000))
TEXTS = {
    "user.created": ("email", "first_name", "external_id"),
    "organization.created": ("name", "external_id", "stripe_customer_id"),
    "organization_domain.created": ("domain", "state"),
    "organization_membership.created": ("status",),
    "role.created": ("name",),
}


def test_any_text_can_be_stored(endpoint: FlaskClient, engine: Engine) -> None:
    odd = "nul \0, half \ud800, all \U0001f600"
    events = [
        made(type, **JSON(id=f"{type}-{field}-{text is odd}", slug=field) | {field: text})
        for type, fields in TEXTS.items()
        for field in fields
        for text in (odd, LONG)
    ]
    accept(endpoint, *events)
    apply_all(engine)
    assert {event["id"]: row["error"] for event in events if (row := event_row(engine, event["id"]))["error"]} == {}

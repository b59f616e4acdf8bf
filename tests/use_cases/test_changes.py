"""The outcome of each event, and the rows of `changes` it writes."""

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, update

from models.database import write_transaction
from models.tables import Change, Event, EventStatus
from tests.support import (
    JSON,
    accept,
    apply_all,
    made,
    mirrored,
    outcomes,
    post,
    rows,
)
from tests.support.mirror import MEMBERSHIP, ORG, USER, take
from worker.kinds.user import User


def test_times_without_zone_are_utc(endpoint: FlaskClient, engine: Engine) -> None:
    naive = made("user.updated", email="naive@acme.example", updated_at="2025-07-01 12:05:00.093")
    naive["created_at"] = "2025-07-01 12:05:00.093"
    older, newer = made("user.updated", 5), made("user.updated", 6, email="newer@acme.example")
    take(endpoint, engine, naive, older, newer)
    assert outcomes(engine, naive, older, newer) == ["applied", "stale", "applied"]
    assert rows(engine, User)[0]["email"] == "newer@acme.example"


def history() -> list[JSON]:
    """A history that contains every outcome."""
    return [
        made("organization.created"),
        made("user.created"),
        made("user.updated", 3, email="three@acme.example"),
        made("user.updated", 2, email="two@acme.example"),
        made("user.updated", 4, email="three@acme.example", first_name="Ada", email_verified=True),
        made("organization_membership.updated"),
        made("organization_domain.deleted", 1),
        made("organization_domain.verified", 2),
        made("role.created", 2),
        made("dsync.activated"),
    ]


@pytest.mark.parametrize("redo", ["deliver again", "replay"])
def test_repeated_events_change_nothing(endpoint: FlaskClient, engine: Engine, redo: str) -> None:
    events = history()
    take(endpoint, engine, *events)
    before = mirrored(engine), rows(engine, Change)
    if redo == "deliver again":
        assert {post(endpoint, event).get_json()["status"] for event in events} == {"duplicate"}
    else:
        with write_transaction(engine) as tx:
            tx.execute(update(Event).values(status=EventStatus.PENDING))
    apply_all(engine)
    assert (mirrored(engine), rows(engine, Change)) == before
    again = set(outcomes(engine, *events))
    assert again == (
        {"applied", "unchanged", "stale", "tombstoned", "ignored"} - ({"applied"} if redo == "replay" else set())
    )


def test_each_event_has_its_outcome(endpoint: FlaskClient, engine: Engine) -> None:
    events = history()
    take(endpoint, engine, *events)
    assert outcomes(engine, *events) == [
        *("applied", "applied", "applied", "stale", "unchanged"),
        *("applied", "applied", "tombstoned", "applied", "ignored"),
    ]


def test_only_differences_are_recorded_with_cause(endpoint: FlaskClient, engine: Engine) -> None:
    created, renamed = made("organization.created", 1, name="A"), made("organization.updated", 3, name="B")
    unchanged, stale = made("organization.updated", 4, name="B"), made("organization.updated", 2, name="C")
    deleted, late = made("organization.deleted", 5, name="B"), made("organization.updated", 9, name="D")
    take(endpoint, engine, created, renamed, unchanged, stale, deleted, late)
    changes = rows(engine, Change)
    names = [(row["before"] and row["before"]["name"], row["after"]["name"]) for row in changes]
    assert names == [(None, "A"), ("A", "B"), ("B", "B")]
    assert [row["after"]["state"] for row in changes] == ["active", "active", "deleted"]
    assert [row["cause_id"] for row in changes] == [created["id"], renamed["id"], deleted["id"]]
    assert {(row["cause"], row["kind"], row["object_id"], row["organization_id"]) for row in changes} == {
        ("event", "organization", ORG, ORG)
    }
    assert [row["id"] for row in changes] == sorted({row["id"] for row in changes})


def test_change_has_every_column_before_and_after(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    take(
        local_endpoint,
        local_engine,
        made("organization_membership.created"),
        made("organization_membership.updated", 1),
    )
    content = {
        "state": "active",
        "created_at": "2025-06-25T19:43:28.845000+00:00",
        "organization_id": ORG,
        "user_id": USER,
        "workos_roles": ["member"],
        "workos_role": "member",
        "role": "member",
        "directory_managed": False,
        "custom_attributes": {"department": "Engineering", "cost_center": 4100},
        "erased": False,
    }
    change = rows(local_engine, Change)[-1]
    assert change["before"] == content | {"status": "pending"}
    assert change["after"] == content | {"status": "active"}
    assert (change["object_id"], change["organization_id"]) == (MEMBERSHIP, ORG)


def test_each_event_of_a_batch_records_its_change(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    events = [made("user.updated", at, email=f"{at}@acme.example", event_id=f"event_{at}") for at in (1, 2, 3)]
    accept(local_endpoint, *events)
    apply_all(local_engine)
    assert [(row["before"] or {}).get("email") for row in rows(local_engine, Change)] == [
        None,
        "1@acme.example",
        "2@acme.example",
    ]
    assert [row["revision"] for row in rows(local_engine, User)] == [1]

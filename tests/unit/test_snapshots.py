"""Whole snapshots: every column, key and version of an event or an API object, and every refusal, word for word."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.support import JSON, made, sample
from tests.support.snapshots import DELETES, ROLES, content, read, refused
from worker.decision.decide import DATE_STEP, State, Version
from worker.decision.payload import EPOCH, is_id, parse_time
from worker.decision.roles import slug_for
from worker.errors import PayloadError
from worker.kinds import KINDS, SUBSCRIBED, Kind, Snapshot, read_event, read_object

LIVE = sorted(set(SUBSCRIBED) - set(DELETES) - {"organization_domain.verification_failed"})


def test_times_do_not_depend_on_the_machines_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        found = [parse_time(text) for text in ("2023-04-28T20:05:31", "2023-04-28T22:05:31+02:00")]
    time.tzset()
    assert found == [datetime(2023, 4, 28, 20, 5, 31, tzinfo=UTC)] * 2
    assert [at.utcoffset() for at in found if at] == [timedelta(0)] * 2


ORG = "org_01JYM8M9F7BH9CXMR0Y7HNBNAP"
CONTENTS: dict[str, tuple[Kind, str, JSON]] = {
    "organization.created": (
        KINDS["organization"],
        ORG,
        {
            "name": "Acme Rockets",
            "external_id": "workspace_17",
            "stripe_customer_id": "cus_SVTmZ3hbWn4QyK",
            "metadata": {"tier": "diamond", "region": "eu-1"},
        },
    ),
    "user.updated": (
        KINDS["user"],
        "user_01JYM9EKHBBH9CXW8DYAZ27TDB",
        {
            "email": "ada.hopper@acme.example",
            "email_verified": True,
            "first_name": "Ada",
            "last_name": "Hopper",
            "external_id": "4711",
            "metadata": {"language": "de"},
        },
    ),
    "organization_membership.created": (
        KINDS["membership"],
        "om_01JYM9VRJDBH9CY1SVZ89HE5RM",
        {
            "organization_id": ORG,
            "user_id": "user_01JYM9EKHBBH9CXW8DYAZ27TDB",
            "status": "pending",
            "workos_roles": ["member"],
            "workos_role": "member",
            "role": "member",
            "directory_managed": True,
            "custom_attributes": None,
        },
    ),
    "organization_domain.verified": (
        KINDS["domain"],
        "org_domain_01JYM91EG9BH9CXSHRSD5658BA",
        {
            "organization_id": ORG,
            "domain": "ACME.example",
            "normalized": "acme.example",
            "verification": "verified",
            "reason": None,
        },
    ),
    "connection.activated": (
        KINDS["connection"],
        "conn_01JYMDZAX1BH9CZ031TFXF1D42",
        {
            "organization_id": ORG,
            "name": "Acme sign-in",
            "connection_type": "OktaSAML",
            "status": "active",
            "domains": ["acme.example"],
        },
    ),
    "organization_role.updated": (
        KINDS["role"],
        f"{ORG}/org-support",
        {
            "organization_id": ORG,
            "slug": "org-support",
            "name": "Support",
            "description": "Answers customers",
            "permissions": ["tickets:read", "tickets:write"],
            "resource_type": "organization",
        },
    ),
    "invitation.accepted": (
        KINDS["invitation"],
        "invitation_01JYMA4W2PBH9CZ6Q0V3K7T8SD",
        {
            "organization_id": ORG,
            "email": "Grace.Berg@ACME.example",
            "status": "accepted",
            "role_slug": "member",
            "inviter_user_id": "user_01JYM9EKHBBH9CXW8DYAZ27TDB",
            "accepted_user_id": "user_01JYMB0R5TBH9CX2M4N8C1E7PQ",
            "expires_at": datetime(2025, 7, 3, 8, 30, 0, 120_000, UTC),
            "accepted_at": datetime(2025, 6, 26, 9, 12, 44, 1_000, UTC),
            "revoked_at": None,
        },
    ),
    "role.updated": (
        KINDS["role"],
        "billing",
        {
            "organization_id": None,
            "slug": "billing",
            "name": None,
            "description": None,
            "permissions": ["invoices:read"],
            "resource_type": "organization",
        },
    ),
}
"""An event, and the content of its snapshot without its times."""
CHANGED: dict[str, JSON] = {
    "organization_membership.created": {"directory_managed": True, "custom_attributes": {}},
    "organization_domain.verified": {"domain": "ACME.example"},
}
GIVEN = {
    "organization.created": ("external_id", "stripe_customer_id", "metadata"),
    "user.updated": ("external_id", "metadata"),
    "organization_membership.created": ("organization_id", "user_id", "custom_attributes"),
    "organization_domain.verified": ("organization_id",),
    "connection.activated": ("organization_id",),
    "organization_role.updated": ("resource_type",),
    "role.updated": ("resource_type",),
}
"""Those of the columns that payloads may omit which are in the event."""


def state_of(type: str, version: Version) -> State:
    content = CONTENTS[type][2] | {"created_at": CREATED}
    return State(version, deleted=False, content=content, versions=dict.fromkeys(GIVEN.get(type, ()), version))


CREATED, UPDATED = datetime(2025, 1, 2, tzinfo=UTC), datetime(2025, 3, 4, tzinfo=UTC)
TIMES: JSON = {"created_at": "2025-01-02", "updated_at": "2025-03-04"}


@pytest.mark.parametrize("type", CONTENTS)
def test_event_snapshot_has_every_column(type: str) -> None:
    event = made(type, 7, **TIMES | CHANGED.get(type, {}))
    kind, id, _ = CONTENTS[type]
    event_at = datetime.fromisoformat(event["created_at"])
    version = Version(UPDATED if kind.delete_is_final else event_at, event_at, event["id"])
    assert read(event) == Snapshot(kind, id, state_of(type, version))
    del event["data"]["created_at"]
    assert read(event).state.content["created_at"] == version.updated_at


@pytest.mark.parametrize("type", CONTENTS)
def test_api_snapshot_has_every_column(type: str) -> None:
    event = made(type, 7, **TIMES | CHANGED.get(type, {}))
    kind, id, _ = CONTENTS[type]
    read_at = datetime(2025, 7, 1, 12, 0, 5, tzinfo=UTC)
    version = Version(UPDATED, read_at + DATE_STEP if kind.delete_is_final else UPDATED, "")
    assert read_object(kind, event["data"], read_at, ROLES) == Snapshot(kind, id, state_of(type, version))


def test_api_snapshot_of_a_failed_domain_has_no_reason() -> None:
    item = made("organization_domain.created", state="failed")["data"]
    found = read_object(KINDS["domain"], item, UPDATED, ROLES).state.content
    assert found["verification"] == "failed" and "reason" not in found


def test_unusable_api_object_is_refused_by_kind_and_field() -> None:
    with pytest.raises(PayloadError, match=r"^user: is not an object$"):
        read_object(KINDS["user"], [], UPDATED, ROLES)
    with pytest.raises(PayloadError, match=r"^membership\.updated_at: is missing$"):
        read_object(
            KINDS["membership"], {"id": "om_1", "organization_id": "org_1", "user_id": "user_1"}, UPDATED, ROLES
        )


@pytest.mark.parametrize("type", DELETES)
def test_delete_keeps_what_it_has_and_needs_only_its_key(type: str) -> None:
    kind = read(made(type)).kind
    live_type = next(live for live in LIVE if live.partition(".")[0] == type.partition(".")[0])
    event = made(type, 7, **made(live_type)["data"] | TIMES)
    snapshot, as_live = read(event), read(event | {"event": live_type})
    assert (snapshot.kind, snapshot.id) == (as_live.kind, as_live.id)
    assert snapshot.state == replace(as_live.state, deleted=True)
    if kind.delete_is_final:
        bare = {"id": "event_1", "event": type, "data": {"id": "x"}}
        assert read(bare).state.version == Version(EPOCH, EPOCH, "event_1")
        assert read(bare).state.content["created_at"] == EPOCH


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (sample("user.created") | {"data": 7}, "data: is not an object"),
        (sample("user.created") | {"created_at": "soon"}, "created_at: is missing or not a time"),
        (sample("role.created") | {"created_at": None}, "created_at: is missing or not a time"),
        (made("user.created", id=None), "data.id: is missing"),
        (made("user.created", id=""), "data.id: is missing"),
        (made("user.created", id=7), "data.id: is not a string"),
        (made("user.created", id="\n"), "data.id: is not an id"),
        (made("user.created", updated_at=None), "data.updated_at: is missing"),
        (made("user.created", updated_at="soon"), "data.updated_at: is not a time"),
        (made("role.created", slug=7), "data.slug: is not a string"),
        (
            made("organization_domain.verification_failed", id=7),
            "data.organization_domain.id: is not a string",
        ),
    ],
)
def test_refusal_names_the_field_and_the_problem(event: JSON, message: str) -> None:
    assert str(refused(event)) == message


@pytest.mark.parametrize(("body", "message"), [(b"{", "body: is not JSON"), (b"[]", "body: is not an object")])
def test_refused_body_names_the_problem(body: bytes, message: str) -> None:
    with pytest.raises(PayloadError, match=f"^{message}$"):
        read_event("event_1", "user.created", body, ROLES)


@pytest.mark.parametrize("odd", [None, "", 7, "\u00e9", "a" * 256])
def test_optional_parent_without_a_usable_id_is_none(odd: object) -> None:
    assert content("connection.activated", organization_id=odd)["organization_id"] is None


def test_a_role_of_the_environment_has_no_name_of_its_own() -> None:
    found = content("role.updated", name="Billing", description="Pays")
    assert (found["name"], found["description"]) == (None, None)


def test_lists_are_sorted_without_duplicates_and_hold_only_text() -> None:
    permissions = ["b", 7, "a", "b", None, ["c"]]
    assert content("role.updated", permissions=permissions)["permissions"] == ["a", "b"]
    domains = [{"domain": "b.example"}, {"domain": 7}, "c.example", {"domain": "a.example"}, {"id": "x"}]
    assert content("connection.activated", domains=domains)["domains"] == ["a.example", "b.example"]
    odd = [{"domain": "a\0.example"}]
    assert content("connection.activated", domains=odd)["domains"] == ["a\ufffd.example"]


def test_the_slug_for_a_local_role_is_its_own_name_or_the_first_that_maps_to_it() -> None:
    assert slug_for("admin", {"a_boss": "admin", "admin": "admin"}) == "admin"
    assert slug_for("admin", {"owner": "admin", "boss": "admin", "member": "member"}) == "boss"
    assert slug_for("admin", {"admin": "member", "owner": "admin"}) == "owner"
    assert slug_for("admin", {"member": "member"}) is None


@pytest.mark.parametrize(
    ("value", "good"), [("event_1", True), ("evt 1", True), ("", False), ("x" * 255, True), ("x" * 256, False)]
)
def test_ids_are_printable_and_at_most_255_characters(value: str, good: bool) -> None:
    assert is_id(value) is good

"""The effect of each event on the mirror, and who has access after several."""

import json
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine

from models.tables import Change, Read
from models.views import auto_join_domains as auto_join_view
from models.views import workspace_members, workspaces
from tests.support import (
    EVENTS,
    JSON,
    accept,
    access,
    apply_all,
    event_row,
    joins,
    made,
    minute,
    mirrored,
    outcomes,
    rows,
    sample,
)
from tests.support.histories import broken_chains
from tests.support.mirror import ACME, DOMAIN, MEMBER, MEMBERSHIP, ORG, USER, grant, take
from worker.kinds import READERS
from worker.kinds.connection import Connection
from worker.kinds.role import Role
from worker.mirror.read_requests import PARENT_MISSING

INVITATION = sample("invitation.created")["data"]["id"]
CONNECTION = sample("connection.activated")["data"]["id"]
SAMPLES = sorted(path.stem for path in EVENTS.glob("*.json"))

EFFECTS: dict[str, tuple[str, JSON] | None] = {
    "organization.created": (
        "organization",
        {"id": ORG, "name": "Acme Rockets", "external_id": "workspace_17", "deleted_by": None},
    ),
    "organization.updated": (
        "organization",
        {
            "id": ORG,
            "name": "Acme Rockets International",
            "external_id": "workspace_17",
            "stripe_customer_id": "cus_SVTmZ3hbWn4QyK",
            "metadata": {"tier": "diamond", "region": "eu-1"},
            "deleted_by": None,
        },
    ),
    "organization.deleted": ("organization", {"id": ORG, "deleted_by": "event"}),
    "organization_domain.created": (
        "domain",
        {"id": DOMAIN, "organization_id": ORG, "normalized": "acme.example", "verification": "pending"},
    ),
    "organization_domain.updated": ("domain", {"id": DOMAIN, "verification": "pending", "deleted_by": None}),
    "organization_domain.verified": ("domain", {"id": DOMAIN, "verification": "verified", "deleted_by": None}),
    "organization_domain.verification_failed": (
        "domain",
        {
            "id": DOMAIN,
            "organization_id": ORG,
            "domain": "acme.example",
            "verification": "failed",
            "reason": "domain_verification_period_expired",
            "deleted_by": None,
        },
    ),
    "organization_domain.deleted": ("domain", {"id": DOMAIN, "deleted_by": "event"}),
    "organization_membership.created": (
        "membership",
        {
            "id": MEMBERSHIP,
            "organization_id": ORG,
            "user_id": USER,
            "status": "pending",
            "workos_roles": ["member"],
            "workos_role": "member",
            "role": "member",
            "directory_managed": False,
        },
    ),
    "organization_membership.updated": (
        "membership",
        {
            "id": MEMBERSHIP,
            "status": "active",
            "custom_attributes": {"department": "Engineering", "cost_center": 4100},
            "deleted_by": None,
        },
    ),
    "organization_membership.deleted": ("membership", {"id": MEMBERSHIP, "deleted_by": "event"}),
    "user.created": (
        "user",
        {
            "id": USER,
            "email": "ada.hopper@acme.example",
            "email_verified": False,
            "first_name": "Ada",
            "last_name": "Hopper",
            "deleted_by": None,
        },
    ),
    "user.updated": (
        "user",
        {"id": USER, "email_verified": True, "external_id": "4711", "metadata": {"language": "de"}, "deleted_by": None},
    ),
    "user.deleted": ("user", {"id": USER, "deleted_by": "event"}),
    "role.created": ("role", {"id": "billing", "slug": "billing", "permissions": [], "organization_id": None}),
    "role.updated": ("role", {"id": "billing", "permissions": ["invoices:read"], "deleted_by": None}),
    "role.deleted": ("role", {"id": "billing", "deleted_by": "event"}),
    "permission.created": (
        "permission",
        {
            "id": "invoices:read",
            "permission_id": "perm_01JYM8C2G4BH9C8V7S5Q3N1K0E",
            "name": "Read invoices",
            "system": False,
            "resource_type": "organization",
        },
    ),
    "permission.updated": ("permission", {"id": "invoices:read", "name": "See invoices", "deleted_by": None}),
    "permission.deleted": ("permission", {"id": "invoices:read", "deleted_by": "event"}),
    "organization_role.created": (
        "role",
        {"id": f"{ORG}/org-support", "slug": "org-support", "name": "Support", "organization_id": ORG},
    ),
    "organization_role.updated": (
        "role",
        {"description": "Answers customers", "permissions": ["tickets:read", "tickets:write"], "deleted_by": None},
    ),
    "organization_role.deleted": ("role", {"id": f"{ORG}/org-support", "deleted_by": "event"}),
    "connection.activated": (
        "connection",
        {"organization_id": ORG, "connection_type": "OktaSAML", "status": "active", "domains": ["acme.example"]},
    ),
    "connection.deactivated": ("connection", {"status": "inactive", "deleted_by": None}),
    "connection.deleted": ("connection", {"organization_id": ORG, "deleted_by": "event"}),
    "invitation.created": (
        "invitation",
        {
            "id": INVITATION,
            "organization_id": ORG,
            "email": "Grace.Berg@ACME.example",
            "email_normalized": "grace.berg@acme.example",
            "status": "pending",
            "role_slug": "member",
            "inviter_user_id": USER,
            "accepted_user_id": None,
            "expires_at": datetime(2025, 7, 2, 20, 1, 9, 335_000, UTC),
        },
    ),
    "invitation.resent": (
        "invitation",
        {"id": INVITATION, "status": "pending", "expires_at": datetime(2025, 7, 3, 8, 30, 0, 120_000, UTC)},
    ),
    "invitation.accepted": (
        "invitation",
        {
            "id": INVITATION,
            "status": "accepted",
            "accepted_at": datetime(2025, 6, 26, 9, 12, 44, 1_000, UTC),
            "accepted_user_id": "user_01JYMB0R5TBH9CX2M4N8C1E7PQ",
        },
    ),
    "invitation.revoked": (
        "invitation",
        {"id": INVITATION, "status": "revoked", "revoked_at": datetime(2025, 6, 26, 9, 0, 0, 770_000, UTC)},
    ),
    "connection.saml_certificate_renewal_required": (
        "saml_certificate",
        {
            "id": f"{CONNECTION}/ResponseSigning",
            "connection_id": CONNECTION,
            "organization_id": ORG,
            "certificate_type": "ResponseSigning",
            "expires_at": datetime(2025, 7, 20, tzinfo=UTC),
            "created_at": None,
        },
    ),
    "connection.saml_certificate_renewed": (
        "saml_certificate",
        {"id": f"{CONNECTION}/ResponseSigning", "expires_at": datetime(2028, 6, 29, 11, 20, 4, tzinfo=UTC)},
    ),
    "dsync.activated": None,
}
"""Sample → the one row it creates in an empty mirror (these columns), or None."""


def test_every_event_type_has_a_sample_and_an_effect() -> None:
    assert set(READERS) <= set(SAMPLES)
    assert set(SAMPLES) == set(EFFECTS)
    assert {type for type, effect in EFFECTS.items() if effect} == set(READERS)


@pytest.mark.parametrize("type", SAMPLES)
def test_effect_of_one_event(local_endpoint: FlaskClient, local_engine: Engine, type: str) -> None:
    event = sample(type)
    take(local_endpoint, local_engine, event)
    row = event_row(local_engine, event["id"])
    effect = EFFECTS[type]
    assert (row["status"], row["outcome"]) == ("done", "applied" if effect else "ignored")
    left = {kind: found for kind, found in mirrored(local_engine).items() if found}
    if effect is None:
        assert left == {} and rows(local_engine, Change) == []
        return
    kind, expected = effect
    assert list(left) == [kind]
    [only] = left[kind]
    assert expected.items() <= only.items()
    assert (only["event_id"], only["event_at"]) == (event["id"], datetime.fromisoformat(event["created_at"]))
    assert (row["kind"], row["object_id"]) == (kind, only["id"])
    assert row["organization_id"] == (ORG if kind == "organization" else only.get("organization_id"))


VARIANTS = sorted(path for folder in ("minimal", "nulls") for path in (EVENTS / folder).glob("*.json"))
"""Recorded payloads that omit optional fields, and that have null in them."""


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: f"{path.parent.name} {path.stem}")
def test_event_without_optional_fields_is_applied(
    local_endpoint: FlaskClient, local_engine: Engine, path: Path
) -> None:
    event = json.loads(path.read_text())
    take(local_endpoint, local_engine, event)
    assert outcomes(local_engine, event) == ["applied"]
    [only] = [row for found in mirrored(local_engine).values() for row in found]
    data = event["data"]
    if "certificate" in data:
        certificate = data["certificate"]
        assert (only["id"], only["organization_id"]) == (f"{CONNECTION}/{certificate['certificate_type']}", None)
        assert only["expires_at"] == datetime.fromisoformat(certificate["expiry_date"])
        return
    if event["event"] in HOST_KEYS:
        assert {only[name] for name in HOST_KEYS[event["event"]]} == {None}
        return
    assert (only["id"], only["email"], only["status"], only["organization_id"]) == (
        *(data["id"], data["email"], data["state"], data["organization_id"]),
    )
    assert (only["expires_at"], only["inviter_user_id"], only["accepted_user_id"]) == (None, None, None)


HOST_KEYS = {
    "organization.updated": ("external_id", "stripe_customer_id", "metadata"),
    "user.updated": ("external_id", "metadata"),
    "organization_membership.updated": ("custom_attributes",),
}
"""Event type → columns of the product that payloads may omit."""


@pytest.mark.parametrize("type", HOST_KEYS)
def test_absent_is_not_null_in_any_order(local_endpoint: FlaskClient, local_engine: Engine, type: str) -> None:
    full = sample(type)
    minimal, nulls = (json.loads((EVENTS / f"{folder}/{type}.json").read_text()) for folder in ("minimal", "nulls"))

    def played(place: int, *events: JSON) -> JSON:
        """The columns of an object of its own after these events."""
        id = f"object_{place}"
        for event in events:
            about = {"id": f"{event['id']}_{place}", "data": event["data"] | {"id": id}}
            take(local_endpoint, local_engine, event | about)
        [row] = [row for row in rows(local_engine, READERS[type][0].table) if row["id"] == id]
        return {name: row[name] for name in HOST_KEYS[type]}

    given = {name: full["data"][name] for name in HOST_KEYS[type]}
    assert played(0, full, minimal) == played(1, minimal, full) == given
    gone = dict.fromkeys(given)  # the payload with nulls is newer than the full one, and older than the minimal one
    for place, events in enumerate(permutations((full, minimal, nulls)), start=2):
        assert played(place, *events) == gone
    assert broken_chains(rows(local_engine, Change)) == []
    assert {row["reason"] for row in rows(local_engine, Read)} <= {PARENT_MISSING}


def test_a_connection_leaves_its_workspace_only_if_the_payload_says_so(
    local_endpoint: FlaskClient, local_engine: Engine
) -> None:
    full, absent, null = (made("connection.activated", at) for at in (1, 3, 2))
    del absent["data"]["organization_id"]
    null["data"]["organization_id"] = None

    def workspaces(*events: JSON) -> list[str | None]:
        """The workspaces of a connection after these events in any order."""
        found = []
        for order in permutations(events):
            id = f"conn_{len(rows(local_engine, Connection))}"
            copies = [event | {"id": f"{event['id']}_{id}", "data": event["data"] | {"id": id}} for event in order]
            take(local_endpoint, local_engine, *copies)
            found += [row["organization_id"] for row in rows(local_engine, Connection) if row["id"] == id]
        return found

    assert workspaces(full, absent) == [ORG] * 2
    assert workspaces(full, absent, null) == [None] * 6


def test_sign_in_of_a_user_changes_nothing(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    take(local_endpoint, local_engine, made("user.updated", 1))
    before, changes = mirrored(local_engine), len(rows(local_engine, Change))
    signed_in = made("user.updated", 2, last_sign_in_at=minute(2))
    take(local_endpoint, local_engine, signed_in)
    assert outcomes(local_engine, signed_in) == ["unchanged"] and len(rows(local_engine, Change)) == changes
    version = {"updated_at", "event_at", "event_id"}
    shown = [
        {k: v for k, v in row.items() if k not in version} for [row] in (before["user"], mirrored(local_engine)["user"])
    ]
    assert shown[0] == shown[1]


@pytest.mark.long
def test_views_follow_the_recorded_samples(endpoint: FlaskClient, engine: Engine) -> None:
    events = sorted(map(sample, SAMPLES), key=lambda event: str(event["created_at"]))
    seen: list[tuple[Any, ...]] = []
    for event in events:
        take(endpoint, engine, event)
        now = (access(engine), joins(engine))
        if not seen or seen[-1][1:] != now:
            seen.append((event["event"], *now))
    assert seen == [
        ("role.created", set(), set()),
        ("organization_domain.verified", set(), ACME),
        ("organization_membership.updated", MEMBER, ACME),
        ("organization_membership.deleted", set(), ACME),
        ("organization_domain.deleted", set(), set()),
    ]
    assert [row["state"] for row in rows(engine, workspaces)] == ["deleted"]


@pytest.mark.parametrize(
    ("type", "id"),
    [("organization", ORG), ("user", USER), ("organization_membership", MEMBERSHIP), ("organization_domain", DOMAIN)],
)
class TestDeletes:
    """A delete is final, whatever its time and order."""

    def test_delete_with_equal_time_wins(
        self, local_endpoint: FlaskClient, local_engine: Engine, type: str, id: str
    ) -> None:
        take(local_endpoint, local_engine, made(f"{type}.updated", 5), made(f"{type}.deleted", 9, updated_at=minute(5)))
        assert self.stored(local_engine)["deleted_by"] == "event"

    def test_delete_before_create_wins(
        self, local_endpoint: FlaskClient, local_engine: Engine, type: str, id: str
    ) -> None:
        deleted, created = made(f"{type}.deleted", 5), made(f"{type}.created", 1)
        take(local_endpoint, local_engine, deleted, created)
        assert outcomes(local_engine, deleted, created) == ["applied", "tombstoned"]
        assert event_row(local_engine, created["id"])["decided_by"] == deleted["id"]
        assert self.stored(local_engine)["deleted_by"] == "event"

    def test_later_update_does_not_restore(
        self, local_endpoint: FlaskClient, local_engine: Engine, type: str, id: str
    ) -> None:
        late = made(f"{type}.updated", 99)
        take(local_endpoint, local_engine, made(f"{type}.created"), made(f"{type}.deleted", 5), late)
        assert outcomes(local_engine, late) == ["tombstoned"]
        assert self.stored(local_engine)["deleted_by"] == "event"

    def test_delete_with_only_an_id_wins(
        self, local_endpoint: FlaskClient, local_engine: Engine, type: str, id: str
    ) -> None:
        bare = {"id": "event_bare", "event": f"{type}.deleted", "data": {"id": id}}
        take(local_endpoint, local_engine, created := made(f"{type}.created"), bare)
        stored, ids = self.stored(local_engine), ("organization_id", "user_id")
        assert stored["deleted_by"] == "event"
        assert [stored.get(name) for name in ids] == [created["data"].get(name) for name in ids]

    def stored(self, engine: Engine) -> JSON:
        [row] = [row for found in mirrored(engine).values() for row in found]
        return row


def test_late_delete_of_old_membership_keeps_new_one(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    grant(local_endpoint, local_engine, id="om_old")
    take(
        local_endpoint,
        local_engine,
        made("organization_membership.updated", 10, id="om_new", created_at=minute(9)),
        made("organization_membership.deleted", 11, id="om_old"),
    )
    assert access(local_engine) == MEMBER
    assert [row["membership_id"] for row in rows(local_engine, workspace_members)] == ["om_new"]


def test_newest_active_membership_counts(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine, id="om_1", created_at=minute(1))
    newer = made("organization_membership.created", 2, id="om_0", created_at=minute(2), status="active")
    newer["data"]["role"] = newer["data"]["roles"][0] = {"slug": "admin"}
    take(endpoint, engine, newer)
    assert access(engine) == {(ORG, USER, "admin")}


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_member_appears_with_last_of_three_events(
    local_endpoint: FlaskClient, local_engine: Engine, order: tuple[int, ...]
) -> None:
    events = made("organization_membership.updated"), made("organization.created"), made("user.created")
    first, second, last = (events[place] for place in order)
    take(local_endpoint, local_engine, first, second)
    assert access(local_engine) == set()
    take(local_endpoint, local_engine, last)
    assert access(local_engine) == MEMBER


def test_deleted_workspace_hides_members_and_domains(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine)
    take(endpoint, engine, made("organization_domain.verified"))
    assert (access(engine), joins(engine)) == (MEMBER, ACME)
    take(endpoint, engine, made("organization.deleted", 5))
    assert (access(engine), joins(engine)) == (set(), set())


def test_deleted_user_has_no_access(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine)
    take(endpoint, engine, made("user.deleted", 5))
    assert access(engine) == set()


def test_only_active_status_gives_access(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine)
    for at, status in enumerate(["pending", "inactive", "suspended", "Active", "", None, 1, ["active"]]):
        take(endpoint, engine, made("organization_membership.updated", 2 * at + 1, status=status))
        assert access(engine) == set(), status
        take(endpoint, engine, made("organization_membership.updated", 2 * at + 2))
        assert access(engine) == MEMBER


def test_unknown_role_becomes_member(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine, role={"slug": "owner"}, roles=[{"slug": "owner"}])
    [row] = rows(engine, workspace_members)
    assert (row["role"], row["workos_role"]) == ("member", "owner")


VERIFIED = made("organization_domain.verified", id="domain_1")
RIVAL: JSON = {"id": "domain_2", "organization_id": "org_2"}


@pytest.fixture
def rivals(endpoint: FlaskClient, engine: Engine) -> None:
    """Two workspaces that have verified the same domain."""
    accept(endpoint, made("organization.created"), made("organization.created", id="org_2"), VERIFIED)
    apply_all(engine)
    assert joins(engine) == ACME
    take(endpoint, engine, made("organization_domain.verified", 1, **RIVAL, domain="ACME.Example."))
    assert joins(engine) == set()


@pytest.mark.usefixtures("rivals")
@pytest.mark.parametrize(
    "end",
    [
        made("organization_domain.verification_failed", 5, **RIVAL),
        made("organization_domain.updated", 5, **RIVAL),
        made("organization_domain.updated", 5, **RIVAL, state="new_state"),
        made("organization_domain.deleted", 5, **RIVAL),
        made("organization.deleted", 5, id="org_2"),
    ],
    ids=["failed", "pending again", "unknown state", "deleted", "workspace deleted"],
)
def test_contested_domain_auto_joins_nobody_until_resolved(endpoint: FlaskClient, engine: Engine, end: JSON) -> None:
    take(endpoint, engine, end)
    assert joins(engine) == ACME


def test_unknown_rival_workspace_stops_auto_join(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, made("organization.created"), VERIFIED, made("organization_domain.verified", 1, **RIVAL))
    apply_all(engine)
    assert joins(engine) == set()
    take(endpoint, engine, made("organization.deleted", 5, id="org_2"))
    assert joins(engine) == ACME


def test_only_verified_domains_auto_join(endpoint: FlaskClient, engine: Engine) -> None:
    take(endpoint, engine, made("organization.created"))
    for at, state in enumerate(["pending", "failed", "unverified", "Verified", "brand_new", None, ["verified"]]):
        take(endpoint, engine, made("organization_domain.updated", 2 * at, state=state))
        assert joins(engine) == set(), state
        verified = "legacy_verified" if at % 2 else "verified"
        take(endpoint, engine, made("organization_domain.updated", 2 * at + 1, state=verified))
        assert joins(engine) == ACME


def test_domain_verified_twice_is_listed_once(endpoint: FlaskClient, engine: Engine) -> None:
    second = made("organization_domain.verified", 1, id="domain_2", created_at=minute(-9))
    accept(endpoint, made("organization.created"), VERIFIED, second)
    apply_all(engine)
    assert [row["since"] for row in rows(engine, auto_join_view)] == [
        datetime.fromisoformat(VERIFIED["data"]["created_at"])
    ]


def test_organization_event_changes_no_domain(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    take(
        local_endpoint,
        local_engine,
        made("organization.created"),
        VERIFIED,
        made("organization.updated", 9, domains=[]),
    )
    assert joins(local_engine) == ACME


@pytest.mark.parametrize("type", ["role", "organization_role"])
def test_deleted_role_can_be_created_again(local_endpoint: FlaskClient, local_engine: Engine, type: str) -> None:
    created, deleted, again = made(f"{type}.created", 1), made(f"{type}.deleted", 2), made(f"{type}.created", 3)
    take(local_endpoint, local_engine, again, deleted, created)
    assert outcomes(local_engine, again, deleted, created) == ["applied", "stale", "stale"]
    take(local_endpoint, local_engine, gone := made(f"{type}.deleted", 4), made(f"{type}.updated", 3))
    assert outcomes(local_engine, gone) == ["applied"]
    assert [row["deleted_by"] for row in rows(local_engine, Role)] == ["event"]


def test_same_slug_in_different_scopes_is_different_roles(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    accept(
        local_endpoint,
        made("role.created", slug="x"),
        made("organization_role.created", slug="x"),
        made("organization_role.created", slug="x", organization_id="org_2"),
    )
    apply_all(local_engine)
    assert {row["id"] for row in rows(local_engine, Role)} == {"x", f"{ORG}/x", "org_2/x"}

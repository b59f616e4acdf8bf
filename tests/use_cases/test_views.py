"""The public views: in each population, every condition decides about at least one row."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, update

from models.addresses import normalize_address
from models.database import in_transaction
from models.tables import DeletedBy, Join, JoinState, UnblockedInvitation
from models.views import (
    auto_join_blocks,
    auto_join_domains,
    mirror_status,
    seats,
    sign_in_methods,
    workspace_invitations,
    workspace_members,
    workspaces,
)
from tests.support import JSON, made, minute, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events, mark_as_filled, set_auto_join
from worker.kinds.invitation import Invitation
from worker.kinds.membership import Membership
from worker.kinds.user import User
from worker.mirror import auto_join_policy
from worker.mirror.role_map import adopt

ACME, OTHER, GONE, UNKNOWN = "org_acme", "org_other", "org_gone", "org_unknown"


def org(id: str) -> JSON:
    return made("organization.created", id=id, name=f"The {id}", external_id=None, stripe_customer_id=None)


def user(name: str) -> JSON:
    return made("user.created", id=f"user_{name}", email=f"{name.upper()}@acme.example", email_verified=True)


def member(id: str, name: str, at: int = 0, *, where: str = ACME, verb: str = "created", **data: Any) -> JSON:
    place = {"organization_id": where, "user_id": f"user_{name}", "created_at": minute(at)}
    role = {"slug": data.pop("role", "member")}
    given = {"status": "active", "role": role, "roles": [role], **place, **data}
    return made(f"organization_membership.{verb}", at, id=id, **given)


def domain(name: str, where: str = ACME, state: str = "verified", at: int = 0, verb: str = "created") -> JSON:
    id = f"org_domain_{name}_{where}_{at}"
    place = {"organization_id": where, "created_at": minute(at)}
    return made(f"organization_domain.{verb}", at, id=id, domain=name, state=state, **place)


def connection(id: str, where: str = ACME, verb: str = "activated", state: str = "active") -> JSON:
    return made(f"connection.{verb}", id=id, organization_id=where, state=state, name=f"The {id}")


def certificate(hours: int, connection: str) -> JSON:
    """The event of a certificate that expires that many hours after the start of 2027."""
    event = made("connection.saml_certificate_renewed")
    event["data"]["connection"] = {"id": connection, "organization_id": ACME}
    expiry = {"expiry_date": f"2027-01-01T{hours:02}:00:00.000Z", "certificate_type": f"Signing {hours}"}
    event["data"]["certificate"] |= expiry
    return event


@pytest.fixture
def places(engine: Engine) -> Engine:
    """Two live workspaces and a deleted one; the fourth is not known yet."""
    apply_events(engine, [org(ACME), org(OTHER), org(GONE), made("organization.deleted", 1, id=GONE)])
    return engine


def test_workspaces_are_active_or_deleted(places: Engine) -> None:
    found = {row["organization_id"]: row["state"] for row in rows(places, workspaces)}
    assert found == {ACME: "active", OTHER: "active", GONE: "deleted"}


def test_views_show_the_products_keys(places: Engine) -> None:
    keys: JSON = {"external_id": "key_1", "metadata": {"tier": {"name": "gold"}}}
    ann = made("user.created", 1, id="user_ann", email="ann@acme.example", **keys | {"external_id": "key_2"})
    cost_center: JSON = {"cost_center": 7}
    events = [made("organization.updated", 2, id=ACME, stripe_customer_id="cus_1", **keys), ann]
    apply_events(places, [*events, member("om_ann", "ann", custom_attributes=cost_center)])
    [shown] = [row for row in rows(places, workspaces) if row["organization_id"] == ACME]
    assert {name: shown[name] for name in (*keys, "stripe_customer_id")} == keys | {"stripe_customer_id": "cus_1"}
    [shown] = rows(places, workspace_members)
    names = ("workspace_external_id", "user_external_id", "user_metadata", "custom_attributes")
    assert [shown[name] for name in names] == ["key_1", "key_2", keys["metadata"], cost_center]


def test_seats_are_the_people_who_have_access(places: Engine) -> None:
    known = ("ann", "bob", "cat", "dan")
    apply_events(places, [*map(user, known), made("organization.updated", 2, id=OTHER, stripe_customer_id="cus_2")])
    apply_events(
        places,
        [
            member("om_ann", "ann"),
            member("om_ann_too", "ann", 1),
            member("om_bob", "bob"),
            member("om_bob_other", "bob", where=OTHER),
            member("om_cat", "cat", status="inactive"),
            member("om_dan", "dan", where=GONE),
        ],
    )
    apply_events(places, [org("org_empty")])
    assert sorted(tuple(row.values()) for row in rows(places, seats)) == [
        (ACME, f"The {ACME}", None, None, 2),
        ("org_empty", "The org_empty", None, None, 0),
        (OTHER, "Acme Rockets International", "cus_2", "workspace_17", 1),
    ]


def test_status_is_current_once_filled(engine: Engine) -> None:
    assert [row["state"] for row in rows(engine, mirror_status)] == ["backfilling"]
    mark_as_filled(engine)
    assert [row["state"] for row in rows(engine, mirror_status)] == ["current"]


def test_sign_in_methods_are_active_connections_of_live_workspaces(places: Engine) -> None:
    apply_events(
        places,
        [
            connection("conn_works"),
            connection("conn_inactive", verb="deactivated", state="inactive"),
            connection("conn_deleted", verb="deleted"),
            connection("conn_gone", GONE),
            connection("conn_unknown", UNKNOWN),
            *(certificate(hours, "conn_works") for hours in (5, 3)),
            certificate(1, "conn_inactive"),
        ],
    )
    [found] = rows(places, sign_in_methods)
    assert (found["organization_id"], found["connection_id"], found["name"]) == (ACME, "conn_works", "The conn_works")
    assert found["certificate_expires_at"] == datetime(2027, 1, 1, 3, tzinfo=UTC), "the first of its own"


def test_members_view_shows_newest_active_memberships(places: Engine) -> None:
    known = ("ann", "bob", "cat", "dan", "eve", "fay", "gil", "hal", "ivy", "gone")
    apply_events(places, [*map(user, known), made("user.deleted", 1, id="user_gone")])
    apply_events(
        places,
        [
            member("om_ann", "ann"),
            member("om_ann_too", "ann", 9, where=OTHER),
            member("om_bob", "bob", status="pending"),
            member("om_cat", "cat", verb="deleted"),
            member("om_dan", "dan", where=GONE),
            member("om_eve", "eve", where=UNKNOWN),
            member("om_gone", "gone"),
            member("om_nobody", "nobody"),
            member("om_fay_1", "fay", 1, role="admin"),
            member("om_fay_0", "fay", 2),
            member("om_gil_1", "gil", 1, role="admin"),
            member("om_gil_2", "gil", 2, status="pending"),
            member("om_hal_1", "hal", 1, role="owner"),
            member("om_hal_2", "hal", 2, verb="deleted"),
            member("om_ivy_1", "ivy", 1),
            member("om_ivy_2", "ivy", 1),
        ],
    )
    names = ("organization_id", "workspace_name", "email", "role", "workos_role", "status", "membership_id")
    assert sorted(tuple(row[name] for name in names) for row in rows(places, workspace_members)) == [
        (ACME, f"The {ACME}", "ANN@acme.example", "member", "member", "active", "om_ann"),
        (ACME, f"The {ACME}", "FAY@acme.example", "member", "member", "active", "om_fay_0"),
        (ACME, f"The {ACME}", "GIL@acme.example", "admin", "admin", "active", "om_gil_1"),
        (ACME, f"The {ACME}", "HAL@acme.example", "member", "owner", "active", "om_hal_1"),
        (ACME, f"The {ACME}", "IVY@acme.example", "member", "member", "active", "om_ivy_2"),
        (OTHER, f"The {OTHER}", "ANN@acme.example", "member", "member", "active", "om_ann_too"),
    ]


def role(slug: str, resource_type: str | None, at: int = 0, where: str | None = None) -> JSON:
    own = {"organization_id": where} if where else {}
    kind = "organization_role" if where else "role"
    return made(f"{kind}.updated", at, slug=slug, resource_type_slug=resource_type, **own)


def test_role_of_another_resource_type_is_never_a_members_role(places: Engine) -> None:
    adopt(places, {"admin": "admin", "boss": "admin", "owner": "admin", "member": "member"})
    slugs = {"ann": ["boss"], "bob": ["boss", "owner"], "cat": ["member"], "dan": ["owner"], "eve": ["boss", "member"]}
    memberships = [member(f"om_{name}", name, roles=given, role=given[0]) for name, given in slugs.items()]
    for place in memberships:
        place["data"]["roles"] = [{"slug": slug} for slug in slugs[place["data"]["user_id"].removeprefix("user_")]]
    abroad = member("om_dan_other", "dan", 9, where=OTHER, role="owner")
    apply_events(places, [*map(user, slugs), *memberships, abroad])

    def roles() -> dict[str, str]:
        return {row["membership_id"].removeprefix("om_"): row["role"] for row in rows(places, workspace_members)}

    assert roles() == {
        "ann": "admin",
        "bob": "admin",
        "cat": "member",
        "dan": "admin",
        "dan_other": "admin",
        "eve": "admin",
    }
    apply_events(places, [role("boss", "project"), role("owner", None), role("owner", "project", where=OTHER)])
    assert roles() == {
        "ann": "member",
        "bob": "admin",
        "cat": "member",
        "dan": "admin",
        "dan_other": "member",
        "eve": "member",
    }
    before = roles()
    apply_events(places, [role("boss", None, 1), role("owner", None, 1, where=OTHER)])
    assert roles() == before, "absent is not null"
    apply_events(places, [role("boss", "organization", 5), role("owner", "organization", 5, where=OTHER)])
    assert roles() == {
        "ann": "admin",
        "bob": "admin",
        "cat": "member",
        "dan": "admin",
        "dan_other": "admin",
        "eve": "admin",
    }
    apply_events(places, [role("owner", "project", 9)])
    assert roles() == {
        "ann": "admin",
        "bob": "admin",
        "cat": "member",
        "dan": "member",
        "dan_other": "member",
        "eve": "admin",
    }


def joined(engine: Engine) -> dict[str, tuple[str, str]]:
    """Domain → workspace and default role."""
    found = rows(engine, auto_join_domains)
    by_domain = {row["domain"]: (row["organization_id"], row["default_role"]) for row in found}
    assert len(by_domain) == len(found), "one workspace for each domain"
    return by_domain


def test_auto_join_domains_view_requires_one_verified_owner(places: Engine) -> None:
    apply_events(places, [org("org_off"), org("org_admins")])
    apply_events(
        places,
        [
            domain("verified.example"),
            domain("twice.example", at=1),
            domain("twice.example", at=2),
            domain("legacy.example", state="legacy_verified"),
            domain("pending.example", state="pending"),
            domain("deleted.example", verb="deleted"),
            domain("gone.example", GONE),
            domain("unknown.example", UNKNOWN),
            domain("gmail.com"),
            domain("no domain name"),
            domain("off.example", "org_off"),
            domain("admins.example", "org_admins"),
            # Rivals that count, and rivals that do not.
            *(domain("rival.example"), domain("rival.example", OTHER)),
            *(domain("rival-unknown.example"), domain("rival-unknown.example", UNKNOWN)),
            *(domain("rival-legacy.example"), domain("rival-legacy.example", OTHER, "legacy_verified")),
            *(domain("rival-gone.example"), domain("rival-gone.example", GONE)),
            *(domain("rival-deleted.example"), domain("rival-deleted.example", OTHER, verb="deleted")),
            *(domain("rival-pending.example"), domain("rival-pending.example", OTHER, "pending")),
        ],
    )
    auto_join_policy.set_workspace(places, "org_off", by("ann", "shared"), auto_join=False)
    auto_join_policy.set_workspace(places, "org_admins", by("ann", "small"), default_role="admin")
    alone = ("verified", "twice", "rival-gone", "rival-deleted", "rival-pending")
    expected = {f"{name}.example": (ACME, "member") for name in alone}
    expected["admins.example"] = ("org_admins", "admin")
    assert joined(places) == expected | {"legacy.example": (ACME, "member")}
    set_auto_join(places, "off")
    assert joined(places) == {}


def test_auto_join_blocks_view_lists_removed_and_blocked_people(places: Engine) -> None:
    known = ("ann", "bob", "cat", "dan", "eve", "fay", "gil", "hal", "ivy", "jon", "kim", "lea")
    apply_events(places, map(user, known))
    apply_events(
        places,
        [
            member("om_ann", "ann"),
            member("om_bob", "bob", verb="deleted"),
            member("om_bob_other", "bob", 9, where=OTHER),
            member("om_cat", "cat", status="inactive"),
            member("om_dan", "dan", status="pending"),
            member("om_eve", "eve", status=None),
            member("om_fay", "fay", status="dormant"),
            member("om_gil", "gil", verb="deleted", status="inactive"),
            *(member("om_hal_1", "hal", 1, verb="deleted"), member("om_hal_2", "hal", 2)),
            *(member("om_ivy_1", "ivy", 1, verb="deleted"), member("om_ivy_2", "ivy", 2, status="pending")),
            member("om_jon", "jon", verb="deleted"),
            member("om_nobody", "nobody", verb="deleted"),
        ],
    )
    auto_join_policy.unblock(places, ACME, "user_jon", by("ann", "a mistake"))
    auto_join_policy.block(places, ACME, "user_kim", by("ann", "a competitor"))
    cause = {"organization_id": ACME, "cause": "event", "cause_id": "event_1"}
    joins: list[JSON] = [
        {"user_id": "user_stranger", "state": JoinState.UNDONE, "reason": "deactivated again", **cause},
        {"user_id": "user_lea", "state": JoinState.PENDING, "reason": None, **cause},
    ]
    in_transaction(places, lambda tx: tx.execute(insert(Join), joins))
    found = rows(places, auto_join_blocks)
    assert {row["organization_id"] for row in found} == {ACME}
    assert sorted((row["user_id"], row["email_normalized"], row["reason"]) for row in found) == [
        ("user_bob", "bob@acme.example", "removed"),
        ("user_cat", "cat@acme.example", "deactivated"),
        ("user_dan", "dan@acme.example", "invited"),
        ("user_eve", "eve@acme.example", "of no known status"),
        ("user_fay", "fay@acme.example", "of no known status"),
        ("user_gil", "gil@acme.example", "removed"),
        ("user_ivy", "ivy@acme.example", "invited"),
        ("user_ivy", "ivy@acme.example", "removed"),
        ("user_kim", "kim@acme.example", "by ann: a competitor"),
        ("user_nobody", None, "removed"),
        ("user_stranger", None, "deactivated again"),
    ]


def deleted_user(name: str, at: int) -> JSON:
    return user(name) | {"event": "user.deleted", "created_at": minute(at)}


def test_an_invitation_blocks_every_user_who_shares_an_address_with_the_invited(places: Engine) -> None:
    renamed = made("user.updated", 1, id="user_ann", email="bob@acme.example", email_verified=True)
    shares = made("user.created", id="user_bob", email="bob@acme.example", email_verified=True)
    others = [made("user.created", id=f"user_cat_{n}", email="cat@acme.example", email_verified=True) for n in (1, 2)]
    apply_events(places, [user("ann"), renamed, shares, invitation("ann", "revoked"), *others])
    assert {row["user_id"] for row in rows(places, auto_join_blocks)} == {"user_ann", "user_bob"}


def test_the_deletion_of_a_user_blocks_only_people_who_were_removed_before(places: Engine) -> None:
    known = ("lou", "max", "ned", "ola", "pam")
    apply_events(places, map(user, known))
    apply_events(places, [member(f"om_{name}", name) for name in known])
    apply_events(
        places,
        [
            *(deleted_user("lou", 5), member("om_lou", "lou", 6, verb="deleted")),
            *(member("om_max", "max", 5, verb="deleted"), deleted_user("max", 6)),
            *(deleted_user("ned", 5), member("om_ned", "ned", 6, verb="deleted", status="inactive")),
            *(deleted_user("ola", 5), member("om_ola", "ola", 6, verb="deleted")),
            *(deleted_user("pam", 5), member("om_pam", "pam", 6, verb="deleted")),
        ],
    )

    def found_by_resync(tx: Connection) -> None:
        tx.execute(update(User).where(User.id == "user_ola").values(deleted_by=DeletedBy.RESYNC))
        tx.execute(update(Membership).where(Membership.id == "om_pam").values(deleted_by=DeletedBy.RESYNC))

    in_transaction(places, found_by_resync)
    found = sorted((row["user_id"], row["reason"]) for row in rows(places, auto_join_blocks))
    assert found == [(f"user_{name}", "removed") for name in ("max", "ned", "ola", "pam")]


def test_a_block_covers_other_users_with_an_address_of_the_person(places: Engine) -> None:
    again = (
        made("user.created", id=f"user_{name}_again", email=f"{name}@acme.example", email_verified=True)
        for name in ("bob", "kim")
    )
    apply_events(places, [user("ann"), user("bob"), user("kim"), *again, member("om_bob", "bob", verb="deleted")])
    auto_join_policy.block(places, ACME, "user_kim", by("ann", "a competitor"))
    found = sorted((row["user_id"], row["email_normalized"], row["reason"]) for row in rows(places, auto_join_blocks))
    assert found == [
        ("user_bob", "bob@acme.example", "removed"),
        ("user_bob_again", "bob@acme.example", "removed"),
        ("user_kim", "kim@acme.example", "by ann: a competitor"),
        ("user_kim_again", "kim@acme.example", "by ann: a competitor"),
    ]


PAST, FUTURE = "2025-07-01T11:00:00.000Z", "9998-01-01T00:00:00.000Z"


def invitation(name: str, status: str | None = "pending", where: str | None = ACME, **data: Any) -> JSON:
    given = {"organization_id": where, "email": f"{name.upper()}@acme.example", "expires_at": FUTURE} | data
    return made("invitation.created", id=f"invitation_{name}", state=status, **given)


def test_invitations_view_lists_them_with_their_status_now(places: Engine) -> None:
    apply_events(
        places,
        [
            invitation("ann"),
            invitation("bob", expires_at=PAST),
            invitation("cat", expires_at=None),
            invitation("dan", "accepted", expires_at=PAST, accepted_user_id="user_dan"),
            invitation("eve", "revoked", expires_at=PAST),
            invitation("fay", None),
            invitation("gone", where=GONE),
            invitation("unknown", where=UNKNOWN),
            invitation("environment", where=None),
            invitation("hal"),
        ],
    )
    gone = update(Invitation).where(Invitation.id == "invitation_hal").values(deleted_by=DeletedBy.RESYNC)
    in_transaction(places, lambda tx: tx.execute(gone))
    found = {row["invitation_id"]: row for row in rows(places, workspace_invitations)}
    assert {id: row["status"] for id, row in found.items()} == {
        "invitation_ann": "pending",
        "invitation_bob": "expired",
        "invitation_cat": "pending",
        "invitation_dan": "accepted",
        "invitation_eve": "revoked",
        "invitation_fay": None,
    }
    dan = found["invitation_dan"]
    assert (dan["organization_id"], dan["email"], dan["email_normalized"]) == (
        *(ACME, "DAN@acme.example", "dan@acme.example"),
    )
    assert (dan["workos_role"], dan["accepted_user_id"]) == ("member", "user_dan")
    assert dan["expires_at"] == datetime.fromisoformat(PAST)


def test_auto_join_blocks_view_lists_invited_people_and_addresses(places: Engine) -> None:
    renamed = made("user.updated", 1, id="user_ann", email="ann.b@acme.example", email_verified=True)
    apply_events(places, [user("ann"), renamed, user("fay")])
    apply_events(
        places,
        [
            invitation("ann"),
            invitation("bob"),
            invitation("old", expires_at=PAST),
            invitation("eternal", expires_at=None),
            invitation("in", "accepted"),
            invitation("late", "expired", expires_at=None),
            invitation("revoked", "revoked", expires_at=PAST),
            invitation("mute", None, expires_at=PAST),
            invitation("odd", "declined"),
            invitation("environment", where=None),
            invitation("invalid", email="no address"),
            invitation("fay", "revoked"),
            invitation("other", where=OTHER),
        ],
    )
    auto_join_policy.unblock(places, ACME, "user_fay", by("ann", "a mistake"))
    found = rows(places, auto_join_blocks)
    names = ("organization_id", "user_id", "email_normalized", "reason")
    assert sorted(tuple(map(str, (row[name] for name in names))) for row in found) == [
        (ACME, "None", "bob@acme.example", "invitation pending"),
        (ACME, "None", "eternal@acme.example", "invitation pending"),
        (ACME, "None", "mute@acme.example", "invitation of no known status"),
        (ACME, "None", "odd@acme.example", "invitation of no known status"),
        (ACME, "None", "revoked@acme.example", "invitation revoked"),
        (ACME, "user_ann", "ann.b@acme.example", "invitation pending"),
        (ACME, "user_ann", "ann@acme.example", "invitation pending"),
        (OTHER, "None", "other@acme.example", "invitation pending"),
    ]
    hashes = {row["email_normalized"]: row["email_hash"] for row in found}
    assert len({row["email_hash"] for row in found}) == len(found)
    assert all((address := normalize_address(email)) and address.hash == hashes[email] for email in hashes)
    in_transaction(places, lambda tx: tx.execute(update(UnblockedInvitation).values(status="pending")))
    assert ("user_fay", "invitation revoked") in {
        (row["user_id"], row["reason"]) for row in rows(places, auto_join_blocks)
    }
    own = {"who": "ann", "why": "why"}
    unblocked = [
        {"invitation_id": f"invitation_{name}", "status": status, **own}
        for name, status in (("mute", ""), ("odd", "declined"), ("bob", "revoked"))
    ]
    in_transaction(places, lambda tx: tx.execute(insert(UnblockedInvitation), unblocked))
    left = {row["email_normalized"] for row in rows(places, auto_join_blocks)}
    assert left & {"mute@acme.example", "odd@acme.example", "bob@acme.example"} == {"bob@acme.example"}

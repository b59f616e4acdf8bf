"""Permissions are mirrored by slug, granted by roles, and unknown before a full resync has listed them."""

import pytest
from sqlalchemy import Engine, update

from models.access import permissions_of
from models.database import in_transaction, session
from models.tables import Event, MirrorState
from models.views import member_permissions
from tests.support import JSON, made, outcomes, rows
from tests.support.resync import catch_up_with, deliver, found, live, quietly, resync, run_row
from worker.kinds.permission import Permission
from worker.kinds.role import Role
from worker.mirror.role_map import adopt
from worker.reports.explain import explain
from worker.reports.listings import list_permissions, named
from worker.sandbox import Sandbox, World
from worker.workos_api.client import WorkOSClient

MAPPED = {"admin": "admin", "member": "member", "billing": "member"}
PERMISSIONS = "/authorization/permissions"


@pytest.fixture
def member(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> JSON:
    """A member with the role `billing`, which grants `invoices:read`; everything is mirrored and listed."""
    world = sandbox.world
    world.create_permission("invoices:read", name="Read invoices")
    world.create_permission("invoices:pay")
    world.create_role("billing")
    world.update_role("billing", permissions=["invoices:read"])
    organization = world.create_organization("Acme")
    user = world.create_user("ada@acme.example")
    membership = world.create_membership(organization["id"], user["id"], role="billing")
    catch_up_with(engine, world)
    adopt(engine, MAPPED)
    resync(engine, workos)
    return membership


def answer(engine: Engine, membership: JSON) -> list[str] | None:
    with session(engine) as opened:
        return permissions_of(opened, membership["user_id"], membership["organization_id"])


def deliver_new_events(engine: Engine, world: World) -> None:
    """Deliver the events that a world has emitted since the last call."""
    known = {row["id"] for row in rows(engine, Event)}
    deliver(engine, [event for event in world.events if event["id"] not in known])


def test_member_has_permissions_of_roles(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    assert answer(engine, member) == ["invoices:read"]
    assert rows(engine, member_permissions) == [
        {"organization_id": member["organization_id"], "user_id": member["user_id"], "permission": "invoices:read"}
    ]
    sandbox.world.update_role("billing", permissions=["invoices:read", "invoices:pay", "no:such"])
    deliver_new_events(engine, sandbox.world)
    assert answer(engine, member) == ["invoices:pay", "invoices:read"]
    sandbox.world.update_membership(member["id"], role="member")
    deliver_new_events(engine, sandbox.world)
    assert answer(engine, member) == []


@pytest.mark.long
def test_roles_combine_their_permissions(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    world = sandbox.world
    world.update_role("member", permissions=["invoices:read", "invoices:pay"])
    world.update_membership(member["id"], roles=["member", "billing"])
    deliver_new_events(engine, world)
    assert [row["permission"] for row in rows(engine, member_permissions)].count("invoices:read") == 1
    assert answer(engine, member) == ["invoices:pay", "invoices:read"]


@pytest.mark.parametrize("own", [True, False])
def test_role_of_another_resource_type_grants_no_permissions(
    engine: Engine, sandbox: Sandbox, member: JSON, own: bool
) -> None:
    world = sandbox.world
    owner = member["organization_id"] if own else None
    other = world.create_membership(member["organization_id"], world.create_user("bob@acme.example")["id"])
    if own:
        world.create_role("billing", organization_id=owner)
        world.delete_role("billing")
    for type, granted in (("project", []), ("organization", ["invoices:read"]), (None, ["invoices:read"])):
        world.update_role("billing", organization_id=owner, permissions=["invoices:read"], resource_type_slug=type)
        deliver_new_events(engine, world)
        assert (answer(engine, member), answer(engine, other)) == (granted, [])


def test_a_role_without_a_resource_type_is_one_of_organizations(engine: Engine, member: JSON) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Role).values(resource_type=None)))
    assert answer(engine, member) == ["invoices:read"]


def test_view_is_empty_until_permissions_are_listed(engine: Engine, member: JSON) -> None:
    assert answer(engine, member) == ["invoices:read"]
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(listed_kinds=["user"])))
    assert answer(engine, member) is None and rows(engine, member_permissions) == []


def test_only_people_with_access_have_permissions(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    sandbox.world.deactivate_membership(member["id"])
    deliver_new_events(engine, sandbox.world)
    assert rows(engine, member_permissions) == [] and answer(engine, member) == []
    sandbox.world.reactivate_membership(member["id"])
    deliver_new_events(engine, sandbox.world)
    assert answer(engine, member) == ["invoices:read"]
    sandbox.world.delete_user(member["user_id"])
    deliver_new_events(engine, sandbox.world)
    assert rows(engine, member_permissions) == [] and answer(engine, member) == []


def test_deleted_or_unknown_role_or_permission_grants_nothing(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    adopt(engine, {"admin": "admin", "member": "member"})
    assert answer(engine, member) == []
    adopt(engine, MAPPED)
    assert answer(engine, member) == ["invoices:read"]
    sandbox.world.delete_permission("invoices:read")
    deliver_new_events(engine, sandbox.world)
    assert answer(engine, member) == []
    sandbox.world.create_permission("invoices:read")
    deliver_new_events(engine, sandbox.world)
    assert answer(engine, member) == ["invoices:read"], "a slug can be made again"
    deliver(engine, [made("role.deleted", at=10**6, slug="billing")])
    assert answer(engine, member) == []


def test_only_permissions_of_organizations_apply(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    sandbox.world.create_permission("projects:read", resource_type="project")
    sandbox.world.update_role("billing", permissions=["projects:read"])
    deliver_new_events(engine, sandbox.world)
    assert "projects:read" in live(engine)["permission"] and answer(engine, member) == []


def test_organization_role_overrides_environment_role(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    world, organization_id = sandbox.world, member["organization_id"]
    other = world.create_organization("Other")
    elsewhere = world.create_membership(other["id"], member["user_id"], role="billing")
    world.create_role("billing", organization_id=organization_id)
    world.update_role("billing", organization_id=organization_id, permissions=["invoices:pay"])
    deliver_new_events(engine, world)
    assert (answer(engine, member), answer(engine, elsewhere)) == (["invoices:pay"], ["invoices:read"])
    world.delete_role("billing", organization_id=organization_id)
    deliver(engine, [event for event in world.events if event["event"] == "organization_role.deleted"])
    assert answer(engine, member) == [], "the membership still names the role that was deleted"
    world.update_membership(member["id"], role="billing")
    deliver_new_events(engine, world)
    assert (answer(engine, member), answer(engine, elsewhere)) == (["invoices:read"], ["invoices:read"])


@pytest.mark.long
def test_permissions_are_unknown_before_full_resync(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(listed_kinds=None)))
    assert answer(engine, member) is None and rows(engine, member_permissions) == []
    resync(engine, workos, organization_id=member["organization_id"])
    resync(engine, workos, dry_run=True)
    assert answer(engine, member) is None
    sandbox.faults.fail(PERMISSIONS, status=403, times=None)
    run_id = resync(engine, workos)
    assert run_row(engine, run_id)["status"] == "done", "the key may not be allowed to list permissions"
    assert found(engine, run_id)["permission", "all of them"] == ("invalid", "reported")
    assert answer(engine, member) is None and "invoices:read" in live(engine)["permission"]
    sandbox.faults.clear()
    resync(engine, workos)
    assert answer(engine, member) == ["invoices:read"]
    sandbox.faults.fail(PERMISSIONS, status=403, times=None)
    resync(engine, workos)
    assert answer(engine, member) == ["invoices:read"], "events keep what was listed once up to date"


@pytest.mark.long
def test_invalid_permission_keeps_others_known(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON
) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(listed_kinds=None)))
    sandbox.faults.invalid_item(PERMISSIONS, item=1, missing="updated_at")
    run_id = resync(engine, workos)
    assert "invalid" in {finding for finding, _ in found(engine, run_id).values()}
    assert answer(engine, member) == ["invoices:read"]
    assert rows(engine, MirrorState)[0]["listed_kinds"] == [
        *("connection", "domain", "invitation", "organization", "permission", "role", "user")
    ]


@pytest.mark.long
def test_resync_repairs_permissions(engine: Engine, sandbox: Sandbox, workos: WorkOSClient, member: JSON) -> None:
    world = sandbox.world

    def unseen() -> None:
        world.delete_permission("invoices:pay")
        world.create_permission("invoices:send", name="Send invoices")
        world.update_permission("invoices:read", name="See invoices")

    quietly(world, unseen)
    run_id = resync(engine, workos)
    differences = found(engine, run_id)
    assert differences["permission", "invoices:pay"] == ("extra", "repaired")
    assert differences["permission", "invoices:send"] == ("missing", "repaired")
    assert ("permission", "invoices:read") in differences
    assert live(engine)["permission"] == {"invoices:read", "invoices:send"}
    by_slug = {row["id"]: row for row in rows(engine, Permission)}
    assert by_slug["invoices:read"]["name"] == "See invoices"
    shown = named(engine, [{"kind": "permission", "object_id": "invoices:send"}])
    assert shown[0]["label"] == "Send invoices"
    assert found(engine, resync(engine, workos)) == {}


def test_recreated_slug_is_ordered_by_event_time(engine: Engine) -> None:
    events = [
        made("permission.created", 1, id="perm_1"),
        made("permission.deleted", 2, id="perm_1"),
        made("permission.created", 3, id="perm_2"),
    ]
    for place in (2, 0, 1):
        deliver(engine, [events[place]])
    assert outcomes(engine, *events) == ["stale", "stale", "applied"]
    assert [(row["permission_id"], row["deleted_by"]) for row in rows(engine, Permission)] == [("perm_2", None)]


def test_permission_is_explained_with_its_roles(engine: Engine, sandbox: Sandbox, member: JSON) -> None:
    world, organization_id = sandbox.world, member["organization_id"]
    world.create_role("payer", organization_id=organization_id)
    world.update_role("payer", organization_id=organization_id, permissions=["invoices:read", "invoices:read:all"])
    deliver_new_events(engine, world)
    granted = {row["id"]: row["roles"] for row in list_permissions(engine)}
    assert granted == {"invoices:read": ["billing", f"{organization_id}/payer"], "invoices:pay": []}
    assert [row["id"] for row in list_permissions(engine, after="invoices:pay")] == ["invoices:read"]
    explained = explain(engine, "invoices:read")
    assert explained is not None
    assert [(one["kind"], one["name"]) for one in explained["objects"]] == [("permission", "Read invoices")]
    assert [step["what"] for step in explained["timeline"]] == ["permission.created"]

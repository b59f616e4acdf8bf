"""A plan says what settings would change before a worker starts with them; too many promotions wait for approval."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import AutoJoinMode, MirrorState
from models.types import db_now_plus
from models.views import auto_join_domains
from tests.support import JSON, accept, access, apply_all, joins, made, mirrored, rows
from tests.support.mirror import ORG
from tests.support.repair import settings
from worker.bootstrap import Services
from worker.cli import main
from worker.mirror import auto_join_policy, role_map
from worker.mirror.role_map import adopt
from worker.reports.plan import plan
from worker.reports.verdict import judge

DEFAULT = {"admin": "admin", "member": "member"}
OWNERS = DEFAULT | {"owner": "admin"}


def populate(endpoint: FlaskClient, engine: Engine, *slugs: str) -> None:
    """A workspace with a member for each role slug: user_0, user_1, …"""
    events = [made("organization.created")]
    for number, slug in enumerate(slugs):
        role = {"slug": slug}
        ids: JSON = {"id": f"om_{number}", "user_id": f"user_{number}"}
        events.append(made("user.created", id=f"user_{number}"))
        events.append(made("organization_membership.created", status="active", role=role, roles=[role], **ids))
    accept(endpoint, *events)
    apply_all(engine)


def planned(engine: Engine, **given: Any) -> JSON:
    return plan(engine, settings(**given))


def roles(engine: Engine) -> dict[str, str]:
    return {user: role for _, user, role in access(engine)}


def test_the_plan_of_a_role_map_is_what_the_start_then_changes(endpoint: FlaskClient, engine: Engine) -> None:
    populate(endpoint, engine, "owner", "admin", "member", "editor", "owner", "project")
    accept(endpoint, made("role.created", slug="project", resource_type_slug="project"))
    accept(endpoint, made("organization_membership.updated", 1, id="om_4", user_id="user_4", status="inactive"))
    apply_all(engine)
    maps = (
        OWNERS,
        OWNERS | {"project": "admin"},  # of another resource type
        DEFAULT | {"editor": "admin", "admin": "member"},
        {"member": "admin"},
        DEFAULT,
    )
    for proposed in maps:
        before, unchanged = roles(engine), mirrored(engine)
        found = planned(engine, role_map=proposed)
        assert mirrored(engine) == unchanged
        adopt(engine, proposed)
        after = roles(engine)
        changed = {user: (before[user], role) for user, role in after.items() if before[user] != role}
        assert {row["user_id"]: (row["before"], row["after"]) for row in found["roles"]} == changed
        promoted = sum(role == "admin" for _, role in changed.values())
        assert (found["members"], found["promotions"], found["demotions"]) == (5, promoted, len(changed) - promoted)
        assert (found["joins"], found["domains"]) == ([], [])


def test_the_plan_of_auto_join_is_what_the_start_then_changes(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, made("organization.created"), made("organization.created", id="org_2"))
    accept(endpoint, made("organization_domain.verified", 10, domain="acme.example", state="verified"))
    for number, org in ((2, ORG), (3, "org_2")):  # in conflict
        verified: JSON = {"domain": "both.example", "state": "verified", "organization_id": org}
        accept(endpoint, made("organization_domain.verified", id=f"org_domain_{number}", **verified))
    for name, at in (("old", 5), ("new", 20)):
        person: JSON = {"email": f"{name}@acme.example", "email_verified": True}
        created = made("user.created", at, id=f"user_{name}", **person)
        created["data"]["created_at"] = created["created_at"]
        accept(endpoint, created)
    apply_all(engine)
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(backfilled_at=db_now_plus(0))))
    expected_joins = {
        ("mirror", "provision", False): {"user_new"},
        ("mirror", "provision", True): {"user_new", "user_old"},
    }
    for mode, existing in (
        ("off", False),
        ("mirror", False),
        ("provision", False),
        ("off", False),
        ("mirror", False),
        ("provision", True),
        ("provision", True),
    ):
        before, now = joins(engine), rows(engine, MirrorState)[0]["auto_join"]
        found = planned(engine, auto_join=mode, auto_join_existing=existing)
        auto_join_policy.adopt(engine, AutoJoinMode(mode), existing=existing)
        after = joins(engine)
        changed = {(row["domain"], row["organization_id"]): row["auto_join"] for row in found["domains"]}
        expected = dict.fromkeys(after - before, "starts") | dict.fromkeys(before - after, "stops")
        assert changed == expected and len(expected) <= 1
        assert {row["user_id"] for row in found["joins"]} == expected_joins.get((now, mode, existing), set())
        assert found["roles"] == []
    assert rows(engine, auto_join_domains)


# Too many promotions


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two promotions are the most that need no approval, or a quarter of the members."""
    monkeypatch.setattr(role_map, "MAX_PROMOTIONS", 2)
    monkeypatch.setattr(role_map, "MAX_PROMOTED_SHARE", 0.25)


def withheld(engine: Engine) -> Any:
    return rows(engine, MirrorState)[0]["withheld_role_map"]


@pytest.mark.usefixtures("few")
def test_too_many_promotions_are_withheld_and_demotions_are_not(
    endpoint: FlaskClient, engine: Engine, services: Services
) -> None:
    populate(endpoint, engine, "owner", "owner", "owner", "admin")
    wanted = {"admin": "member", "member": "member", "owner": "admin", "guest": "member"}
    assert adopt(engine, wanted) == 1
    assert set(roles(engine).values()) == {"member"}
    assert rows(engine, MirrorState)[0]["role_map"] == {"admin": "member", "member": "member"}
    assert withheld(engine) == {"role_map": wanted, "promotions": 3, "members": 4}
    conditions = {each.name for each in judge(engine, services.report_redis, services.settings).conditions}
    assert "role_map_withheld" in conditions and "unmapped_roles" not in conditions
    owner = {"slug": "owner"}
    accept(endpoint, made("organization_membership.updated", 5, id="om_3", user_id="user_3", role=owner, roles=[owner]))
    apply_all(engine)
    assert set(roles(engine).values()) == {"member"}  # later events use the map in force too
    assert adopt(engine, wanted) == 0
    assert withheld(engine)["promotions"] == 4
    assert adopt(engine, DEFAULT) == 0
    assert withheld(engine) is None


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "slugs", [["owner"] * 2 + ["member"], ["owner"] * 3 + ["member"] * 9], ids=["few", "a quarter"]
)
def test_other_promotions_take_effect_at_once(endpoint: FlaskClient, engine: Engine, slugs: list[str]) -> None:
    populate(endpoint, engine, *slugs)
    assert adopt(engine, OWNERS) == slugs.count("owner")
    assert withheld(engine) is None


@pytest.fixture
def command(set_environment: Callable[..., None], db_url: str) -> Callable[..., Result]:
    """Runs `workos-sync plan` on the test's database."""
    set_environment(DATABASE_URL=db_url)
    return lambda *arguments: CliRunner().invoke(main, ["plan", *arguments])


@pytest.mark.usefixtures("few")
def test_approval_is_bound_to_the_exact_map(
    endpoint: FlaskClient, engine: Engine, command: Callable[..., Result]
) -> None:
    populate(endpoint, engine, "owner", "owner", "owner", "editor")
    adopt(engine, OWNERS)
    other = planned(engine, role_map=OWNERS | {"editor": "admin"})["digest"]
    digest = planned(engine, role_map=OWNERS)["digest"]
    assert command("--approve", other, "--reason", "x").exit_code == 1
    assert command("--approve", digest).exit_code == 2  # without a reason
    assert set(roles(engine).values()) == {"member"}
    approved = command("--approve", digest, "--reason", "ticket 7")
    assert approved.exit_code == 0 and "3 memberships changed" in approved.stdout
    assert roles(engine) == {"user_0": "admin", "user_1": "admin", "user_2": "admin", "user_3": "member"}
    assert command("--approve", digest, "--reason", "x").exit_code == 1
    assert adopt(engine, OWNERS) == 0 and withheld(engine) is None


def test_the_command_plans_proposed_settings_and_fails_a_release(
    endpoint: FlaskClient, engine: Engine, command: Callable[..., Result]
) -> None:
    populate(endpoint, engine, "owner", "owner", "admin")
    assert json.loads(command("--json").stdout)["roles"] == []
    proposed = ("--set", "ROLE_MAP=owner=admin", "--set", "AUTO_JOIN=off")
    found = json.loads(command(*proposed, "--json").stdout)
    assert [(row["user_id"], row["after"]) for row in found["roles"]] == [("user_0", "admin"), ("user_1", "admin")]
    assert "user_1" in command(*proposed).stdout
    assert command(*proposed, "--max-promotions", "2").exit_code == 0
    failed = command(*proposed, "--max-promotions", "1")
    assert failed.exit_code == 1 and "2 people would become admins, more than 1" in failed.stderr
    for wrong in ("ROLE_MAP=owner=king", "PORT=1", "AUTO_JOIN"):
        refused = command("--set", wrong)
        assert refused.exit_code == 2, wrong
    assert set(roles(engine).values()) == {"member", "admin"} and len(access(engine)) == 3

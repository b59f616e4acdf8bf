"""`explain`: every step that led to a row, and why a person has access or not."""

from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine

from models import public_domains
from models.database import in_transaction
from models.tables import PublicDomain
from tests.support import JSON, apply_all, joins, made, rows
from tests.support.actors import by
from tests.support.resync import Clock, client_of, deliver, quietly, resync
from worker.inbox.selection import Selection
from worker.mirror.erasure import forget
from worker.queue.doorbell import DRAIN, Doorbell
from worker.repair import replay as replays
from worker.reports.explain import explain
from worker.runs import lease
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient


def explained(engine: Engine, name: str) -> JSON:
    found = explain(engine, name)
    assert found is not None
    return found


def steps(engine: Engine, name: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(step[n] for n in ("what", "outcome", *names)) for step in explained(engine, name)["timeline"]]


@pytest.fixture
def clocked(redis: Redis) -> Any:
    clock = Clock()
    with Sandbox(seed=7, clock=clock) as sandbox:
        workos = client_of(sandbox, redis)
        yield clock, sandbox, workos
        workos.close()


@pytest.fixture
def replayed(one_engine: Engine, redis: Redis) -> Any:
    """A function that replays a selection completely."""

    def run(selection: Selection) -> None:
        with lease(one_engine, replays.start(one_engine, selection, by("ann"))) as held:
            assert held is not None
            replays.replay(one_engine, held, Doorbell(redis, DRAIN), 1e6)
        apply_all(one_engine)

    return run


def test_timeline_of_a_membership_has_every_step_with_its_reason(
    both_engines: Engine, clocked: tuple[Clock, Sandbox, WorkOSClient]
) -> None:
    clock, sandbox, workos = clocked
    world, engine = sandbox.world, both_engines
    acme, ann = world.create_organization("Acme"), world.create_user("ann@acme.example")
    member = world.create_membership(acme["id"], ann["id"], role="member")
    clock.advance(minutes=1)
    created = world.events[-1]["id"]
    deliver(engine, world.events)
    world.update_membership(member["id"], role="admin")
    admin = world.events[-1]
    deliver(engine, [admin])
    clock.advance(minutes=1)
    late = world.update_membership(member["id"], role="member") and world.events[-1]
    clock.advance(minutes=1)
    world.deactivate_membership(member["id"])
    deactivated = world.events[-1]
    deliver(engine, [deactivated])
    deliver(engine, [late])
    clock.advance(minutes=1)
    quietly(world, lambda: world.reactivate_membership(member["id"]))
    run_id = resync(engine, workos)

    timeline = explained(engine, member["id"])["timeline"]
    assert [(step["what"], step["by"], step["outcome"]) for step in timeline] == [
        ("organization_membership.created", created, "applied"),
        ("organization_membership.updated", admin["id"], "applied"),
        ("organization_membership.updated", deactivated["id"], "applied"),
        ("organization_membership.updated", late["id"], "stale"),
        ("resync", run_id, "repaired"),
    ]
    whys = [step["why"] for step in timeline]
    assert whys[0] == "new in the mirror"
    assert whys[1] == "newer than the previous state: changed role, workos_role, workos_roles"
    assert timeline[1]["fields"]["role"] == ["member", "admin"]
    assert timeline[2]["fields"]["status"] == ["active", "inactive"]
    assert deactivated["id"] in whys[3] and "older than the current state" in whys[3] and timeline[3]["fields"] == {}
    assert whys[4] == "was older in the mirror than in WorkOS" and timeline[4]["fields"]["status"][1] == "active"
    assert all(step["arrived_at"] and step["occurred_at"] for step in timeline[:4])

    (access,) = explained(engine, "ann@acme.example")["access"]
    assert access["access"] and access["workspace_name"] == "Acme" and access["cause"] == f"resync {run_id}"
    assert {step["object_id"] for step in explained(engine, ann["id"])["timeline"]} == {ann["id"], member["id"]}
    assert explained(engine, "Ann@acme.example".lower())["objects"][0]["id"] == ann["id"]
    assert explained(engine, admin["id"])["objects"][0]["id"] == member["id"]


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (made("organization_membership.deleted", 9), "the membership was deleted in WorkOS"),
        (made("organization.deleted", 9), "the workspace was deleted in WorkOS"),
        (made("user.deleted", 9), "the person was deleted in WorkOS"),
        (made("organization_membership.updated", 9, status="inactive"), "the membership is inactive"),
        (made("organization_membership.updated", 9, status="pending"), "the membership is pending"),
    ],
)
def test_person_without_access_has_a_reason(one_engine: Engine, end: JSON, why: str) -> None:
    membership = made("organization_membership.created", status="active")
    deliver(one_engine, [made("organization.created"), made("user.created"), membership])
    assert explained(one_engine, membership["data"]["user_id"])["access"][0]["access"]
    deliver(one_engine, [end])
    (access,) = explained(one_engine, membership["data"]["user_id"])["access"]
    assert (access["access"], access["role"], access["why"]) == (False, None, why)


def test_older_of_two_memberships_gives_no_access(one_engine: Engine) -> None:
    old = made("organization_membership.created", status="active", created_at="2025-01-01T00:00:00Z")
    new = made("organization_membership.created", id="om_newer", status="active", created_at="2025-06-01T00:00:00Z")
    deliver(one_engine, [made("organization.created"), made("user.created"), old, new])
    access = {row["membership_id"]: row for row in explained(one_engine, old["data"]["user_id"])["access"]}
    assert access["om_newer"]["access"] and not access[old["data"]["id"]]["access"]
    assert "a newer membership" in access[old["data"]["id"]]["why"]


def test_event_after_a_delete_is_tombstoned_and_a_replay_is_shown(one_engine: Engine, replayed: Any) -> None:
    user = made("user.created")
    deliver(one_engine, [user, made("user.updated", 1, email="new@acme.example"), made("user.deleted", 2)])
    deliver(one_engine, [made("user.updated", 3, email="ghost@acme.example")])
    assert [outcome for _, outcome in steps(one_engine, user["data"]["id"])] == ["applied"] * 3 + ["tombstoned"]
    assert "deletes are final" in explained(one_engine, user["data"]["id"])["timeline"][-1]["why"]
    replayed(Selection(ids=(user["id"],)))
    first = next(s for s in explained(one_engine, user["data"]["id"])["timeline"] if s["by"] == user["id"])
    assert first["outcome"] == "tombstoned" and "replayed once" in first["why"]
    forget(one_engine, user["data"]["id"], by("ann"))
    assert steps(one_engine, user["data"]["id"], "why")[-1] == ("operator", "applied", "requested by ann")


def test_domain_that_does_not_auto_join_has_a_reason(one_engine: Engine) -> None:
    deliver(one_engine, [made("organization.created"), made("organization.created", id="org_rival", name="Rival")])
    first = made("organization_domain.created", state="pending", domain="acme.example")
    deliver(one_engine, [first])
    name = first["data"]["id"]
    assert explained(one_engine, name)["auto_join"][0]["why"] == "not verified: pending"
    deliver(one_engine, [made("organization_domain.verified", 1, state="verified", domain="acme.example")])
    assert explained(one_engine, name)["auto_join"][0]["auto_join"] is True
    rival = {"id": "org_domain_rival", "organization_id": "org_rival", "domain": "ACME.example", "state": "verified"}
    deliver(one_engine, [made("organization_domain.created", 2, **rival)])
    (state,) = explained(one_engine, name)["auto_join"]
    assert not state["auto_join"] and state["why"] == "in conflict: also verified by Rival (org_rival)"
    deliver(one_engine, [made("user.created", id="user_1", email="ann@acme.example")])
    of_person = explained(one_engine, "ann@acme.example")["auto_join"]
    assert {row["id"] for row in of_person} == {name, "org_domain_rival"} and state in of_person


def test_public_mail_provider_never_auto_joins(both_engines: Engine) -> None:
    names = ("gmail.com", "GoogleMail.com", "outlook.com", "yahoo.co.uk", "acme.example")
    workspace = made("organization.created")
    owner = workspace["data"]["id"]
    events = [
        made("organization_domain.created", id=f"org_domain_{n}", organization_id=owner, domain=name, state="verified")
        for n, name in enumerate(names)
    ]
    deliver(both_engines, [workspace, *events])
    assert joins(both_engines) == {("acme.example", owner)}
    states = {row["domain"]: (row["auto_join"], row["why"]) for row in explained(both_engines, owner)["auto_join"]}
    assert states.pop("acme.example")[0]
    assert set(states.values()) == {(False, "domain of a public mail provider")}


@pytest.mark.long
def test_public_mail_providers_are_copied_from_the_package(one_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_domains, "whitelist", {"Gmail.com", "new-mail.example", "no domain"})
    assert in_transaction(one_engine, public_domains.refresh) > 1000
    assert {row["domain"] for row in rows(one_engine, PublicDomain)} == {"gmail.com", "new-mail.example"}
    assert in_transaction(one_engine, public_domains.refresh) == 0


def test_unknown_id_or_address_returns_none(one_engine: Engine) -> None:
    assert explain(one_engine, "om_nobody") is None
    assert explain(one_engine, "nobody@acme.example") is None

"""Invitations: mirrored, explained and erased. An invited person joins by accepting, not by domain."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from sqlalchemy import Engine, update

from models.addresses import Address
from models.database import in_transaction
from models.tables import Audit, Base, Change, Event, InvitedAddress, JoinState, UserAddress
from models.views import auto_join_blocks, workspace_invitations
from tests.support import (
    JSON,
    NOON,
    accept,
    apply_all,
    differences,
    event_row,
    made,
    minute,
    outcomes,
    post,
    rows,
    sign,
)
from tests.support.actors import by
from tests.support.auto_join import (
    Stage,
    auto_join_answer,
    company,
    join_of,
    joins_of,
    members_at_workos,
    sign_up,
)
from tests.support.cli import on_terminal
from tests.support.histories import broken_chains
from tests.support.mirror import ORG
from tests.support.ops import TOKEN, form_token, sign_in
from tests.support.resync import Clock, catch_up_with, deliver, found, quietly, read_due, resync, small_life
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli import main
from worker.errors import OperatorError
from worker.kinds.invitation import Invitation
from worker.mirror import auto_join_policy
from worker.mirror.erasure import forget
from worker.mirror.retention import Periods, retain
from worker.provisioning import waiting
from worker.repair.catch_up import catch_up
from worker.reports.explain import explain
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

ANN = "ann@acme.example"
HASH = Address(ANN, "acme.example").hash
FAR = "9998-01-01T00:00:00.000Z"
SECRETS = ("token-of-", "invite.example")


def invitation(verb: str, at: int = 0, *, email: str = ANN, expires_at: str | None = FAR, **data: Any) -> JSON:
    return made(f"invitation.{verb}", at, email=email, expires_at=expires_at, **data)


def everything(engine: Engine) -> str:
    """All rows of all tables as text."""
    return str([row for table in Base.metadata.sorted_tables for row in rows(engine, table)])


def steps(engine: Engine, name: str) -> list[str]:
    shown = explain(engine, name)
    assert shown is not None
    return [step["what"] for step in shown["timeline"]]


# Joining


def blocked(stage: Stage, user: str) -> str | None:
    reason: str | None = join_of(stage.engine, user)["reason"]
    return reason


def test_invited_person_joins_by_accepting_and_not_by_domain(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    invited = world.create_invitation("ANN@acme.example", org)
    user = sign_up(world)
    stage.settle()
    assert members_at_workos(world) == {} and auto_join_answer(stage.engine, ANN) is None
    assert blocked(stage, user) == "invitation pending"
    world.accept_invitation(invited["id"], user)
    stage.receive_events()
    assert auto_join_answer(stage.engine, ANN) is not None
    world.create_membership(org, user)
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}


def test_invitation_that_has_expired_lets_the_person_join_again(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    invited = world.create_invitation(ANN, org)
    user = sign_up(world)
    stage.settle()
    assert joins_of(stage.engine) == {user: JoinState.DROPPED}, "a join that is blocked would block for ever"
    past = update(Invitation).where(Invitation.id == invited["id"]).values(expires_at=NOON)
    in_transaction(stage.engine, lambda tx: tx.execute(past))
    assert auto_join_answer(stage.engine, ANN) is not None
    assert waiting(stage.engine)
    stage.run_worker()
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}


def test_revoked_invitation_blocks_until_unblocked(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    world.revoke_invitation(world.create_invitation(ANN, org)["id"])
    user = sign_up(world)
    stage.settle()
    assert (join_of(stage.engine, user)["state"], blocked(stage, user)) == ("blocked", "invitation revoked")
    assert auto_join_policy.unblock(stage.engine, org, user, by("cleo", "a mistake")) == ["invitation revoked"]
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}


def test_revocation_after_unblock_blocks_again(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    invited = world.create_invitation(ANN, org)
    user = sign_up(world)
    stage.receive_events()
    assert auto_join_policy.unblock(stage.engine, org, user, by("cleo", "a mistake")) == ["invitation pending"]
    assert auto_join_answer(stage.engine, ANN) is not None
    world.resend_invitation(invited["id"])
    stage.receive_events()
    assert auto_join_answer(stage.engine, ANN) is not None
    world.revoke_invitation(invited["id"])
    stage.settle()
    assert auto_join_answer(stage.engine, ANN) is None and members_at_workos(world) == {}


def test_address_without_a_user_is_unblocked_until_the_invitation_is_revoked(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    invited = world.create_invitation(ANN, org)
    stage.receive_events()
    assert auto_join_policy.unblock(stage.engine, org, "Ann@ACME.example", by("cleo", "a guest")) == [
        "invitation pending"
    ]
    assert auto_join_answer(stage.engine, ANN) is not None
    with pytest.raises(OperatorError, match="nothing blocks this address"):
        auto_join_policy.unblock(stage.engine, org, ANN, by("cleo", "a guest"))
    assert [
        (row["kind"], row["object_id"], row["reason"])
        for row in rows(stage.engine, Audit)
        if row["action"] == "unblock"
    ] == [("invitation", invited["id"], "a guest")]
    assert "operator" in steps(stage.engine, invited["id"]), "the decision is explained"
    world.revoke_invitation(invited["id"])
    stage.receive_events()
    assert auto_join_answer(stage.engine, ANN) is None
    assert auto_join_policy.unblock(stage.engine, org, invited["id"], by("cleo", "again")) == ["invitation revoked"]
    user = sign_up(world)
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}


@pytest.mark.long
def test_address_of_a_user_unblocks_the_user(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    user = sign_up(world)
    world.delete_membership(world.create_membership(org, user)["id"])
    stage.receive_events()
    world.update_user(user, email="ann.b@acme.example")
    stage.settle()
    assert auto_join_policy.unblock(stage.engine, org, ANN, by("cleo", "hired again")) == ["removed"]
    stage.settle()
    assert members_at_workos(world) == {(org, user): ["active"]}


def test_unknown_address_cannot_be_unblocked(stage: Stage) -> None:
    org = company(stage.world)
    stage.receive_events()
    for person, error in ((ANN, "nothing blocks this address"), ("x@y@", "has no person x@y@")):
        with pytest.raises(OperatorError, match=error):
            auto_join_policy.unblock(stage.engine, org, person, by("cleo", "a guest"))
    with pytest.raises(OperatorError, match="has no workspace"):
        auto_join_policy.unblock(stage.engine, "org_none", ANN, by("cleo", "a guest"))


def test_revoked_invitation_blocks_the_person_under_a_later_address(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    world.revoke_invitation(world.create_invitation(ANN, org)["id"])
    user = sign_up(world)
    world.update_user(user, email="ann.b@acme.example")
    stage.settle()
    assert members_at_workos(world) == {}
    assert auto_join_answer(stage.engine, "ann.b@acme.example") is None
    assert auto_join_answer(stage.engine, "bob@acme.example") is not None


@pytest.mark.long
def test_failed_invitation_event_delays_its_person(stage: Stage) -> None:
    world, org = stage.world, company(stage.world)
    user, other = sign_up(world), sign_up(world, "bob@acme.example")
    world.create_invitation("ANN@Acme.Example", org)
    with world.lock:
        for event in world.events:
            if event["event"].startswith("invitation."):
                event["data"] = {name: value for name, value in event["data"].items() if name != "id"}
    stage.settle()
    assert joins_of(stage.engine) == {user: "pending", other: "joined"}


@pytest.mark.parametrize("email", ["no address", "a@b@", "", None, "x" * 400 + "@acme.example"])
def test_invitation_with_an_invalid_address_is_stored_and_blocks_nobody(
    local_endpoint: FlaskClient, local_engine: Engine, email: str | None
) -> None:
    event = made("invitation.created", email=email, expires_at=FAR)
    accept(local_endpoint, event)
    apply_all(local_engine)
    assert outcomes(local_engine, event) == ["applied"]
    assert rows(local_engine, auto_join_blocks) == [] and rows(local_engine, InvitedAddress) == []
    shown = explain(local_engine, event["data"]["id"])
    assert shown is not None
    [state] = shown["invitations"]
    assert (state["blocks"], state["why"]) == (False, "the address is not valid, so nobody is blocked")


# The mirror


def test_late_events_do_not_change_the_result(local_endpoint: FlaskClient, local_engine: Engine) -> None:
    created, resent, revoked = invitation("created", 1), invitation("resent", 2), invitation("revoked", 3)
    for event in (revoked, created, resent, created):
        accept(local_endpoint, event)
        apply_all(local_engine)
    assert outcomes(local_engine, revoked, created, resent) == ["applied", "stale", "stale"]
    assert [row["status"] for row in rows(local_engine, Invitation)] == ["revoked"]


@pytest.mark.long
def test_resync_repairs_invitations_and_stores_no_secret(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 2, 2)
    organization = next(iter(world.organizations))
    kept, lost = (world.create_invitation(f"{name}@company0.example", organization) for name in ("kept", "lost"))
    catch_up_with(engine, world)

    def unseen() -> None:
        world.revoke_invitation(kept["id"])
        del world.invitations[lost["id"]]
        world.create_invitation("new@company0.example", organization)
        world.create_invitation("free@company0.example")

    quietly(world, unseen)
    of_workspace = found(engine, resync(engine, workos, organization_id=organization))
    assert of_workspace["invitation", lost["id"]] == ("extra", "repaired")
    assert ("invitation", kept["id"]) in of_workspace
    assert set(found(engine, resync(engine, workos)).values()) == {("missing", "repaired")}, "the one without workspace"
    assert differences(engine, world.truth()) == []
    assert {row["deleted_by"] for row in rows(engine, Invitation) if row["id"] == lost["id"]} == {"resync"}
    assert found(engine, resync(engine, workos)) == {}
    assert not any(secret in everything(engine) for secret in SECRETS)


def test_expiry_is_not_drift(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    invited = world.create_invitation(ANN, next(iter(world.organizations)), days=-1)
    catch_up_with(engine, world)
    assert world.show_invitation(invited["id"])["state"] == "expired"
    assert not [kind for kind, _ in found(engine, resync(engine, workos)) if kind == "invitation"]
    assert [row["status"] for row in rows(engine, workspace_invitations)] == ["expired"]


def test_resync_succeeds_without_permission_to_list_invitations(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    small_life(sandbox.world, 1, 1)
    sandbox.faults.fail("/user_management/invitations", status=403, times=None)
    run = resync(engine, workos)
    assert found(engine, run)["invitation", "all of them"] == ("invalid", "reported")
    assert differences(engine, sandbox.world.truth()) == []


# Secrets


def test_secrets_of_a_delivery_are_removed_and_all_other_bytes_stored(endpoint: FlaskClient, engine: Engine) -> None:
    event = json.dumps(invitation("created") | {"note": "café"}, ensure_ascii=False, indent=5)
    body = event.replace(
        '"data": {', '"data": {"tok\\u0065n" :\t"a\\"b","accept_invitation_url":{"t":["a"]} , "token":null,'
    )
    left = event.replace(
        '"data": {',
        '"data": {"tok\\u0065n" :\t"[removed]","accept_invitation_url":"[removed]" , "token":null,',
    )
    assert post(endpoint, body.encode()).status_code == 200
    [row] = rows(engine, Event)
    assert row["body"] == left.encode()
    forged = endpoint.post("/webhooks/workos", data=left, headers={"WorkOS-Signature": sign(body.encode())})
    assert forged.status_code == 401, "the signature is of the bytes as sent"


def test_secrets_of_the_events_api_are_removed(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient, clock: Clock
) -> None:
    world = sandbox.world
    with world.silently():
        made_here = world.create_invitation(ANN)
    world.emit("invitation.created", world.show_invitation(made_here["id"]))
    clock.advance(seconds=60)
    catch_up(engine, workos)
    apply_all(engine)
    [row] = rows(engine, Event)
    assert (row["outcome"], row["body"].count(b"[removed]")) == ("applied", 2)
    assert not any(secret in everything(engine) for secret in SECRETS)


# Reports


def test_person_is_explained_with_invitations(engine: Engine) -> None:
    deliver(engine, [made("user.created", email=ANN), invitation("created"), made("organization.created")])
    [row] = rows(engine, Invitation)
    for name in (row["id"], ANN.upper(), made("user.created")["data"]["id"]):
        shown = explain(engine, name)
        assert shown is not None
        [state] = shown["invitations"]
        assert (state["id"], state["status"], state["blocks"]) == (row["id"], "pending", True)
        assert state["why"] == "the person joins by accepting, not by domain"
        assert "invitation.created" in steps(engine, name)


def test_address_without_a_user_is_explained(engine: Engine) -> None:
    deliver(engine, [invitation("created"), invitation("created", id="invitation_2", email="x@y@")])
    assert steps(engine, "Ann@ACME.example") == steps(engine, "x@y@") == ["invitation.created"]
    assert steps(engine, "X@Y@") == ["invitation.created"]
    assert explain(engine, "bob@acme.example") is None


def test_members_page_and_cli_show_invitations(
    local: Callable[..., Services], set_environment: Callable[..., None]
) -> None:
    services = local(ops_tokens=f"ann:{TOKEN}")
    engine = services.engine
    deliver(engine, [made("organization.created"), invitation("created"), invitation("revoked", 1, id="invitation_2")])
    browser = create_app(services).test_client()
    sign_in(browser)
    page = browser.get(f"/ops/workspaces/{ORG}?show=invitations").get_data(as_text=True)
    assert ANN in page and "joins by accepting" in page and "until an operator unblocks" in page
    assert ANN in browser.get("/ops/explain?name=invitation_2").get_data(as_text=True)
    set_environment(DATABASE_URL=engine.url.render_as_string(hide_password=False))
    listed = json.loads(CliRunner().invoke(main, ["members", ORG, "--json"]).stdout)
    assert [(row["email"], row["status"]) for row in listed["invitations"]] == [(ANN, "pending")]
    assert ANN in on_terminal("members", ORG)
    shown = CliRunner().invoke(main, ["explain", "invitation_2", "--json"])
    assert json.loads(shown.stdout)["invitations"][0]["status"] == "revoked"
    assert "until an operator unblocks the person" in CliRunner().invoke(main, ["explain", "invitation_2"]).stdout
    form = {"csrf_token": form_token(browser.get(f"/ops/workspaces/{ORG}")), "reason": "a guest"}
    assert "Saved." in browser.post(
        f"/ops/workspaces/{ORG}/invitations/invitation_2/unblock", data=form, follow_redirects=True
    ).get_data(as_text=True)
    assert rows(engine, auto_join_blocks) == []


# Erasure

USER = made("user.deleted")["data"]["id"]


@pytest.fixture
def invited(engine: Engine) -> Engine:
    """A deleted user, with a revoked invitation to a former address and an accepted one to another address."""
    deliver(
        engine,
        [
            made("user.created", email=ANN),
            made("user.updated", 1, email="ann.b@acme.example"),
            invitation("revoked", 2),
            invitation("accepted", 2, id="invitation_2", email="ann@home.example", accepted_user_id=USER),
            invitation("created", 2, id="invitation_bob", email="bob@acme.example", inviter_user_id=USER),
            made("user.deleted", 3, email="ann.b@acme.example"),
        ],
    )
    return engine


def personal(engine: Engine) -> set[str]:
    """The person's addresses that are still stored."""
    shown = everything(engine).lower()
    return {email for email in (ANN, "ann.b@acme.example", "ann@home.example") if email in shown}


def test_erasure_covers_invitations_of_the_person(invited: Engine) -> None:
    assert len(personal(invited)) == 3
    forget(invited, USER, by("cleo"))
    assert personal(invited) == set()
    mails = {row["id"]: (row["email"], row["erased"]) for row in rows(invited, Invitation)}
    assert mails.pop("invitation_bob") == ("bob@acme.example", False)
    assert set(mails.values()) == {(None, True)}
    assert broken_chains(rows(invited, Change)) == []
    assert [row["body"] for row in rows(invited, Event)] == [None] * 6, "the inviter's id is in the last one"


def test_erasure_spares_the_address_of_another_user_whose_invitation_the_person_accepted(engine: Engine) -> None:
    bob = made("user.created", 1, id="user_bob", email="bob@acme.example")
    accepted = invitation("accepted", 2, email="bob@acme.example", accepted_user_id=USER)
    deliver(engine, [made("user.created", email=ANN), bob, accepted, made("user.deleted", 3, email=ANN)])
    forget(engine, USER, by("cleo"))
    [row] = rows(engine, Invitation)
    assert (row["email"], row["erased"]) == ("bob@acme.example", False)
    assert event_row(engine, bob["id"])["body"] is not None
    assert event_row(engine, accepted["id"])["body"] is None, "it names the erased user"
    retain(engine, Periods())
    assert rows(engine, Invitation) == [row]


def test_erased_invitation_still_blocks(invited: Engine) -> None:
    forget(invited, USER, by("cleo"))
    assert {row["email_hash"] for row in rows(invited, InvitedAddress)} >= {HASH}
    assert HASH in {row["email_hash"] for row in rows(invited, auto_join_blocks)}
    assert {row["invitation_id"] for row in rows(invited, InvitedAddress)} == {
        made("invitation.created")["data"]["id"],
        "invitation_bob",
    }, "nothing needs the hash of the accepted one"
    late = invitation("resent", 9, expires_at=None)
    deliver(invited, [late])
    assert event_row(invited, late["id"])["body"] is None and personal(invited) == set()
    assert HASH in {row["email_hash"] for row in rows(invited, auto_join_blocks)}
    deliver(invited, [invitation("accepted", 10)])
    retain(invited, Periods())
    assert {row["invitation_id"] for row in rows(invited, InvitedAddress)} == {"invitation_bob"}
    assert rows(invited, UserAddress) == []
    assert broken_chains(rows(invited, Change)) == []


def test_an_erased_invitation_that_is_sent_again_blocks_its_address(engine: Engine) -> None:
    past = {"expires_at": "2025-07-01T11:00:00.000Z"}
    deliver(engine, [made("user.created", email=ANN), invitation("created", 1, **past), made("user.deleted", 2)])
    forget(engine, USER, by("cleo"))
    assert rows(engine, InvitedAddress) == [], "nothing needs it"
    deliver(engine, [invitation("resent", 3, expires_at=None)])
    assert HASH in {row["email_hash"] for row in rows(engine, auto_join_blocks)}
    assert ANN not in everything(engine)


def test_invitation_from_before_the_deletion_that_arrives_after_the_erasure_is_erased(invited: Engine) -> None:
    """Known while a block keeps the hash of the address. One that was sent later, or to another's address, stays."""
    bob = made("user.created", 1, id="user_bob", email="bob@acme.example")
    deliver(invited, [bob, made("user.updated", 2, id="user_bob", email="ann.b@acme.example")])
    forget(invited, USER, by("cleo"))
    assert rows(invited, UserAddress) != []
    late = invitation("created", 2, id="invitation_late")
    others = invitation("created", 2, id="invitation_others", email="ann.b@acme.example")
    again = invitation("created", 9, id="invitation_again", created_at=minute(9))
    deliver(invited, [late, others, again])
    retain(invited, Periods())
    found = {row["id"]: row["email"] for row in rows(invited, Invitation)}
    sent = {"invitation_late": None, "invitation_others": "ann.b@acme.example", "invitation_again": ANN}
    assert found.items() >= sent.items()
    assert event_row(invited, late["id"])["body"] is None
    assert HASH in {row["email_hash"] for row in rows(invited, auto_join_blocks)}


@pytest.mark.long
def test_resync_and_reads_do_not_restore_an_erased_address(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    organization = next(iter(world.organizations))
    user = world.create_user(ANN)["id"]
    ids = [world.create_invitation(ANN, organization)["id"] for _ in range(2)]
    world.delete_user(user)
    catch_up_with(engine, world)
    forget(engine, user, by("cleo"))
    quietly(world, lambda: world.resend_invitation(ids[0]))
    hidden = world.invitations.pop(ids[1])
    resync(engine, workos)
    world.invitations[ids[1]] = hidden
    quietly(world, lambda: world.resend_invitation(ids[1]))
    deliver(engine, [made("invitation.resent", 9_999_999, **world.invitations[ids[1]])])
    read_due(engine, workos)
    resync(engine, workos)
    assert ANN not in everything(engine)
    stored = {row["id"]: (row["deleted_by"], row["erased"]) for row in rows(engine, Invitation)}
    assert stored == dict.fromkeys(ids, (None, True))


def test_invitation_listed_after_the_erasure_is_erased_by_retention(
    engine: Engine, sandbox: Sandbox, workos: WorkOSClient
) -> None:
    world = sandbox.world
    small_life(world, 1, 1)
    user = world.create_user(ANN)["id"]
    invited = world.create_invitation(ANN, next(iter(world.organizations)))["id"]
    world.accept_invitation(invited, user)
    world.delete_user(user)
    deliver(engine, [event for event in world.events if not event["event"].startswith("invitation.")])
    forget(engine, user, by("cleo"))
    resync(engine, workos)
    assert ANN in everything(engine)
    assert retain(engine, Periods())["erased_invitations"] == 1
    assert ANN not in everything(engine)
    assert broken_chains(rows(engine, Change)) == []

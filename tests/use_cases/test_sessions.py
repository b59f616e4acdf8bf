"""REVOKE_SESSIONS=on: WorkOS sessions of people who lost access end, and no others."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime

import pytest
from click.testing import CliRunner
from redis import Redis
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Audit, MirrorState, Revocation
from models.types import db_now_plus
from models.views import workspaces
from tests.support import JSON, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events
from tests.support.ops import TOKEN, sign_in
from tests.support.resync import CLIENT_ID, client_of, read_due, resync
from tests.support.sessions import LISTING, REVOKE, SessionStage, pending
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli import main
from worker.errors import InvalidApiKeyError, WorkOSError
from worker.mirror import lost_access
from worker.mirror.erasure import forget
from worker.mirror.retention import Periods, retain
from worker.repair.missed_losses import note_missed_losses
from worker.reports.explain import explain
from worker.sandbox.faults import Faults
from worker.workos_api.bucket import REVOKES, USER_WRITES, Buckets
from worker.workos_api.client import open_client

Ends = Callable[[SessionStage, str, str], object]
"""Ends the access to a workspace through a membership."""


def deleted_with_children(stage: SessionStage, org: str, _membership: str) -> None:
    stage.world.delete_organization(org)


def deleted_without_children(stage: SessionStage, org: str, _membership: str) -> None:
    stage.sandbox.knobs.children_deleted = False
    stage.world.delete_organization(org)


ENDS: dict[str, Ends] = {
    "removed": lambda stage, _org, membership: stage.world.delete_membership(membership),
    "deactivated": lambda stage, _org, membership: stage.world.deactivate_membership(membership),
    "workspace deleted": deleted_with_children,
    "workspace deleted, no other events": deleted_without_children,
}


def revocation(engine: Engine) -> JSON:
    """The only revocation."""
    [row] = rows(engine, Revocation)
    return row


def revoked(engine: Engine) -> list[int]:
    """The numbers of revoked sessions in the audit."""
    return [row["details"]["sessions"] for row in rows(engine, Audit) if row["action"] == "revoke_sessions"]


@contextmanager
def earlier_release(engine: Engine) -> Iterator[None]:
    """Losses are saved but not recorded, as by a release that does not know `REVOKE_SESSIONS`."""
    since = rows(engine, MirrorState)[0]["revokes_sessions_since"]
    set_since(engine, None)
    yield
    set_since(engine, since)


def set_since(engine: Engine, at: datetime | None) -> None:
    turned_on = update(MirrorState).values(revokes_sessions_since=at)
    in_transaction(engine, lambda tx: tx.execute(turned_on))


@pytest.mark.parametrize("ends", list(ENDS))
def test_sessions_of_the_workspace_end_with_access(session_stages: SessionStage, ends: str) -> None:
    stage = session_stages
    org, user, membership = stage.member_with_session()
    stage.sign_in(user, org, impersonator={"email": "support@acme.example", "reason": "a ticket"})
    other = stage.workspace()
    stage.world.create_membership(other, user)
    colleague, _ = stage.member(other)
    kept = {stage.sign_in(user, other), stage.sign_in(user), stage.sign_in(colleague, other)}
    stage.settle()
    assert len(stage.active()) == 5, "nobody has lost access"
    ENDS[ends](stage, org, membership)
    stage.settle()
    assert stage.active() == kept
    row = revocation(stage.engine)
    assert (row["organization_id"], row["user_id"], row["state"], row["sessions"]) == (org, user, "done", 2)


@pytest.mark.parametrize("outlive", [True, False])
def test_all_sessions_of_a_deleted_user_end(session_stages: SessionStage, outlive: bool) -> None:
    stage = session_stages
    stage.sandbox.knobs.sessions_outlive_users = outlive
    org, user, _ = stage.member_with_session()
    stage.sign_in(user, stage.workspace())
    stage.sign_in(user)
    colleague, _ = stage.member(org)
    kept = {stage.sign_in(colleague, org)}
    stage.world.delete_user(user)
    stage.settle()
    found = rows(stage.engine, Revocation)
    assert stage.active() == kept and {row["user_id"] for row in found} == {user}
    assert sum(row["sessions"] for row in found) == (3 if outlive else 0)


@pytest.mark.long
def test_losses_that_only_a_resync_finds(session_stages: SessionStage) -> None:
    stage = session_stages
    lives = [stage.member_with_session() for _ in ENDS]
    _, stays, _ = stage.member_with_session()
    with stage.world.silently():
        for ends, (organization, _, membership) in zip(ENDS.values(), lives, strict=True):
            ends(stage, organization, membership)
    resync(stage.engine, stage.workos)
    stage.run_worker()
    assert {stage.world.sessions[id]["user_id"] for id in stage.active()} == {stays}
    assert not pending(stage.engine) and {row["event_id"] for row in rows(stage.engine, Revocation)} == {None}


def test_deletes_that_arrive_before_everything_else(session_stages: SessionStage) -> None:
    stage = session_stages
    users = []
    for ends in ("removed", "workspace deleted, no other events"):
        org = stage.workspace()
        user, membership = stage.member(org)
        users.append(stage.sign_in(user, org))
        ENDS[ends](stage, org, membership)
    for event in stage.world.events[::-1]:
        apply_events(stage.engine, [event])
    stage.run_worker()
    assert stage.active() == set()


@pytest.mark.long
def test_all_pages_are_read_before_the_first_revocation(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    org, user, membership = stage.member_with_session()
    for _ in range(100):
        stage.sign_in(user, org)
    stage.world.delete_membership(membership)
    calls: list[str] = []

    def note(_method: str, path: str, _query: Mapping[str, str]) -> None:
        if "sessions" in path:
            calls.append(path.rpartition("/")[2])

    stage.sandbox.on_request = note
    stage.settle()
    assert stage.active() == set() and calls == ["sessions"] * 2 + ["revoke"] * 101


def test_person_who_has_access_again_keeps_the_sessions(session_stages: SessionStage) -> None:
    stage = session_stages
    org, user, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.receive_events()
    stage.world.create_membership(org, user)
    stage.receive_events()
    stage.run_worker()
    row = revocation(stage.engine)
    assert (row["state"], row["reason"]) == ("dropped", "the person has access again")
    assert len(stage.active()) == 1 and stage.sandbox.gate.total() == 0, "the mirror knows"


def test_access_that_the_mirror_does_not_know_yet_keeps_the_sessions(session_stages: SessionStage) -> None:
    stage = session_stages
    org, user, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.receive_events()
    stage.world.create_membership(org, user)
    for _ in range(2):
        stage.run_worker()
    assert len(stage.active()) == 1 and revocation(stage.engine)["state"] == "dropped"


def test_access_that_comes_back_while_sessions_are_read(session_stages: SessionStage) -> None:
    stage = session_stages
    _, _, membership = stage.member_with_session()
    stage.world.deactivate_membership(membership)
    stage.receive_events()

    def come_back(_method: str, path: str, _query: Mapping[str, str]) -> None:
        if path.endswith("/sessions"):
            stage.sandbox.on_request = None
            stage.world.reactivate_membership(membership)
            stage.receive_events()

    stage.sandbox.on_request = come_back
    stage.run_worker()
    assert len(stage.active()) == 1 and revocation(stage.engine)["state"] == "dropped"


def test_access_that_comes_back_while_the_worker_waits_for_the_rate_limit(
    one_session_stage: SessionStage, redis: Redis
) -> None:
    stage = one_session_stage
    _, _, membership = stage.member_with_session()
    stage.world.deactivate_membership(membership)
    stage.receive_events()

    def come_back(seconds: float) -> None:
        if seconds > 10:
            stage.world.reactivate_membership(membership)
            stage.receive_events()

    key, url = stage.sandbox.api_key, stage.sandbox.base_url
    with closing(open_client(key, CLIENT_ID, url, Buckets(redis, 0.01, come_back))) as stage.workos:
        stage.run_worker()
    assert len(stage.active()) == 1 and revocation(stage.engine)["state"] == "dropped"


def demoted(stage: SessionStage, membership: str) -> None:
    stage.world.update_membership(membership, role="admin")
    stage.receive_events()
    stage.world.update_membership(membership, role="member")


def of_unknown_status(stage: SessionStage, membership: str) -> None:
    found = stage.world.memberships[membership]
    stage.world.memberships[membership] = stage.world.changed(found, status="suspended")
    stage.world.emit("organization_membership.updated", stage.world.memberships[membership])


def tied(stage: SessionStage, membership: str) -> None:
    """Two states of the same time, of which WorkOS has the active one."""
    stage.sandbox.knobs.ties = True
    stage.world.deactivate_membership(membership)
    stage.world.reactivate_membership(membership)


def test_changes_that_revoke_no_session(session_stages: SessionStage) -> None:
    stage = session_stages
    for happens in (demoted, of_unknown_status, tied):
        _, _, membership = stage.member_with_session()
        happens(stage, membership)
    stage.receive_events()
    stage.run_worker()
    assert len(stage.active()) == 3
    read_due(stage.engine, stage.workos)
    stage.settle()
    assert len(stage.active()) == 3
    assert revocation(stage.engine)["state"] == "dropped", "of the tie"


@pytest.mark.long
def test_withheld_deletion_revokes_nothing(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    org = stage.workspace()
    people = [stage.member(org) for _ in range(12)]
    stage.sign_in(people[0][0], org)
    stage.receive_events()
    with stage.world.silently():
        for _, membership in people:
            stage.world.delete_membership(membership)
    run_id = resync(stage.engine, stage.workos)
    assert rows(stage.engine, Revocation) == []
    resync(stage.engine, stage.workos, approves=run_id)
    stage.run_worker()
    assert stage.active() == set()


def test_access_that_ended_before_the_setting_was_turned_on(session_stages: SessionStage) -> None:
    stage = session_stages
    (_, _, removed), (_, _, inactive), (_, user, later) = (stage.member_with_session() for _ in range(3))
    stage.world.delete_membership(removed)
    stage.world.deactivate_membership(inactive)
    stage.clock.advance(seconds=30)
    set_since(stage.engine, stage.clock())
    stage.clock.advance(seconds=30)
    stage.world.delete_membership(later)
    stage.receive_events()
    resync(stage.engine, stage.workos)
    stage.run_worker()
    assert revocation(stage.engine)["user_id"] == user and len(stage.active()) == 2


@pytest.mark.long
def test_tombstone_of_a_resync_that_is_saved_again_is_not_a_loss(session_stages: SessionStage) -> None:
    stage = session_stages
    stage.sandbox.knobs.sessions_outlive_users = True
    (_, _, membership), (_, user, theirs), _ = (stage.member_with_session() for _ in range(3))
    stage.world.update_membership(membership, role="admin")
    late = stage.world.events[-1]
    lost_access.adopt(stage.engine, on=False)
    with stage.world.silently():
        stage.world.delete_membership(membership)
        stage.world.delete_membership(theirs)
    resync(stage.engine, stage.workos)
    with stage.world.silently():
        stage.world.delete_user(user)
    resync(stage.engine, stage.workos)
    lost_access.adopt(stage.engine, on=True)
    apply_events(stage.engine, [late])
    forget(stage.engine, user, by("ann"))
    note_missed_losses(stage.engine)
    assert rows(stage.engine, Revocation) == []


def test_late_member_of_a_workspace_deleted_before_the_setting_was_turned_on(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    (org, _, _), *_ = (stage.member_with_session() for _ in range(4))
    late, _ = stage.member(org)
    stage.sign_in(late, org)
    lost_access.adopt(stage.engine, on=False)
    with stage.world.silently():
        stage.world.delete_organization(org)
    resync(stage.engine, stage.workos)
    lost_access.adopt(stage.engine, on=True)
    stage.receive_events()
    assert [row["organization_id"] for row in rows(stage.engine, workspaces) if row["state"] == "deleted"] == [org]
    assert rows(stage.engine, Revocation) == []


@pytest.mark.long
def test_losses_that_an_earlier_release_saved(session_stages: SessionStage) -> None:
    """During a rollback, or a deploy of one process after another."""
    stage = session_stages
    stage.sandbox.knobs.sessions_outlive_users = True
    lives = [stage.member_with_session() for _ in range(2 * len(ENDS))]
    (_, by_event, _), (_, by_resync, _), (_, stays, _) = (stage.member_with_session() for _ in range(3))
    stage.world.update_membership(lives[len(ENDS)][2], role="admin")
    late = stage.world.events[-1]
    with earlier_release(stage.engine):
        for ends, life in zip(ENDS.values(), lives, strict=False):
            ends(stage, life[0], life[2])
        stage.world.delete_user(by_event)
        apply_events(stage.engine, [event for event in stage.world.events if event is not late])
        with stage.world.silently():
            for ends, life in zip(ENDS.values(), lives[len(ENDS) :], strict=True):
                ends(stage, life[0], life[2])
            stage.world.delete_user(by_resync)
        resync(stage.engine, stage.workos)
    assert rows(stage.engine, Revocation) == []
    note_missed_losses(stage.engine)
    for _ in range(2):
        stage.run_worker()
    assert {stage.world.sessions[id]["user_id"] for id in stage.active()} == {stays}
    apply_events(stage.engine, [late])
    forget(stage.engine, by_resync, by("ann"))
    note_missed_losses(stage.engine)
    assert not pending(stage.engine), "it does not revoke again what was settled"


def test_of_several_losses_the_latest_remains(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    org, user, first = stage.member_with_session()
    stage.world.delete_membership(first)
    stage.clock.advance(seconds=5)
    second = stage.world.create_membership(org, user)["id"]
    stage.world.delete_membership(second)
    apply_events(stage.engine, stage.world.events[::-1])
    assert revocation(stage.engine)["object_id"] == second


def test_turning_the_setting_off_drops_pending_revocations(session_stages: SessionStage) -> None:
    stage = session_stages
    (_, user, first), (_, _, second) = stage.member_with_session(), stage.member_with_session()
    stage.world.delete_membership(first)
    stage.receive_events()
    for _ in range(2):
        lost_access.adopt(stage.engine, on=False)
    stage.world.delete_membership(second)
    stage.receive_events()
    stage.run_worker()
    row = revocation(stage.engine)
    assert (row["user_id"], row["state"], row["reason"]) == (user, "dropped", "REVOKE_SESSIONS is off")
    settings = [row["details"]["settings"] for row in rows(stage.engine, Audit)]
    assert settings == [{"REVOKE_SESSIONS": [False, True]}, {"REVOKE_SESSIONS": [True, False]}]


def test_delete_that_workos_contradicts_is_retried(session_stages: SessionStage) -> None:
    """The answer may be older than the event, so neither counts alone."""
    stage = session_stages
    (_, _, membership), (_, user, _) = stage.member_with_session(), stage.member_with_session()
    stage.world.emit("organization_membership.deleted", stage.world.memberships[membership])
    stage.world.emit("user.deleted", stage.world.users[user])
    stage.receive_events()
    stage.run_worker()
    errors = {f"WorkOS shows membership {membership} as active", f"WorkOS shows user {user} as active"}
    assert len(stage.active()) == 2 and {row["error"] for row in pending(stage.engine)} == errors
    with stage.world.silently():
        stage.world.delete_membership(membership)
        stage.world.delete_user(user)
    stage.settle()
    assert stage.active() == set()


FAILURES: dict[str, tuple[int, Callable[[Faults], None]]] = {
    "429": (2, lambda faults: faults.fail(REVOKE, status=429, retry_after=0)),
    "lost answer": (1, lambda faults: faults.fail(REVOKE, status=0, after_effect=True)),
    "ended already": (0, lambda faults: faults.fail(REVOKE, status=400, after_effect=True)),
    "refused by 400": (1, lambda faults: faults.fail(REVOKE, status=400)),
    "refused by 409": (1, lambda faults: faults.fail(REVOKE, status=409)),
    "refused by 422": (1, lambda faults: faults.fail(REVOKE, status=422)),
    "a page": (2, lambda faults: faults.answer(REVOKE, b"<html>", content_type="text/html", times=1)),
    "foreign 404": (2, lambda faults: faults.answer(LISTING, b"no", status=404, times=1)),
    "403": (2, lambda faults: faults.answer(LISTING, b'{"message": "no"}', status=403, times=1)),
    "foreign session": (1, lambda faults: faults.invalid_item(LISTING, change=lambda item: item | {"user_id": "u"})),
    "session without id": (1, lambda faults: faults.invalid_item(LISTING, missing="id")),
    "read": (2, lambda faults: faults.fail("/user_management/organization_memberships/", times=5)),
}
"""Of two sessions, the number that are active after the attempt that fails."""


@pytest.mark.long
def test_failed_attempts_are_repeated(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    for failure, (still_active, fail) in FAILURES.items():
        org, user, membership = stage.member_with_session()
        stage.sign_in(user, org)
        stage.world.delete_membership(membership)
        stage.receive_events()
        fail(stage.sandbox.faults)
        stage.run_worker()
        assert [(row["attempts"], bool(row["error"])) for row in pending(stage.engine)] == [(1, True)], failure
        assert len(stage.active()) == still_active, failure
        stage.settle()
        assert stage.active() == set(), failure


LEAVES_UNSETTLED: dict[str, Callable[[SessionStage, str], object]] = {
    "access comes back": lambda stage, membership: stage.world.reactivate_membership(membership),
    "the answer is lost": lambda stage, _: stage.sandbox.faults.fail(REVOKE, status=0, after_effect=True),
    "the switch is turned off": lambda stage, _: lost_access.adopt(stage.engine, on=False),
}


@pytest.mark.parametrize("happens", list(LEAVES_UNSETTLED))
def test_revoked_session_is_in_the_audit(one_session_stage: SessionStage, happens: str) -> None:
    """The possible results of the call that revokes a session."""
    stage = one_session_stage
    org, user, membership = stage.member_with_session()
    stage.sign_in(user, org)
    stage.world.deactivate_membership(membership)
    stage.receive_events()

    def interrupt(_method: str, path: str, _query: Mapping[str, str]) -> None:
        if path == REVOKE:
            stage.sandbox.on_request = None
            LEAVES_UNSETTLED[happens](stage, membership)
            stage.receive_events()

    stage.sandbox.on_request = interrupt
    stage.run_worker()
    assert len(stage.active()) == 1
    if happens == "the answer is lost":
        stage.world.reactivate_membership(membership)
        stage.receive_events()
        stage.run_worker()
    assert revocation(stage.engine)["state"] == "dropped" and revoked(stage.engine) == [1]


def test_the_audit_names_who_ended_the_access(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    _, user, membership = stage.member_with_session()
    stage.world.context = {"actor": {"id": "user_boss", "name": "Bea", "source": "dashboard"}}
    stage.world.delete_membership(membership)
    stage.settle()
    [row] = [row for row in rows(stage.engine, Audit) if row["action"] == "revoke_sessions"]
    assert (row["object_id"], row["details"]) == (
        user,
        {"sessions": 1, "because": f"membership {membership}", "actor_id": "user_boss", "actor_source": "dashboard"},
    )


def test_refused_session_is_not_counted(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    for status in (400, 404, 429):
        _, _, membership = stage.member_with_session()
        stage.sandbox.faults.fail(REVOKE, status=status, after_effect=True, retry_after=0)
        stage.world.delete_membership(membership)
        stage.settle()
    assert stage.active() == set() and revoked(stage.engine) == []


def test_session_that_has_ended_counts_as_done(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    _, _, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.receive_events()
    stage.sandbox.faults.fail(REVOKE, status=404, after_effect=True)
    stage.run_worker()
    assert not pending(stage.engine)


def test_revoked_without_a_body_or_with_one(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    for body in (b"", b"{}"):
        stage.sandbox.faults.answer(REVOKE, body, times=1)
        stage.workos.revoke_session("session_1")
    stage.sandbox.faults.answer(REVOKE, b"<html>", content_type="text/html", times=1)
    with pytest.raises(WorkOSError):
        stage.workos.revoke_session("session_1")


def test_invalid_key_is_not_the_fault_of_a_person(one_session_stage: SessionStage, redis: Redis) -> None:
    stage = one_session_stage
    _, _, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.receive_events()
    stage.workos = client_of(stage.sandbox, redis, key="sk_test_another")
    with closing(stage.workos), pytest.raises(InvalidApiKeyError):
        stage.run_worker()
    assert revocation(stage.engine)["attempts"] == 0


def test_stopping_worker_gives_its_claim_back(one_session_stage: SessionStage) -> None:
    stage = one_session_stage
    _, _, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.receive_events()
    stage.run_worker(lambda: stage.sandbox.gate.total("GET", "/user_management/users") > 0)
    assert len(stage.active()) == 1
    stage.revoke_due()
    assert stage.active() == set()


def test_later_loss_is_worked_on_again(session_stages: SessionStage) -> None:
    stage = session_stages
    org, user, membership = stage.member_with_session()
    for _ in range(2):
        stage.world.deactivate_membership(membership)
        stage.settle()
        assert stage.active() == set() and revocation(stage.engine)["sessions"] == 1
        stage.world.reactivate_membership(membership)
        stage.sign_in(user, org)


def test_later_loss_that_only_a_resync_finds(session_stages: SessionStage) -> None:
    """Its time is the database's, whose clock is behind WorkOS's here."""
    stage = session_stages
    org, user, membership = stage.member_with_session()
    stage.world.deactivate_membership(membership)
    stage.settle()
    with stage.world.silently():
        stage.world.reactivate_membership(membership)
        stage.sign_in(user, org)
        stage.world.delete_membership(membership)
    resync(stage.engine, stage.workos)
    stage.run_worker()
    assert stage.active() == set()


@pytest.mark.long
def test_revocation_is_shown(one_session_stage: SessionStage, local: Callable[..., Services]) -> None:
    stage = one_session_stage
    org, user, membership = stage.member_with_session()
    stage.world.delete_membership(membership)
    stage.settle()
    [row] = [row for row in rows(stage.engine, Audit) if row["action"] == "revoke_sessions"]
    assert (row["who"], row["via"]) == ("REVOKE_SESSIONS", "settings")
    assert (row["object_id"], row["organization_id"]) == (user, org)
    assert row["details"] == {"sessions": 1, "because": f"membership {membership}"}
    for name in (user, membership, org):
        found = explain(stage.engine, name)
        assert found is not None and [each["sessions"] for each in found["sessions"]] == [1]
    services = local(database_url=stage.engine.url.render_as_string(), ops_tokens=f"ann:{TOKEN}")
    endpoint = create_app(services).test_client()
    assert sign_in(endpoint).status_code == 302
    page = endpoint.get(f"/ops/explain?name={user}").get_data(as_text=True)
    assert "Revoked sessions" in page
    # As after a kill -9: what the worker counted in memory is lost.
    metrics = endpoint.get("/metrics").get_data(as_text=True).splitlines()
    assert {"workos_sync_sessions_revoked_total 1.0", 'workos_sync_revocations{state="done"} 1.0'} <= {*metrics}
    stage.counters.hand_over()
    metrics = endpoint.get("/metrics").get_data(as_text=True).splitlines()
    assert "workos_sync_access_lost_to_revoked_seconds_count 1.0" in metrics


def test_old_finished_rows_are_deleted(session_stages: SessionStage) -> None:
    stage = session_stages
    (_, user, first), (_, _, second) = stage.member_with_session(), stage.member_with_session()
    for membership in (first, second):
        stage.world.delete_membership(membership)
    stage.settle()
    old = update(Revocation).where(Revocation.user_id == user).values(settled_at=db_now_plus(-366 * 86_400))
    in_transaction(stage.engine, lambda tx: tx.execute(old))
    assert retain(stage.engine, Periods())["revocations"] == 1
    assert revocation(stage.engine)["user_id"] != user


def test_the_limit_is_a_tenth_of_the_write_limit() -> None:
    assert REVOKES.calls / REVOKES.seconds * 10 == USER_WRITES.calls / USER_WRITES.seconds


def test_revoke_sessions_needs_the_api(set_environment: Callable[..., None]) -> None:
    set_environment(REVOKE_SESSIONS="on")
    result = CliRunner().invoke(main, ["config"])
    assert result.exit_code == 2 and "WORKOS_API_KEY is not set" in result.output

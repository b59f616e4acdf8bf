"""The audit: one row for each action, in the action's own transaction. Commands: test_exit_codes; pages: test_ops."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, Engine, insert, update

from models.database import in_transaction
from models.tables import (
    Action,
    Audit,
    Change,
    Event,
    Hook,
    HookDelivery,
    Run,
    Via,
    WorkspaceSettings,
)
from models.types import db_now_plus
from tests.support import JSON, apply_all, made, rows
from tests.support.actors import by
from tests.support.auto_join import apply_events
from tests.support.cli import report, run
from tests.support.mirror import ORG, USER
from webhooks.app import create_app
from worker import audit
from worker.audit import Actor
from worker.bootstrap import Services
from worker.decision.roles import DEFAULT_ROLE_MAP
from worker.errors import BusyError, ConfigurationError, OperatorError, UnknownIdError
from worker.hooks import operate
from worker.inbox import dismissal
from worker.inbox.selection import Selection
from worker.mirror import auto_join_policy, role_map
from worker.mirror.erasure import erase_deleted, forget
from worker.mirror.retention import Periods, retain
from worker.repair import replay
from worker.repair.resync import resync

pytestmark = pytest.mark.long

EMAIL = made("user.created")["data"]["email"]
READER = "a-token-that-only-reads"


@pytest.fixture
def filled(engine: Engine) -> Engine:
    """A workspace, a person, a failed event, and a hook with a failed delivery."""
    apply_events(engine, [made("organization.created"), made("user.created")])
    apply_events(engine, [made("user.updated", event_id="event_failed", id=None)])

    def add(tx: Connection) -> None:
        failed = {"hook": "crm", "change_id": 1, "kind": "user", "object_id": USER, "status": "failed", "attempts": 9}
        tx.execute(insert(Hook).values(name="crm", cursor=9))
        tx.execute(insert(HookDelivery).values(failed))

    in_transaction(engine, add)
    return engine


def actions(engine: Engine) -> list[tuple[str, str, str, str | None]]:
    return [(row["who"], row["via"], row["action"], row["reason"]) for row in rows(engine, Audit)]


# Settings


def test_change_of_role_map_is_recorded_once(engine: Engine) -> None:
    role_map.adopt(engine, DEFAULT_ROLE_MAP)
    assert rows(engine, Audit) == []
    for _ in range(2):
        role_map.adopt(engine, DEFAULT_ROLE_MAP | {"editor": "admin"})
    (row,) = rows(engine, Audit)
    assert (row["who"], row["via"], row["action"]) == ("ROLE_MAP", Via.SETTINGS, Action.CHANGE_ROLE_MAP)
    assert row["details"] == {"roles": {"editor": [None, "admin"]}}


def test_change_of_auto_join_is_recorded_once(engine: Engine) -> None:
    auto_join_policy.adopt(engine, "mirror", existing=False)
    assert rows(engine, Audit) == []
    for _ in range(2):
        auto_join_policy.adopt(engine, "provision", existing=True)
    (row,) = rows(engine, Audit)
    assert (row["who"], row["via"]) == ("AUTO_JOIN, AUTO_JOIN_EXISTING", Via.SETTINGS)
    assert row["details"] == {"settings": {"AUTO_JOIN": ["mirror", "provision"], "AUTO_JOIN_EXISTING": [False, True]}}


# One transaction

ACTS: dict[str, tuple[Action, Callable[[Engine, Actor], object]]] = {
    "resync": (Action.RESYNC, resync.start),
    "replay": (Action.REPLAY, lambda engine, actor: replay.start(engine, Selection(failed=True), actor)),
    "dismiss event": (Action.DISMISS_EVENT, lambda engine, actor: dismissal.dismiss(engine, ["event_failed"], actor)),
    "retry": (Action.RETRY_DELIVERIES, lambda engine, actor: operate.replay(engine, "crm", None, actor)),
    "dismiss deliveries": (
        Action.DISMISS_DELIVERIES,
        lambda engine, actor: operate.dismiss(engine, "crm", None, actor),
    ),
    "block": (Action.BLOCK, lambda engine, actor: auto_join_policy.block(engine, ORG, USER, actor)),
    "set": (
        Action.SET_AUTO_JOIN,
        lambda engine, actor: auto_join_policy.set_workspace(engine, ORG, actor, auto_join=False),
    ),
}


def state(engine: Engine) -> list[list[JSON]]:
    """Everything that the acts change."""
    return [rows(engine, table) for table in (Audit, Run, Event, HookDelivery, WorkspaceSettings, Change)]


@pytest.mark.parametrize("name", ACTS)
def test_an_action_that_cannot_be_recorded_is_not_done(
    filled: Engine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, (action, act) = state(filled), ACTS[name]

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(audit, "note", fails)
        with pytest.raises(RuntimeError):
            act(filled, by("ann", "ticket 12"))
    assert state(filled) == before
    act(filled, by("ann", "ticket 12"))
    assert actions(filled) == [("ann", "cli", action, "ticket 12")]


@pytest.mark.parametrize("name", ["dismiss event", "dismiss deliveries", "block", "set"])
@pytest.mark.parametrize("reason", [None, ""])
def test_an_action_on_access_without_a_reason_is_not_done(filled: Engine, name: str, reason: str | None) -> None:
    before, (_, act) = state(filled), ACTS[name]
    with pytest.raises(ConfigurationError, match="a reason is required"):
        act(filled, by("ann", reason))
    assert state(filled) == before


def test_refused_actions_are_not_recorded(filled: Engine) -> None:
    ann = by("ann", "ticket 12")
    with pytest.raises(UnknownIdError):
        auto_join_policy.block(filled, "org_none", USER, ann)
    with pytest.raises(OperatorError):
        auto_join_policy.unblock(filled, ORG, USER, ann)
    with pytest.raises(ConfigurationError):
        auto_join_policy.set_workspace(filled, ORG, ann)
    with pytest.raises(UnknownIdError):
        resync.start(filled, ann, approves="none")
    with pytest.raises(OperatorError):
        forget(filled, USER, ann)
    with pytest.raises(UnknownIdError):
        operate.dismiss(filled, "none", None, ann)
    assert dismissal.dismiss(filled, ["event_none"], ann) == 0 and not replay.cancel(filled, "none", ann)
    assert rows(filled, Audit) == []
    resync.start(filled, ann, organization_id=ORG)
    in_transaction(filled, lambda tx: tx.execute(update(Run).values(leased_until=db_now_plus(60))))
    with pytest.raises(BusyError):
        resync.start(filled, ann, organization_id=ORG)
    assert len(rows(filled, Audit)) == 1


def test_each_dismissed_event_has_a_row(filled: Engine) -> None:
    apply_events(filled, [made("user.updated", event_id="event_other", id=None)])
    assert dismissal.dismiss(filled, ["event_other", "event_failed", "event_none"], by("ann", "tests")) == 2
    assert sorted(row["object_id"] for row in rows(filled, Audit)) == ["event_failed", "event_other"]


def test_reason_of_a_resync_is_shown_with_its_run(filled: Engine) -> None:
    run_id = resync.start(filled, by("ann", "ticket 12"), organization_id=ORG, dry_run=True)
    (row,) = rows(filled, Run)
    assert (row["requested_by"], row["reason"]) == ("ann", "ticket 12")
    (noted,) = rows(filled, Audit)
    assert (noted["object_id"], noted["organization_id"], noted["details"]) == (run_id, ORG, {"dry_run": True})


# Lists


@pytest.fixture
def acted(filled: Engine, db_url: str, set_environment: Callable[..., None]) -> Engine:
    set_environment(DATABASE_URL=db_url)
    auto_join_policy.block(filled, ORG, USER, Actor("ann", Via.PAGE, "a test account"))
    auto_join_policy.unblock(filled, ORG, USER, by("bob", "it is not"))
    role_map.adopt(filled, DEFAULT_ROLE_MAP | {"editor": "admin"})
    in_transaction(filled, lambda tx: tx.execute(update(Audit).where(Audit.id == 1).values(at=db_now_plus(-7200))))
    return filled


FILTERS: list[tuple[str, str, list[str]]] = [
    ("who", "ann", ["block"]),
    ("via", "settings", ["change_role_map"]),
    ("action", "unblock", ["unblock"]),
    ("object_id", USER, ["unblock", "block"]),
    ("organization_id", ORG, ["unblock", "block"]),
    ("object_id", "none", []),
]


@pytest.mark.parametrize(("name", "value", "expected"), FILTERS)
def test_command_lists_and_filters(acted: Engine, name: str, value: str, expected: list[str]) -> None:
    option = {"object_id": "--object", "organization_id": "--organization"}.get(name, f"--{name}")
    assert [row["action"] for row in report("audit", "list", option, value)] == expected
    assert len(report("audit", "list")) == 3 and len(report("audit", "list", "--limit", "2")) == 2
    hour_ago = f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    assert len(report("audit", "list", "--since", hour_ago)) == 2
    assert "a test account" in run("audit", "list").stdout


@pytest.mark.parametrize(("name", "value", "expected"), FILTERS)
def test_api_lists_and_filters(
    acted: Engine, make_services: Callable[..., Services], name: str, value: str, expected: list[str]
) -> None:
    endpoint = create_app(make_services(api_tokens=READER)).test_client()
    assert [row["action"] for row in ask(endpoint, f"{name}={value}")["items"]] == expected
    first = ask(endpoint, "limit=2")
    assert [row["action"] for row in first["items"]] == ["change_role_map", "unblock"]
    second = ask(endpoint, f"limit=2&after={first['next']}")
    assert [row["action"] for row in second["items"]] == ["block"] and second["next"] is None
    for wrong in ("via=nonsense", "action=nonsense", "after=x", "after=0", f"after={2**64}", "nonsense=1"):
        assert endpoint.get(f"/api/v1/audit?{wrong}", headers=bearer()).status_code == 400, wrong


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {READER}"}


def ask(endpoint: FlaskClient, query: str) -> Any:
    answer = endpoint.get(f"/api/v1/audit?{query}", headers=bearer())
    assert answer.status_code == 200, answer.get_data(as_text=True)
    return answer.get_json()


# Retention and erasure


def test_retention_deletes_old_rows(acted: Engine) -> None:
    retain(acted, Periods(changes=timedelta(hours=3)))
    assert len(rows(acted, Audit)) == 3
    assert retain(acted, Periods(changes=timedelta(hours=1)))["audit"] == 1
    assert {row["action"] for row in rows(acted, Audit)} == {"unblock", "change_role_map"}


def test_erasure_blanks_the_person_in_the_audit(acted: Engine) -> None:
    spelled = EMAIL.upper()
    in_transaction(acted, audit.note, by("ann", "a typo"), Action.RESYNC, kind="run", object_id="run1")
    in_transaction(acted, audit.note, by("ann", f"asked by <{spelled}>"), Action.RESYNC, about=[{"mail": EMAIL}])
    in_transaction(acted, audit.note, by("ann", f"about {USER}, see 12"), Action.RESYNC, object="run2")
    resync.start(acted, by("ann", f"{EMAIL} is missing"))
    apply_events(acted, [made("user.deleted")])
    erased = forget(acted, USER, by("ann", f"request 7 of {EMAIL}"))
    assert erased.reasons == 5
    stored = sorted(rows(acted, Audit), key=lambda row: row["id"])
    assert EMAIL.lower() not in str(stored).lower() and EMAIL.lower() not in str(rows(acted, Run)).lower()
    kept = {row["action"]: row["reason"] for row in stored if row["reason"]}
    assert kept == {"resync": "a typo"}
    assert [row["details"] for row in stored if row["action"] == "resync"] == [None, None, {"object": "run2"}, None]
    assert len(stored) == 8 and {row["who"] for row in stored} == {"ann", "bob", "ROLE_MAP"}
    forget(acted, USER, by("bob", "second request"))
    last = max(rows(acted, Audit), key=lambda row: row["id"])
    assert (last["action"], last["who"], last["reason"]) == (Action.FORGET, "bob", "second request")


def test_erasure_by_retention_is_recorded_once(filled: Engine) -> None:
    apply_events(filled, [made("user.deleted")])
    apply_all(filled)
    for _ in range(2):
        erase_deleted(filled, timedelta(seconds=-60), lambda: False)
    (row,) = rows(filled, Audit)
    assert (row["who"], row["via"], row["action"], row["object_id"]) == (
        *("ERASE_AFTER_DAYS", Via.CLOCK, Action.FORGET),
        USER,
    )

"""`changes` records who made a change at WorkOS, until the names and the previous attributes are blanked."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner
from flask.testing import FlaskClient
from sqlalchemy import Engine, select, update

from models.database import in_transaction, read_transaction
from models.tables import Change, MirrorState
from models.types import db_now_plus
from tests.support import JSON, accept, apply_all, event_row, made, rows, statuses
from tests.support.actors import by
from tests.support.auto_join import mark_as_filled
from tests.support.hooks import follow_all
from tests.support.mirror import MEMBERSHIP, ORG, USER
from tests.support.ops import TOKEN, sign_in
from tests.support.resync import deliver, read_due, resync
from webhooks.app import create_app
from worker.bootstrap import Services
from worker.cli import main
from worker.kinds.user import USER as USERS
from worker.mirror.erasure import forget
from worker.mirror.read_requests import request_reads
from worker.mirror.retention import Periods, retain
from worker.reports.explain import explain
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

GRACE = "user_grace"
ACTOR: JSON = {"id": GRACE, "name": "Grace Berg", "source": "dashboard"}
OLD_NAME: JSON = {"name": "Acme", "nested": {"list": [1, None, True]}}
COLUMNS = ("actor_id", "actor_name", "actor_source", "previous_attributes")
API = {"Authorization": "Bearer reader-token-0123456789"}


def acted(type: str, at: int = 0, context: Any = None, **data: Any) -> JSON:
    """An event with a context; by default one that Grace caused."""
    return made(type, at, **data) | {
        "context": {"actor": ACTOR, "previous_attributes": OLD_NAME} if context is None else context
    }


def origins(engine: Engine) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Kind and id → the origin of the object's last change."""
    with read_transaction(engine) as tx:
        found = tx.execute(select(Change.__table__).order_by(Change.id)).mappings().all()
    return {(row["kind"], row["object_id"]): tuple(row[name] for name in COLUMNS) for row in found}


ALL = (GRACE, "Grace Berg", "dashboard", OLD_NAME)
BLANK = (GRACE, None, "dashboard", None)


def test_actor_and_previous_attributes_are_recorded_with_the_change(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, acted("organization.created"), made("user.created"))
    apply_all(engine)
    assert origins(engine) == {("organization", ORG): ALL, ("user", USER): (None,) * 4}


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({}, (None, None, None, None)),
        ({"actor": None, "previous_attributes": None}, (None, None, None, None)),
        ({"actor": {}, "previous_attributes": {}}, (None, None, None, {})),
        ({"actor": {"id": "user_1", "source": "new"}}, ("user_1", None, "new", None)),
        ({"actor": {"id": "a/b", "name": 7, "source": ["x"]}, "previous_attributes": [1]}, (None, None, None, None)),
        ({"actor": "ann", "previous_attributes": "x"}, (None, None, None, None)),
        ([], (None, None, None, None)),
        (
            {
                "actor": {"name": "a\0b\ud800"},
                "previous_attributes": {"\0": "\ud800", "n": 10**30, "deep": {"a": 1e999}},
            },
            (None, "a\ufffdb?", None, {"\ufffd": "?", "n": None, "deep": {"a": None}}),
        ),
        ({"ajs_anonymous_id": "tracked", "google_analytics_client_id": "tracked"}, (None, None, None, None)),
    ],
)
def test_absent_stays_absent_and_the_unusable_is_left_out(
    endpoint: FlaskClient, engine: Engine, context: Any, expected: tuple[Any, ...]
) -> None:
    accept(endpoint, acted("organization.created", context=context))
    apply_all(engine)
    assert statuses(engine) == {"done": 1}
    assert origins(engine) == {("organization", ORG): expected}
    assert "tracked" not in str(rows(engine, Change))


def test_deep_previous_attributes_are_cut(endpoint: FlaskClient, engine: Engine) -> None:
    deep: Any = "end"
    for _ in range(150):
        deep = {"a": [deep]}
    accept(endpoint, acted("organization.created", context={"previous_attributes": {"deep": deep, "name": "Acme"}}))
    apply_all(engine)
    previous = origins(engine)["organization", ORG][3]
    assert previous["name"] == "Acme" and "end" not in json.dumps(previous)


def test_change_that_follows_from_another_has_its_actor(engine: Engine) -> None:
    deliver(engine, [made("organization_domain.verified")])
    deliver(engine, [acted("organization.created")])
    found = origins(engine)
    assert found["domain", made("organization_domain.verified")["data"]["id"]] == (
        GRACE,
        "Grace Berg",
        "dashboard",
        None,
    )


@pytest.mark.long
def test_resync_and_confirmed_read_have_no_actor(engine: Engine, sandbox: Sandbox, workos: WorkOSClient) -> None:
    world = sandbox.world
    world.context = {"actor": ACTOR}
    user = world.create_user("ann@acme.example")["id"]
    deliver(engine, world.events)
    assert origins(engine)["user", user][:3] == ALL[:3]
    with world.silently():
        world.update_user(user, first_name="Ann")
    resync(engine, workos)
    assert origins(engine)["user", user] == (None,) * 4
    with world.silently():
        world.users[user] = {**world.users[user], "last_name": "B"}
    in_transaction(engine, lambda tx: request_reads(tx, USERS, [user], "a test", ""))
    assert read_due(engine, workos) == 1 and rows(engine, Change)[-1]["after"]["last_name"] == "B"
    assert origins(engine)["user", user] == (None,) * 4


# Shown


@pytest.fixture
def shown(local: Callable[..., Services]) -> tuple[Services, JSON]:
    """A workspace that Grace renamed, with the event of that."""
    services = local(ops_tokens=f"ann:{TOKEN}", api_tokens=f"product:{API['Authorization'].split()[1]}")
    event = acted("organization.updated", 1)
    deliver(services.engine, [made("organization.created")])
    deliver(services.engine, [event])
    return services, event


def test_feed_and_event_show_the_actor(shown: tuple[Services, JSON]) -> None:
    services, event = shown
    client = create_app(services).test_client()
    feed = client.get("/api/v1/changes", headers=API).get_json()["items"]
    whole = client.get(f"/api/v1/events/{event['id']}", headers=API).get_json()["changes"]
    assert tuple(feed[-1][name] for name in COLUMNS) == tuple(whole[0][name] for name in COLUMNS) == ALL
    assert tuple(feed[0][name] for name in COLUMNS) == (None,) * 4


def test_hook_shows_the_actor(shown: tuple[Services, JSON]) -> None:
    engine = shown[0].engine
    received: list[JSON] = []
    follow_all(engine, {"host": received.append}, attempts=1)
    mark_as_filled(engine)
    deliver(engine, [acted("organization.updated", 2, name="Again")])
    follow_all(engine, {"host": received.append}, attempts=1)
    assert tuple(received[-1]["data"][name] for name in COLUMNS) == ALL


@pytest.mark.long
def test_explain_and_pages_show_the_actor(shown: tuple[Services, JSON], set_environment: Callable[..., None]) -> None:
    services, event = shown
    explained = explain(services.engine, ORG)
    assert explained is not None
    steps = [(step["actor"], step["previous_attributes"]) for step in explained["timeline"]]
    assert steps == [(None, None), ("Grace Berg (user_grace) via dashboard", OLD_NAME)]
    browser = create_app(services).test_client()
    sign_in(browser)
    for path in (f"workspaces/{ORG}?show=changes", f"explain?name={ORG}", f"events/{event['id']}"):
        page = browser.get(f"/ops/{path}").get_data(as_text=True)
        assert "Grace Berg" in page and "dashboard" in page, path
    set_environment(DATABASE_URL=services.engine.url.render_as_string(hide_password=False))
    assert "Grace Berg (user_grace) via dashboard" in CliRunner().invoke(main, ["explain", ORG]).stdout


# Blanked


@pytest.fixture
def story(engine: Engine) -> Engine:
    """Changes by Grace of a workspace, of Ada, and of Ada's membership and invitation; then Ada is deleted."""
    other: JSON = {"id": "user_other", "email": "other@acme.example"}
    deliver(
        engine,
        [
            made("user.created", id=GRACE, email="grace@acme.example"),
            acted("organization.created"),
            acted("user.created"),
            acted("user.created", **other),
            acted("organization_membership.updated"),
            acted("invitation.created", email=made("user.created")["data"]["email"]),
            acted("user.deleted", 9),
        ],
    )
    assert [key for key, found in origins(engine).items() if found != ALL] == [("user", GRACE)]
    return engine


def with_names(engine: Engine) -> set[str]:
    """The kinds and ids of objects with changes that have an actor's name or previous attributes."""
    found = [row for row in rows(engine, Change) if row["actor_name"] or row["previous_attributes"] is not None]
    return {f"{row['kind']} {row['object_id']}" for row in found}


def test_erasing_the_objects_person_blanks_names_in_their_changes(story: Engine) -> None:
    forget(story, USER, by("cleo"))
    assert with_names(story) == {f"organization {ORG}", "user user_other"}
    of_events = [row for row in rows(story, Change) if row["object_id"] == MEMBERSHIP and row["cause"] == "event"]
    assert {tuple(row[name] for name in COLUMNS) for row in of_events} == {BLANK}


def test_erasing_the_actor_blanks_names_in_what_they_did(story: Engine) -> None:
    deliver(story, [made("user.deleted", 9, id=GRACE)])
    forget(story, GRACE, by("cleo"))
    assert with_names(story) == set() and "Grace" not in str(rows(story, Change))
    assert origins(story)["organization", ORG] == BLANK


def test_later_changes_of_erased_people_have_no_names(story: Engine) -> None:
    deliver(story, [made("user.deleted", 9, id=GRACE)])
    for user in (USER, GRACE):
        forget(story, user, by("cleo"))
    someone = {"actor": ACTOR | {"id": "user_other", "name": "Other"}, "previous_attributes": OLD_NAME}
    deliver(
        story,
        [
            acted("organization.updated", 20),
            acted("organization_membership.updated", 20, someone, status="inactive"),
            acted("invitation.revoked", 20, someone),
        ],
    )
    assert with_names(story) == set()
    assert origins(story)["organization", ORG] == BLANK
    assert origins(story)["membership", MEMBERSHIP] == ("user_other", None, "dashboard", None)


def test_the_payload_of_an_event_by_an_erased_actor_is_not_kept(engine: Engine) -> None:
    deliver(engine, [made("user.created", id=GRACE), made("user.deleted", 1, id=GRACE)])
    forget(engine, GRACE, by("cleo"))
    event = acted("organization.created")
    deliver(engine, [event])
    assert event_row(engine, event["id"])["body"] is None


def test_retention_blanks_names_after_erase_after_days(story: Engine) -> None:
    assert retain(story, Periods())["actors"] == 0
    assert with_names(story)
    ids = sorted(row["id"] for row in rows(story, Change))
    old = update(Change).where(Change.id.in_(ids[:-2])).values(at=db_now_plus(-31 * 86_400.0))
    in_transaction(story, lambda tx: tx.execute(old))
    assert retain(story, Periods())["actors"] == len(ids) - 2
    left = [row["id"] for row in rows(story, Change) if row["actor_name"]]
    assert left and set(left) <= set(ids[-2:])
    assert {row["actor_id"] for row in rows(story, Change)} == {None, GRACE}
    assert rows(story, MirrorState)[0]["actors_blanked_to"] == ids[-3]
    in_transaction(story, lambda tx: tx.execute(update(Change).values(at=db_now_plus(-31 * 86_400.0))))
    retain(story, Periods())
    assert with_names(story) == set() and len(rows(story, Change)) >= len(ids)

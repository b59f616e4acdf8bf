"""Access at an earlier time: in the API, at the command line and on the page of a workspace."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, update

from models.database import in_transaction, write_transaction
from models.tables import Change, Event, LateVersion, MirrorState, Tail
from models.types import db_now_plus
from models.views import workspace_members
from tests.support import JSON, NOON, accept, apply_all, made, minute, rows
from tests.support.actors import by
from tests.support.cli import report, run
from tests.support.mirror import MEMBERSHIP, ORG, USER, grant, take
from tests.support.ops import TOKEN as OPERATOR
from tests.support.ops import sign_in
from tests.support.past import members_at
from worker.bootstrap import Services
from worker.mirror.erasure import forget
from worker.mirror.retention import Periods, retain
from worker.mirror.role_map import adopt
from worker.reports.access import ACTIVE

TOKEN = "reader-token-0123456789"
DASHBOARD = {"actor": {"id": "user_boss", "name": "Bea", "source": "dashboard"}}
DAY = timedelta(days=1)


@pytest.fixture
def services(make_services: Callable[..., Services]) -> Services:
    return make_services(api_tokens=f"product:{TOKEN}", ops_tokens=f"ann:{OPERATOR}")


@pytest.fixture
def engine(services: Services) -> Engine:
    return services.engine


@pytest.fixture
def lived(endpoint: FlaskClient, engine: Engine) -> FlaskClient:
    """A client of an installation whose USER became a member four days ago, an admin two days ago, and now left."""
    promoted = made("organization_membership.updated", 5, event_id="event_promoted", role={"slug": "admin"})
    grant(endpoint, engine)
    age(engine, 4 * DAY)
    take(endpoint, engine, promoted | {"context": DASHBOARD})
    age(engine, 2 * DAY)
    take(endpoint, engine, made("organization_membership.deleted", 9, event_id="event_left"))
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(backfilled_at=db_now_plus(-5 * 86_400))))
    return endpoint


def age(engine: Engine, by: timedelta) -> None:
    """Make what happened in the last hour older."""
    then, lately = db_now_plus(-by.total_seconds()), db_now_plus(-3600)
    of_events = update(Event).where(Event.received_at > lately).values(received_at=then, processed_at=then)
    with write_transaction(engine) as tx:
        tx.execute(update(Change).where(Change.at > lately).values(at=then))
        tx.execute(of_events)


def ago(days: float) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat()


def ask(endpoint: FlaskClient, status: int = 200, **query: Any) -> Any:
    asked = {"organization_id": ORG} | query
    answer = endpoint.get("/api/v1/members", query_string=asked, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == status, answer.get_data(as_text=True)
    return answer.get_json()


@pytest.mark.long
def test_members_at_a_time_with_role_cause_and_actor(lived: FlaskClient, engine: Engine) -> None:
    [first] = ask(lived, at=ago(3))["items"]
    [then] = ask(lived, at=ago(1))["items"]
    assert (first["role"], then["role"], then["email"], then["membership_id"]) == (
        *("member", "admin", "ada.hopper@acme.example"),
        MEMBERSHIP,
    )
    assert (then["cause"], then["cause_id"], then["changed_at"]) == (
        "event",
        "event_promoted",
        rows(engine, Change)[-2]["at"].isoformat().replace("+00:00", "Z"),
    )
    assert [then[f"actor_{part}"] for part in ("id", "name", "source")] == ["user_boss", "Bea", "dashboard"]
    assert first["cause_id"].startswith("event_made") and first["actor_id"] is None
    assert ask(lived, at=ago(4.5))["items"] == ask(lived)["items"] == ask(lived, at=ago(0))["items"] == []
    assert len(ask(lived, at=ago(1), user_id=USER, limit=1)["items"]) == 1
    assert ask(lived, at=ago(1), user_id="user_other")["items"] == []
    assert len(ask(lived, at=ago(1), email="Ada.Hopper@ACME.example")["items"]) == 1
    assert ask(lived, at=ago(1), email="someone@acme.example")["items"] == []
    assert ask(lived, at=ago(1), after=MEMBERSHIP)["items"] == []


def test_times_that_have_no_answer(lived: FlaskClient, engine: Engine) -> None:
    assert "in the future" in ask(lived, 400, at=ago(-1))["error"]
    assert "needs organization_id, user_id or email" in ask(lived, 400, at=ago(1), organization_id=[])["error"]
    assert "timezone" in ask(lived, 400, at="2026-01-01T00:00:00")["error"]
    assert "is not a time" in ask(lived, 400, at="1767225600")["error"]
    filled_at = rows(engine, MirrorState)[0]["backfilled_at"]
    assert filled_at.isoformat().replace("+00:00", "Z") in ask(lived, 410, at=ago(6))["error"]
    in_transaction(engine, lambda tx: tx.execute(update(MirrorState).values(backfilled_at=None)))
    assert "not filled yet" in ask(lived, 410, at=ago(1))["error"]


def test_times_whose_changes_are_pruned(lived: FlaskClient, engine: Engine) -> None:
    retain(engine, Periods(changes=3 * DAY))
    dropped_at = rows(engine, MirrorState)[0]["changes_dropped_at"].isoformat().replace("+00:00", "Z")
    assert f"the earliest time is {dropped_at}" in ask(lived, 410, at=ago(4.5))["error"]
    [member] = ask(lived, at=ago(3))["items"]
    assert (member["role"], member["cause"], member["changed_at"]) == ("member", None, None)
    retain(engine, Periods(changes=timedelta(0)))
    ask(lived, 410, at=ago(3))


STEPS = (
    made("organization_membership.updated", 10, status="inactive"),
    made("organization_membership.updated", 11, role={"slug": "admin"}),
    made("role.updated", 12, slug="admin", resource_type_slug="workspace"),
    made("role.updated", 13, slug="admin"),
    made("organization_membership.created", 14, id="om_new", status="active", created_at=minute(14)),
    made("organization_membership.deleted", 15, id="om_new"),
    made("user.updated", 16, email="new@acme.example"),
    made("user.deleted", 17),
    made("organization.deleted", 18),
)
"""Each changes who has access in the workspace, or how."""


@pytest.mark.long
def test_the_rule_of_the_view_holds_in_the_past(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine)
    past: dict[int, list[JSON]] = {}
    for event in STEPS:
        past[max(row["id"] for row in rows(engine, Change))] = rows(engine, workspace_members)
        take(endpoint, engine, event)
    assert [[(row["membership_id"], row["role"]) for row in members] for members in past.values()] == [
        [(MEMBERSHIP, "member")],
        [],
        [(MEMBERSHIP, "admin")],
        [(MEMBERSHIP, "member")],
        [(MEMBERSHIP, "admin")],
        [("om_new", "member")],
        *[[(MEMBERSHIP, "admin")]] * 2,
        [],
    ]
    assert {change_id: members_at(engine, change_id) for change_id in past} == past


def test_the_role_map_of_the_time_counts(endpoint: FlaskClient, engine: Engine) -> None:
    roles = {"admin": "admin", "member": "member"}
    adopt(engine, roles | {"owner": "admin"})
    grant(endpoint, engine, role={"slug": "owner"})
    before, last = members_at(engine, 10**6), rows(engine, Change)[-1]["id"]
    adopt(engine, roles)
    assert [row["role"] for row in (*before, *members_at(engine, 10**6))] == ["admin", "member"]
    assert members_at(engine, last) == before


def test_erased_people_have_no_address_in_the_past(lived: FlaskClient, engine: Engine) -> None:
    take(lived, engine, made("user.deleted", 30))
    forget(engine, USER, by("ann"))
    [then] = ask(lived, at=ago(1))["items"]
    assert (then["user_id"], then["email"], then["role"]) == (USER, None, "admin")


def test_changes_of_one_transaction_have_one_time(endpoint: FlaskClient, engine: Engine) -> None:
    grant(endpoint, engine)
    assert len({row["at"] for row in rows(engine, Change)}) == 1


@pytest.fixture
def command(lived: FlaskClient, engine: Engine, set_environment: Callable[..., None]) -> None:
    set_environment(DATABASE_URL=engine.url.render_as_string(hide_password=False))


@pytest.mark.usefixtures("command")
def test_commands_at_a_time() -> None:
    then = report("members", ORG, "--at", "1d")
    assert (then["name"], [(row["role"], row["cause_id"]) for row in then["members"]]) == (
        *("Acme Rockets", [("admin", "event_promoted")]),
    )
    assert "Bea (user_boss) via dashboard" in run("members", ORG, "--at", "1d").stdout
    assert report("members", ORG)["members"] == []
    assert "the mirror had no workspace" in run("members", ORG, "--at", "108h", exit_code=1).stderr
    assert "the earliest time is" in run("members", ORG, "--at", "6d", exit_code=2).stderr
    assert "in the future" in run("members", ORG, "--at", "2999-01-01", exit_code=2).stderr


@pytest.mark.long
@pytest.mark.usefixtures("command")
def test_explain_at_a_time() -> None:
    now, then, before = (report("explain", USER, *at) for at in ((), ("--at", "1d"), ("--at", "3d")))
    assert [(row["access"], row["role"], row["role_cause"]) for row in (*then["access"], *before["access"])] == [
        (True, "admin", "event event_promoted"),
        (True, "member", before["access"][0]["cause"]),
    ]
    assert then["access"][0]["role_actor"] == "Bea (user_boss) via dashboard"
    assert (now["access"][0]["access"], now["access"][0]["cause"]) == (False, "event event_left")
    assert [then["timeline"][-1]["by"], now["timeline"][-1]["by"]] == ["event_promoted", "event_left"]
    assert report("explain", MEMBERSHIP, "--at", "1d")["objects"][0]["role"] == "admin"
    run("explain", USER, "--at", "6d", exit_code=2)


def test_page_at_a_time(lived: FlaskClient) -> None:
    sign_in(lived)
    page = lived.get(f"/ops/workspaces/{ORG}?at={ago(1)[:19]}")
    text = page.get_data(as_text=True)
    assert page.status_code == 200 and "ada.hopper@acme.example" in text and "Bea" in text
    assert "ada.hopper" not in lived.get(f"/ops/workspaces/{ORG}?at=").get_data(as_text=True).split("Invitations")[0]
    for at, status in (("soon", 400), ("2999-01-01", 400), ("2001-01-01", 410), (ago(4.5)[:19], 404)):
        assert lived.get(f"/ops/workspaces/{ORG}?at={at}").status_code == status, at


# As WorkOS had it


@pytest.fixture
def late(endpoint: FlaskClient, engine: Engine) -> FlaskClient:
    """A client of an installation whose USER became a member at minute 0, an admin at 3, and a member again at 6.

    The event of minute 3 arrived after that of minute 6.
    """
    promoted = made("organization_membership.updated", 3, event_id="event_promoted", role={"slug": "admin"})
    grant(endpoint, engine)
    take(endpoint, engine, made("organization_membership.updated", 6), promoted | {"context": DASHBOARD})
    with write_transaction(engine) as tx:
        tx.execute(update(MirrorState).values(backfilled_at=NOON))
        tx.execute(update(Tail).values(complete_to=NOON + timedelta(minutes=10)))
    return endpoint


@pytest.mark.long
def test_members_as_workos_had_them(late: FlaskClient, engine: Engine) -> None:
    def then(at: int, **query: Any) -> Any:
        return ask(late, at=minute(at), as_workos=True, **query)["items"]

    assert [(row["role"], row["approximate"]) for at in (1, 4, 7) for row in then(at)] == [
        ("member", False),
        ("admin", False),
        ("member", False),
    ]
    [admin] = then(4, email="Ada.Hopper@ACME.example", limit=1)
    assert (admin["changed_at"], admin["cause_id"]) == (minute(3).replace(".000", ""), "event_promoted")
    assert [admin[f"actor_{part}"] for part in ("id", "name", "source")] == ["user_boss", None, "dashboard"]
    assert then(4, after=MEMBERSHIP) == then(4, workspace_external_id="other") == []
    [unknown] = then(20)
    assert unknown["approximate"] and unknown["changed_after"] == minute(10).replace(".000", "")
    assert "as_workos needs at" in ask(late, 400, as_workos=True)["error"]
    upgraded = update(MirrorState).values(late_versions_since=NOON + timedelta(minutes=2))
    in_transaction(engine, lambda tx: tx.execute(upgraded))
    assert "before the upgrade" in ask(late, 410, at=minute(1), as_workos=True)["error"]
    assert "the earliest time" in ask(late, 410, at=minute(-1), as_workos=True)["error"]


def test_command_and_page_as_workos(late: FlaskClient, engine: Engine, set_environment: Callable[..., None]) -> None:
    set_environment(DATABASE_URL=engine.url.render_as_string(hide_password=False))
    then = report("members", ORG, "--at", minute(4), "--as-workos")
    assert (then["name"], [row["role"] for row in then["members"]]) == ("Acme Rockets", ["admin"])
    assert "needs --at" in run("members", ORG, "--as-workos", exit_code=2).stderr
    sign_in(late)
    page = late.get(f"/ops/workspaces/{ORG}?at={minute(4)[:19]}&as=workos").get_data(as_text=True)
    assert "as WorkOS had it" in page and "user_boss" in page


@pytest.mark.long
def test_explain_as_workos(late: FlaskClient, engine: Engine, set_environment: Callable[..., None]) -> None:
    take(late, engine, made("organization_membership.deleted", 8, event_id="event_left"))
    set_environment(DATABASE_URL=engine.url.render_as_string(hide_password=False))
    then, later = (report("explain", USER, "--at", minute(at), "--as-workos") for at in (4, 9))
    names = ("access", "role", "since", "cause", "actor", "approximate", "why")
    assert [[row[name] for name in names] for row in (*then["access"], *later["access"])] == [
        [True, "admin", f"{minute(3)[:-5]}+00:00", "event event_promoted", "user_boss via dashboard", False, ACTIVE],
        [
            False,
            None,
            f"{minute(8)[:-5]}+00:00",
            "event event_left",
            None,
            False,
            "the membership was deleted in WorkOS",
        ],
    ]
    assert [then["timeline"][-1]["by"], later["timeline"][-1]["by"]] == ["event_promoted", "event_left"]
    assert report("explain", MEMBERSHIP, "--at", minute(4), "--as-workos")["objects"][0]["role"] == "admin"
    assert report("explain", USER, "--at", minute(20), "--as-workos")["access"][0]["approximate"] is True
    assert "needs --at" in run("explain", USER, "--as-workos", exit_code=2).stderr
    upgraded = update(MirrorState).values(late_versions_since=NOON + timedelta(minutes=2))
    in_transaction(engine, lambda tx: tx.execute(upgraded))
    assert "upgrade" in run("explain", ORG, "--at", minute(1), "--as-workos", exit_code=2).stderr


# Seats


@pytest.mark.usefixtures("command")
def test_seats_at_a_time() -> None:
    columns = ("organization_id", "workspace_name", "seats")
    now, then = (report("seats", *at) for at in ((), ("--at", "1d")))
    assert [[row[name] for name in columns] for row in (*now, *then)] == [
        [ORG, "Acme Rockets", 0],
        [ORG, "Acme Rockets", 1],
    ]
    header, line = run("seats", "--csv", "--at", "1d").stdout.splitlines()
    assert header == '"organization_id","workspace_name","stripe_customer_id","external_id","seats"'
    assert line.startswith(f'"{ORG}","Acme Rockets",') and line.endswith(',"1"')
    assert report("seats", "--at", "108h") == []


def test_late_versions_of_a_batch_end_when_the_next_one_began(endpoint: FlaskClient, engine: Engine) -> None:
    def apply(**versions: tuple[int, ...]) -> None:
        """Apply, in one batch, an event of each person for each of these minutes."""
        for person, minutes in versions.items():
            accept(endpoint, *(made("user.updated", at, id=person, email=f"v{at}@acme.example") for at in minutes))
        apply_all(engine)

    apply(user_1=(8,), user_2=(9,))
    apply(user_1=(4,))
    apply(user_1=(2, 6), user_2=(3,))
    ends = {(row["object_id"], row["workos_at"]): row["workos_until"] for row in rows(engine, LateVersion)}
    wanted = {("user_1", 2): 4, ("user_1", 4): 8, ("user_1", 6): 8, ("user_2", 3): 9}
    assert ends == {
        (person, NOON + timedelta(minutes=at)): NOON + timedelta(minutes=until)
        for (person, at), until in wanted.items()
    }

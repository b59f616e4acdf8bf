"""`workos-sync review`: who has access, what changed since the previous review, and the hash that is recorded."""

import csv
import hashlib
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine, func, select, update

from models.database import write_transaction
from models.tables import Action, Audit, Change, MirrorState, Run, Tail
from models.types import db_now_plus
from tests.support import made, rows
from tests.support.actors import by
from tests.support.cli import report, run
from tests.support.mirror import ORG, take
from worker.repair.resync.resync import start

DASHBOARD = {"actor": {"id": "user_boss", "name": "Bea", "source": "dashboard"}}


def member(number: int, **data: Any) -> list[Any]:
    return [
        made("user.created", id=f"user_{number}", email=f"person{number}@acme.example", **data),
        made("organization_membership.updated", id=f"om_{number}", user_id=f"user_{number}"),
    ]


@pytest.fixture
def mirror(endpoint: FlaskClient, engine: Engine, set_environment: Callable[..., None]) -> Callable[..., None]:
    """A function that applies events. The mirror was filled two days ago, and has three members since yesterday."""
    take(endpoint, engine, made("organization.created", name="=Acme <Rockets>"), *member(1), *member(2), *member(3))
    with write_transaction(engine) as tx:
        filled = db_now_plus(-2 * 86_400)
        tx.execute(update(MirrorState).values(backfilled_at=filled, last_resync_at=filled))
        tx.execute(update(Change).values(at=db_now_plus(-86_400)))
    set_environment(DATABASE_URL=engine.url.render_as_string(hide_password=False))
    return lambda *events: take(endpoint, engine, *events)


def changes() -> list[Any]:
    return [
        made("organization_membership.updated", 5, id="om_1", user_id="user_1", role={"slug": "admin"})
        | {"context": DASHBOARD},
        made("user.deleted", 5, event_id="event_left", id="user_2"),
        *member(4),
    ]


def read(*options: str) -> Any:
    """Make a review; returns its JSON."""
    return json.loads(run("review", "--format", "json", *options).stdout)


def changed(review: Any) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in ("user_id", "role", "previous_role", "change")) for row in review["members"]]


def test_a_review_lists_access_and_the_changes_since_the_previous_review(mirror: Callable[..., None]) -> None:
    first = read()
    assert first["since"] is None
    assert changed(first) == [(f"user_{number}", "member", None, None) for number in (1, 2, 3)]
    mirror(*changes())
    second = read()
    assert second["since"] == first["as_of"]
    assert changed(second) == [
        ("user_1", "admin", "member", "changed"),
        ("user_2", None, "member", "lost"),
        ("user_3", "member", "member", "none"),
        ("user_4", "member", None, "gained"),
    ]
    promoted, left, *_ = second["members"]
    assert promoted["actor"] == "Bea (user_boss) via dashboard" and promoted["changed_at"] > first["as_of"]
    assert left["cause"] == "event event_left"
    assert changed(read()) == [(id, role, role, "none") for id, role, _, _ in changed(second) if role]


def test_members_since_a_time_are_those_whose_access_changed(mirror: Callable[..., None]) -> None:
    mirror(*changes())
    found = {row["user_id"]: row for row in report("members", "--since", "1h")}
    assert {id: row["change"] for id, row in found.items()} == {
        "user_1": "changed",
        "user_2": "lost",
        "user_4": "gained",
    }
    assert (found["user_2"]["previous_role"], found["user_2"]["cause"]) == ("member", "event event_left")
    assert report("members", ORG, "--since", "1h") == list(found.values())
    assert "nobody gained, lost or changed access" in run("members", "--since", "0s").stderr
    assert "Missing argument 'ORGANIZATION'" in run("members", exit_code=2).stderr


def test_scope_and_times_of_a_review(mirror: Callable[..., None]) -> None:
    mirror(*changes(), made("organization.created", id="org_other"))
    review = read("--organization", ORG, "--at", "1h", "--since", "30h")
    assert changed(review) == [(f"user_{number}", "member", None, "gained") for number in (1, 2, 3)]
    assert read("--organization", "org_other")["members"] == []
    assert read("--organization", ORG)["since"] == review["as_of"]
    assert read()["since"] is None
    assert "must be before" in run("review", "--at", "2h", "--since", "1h", exit_code=2).stderr
    assert "the earliest time is" in run("review", "--since", "9d", exit_code=2).stderr
    assert "no workspace 'org_gone'" in run("review", "--organization", "org_gone", exit_code=1).stderr


def test_a_review_needs_only_the_first_resync(mirror: Callable[..., None], engine: Engine) -> None:
    with write_transaction(engine) as tx:
        tx.execute(update(MirrorState).values(backfilled_at=None))
    assert len(read()["members"]) == 3
    assert "not filled yet" in run("review", "--at", "1h", exit_code=2).stderr
    with write_transaction(engine) as tx:
        tx.execute(update(MirrorState).values(last_resync_at=None))
    assert "until the first resync has finished" in run("review", exit_code=2).stderr


def test_a_change_that_was_being_committed_is_in_the_next_review(mirror: Callable[..., None], engine: Engine) -> None:
    first = read()
    mirror(made("organization_membership.deleted", 5, id="om_1", user_id="user_1"))
    with write_transaction(engine) as tx:  # it took its time before the review, and committed after it
        newest = select(func.max(Change.id)).scalar_subquery()
        tx.execute(update(Change).where(Change.id == newest).values(at=db_now_plus(-3_600)))
    second = read()
    assert second["since"] == first["as_of"] and changed(second)[0] == ("user_1", None, "member", "lost")


def test_a_review_of_an_earlier_time_is_not_the_previous_one(mirror: Callable[..., None], engine: Engine) -> None:
    with write_transaction(engine) as tx:
        tx.execute(update(Tail).values(complete_to=db_now_plus(-20)))
    first = read()
    assert first["complete_to"] is not None
    assert read("--at", "20h")["complete_to"] is None
    assert read()["since"] == first["as_of"]
    with write_transaction(engine) as tx:
        tx.execute(update(MirrorState).values(changes_dropped_at=db_now_plus(0)))
    assert "give --since" in run("review", exit_code=2).stderr


def test_the_last_line_has_the_hash_of_the_others_and_so_has_the_audit(
    mirror: Callable[..., None], engine: Engine
) -> None:
    mirror(*changes())
    for form in ("csv", "json", "html"):
        *lines, last = run("review", "--format", form, "--since", "20h").stdout_bytes.splitlines(keepends=True)
        digest = hashlib.sha256(b"".join(lines)).hexdigest()
        assert digest in last.decode()
        row = rows(engine, Audit)[-1]
        assert (row["action"], row["details"]["sha256"], row["via"]) == (Action.REVIEW, digest, "cli")
        assert "person1@" not in str(row)


@pytest.mark.long
def test_a_review_names_the_resync_that_verified_the_mirror(mirror: Callable[..., None], engine: Engine) -> None:
    run_id = start(engine, by("test"))
    assert read()["verified_by_resync"] is None
    with write_transaction(engine) as tx:
        tx.execute(update(Run).values(status="done", finished_at=db_now_plus(-60)))
    assert read()["verified_by_resync"] == run_id
    assert read("--at", "1h")["verified_by_resync"] is None
    with write_transaction(engine) as tx:
        tx.execute(update(Run).values(total=3))  # it could not list some organizations
    assert read()["verified_by_resync"] is None


def test_csv_has_no_formulas(mirror: Callable[..., None]) -> None:
    mirror(*member(5, first_name="Eve"), made("user.updated", 9, id="user_5", email="@SUM(A1)@acme.example"))
    other = made("organization.created", id="org_other", name="Other\r=1+1")
    mirror(other, made("organization_membership.updated", id="om_9", user_id="user_5", organization_id="org_other"))
    table = list(csv.reader(io.StringIO(run("review").stdout_bytes.decode(), newline="")))
    assert {len(row) for row in table[:6]} == {len(table[0])}
    assert table[0][:3] == ["organization_id", "workspace_name", "email"]
    assert {row[1] for row in table[1:5]} == {"'=Acme <Rockets>"}
    assert not [cell for row in table for cell in row if cell.startswith(("=", "+", "-", "@"))]


class Page(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href", "onload"}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.usefixtures("mirror")
def test_the_page_is_one_file_without_scripts() -> None:
    page = Page(run("review", "--format", "html").stdout)
    assert not page.tags & {"script", "link", "img", "iframe", "rockets"}
    assert f"=Acme <Rockets> ({ORG})" in page.texts and "person1@acme.example" in page.texts

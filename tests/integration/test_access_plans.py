"""Access checks stay fast as the mirror grows: each call is one query that reads each table by an index."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, select, text

from models.database import open_engine, session
from models.views import member_permissions, seats, workspace_members, workspaces
from tests.benchmarks.access import calls_of, fill, past_calls, plan, plans
from tests.benchmarks.history import fill_inbox, settle
from tests.support import read
from worker.inbox.selection import Selection
from worker.repair.catch_up import count_missed_webhooks
from worker.reports.listings import Place, events_page, failures, members_page, missing_members_page, people_page
from worker.reports.search import search

MEMBERS = 20_000
MATERIALIZED = {"membership", "newer"}
"""Names in a plan of SQLite about the past: the memberships in question, from an index."""
SMALL = {"CONSTANT", "mirror", "tail", "w", "auto_join_domains", "auto_join_blocks"}
"""Names in a plan that are no large table: no table, tables of one row, and SQLite's names for a view's few rows."""


def scanned(lines: list[str]) -> set[str]:
    """The tables that a plan scans from end to end. The items of a JSON value are a virtual table on SQLite."""
    found = (re.search(r"Seq Scan on (\w+)|^SCAN (\w+)\b(?! VIRTUAL)", line.strip()) for line in lines)
    return {match[1] or match[2] for match in found if match} - SMALL


@pytest.fixture
def filled(engine: Engine) -> Engine:
    fill(engine, MEMBERS)
    return engine


@pytest.mark.long
def test_each_access_call_is_one_query_without_a_table_scan(filled: Engine) -> None:
    for name, call in calls_of(MEMBERS).items():
        lines = plan(filled, lambda opened: call(opened, MEMBERS // 2))  # noqa: B023 - called now
        assert any("index" in line.lower() for line in lines), (name, lines)
        assert scanned(lines) == set(), (name, lines)


def test_objects_are_found_by_the_products_keys_without_a_table_scan(filled: Engine) -> None:
    member = workspace_members.c
    queries = {
        "org_107": select(workspaces.c.organization_id).where(workspaces.c.external_id == "key_107"),
        "user_1075": select(member.user_id).where(
            member.workspace_external_id == "key_107", member.user_external_id == "key_1075"
        ),
        10: select(seats.c.seats).where(seats.c.organization_id == "org_107"),
    }
    for found, query in queries.items():
        lines = plan(filled, lambda opened: opened.execute(query).all())  # noqa: B023 - called now
        assert scanned(lines) == set(), (found, lines)
        with session(filled) as opened:
            assert opened.execute(query).scalars().all() == [found]


@pytest.mark.parametrize("question", ["members of a workspace", "workspaces of a person"])
def test_answers_about_the_past_find_the_changes_by_index(engine: Engine, question: str) -> None:
    fill(engine, MEMBERS // 4, days=4)
    call = past_calls(engine, 4)[question]
    lines = [line for found in plans(engine, lambda: call(MEMBERS // 5)) for line in found]
    assert scanned(lines) - MATERIALIZED == set(), lines
    for index in ("ix_changes_object_id_id", "ix_changes_at_id"):
        assert any(index in line for line in lines), (index, lines)
    # A scan of all changes after an id.
    assert not [line for line in lines if "Index Cond: (id > " in line], lines


def test_permissions_of_one_member_are_found_without_a_table_scan(filled: Engine) -> None:
    view = member_permissions.c
    one = select(view.permission).where(view.organization_id == "org_750", view.user_id == "user_7500")
    lines = plan(filled, lambda opened: opened.execute(one).all())
    assert scanned(lines) & {"membership", "memberships", "users", "person", "organizations", "workspace"} == set(), (
        lines
    )
    with session(filled) as opened:
        assert opened.execute(one).scalars().all() == ["permission_0"]


@pytest.mark.long
def test_lists_of_people_are_read_in_their_order_by_index(filled: Engine) -> None:
    later = Place(after="user_500")
    pages = [partial(people_page, filled, place) for place in (Place(), later)]
    if filled.dialect.name == "postgresql":  # SQLite sorts the members
        pages += [partial(members_page, filled, "org_0", place) for place in (Place(), later)]
    for page in pages:
        found = plans(filled, page)
        assert any("ix_users_by_address" in line for lines in found for line in lines), (page, found)
    missing = partial(missing_members_page, filled, Place(after="user_500"))
    for lines in plans(filled, missing):
        assert "users" not in scanned(lines) or any("ix_users_email_domain_id" in line for line in lines), lines
        if filled.dialect.name == "sqlite":  # it would sort all candidates after the cursor
            assert not re.search(r"USE TEMP B-TREE FOR (DISTINCT|ORDER BY)", "\n".join(lines)), lines


def test_pages_and_searches_are_planned_for_their_values(make_database: Callable[[str], str]) -> None:
    """Not for a workspace of average size, and for no text in particular, once PostgreSQL knows the statement."""
    engine = open_engine(make_database("postgresql"))
    fill(engine, 1_000)
    for _ in range(12):
        members_page(engine, "org_0", Place(limit=1))
        search(engine, "d5.example")
    with engine.connect() as tx:
        prepared = "SELECT statement, generic_plans FROM pg_prepared_statements WHERE statement LIKE :about"
        for about in ("%workspace_members%", "%FROM users%LIKE%"):
            known = tx.execute(text(prepared), {"about": about}).all()
            assert known and not [row.statement for row in known if row.generic_plans], (about, known)
    engine.dispose()


def test_late_webhooks_are_counted_by_an_index_alone(engine: Engine) -> None:
    fill_inbox(engine, 2_000, 200)
    settle(engine)
    found = [line for lines in plans(engine, partial(read, engine, count_missed_webhooks, 600.0)) for line in lines]
    assert any(re.search(r"(Only Scan using|COVERING INDEX) ix_events_late_times", line) for line in found), found


@pytest.mark.long
def test_pages_of_events_find_their_rows_by_index(engine: Engine) -> None:
    fill(engine, 1_000)
    fill_inbox(engine, 20_000, 1_000)
    selections = [
        *(Selection(), Selection(status="failed"), Selection(status="dismissed"), Selection(type="role.created")),
        *(Selection(organization_id="org_50"), Selection(object_id="user_9"), Selection(fingerprint="f0")),
        Selection(since=datetime.now(UTC) - timedelta(minutes=5)),
    ]
    calls: list[Callable[[], object]] = [partial(events_page, engine, each, Place()) for each in selections]
    calls += [partial(events_page, engine, Selection(), Place(after="event_past_9000")), partial(failures, engine)]
    for call in calls:
        for lines in plans(engine, call):
            # A scan without a filter, or along an index, ends after enough rows.
            ends = not any("Filter" in line or line == "SCAN events" for line in lines)
            assert "events" not in scanned(lines) or ends, (call, lines)

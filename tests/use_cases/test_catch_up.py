"""Catch-up: events whose webhook was lost are read from the events API, once."""

import json
from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from flask.testing import FlaskClient
from sqlalchemy import Engine

from models.database import in_transaction
from models.tables import Change, Event, EventStatus, Run, RunStatus, Task
from tests.support import JSON, accept, apply_all, differences, read, rows
from tests.support.catch_up import EVENTS, age_api_events, begin, due, settings, signed_up, stored, users
from tests.support.repair import mirror
from tests.support.resync import Clock, settings_of
from worker.cli import main
from worker.errors import WorkOSError
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import LAG, catch_up, count_missed_webhooks, update_complete_to
from worker.repair.work import Repair
from worker.runs import create
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient

PATIENCE = 600.0


@pytest.mark.long
def test_lost_webhook_is_caught_up_and_counted_as_gap(
    engine: Engine, endpoint: FlaskClient, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(engine, workos)
    sandbox.play(700, seed=1)
    random = Random(1)
    events = sandbox.world.events
    deleted = ("organization.deleted", "user.deleted", "organization_membership.deleted")
    last = [next(e for e in reversed(events) if e["event"] == type) for type in deleted]
    lost = [event for event in events if event in last or random.random() < 0.05]
    accept(endpoint, *(event for event in events if event not in lost))
    apply_all(engine)
    assert differences(engine, sandbox.world.truth()) != []

    clock.advance(seconds=90)
    report = catch_up(engine, workos)
    assert report == (len(events), len(lost), clock.now - LAG, False)
    apply_all(engine)
    assert differences(engine, sandbox.world.truth()) == []
    missing = {row["id"] for row in rows(engine, Event) if row["webhook_at"] is None}
    assert missing == {event["id"] for event in lost}

    age_api_events(engine, PATIENCE - 5)
    assert read(engine, count_missed_webhooks, PATIENCE) == (0, 0)
    age_api_events(engine, PATIENCE + 1)
    assert read(engine, count_missed_webhooks, PATIENCE) == (len(lost), 0)


def test_slow_webhook_is_late_but_not_a_gap(
    engine: Engine, endpoint: FlaskClient, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    slow, late, lost = signed_up(engine, workos, sandbox, clock, 3)
    assert catch_up(engine, workos).new == 3
    age_api_events(engine, PATIENCE - 30)
    accept(endpoint, slow)
    age_api_events(engine, PATIENCE + 30)
    accept(endpoint, late)
    assert read(engine, count_missed_webhooks, PATIENCE) == (1, 1)
    apply_all(engine)
    assert differences(engine, sandbox.world.truth()) == []
    assert {row["id"] for row in rows(engine, Event) if row["webhook_at"] is None} == {lost["id"]}


def test_event_read_again_changes_nothing(
    engine: Engine, endpoint: FlaskClient, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(engine, workos)
    events = users(sandbox, clock, 3)
    accept(endpoint, *events[:2])
    clock.advance(seconds=5)
    for _ in range(3):  # within the lag: the window is read each time
        assert catch_up(engine, workos).returned == 3
        apply_all(engine)
    assert sorted(row["deliveries"] for row in rows(engine, Event)) == [1, 2, 2]
    assert len(rows(engine, Change)) == 3
    assert mirror(engine)["cursor"] is None


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda event: event | {"id": None}, {"error": "id: cannot be a key", "type": "user.created"}),
        (lambda event: event | {"id": "\u00e9"}, {"error": "id: cannot be a key", "type": "user.created"}),
        (lambda event: event | {"event": 7}, {"error": "event: cannot be a key"}),
        (lambda _: "nothing", {"error": "body: is not an object", "found": "str"}),
    ],
)
def test_malformed_event_is_reported_and_others_are_stored(
    one_engine: Engine,
    sandbox: Sandbox,
    clock: Clock,
    workos: WorkOSClient,
    logs: list[Any],
    change: Callable[[JSON], Any],
    reported: JSON,
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 3)
    sandbox.faults.invalid_item(EVENTS, item=1, change=change)
    assert catch_up(one_engine, workos).new == 2
    [line] = [line for line in logs if line["event"] == "event_invalid"]
    assert line.items() >= reported.items()
    assert "acme.example" not in str(line)


def test_event_without_usable_time_is_stored(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    events = signed_up(one_engine, workos, sandbox, clock, 3)
    sandbox.faults.invalid_item(EVENTS, item=2, change=lambda event: event | {"created_at": "soon"})
    assert catch_up(one_engine, workos).new == 3
    assert mirror(one_engine)["cursor"] == events[1]["id"]


# Event types that WorkOS does not know


@pytest.mark.long
def test_refused_event_type_is_left_out_and_reported(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, logs: list[Any]
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 1)
    catch_up(one_engine, workos)
    before = mirror(one_engine)
    new = users(sandbox, clock, 150)
    clock.advance(seconds=90)
    sandbox.faults.fail(EVENTS, query="user.updated", status=400, times=None)
    with pytest.raises(WorkOSError, match=r"user\.updated .*A fault injected into the sandbox"):
        catch_up(one_engine, workos)
    assert {event["id"] for event in new} < stored(one_engine)
    assert mirror(one_engine)["inbox_to"] == before["inbox_to"]  # events of that type may be missing
    [line] = [line for line in logs if line["event"] == "event_types_refused"]
    assert line["types"] == ["user.updated"]
    assert "cursor_lost" not in {line["event"] for line in logs}

    sandbox.faults.clear()
    apply_all(one_engine)
    update_complete_to(one_engine)
    catch_up(one_engine, workos)
    assert mirror(one_engine)["inbox_to"] == clock.now - LAG


def test_run_names_refused_event_type(
    one_engine: Engine, sandbox: Sandbox, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    sandbox.faults.fail(EVENTS, query="user.updated", status=400, times=None)
    run_id = in_transaction(one_engine, create, Task.CATCH_UP, "clock")
    assert Repair(one_engine, workos, settings(), bell).work_on(run_id)
    [row] = rows(one_engine, Run)
    assert row["status"] == RunStatus.FAILED
    assert "user.updated" in row["error"] and "A fault injected into the sandbox" in row["error"]


# Late events


@pytest.mark.parametrize("place", ["appended", "inserted"])
def test_late_event_is_stored(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, place: str
) -> None:
    sandbox.knobs.update({"late_events": place})
    begin(one_engine, workos)
    began = clock.now
    users(sandbox, clock, 1)
    late: list[JSON] = []
    for seconds in (300, 600, 900, 1200):
        if seconds == 600:
            clock.now = began + timedelta(seconds=475)
            late = users(sandbox, clock, 1)
            sandbox.knobs.lateness[late[0]["id"]] = 126
            clock.advance(seconds=10)
            users(sandbox, clock, 1)
        clock.now = began + timedelta(seconds=seconds)
        catch_up(one_engine, workos)
        apply_all(one_engine)
        update_complete_to(one_engine)
    assert late[0]["id"] in stored(one_engine)
    assert differences(one_engine, sandbox.world.truth()) == []
    assert mirror(one_engine)["complete_to"] == clock.now - LAG


@pytest.mark.long
def test_late_events_are_searched_every_ten_minutes(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(one_engine, workos)
    starts: list[str] = []

    def note(_method: str, path: str, query: Any) -> None:
        if path == EVENTS and "range_start" in query:
            starts.append(query["range_start"])

    for _ in range(50):
        users(sandbox, clock, 1)
        clock.advance(seconds=100)
        catch_up(one_engine, workos)
        apply_all(one_engine)
        update_complete_to(one_engine)
        sandbox.on_request = note
    assert 8 <= len(starts) <= 9
    assert {row["deliveries"] for row in rows(one_engine, Event)} == {1}


# complete_to


def test_complete_to_waits_for_pending_events(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    signed_up(both_engines, workos, sandbox, clock, 3)
    catch_up(both_engines, workos)
    assert mirror(both_engines)["complete_to"] is None
    at = clock.now - LAG
    clock.advance(seconds=300)
    catch_up(both_engines, workos)  # does not put off what waits
    assert mirror(both_engines)["complete_to"] is None
    apply_all(both_engines)
    catch_up(both_engines, workos)
    assert mirror(both_engines)["complete_to"] in (at, clock.now - LAG)
    catch_up(both_engines, workos)
    assert mirror(both_engines)["complete_to"] == clock.now - LAG


def test_complete_to_waits_for_late_event(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(both_engines, workos)
    users(sandbox, clock, 1)
    late = users(sandbox, clock, 1)
    sandbox.knobs.lateness[late[0]["id"]] = 200
    clock.advance(seconds=90)
    catch_up(both_engines, workos)
    at = clock.now - LAG
    clock.advance(seconds=150)
    catch_up(both_engines, workos)
    due(both_engines, late[0]["id"], 3600)
    apply_all(both_engines)
    assert {row["id"] for row in rows(both_engines, Event) if row["status"] == EventStatus.PENDING} == {late[0]["id"]}
    update_complete_to(both_engines)
    assert mirror(both_engines)["complete_to"] is None
    due(both_engines, late[0]["id"], 0)
    apply_all(both_engines)
    update_complete_to(both_engines)
    assert mirror(both_engines)["complete_to"] == at


def test_complete_to_does_not_wait_for_failed_event(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    [event] = signed_up(one_engine, workos, sandbox, clock, 1)
    event["data"] = {**event["data"], "updated_at": None}
    catch_up(one_engine, workos)
    apply_all(one_engine)
    assert {row["status"] for row in rows(one_engine, Event)} == {EventStatus.FAILED}
    catch_up(one_engine, workos)
    assert mirror(one_engine)["complete_to"] is not None


# The command


@pytest.fixture
def surroundings(set_environment: Callable[..., None], db_url: str, clock: Clock, sandbox: Sandbox) -> None:
    set_environment(DATABASE_URL=db_url, WORKOS_RATE_SHARE="1.0", **settings_of(sandbox))


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["catch-up", *arguments])
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result


@pytest.fixture
def old_events(sandbox: Sandbox, clock: Clock) -> list[JSON]:
    """Events of the last 80 days, one every 10 days; the first 100 at once."""
    made = users(sandbox, clock, 101)
    for _ in range(8):
        clock.advance(days=10)
        made += users(sandbox, clock, 1)
    clock.advance(hours=1)
    return made


@pytest.mark.long
@pytest.mark.usefixtures("surroundings")
def test_catch_up_since_reads_in_thirty_day_ranges(
    engine: Engine, sandbox: Sandbox, clock: Clock, old_events: list[JSON]
) -> None:
    asked: list[tuple[str, str]] = []

    def note(_method: str, path: str, query: Any) -> None:
        if path == EVENTS:
            asked.append((query.get("range_start", ""), query.get("range_end", "")))

    sandbox.on_request = note
    since = f"{clock.now - timedelta(days=80, hours=2):%Y-%m-%dT%H:%M:%SZ}"
    printed = json.loads(run("--since", since, "--json").stdout)
    assert (printed["returned"], printed["new"]) == (109, 109)
    assert stored(engine) == {event["id"] for event in old_events}
    assert len(asked) == 4 and len({start for start, _ in asked if start}) == 3
    assert mirror(engine)["cursor"] is None
    apply_all(engine)
    assert differences(engine, sandbox.world.truth()) == []
    text = run("--since", since).stdout
    assert text.startswith("109 events read, 0 new; all events from 2026-03-01 11:00:00Z to 2026-05-20 ")


@pytest.mark.usefixtures("surroundings", "old_events")
def test_catch_up_without_since_continues(engine: Engine, sandbox: Sandbox, clock: Clock) -> None:
    assert "0 events read" in run().stdout
    users(sandbox, clock, 2)
    clock.advance(minutes=2)
    assert "2 events read, 2 new" in run().stdout
    assert "0 events read" in run().stdout


@pytest.mark.usefixtures("surroundings")
@pytest.mark.parametrize(
    ("since", "said"),
    [
        ("2025-11-30", "resync"),
        ("2026-03-02", "it is 2026-03-01"),
        ("someday", "--since"),
        ("2026-13-01", "--since"),
        ("", "--since"),
    ],
)
def test_unusable_since_exits_2(make_database: Any, since: str, said: str) -> None:
    result = run("--since", since, exit_code=2)
    assert said in result.stderr and result.stdout == ""
    assert len(result.stderr.splitlines()) <= 4

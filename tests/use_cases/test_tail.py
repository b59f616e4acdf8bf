"""The tail of the events API: `complete_to` and its age, which bounded answers rely on."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import pytest
from freezegun import freeze_time
from sqlalchemy import Engine, select, update
from sqlalchemy.event import listen

from models.access import Access
from models.database import in_transaction, open_engine, write_transaction
from models.tables import Event, EventStatus, Refresh, Tail
from models.views import mirror_status, uncertain_access
from tests.support import apply_all, differences, rows
from tests.support.catch_up import EVENTS, begin, due, hide, stored, users
from tests.support.processes import eventually
from tests.support.resync import Clock, resync
from tests.support.tail import TailProcess, ask, filled, following, pass_time, publish_applied, state, tail
from worker.errors import WorkOSError
from worker.kinds.organization import Organization
from worker.queue.doorbell import Doorbell, TailBell
from worker.repair.refresh import Target, request
from worker.sandbox import Sandbox
from worker.workos_api.client import MAX_TRIES, WorkOSClient

HOLD_BACK = timedelta(seconds=15)
TAKEN = timedelta(seconds=2)
"""Upper bound on the time that a call takes in a test."""


def near(time: Any, expected: Any) -> bool:
    """Whether a time is the expected one, less what a call took."""
    return bool(expected - TAKEN <= time <= expected)


@pytest.mark.long
def test_events_whose_webhooks_were_lost_are_applied_and_complete(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(both_engines, workos)
    users(sandbox, clock, 250)
    clock.advance(seconds=20)
    began = time.monotonic()
    assert not tail(both_engines, workos, bell)
    assert bell.queued_jobs() == 1
    apply_all(both_engines)
    publish_applied(both_engines)
    assert differences(both_engines, sandbox.world.truth()) == []
    assert near(state(both_engines)["complete_to"], clock.now - HOLD_BACK)
    [shown] = rows(both_engines, mirror_status)
    assert shown["complete_to"] == state(both_engines)["complete_to"]
    assert 16 <= shown["age_seconds"] < 18 + time.monotonic() - began


def test_age_grows_by_the_database_clock_while_nothing_is_read(
    both_engines: Engine, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(both_engines, workos)
    clock.advance(hours=-3)  # WorkOS's clock is not ours
    assert tail(both_engines, workos, bell)
    pass_time(both_engines, clock, 100)
    assert 116 <= rows(both_engines, mirror_status)[0]["age_seconds"] < 120


def test_complete_to_stops_before_the_oldest_event_that_is_not_applied(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(both_engines, workos)
    _first, second = users(sandbox, clock, 2, seconds=10)
    clock.advance(seconds=30)
    tail(both_engines, workos, bell)
    due(both_engines, second["id"], 3600)
    apply_all(both_engines)
    publish_applied(both_engines)
    made_at = clock.now - timedelta(seconds=40)
    assert second["created_at"].startswith(f"{made_at:%Y-%m-%dT%H:%M:%S}")
    assert state(both_engines)["complete_to"] == made_at - timedelta(milliseconds=1)
    age = state(both_engines)["read_at"] - state(both_engines)["complete_at"]
    assert age == state(both_engines)["read_to"] - state(both_engines)["complete_to"]


def test_replayed_event_does_not_hold_complete_to_back(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 1)
    clock.advance(seconds=30)
    tail(one_engine, workos, bell)
    in_transaction(one_engine, lambda tx: tx.execute(update(Event).values(replays=1)))
    publish_applied(one_engine)
    assert state(one_engine)["complete_to"] == state(one_engine)["read_to"]


@pytest.mark.long
def test_event_that_waits_for_a_lock_counts_as_failed_and_does_not_hold_complete_to_back(
    make_database: Callable[[str], str], sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    url = make_database("postgresql")
    with ExitStack() as at_end:
        engine, impatient = open_engine(url, pool_size=2), open_engine(url, lock_timeout_ms=1)
        at_end.callback(engine.dispose)
        at_end.callback(impatient.dispose)
        begin(engine, workos)
        filled(engine)
        user = sandbox.world.create_user("ann@acme.example")
        organization = sandbox.world.create_organization("Acme")
        sandbox.world.create_membership(organization["id"], user["id"])
        clock.advance(seconds=30)
        tail(engine, workos, bell)
        apply_all(engine)
        sandbox.world.update_organization(organization["id"], name="Other")
        pass_time(engine, clock, 30)
        tail(engine, workos, bell)
        with write_transaction(engine) as tx:
            tx.execute(select(Organization.id).with_for_update())
            apply_all(impatient)
        publish_applied(engine)
        assert state(engine)["complete_to"] == state(engine)["read_to"]
        [event] = [row for row in rows(engine, Event) if row["status"] == EventStatus.PENDING]
        assert event["attempts"] == 0 and "lock timeout" in event["error"]
        assert event["id"] in str(ask(engine, user["id"], organization["id"]))
        due(engine, event["id"], -1)
        apply_all(engine)
        assert isinstance(ask(engine, user["id"], organization["id"]), Access)


@pytest.mark.parametrize("place", ["appended", "inserted"])
def test_event_shown_late_within_the_hold_back_is_read(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell, place: str
) -> None:
    sandbox.knobs.update({"late_events": place})
    begin(one_engine, workos)
    tail(one_engine, workos, bell)
    with closing(TailProcess(one_engine, workos, bell)) as process:
        process.read()  # reads the lag again; the next ones, within a minute, do not
        [late] = users(sandbox, clock, 1, seconds=1)
        sandbox.knobs.lateness[late["id"]] = 14
        users(sandbox, clock, 1)
        pass_time(one_engine, clock, 3)
        process.read()  # shows the second event
        assert len(stored(one_engine)) == 1
        pass_time(one_engine, clock, 12)
        process.read()
    assert late["id"] in stored(one_engine)
    assert state(one_engine)["late_events"] == 0


def test_event_shown_later_is_read_within_a_minute_and_counted(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 2)
    show = hide(sandbox, 0)
    clock.advance(seconds=30)
    tail(one_engine, workos, bell)
    show()
    pass_time(one_engine, clock, 5)
    tail(one_engine, workos, bell)  # a new process reads the lag again
    assert len(stored(one_engine)) == 2
    assert state(one_engine)["late_events"] == 1


def test_read_that_does_not_reach_the_end_completes_nothing(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    tail(one_engine, workos, bell)
    before = state(one_engine)["complete_to"]
    users(sandbox, clock, 150)
    clock.advance(seconds=30)
    sandbox.faults.truncate(EVENTS, 2)
    with pytest.raises(WorkOSError):
        tail(one_engine, workos, bell)
    assert len(stored(one_engine)) == 100
    assert state(one_engine)["complete_to"] == before


@pytest.mark.parametrize("is_first", [True, False])
def test_read_without_the_time_of_workos_completes_nothing(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell, *, is_first: bool
) -> None:
    begin(one_engine, workos)
    if not is_first:
        tail(one_engine, workos, bell)
    before = state(one_engine)["complete_to"]
    sandbox.knobs.update({"dated": False})
    pass_time(one_engine, clock, 5)
    with pytest.raises(WorkOSError, match="Date"):
        tail(one_engine, workos, bell)
    assert state(one_engine)["complete_to"] == before


def test_after_a_lost_cursor_the_tail_reads_from_the_time_it_had_reached(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    with closing(TailProcess(one_engine, workos, bell)) as process:
        process.read()
        process.read()
        in_transaction(one_engine, lambda tx: tx.execute(update(Tail).values(cursor="event_unknown")))
        events = users(sandbox, clock, 3)
        pass_time(one_engine, clock, 5)
        process.read()
    assert stored(one_engine) == {event["id"] for event in events}


@pytest.mark.parametrize("unknown_after", ["error", "beginning"])
def test_events_that_expired_unread_make_everything_uncertain_until_a_full_resync(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell, unknown_after: str
) -> None:
    sandbox.knobs.update({"unknown_after": unknown_after})
    begin(one_engine, workos)
    filled(one_engine)
    tail(one_engine, workos, bell)
    users(sandbox, clock, 1)
    pass_time(one_engine, clock, 100 * 86_400)
    tail(one_engine, workos, bell)
    assert "run: workos-sync resync" in str(ask(one_engine, "user_1", "org_1"))
    resync(one_engine, workos)
    assert isinstance(ask(one_engine, "user_1", "org_1"), Access)


def test_no_event_is_missed_of_a_type_that_was_refused_for_a_while(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    tail(one_engine, workos, bell)
    before = state(one_engine)["read_to"]
    sandbox.faults.fail(EVENTS, query="user.created", status=400, times=None)
    events = users(sandbox, clock, 2)
    calls = 0
    with closing(TailProcess(one_engine, workos, bell)) as process:
        for number in range(1, 4):
            sandbox.world.create_organization(f"Acme {number}")
            pass_time(one_engine, clock, 600)
            calls = workos.calls
            with pytest.raises(WorkOSError, match=r"user\.created"):
                process.read()
            assert len(stored(one_engine)) == number and state(one_engine)["read_to"] == before
        assert workos.calls == calls + 1, "the refused type is remembered, and no event is read twice"
        sandbox.faults.clear()
        with freeze_time(tick=True):  # whose monotonic clock is the epoch's: more than a minute has passed
            process.read()
    assert stored(one_engine) >= {event["id"] for event in events}
    assert state(one_engine)["read_to"] > before


def test_failed_reads_do_not_lengthen_the_interval(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    tail(one_engine, workos, bell)
    sandbox.faults.fail(EVENTS, status=503, times=3 * MAX_TRIES)
    with closing(TailProcess(one_engine, workos, bell, workos_rate_share=0.1)) as process:
        for _ in range(3):  # five seconds allow the calls of each, but not of all
            with pytest.raises(WorkOSError):
                process.read()
        process.read()
        assert state(one_engine)["interval_seconds"] == 5


@pytest.mark.parametrize(("organization_id", "uncertain"), [("org_1", "org_1"), (None, "")])
def test_an_event_without_id_makes_access_to_its_object_uncertain(
    one_engine: Engine,
    sandbox: Sandbox,
    clock: Clock,
    workos: WorkOSClient,
    bell: Doorbell,
    organization_id: str | None,
    uncertain: str,
) -> None:
    begin(one_engine, workos)
    filled(one_engine)
    [event] = users(sandbox, clock, 1)
    event["event"] = "organization_membership.updated"
    event["data"] = {"organization_id": organization_id}
    del event["id"]
    clock.advance(seconds=20)
    assert tail(one_engine, workos, bell) and tail(one_engine, workos, bell)
    assert [(row["organization_id"], row["user_id"]) for row in rows(one_engine, uncertain_access)] == [(uncertain, "")]


def test_interval_lengthens_if_a_tenth_of_the_share_is_not_enough(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    tail(one_engine, workos, bell)
    with closing(TailProcess(one_engine, workos, bell, workos_rate_share=0.02)) as process:
        process.read()  # the newest events, and then the lag
        assert state(one_engine)["interval_seconds"] == 5  # TAIL_SECONDS
        process.read()  # since the last one two calls, at one in five seconds
        assert state(one_engine)["interval_seconds"] == pytest.approx(10)
        process.read()
        assert state(one_engine)["interval_seconds"] == 5


def test_settings_of_the_process_that_tails_are_in_force(
    one_engine: Engine, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    tail(one_engine, workos, bell, hold_back_seconds=40.0, tail_seconds=2.0)
    assert rows(one_engine, mirror_status)[0]["smallest_bound_seconds"] == 47
    assert near(state(one_engine)["read_to"], clock.now - timedelta(seconds=40))


def test_a_stop_ends_a_read_after_its_page(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 350)
    clock.advance(seconds=20)
    stop = threading.Event()
    sandbox.on_request = lambda method, path, *_: stop.set() if path == "/events" else None
    with closing(TailProcess(one_engine, workos, bell)) as process:
        process.follow(stop)
    assert len(stored(one_engine)) == 100 and state(one_engine)["read_to"] is None


@pytest.mark.long
def test_refreshes_do_not_publish_more_often(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    """While publishing takes long, because many events wait, the database is left to the drain."""
    begin(one_engine, workos)
    users(sandbox, clock, 1)
    clock.advance(seconds=30)
    published: list[str] = []

    def take_long(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("SELECT min("):
            published.append(statement)
            threading.Event().wait(0.3)

    listen(one_engine, "before_cursor_execute", take_long)
    with following(one_engine, workos, bell, tail_seconds=60.0):
        eventually(lambda: len(published) == 2, 5)
        for _ in range(3):
            in_transaction(one_engine, request, Target("user", "user_1"), "product")
            TailBell(bell.queue.connection).ring()
            eventually(lambda: not rows(one_engine, Refresh), 5)
    assert len(published) == 2


def test_a_failed_read_is_the_reason_until_one_succeeds(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, bell: Doorbell
) -> None:
    begin(one_engine, workos)
    sandbox.faults.fail(EVENTS, status=503, times=None)
    with following(one_engine, workos, bell, tail_seconds=0.05):
        eventually(lambda: "503" in str(state(one_engine)["error"]), 20)
        assert state(one_engine)["complete_to"] is None
        sandbox.faults.clear()
        eventually(lambda: state(one_engine)["complete_to"], 20)
        assert state(one_engine)["error"] is None

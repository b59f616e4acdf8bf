"""The cursor of catch-up never passes an event that has not been stored."""

from datetime import timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Change, MirrorState, Run, Task
from tests.support import apply_all, differences, rows
from tests.support.catch_up import EVENTS, begin, covered, hide, settings, signed_up, stored, users
from tests.support.repair import mirror
from tests.support.resync import Clock, deliver
from worker.errors import WorkOSError
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import catch_up, update_complete_to
from worker.repair.work import Repair
from worker.runs import create
from worker.sandbox import Sandbox
from worker.workos_api.client import WorkOSClient


def test_cursor_does_not_pass_delayed_event(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(one_engine, workos)
    events = users(sandbox, clock, 5, seconds=1)
    show = hide(sandbox, 2)
    for _ in range(3):
        clock.advance(seconds=10)
        assert catch_up(one_engine, workos).returned == 4
    show()
    clock.advance(seconds=10)
    assert catch_up(one_engine, workos).new == 1
    assert stored(one_engine) == {event["id"] for event in events}
    clock.advance(seconds=60)
    catch_up(one_engine, workos)
    assert mirror(one_engine)["cursor"] == events[-1]["id"]
    assert catch_up(one_engine, workos).returned == 0


@pytest.mark.long
def test_cursor_does_not_pass_delayed_event_during_slow_read(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 250)
    show = hide(sandbox, 50)
    clock.advance(seconds=30)

    def slowly(_method: str, path: str, _query: Any) -> None:
        if path == EVENTS:
            clock.advance(seconds=45)

    sandbox.on_request = slowly
    assert catch_up(one_engine, workos).returned == 249
    sandbox.on_request = None
    show()
    assert covered(one_engine, sandbox)
    assert mirror(one_engine)["inbox_to"] < sandbox.world.now() - timedelta(seconds=150)
    assert catch_up(one_engine, workos).new == 1
    assert covered(one_engine, sandbox)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_random_delays_below_the_lag_lose_nothing(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, seed: int
) -> None:
    begin(one_engine, workos)
    random = Random(seed)
    for _ in range(25):
        users(sandbox, clock, random.randrange(8), seconds=random.uniform(0, 3))
        clock.advance(seconds=random.uniform(0, 30))
        sandbox.knobs.hold_back = random.uniform(0, 55)
        catch_up(one_engine, workos)
        assert covered(one_engine, sandbox)
    clock.advance(seconds=60)
    catch_up(one_engine, workos)
    assert stored(one_engine) == {event["id"] for event in sandbox.world.events}


def test_webhooks_do_not_move_the_cursor(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 3)
    catch_up(one_engine, workos)
    before = mirror(one_engine)
    lost, *brought = users(sandbox, clock, 4)
    clock.advance(seconds=90)
    deliver(one_engine, brought)
    after = mirror(one_engine)
    assert (after["cursor"], after["cursor_at"]) == (before["cursor"], before["cursor_at"])
    assert catch_up(one_engine, workos).new == 1
    assert lost["id"] in stored(one_engine)


@pytest.mark.long
def test_page_and_cursor_are_committed_together(
    both_engines: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    signed_up(both_engines, workos, sandbox, clock, 350, seconds=0.1)
    seen: list[tuple[int, bool]] = []
    sandbox.on_request = lambda *_: seen.append((len(stored(both_engines)), covered(both_engines, sandbox)))
    catch_up(both_engines, workos)
    assert seen == [(0, True), (0, True), (100, True), (200, True), (300, True)]
    assert mirror(both_engines)["cursor"] == sandbox.world.events[-1]["id"]


@pytest.mark.long
def test_next_catch_up_resumes_after_failed_page(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 450)
    sandbox.faults.fail(EVENTS, page=3, status=400)
    with pytest.raises(WorkOSError):
        catch_up(one_engine, workos)
    assert len(stored(one_engine)) == 200 and covered(one_engine, sandbox)
    assert mirror(one_engine)["inbox_to"] is None
    calls = sandbox.calls["GET", EVENTS]
    assert catch_up(one_engine, workos).new == 250
    rest, again = 3, 5  # from the beginning too: events may have appeared before the cursor
    assert sandbox.calls["GET", EVENTS] - calls == rest + again
    apply_all(one_engine)
    assert differences(one_engine, sandbox.world.truth()) == []


@pytest.mark.long
@pytest.mark.parametrize(("answer", "returned", "lost"), [("error", 5, ["event_0UNKNOWN"]), ("beginning", 155, [])])
def test_expired_cursor_loses_and_repeats_nothing(
    one_engine: Engine,
    sandbox: Sandbox,
    clock: Clock,
    workos: WorkOSClient,
    answer: Any,
    returned: int,
    lost: list[str],
    logs: list[Any],
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 150, seconds=1)
    catch_up(one_engine, workos)
    apply_all(one_engine)
    update_complete_to(one_engine)
    clock.advance(days=1)
    catch_up(one_engine, workos)
    new = users(sandbox, clock, 5, seconds=1)
    clock.advance(seconds=90)
    changes = len(rows(one_engine, Change))
    in_transaction(one_engine, lambda tx: tx.execute(update(MirrorState).values(cursor="event_0UNKNOWN")))
    sandbox.knobs.unknown_after = answer

    report = catch_up(one_engine, workos)
    assert (report.returned, report.new, report.missed) == (returned, 5, False)
    assert [line["cursor"] for line in logs if line["event"] == "cursor_lost"] == lost
    apply_all(one_engine)
    assert differences(one_engine, sandbox.world.truth()) == []
    assert len(rows(one_engine, Change)) == changes + 5
    assert mirror(one_engine)["cursor"] == new[-1]["id"]


@pytest.mark.long
def test_quiet_year_loses_nothing(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, logs: list[Any]
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 2)
    for _ in range(13):
        clock.advance(days=30)
        apply_all(one_engine)
        assert not catch_up(one_engine, workos).missed
    users(sandbox, clock, 2)
    clock.advance(seconds=90)
    report = catch_up(one_engine, workos)
    assert (report.new, report.missed) == (2, False)
    assert not [line for line in logs if line["event"] == "events_missed"]


def test_forty_days_of_downtime_lose_nothing(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(one_engine, workos)
    for days in (1, 34, 5):
        clock.advance(days=days)
        users(sandbox, clock, 2)
    clock.advance(seconds=90)
    assert catch_up(one_engine, workos).new == 6
    assert mirror(one_engine)["cursor"] == sandbox.world.events[-1]["id"]


@pytest.mark.long
@pytest.mark.parametrize("answer", ["error", "beginning"])
def test_hundred_days_of_downtime_are_reported_and_resynced(
    one_engine: Engine,
    sandbox: Sandbox,
    clock: Clock,
    workos: WorkOSClient,
    bell: Doorbell,
    logs: list[Any],
    answer: Any,
) -> None:
    sandbox.knobs.unknown_after = answer

    def work() -> None:
        for _ in range(3):
            Repair(one_engine, workos, settings(), bell).work_on_all()
            apply_all(one_engine)

    work()
    assert {run["requested_by"] for run in rows(one_engine, Run)} == {"first start"}
    users(sandbox, clock, 3)
    clock.advance(days=100)
    users(sandbox, clock, 2)
    clock.advance(seconds=90)
    report = catch_up(one_engine, workos)
    assert (report.new, report.missed) == (2, True)
    [line] = [line for line in logs if line["event"] == "events_missed"]
    assert "resync" in line["remedy"]

    clock.advance(days=100)
    in_transaction(one_engine, create, Task.CATCH_UP, "clock")
    work()
    assert differences(one_engine, sandbox.world.truth()) == []
    assert "missed events" in {run["requested_by"] for run in rows(one_engine, Run)}


@pytest.mark.long
def test_missed_events_are_reported_after_a_failure(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient
) -> None:
    begin(one_engine, workos)
    users(sandbox, clock, 1)
    clock.advance(days=100)
    users(sandbox, clock, 150)
    clock.advance(seconds=90)
    sandbox.faults.fail(EVENTS, page=2, status=400)
    with pytest.raises(WorkOSError):
        catch_up(one_engine, workos)
    assert mirror(one_engine)["cursor"] is not None
    assert catch_up(one_engine, workos).missed


@pytest.mark.parametrize("metadata", [None, {"after": 7}, {"after": "event_0UNKNOWN"}])
def test_page_with_unusable_cursor_is_stored(
    one_engine: Engine, sandbox: Sandbox, clock: Clock, workos: WorkOSClient, metadata: Any
) -> None:
    signed_up(one_engine, workos, sandbox, clock, 3)
    in_transaction(one_engine, lambda tx: tx.execute(update(MirrorState).values(cursor="event_0UNKNOWN")))
    sandbox.knobs.unknown_after = "beginning"
    sandbox.faults.spoil(EVENTS, list_metadata=metadata)
    with pytest.raises(WorkOSError, match="cursor"):
        catch_up(one_engine, workos)
    assert len(stored(one_engine)) == 3
    assert mirror(one_engine)["inbox_to"] is None

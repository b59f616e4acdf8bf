"""Replay: failed events are decided again after a fix, and correct rows stay unchanged."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, update

from models.database import in_transaction
from models.tables import Event, RunStatus
from models.types import db_now_plus
from tests.support import JSON, apply_all, made, mirrored, read, rows, statuses
from tests.support.actors import by
from tests.support.resync import changes
from tests.support.stories import store
from worker.errors import AlreadyReplayedError, BusyError, LeaseLostError, OperatorError, fingerprint
from worker.inbox import dismissal
from worker.inbox.selection import Selection
from worker.inbox.store import backlog
from worker.kinds import READERS
from worker.kinds.user import User
from worker.mirror.role_map import adopt
from worker.queue.doorbell import Doorbell
from worker.repair import replay as replays
from worker.reports import listings
from worker.runs import lease

FAST = 1e6


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A release that fails on `user.updated` and `user.created` in two ways; calling it deploys the fix."""
    whole = READERS["user.updated"]

    def fails(error: type[Exception], text: str) -> Any:
        def read(_kind: Any, data: Any, _envelope: Any, _roles: Any) -> Any:
            raise error(text.format(data.id("id")))

        return whole[0], read

    monkeypatch.setitem(READERS, "user.updated", fails(KeyError, "no such field in {}"))
    monkeypatch.setitem(READERS, "user.created", fails(ValueError, "{} cannot be"))

    def fix() -> None:
        for type in ("user.updated", "user.created"):
            monkeypatch.setitem(READERS, type, whole)

    return fix


def events(number: int) -> list[JSON]:
    types = ("user.created", "user.updated")
    return [made(types[n % 2], event_id=f"event_{n:04}", id=f"user_{n:04}") for n in range(number)]


def fail_all(engine: Engine, events: list[JSON]) -> None:
    """Deliver events and let them use up their attempts."""
    store(engine, events)
    while statuses(engine).get("pending"):
        in_transaction(engine, lambda tx: tx.execute(update(Event).values(due_at=db_now_plus(-1), attempts=9)))
        apply_all(engine)
    assert statuses(engine) == {"failed": len(events)}


def run(engine: Engine, bell: Doorbell, selection: Selection, **given: Any) -> str:
    run_id = replays.start(engine, selection, by("ann", "after the fix"), **given)
    with lease(engine, run_id) as held:
        assert held is not None
        assert replays.replay(engine, held, bell, FAST)
    return run_id


def test_errors_with_same_cause_share_fingerprint() -> None:
    one, other = ValueError("user_01HXYZABCDEF has 3 of 'x'"), ValueError("user_01HXYZABCDEG has 14 of 'yy'")
    assert fingerprint(one) == fingerprint(other) != fingerprint(KeyError("user_01HXYZABCDEF has 3 of 'x'"))
    assert fingerprint(ValueError("")) != fingerprint(ValueError("another"))


@pytest.mark.long
@pytest.mark.timeout(240)
def test_replay_by_fingerprint_applies_each_event_once(
    both_engines: Engine, bell: Doorbell, bug: Callable[[], None]
) -> None:
    # On SQLite, each half waits for the endpoint's writes.
    number = 300 if both_engines.dialect.name == "postgresql" else 160
    fail_all(both_engines, events(number))
    kinds = listings.failures(both_engines)
    assert [kind["events"] for kind in kinds] == [number // 2] * 2
    assert {kind["type"] for kind in kinds} == {"user.created", "user.updated"}
    first, second = (Selection(fingerprint=kind["fingerprint"]) for kind in kinds)
    bug()
    assert replays.plan(both_engines, first) == (number // 2, 0, {"applied": number // 2}, number // 2)
    assert statuses(both_engines) == {"failed": number} and changes(both_engines) == 0

    run_id = replays.start(both_engines, first, by("ann", "fixed in 1.2"))
    asked = iter(range(100))
    with lease(both_engines, run_id) as held:  # stopped half-way
        assert held is not None and not replays.replay(both_engines, held, bell, FAST, lambda: next(asked) >= 1)
    half = listings.run(both_engines, run_id)
    assert half is not None and (half["done"], half["total"], half["status"]) == (50, number // 2, "running")
    assert bell.queued_jobs() == 1
    apply_all(both_engines)
    with lease(both_engines, run_id) as held:
        assert held is not None and replays.replay(both_engines, held, bell, FAST)
    apply_all(both_engines)
    assert replays.results(both_engines, run_id) == {"applied": number // 2}
    assert statuses(both_engines) == {"done": number // 2, "failed": number // 2}
    run(both_engines, bell, second)
    apply_all(both_engines)
    assert statuses(both_engines) == {"done": number} and changes(both_engines) == number
    assert {row["replays"] for row in rows(both_engines, Event)} == {1}
    assert listings.failures(both_engines) == []


def test_replayed_events_wait_since_the_replay(one_engine: Engine, bell: Doorbell) -> None:
    store(one_engine, [made("user.created")])
    apply_all(one_engine)
    long_ago = update(Event).values(received_at=db_now_plus(-1000), due_at=db_now_plus(-1000))
    in_transaction(one_engine, lambda tx: tx.execute(long_ago))
    run_id = replays.start(one_engine, Selection(ids=(rows(one_engine, Event)[0]["id"],)), by("ann"))
    with lease(one_engine, run_id) as held:
        assert held is not None and replays.replay(one_engine, held, bell, FAST)
    waiting = read(one_engine, backlog)
    assert waiting.pending == 1 and waiting.oldest_seconds < 60


@pytest.mark.parametrize("per_second", [0.5, 3.0])
def test_a_slow_replay_never_waits_for_long(
    one_engine: Engine, bell: Doorbell, per_second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops only between two waits."""
    store(one_engine, events(7))
    apply_all(one_engine)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    run_id = replays.start(one_engine, Selection(), by("ann"))
    with lease(one_engine, run_id) as held:
        assert held is not None and replays.replay(one_engine, held, bell, per_second)
    assert sum(slept) == pytest.approx(7 / per_second) and max(slept) <= max(1.0, 1 / per_second)


def test_replayed_event_has_fresh_attempts(one_engine: Engine, bell: Doorbell, bug: Callable[[], None]) -> None:
    fail_all(one_engine, events(4))
    for _ in range(2):
        run(one_engine, bell, Selection(failed=True))
        apply_all(one_engine)
        assert {row["attempts"] for row in rows(one_engine, Event)} == {1}
        in_transaction(one_engine, lambda tx: tx.execute(update(Event).values(status="failed")))
    bug()
    run(one_engine, bell, Selection(failed=True))
    apply_all(one_engine)
    assert statuses(one_engine) == {"done": 4}
    with pytest.raises(OperatorError, match="no event matches"):
        run(one_engine, bell, Selection(failed=True))


def test_replaying_everything_changes_nothing(both_engines: Engine, bell: Doorbell) -> None:
    types = ("user.created", "organization.created", "organization_membership.created", "organization.deleted")
    store(both_engines, [made(type, at) for at, type in enumerate(types)])
    apply_all(both_engines)
    before, noted = mirrored(both_engines), changes(both_engines)
    whole = Selection(since=datetime.now(UTC) - timedelta(hours=1))
    assert replays.plan(both_engines, whole).changes == 0
    run_id = run(both_engines, bell, whole)
    apply_all(both_engines)
    assert (mirrored(both_engines), changes(both_engines)) == (before, noted)
    with pytest.raises(AlreadyReplayedError, match=f"run {run_id} of ann replayed the same selection"):
        run(both_engines, bell, whole)
    assert run(both_engines, bell, whole, again=True) != run_id
    apply_all(both_engines)
    store(both_engines, [made("user.updated", 9, event_id="event_new")])
    apply_all(both_engines)
    run(both_engines, bell, whole)  # which it had not seen


def test_replay_after_new_role_map_keeps_deleted_membership(one_engine: Engine, bell: Doorbell) -> None:
    editor = {"slug": "editor"}
    events = [
        made(f"organization_membership.{what}", 1, role=editor, roles=[editor]) for what in ("created", "deleted")
    ]
    store(one_engine, events)
    apply_all(one_engine)
    adopt(one_engine, {"member": "member", "admin": "admin", "editor": "admin"})
    before, noted = mirrored(one_engine), changes(one_engine)
    whole = Selection(since=datetime(2020, 1, 1, tzinfo=UTC))
    assert replays.plan(one_engine, whole).outcomes == {"tombstoned": 1, "unchanged": 1}
    run(one_engine, bell, whole)
    apply_all(one_engine)
    assert (mirrored(one_engine), changes(one_engine)) == (before, noted)


def test_repeated_replay_is_refused_despite_pruned_payloads(one_engine: Engine, bell: Doorbell) -> None:
    store(one_engine, [made("user.created"), made("user.updated", 1, event_id="event_gone"), made("dsync.activated")])
    apply_all(one_engine)
    in_transaction(one_engine, lambda tx: tx.execute(update(Event).where(Event.id == "event_gone").values(body=None)))
    whole = Selection(since=datetime(2020, 1, 1, tzinfo=UTC))
    assert replays.plan(one_engine, whole) == (2, 1, {"stale": 1}, 0)
    run(one_engine, bell, whole)
    apply_all(one_engine)
    with pytest.raises(AlreadyReplayedError):
        run(one_engine, bell, whole)


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Selection(ids=("event_0001", "event_0003")), {1, 3}),
        (Selection(ids=("event_0001", "event_0003"), failed=True), set()),
        (Selection(type="user.created"), {0, 2}),
        (Selection(organization_id="org_1"), set()),
        (Selection(until=datetime(2020, 1, 1, tzinfo=UTC)), set()),
        (Selection(since=datetime(2020, 1, 1, tzinfo=UTC), type="user.updated"), {1, 3}),
    ],
)
def test_replay_touches_only_selection(
    one_engine: Engine, bell: Doorbell, selection: Selection, chosen: set[int]
) -> None:
    store(one_engine, events(4))
    apply_all(one_engine)
    assert Selection.from_json(selection.as_json()) == selection
    assert replays.plan(one_engine, selection)[:2] == (len(chosen), 0)
    if not chosen:
        with pytest.raises(OperatorError, match="no event matches"):
            run(one_engine, bell, selection)
        return
    run(one_engine, bell, selection)
    assert {row["id"] for row in rows(one_engine, Event) if row["replays"]} == {f"event_{n:04}" for n in chosen}


def test_replay_skips_pruned_payloads(one_engine: Engine, bell: Doorbell) -> None:
    store(one_engine, events(4))
    apply_all(one_engine)
    in_transaction(one_engine, lambda tx: tx.execute(update(Event).where(Event.id < "event_0003").values(body=None)))
    assert replays.plan(one_engine, Selection(type="user.created")) == (2, 2, {}, 0)
    ended = listings.run(one_engine, run(one_engine, bell, Selection(type="user.updated")))
    assert ended is not None and (ended["done"], ended["skipped"]) == (1, 1)
    assert statuses(one_engine) == {"done": 3, "pending": 1}


def test_replay_is_exclusive_and_can_be_cancelled(one_engine: Engine, bell: Doorbell) -> None:
    store(one_engine, events(120))
    apply_all(one_engine)
    run_id = replays.start(one_engine, Selection(type="user.created"), by("ann"))
    with pytest.raises(BusyError, match=run_id):
        replays.start(one_engine, Selection(type="user.updated"), by("bob"))
    with lease(one_engine, run_id) as held:
        assert held is not None
        asked = iter(range(100))
        replays.replay(one_engine, held, bell, FAST, lambda: next(asked) >= 1)
        assert replays.cancel(one_engine, run_id, by("bob")) and not replays.cancel(one_engine, run_id, by("bob"))
        with pytest.raises(LeaseLostError):
            replays.replay(one_engine, held, bell, FAST)
    ended = listings.run(one_engine, run_id)
    assert ended is not None
    assert (ended["status"], ended["done"], ended["error"]) == (RunStatus.CANCELLED, 50, "cancelled by bob")
    apply_all(one_engine)
    assert statuses(one_engine) == {"done": 120}


def test_dismissed_event_records_operator_and_reason(
    one_engine: Engine, bell: Doorbell, bug: Callable[[], None]
) -> None:
    fail_all(one_engine, events(3))
    assert dismissal.dismiss(one_engine, ["event_0000", "event_9999"], by("ann", "a test")) == 1
    [dismissed] = [row for row in rows(one_engine, Event) if row["status"] == "dismissed"]
    assert (dismissed["dismissed_by"], dismissed["dismissed_why"]) == ("ann", "a test")
    bug()
    run(one_engine, bell, Selection(failed=True))
    apply_all(one_engine)
    assert statuses(one_engine) == {"done": 2, "dismissed": 1}
    run(one_engine, bell, Selection(ids=("event_0000",)))
    apply_all(one_engine)
    assert statuses(one_engine) == {"done": 3} and len(rows(one_engine, User)) == 3

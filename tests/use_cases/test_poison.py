"""An event that cannot be applied is isolated, and fails alone."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from threading import Thread
from typing import Any

import pytest
from flask.testing import FlaskClient
from rq.timeouts import JobTimeoutException
from sqlalchemy import Connection, Engine, insert, select, text, update

from models.database import open_engine, read_transaction, write_transaction
from models.tables import Batch, Event, EventStatus
from models.types import db_now, db_now_plus
from tests.support import JSON, accept, event_row, made, rows, statuses
from worker.inbox.drain import ORPHAN_AFTER_SECONDS, Drain, DrainLimits
from worker.kinds import READERS
from worker.kinds.user import User

BAD = "user_bad"

Poison = Callable[[Exception], None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """A bug: applying `user.updated` of one user raises."""

    def put(error: Exception) -> None:
        kind, reader = READERS["user.updated"]

        def read(kind: Any, data: Any, envelope: Any, roles: Any) -> Any:
            if data.id("id") == BAD:
                raise error
            return reader(kind, data, envelope, roles)

        monkeypatch.setitem(READERS, "user.updated", (kind, read))

    return put


@pytest.fixture(params=["new process", "running process"])
def drain(request: pytest.FixtureRequest, engine: Engine) -> Drain:
    """A drain that has not emptied the inbox yet, and records all its batches; or one that has."""
    made = Drain(engine, DrainLimits(first_backoff=600))
    if request.param == "running process":
        assert made()
    return made


def users(count: int, bad: int | None = None) -> list[JSON]:
    return [made("user.updated", id=BAD if n == bad else f"user_{n}") for n in range(count)]


def applied(engine: Engine) -> set[str]:
    return {row["id"] for row in rows(engine, User)}


def attempts(engine: Engine) -> dict[str, int]:
    """Event id → attempts, for events with at least one."""
    return {row["id"]: row["attempts"] for row in rows(engine, Event) if row["attempts"]}


def make_due(engine: Engine) -> None:
    with write_transaction(engine) as tx:
        tx.execute(update(Event).values(due_at=db_now_plus(-1.0)))


@pytest.mark.parametrize("bad", [0, 3, 7])
def test_poison_event_is_isolated_by_bisection(
    endpoint: FlaskClient, engine: Engine, drain: Drain, poison: Poison, logs: list[Any], bad: int
) -> None:
    poison(ValueError("a bug"))
    events = users(8, bad)
    accept(endpoint, *events)
    assert drain()
    assert applied(engine) == {event["data"]["id"] for event in events} - {BAD}
    assert attempts(engine) == {events[bad]["id"]: 1}
    assert [line["events"] for line in logs if line["event"] == "batch_failed"] == [8, 4, 2, 1]
    assert rows(engine, Batch) == []


def test_two_poison_events_are_isolated(endpoint: FlaskClient, engine: Engine, drain: Drain, poison: Poison) -> None:
    poison(ValueError("a bug"))
    events = users(8, 2) + users(3, 1)
    accept(endpoint, *events)
    assert drain()
    assert attempts(engine) == {event["id"]: 1 for event in events if event["data"]["id"] == BAD}
    assert statuses(engine) == {"pending": 2, "done": 9}


def test_retry_delay_doubles_until_failure(endpoint: FlaskClient, engine: Engine, poison: Poison) -> None:
    poison(ValueError("a bug"))
    [event] = users(1, 0)
    accept(endpoint, event)
    waits = []
    for attempt in (1, 2, 3):
        make_due(engine)
        with read_transaction(engine) as tx:
            before = tx.execute(select(db_now())).scalar_one()
        assert Drain(engine, DrainLimits(max_attempts=4, first_backoff=600))()
        row = event_row(engine, event["id"])
        assert (row["status"], row["attempts"], row["error"]) == ("pending", attempt, "ValueError: a bug")
        waits.append(row["due_at"] - before)
    for wait, seconds in zip(waits, (600, 1200, 2400), strict=True):
        assert timedelta(seconds=seconds - 1) <= wait < timedelta(seconds=seconds + 60)
    make_due(engine)
    assert Drain(engine, DrainLimits(max_attempts=4, first_backoff=600))()
    row = event_row(engine, event["id"])
    assert (row["status"], row["attempts"]) == ("failed", 4)
    assert row["processed_at"] is not None
    assert "worker/inbox/drain.py" in row["traceback"] and "a bug" not in row["traceback"]


def test_success_clears_the_error(
    endpoint: FlaskClient, engine: Engine, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = READERS["user.updated"]
    poison(ValueError("a bug"))
    [event] = users(1, 0)
    accept(endpoint, event)
    assert Drain(engine, DrainLimits(first_backoff=600))()
    assert event_row(engine, event["id"])["traceback"]
    monkeypatch.setitem(READERS, "user.updated", sound)
    make_due(engine)
    assert Drain(engine, DrainLimits())()
    row = event_row(engine, event["id"])
    assert [row[name] for name in ("status", "error", "fingerprint", "traceback")] == ["done", None, None, None]


def test_event_is_not_retried_before_due(endpoint: FlaskClient, engine: Engine, drain: Drain, poison: Poison) -> None:
    poison(ValueError("a bug"))
    accept(endpoint, *users(1, 0))
    for _ in range(3):
        assert drain()
    assert list(attempts(engine).values()) == [1]


def test_temporary_failure_is_applied_and_error_cleared(
    endpoint: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, poison: Poison
) -> None:
    handler = READERS["user.updated"]
    poison(ValueError("a bug"))
    [event] = users(1, 0)
    accept(endpoint, event)
    assert Drain(engine, DrainLimits())()
    monkeypatch.setitem(READERS, "user.updated", handler)
    make_due(engine)
    assert Drain(engine, DrainLimits())()
    row = event_row(engine, event["id"])
    assert (row["status"], row["outcome"], row["error"]) == ("done", "applied", None)


def test_payload_error_fails_without_bisection(
    endpoint: FlaskClient, engine: Engine, drain: Drain, logs: list[Any]
) -> None:
    events = users(4)
    del events[2]["data"]["updated_at"]
    accept(endpoint, *events)
    assert drain()
    assert statuses(engine) == {"done": 3, "failed": 1}
    assert event_row(engine, events[2]["id"])["error"] == "data.updated_at: is missing"
    assert [line["events"] for line in logs if line["event"] == "batch_applied"] == [3]
    assert [line for line in logs if line["event"] == "batch_failed"] == []


def test_job_timeout_requeues_batch(endpoint: FlaskClient, engine: Engine, drain: Drain, poison: Poison) -> None:
    poison(JobTimeoutException("too long"))
    accept(endpoint, *users(4, 1))
    with pytest.raises(JobTimeoutException):
        drain()
    assert [len(row["event_ids"]) for row in rows(engine, Batch)] == [2, 2]
    assert attempts(engine) == {}


def orphan(engine: Engine, events: list[JSON], age: float) -> None:
    """Leave the batch of a drain that was killed `age` seconds ago."""
    with write_transaction(engine) as tx:
        ids = [event["id"] for event in events]
        tx.execute(insert(Batch).values(id="orphan", event_ids=ids, started_at=db_now_plus(-age)))


def test_batch_of_killed_drain_is_halved_without_blame(endpoint: FlaskClient, engine: Engine, logs: list[Any]) -> None:
    events = users(8)
    accept(endpoint, *events)
    orphan(engine, events, 60)
    assert Drain(engine, DrainLimits())()
    assert [line["events"] for line in logs if line["event"] == "batch_applied"] == [4, 4]
    assert (statuses(engine), attempts(engine), rows(engine, Batch)) == ({"done": 8}, {}, [])


def test_event_alone_in_killed_drain_spends_attempt(endpoint: FlaskClient, engine: Engine) -> None:
    events = users(2)
    accept(endpoint, *events)
    orphan(engine, events[:1], 60)
    assert Drain(engine, DrainLimits(first_backoff=600))()
    assert attempts(engine) == {events[0]["id"]: 1}
    row = event_row(engine, events[0]["id"])
    assert row["status"] == "pending" and "process ended" in row["error"]
    assert applied(engine) == {"user_1"}


def test_event_that_kills_every_drain_fails(endpoint: FlaskClient, engine: Engine) -> None:
    [event] = users(1)
    accept(endpoint, event)
    for _ in range(3):
        make_due(engine)
        orphan(engine, [event], 60)
        assert Drain(engine, DrainLimits(max_attempts=3, first_backoff=600))()
    assert event_row(engine, event["id"])["status"] == "failed"


def test_fresh_batch_is_left_to_its_drain(endpoint: FlaskClient, engine: Engine) -> None:
    events = users(3)
    accept(endpoint, *events)
    orphan(engine, events[:2], ORPHAN_AFTER_SECONDS - 5)
    assert Drain(engine, DrainLimits())()
    assert applied(engine) == {"user_2"}
    assert [row["id"] for row in rows(engine, Batch)] == ["orphan"]


def test_event_done_meanwhile_is_not_blamed(endpoint: FlaskClient, engine: Engine) -> None:
    events = users(1)
    accept(endpoint, *events)
    assert Drain(engine, DrainLimits())()
    orphan(engine, events, 60)
    assert Drain(engine, DrainLimits())()
    assert (statuses(engine), attempts(engine)) == ({"done": 1}, {})


def test_drain_stops_at_its_time_limit(endpoint: FlaskClient, engine: Engine) -> None:
    accept(endpoint, *users(1))
    assert not Drain(engine, DrainLimits(max_seconds=0))()
    assert statuses(engine) == {"pending": 1}


@pytest.mark.parametrize(("number", "calls"), [(3, 0), (4, 1)])
def test_another_drain_is_called_only_if_more_is_due_than_a_batch_holds(
    endpoint: FlaskClient, engine: Engine, number: int, calls: int
) -> None:
    accept(endpoint, *users(number))
    called: list[int] = []
    assert Drain(engine, DrainLimits(batch_size=3), on_backlog=lambda: called.append(1))()
    assert (statuses(engine), len(called)) == ({"done": number}, calls)


def test_no_drain_is_called_for_the_halves_of_a_failed_batch(
    endpoint: FlaskClient, engine: Engine, poison: Poison
) -> None:
    poison(ValueError("a bug"))
    accept(endpoint, *users(8, bad=3))
    called: list[int] = []
    assert Drain(engine, DrainLimits(first_backoff=600), on_backlog=lambda: called.append(1))()
    assert (statuses(engine), called) == ({"done": 7, "pending": 1}, [])


class TestPostgresql:
    """Behaviour that needs row locks."""

    @pytest.fixture
    def db_url(self, make_database: Callable[[str], str]) -> str:
        return make_database("postgresql")

    @pytest.fixture
    def other(self, engine: Engine) -> Iterator[Connection]:
        """A second session, which PostgreSQL never chooses as the deadlock victim."""
        with engine.connect() as other:
            other.execute(text("SET deadlock_timeout = '20s'; SET lock_timeout = '20s'"))
            other.commit()
            yield other
            other.rollback()

    def test_batch_of_running_drain_is_not_an_orphan(
        self, endpoint: FlaskClient, engine: Engine, other: Connection
    ) -> None:
        events = users(2)
        accept(endpoint, *events)
        orphan(engine, events, 60)
        other.execute(select(Batch.id).with_for_update())
        assert Drain(engine, DrainLimits())()
        assert applied(engine) == set()

    def test_deadlock_is_retried_without_attempt(
        self, endpoint: FlaskClient, engine: Engine, drain: Drain, other: Connection
    ) -> None:
        accept(endpoint, *users(2))
        assert Drain(engine, DrainLimits())()
        accept(endpoint, *(made("user.updated", 5, id=f"user_{n}") for n in range(2)))
        lock = select(User.id).with_for_update()
        other.execute(lock.where(User.id == "user_1"))
        drainer = Thread(target=drain)
        drainer.start()
        _until(lambda: _waiting(engine) == 1)
        other.execute(lock.where(User.id == "user_0"))  # which the drain holds: one of the two must fail, the drain
        other.rollback()
        drainer.join(30)
        assert (statuses(engine), attempts(engine), rows(engine, Batch)) == ({"done": 4}, {}, [])

    @pytest.mark.parametrize("count", [1, 2])
    def test_lock_timeout_spends_no_attempt(
        self,
        endpoint: FlaskClient,
        db_url: str,
        engine: Engine,
        other: Connection,
        count: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        accept(endpoint, *users(count))
        assert Drain(engine, DrainLimits())()
        later = [made("user.updated", 5, id=f"user_{n}") for n in range(count)]
        accept(endpoint, *later)
        other.execute(select(User.id).with_for_update())
        impatient = open_engine(db_url, lock_timeout_ms=1)
        assert Drain(impatient, DrainLimits())(), "what is locked is left for later"
        impatient.dispose()
        other.rollback()
        with write_transaction(engine) as tx:  # some time later
            tx.execute(update(Event).values(due_at=db_now_plus(-1.0)).where(Event.status == EventStatus.PENDING))
        assert Drain(engine, DrainLimits())()
        assert (statuses(engine), attempts(engine)) == ({"done": 2 * count}, {})


def _waiting(engine: Engine) -> int:
    with read_transaction(engine) as tx:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(tx.execute(text(waiting)).scalar_one())


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)

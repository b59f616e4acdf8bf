"""Overlapping drains: followers of `changes` miss nothing, and deadlocks and lock time-outs cost no attempt."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from models.database import CHANGES_LOCK, advisory_lock, open_engine, read_transaction, write_transaction
from models.tables import Batch, Change, Event
from tests.support import JSON, mirrored, rows, statuses
from tests.support.inbox import count, let_time_pass, pending
from tests.support.processes import eventually
from tests.support.stories import delivered, mirror_of, organization, store, user, written_once
from worker.inbox.drain import Drain, DrainLimits
from worker.inbox.store import accept_webhooks
from worker.kinds.organization import Organization


class Follower(threading.Thread):
    """Follows `changes` by id, as another program would, until `end`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self._engine = engine
        self._ended = threading.Event()
        self.seen: list[int] = [0]

    def run(self) -> None:
        while not self._ended.wait(0.002):  # without a pause it would hold the GIL and slow down the drains
            self.read()

    def read(self) -> None:
        with read_transaction(self._engine) as tx:
            self.seen += tx.execute(select(Change.id).where(Change.id > self.seen[-1]).order_by(Change.id)).scalars()

    def end(self) -> list[int]:
        self._ended.set()
        self.join()
        self.read()
        return self.seen[1:]


@contextmanager
def following(url: str) -> Iterator[Follower]:
    with opened(url) as engine:
        follower = Follower(engine)
        follower.start()
        try:
            yield follower
        finally:
            follower.end()


@contextmanager
def opened(url: str, **options: Any) -> Iterator[Engine]:
    engine = open_engine(url, **options)
    try:
        yield engine
    finally:
        engine.dispose()


class Pause:
    """Stops the first transaction of `engine` that wrote changes, after its last statement and before its commit."""

    def __init__(self, engine: Engine) -> None:
        self.reached, self.over = threading.Event(), threading.Event()
        event.listen(engine, "commit", self._commit)

    def _commit(self, connection: Connection) -> None:
        if self.reached.is_set():
            return
        written = select(func.count()).select_from(Change).where(Change.id > 0)
        if connection.execute(written).scalar_one():  # no other transaction has written any yet
            self.reached.set()
            assert self.over.wait(20)


@pytest.fixture
def postgres(make_database: Callable[[str], str]) -> str:
    return make_database("postgresql")


@pytest.mark.parametrize("overlap", [False, True], ids=["other objects", "the same objects"])
def test_a_drain_paused_before_its_commit_hides_no_change_from_followers(postgres: str, overlap: bool) -> None:
    first = [organization(f"org_{place:02}", f"event_1_{place:02}", 1) for place in range(20)]
    second = [organization(f"org_{place + (0 if overlap else 20):02}", f"event_2_{place:02}", 2) for place in range(20)]
    limits = DrainLimits(batch_size=20)
    with (
        opened(postgres) as slow,
        opened(postgres) as quick,
        following(postgres) as follower,
        ThreadPoolExecutor() as do,
    ):
        store(slow, first)
        pause = Pause(slow)
        paused = do.submit(Drain(slow, limits))
        assert pause.reached.wait(10)
        store(quick, second)
        try:
            other = do.submit(Drain(quick, limits))
            eventually(lambda: started_batches(quick) == 2, 10)
            eventually(lambda: waiting_backends(quick) == 1, 10)  # the second drain waits for the first one's commit
            assert not other.done() and follower.seen == [0]
        finally:
            released = datetime.now(UTC)
            pause.over.set()
        assert paused.result(10) and other.result(10)
        seen = follower.end()
        changes = sorted(rows(quick, Change), key=itemgetter("id"))
        assert seen == [row["id"] for row in changes] and len(seen) == 40
        assert changes[0]["at"] == changes[19]["at"] < released < changes[20]["at"] == changes[39]["at"]
        assert statuses(quick) == {"done": 40} and count(quick, Event.attempts > 0) == 0
        written_once(quick)


def test_two_drains_choose_different_objects(postgres: str) -> None:
    ids = [f"org_{place}" for place in range(8)]
    backlog = [organization(id, f"event_{version}_{id}", version) for version in range(5) for id in ids]
    about = {event["id"]: event["data"]["id"] for event in backlog}
    with opened(postgres) as slow, opened(postgres) as quick, ThreadPoolExecutor() as do:
        store(slow, backlog)
        pause = Pause(slow)
        paused = do.submit(Drain(slow, DrainLimits(batch_size=10)))
        assert pause.reached.wait(10)
        try:
            other = do.submit(Drain(quick, DrainLimits(batch_size=10)))
            eventually(lambda: waits(quick) == ["advisory"], 10)  # for the lock on `changes`, not for a row
            recorded = [batch["event_ids"] for batch in rows(quick, Batch) if batch["event_ids"]]
            one, two = ({about[id] for id in event_ids} for event_ids in recorded)
            assert one and two and not one & two
        finally:
            pause.over.set()
        assert paused.result(20) and other.result(20)
        assert statuses(quick) == {"done": 40}
        written_once(quick)


@pytest.mark.long
def test_competing_drains_spend_no_attempts(db_url: str, engine: Engine, make_database: Callable[[str], str]) -> None:
    rng = random.Random(7)
    story = [
        make(f"{make.__name__}_{rng.randrange(5)}", f"event_{place:04}", place)
        for place in range(600)
        for make in [rng.choice([user, organization])]
    ]
    rng.shuffle(story)
    expected = mirror_of(story, make_database)
    store(engine, story[:450])

    def work(_number: int) -> None:
        with opened(db_url) as own:
            while pending(own):
                Drain(own, DrainLimits(batch_size=rng.choice([3, 7, 11])))()

    def deliver(events: list[JSON]) -> None:
        with opened(db_url) as own:
            for each in events:
                accept_webhooks(own, [delivered(each)])

    with following(db_url) as follower, ThreadPoolExecutor() as do:
        list(do.map(lambda job: job(), [lambda: deliver(story[400:]), *[lambda: work(0)] * 4]))
        work(0)  # the events that arrived after the last drain
        seen = follower.end()
    assert statuses(engine) == {"done": 600} and count(engine, Event.attempts > 0) == 0
    assert mirrored(engine) == expected
    assert seen == sorted(row["id"] for row in rows(engine, Change))
    written_once(engine)


@pytest.mark.long
def test_a_lock_time_out_costs_no_attempt(postgres: str) -> None:
    with opened(postgres) as holder, opened(postgres, lock_timeout_ms=20) as other:
        store(other, [organization("org_1", "event_1", 1)])
        with write_transaction(holder) as tx:
            advisory_lock(tx, CHANGES_LOCK)
            assert Drain(other, DrainLimits())()
        let_time_pass(other)
        assert Drain(other, DrainLimits())()
        assert statuses(other) == {"done": 1} and count(other, Event.attempts > 0) == 0
        assert rows(other, Batch) == []


def test_a_deadlock_with_another_program_costs_no_attempt(postgres: str) -> None:
    with opened(postgres) as stranger, opened(postgres) as ours, ThreadPoolExecutor() as do:
        store(ours, [organization(id, f"event_0_{id}", 0) for id in ("org_a", "org_b")])
        assert Drain(ours, DrainLimits())()
        store(ours, [organization(id, f"event_1_{id}", 1) for id in ("org_a", "org_b")])
        before = deadlocks(ours)
        with write_transaction(stranger) as tx:
            lock(tx, "org_b")
            drained = do.submit(Drain(ours, DrainLimits()))
            eventually(lambda: waiting_backends(ours) == 1, 10)
            tx.execute(text("SET LOCAL deadlock_timeout = '20s'"))  # so that PostgreSQL cancels the drain
            lock(tx, "org_a")
        assert drained.result(20)
        eventually(lambda: deadlocks(ours) == before + 1, 5)
        assert statuses(ours) == {"done": 4} and count(ours, Event.attempts > 0) == 0
        written_once(ours)


def lock(tx: Connection, id: str) -> None:
    tx.execute(select(Organization.id).where(Organization.id == id).with_for_update())


def started_batches(engine: Engine) -> int:
    return len(rows(engine, Batch))


def waiting_backends(engine: Engine) -> int:
    """How many connections to this database wait for a lock."""
    return len(waits(engine))


def waits(engine: Engine) -> list[str]:
    """The kind of lock that each connection to this database waits for, of those that wait."""
    waiting = "SELECT wait_event FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with read_transaction(engine) as tx:
        return list(tx.execute(text(waiting)).scalars())


def deadlocks(engine: Engine) -> int:
    """How many deadlocks PostgreSQL has counted in this database."""
    with read_transaction(engine) as tx:
        counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(tx.execute(counted).scalar_one())

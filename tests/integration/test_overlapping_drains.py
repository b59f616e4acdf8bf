"""Drains that overlap: followers of `changes` miss nothing, and no deadlock or lock time-out is an event's fault."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text

from models.database import CHANGES_LOCK, advisory_lock, open_engine, read_transaction, write_transaction
from models.tables import Batch, Change, Event
from tests.support import JSON, mirrored, rows, statuses
from tests.support.inbox import count, let_time_pass, pending
from tests.support.processes import eventually
from tests.support.stories import delivered, mirror_of, organization, store, user, written_once
from worker.inbox.drain import Policy, drain
from worker.inbox.store import accept_webhooks
from worker.kinds.organization import Organization


class Follower(threading.Thread):
    """Reads `changes` behind the last id it has seen, as another program would, until told to end."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self._engine = engine
        self._ended = threading.Event()
        self.seen: list[int] = [0]

    def run(self) -> None:
        while not self._ended.wait(0.002):  # without a pause it would hold Python's lock, and the drains crawl
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
        mine = select(func.count()).select_from(Change).where(Change.id > 0)
        if connection.execute(mine).scalar_one():  # nobody else has written any yet
            self.reached.set()
            assert self.over.wait(20)


@pytest.fixture
def postgres(make_database: Callable[[str], str]) -> str:
    return make_database("postgresql")


@pytest.mark.parametrize("overlap", [False, True], ids=["other objects", "the same objects"])
def test_a_drain_paused_between_insert_and_commit_hides_no_change_from_a_follower(postgres: str, overlap: bool) -> None:
    first = [organization(f"org_{place:02}", f"event_1_{place:02}", 1) for place in range(20)]
    second = [organization(f"org_{place + (0 if overlap else 20):02}", f"event_2_{place:02}", 2) for place in range(20)]
    policy = Policy(batch_size=20)
    with (
        opened(postgres) as slow,
        opened(postgres) as quick,
        following(postgres) as follower,
        ThreadPoolExecutor() as do,
    ):
        store(slow, first)
        pause = Pause(slow)
        paused = do.submit(drain, slow, policy)
        assert pause.reached.wait(10)
        store(quick, second)
        try:
            other = do.submit(drain, quick, policy)
            eventually(lambda: started_batches(quick) == 2, 10)
            eventually(lambda: waiting_backends(quick) == 1, 10)  # the second drain waits for the first one's commit
            assert not other.done() and follower.seen == [0]
        finally:
            pause.over.set()
        assert paused.result(10) and other.result(10)
        seen = follower.end()
        assert seen == sorted(row["id"] for row in rows(quick, Change)) and len(seen) == 40
        assert statuses(quick) == {"done": 40} and count(quick, Event.attempts > 0) == 0
        written_once(quick)


def test_two_drains_of_a_backlog_choose_different_objects(postgres: str) -> None:
    ids = [f"org_{place}" for place in range(8)]
    backlog = [organization(id, f"event_{version}_{id}", version) for version in range(5) for id in ids]
    about = {event["id"]: event["data"]["id"] for event in backlog}
    with opened(postgres) as slow, opened(postgres) as quick, ThreadPoolExecutor() as do:
        store(slow, backlog)
        pause = Pause(slow)
        paused = do.submit(drain, slow, Policy(batch_size=10))
        assert pause.reached.wait(10)
        try:
            other = do.submit(drain, quick, Policy(batch_size=10))
            eventually(lambda: waits(quick) == ["advisory"], 10)  # for its turn to write `changes`, and for no row
            one, two = ({about[id] for id in batch["event_ids"]} for batch in rows(quick, Batch))
            assert one and two and not one & two
        finally:
            pause.over.set()
        assert paused.result(20) and other.result(20)
        assert statuses(quick) == {"done": 40}
        written_once(quick)


def test_drains_that_cross_each_other_spend_no_attempts(
    db_url: str, engine: Engine, make_database: Callable[[str], str]
) -> None:
    dice = random.Random(7)
    story = [
        make(f"{make.__name__}_{dice.randrange(5)}", f"event_{place:04}", place)
        for place in range(600)
        for make in [dice.choice([user, organization])]
    ]
    dice.shuffle(story)
    expected = mirror_of(story, make_database)
    store(engine, story[:450])

    def work(_number: int) -> None:
        with opened(db_url) as mine:
            while pending(mine):
                drain(mine, Policy(batch_size=dice.choice([3, 7, 11])))

    def deliver(events: list[JSON]) -> None:
        with opened(db_url) as mine:
            for each in events:
                accept_webhooks(mine, [delivered(each)])

    with following(db_url) as follower, ThreadPoolExecutor() as do:
        list(do.map(lambda job: job(), [lambda: deliver(story[400:]), *[lambda: work(0)] * 4]))
        work(0)  # what came after the last drain had ended
        seen = follower.end()
    assert statuses(engine) == {"done": 600} and count(engine, Event.attempts > 0) == 0
    assert mirrored(engine) == expected
    assert seen == sorted(row["id"] for row in rows(engine, Change))
    written_once(engine)


def test_a_lock_held_until_drains_give_up_costs_no_attempt(postgres: str) -> None:
    with opened(postgres) as holder, opened(postgres, lock_timeout_ms=20) as other:
        store(other, [organization("org_1", "event_1", 1)])
        with write_transaction(holder) as tx:
            advisory_lock(tx, CHANGES_LOCK)
            assert drain(other, Policy())
        let_time_pass(other)
        assert drain(other, Policy())
        assert statuses(other) == {"done": 1} and count(other, Event.attempts > 0) == 0
        assert rows(other, Batch) == []


def test_a_deadlock_with_another_program_is_tried_again_and_spends_no_attempt(postgres: str) -> None:
    with opened(postgres) as stranger, opened(postgres) as mine, ThreadPoolExecutor() as do:
        store(mine, [organization(id, f"event_0_{id}", 0) for id in ("org_a", "org_b")])
        assert drain(mine, Policy())
        store(mine, [organization(id, f"event_1_{id}", 1) for id in ("org_a", "org_b")])
        before = deadlocks(mine)
        with write_transaction(stranger) as tx:
            lock(tx, "org_b")
            drained = do.submit(drain, mine, Policy())
            eventually(lambda: waiting_backends(mine) == 1, 10)
            tx.execute(text("SET LOCAL deadlock_timeout = '20s'"))  # so that it is the drain that has to give way
            lock(tx, "org_a")
        assert drained.result(20)
        eventually(lambda: deadlocks(mine) == before + 1, 5)
        assert statuses(mine) == {"done": 4} and count(mine, Event.attempts > 0) == 0
        written_once(mine)


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
    """How many there were in this database."""
    with read_transaction(engine) as tx:
        counted = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(tx.execute(counted).scalar_one())

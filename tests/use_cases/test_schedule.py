"""The clock runs each task once when it is due. A failing task does not stop the others."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, update
from sqlalchemy import event as hooks

from models.database import in_transaction
from models.tables import Run, RunStatus, Tick
from models.types import db_now_plus
from tests.support import apply_all, differences, rows
from tests.support.actors import by
from tests.support.repair import settings
from tests.support.resync import Clock, client_of
from tests.support.stories import store
from worker.errors import WorkOSError
from worker.inbox.drain import Drain, DrainLimits
from worker.metrics import Counters
from worker.processes.clock import PeriodicTask
from worker.processes.clock import run as run_clock
from worker.queue.doorbell import Doorbell
from worker.repair.catch_up import catch_up
from worker.repair.environment import bind
from worker.repair.resync.resync import start
from worker.repair.schedule import needs_repair, schedule, watch
from worker.sandbox import Sandbox


@pytest.mark.long
def test_two_clocks_create_each_run_once(both_engines: Engine) -> None:
    def due() -> int:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: schedule(both_engines, settings()), range(16)))
        return len(rows(both_engines, Run))

    assert due() == 3  # one of each task
    finish_all(both_engines)
    assert due() == 3
    age_ticks(both_engines, 301)
    assert due() == 4  # the catch-up's five minutes are over
    finish_all(both_engines)
    age_ticks(both_engines, 30 * 24 * 3600)
    assert due() == 7  # a month missed, each once


def finish_all(engine: Engine) -> None:
    in_transaction(engine, lambda tx: tx.execute(update(Run).values(status=RunStatus.DONE)))


def age_ticks(engine: Engine, seconds: float) -> None:
    """Move the last tick of every task `seconds` into the past, by the database's clock."""
    in_transaction(engine, lambda tx: tx.execute(update(Tick).values(at=db_now_plus(-seconds))))


def test_due_run_waits_for_unfinished_run(one_engine: Engine) -> None:
    schedule(one_engine, settings())
    age_ticks(one_engine, 24 * 3600)
    schedule(one_engine, settings())
    assert len(rows(one_engine, Run)) == 3
    finish_all(one_engine)
    schedule(one_engine, settings())
    schedule(one_engine, settings())
    assert len(rows(one_engine, Run)) == 6


def test_watch_rings_for_abandoned_runs(one_engine: Engine, repair_bell: Doorbell) -> None:
    watch(one_engine, repair_bell)
    assert repair_bell.queued_jobs() == 0
    run_id = start(one_engine, by("operator"))
    lease = update(Run).where(Run.id == run_id)
    in_transaction(one_engine, lambda tx: tx.execute(lease.values(leased_until=db_now_plus(30))))
    watch(one_engine, repair_bell)
    assert repair_bell.queued_jobs() == 0  # somebody has it
    in_transaction(one_engine, lambda tx: tx.execute(lease.values(leased_until=db_now_plus(-1))))
    assert needs_repair(one_engine)
    for _ in range(3):
        watch(one_engine, repair_bell)
    assert repair_bell.queued_jobs() == 1


def test_failing_task_does_not_stop_others(logs: list[Any], redis: Redis) -> None:
    stop, ran = threading.Event(), []

    def fail() -> None:
        raise WorkOSError

    def go_on() -> None:
        ran.append(1)
        if len(ran) == 3:
            stop.set()

    run_clock([PeriodicTask("bad", 0.01, fail), PeriodicTask("good", 0.01, go_on)], stop, Counters(redis))
    assert len(ran) == 3
    assert {line["name"] for line in logs if line["event"] == "postponed"} == {"bad"}


@pytest.mark.long
def test_concurrent_catch_ups_and_drains_do_not_deadlock(both_engines: Engine, redis: Redis) -> None:
    clock = Clock()
    with Sandbox(seed=7, clock=clock) as sandbox, closing(client_of(sandbox, redis)) as workos:
        bind(both_engines, workos, settings())
        sandbox.play(1000, seed=4)
        events = sandbox.world.events
        clock.advance(seconds=90)
        store(both_engines, (each for place, each in enumerate(events) if place % 5))
        errors: list[str] = []
        hooks.listen(both_engines, "handle_error", lambda context: errors.append(str(context.original_exception)))
        with ThreadPoolExecutor() as pool:
            limits = DrainLimits(batch_size=20, max_seconds=300)  # until the inbox is empty, on any machine
            drains = [pool.submit(Drain(both_engines, limits)) for _ in range(2)]
            readers = [pool.submit(catch_up, both_engines, workos) for _ in range(2)]
            assert [each.result() for each in drains] == [True, True]
            assert sum(each.result().new for each in readers) == len(events[::5])
        apply_all(both_engines)
        assert differences(both_engines, sandbox.world.truth()) == []
        assert errors == []  # no deadlock, though one would only cost a second

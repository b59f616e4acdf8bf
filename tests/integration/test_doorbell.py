"""The doorbell: no wake-up is lost, no delivery waits for Redis, and workers run known functions only."""

import json
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from rq import Callback, Queue, Webhook
from rq.serializers import JSONSerializer
from sqlalchemy import Engine

from models.tables import Event
from tests.support import accept, statuses
from tests.support.inbox import count, let_time_pass
from tests.support.processes import Valkey
from tests.support.stories import new_users, written_once
from webhooks.app import create_app
from worker.bootstrap import Services, build_services
from worker.inbox.drain import Policy, drain
from worker.processes.clock import sweep
from worker.processes.jobs import answered, make_worker
from worker.queue.doorbell import DRAIN, Doorbell
from worker.reports.health import check_health


def test_no_wake_up_is_lost_when_rings_and_reads_overlap(redis_url: str) -> None:
    """In each of many short rounds, some job must read everything that was committed before a ring."""
    rng = random.Random(3)
    with Redis.from_url(redis_url) as redis, ThreadPoolExecutor() as do:
        for number in range(150):
            inbox = Inbox(redis, f"lane{number}", [rng.random() / 2000 for _ in range(8)])
            ringers = [do.submit(inbox.commit_and_ring, 4) for _ in range(2)]
            workers = [do.submit(inbox.work) for _ in range(2)]
            for ringer in ringers:
                ringer.result(10)
            inbox.all_rang.set()
            for worker in workers:
                worker.result(10)
            assert inbox.read == inbox.committed == 8, f"round {number}"


class Inbox:
    """Counts commits, and how many of them the jobs of its lane have read."""

    def __init__(self, redis: Redis, lane: str, pauses: list[float]) -> None:
        self._bell = Doorbell(redis, lane)
        self._jobs = self._bell.queue
        self._redis = redis
        self._pauses = pauses
        self._lock = threading.Lock()
        self.all_rang = threading.Event()
        self.committed = 0
        self.read = 0

    def commit_and_ring(self, times: int) -> None:
        for place in range(times):
            time.sleep(self._pauses[place])
            with self._lock:
                self.committed += 1
            assert self._bell.ring()

    def work(self) -> None:
        """Take jobs until all rang and none is left."""
        while True:
            last = self.all_rang.is_set()
            if self._redis.lpop(self._jobs.key) is not None:
                self._bell.answer()
                time.sleep(self._pauses[-1])
                with self._lock:
                    self.read = max(self.read, self.committed)
            elif last:
                return


@pytest.fixture
def work(services: Services) -> Callable[[], None]:
    return lambda: run_queued_jobs(services)


def run_queued_jobs(services: Services) -> None:
    """Run all queued jobs as a lane process does."""
    functions = {DRAIN: answered(lambda: drain(services.engine, Policy()), services.bell, services.counters)}
    make_worker(services.redis, DRAIN, functions).work(burst=True)


def test_an_expired_flag_only_queues_one_job_too_many(
    services: Services, endpoint: FlaskClient, work: Callable[[], None]
) -> None:
    first, second, third = new_users(3)
    accept(endpoint, first, second)
    assert services.bell.waiting() == 1
    (flag,) = services.redis.keys("workos-sync:wake:*")
    services.redis.delete(flag)  # as its expiry does
    accept(endpoint, third)
    assert services.bell.waiting() == 2
    work()
    assert statuses(services.engine) == {"done": 3}
    written_once(services.engine)


@pytest.fixture
def on_own_valkey(make_services: Callable[..., Services], valkey: Valkey) -> Services:
    return make_services(redis_url=valkey.url)


@pytest.mark.long
@pytest.mark.parametrize("trouble", ["frozen", "stopped", "flushed"])
def test_a_redis_failure_delays_no_delivery_and_the_sweep_finds_the_events(
    on_own_valkey: Services, engine: Engine, valkey: Valkey, trouble: str
) -> None:
    endpoint = create_app(on_own_valkey).test_client()
    warm_up, *events = new_users(6)
    accept(endpoint, warm_up)
    run_queued_jobs(on_own_valkey)
    begin, end = {
        "frozen": (valkey.freeze, valkey.thaw),
        "stopped": (valkey.kill, valkey.start),
        "flushed": (valkey.flush, valkey.flush),
    }[trouble]
    begin()
    for event in events:
        started = time.monotonic()
        accept(endpoint, event)
        assert time.monotonic() - started < 1
    end()
    assert count(engine, Event.status == "pending") == 5
    let_time_pass(engine, 3)
    clock = build_services(on_own_valkey.settings, valkey.url)
    assert sweep(clock.engine, clock.bell) or trouble == "frozen"  # what was sent to a frozen one arrives when it thaws
    assert not sweep(clock.engine, clock.bell), "one job finds everything"
    run_queued_jobs(on_own_valkey)
    assert statuses(engine) == {"done": 6}
    clock.engine.dispose()
    clock.redis.close()


class Bomb:
    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def test_a_worker_skips_unknown_functions_and_continues(
    services: Services, endpoint: FlaskClient, tmp_path: Path, listener: socket.socket, work: Callable[[], None]
) -> None:
    trace = tmp_path / "trace"
    shell = f"touch {trace}"
    jobs = Queue(DRAIN, connection=services.redis, serializer=JSONSerializer)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    calls = [Webhook(url, status, timeout=1) for status in ("finished", "failed")]
    jobs.enqueue_call("os.system", (shell,), webhooks=calls)
    jobs.enqueue_call("worker.inbox.drain.drain", (1, 2, 3))
    back = Callback("os.system")
    jobs.enqueue_call(DRAIN, on_success=back, on_failure=back, on_stopped=back, webhooks=calls)
    pickled = Queue(DRAIN, connection=services.redis).enqueue_call("os.system", (shell,), meta={"a": Bomb(trace)})
    services.redis.hset(pickled.key, "data", pickle.dumps(Bomb(trace)))
    broken = jobs.enqueue_call(DRAIN)
    services.redis.hset(broken.key, "data", json.dumps(["drain", "no instance"]))
    accept(endpoint, *new_users(2))
    work()
    assert statuses(services.engine) == {"done": 2}
    assert services.bell.waiting() == 0
    assert not trace.exists()
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("lost", ["rq:workers", "all"])
def test_a_heartbeat_registers_a_worker_that_redis_has_lost(services: Services, redis_url: str, lost: str) -> None:
    with Redis.from_url(redis_url) as redis:
        worker = make_worker(services.redis, DRAIN, {})
        worker.register_birth()  # type: ignore[no-untyped-call]  # RQ has no types for it
        redis.flushall() if lost == "all" else redis.delete("rq:workers", f"rq:workers:workos-sync:{DRAIN}")
        assert check_health(services.engine, redis, services.settings).lanes[0].workers == []
        worker.heartbeat()
        assert check_health(services.engine, redis, services.settings).lanes[0].workers == ["starting"]

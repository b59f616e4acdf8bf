"""The doorbell: no wake-up is lost, no delivery waits for Redis, and workers run known functions only."""

import json
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from redis.client import Pipeline
from rq import Callback, Queue, Repeat, Retry, Webhook
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from sqlalchemy import Engine
from structlog.testing import capture_logs

from models.tables import Event
from tests.support import accept, statuses
from tests.support.inbox import count, let_time_pass
from tests.support.processes import Valkey, eventually
from tests.support.stories import new_users, written_once
from webhooks.app import create_app
from worker.bootstrap import Services, build_services
from worker.inbox.drain import Drain, DrainLimits
from worker.metrics import Counters, Place
from worker.processes import jobs
from worker.processes.clock import sweep
from worker.processes.drain_job import DrainJob
from worker.processes.jobs import clearing_flag, make_worker
from worker.queue.doorbell import DRAIN, Doorbell, queue_name
from worker.queue.heartbeat import Heartbeat
from worker.redis_client import NotPrimaryError, open_redis
from worker.reports.health import check_health
from worker.throttle import LogThrottle

pytestmark = pytest.mark.long


@pytest.mark.parametrize("waiting", [0, 1, 2], ids="{} of two jobs wait for more".format)
def test_no_wake_up_is_lost_when_rings_and_reads_overlap(redis_url: str, waiting: int) -> None:
    """In each of many short rounds, some job must read everything that was committed before a ring."""
    rng = random.Random(3)
    with Redis.from_url(redis_url) as redis, ThreadPoolExecutor() as do:
        for number in range(60):
            inbox = Inbox(redis, f"lane{number}", [rng.random() / 500 for _ in range(8)])
            ringers = [do.submit(inbox.commit_and_ring, 4) for _ in range(2)]
            workers = [do.submit(inbox.work, inbox.wait if place < waiting else inbox.read_once) for place in range(2)]
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

    def work(self, job: Callable[[], None]) -> None:
        """Take jobs until all rang and none is left."""
        while True:
            last = self.all_rang.is_set()
            if self._redis.lpop(self._jobs.key) is not None:
                job()
            elif last:
                return

    def read_once(self) -> None:
        """Read once."""
        self._bell.clear_flag()
        self._read()

    def wait(self) -> None:
        """Read after each ring, and a last time after the flag is deleted, or another job keeps it."""
        keeps = self._bell.keep_flag()
        self._read()
        while keeps and self._bell.wait_for_ring(0.001):
            keeps = self._bell.keep_flag()
            self._read()
        if keeps:
            self.read_once()

    def _read(self) -> None:
        time.sleep(self._pauses[-1])
        with self._lock:
            self.read = max(self.read, self.committed)


@pytest.fixture
def work(services: Services) -> Callable[[], None]:
    return lambda: run_queued_jobs(services)


def run_queued_jobs(services: Services) -> None:
    """Run all queued jobs as a lane process does."""
    functions = {DRAIN: clearing_flag(Drain(services.engine, DrainLimits()), services.bell, services.counters)}
    make_worker(services.redis, DRAIN, functions).work(burst=True)


def test_queued_jobs_of_one_process_end_and_one_waits(services: Services) -> None:
    """Jobs that each ring for a next one would run for ever, and fill Redis."""
    stopping = threading.Event()
    bell = services.bell
    assert bell.ring()
    bell._enqueue()  # as `doctor` and a backlog do
    settings = services.settings
    with closing(build_services(settings, str(settings.redis_url))) as of_worker, ThreadPoolExecutor() as do:
        job = DrainJob(of_worker, stopping)
        services.redis.lpop(bell.queue.key)
        do.submit(job).result(10)
        assert bell.queued_jobs() == 1
        services.redis.lpop(bell.queue.key)
        waiting = do.submit(job)
        eventually(lambda: job.waits, 10)
        assert bell.queued_jobs() == 0
        stopping.set()
        waiting.result(10)
    assert bell.queued_jobs() == 1, "the next process waits"


def test_two_rings_at_once_after_a_fail_over_both_succeed(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py reports that another process rang with the same error as a lost connection."""
    bell, other = services.bell, Doorbell(services.redis, DRAIN)
    exists, answers = Pipeline.exists, iter((NotPrimaryError("READONLY"),))

    def exists_while_another_rings(pipeline: Pipeline, *keys: str) -> object:
        for error in answers:
            raise error
        monkeypatch.undo()
        assert other.ring()
        return exists(pipeline, *keys) and 0

    monkeypatch.setattr(Pipeline, "exists", exists_while_another_rings)
    assert bell.ring() and bell.queued_jobs() == 1


def test_the_sweep_clears_a_flag_without_a_job(
    services: Services, endpoint: FlaskClient, work: Callable[[], None]
) -> None:
    services.redis.set("workos-sync:wake:drain", "somebody")  # without expiry
    accept(endpoint, *new_users(1))
    assert services.bell.queued_jobs() == 0
    let_time_pass(services.engine)
    assert sweep(services.engine, services.bell)
    work()
    assert statuses(services.engine) == {"done": 1}


def test_an_expired_flag_only_queues_one_job_too_many(
    services: Services, endpoint: FlaskClient, work: Callable[[], None]
) -> None:
    first, second, third = new_users(3)
    accept(endpoint, first, second)
    assert services.bell.queued_jobs() == 1
    (flag,) = services.redis.keys("workos-sync:wake:*")
    services.redis.delete(flag)  # as its expiry does
    accept(endpoint, third)
    assert services.bell.queued_jobs() == 2
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
    assert services.bell.queued_jobs() == 0
    assert not trace.exists()
    with pytest.raises(BlockingIOError):
        listener.accept()


OURS: dict[str, str | bytes] = {
    "data": json.dumps([DRAIN, None, [], {}]),
    "origin": queue_name(DRAIN),
    "status": "queued",
    "timeout": "10",
    "created_at": "2026-01-01T00:00:00.000000Z",
}
"""The hash of a job as the doorbell makes it."""


def hashed(id: str | bytes = "crafted", **fields: str | bytes) -> Callable[[Redis], None]:
    """A step that adds a job whose hash has these fields too."""

    def add(redis: Redis) -> None:
        name = id if isinstance(id, bytes) else id.encode()
        for field, value in (OURS | fields).items():
            redis.hset((b"rq:job:" + name).decode("latin-1"), field, value)
        redis.rpush(Queue(queue_name(DRAIN), connection=redis).key, id)

    return add


def asking(function: str, **options: Any) -> Callable[[Redis], object]:
    """A step that enqueues a job with RQ's own means."""
    return lambda redis: Queue(queue_name(DRAIN), connection=redis, serializer=JSONSerializer).enqueue_call(
        function, **options
    )


def of_wrong_type(redis: Redis) -> None:
    redis.set("rq:job:crafted", "a string")
    redis.rpush(Queue(queue_name(DRAIN), connection=redis).key, "crafted")


def own_dependent(redis: Redis) -> None:
    redis.sadd("rq:job:crafted:dependents", "crafted")
    hashed(dependency_ids='["crafted"]', allow_dependency_failures="1")(redis)


DROPPED: dict[str, Callable[[Redis], object]] = {
    "retries of an unknown function": asking("os.system", args=("true",), retry=Retry(max=500)),
    "retries of a known function with arguments": asking(DRAIN, args=(1,), retry=Retry(max=500)),
    "an unknown function": asking("os.system"),
    "no JSON": hashed(data=b"\x80\x04"),
    "too short": hashed(data='["drain"]'),
    "a number": hashed(data="5"),
    "a function that is a list": hashed(data='[["drain"],null,[],{}]'),
    "another type": of_wrong_type,
    "another origin": hashed(origin="elsewhere"),
    "an origin that is not UTF-8": hashed(origin=b"\xff"),
    "an id that RQ refuses": hashed("bad id!"),
    "an id that is not UTF-8": hashed(b"\xff\xfe"),
    "an unknown status": hashed(status="odd"),
    "a time that is no time": hashed(created_at="no"),
    "a timeout that is no number": hashed(timeout="x"),
    "a huge timeout": hashed(timeout="9" * 400),
    "no timeout": hashed(timeout="-1"),
}
BAD_FIELDS: dict[str, str | bytes] = {
    "retries_left": "x",
    "number_of_retries": "x",
    "retry_intervals": "{",
    "repeats_left": "x",
    "result_ttl": "x",
    "failure_ttl": "9" * 400,
    "ttl": "x",
    "webhooks": "{",
    "dependency_ids": "{",
    "worker_name": b"\xff",
    "description": b"\xff",
    "group_id": b"\xff",
    "exc_info": b"\xff",
    "last_heartbeat": b"\xff",
    "meta": b"\xff",
    "result": b"\xff",
    "success_callback_name": b"\xff",
    "enqueue_at_front": "x",
    "rate_limit_key": "x",
    "rate_limit_concurrency": "0",
}
HARMLESS: dict[str, Callable[[Redis], object]] = {
    "repeats": asking(DRAIN, repeat=Repeat(times=500)),
    "its own dependent": own_dependent,
    **{f"a bad {field}": hashed(**{field: value}) for field, value in BAD_FIELDS.items()},
}


@pytest.mark.parametrize("crafted", [*DROPPED, *HARMLESS])
def test_a_crafted_job_runs_at_most_once_and_the_worker_continues(
    redis_url: str, crafted: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_may_log", LogThrottle())
    ran: list[object] = []
    with open_redis(redis_url) as redis, capture_logs() as logs:
        bell = Doorbell(redis, DRAIN)
        (DROPPED | HARMLESS)[crafted](redis)
        bell.ring()
        make_worker(redis, DRAIN, {DRAIN: clearing_flag(lambda: ran.append(1), bell, Counters(redis))}).work(burst=True)
        assert len(ran) == (1 if crafted in DROPPED else 2), "the job behind it is run"
        assert bell.queued_jobs() == 0
        assert redis.llen(f"{bell.queue.key}:intermediate") == 0, "no worker finds it again"
        assert not redis.keys("rq:job:crafted") or crafted in HARMLESS
    assert [line["event"] for line in logs] == ["job_dropped"] * (crafted in DROPPED)
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []


FOREIGN_ENTRIES: dict[str, Callable[[Redis, Queue], object]] = {
    "a running job": lambda redis, queue: redis.zadd(queue.started_job_registry.key, {b"\xff": 1}),
    "a running job that never expires": lambda redis, queue: redis.zadd(queue.started_job_registry.key, {b"\xff": 9e9}),
    "a running job with two executions": lambda redis, queue: redis.zadd(queue.started_job_registry.key, {"a:b:c": 1}),
    "a finished job": lambda redis, queue: redis.zadd(queue.finished_job_registry.key, {b"\xff": 1}),
    "a failed job": lambda redis, queue: redis.zadd(queue.failed_job_registry.key, {b"\xff": 1}),
    "a worker": lambda redis, queue: redis.sadd(f"rq:workers:{queue.name}", b"\xff"),
    "a job that was taken": lambda redis, queue: redis.rpush(queue.intermediate_queue.key, b"\xff", b"\xff", "x"),
    "a group": lambda redis, _: redis.sadd("rq:groups", b"\xff"),
    "a rate limit": lambda redis, _: redis.sadd("rq:rl-keys", b"\xff"),
}


@pytest.mark.parametrize("kind", FOREIGN_ENTRIES)
def test_a_worker_goes_on_whatever_rq_finds_in_redis(
    redis_url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[object] = []
    with open_redis(redis_url) as redis:
        bell = Doorbell(redis, DRAIN)
        FOREIGN_ENTRIES[kind](redis, bell.queue)
        for _ in range(2):
            bell.ring()
            run = clearing_flag(lambda: ran.append(1), bell, Counters(redis))
            make_worker(redis, DRAIN, {DRAIN: run}).work(burst=True)
        assert len(ran) == 2
        assert redis.llen(bell.queue.intermediate_queue.key) == 0
    assert [record for record in caplog.records if record.levelname in {"ERROR", "CRITICAL"}] == []


def test_an_error_of_the_maintenance_is_reported_and_the_job_runs(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []

    def fail(*_: object) -> None:
        raise ValueError("whatever it is")

    monkeypatch.setattr(StartedJobRegistry, "cleanup", fail)
    with open_redis(redis_url) as redis, capture_logs() as logs:
        bell, counters = Doorbell(redis, DRAIN), Counters(redis)
        bell.ring()
        contained = partial(counters.contained, Place.LANE, DRAIN)
        functions = {DRAIN: clearing_flag(lambda: ran.append(1), bell, counters)}
        make_worker(redis, DRAIN, functions, contained=contained).work(burst=True)
        assert ran == [1] and not redis.exists(bell.queue.registry_cleaning_key)
        counters.close()
    assert [(line["event"], line["place"]) for line in logs] == [("unexpected_error", "lane")]


@pytest.mark.parametrize("lost", [None, "all"])
def test_a_heartbeat_reports_a_worker_that_redis_has_lost(services: Services, redis_url: str, lost: str | None) -> None:
    states = iter(["idle", "busy"])
    heartbeat = Heartbeat(open_redis(redis_url), DRAIN, lambda: next(states))
    with Redis.from_url(redis_url) as redis:

        def workers() -> list[str] | None:
            return check_health(services.engine, redis, services.settings).lanes[0].workers

        assert workers() == []
        heartbeat.beat()
        assert workers() == ["idle"]
        if lost:
            redis.flushall()
            assert workers() == []
        heartbeat.beat()
        assert workers() == ["busy"]
        heartbeat.close()
        assert workers() == []
        assert redis.keys("workos-sync:worker*") == [], "forgotten"

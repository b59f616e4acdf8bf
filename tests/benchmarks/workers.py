"""Worker processes that drain: started as a deployment starts them, and given an inbox to drain."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from redis import Redis
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from rq.worker import BaseWorker
from sqlalchemy import Engine, exists, select

from models.database import read_transaction
from models.tables import Event, EventStatus
from tests.benchmarks.servers import START_SECONDS, Bench
from worker.queue.doorbell import DRAIN, Doorbell, queue_name


def listening(redis: Redis) -> int:
    """Return how many worker processes take jobs."""
    return len(_all(redis))


def _all(redis: Redis) -> list[BaseWorker]:
    return SimpleWorker.all(connection=redis, serializer=JSONSerializer)


@contextmanager
def workers(bench: Bench, url: str, number: int) -> Iterator[list[psutil.Process]]:
    """Run `workos-sync worker` with `number` processes that drain, and yield those; nothing wakes them yet."""
    bench.empty_redis()
    arguments = ["-m", "worker.cli", "worker", "--processes", str(number)]
    with (
        Redis.from_url(bench.redis_url) as redis,
        bench.running("worker", arguments, bench.environment(url)) as process,
    ):
        process.wait_until(lambda: listening(redis) > number, START_SECONDS)  # one more repairs
        yield [psutil.Process(worker.pid) for worker in _all(redis) if queue_name(DRAIN) in worker.queue_names()]


def seconds_to_drain(bench: Bench, engine: Engine) -> float:
    """Ring as deliveries do until nothing is pending, and return how long that took."""
    waiting = select(exists().where(Event.status == EventStatus.PENDING))
    with Redis.from_url(bench.redis_url) as redis:
        bell, began = Doorbell(redis, DRAIN), time.perf_counter()
        while True:
            bell.ring()
            time.sleep(0.02)
            with read_transaction(engine) as tx:
                if not tx.execute(waiting).scalar_one():
                    return time.perf_counter() - began

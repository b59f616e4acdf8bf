"""Registered workers in Redis, without their processes."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from unittest.mock import patch

from redis import Redis
from redis.exceptions import ReadOnlyError
from rq.job import JobStatus

from worker.queue import heartbeat
from worker.queue.doorbell import DRAIN, REPAIR, Doorbell
from worker.queue.heartbeat import Heartbeat


@contextmanager
def registered(redis_url: str, *lanes: str) -> Iterator[None]:
    """Register one worker for each of these lanes, and for the lanes of every installation."""
    with ExitStack() as ended:
        for lane in (DRAIN, REPAIR, *lanes):
            worker = ended.enter_context(closing(Heartbeat(Redis.from_url(redis_url), lane, lambda: "idle")))
            with patch.object(heartbeat, "EXPIRE_SECONDS", 3600):
                worker.beat()
        yield


def forget(redis: Redis) -> None:
    """Remove all worker processes from Redis."""
    redis.delete(*redis.keys("workos-sync:worker*"))


@contextmanager
def answering(redis_url: str) -> Iterator[None]:
    """Start every job that is queued in the lane `drain`, as a worker there would."""
    ended = threading.Event()

    def answer() -> None:
        with Redis.from_url(redis_url) as redis:
            queue = Doorbell(redis, DRAIN).queue
            while not ended.wait(0.01):
                with suppress(ReadOnlyError):  # a test made Redis a replica: try again, as a worker does
                    for job in queue.jobs:
                        job.set_status(JobStatus.STARTED)
                        queue.remove(job)

    with ThreadPoolExecutor() as do:
        answers = do.submit(answer)
        try:
            yield
        finally:
            ended.set()
            answers.result()

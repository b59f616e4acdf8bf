"""The doorbell: tells RQ's workers, through Redis, that the inbox holds something. The sweep knows if it was missed."""

import time

import structlog
from redis import Redis
from redis.exceptions import RedisError, WatchError
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from worker.redis_client import NotPrimaryError

log = structlog.get_logger()

DRAIN = "drain"
"""The lane that applies what is pending in the inbox."""
REPAIR = "repair"
"""The lane that works on resyncs, catch-ups, replays, retention and confirmed reads."""
PROVISION = "provision"
"""The lane that makes those members whom their verified domain lets in."""
HOOKS = "hooks"
"""The lane that tells the host of changes."""

FLAG_MS = 10_000
JOB_TIMEOUT_SECONDS = 120
KEEP_RESULT_SECONDS = 30
KEEP_FAILURE_SECONDS = 24 * 3600
LISTEN_SECONDS = 5.0
"""A worker begins a job within this time, unless all of them are busy or listen elsewhere."""
LOOK_SECONDS = 0.05
QUIET_SECONDS = 1.0
"""After Redis did not answer, do not ask it again for so long: a frozen one must not slow every delivery."""


def queue_name(lane: str) -> str:
    """Return the name of a lane's queue in Redis, which others may use too."""
    return f"workos-sync:{lane}"


class Doorbell:
    """Rings one lane: a flag that is set and a job that is enqueued in one atomic step, unless the flag is set.

    Why nothing is missed: an event is committed before its ring looks at the flag. No flag, and a new job reads
    later. A flag, and its job has not yet deleted it, which it does before it reads.

    Args:
        redis: at the door a client with short time-outs and no retries of its own, for deliveries wait for it.
        lane: the queue's name and the name of the function that its job runs.
        timeout_seconds: RQ ends a job that takes longer.
    """

    def __init__(self, redis: Redis, lane: str, timeout_seconds: int = JOB_TIMEOUT_SECONDS) -> None:
        self._redis = redis
        self._lane = lane
        self._flag = f"workos-sync:wake:{lane}"
        self._timeout = timeout_seconds
        self._quiet_until = 0.0
        self.queue = Queue(queue_name(lane), connection=redis, serializer=JSONSerializer)

    def ring(self) -> bool:
        """Enqueue a job unless one is about to read anyway; return False if Redis did not take it."""
        if time.monotonic() < self._quiet_until:
            return False
        try:
            self._ring()
        except RedisError as error:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("doorbell_unheard", lane=self._lane, error=type(error).__name__)
            return False
        return True

    def _ring(self) -> None:
        try:
            self._enqueue_unless_flagged()
        except NotPrimaryError:
            self._enqueue_unless_flagged()  # on a new connection, as what is not watched does by itself

    def _enqueue_unless_flagged(self) -> None:
        if self._redis.exists(self._flag):
            return  # as most times in a burst: asked alone, it takes one turn to Redis
        with self._redis.pipeline() as pipeline:
            pipeline.watch(self._flag)  # type: ignore[no-untyped-call]  # redis-py has no types for it
            if pipeline.exists(self._flag):
                return
            pipeline.multi()
            pipeline.set(self._flag, 1, px=FLAG_MS)
            self.queue.enqueue_call(
                self._lane,
                timeout=self._timeout,
                result_ttl=KEEP_RESULT_SECONDS,
                failure_ttl=KEEP_FAILURE_SECONDS,
                pipeline=pipeline,
            )
            try:
                pipeline.execute()
            except WatchError as error:
                # Another process rang in the same instant, or redis-py reports so what was lost while it watched.
                if isinstance(error.__context__, RedisError):
                    raise error.__context__ from None

    def answer(self) -> None:
        """Take the flag down: the first act of the job, before it reads."""
        self._redis.delete(self._flag)

    def listen(self, seconds: float = LISTEN_SECONDS) -> float | None:
        """Enqueue a job of its own, and return after how many seconds a worker began it; None: none did in `seconds`.

        Raises `redis.exceptions.RedisError`.
        """
        began = time.monotonic()
        job = self.queue.enqueue_call(self._lane, timeout=self._timeout, result_ttl=KEEP_RESULT_SECONDS)
        while job.get_status() == JobStatus.QUEUED:
            if time.monotonic() - began > seconds:
                job.delete()
                return None
            time.sleep(LOOK_SECONDS)
        return time.monotonic() - began

    def waiting(self) -> int:
        """Return how many jobs are queued; raises `redis.exceptions.RedisError`."""
        return self.queue.count

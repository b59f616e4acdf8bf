"""The doorbell: wakes RQ's workers through Redis. If a ring is lost, the clock rings again."""

import threading
import time
import uuid
from contextlib import suppress

import structlog
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError
from rq import Queue
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from worker.env.redis_keys import redis_key
from worker.redis_client import NotPrimaryError, what_is_wrong

log = structlog.get_logger()

DRAIN = "drain"
"""The lane that applies pending events."""
REPAIR = "repair"
"""The lane for resyncs, catch-ups, replays, retention and confirmed reads."""
PROVISION = "provision"
"""The lane that creates the memberships of people who join by their verified domain."""
HOOKS = "hooks"
"""The lane that sends changes to the product's hooks."""
SESSIONS = "sessions"
"""The lane that ends the sessions of people who lost access."""
LANES = (DRAIN, REPAIR, PROVISION, HOOKS, SESSIONS)

FLAG_MS = 10_000
RUNG = b"1"
"""Value of the flag until a job keeps it, which sets its own value."""
KEPT_FLAG_MS = 1_000
"""Life of the flag while a job keeps it. Short, because nobody answers rings if the job's process is killed.

If a drain takes longer, the flag expires, and the next ring enqueues another job, which then keeps the flag.
"""
JOB_TIMEOUT_SECONDS = 120
KEEP_RESULT_SECONDS = 30
KEEP_FAILURE_SECONDS = 24 * 3600
PICKUP_SECONDS = 5.0
"""A worker starts a job within this time, unless all workers are busy or use another Redis."""
POLL_SECONDS = 0.05
QUIET_SECONDS = 1.0
"""Pause after a failure of Redis: a frozen Redis must not slow down every delivery."""


def queue_name(lane: str) -> str:
    """Return the name of a lane's queue. The prefix avoids conflicts with other users of the same Redis."""
    return redis_key(lane)


NOTIFY_IF_FLAGGED = """
if redis.call("EXISTS", KEYS[1]) == 0 then return 0 end
if redis.call("LLEN", KEYS[2]) == 0 then redis.call("LPUSH", KEYS[2], 1) end
return 1
"""
"""Returns whether the flag is set. If so, a job that waits for a ring finds one entry in its list."""


class TailBell:
    """Wakes the process that tails the events API, not a lane of RQ. If a ring is lost, its next read follows."""

    KEY = redis_key("more:tail")

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def ring(self) -> None:
        """Wake the process, now or when it next waits. An unavailable Redis is only logged."""
        try:
            with self._redis.pipeline() as pipeline:
                pipeline.lpush(self.KEY, 1)
                pipeline.ltrim(self.KEY, 0, 0)  # one entry wakes it; nobody may be there to take them
                pipeline.execute()
        except RedisError as error:
            log.warning("ring_failed", lane="tail", error=what_is_wrong(error)[0])

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait up to `seconds`, below Redis's time-out, for a ring; return whether there was one.

        If Redis is unavailable, wait for `stop`; the next read, which needs Redis, reports it.
        """
        try:
            return self._redis.blpop([self.KEY], max(seconds, 0.01)) is not None
        except RedisError:
            stop.wait(seconds)
            return False


class Doorbell:
    """Wakes one lane. In one atomic step, `ring` sets a flag and enqueues a job, unless the flag is already set.

    No event is missed, because each event is committed before the ring:

    - If the flag is not set, the ring enqueues a job, and that job reads the inbox.
    - If it is set, a job is queued or running that will delete the flag and then read the inbox.
    - A running job may keep the flag and wait, because a job costs more than a small batch. Rings then add to a list,
      and the job reads the inbox each time after emptying the list. Only one job at a time waits.

    Args:
        redis: the client. The webhook endpoint's has short time-outs and retries only once, after a fail-over, because
            deliveries wait for it.
        lane: names the queue, and the function that its jobs run.
        timeout_seconds: RQ ends a job that takes longer.
    """

    def __init__(self, redis: Redis, lane: str, timeout_seconds: int = JOB_TIMEOUT_SECONDS) -> None:
        self._redis = redis
        self.lane = lane
        self._flag = redis_key(f"wake:{lane}")
        self._rings_key = redis_key(f"more:{lane}")
        self._id = uuid.uuid4().hex.encode()
        self._notify_if_flagged = redis.register_script(NOTIFY_IF_FLAGGED)
        self._timeout = timeout_seconds
        self._quiet_until = 0.0
        self.queue = Queue(queue_name(lane), connection=redis, serializer=JSONSerializer)

    def ring(self) -> bool:
        """Enqueue a job, or notify the waiting one, unless a queued job will read the inbox anyway.

        Returns False if Redis fails, or failed within the last second.
        """
        if time.monotonic() < self._quiet_until:
            return False
        try:
            # Not an `except` clause: its error would look like the cause of a `WatchError` of the second attempt.
            with suppress(NotPrimaryError):
                self._enqueue_unless_flagged()
                return True
            self._enqueue_unless_flagged()  # on a new connection; redis-py itself does not retry watched commands
        except RedisError as error:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("ring_failed", lane=self.lane, error=what_is_wrong(error)[0])
            return False
        return True

    def _enqueue_unless_flagged(self) -> None:
        if self._notify_if_flagged(keys=[self._flag, self._rings_key]):
            return  # the usual case in a burst, answered in one round trip
        with self._redis.pipeline() as pipeline:
            pipeline.watch(self._flag)  # type: ignore[no-untyped-call]  # redis-py has no types for it
            if pipeline.exists(self._flag):
                return
            pipeline.multi()
            pipeline.set(self._flag, RUNG, px=FLAG_MS)
            self._enqueue(pipeline)
            try:
                pipeline.execute()
            except WatchError as error:
                # Another process rang at the same time, or redis-py reports a lost connection in this way.
                if isinstance(error.__context__, RedisError):
                    raise error.__context__ from None

    def _enqueue(self, pipeline: Pipeline | None = None) -> None:
        self.queue.enqueue_call(
            self.lane,
            timeout=self._timeout,
            result_ttl=KEEP_RESULT_SECONDS,
            failure_ttl=KEEP_FAILURE_SECONDS,
            pipeline=pipeline,
        )

    def clear_flag(self) -> None:
        """Delete the flag. The job must read the inbox after this call."""
        self._redis.delete(self._flag, self._rings_key)

    def keep_flag(self) -> bool:
        """Keep the flag, so that rings notify this job and enqueue no other one; return False if another job keeps it.

        In both cases the job must read the inbox after this call.
        """
        if self._redis.get(self._flag) not in (None, RUNG, self._id):
            return False
        with self._redis.pipeline() as pipeline:
            pipeline.set(self._flag, self._id, px=KEPT_FLAG_MS)
            pipeline.delete(self._rings_key)
            pipeline.execute()
        return True

    def wait_for_ring(self, seconds: float) -> bool:
        """Wait up to `seconds`, below `KEPT_FLAG_MS`; return whether the job must call `keep_flag` again.

        It must if the bell was rung, or if the flag expired. Otherwise the flag is kept for longer.
        """
        if self._redis.blpop([self._rings_key], seconds) is not None:
            return True
        return self._redis.get(self._flag) != self._id or not self._redis.pexpire(self._flag, KEPT_FLAG_MS)

    def enqueue_helper(self) -> None:
        """Enqueue a job that helps the running one with a backlog, unless a job is queued or Redis fails."""
        try:
            if not self.queued_jobs():
                self._enqueue()
        except RedisError as error:
            log.warning("ring_failed", lane=self.lane, error=what_is_wrong(error)[0])

    def measure_pickup(self) -> float | None:
        """Enqueue a job and return the seconds until a worker started it; None after `PICKUP_SECONDS`.

        Raises:
            redis.exceptions.RedisError: Redis is unavailable.
        """
        started = time.monotonic()
        job = self.queue.enqueue_call(self.lane, timeout=self._timeout, result_ttl=KEEP_RESULT_SECONDS)
        while job.get_status() == JobStatus.QUEUED:
            if time.monotonic() - started > PICKUP_SECONDS:
                job.delete()
                return None
            time.sleep(POLL_SECONDS)
        return time.monotonic() - started

    def queued_jobs(self) -> int:
        """Return how many jobs are queued; raises `redis.exceptions.RedisError`."""
        return self.queue.count

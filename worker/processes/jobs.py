"""RQ workers that run only known functions."""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import filterfalse
from types import FrameType
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004 - redis-py's names
from rq import Queue, SimpleWorker
from rq.exceptions import DeserializationError, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.utils import now
from rq.worker_registration import WORKERS_BY_QUEUE_KEY, clean_worker_registry

from worker.metrics import Counters, Place
from worker.queue.doorbell import KEEP_FAILURE_SECONDS, KEEP_RESULT_SECONDS, Doorbell, queue_name
from worker.redis_client import INTERRUPTS
from worker.throttle import LogThrottle

log = structlog.get_logger()

WORKER_TTL_SECONDS = 30
"""Short, so that idle workers often look for abandoned jobs."""

LONGEST_RECONNECT_SECONDS = 5.0
"""Maximum pause before RQ reconnects to Redis. RQ's default is a minute."""
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600
FIELDS = frozenset(
    (b"data", b"origin", b"status", b"timeout", b"created_at", b"enqueued_at", b"started_at", b"ended_at")
)
"""The fields of a job in Redis that are read."""
PASSED_ON = (NoSuchJobError, ConnectionError, TimeoutError, *INTERRUPTS)
"""Exceptions that do not mean that a job is malformed: it is gone, Redis is lost, or a signal arrived."""
NO_JOB = b"no-job"
_may_log = LogThrottle()
"""Limits the log lines about dropped jobs: a client with access to Redis can add any number of them."""


def clearing_flag(run: Callable[[], object], bell: Doorbell, counters: Counters) -> Callable[[], None]:
    """Return a job function that clears the bell's flag, then calls `run`, whose errors it contains.

    If Redis is unavailable when the flag is cleared, the job fails: RQ notices it too, and the process ends.
    """
    work = contained(run, bell, counters)

    def clear_and_work() -> None:
        bell.clear_flag()
        work()

    return clear_and_work


def contained(run: Callable[[], object], bell: Doorbell, counters: Counters) -> Callable[[], None]:
    """Return a job function that calls `run` and contains its errors: RQ would log them with their values.

    The clock rings for the work that remains.
    """

    def work() -> None:
        with counters.contained(Place.LANE, bell.lane):
            run()

    return work


class LaneQueue(Queue):
    """A queue whose entries may be anything: whoever can write to Redis can add one."""

    @classmethod
    def lmove(cls, connection: Redis, queue_key: str, timeout: int | None) -> tuple[str, Any] | None:
        """Take the next job id. One that is not UTF-8 is removed, and an id that no job has is returned instead."""
        taken: tuple[str, Any] | None = super().lmove(connection, queue_key, timeout)
        if taken is None or _is_text(taken[1]):
            return taken
        IntermediateQueue(queue_key, connection).remove(taken[1])
        _log_dropped("its id is not UTF-8")
        return queue_key, NO_JOB

    def move_dependents_to_ready(self, *_args: object, **_options: object) -> dict[str, list[str]]:
        """Enqueue no further jobs: ours have no dependents."""
        return {}


class LaneJob(Job):
    """A job as the doorbell makes it. Nothing else that Redis holds about it is read.

    So a job in Redis cannot ask for retries, repeats, callbacks or calls of web addresses.
    """

    @classmethod
    def fetch(cls, id: str, connection: Redis | None = None, serializer: object = None) -> Job:
        """Return a job. If it cannot be read, it names no function; if there is none, `NoSuchJobError` is raised."""
        try:
            return super().fetch(id, connection, serializer)
        except PASSED_ON:
            raise
        except Exception:  # noqa: BLE001 - RQ raises anything, even AssertionError, when a field is not its own
            job = cls(connection=connection, serializer=serializer)
            job._id, job.func_name = id, None
            return job

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        """Set the fields of the job from a hash in Redis."""
        super().restore({field: value for field, value in raw_data.items() if field in FIELDS})
        self.result_ttl, self.failure_ttl = KEEP_RESULT_SECONDS, KEEP_FAILURE_SECONDS


class Worker(SimpleWorker):
    """A worker that stops after its current step, and runs only the functions of its lane."""

    max_connection_wait_time = LONGEST_RECONNECT_SECONDS
    stopping: threading.Event
    """Set when the worker is asked to stop, so that its job ends after the current step."""
    functions: Mapping[str, Callable[[], object]]
    """The functions that jobs may name."""
    contained: Callable[[], AbstractContextManager[None]]
    """Returns a context that reports any error of the maintenance, which is tried again."""

    def request_stop(self, signum: int | None, frame: FrameType | None) -> None:
        """Stop after the current job."""
        self.stopping.set()
        # RQ raises an exception into an idle worker, but code that continues after any exception may catch it.
        self._stop_requested = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]  # RQ has no types for it

    def run_maintenance_tasks(self) -> None:
        """Clean what RQ keeps about this lane: RQ would end the worker for an entry that it cannot read.

        Groups and rate limits, which RQ cleans too, belong to other users of the same Redis.
        """
        self.last_cleaned_at = now()  # type: ignore[assignment]  # RQ types only its first value
        with self.contained():
            for queue in self.queues:
                if queue.acquire_maintenance_lock():
                    try:
                        _clean(self, queue)
                    finally:
                        queue.release_maintenance_lock()  # type: ignore[no-untyped-call]  # RQ has no types for it

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Run a job of this lane. Any other is dropped: RQ would keep its failure, and log its traceback."""
        if self._knows(job, queue):
            super().execute_job(job, queue)
            return
        queue.intermediate_queue.remove(job.id)
        self.connection.delete(job.key)
        _log_dropped("it is malformed or names an unknown function")

    def _knows(self, job: Job, queue: Queue) -> bool:
        try:
            called = job.func_name, job.args, job.kwargs
        except DeserializationError:
            return False
        names = [name for name in self.functions if called == (name, [], {})]
        return bool(names) and job.origin == queue.name and 0 < (job.timeout or 0) <= MAX_TIMEOUT_SECONDS


def _clean(worker: Worker, queue: Queue) -> None:
    """Remove entries that RQ cannot read, then let it forget ended jobs and workers, and find abandoned jobs."""
    redis: Any = queue.connection  # its types have text where it returns bytes
    workers, taken = WORKERS_BY_QUEUE_KEY % queue.name, queue.intermediate_queue
    started, others = queue.started_job_registry, (queue.finished_job_registry, queue.failed_job_registry)
    for registry in others:
        redis.zrem(registry.key, b"", *filterfalse(_is_text, redis.zrange(registry.key, 0, -1)))
    redis.zrem(started.key, b"", *filterfalse(_is_execution, redis.zrange(started.key, 0, -1)))
    redis.srem(workers, b"", *filterfalse(_is_text, redis.smembers(workers)))
    for entry in filterfalse(_is_text, redis.lrange(taken.key, 0, -1)):
        redis.lrem(taken.key, 0, entry)
    for registry in (started, *others):
        registry.cleanup()
    clean_worker_registry(queue)
    taken.cleanup(worker, queue)


def _is_text(entry: bytes) -> bool:
    return entry.decode(errors="ignore").encode() == entry


def _is_execution(entry: bytes) -> bool:
    return _is_text(entry) and entry.count(b":") == 1  # job:execution


def _log_dropped(why: str) -> None:
    if _may_log():
        log.warning("job_dropped", why=why)


def make_worker(
    redis: Redis,
    lane: str,
    functions: Mapping[str, Callable[[], object]],
    stopping: threading.Event | None = None,
    contained: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Worker:
    """Return a worker of one queue. It runs only `functions`, whatever function a job in Redis names.

    With several queues, RQ would lose a job if a worker is killed between them. The serializer is JSON because
    unpickling can run any code (docs/decisions.md, Work).
    """

    class KnownJob(LaneJob):
        """A job whose function is looked up in `functions`, never imported by name."""

        @property
        def func(self) -> Callable[[], object]:
            """The function to run."""
            return functions[str(self.func_name)]

    queue = LaneQueue(queue_name(lane), connection=redis, serializer=JSONSerializer, job_class=KnownJob)
    worker = Worker(
        [queue],
        connection=redis,
        queue_class=LaneQueue,
        job_class=KnownJob,
        serializer=JSONSerializer,
        worker_ttl=WORKER_TTL_SECONDS,
        maintenance_interval=WORKER_TTL_SECONDS,
        log_job_description=False,
    )
    worker.stopping = stopping or threading.Event()
    worker.functions = functions
    worker.contained = contained
    return worker

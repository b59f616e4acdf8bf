"""RQ workers that run only known functions."""

import threading
from collections.abc import Callable, Mapping
from types import FrameType

from redis import Redis
from redis.client import Pipeline
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from worker.metrics import Counters, Place
from worker.queue.doorbell import Doorbell, queue_name

WORKER_TTL_SECONDS = 30
"""Short, so that idle workers often look for abandoned jobs."""

LONGEST_RECONNECT_SECONDS = 5.0
"""Maximum pause before RQ reconnects to Redis. RQ's default is a minute."""


def answered(run: Callable[[], object], bell: Doorbell, counters: Counters) -> Callable[[], None]:
    """Return a job function that answers the bell, then calls `run`, whose errors it contains.

    RQ would log the traceback of an error with its values. The clock rings for the work that remains. If Redis is
    unavailable, the job fails: RQ notices it too, and the process ends.
    """

    def work() -> None:
        bell.answer()
        with counters.contained(Place.LANE, bell.lane):
            run()

    return work


class Worker(SimpleWorker):
    """A worker that registers again after Redis was flushed or replaced by another server."""

    max_connection_wait_time = LONGEST_RECONNECT_SECONDS
    stopping: threading.Event
    """Set when the worker is asked to stop, so that its job ends after the current step."""

    def request_stop(self, signum: int | None, frame: FrameType | None) -> None:
        """Stop after the current job."""
        self.stopping.set()
        # RQ raises an exception into an idle worker, but code that continues after any exception may catch it.
        self._stop_requested = True
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]  # RQ has no types for it

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """Extend the worker's registration by `timeout` seconds, or register again."""
        super().heartbeat(timeout, pipeline)
        if pipeline is None and not self.connection.sismember(self.redis_workers_keys, self.key):
            self.connection.delete(self.key)  # incomplete, because the heartbeat has just created it
            self.register_birth()  # type: ignore[no-untyped-call]  # RQ has no types for it
            self.set_state(self.get_state())


def make_worker(
    redis: Redis, lane: str, functions: Mapping[str, Callable[[], object]], stopping: threading.Event | None = None
) -> Worker:
    """Return a worker of one queue. It runs only `functions`, whatever function a job in Redis names.

    With several queues, RQ would lose a job if a worker is killed between them. The serializer is JSON because
    unpickling can run any code (docs/decisions.md, Work).
    """

    class KnownJob(Job):
        """A job whose function is looked up in `functions`, never imported by name."""

        @property
        def func(self) -> Callable[[], object]:
            """The function to run; raises `ValueError` for an unknown name."""
            if self.func_name is None or self.func_name not in functions:
                raise ValueError("this worker does not know the function that the job names")
            return functions[self.func_name]

        # RQ would import callbacks by name.
        success_callback = failure_callback = stopped_callback = None

        def send_webhooks(self, status: str, *, exc_string: str | None = None) -> None:
            """Send nothing: a job in Redis must not name addresses for this process to call."""

    queue = Queue(queue_name(lane), connection=redis, serializer=JSONSerializer, job_class=KnownJob)
    worker = Worker(
        [queue],
        connection=redis,
        job_class=KnownJob,
        serializer=JSONSerializer,
        worker_ttl=WORKER_TTL_SECONDS,
        maintenance_interval=WORKER_TTL_SECONDS,
        log_job_description=False,
    )
    worker.stopping = stopping or threading.Event()
    return worker

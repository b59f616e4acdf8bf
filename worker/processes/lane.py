"""One worker process, started and supervised by `workos-sync worker` or `workos-sync up`."""

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial

import structlog
from redis.exceptions import RedisError
from rq.exceptions import StopRequested

from models.tables import AutoJoinMode
from worker import provisioning
from worker.bootstrap import JOB_SECONDS, Services, build_services, drain_limits, report_redis
from worker.error_handling import describe, is_expected
from worker.hooks.follow import follow
from worker.hooks.targets import targets
from worker.hooks.threads import HookThreads
from worker.inbox.drain import DrainRecord, drain
from worker.metrics import ACCEPTED_TO_APPLIED, Place
from worker.processes.jobs import clearing_flag, contained, make_worker
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR
from worker.queue.heartbeat import Heartbeat
from worker.repair.catch_up import update_complete_to
from worker.repair.environment import connect, require_same_environment
from worker.repair.work import Repair, catch_up_or_resync
from worker.settings import Settings

log = structlog.get_logger()

LINGER_SECONDS = 0.2
"""How long a drain waits for the next delivery before its job ends. A job costs more than a small batch."""
MANY_EVENTS = 8
GATHER_SECONDS = 0.02
"""After a drain of at least `MANY_EVENTS`, the next one starts this much later, so that its batch is larger: the
statements of a batch cost as much as some dozens of events."""


def work(lane: str, settings: Settings, redis_url: str) -> None:
    """Run the jobs of `lane` until stopped.

    Exits with 1 if Redis is lost or RQ fails; the supervisor then starts a new process.
    """
    structlog.contextvars.bind_contextvars(lane=lane)
    with ExitStack() as at_end:
        services = at_end.enter_context(closing(build_services(settings, redis_url)))
        stopping = threading.Event()
        try:
            function = JOBS[lane](services, stopping, at_end)
            contained = partial(services.counters.contained, Place.LANE, lane)
            worker = make_worker(services.redis, lane, {lane: function}, stopping, contained)
            # A client of its own: RQ waits for jobs with long time-outs.
            failed = partial(services.counters.postpone, Place.HEARTBEAT, lane)
            heartbeat = Heartbeat(report_redis(redis_url), lane, worker.get_state, failed)
            at_end.enter_context(closing(heartbeat)).start()
            log.info("worker_started", pid=os.getpid())
            worker.work(logging_level="WARNING")
        except StopRequested:
            log.info("worker_stopped")  # before RQ's loop began
        except RedisError as error:
            log.warning("redis_lost", error=describe(error))
            if not is_expected(error):
                services.counters.report(Place.LANE, lane, error)
            sys.exit(1)
        except Exception as error:  # noqa: BLE001 - the supervisor starts a new process
            services.counters.report(Place.LANE, lane, error)
            sys.exit(1)


def _drain(services: Services, stopping: threading.Event, _at_end: ExitStack) -> Callable[[], None]:
    """Return a job that applies pending events, and waits for more as long as deliveries arrive."""
    settings, bell, limits = services.settings, services.bell, drain_limits(services.settings)
    applied = 0

    def count(ages: list[float]) -> None:
        nonlocal applied
        applied += len(ages)
        services.counters.observe(ACCEPTED_TO_APPLIED, ages)

    def drain_and_notify(record: DrainRecord) -> bool:
        nonlocal applied
        applied = 0
        done = drain(services.engine, limits, count, stopping.is_set, bell.enqueue_another, record)
        # Only for speed: the clock rings too.
        if settings.http_hooks:
            services.hooks_bell.ring()
        if settings.auto_join is AutoJoinMode.PROVISION and provisioning.waiting(services.engine):
            services.provision_bell.ring()
        return done

    def run() -> None:
        ends, done = time.monotonic() + JOB_SECONDS, False
        with DrainRecord(services.engine, limits) as record:
            try:
                bell.keep_flag()
                while (done := drain_and_notify(record)) and time.monotonic() < ends:
                    if not bell.wait_for_ring(LINGER_SECONDS):
                        break
                    if applied >= MANY_EVENTS:
                        stopping.wait(GATHER_SECONDS)
                    bell.keep_flag()
            finally:
                bell.clear_flag()
            if not (done and drain_and_notify(record)):
                bell.ring()  # the next job reads the inbox

    return contained(run, services.bell, services.counters)


def _repair(services: Services, stopping: threading.Event, _at_end: ExitStack) -> Callable[[], None]:
    settings = services.settings
    workos = connect(settings, services.redis, services.counters) if settings.repairs else None
    repair = Repair(services.engine, workos, settings, services.bell, stopping.is_set)
    return clearing_flag(repair.all, services.repair_bell, services.counters)


def _provision(services: Services, stopping: threading.Event, _at_end: ExitStack) -> Callable[[], None]:
    engine, settings, bell = services.engine, services.settings, services.bell
    workos = connect(settings, services.redis, services.counters)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    read_events = partial(catch_up_or_resync, engine, workos, lag=lag)
    update_complete = partial(update_complete_to, engine)

    def run() -> None:
        require_same_environment(engine, workos, settings)
        while provisioning.provision(engine, workos, lag, bell, read_events, update_complete, stopping.is_set):
            pass

    return clearing_flag(run, services.provision_bell, services.counters)


def _hooks(services: Services, _stopping: threading.Event, at_end: ExitStack) -> Callable[[], None]:
    """Return a job that wakes a thread for each hook and ends at once."""
    engine, attempts, targets_by_name = services.engine, services.settings.hook_attempts, targets(services.settings)
    report = services.counters.report

    def send(name: str, stopping: Callable[[], bool]) -> None:
        follow(engine, name, targets_by_name[name], attempts, stopping, partial(report, Place.HOOK, name))

    threads = HookThreads(targets_by_name, send, partial(services.counters.contained, Place.HOOK))
    at_end.callback(threads.close)
    return clearing_flag(threads.wake, services.hooks_bell, services.counters)


JOBS = {DRAIN: _drain, REPAIR: _repair, PROVISION: _provision, HOOKS: _hooks}
"""For each lane, a function that returns what its jobs run.

It gets the services of the process, an event that is set when the process must stop, and a stack that is closed when
the process ends.
"""

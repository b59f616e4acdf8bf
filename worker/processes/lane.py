"""One worker process, started and supervised by `workos-sync worker` or `workos-sync up`."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import structlog
from redis.exceptions import RedisError
from rq.exceptions import StopRequested
from rq.worker import WorkerStatus

from worker import provisioning
from worker.bootstrap import (
    CLAIM_SECONDS,
    REPORT_REDIS_SECONDS,
    Services,
    build_services,
    claim_redis,
    report_redis,
)
from worker.error_handling import describe, is_expected
from worker.hooks.follow import follow
from worker.hooks.targets import targets
from worker.hooks.threads import HookThreads
from worker.metrics import Place
from worker.processes import clock
from worker.processes.drain_job import DrainJob
from worker.processes.jobs import Worker, clearing_flag, contained, make_worker
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR, SESSIONS
from worker.queue.heartbeat import Heartbeat
from worker.repair.catch_up import update_complete_to
from worker.repair.environment import connect, require_same_environment
from worker.repair.sessions import SessionRevoker
from worker.repair.work import Repair, catch_up_or_resync
from worker.settings import Settings

log = structlog.get_logger()


def work(lane: str, settings: Settings, redis_url: str) -> None:
    """Run the jobs of `lane` until stopped.

    Exits with 1 if Redis is lost or RQ fails; the supervisor then starts a new process.
    """
    structlog.contextvars.bind_contextvars(lane=lane)
    with ExitStack() as at_end:
        services = at_end.enter_context(closing(build_services(settings, redis_url)))
        stopping = threading.Event()
        try:
            job = JOBS[lane](services, stopping, at_end)
            contained = partial(services.counters.contained, Place.LANE, lane)
            worker = make_worker(services.redis, lane, {lane: job.run}, stopping, contained)
            if lane == DRAIN:
                services.bell.ring()  # starts the waiting job; only now has RQ set the time-outs of connections
            failed = partial(services.counters.postpone, Place.HEARTBEAT, lane)
            state = partial(_state, worker, job)
            # A client of its own: RQ waits for jobs with long time-outs.
            heartbeat = Heartbeat(report_redis(redis_url), lane, state, failed)
            at_end.enter_context(closing(heartbeat)).start()
            if lane == REPAIR:  # of which each installation of a worker has one
                at_end.enter_context(_claiming_redis(services))
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


@contextmanager
def _claiming_redis(services: Services) -> Iterator[None]:
    """Renew the claim to our keys in Redis, so that no report of another database counts these workers."""
    stop = threading.Event()
    claim = clock.PeriodicTask("claim", CLAIM_SECONDS / 3, partial(claim_redis, services.engine, services.report_redis))
    thread = threading.Thread(target=clock.run, args=([claim], stop, services.counters), name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(REPORT_REDIS_SECONDS)


class _Job(NamedTuple):
    """The function that the jobs of a lane run, and whether the running job only waits for events."""

    run: Callable[[], None]
    waits: Callable[[], bool] = lambda: False


def _state(worker: Worker, job: _Job) -> str:
    return WorkerStatus.IDLE.value if job.waits() else worker.get_state()


def _drain(services: Services, stopping: threading.Event, _at_end: ExitStack) -> _Job:
    job = DrainJob(services, stopping)
    return _Job(contained(job, services.bell, services.counters), lambda: job.waits)


def _repair(services: Services, stopping: threading.Event, _at_end: ExitStack) -> _Job:
    settings = services.settings
    workos = connect(settings, services.redis, services.counters) if settings.repairs else None
    repair = Repair(services.engine, workos, settings, services.bell, stopping.is_set)
    return _Job(clearing_flag(repair.work_on_all, services.repair_bell, services.counters))


def _provision(services: Services, stopping: threading.Event, _at_end: ExitStack) -> _Job:
    engine, settings, bell = services.engine, services.settings, services.bell
    workos = connect(settings, services.redis, services.counters)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    read_events = partial(catch_up_or_resync, engine, workos, lag=lag)
    update_complete = partial(update_complete_to, engine)

    def run() -> None:
        require_same_environment(engine, workos, settings)
        while provisioning.provision(engine, workos, lag, bell, read_events, update_complete, stopping.is_set):
            pass

    return _Job(clearing_flag(run, services.provision_bell, services.counters))


def _hooks(services: Services, _stopping: threading.Event, at_end: ExitStack) -> _Job:
    """Return a job that wakes a thread for each hook and ends at once."""
    engine, attempts, targets_by_name = services.engine, services.settings.hook_attempts, targets(services.settings)
    report = services.counters.report

    def send(name: str, stopping: Callable[[], bool]) -> None:
        follow(engine, name, targets_by_name[name], attempts, stopping, partial(report, Place.HOOK, name))

    threads = HookThreads(targets_by_name, send, partial(services.counters.contained, Place.HOOK))
    at_end.callback(threads.close)
    return _Job(clearing_flag(threads.wake, services.hooks_bell, services.counters))


def _sessions(services: Services, stopping: threading.Event, _at_end: ExitStack) -> _Job:
    engine, settings = services.engine, services.settings
    workos = connect(settings, services.redis, services.counters)
    revoker = SessionRevoker(engine, workos, services.counters, stopping.is_set)

    def run() -> None:
        require_same_environment(engine, workos, settings)
        revoker.revoke_due()

    return _Job(clearing_flag(run, services.sessions_bell, services.counters))


JOBS = {DRAIN: _drain, REPAIR: _repair, PROVISION: _provision, HOOKS: _hooks, SESSIONS: _sessions}
"""For each lane, a function that builds its jobs.

It gets the services of the process, an event that is set when the process must stop, and a stack that is closed when
the process ends.
"""

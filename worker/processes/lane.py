"""One worker process, started and watched by `workos-sync worker`."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from functools import partial
from types import FrameType

import structlog
from redis.exceptions import RedisError
from rq import SimpleWorker
from rq.exceptions import StopRequested

from worker import provisioning
from worker.bootstrap import Services, build_services, drain_policy
from worker.errors import ConfigurationError, WorkOSUnavailableError
from worker.hooks import follow, targets
from worker.inbox.drain import drain
from worker.metrics import ACCEPTED_TO_APPLIED
from worker.processes.jobs import answered, make_worker
from worker.queue.doorbell import DRAIN, HOOKS, PROVISION, REPAIR
from worker.repair.catch_up import update_complete_to
from worker.repair.environment import connect, require_same_environment
from worker.repair.work import Repair, catch_up_or_resync
from worker.settings import Settings

log = structlog.get_logger()


def work(lane: str, settings: Settings, redis_url: str) -> None:
    """Work on `lane` until stopped, or until Redis is away (the supervisor starts another)."""
    structlog.contextvars.bind_contextvars(lane=lane)
    with closing(build_services(settings, redis_url)) as services:
        stopping = threading.Event()
        function = _function(lane, services, stopping)
        log.info("worker_started", pid=os.getpid())
        try:
            worker = make_worker(services.redis, lane, {lane: function})
            _tell_of_stop(worker, stopping)
            worker.work(logging_level="WARNING")
        except StopRequested:
            log.info("worker_stopped")  # before it had begun
        except RedisError as error:
            log.warning("redis_lost", error=type(error).__name__)
            sys.exit(1)


def _function(lane: str, services: Services, stopping: threading.Event) -> Callable[[], None]:
    makers = {DRAIN: _drain, REPAIR: _repair, PROVISION: _provision, HOOKS: _hooks}
    if lane not in makers:
        raise ValueError(f"there is no lane {lane}")
    return makers[lane](services, stopping)


def _drain(services: Services, _stopping: threading.Event) -> Callable[[], None]:
    settings, policy = services.settings, drain_policy(services.settings)
    observe = partial(services.counters.observe, ACCEPTED_TO_APPLIED)

    def run() -> None:
        if not drain(services.engine, policy, observe):
            services.bell.ring()
        # At once; what a resync changed, the clock rings for.
        if settings.http_hooks:
            services.hooks_bell.ring()
        if settings.auto_join == "provision" and provisioning.waiting(services.engine):
            services.provision_bell.ring()

    return answered(run, services.bell)


def _repair(services: Services, stopping: threading.Event) -> Callable[[], None]:
    settings = services.settings
    workos = connect(settings, services.redis, services.counters) if settings.repairs else None
    step = Repair(services.engine, workos, settings, services.bell, stopping.is_set).all
    return answered(_reaching(step), services.repair_bell)


def _provision(services: Services, stopping: threading.Event) -> Callable[[], None]:
    engine, settings, bell = services.engine, services.settings, services.bell
    workos = connect(settings, services.redis, services.counters)
    lag = timedelta(seconds=settings.catch_up_lag_seconds)
    catch_up = provisioning.CatchUp(
        read=partial(catch_up_or_resync, engine, workos, lag=lag),
        update_complete_to=partial(update_complete_to, engine),
    )

    def run() -> None:
        require_same_environment(engine, workos, settings)
        while provisioning.provision(engine, workos, lag, bell, catch_up, stopping.is_set):
            pass

    return answered(_reaching(run), services.provision_bell)


def _hooks(services: Services, stopping: threading.Event) -> Callable[[], None]:
    called = targets.targets(services.settings)

    def run() -> None:
        if not follow.follow(services.engine, called, services.settings.hook_attempts, stopping.is_set):
            services.hooks_bell.ring()

    return answered(run, services.hooks_bell)


def _reaching(step: Callable[[], object]) -> Callable[[], None]:
    """Return `step` as it goes on once WorkOS answers again: what is left to do stays, and the clock rings for it."""

    def run() -> None:
        try:
            step()
        except (ConfigurationError, WorkOSUnavailableError) as error:
            log.warning("repair_stopped", why=str(error))

    return run


def _tell_of_stop(worker: SimpleWorker, stopping: threading.Event) -> None:
    """Set `stopping` when the worker is asked to stop, so that a resync leaves off between two pages."""
    stop_rq: Callable[[int, FrameType | None], None] = worker.request_stop

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        # What RQ raises into an idle worker may meet code that goes on after any exception: then this ends the worker.
        worker._stop_requested = True  # noqa: SLF001 - RQ's own word for it, which its loop looks at
        stop_rq(number, frame)

    worker.request_stop = stop  # type: ignore[method-assign]
